"""Certified-accuracy curves as a picture. Matplotlib is imported when one is drawn."""

import math
import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxsmooth.report import curves, tables
from jaxsmooth.report.outcomes import Outcomes
from jaxsmooth.validation import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".pdf", ".svg")

# Okabe and Ito (2008): told apart with any kind of colour vision; line styles tell them apart in grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINE_STYLES = ("-", (0, (4, 1.2)), (0, (6, 1.2, 1.2, 1.2)), (0, (1.4, 0.8)))
_MARKERS = ("o", "s", "^", "D", "v", "P")
_LEGEND_CHARACTERS = 44  # with longer lines, the legend has one column
_DPI = 160


def check_plot_path(path: str | os.PathLike[str], name: str = "plot") -> Path:
    """A file that a plot can be written to, judged by its ending and its folder.

    Raises:
        InputError: for an ending other than .png, .pdf and .svg, or a folder that is not there.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{name} must end in {', '.join(SUFFIXES)}, got {path}")
    if not path.parent.is_dir():
        raise InputError(f"{name} must lie in a folder that is there, got {path}")
    return path


def plot_curves(
    sources: Sequence[Outcomes],
    path: str | os.PathLike[str],
    *,
    title: str = "Certified accuracy",
    confidence: float = 0.95,
) -> None:
    """Draws the certified-accuracy curves of some sources, each with its simultaneous band, into a file.

    Args:
        sources: what to draw; one curve each.
        path: file to write, whose ending (.png, .pdf or .svg) sets the format; replaced if it is there.
        title: heading of the picture.
        confidence: of the bands over the examples; see :func:`jaxsmooth.report.curves.band_half_width`.

    Raises:
        InputError: for an ending that is none of these, or a file that cannot be written.
    """
    path = check_plot_path(path)
    figure = draw_curves(sources, title=title, confidence=confidence)
    try:
        figure.savefig(path, dpi=_DPI)
    except OSError as error:
        raise InputError(f"could not write {path}: {error.strerror or error}") from None


def draw_curves(sources: Sequence[Outcomes], *, title: str, confidence: float) -> "Figure":
    """The picture of :func:`plot_curves` as a Matplotlib figure, to be changed or saved by the caller."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    wide = max(len(line) for s in sources for line in _label(s).splitlines()) > _LEGEND_CHARACTERS
    legend_columns = 1 if wide else min(2, len(sources))
    legend_rows = math.ceil(len(sources) / legend_columns)
    figure = Figure(figsize=(7.2, 4.4 + 0.45 * legend_rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    reach = max(_draw_curve(axes, source, place, confidence) for place, source in enumerate(sources))
    axes.set_xlim(0.0, 1.03 * reach if reach > 0 else 1.0)
    axes.set_ylim(0.0, 1.0)
    axes.set_yticks(np.linspace(0.0, 1.0, 6))
    axes.set_xlabel(f"radius r{_norm(sources)}", fontsize=11)
    axes.set_ylabel("certified accuracy at r", fontsize=11)
    axes.set_title(title, loc="left", pad=22, fontsize=14, fontweight="bold")
    tested = [source.tested_radii is not None for source in sources]
    shown = "bars" if all(tested) else "shaded, bars" if any(tested) else "shaded"
    axes.text(
        0.0,
        1.025,
        f"{shown}: {tables.plain(100 * confidence)}% confidence band over the examples, at all radii at once",
        transform=axes.transAxes,
        fontsize=9,
        color="0.35",
    )
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        loc="outside lower center", ncols=legend_columns, fontsize=9.5, frameon=False, handlelength=2.8
    )
    return figure


def _draw_curve(axes: "Axes", source: Outcomes, place: int, confidence: float) -> float:
    """Adds one curve; returns the largest radius that it reaches."""
    curve = curves.certified_accuracy_curve(source, confidence=confidence)
    colour = _COLOURS[place % len(_COLOURS)]
    if source.tested_radii is not None:  # points, for nothing is known between them
        axes.errorbar(
            curve.radius,
            curve.accuracy,
            yerr=(curve.accuracy - curve.lower, curve.upper - curve.accuracy),
            color=colour,
            linestyle="none",
            marker=_MARKERS[place % len(_MARKERS)],
            markersize=6,
            capsize=3,
            elinewidth=1.0,
            label=_label(source),
        )
        return float(curve.radius[-1])
    axes.fill_between(
        curve.radius, curve.lower, curve.upper, step="pre", color=colour, alpha=0.15, linewidth=0
    )
    axes.step(
        np.append(curve.radius, curve.radius[-1]),
        np.append(curve.accuracy, 0.0),
        where="pre",
        color=colour,
        linestyle=_LINE_STYLES[place % len(_LINE_STYLES)],
        linewidth=2.0,
        label=_label(source),
    )
    return float(curve.radius[-1])


def _label(source: Outcomes) -> str:
    settings = []
    if source.sigma is not None:
        settings.append(f"\u03c3 = {tables.plain(source.sigma)}")
    if source.num_samples is not None:
        at_most = "\u2264" if source.stopping else "="
        settings.append(f"n {at_most} {source.num_samples:,}")
    if source.stopping is not None:
        settings.append(f"stopped early by {source.stopping}")
    if source.alpha is not None:
        settings.append(f"\u03b1 = {tables.plain(source.alpha)}")
    settings.append(f"{source.num_examples:,} examples")
    if source.knows_abstentions:
        abstained = tables.number(Fraction(100 * int(source.abstained.sum()), source.num_examples), 1, "up")
        settings[-1] += f", {abstained}% abstained"
    name = source.name.replace("$", r"\$")
    return f"{name}\n{', '.join(settings)}"


def _norm(sources: Sequence[Outcomes]) -> str:
    norms = {source.norm for source in sources}
    norm = norms.pop()
    if norms or norm is None:
        return ""
    return r" ($\ell_\infty$)" if math.isinf(norm) else rf" ($\ell_{{{tables.plain(norm)}}}$)"
