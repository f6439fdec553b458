"""``jaxsmooth report``: tables and curves of results folders and published logs."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import numpy as np
import tyro
from etils import epath

from jaxsmooth import files, validation
from jaxsmooth.report import curves, plots, tables
from jaxsmooth.report.outcomes import Outcomes, differences
from jaxsmooth.sweep import cohen, records
from jaxsmooth.sweep.recertify import recertify, settings, unsupported
from jaxsmooth.validation import InputError

_COHEN = "cohen-tsv"
_DIGITS, _CSV_DIGITS = 4, 9


@dataclasses.dataclass(frozen=True)
class Report:
    """Certified accuracy, average radius and abstention of finished or running sweeps.

    Takes any number of results folders and of published logs (Cohen's tab-separated format) and prints one
    table; notes on what the numbers can be compared with go to stderr. Nothing is rounded in the
    classifier's favour.
    """

    paths: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH...")]
    """Results folders, and logs with the columns idx, label, predict, radius, correct, time."""
    radii: tuple[float, ...] = ()
    """Radii at which to give certified accuracy; by default 0, 0.25, ... as far as the data reach."""
    format: Literal["markdown", "latex", "csv", "cohen-tsv"] = "markdown"
    """Form of the output. cohen-tsv writes the log of one PATH, for the analysis scripts of the field."""
    plot: str | None = None
    """Picture to draw of the curves and their confidence bands: a new .png, .pdf or .svg file."""
    out: str | None = None
    """New file for the table or log, instead of printing it."""
    alpha: float | None = None
    """Certify again from the stored counts, each certificate false with at most this probability."""
    bound: Literal["two-sided", "one-sided", "selection-free"] | None = None
    """Certify again from the stored counts, with this bound."""
    digits: int | None = None
    """Digits after the point: 4 by default, 9 in csv; bounds on p_A get at least 5."""
    rounding: Literal["down", "nearest"] = "down"
    """Down never favours the classifier (abstention goes up); nearest is for comparison with published tables."""


def run(config: Report) -> None:
    """Prints the table or log, draws the picture.

    Raises:
        InputError: for any input that cannot be used; nothing has been written then.
    """
    _check(config)
    names = _names(config.paths)
    sources = [
        read_source(path, name=name, alpha=config.alpha, bound=config.bound)
        for path, name in zip(config.paths, names, strict=True)
    ]
    text = _text(sources, config)
    if config.plot is not None:
        plots.plot_curves(sources, config.plot)
    if config.out is None:
        print(text, end="", flush=True)
    else:
        files.write_atomically(config.out, text)
    for note in _notes(sources, config):
        print(f"note: {note}", file=sys.stderr)
    print(_closing_line(sources, config), file=sys.stderr)


def read_source(
    path: epath.PathLike, *, name: str | None = None, alpha: float | None = None, bound: str | None = None
) -> Outcomes:
    """Reads a results folder or a published log.

    Args:
        path: the folder or file.
        name: what to call it; the last part of the path by default.
        alpha: certifies again from stored counts, with this probability of error; only for a folder.
        bound: certifies again from stored counts, "two-sided" or "one-sided"; only for a folder.

    Raises:
        InputError: for a path that is neither, or damaged, or a log that is to be certified again.
    """
    path = epath.Path(path)
    name = name or _names([str(path)])[0]
    again = alpha is not None or bound is not None
    if path.is_dir():
        results = records.read_results(path)
        with _naming(path):
            return outcomes_from_results(
                recertify(results, alpha=alpha, bound=bound) if again else results, name=name
            )
    if not path.exists():
        raise InputError(f"PATH must be a results folder or a log, got {path}, which is not there")
    if again:
        argument = f"alpha {alpha}" if alpha is not None else f"bound {bound}"
        raise InputError(f"{argument} needs stored counts, and {path} is a log, which holds none")
    log = cohen.read(path)
    return Outcomes(
        name,
        log.index,
        log.label,
        log.prediction,
        log.radius,
        seconds=log.seconds,
        sigma=log.sigma,
        notes=log.notes,
    )


def outcomes_from_results(results: records.Results, *, name: str) -> Outcomes:
    """The outcomes of a results folder in memory, with notes on what is missing or does not hold together.

    Raises:
        InputError: for results without rows, or a manifest without the settings.
    """
    if not results.rows:
        raise InputError("it holds no examples yet")
    told = settings(results.manifest)
    notes = []
    wanted = results.manifest.describes.get("num_examples")
    if isinstance(wanted, int) and wanted > len(results.rows):
        notes.append(f"holds {len(results.rows)} of {wanted} examples so far")
    if doubtful := unsupported(results):
        notes.append(
            f"{len(doubtful)} rows claim more than their counts support (first: index {doubtful[0]}); "
            f"`--alpha {told.alpha:g}` goes by the counts alone"
        )
    rows = results.rows
    unsampled = np.array([row.num_samples == 0 for row in rows]) if told.only_correct else None
    if unsampled is not None:
        notes.append(
            f"{unsampled.sum()} of {len(rows)} examples were left at a selection stage that named a wrong class: they "
            "count as not certified; abstentions are not known"
        )
    certified = None
    if told.radii:
        for row in rows:
            if row.num_samples and tuple(decision.radius for decision in row.decisions) != told.radii:
                raise InputError(
                    f"the row of example {row.index} is damaged: its decisions are not on the radii tested"
                )
        verdicts = [[d.verdict for d in row.decisions] or ["not certified"] * len(told.radii) for row in rows]
        certified = np.array(verdicts) == "certified"
        undecided = np.sum(np.array(verdicts) == "undecided", axis=0)
        if undecided.any():
            listing = ", ".join(f"{n} at r={r:g}" for r, n in zip(told.radii, undecided, strict=True) if n)
            notes.append(
                f"undecided with all {told.num_samples} samples, counted as not certified: {listing}"
            )
    log = cohen.from_rows(rows)
    return Outcomes(
        name,
        log.index,
        log.label,
        log.prediction,
        log.radius,
        p_a_lower=None if told.radii or told.only_correct else [row.p_a_lower for row in rows],
        seconds=log.seconds,
        stopping=told.stopping,
        samples=[row.num_samples + row.selection_samples for row in rows],
        tested_radii=told.radii or None,
        certified=certified,
        unsampled=unsampled,
        alpha=told.alpha,
        bound=told.bound,
        num_samples=told.num_samples,
        sigma=float(told.noise.scale),
        norm=told.noise.norm,
        notes=tuple(notes),
    )


def _check(config: Report) -> None:
    """Refuses what can be refused before anything is read."""
    if not config.paths:
        raise InputError("PATH must be given at least once: results folders or logs")
    if config.format == _COHEN and len(config.paths) > 1:
        raise InputError(f"format {_COHEN} takes one PATH, got {len(config.paths)}")
    validation.check_not_negative("radii", validation.check_finite("radii", config.radii))
    if config.digits is not None:
        validation.check_integer("digits", config.digits, at_least=1, at_most=15)
    if config.alpha is not None:
        validation.check_alpha(config.alpha)
    if config.plot is not None:
        plots.check_plot_path(config.plot)
    for name, path in (("plot", config.plot), ("out", config.out)):
        if path is not None and epath.Path(path).exists():
            raise InputError(f"{name} must be a new file, got {path}, which is there already")
    if config.out is not None and not epath.Path(config.out).parent.is_dir():
        raise InputError(f"out must lie in a folder that is there, got {config.out}")


def _text(sources: Sequence[Outcomes], config: Report) -> str:
    if config.format == _COHEN:
        one = sources[0]
        if one.tested_radii is not None:
            raise InputError(
                f"format {_COHEN} needs the radius of every example, and {one.name} was tested at "
                f"{', '.join(f'{radius:g}' for radius in one.tested_radii)} only"
            )
        return cohen.encode(cohen.Log(one.index, one.label, one.prediction, one.radius, one.seconds))
    write = {"markdown": tables.markdown, "latex": tables.latex, "csv": tables.csv}[config.format]
    digits = config.digits or (_CSV_DIGITS if config.format == "csv" else _DIGITS)
    radii = sorted(set(config.radii)) or tables.default_radii(sources)
    for radius in radii:
        if not any(curves.is_known(source, radius) for source in sources):
            curves.certified_counts(sources[0], [radius])  # says which radii are known
    return write(tables.summary(sources, radii, digits=digits, rounding=config.rounding))


def _notes(sources: Sequence[Outcomes], config: Report) -> Iterator[str]:
    for source in sources:
        yield from (f"{source.name}: {note}" for note in source.notes)
    yield from differences(sources)
    if any(source.tested_radii is not None for source in sources):
        yield "an empty cell is not known: the radius was not tested, or sampling stopped before it could be"
    if config.alpha is not None or config.bound is not None:
        yield "certified again from the stored counts; choosing alpha or bound by the result would void it"
    if config.rounding == "nearest":
        yield "rounded to nearest, as published tables are: about half of the numbers are rounded up"
    if config.format != _COHEN:
        bands = (
            f"{tables.number(curves.band_half_width(size), _DIGITS, 'up')} ({size} examples)"
            for size in sorted({source.num_examples for source in sources}, reverse=True)
        )
        yield f"95% confidence over the examples, at all radii at once: accuracy +- {', '.join(bands)}"


def _closing_line(sources: Sequence[Outcomes], config: Report) -> str:
    total = sum(source.num_examples for source in sources)
    line = f"{len(sources)} source{'s' * (len(sources) > 1)}, {total} examples"
    written = [path for path in (config.out, config.plot) if path is not None]
    return line + (f"; wrote {' and '.join(written)}" if written else "")


def _names(paths: Sequence[str]) -> list[str]:
    """The last parts of the paths, or the whole paths where these are equal."""
    names = [
        (epath.Path(path).name or epath.Path(path).resolve().name).removesuffix(".tsv") for path in paths
    ]
    return [path if names.count(name) > 1 else name for path, name in zip(paths, names, strict=True)]


@contextlib.contextmanager
def _naming(path: epath.Path) -> Iterator[None]:
    """Puts the path in front of what is wrong with it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
