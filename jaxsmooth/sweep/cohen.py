"""The field's log of a certification run, introduced by Cohen et al. (2019): read and written.

Tab-separated, one line per example: ``idx label predict radius correct time``. Abstention is -1 with
radius 0.0; time is ``0:00:13.7`` or a number of seconds. A log says nothing about alpha, the bound or the number of
samples, and holds no counts.
"""

import dataclasses
import re
from collections.abc import Iterable
from decimal import ROUND_DOWN, Decimal

import numpy as np
from etils import epath
from scipy import special

from jaxsmooth import confidence
from jaxsmooth import radius as radius_lib
from jaxsmooth.certification import ABSTAIN
from jaxsmooth.sweep.records import Row
from jaxsmooth.validation import InputError

COLUMNS = ("idx", "label", "predict", "radius", "correct", "time")

_USUAL_NUM_SAMPLES = 100_000
_USUAL_ALPHA = 0.001
_PRINTING = 1.005  # the usual `{:.3}` raises a radius by up to half a percent
_RADIUS_STEP = Decimal("0.000001")
_TIME = re.compile(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d(?:\.\d*)?)")


@dataclasses.dataclass(frozen=True, eq=False)
class Log:
    """A log in memory, in the order of its lines.

    Attributes:
        index: int64[N].
        label: int64[N].
        prediction: int64[N], -1 for abstention.
        radius: float64[N], 0 on abstention.
        seconds: float64[N].
        sigma: scale of the noise if the file's name tells it (``sigma0.25``, ``sigma_0.25``, ``noise_0.25``).
        notes: what is odd about it, one line each.
    """

    index: np.ndarray
    label: np.ndarray
    prediction: np.ndarray
    radius: np.ndarray
    seconds: np.ndarray
    sigma: float | None = None
    notes: tuple[str, ...] = ()


def from_rows(rows: Iterable[Row]) -> Log:
    """What a log can hold of a sweep's rows."""
    rows = list(rows)
    return Log(
        index=np.array([row.index for row in rows], np.int64),
        label=np.array([row.label for row in rows], np.int64),
        prediction=np.array([row.prediction for row in rows], np.int64),
        radius=np.array([row.radius for row in rows], np.float64),
        seconds=np.array([row.seconds for row in rows], np.float64),
    )


def encode(log: Log) -> str:
    r"""The text of a log; radii are rounded down to six decimals.

    Example:
        >>> log = Log(index=np.array([7]), label=np.array([1]), prediction=np.array([1]),
        ...           radius=np.array([0.1234567]), seconds=np.array([13.75]))
        >>> encode(log).splitlines()[1]
        '7\t1\t1\t0.123456\t1\t0:00:13.750'
    """
    lines = ["\t".join(COLUMNS)]
    for index, label, prediction, radius, seconds in zip(
        *(a.tolist() for a in (log.index, log.label, log.prediction, log.radius, log.seconds)), strict=True
    ):
        rounded = Decimal(repr(radius)).quantize(_RADIUS_STEP, ROUND_DOWN)
        correct = int(prediction == label)
        lines.append(f"{index}\t{label}\t{prediction}\t{rounded}\t{correct}\t{_clock(seconds)}")
    return "\n".join(lines) + "\n"


def read(path: epath.PathLike) -> Log:
    """Reads a log.

    Args:
        path: a file in the format above, with its line of headings.

    Returns:
        The log, with a note where its radii tell of another alpha than the usual .001, or where its column
        ``correct`` contradicts label and prediction (which are what counts).

    Raises:
        InputError: for a file that is no log, has no rows, or has a damaged one, which is named.
    """
    path = epath.Path(path)
    try:
        lines = path.read_text().rstrip().splitlines()
    except OSError as error:
        raise InputError(f"could not read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a certification log: it is not text") from None
    if not lines or tuple(lines[0].split("\t")) != COLUMNS:
        raise InputError(
            f"{path} is not a certification log: its first line must be the tab-separated {' '.join(COLUMNS)}"
        )
    if len(lines) == 1:
        raise InputError(f"{path} holds no examples: it ends after its line of headings")
    rows: list[tuple[int, int, int, float, float]] = []
    line_of: dict[int, int] = {}
    contradicting = []
    for place, line in enumerate(lines[1:], start=2):
        try:
            row, correct = _parse(line)
            if row[0] in line_of:
                raise InputError(f"idx {row[0]} is on line {line_of[row[0]]} already")
        except InputError as error:
            raise InputError(f"{path} line {place} is damaged: {error}") from None
        line_of[row[0]] = place
        rows.append(row)
        if correct != (row[1] == row[2]):
            contradicting.append(place)
    index, label, prediction, radius, seconds = (np.array(column) for column in zip(*rows, strict=True))
    sigma = sigma_in_name(path.name)
    notes = []
    if contradicting:
        notes.append(
            f"`correct` contradicts label and predict in {len(contradicting)} rows (first: line {contradicting[0]}); "
            "label and predict are used"
        )
    if sigma is not None and (note := _other_alpha(float(radius.max()), sigma)):
        notes.append(note)
    return Log(index, label, prediction, radius, seconds, sigma, tuple(notes))


def sigma_in_name(name: str) -> float | None:
    """The noise scale that a file name tells, or None.

    Example:
        >>> sigma_in_name("cifar10-sigma0.25.tsv"), sigma_in_name("noise_0.5"), sigma_in_name("log.tsv")
        (0.25, 0.5, None)
    """
    for word in ("sigma", "noise"):
        if (match := re.search(rf"{word}[_=-]?(\d+(?:\.\d+)?)", name)) and float(match[1]) > 0:
            return float(match[1])
    return None


def _parse(line: str) -> tuple[tuple[int, int, int, float, float], bool]:
    """A line as (idx, label, predict, radius, seconds), and its claim to be correct."""
    fields = line.split("\t")
    if len(fields) != len(COLUMNS):
        raise InputError(f"it has {len(fields)} of {len(COLUMNS)} columns (cut off?)")
    values = dict(zip(COLUMNS, fields, strict=True))
    index, label = (_whole(name, values[name], at_least=0) for name in ("idx", "label"))
    prediction = _whole("predict", values["predict"], at_least=ABSTAIN)
    radius = _number("radius", values["radius"])
    if prediction == ABSTAIN and radius > 0:
        raise InputError(f"radius must be 0 on abstention, got {values['radius']}")
    if values["correct"] not in ("0", "1"):
        raise InputError(f"correct must be 0 or 1, got {values['correct']!r}")
    if match := _TIME.fullmatch(values["time"]):
        days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
        time = 60.0 * (60.0 * (24.0 * days + hours) + minutes) + seconds
    else:
        time = _number("time", values["time"])
    return (index, label, prediction, radius, time), values["correct"] == "1"


def _whole(name: str, text: str, at_least: int) -> int:
    if not re.fullmatch(r"-?\d+", text) or int(text) < at_least:
        raise InputError(f"{name} must be a whole number, at least {at_least}, got {text!r}")
    return int(text)


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not 0.0 <= value < np.inf:
        raise InputError(f"{name} must be a finite number, at least 0, got {text!r}")
    return value


def _clock(seconds: float) -> str:
    milliseconds = round(1000 * seconds)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{milliseconds // 1000:02d}.{milliseconds % 1000:03d}"


def _other_alpha(largest: float, sigma: float) -> str | None:
    """A note on a radius that the usual number of samples and alpha cannot give."""
    p_a_lower = confidence.clopper_pearson(
        _USUAL_NUM_SAMPLES, _USUAL_NUM_SAMPLES, _USUAL_ALPHA, bound="lower"
    )
    possible = float(radius_lib.certified_radius(p_a_lower, sigma=1.0))
    if largest / sigma <= _PRINTING * possible:
        return None
    alpha = float(np.exp(_USUAL_NUM_SAMPLES * special.log_ndtr(largest / sigma)))
    return (
        f"its largest radius is {largest / sigma:.4g} sigma (sigma = {sigma:g}, from its name), but n = 100000 at "
        f"alpha = 0.001 gives {possible:.4f} at most: alpha was about {alpha:.1g}, or n larger"
    )
