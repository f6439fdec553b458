"""Tables of certified accuracy for a terminal, a paper or a program.

Numbers are rounded when they become text, and only then: from exact fractions, and away from what would flatter
the classifier. Accuracies, radii and bounds on p_A go down, abstention goes up.
"""

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd

from jaxsmooth import validation
from jaxsmooth.report import curves
from jaxsmooth.report.outcomes import Outcomes

ROUNDINGS = ("down", "nearest")
P_A_QUANTILES = (0.1, 0.5, 0.9)

_LEAST_P_A_DIGITS = (
    5  # bounds near 1 are told apart by their last digits: .99993 is the most that n = 1e5 gives
)
_MOST_RADII = 10
_SETTINGS = {"sigma": "sigma", "num_samples": "n", "alpha": "alpha", "bound": "bound", "stopping": "stopping"}


def default_radii(sources: Sequence[Outcomes]) -> tuple[float, ...]:
    """0, 0.25, 0.5, ... as far as any source certifies, with a step that leaves at least 3 and at most 10 radii.

    Where a source was tested at some radii only, these.

    Example:
        >>> default_radii([Outcomes("tiny", index=[0], label=[1], prediction=[1], radius=[1.1])])
        (0.0, 0.25, 0.5, 0.75, 1.0)
    """
    tested = [s.tested_radii for s in sources if s.tested_radii is not None]
    if tested:
        return tuple(np.unique(np.concatenate(tested)).tolist())
    reach = max((float(s.radius[s.correct].max(initial=0.0)) for s in sources), default=0.0)
    if reach == 0.0:
        return (0.0,)
    step = 0.25
    while reach // step + 1 > _MOST_RADII:
        step *= 2
    while reach // step + 1 < 3:
        step /= 2
    return tuple(i * step for i in range(int(reach // step) + 1))


def summary(
    sources: Sequence[Outcomes], radii: Sequence[float], *, digits: int = 4, rounding: str = "down"
) -> pd.DataFrame:
    """One row per source: its settings, certified accuracies, average certified radius, abstention, bounds on p_A.

    Settings and bounds that no source knows are left out. An accuracy of exactly nothing is a bare 0.

    Args:
        sources: the outcomes to compare.
        radii: where to give certified accuracy, in the units of the sources' radii.
        digits: digits after the point, 1 to 15; bounds on p_A get at least 5.
        rounding: "down", in no case towards the better (abstention goes up); or "nearest", as in published tables.

    Returns:
        A frame of strings, ready to print.

    Raises:
        InputError: for arguments outside their ranges.

    Example:
        >>> outcomes = Outcomes("tiny", index=[0, 1, 2], label=[3, 5, 1], prediction=[3, -1, 1],
        ...                     radius=[0.5, 0.0, 0.25], sigma=0.25)
        >>> print(markdown(summary([outcomes], [0, 0.5], digits=3)), end="")
        | source | sigma | examples |   r=0 | r=0.5 |   ACR | abstain |
        |:-------|------:|---------:|------:|------:|------:|--------:|
        | tiny   |  0.25 |        3 | 0.666 | 0.333 | 0.250 |   0.334 |
    """
    digits = validation.check_integer("digits", digits, at_least=1, at_most=15)
    validation.check_choice("rounding", rounding, ROUNDINGS)
    up = "up" if rounding == "down" else rounding
    known = [name for name in _SETTINGS if any(getattr(source, name) is not None for source in sources)]
    with_p_a = any(source.p_a_lower is not None for source in sources)
    early = any(source.stopping is not None or source.unsampled is not None for source in sources)
    rows = []
    for source in sources:
        total = source.num_examples
        row = {"source": source.name}
        row |= {_SETTINGS[name]: _setting(getattr(source, name)) for name in known}
        row["examples"] = str(total)
        if early:
            samples = None if source.samples is None else Fraction(int(np.sum(source.samples)), total)
            row["samples"] = "" if samples is None else f"{-(-samples.numerator // samples.denominator)}"
        row |= {f"r={plain(radius)}": _accuracy(source, radius, digits, rounding) for radius in radii}
        knows_radii = source.tested_radii is None
        row["ACR"] = number(curves.average_certified_radius(source), digits, rounding) if knows_radii else ""
        abstained = Fraction(int(np.sum(source.abstained)), total)
        row["abstain"] = number(abstained, digits, up) if source.knows_abstentions else ""
        if with_p_a:
            row |= _p_a_cells(source, max(digits, _LEAST_P_A_DIGITS), rounding)
        rows.append(row)
    return pd.DataFrame(rows)


def number(value: Fraction | float, digits: int, rounding: str = "down") -> str:
    """A number that is at least 0 as text: rounded "down", "up" or to the "nearest".

    A float stands for the shortest decimal that names it, so that 0.29 stays 0.29 with two digits.

    Example:
        >>> number(0.29, 2), number(Fraction(2, 3), 2), number(Fraction(2, 3), 2, "up"), number(0, 2)
        ('0.29', '0.66', '0.67', '0.00')
    """
    if rounding == "nearest":
        return f"{float(value):.{digits}f}"
    exact = value if isinstance(value, Fraction) else Fraction(repr(float(value)))
    scaled = exact * 10**digits
    whole = scaled.numerator // scaled.denominator
    if rounding == "up" and whole < scaled:
        whole += 1
    return f"{Decimal(whole).scaleb(-digits):f}"


def plain(value: float) -> str:
    """A number in full, without an exponent or needless digits: 0.25, 1, 100000.

    Example:
        >>> plain(1.0), plain(0.001), plain(100_000)
        ('1', '0.001', '100000')
    """
    return f"{Decimal(repr(float(value))).normalize():f}"


def markdown(frame: pd.DataFrame) -> str:
    """A table in Markdown, aligned so that it also reads well in a terminal."""
    lefts = [_is_text(name) for name in frame.columns]
    cells = [[str(name) for name in frame.columns], *frame.map(_escape_markdown).to_numpy().tolist()]
    widths = [max(3, *(len(cell) for cell in column)) for column in zip(*cells, strict=True)]
    rule = [
        f":{'-' * (w + 1)}" if left else f"{'-' * (w + 1)}:" for w, left in zip(widths, lefts, strict=True)
    ]
    lines = []
    for row in cells:
        aligned = (c.ljust(w) if left else c.rjust(w) for c, w, left in zip(row, widths, lefts, strict=True))
        lines.append(f"| {' | '.join(aligned)} |")
    lines.insert(1, f"|{'|'.join(rule)}|")
    return "\n".join(lines) + "\n"


def latex(frame: pd.DataFrame) -> str:
    r"""A table in LaTeX, for the package booktabs.

    Example:
        >>> print(latex(pd.DataFrame([{"source": "a_b", "sigma": "0.25", "r=0.5": "0.333"}])), end="")
        % needs \usepackage{booktabs}
        \begin{tabular}{lrr}
        \toprule
        source & $\sigma$ & $r=0.5$ \\
        \midrule
        a\_b & 0.25 & 0.333 \\
        \bottomrule
        \end{tabular}
    """
    columns = "".join("l" if _is_text(name) else "r" for name in frame.columns)
    lines = [r"% needs \usepackage{booktabs}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    lines += [_latex_row(_latex_heading(name) for name in frame.columns), r"\midrule"]
    lines += [_latex_row(map(_escape_latex, row)) for row in frame.to_numpy().tolist()]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def csv(frame: pd.DataFrame) -> str:
    """A table as comma-separated values."""
    return frame.to_csv(index=False, lineterminator="\n")


def _accuracy(source: Outcomes, radius: float, digits: int, rounding: str) -> str:
    """Certified accuracy at one radius; nothing where it is not known."""
    if not curves.is_known(source, radius):
        return ""
    count = int(curves.certified_counts(source, [radius])[0])
    return number(Fraction(count, source.num_examples), digits, rounding) if count else "0"


def _p_a_cells(source: Outcomes, digits: int, rounding: str) -> dict[str, str]:
    names = [f"p_A {plain(100 * probability)}%" for probability in P_A_QUANTILES]
    if source.p_a_lower is None:
        return dict.fromkeys(names, "")
    quantiles = curves.p_a_quantiles(source, P_A_QUANTILES)
    return {name: number(value, digits, rounding) for name, value in zip(names, quantiles, strict=True)}


def _setting(value: float | str | None) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else plain(value)


def _is_text(column: str) -> bool:
    return column in ("source", "bound", "stopping")


def _escape_markdown(text: str) -> str:
    return text.replace("|", r"\|")


def _escape_latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return re.sub(r"[\\~^&%$#_{}]", lambda match: special.get(match[0], "\\" + match[0]), text)


def _latex_heading(name: str) -> str:
    if name in ("sigma", "alpha"):
        return rf"$\{name}$"
    if name == "n" or name.startswith("r="):
        return f"${name}$"
    return _escape_latex(name).replace(r"p\_A", "$p_A$")


def _latex_row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"
