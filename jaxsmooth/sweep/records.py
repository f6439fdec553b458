"""Records of a sweep on disk: a manifest, and rows of integer counts in complete parts.

A results folder holds ``manifest.json`` and ``parts/*.jsonl``. The manifest's ``determines`` is everything on
which the certificates depend, its ``describes`` is about the run. A part is written under a temporary
name and renamed, so that a reader sees whole parts or none; any number of processes may add parts.
Reading merges all parts and keeps one row per example.

All paths go through ``etils.epath``: a bucket works wherever its file system is installed.
"""

import dataclasses
import json
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from etils import epath

from jaxsmooth import files
from jaxsmooth.validation import InputError

FORMAT = "jaxsmooth-results"
VERSION = 1
MANIFEST = "manifest.json"
PARTS = "parts"
PARTIAL = "partial"
LOCKS = "locks"


class NewerFormat(InputError):
    """A file written by a later version; never left out as damaged."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a results folder says about itself.

    Attributes:
        determines: everything that the certificates depend on; folders may only be merged or resumed
            when it is equal. Keys: parameters (a fingerprint), model, data (name, split, fingerprint,
            num_classes), noise (name, sigma), alpha, bound, num_samples, selection_samples,
            seed, prng, inference_dtype; and, where they are used, stopping (rule, its numbers, a
            fingerprint of its plan) and only_correct.
        describes: about the run only: versions, devices, processes, command, time.
    """

    determines: dict[str, Any]
    describes: dict[str, Any]


VERDICTS = ("certified", "not certified", "undecided")


@dataclasses.dataclass(frozen=True)
class Decision:
    """What was decided about one radius of an example that stopped early, and the counts that it comes from.

    Attributes:
        radius: the radius in question, or the one certified where the radius was free.
        verdict: one of ``VERDICTS``.
        num_samples: samples of the estimation stage up to the look that decided.
        counts: class -> count up to there.
    """

    radius: float
    verdict: str
    num_samples: int
    counts: dict[int, int]


@dataclasses.dataclass(frozen=True)
class Row:
    """One example's certificate and the counts that it comes from.

    Attributes:
        index: position in the split of the data set.
        label: true class.
        prediction: certified class, or -1 for abstention.
        radius: certified radius, 0 on abstention; of radii tested one by one the largest that was certified.
        p_a_lower: lower bound on the probability of the selected class.
        p_b_upper: upper bound on the probability of every other class.
        counts: class -> count in the estimation stage; classes never seen are left out.
        selection_counts: the same of the selection stage.
        num_samples: samples of the estimation stage; more than ``counts`` sum to where logits
            were not finite. 0 where the selection stage named a wrong class and that was enough.
        selection_samples: samples drawn in the selection stage.
        seconds: time spent on the example.
        decisions: of an example that stopped early.
    """

    index: int
    label: int
    prediction: int
    radius: float
    p_a_lower: float
    p_b_upper: float
    counts: dict[int, int]
    selection_counts: dict[int, int]
    num_samples: int
    selection_samples: int
    seconds: float
    decisions: tuple[Decision, ...] = ()

    @property
    def correct(self) -> bool:
        """Whether the certified class is the true one."""
        return self.prediction == self.label


@dataclasses.dataclass(frozen=True)
class Results:
    """A results folder in memory: rows in order of index, each example once."""

    manifest: Manifest
    rows: list[Row]


def sparse(counts: np.ndarray) -> dict[int, int]:
    """Counts by class without the zeros: ``[0, 5, 0, 2]`` becomes ``{1: 5, 3: 2}``."""
    return {int(c): int(counts[c]) for c in np.flatnonzero(counts)}


def dense(counts: dict[int, int], num_classes: int) -> np.ndarray:
    """Counts as an array; the inverse of :func:`sparse`."""
    array = np.zeros(num_classes, np.int64)
    array[list(counts)] = list(counts.values())
    return array


def encode(row: Row) -> str:
    """A row as one line of JSON."""
    values = dataclasses.asdict(row)
    if not row.decisions:
        del values["decisions"]
    return json.dumps({"version": VERSION, **values})


def decode(line: str) -> Row:
    """The row that a line of JSON holds.

    Raises:
        InputError: for a line that is not a row, with what is wrong about it.
    """
    try:
        values = json.loads(line)
    except ValueError:
        raise InputError("it is not valid JSON (cut off?)") from None
    if not isinstance(values, dict):
        raise InputError("it is not a JSON object")
    version = values.pop("version", None)
    if isinstance(version, int) and version > VERSION:
        raise NewerFormat(
            f"its format version {version} is newer than {VERSION}; update jaxsmooth to read it"
        )
    names = {field.name for field in dataclasses.fields(Row)}
    if missing := sorted(names - values.keys() - {"decisions"}):
        raise InputError(f"it lacks {', '.join(missing)}")
    if unknown := sorted(values.keys() - names):
        raise InputError(f"it has unknown fields {', '.join(unknown)}")
    try:
        for name in ("counts", "selection_counts"):
            values[name] = _counts(values[name])
        for name in ("index", "label", "prediction", "num_samples", "selection_samples"):
            values[name] = _whole(values[name])
        for name in ("radius", "p_a_lower", "p_b_upper", "seconds"):
            values[name] = float(values[name])
        values["decisions"] = tuple(
            Decision(
                float(decision["radius"]),
                VERDICTS[VERDICTS.index(decision["verdict"])],
                _whole(decision["num_samples"]),
                _counts(decision["counts"]),
            )
            for decision in values.get("decisions", ())
        )
        row = Row(**values)
    except (TypeError, ValueError, AttributeError, KeyError):
        raise InputError("a field has a value of the wrong kind") from None
    _check_counts("counts", row.counts, row.num_samples)
    _check_counts("selection_counts", row.selection_counts, row.selection_samples)
    for decision in row.decisions:
        _check_counts("decisions' counts", decision.counts, min(decision.num_samples, row.num_samples))
    return row


def _counts(values: dict[str, Any]) -> dict[int, int]:
    return {int(c): _whole(count) for c, count in values.items()}


def _check_counts(name: str, counts: dict[int, int], total: int) -> None:
    if min(counts.values(), default=0) < 0 or min(counts, default=0) < 0 or sum(counts.values()) > total:
        raise InputError(f"its {name} are negative or sum to more than the {total} samples drawn")


def write_part(folder: epath.PathLike, name: str, rows: Iterable[Row]) -> None:
    """Adds one complete part of rows to a results folder."""
    text = "".join(encode(row) + "\n" for row in rows)
    files.write_atomically(epath.Path(folder) / PARTS / f"{name}.jsonl", text)


def create(folder: epath.PathLike, manifest: Manifest) -> None:
    """Makes a results folder, or joins one whose certificates depend on the same things.

    Raises:
        InputError: for a folder that holds something else, or results of another run (the fields that
            differ are listed).
    """
    folder = epath.Path(folder)
    if (folder / MANIFEST).exists():
        files.check_same(folder, read_manifest(folder).determines, manifest.determines)
        return
    # Another process of the same job may be making the folder at this moment.
    if folder.exists() and (not folder.is_dir() or any(_is_foreign(path.name) for path in folder.iterdir())):
        raise InputError(
            f"out must be a new, an empty or a results folder, got {folder}, which holds something else"
        )
    try:
        (folder / PARTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"could not make the folder {folder}: {error.strerror or error}") from None
    text = json.dumps({"format": FORMAT, "version": VERSION, **dataclasses.asdict(manifest)}, indent=2)
    files.write_atomically(folder / MANIFEST, text + "\n")


def read_manifest(folder: epath.PathLike) -> Manifest:
    """Reads a results folder's manifest.

    Raises:
        InputError: for a folder without one, a damaged one, or one of a newer format.
    """
    path = epath.Path(folder) / MANIFEST
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{folder} is not a results folder: it has no {MANIFEST}") from None
    except OSError as error:
        raise InputError(f"could not read {path}: {error.strerror or error}") from None
    except ValueError:
        raise InputError(f"{path} is damaged: it is not valid JSON") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise InputError(f"{path} is not the manifest of a results folder")
    if not isinstance(values.get("version"), int) or values["version"] > VERSION:
        raise InputError(
            f"{path} has format version {values.get('version')}, this jaxsmooth reads {VERSION}; update it"
        )
    if not isinstance(values.get("determines"), dict) or not isinstance(values.get("describes"), dict):
        raise InputError(f"{path} is damaged: it lacks 'determines' or 'describes'")
    return Manifest(values["determines"], values["describes"])


def read_results(folder: epath.PathLike) -> Results:
    """Reads and merges all parts of a results folder.

    Args:
        folder: a results folder, which may still be written to.

    Returns:
        The rows in order of index; of several rows of one example the first, in order of part names.

    Raises:
        InputError: for a damaged row (its file and line are named), or a folder without a manifest.
    """
    folder = epath.Path(folder)
    manifest = read_manifest(folder)
    rows: dict[int, Row] = {}
    for name in part_names(folder):
        good, damaged = _read_part(folder, name)
        if damaged:
            raise InputError(f"{damaged[0]}; `jaxsmooth certify` into this folder does its examples again")
        for row in good:
            rows.setdefault(row.index, row)
    return Results(manifest, [rows[index] for index in sorted(rows)])


def set_damaged_aside(folder: epath.PathLike) -> None:
    """Takes damaged rows out of the parts, with a warning for each, so that their examples are done again.

    The part as it was is kept as ``parts/NAME.jsonl.damaged``; its good rows stay in place.

    Raises:
        InputError: for a part of a newer format version, which is left alone.
    """
    folder = epath.Path(folder)
    for name in part_names(folder):
        good, damaged = _read_part(folder, name)
        if not damaged:
            continue
        for what in damaged:
            warnings.warn(f"{what}; it is set aside and its example is done again", stacklevel=2)
        path = folder / PARTS / f"{name}.jsonl"
        path.copy(path.parent / f"{path.name}.damaged", overwrite=True)
        write_part(folder, name, good)


def part_names(folder: epath.PathLike) -> list[str]:
    """Names of the parts that are in place, without their ending."""
    return sorted(
        path.name.removesuffix(".jsonl")
        for path in (epath.Path(folder) / PARTS).glob("*.jsonl")
        if not path.name.startswith(".")
    )


def merge(folders: Sequence[epath.PathLike], out: epath.PathLike) -> int:
    """Joins results folders of the same certificates into a new one.

    Args:
        folders: results folders whose manifests determine the same certificates.
        out: a new or empty folder.

    Returns:
        Number of examples in the new folder.

    Raises:
        InputError: for folders of different runs (the fields that differ are listed), damaged rows, or an ``out``
            that holds something.
    """
    if not folders:
        raise InputError("folders must name at least one results folder, got none")
    all_results = [read_results(folder) for folder in folders]
    first = all_results[0]
    for folder, results in zip(folders[1:], all_results[1:], strict=True):
        files.check_same(
            folders[0], first.manifest.determines, results.manifest.determines, other=str(folder)
        )
    target = epath.Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"out must be a new or an empty folder, got {out}, which holds something")
    rows: dict[int, Row] = {}
    for results in all_results:
        for row in results.rows:
            rows.setdefault(row.index, row)
    describes = {
        "merged": [
            {"folder": str(f), **r.manifest.describes} for f, r in zip(folders, all_results, strict=True)
        ]
    }
    sizes = {results.manifest.describes.get("num_examples") for results in all_results}
    if len(sizes) == 1 and None not in sizes:
        describes["num_examples"] = sizes.pop()  # type: ignore[assignment]
    create(target, Manifest(first.manifest.determines, describes))
    write_part(target, "merged-000000", [rows[index] for index in sorted(rows)])
    return len(rows)


def _is_foreign(name: str) -> bool:
    return name not in (MANIFEST, PARTS, PARTIAL, LOCKS) and not name.startswith(f".{MANIFEST}.")


def _read_part(folder: epath.Path, name: str) -> tuple[list[Row], list[str]]:
    """The good rows of a part, and a line about each damaged one."""
    path = folder / PARTS / f"{name}.jsonl"
    try:
        lines = path.read_bytes().decode(errors="replace").splitlines()
    except OSError as error:
        raise InputError(f"could not read {path}: {error.strerror or error}") from None
    good, damaged = [], []
    for number, line in enumerate(lines, start=1):
        try:
            good.append(decode(line))
        except NewerFormat as error:
            raise InputError(f"{path} line {number} cannot be read: {error}") from None
        except InputError as error:
            damaged.append(f"{path} line {number} is damaged: {error}")
    return good, damaged


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return value
