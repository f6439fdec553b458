"""What is known about a set of certified examples, wherever it comes from.

Curves, tables and plots work on :class:`Outcomes` alone: arrays with one entry per example, and the settings
as far as they are known. Reading results folders and published logs is done elsewhere.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxsmooth import validation
from jaxsmooth.validation import InputError

ABSTAIN = -1


@dataclasses.dataclass(frozen=True, eq=False)
class Outcomes:
    """Certified examples of one source.

    Attributes:
        name: what the source is called in tables and legends.
        index: int64[N], position of each example in its data set; no two are equal.
        label: int64[N], true classes, at least 0.
        prediction: int64[N], certified classes, or -1 for abstention.
        radius: float64[N], certified radii in the units of the input; 0 on abstention.
        p_a_lower: float64[N], lower bounds on the probability of the selected class, or None if unknown.
        seconds: float64[N], time spent on each example, or None if unknown.
        alpha: probability that one certificate is false, or None if unknown, like all that follow.
        bound: "two-sided" or "one-sided".
        num_samples: samples of noise per example, of the estimation stage; the most where sampling stopped early.
        sigma: scale of the noise.
        norm: p of the l_p norm in which the radii are measured.
        stopping: rule by which sampling stopped early, or None where it did not.
        samples: float64[N], samples drawn for each example in both stages, or None if unknown.
        tested_radii: float64[R], increasing, where only these radii were tested: nothing is known of others.
        certified: bool[N, R], whether each tested radius is certified, for the class in ``prediction``.
        unsampled: bool[N], examples left at their selection stage because that named a wrong class; None for none.
        notes: what a reader of the numbers has to know, one line each.

    Raises:
        InputError: for arrays that are empty, differ in length, or hold values outside their ranges.

    Example:
        >>> outcomes = Outcomes("tiny", index=[0, 1, 2], label=[3, 5, 1], prediction=[3, 4, -1],
        ...                     radius=[0.5, 0.25, 0.0])
        >>> outcomes.correct.tolist(), outcomes.abstained.tolist()
        ([True, False, False], [False, False, True])
    """

    name: str
    index: Any
    label: Any
    prediction: Any
    radius: Any
    p_a_lower: Any = None
    seconds: Any = None
    alpha: float | None = None
    bound: str | None = None
    num_samples: int | None = None
    sigma: float | None = None
    norm: float | None = None
    stopping: str | None = None
    samples: Any = None
    tested_radii: Any = None
    certified: Any = None
    unsampled: Any = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks the arrays and brings them to their types."""
        arrays = {name: np.asarray(getattr(self, name)) for name in ("index", "label", "prediction")}
        arrays["radius"] = validation.check_finite("radius", self.radius)
        if self.p_a_lower is not None:
            arrays["p_a_lower"] = validation.check_probabilities("p_a_lower", self.p_a_lower)
        for name in ("seconds", "samples"):
            if getattr(self, name) is not None:
                arrays[name] = validation.check_not_negative(name, getattr(self, name))
        if arrays["index"].size == 0:
            raise InputError(f"{self.name} holds no examples")
        for name, array in arrays.items():
            if array.shape != (arrays["index"].size,):
                raise InputError(
                    f"{name} must be an array of shape ({arrays['index'].size},), got shape {array.shape}"
                )
            if array.dtype.kind not in "iuf" or (array.dtype.kind == "f" and name in _WHOLE):
                raise InputError(f"{name} must hold whole numbers, got {array.dtype}")
            object.__setattr__(self, name, array.astype(np.int64) if name in _WHOLE else array)
        if np.unique(self.index).size < self.index.size:
            raise InputError(f"index must name each example once, got {_first_repeated(self.index)} twice")
        for name, least in (("label", 0), ("prediction", ABSTAIN), ("radius", 0)):
            values = getattr(self, name)
            if values.min() < least:
                raise InputError(f"{name} must be at least {least}, got {values.min()}")
        if self.tested_radii is not None:
            object.__setattr__(
                self, "tested_radii", validation.check_not_negative("tested_radii", self.tested_radii)
            )
            object.__setattr__(self, "certified", np.asarray(self.certified, bool))
            if self.certified.shape != (self.index.size, self.tested_radii.size):
                raise InputError(
                    f"certified must have the shape {(self.index.size, self.tested_radii.size)}, "
                    f"got {self.certified.shape}"
                )
        if np.any(self.radius[self.abstained] > 0):
            raise InputError(
                f"radius must be 0 on abstention, got {self.radius[self.abstained].max()} in {self.name}"
            )

    @property
    def num_examples(self) -> int:
        """How many examples there are."""
        return self.index.size

    @property
    def correct(self) -> np.ndarray:
        """bool[N]: the certified class is the true one."""
        return self.prediction == self.label

    @property
    def abstained(self) -> np.ndarray:
        """bool[N]: no class was certified."""
        return self.prediction == ABSTAIN

    @property
    def knows_abstentions(self) -> bool:
        """Whether an abstention means that all samples were drawn and no class could be certified."""
        return self.tested_radii is None and self.unsampled is None


def differences(sources: Sequence[Outcomes]) -> list[str]:
    r"""What stands against comparing sources with each other, one line for each thing.

    Certificates at another alpha, with another bound, in another norm or from another number of samples, and
    accuracies over other examples, do not compare like with like. Examples are the same when index and label
    are: data sets differ in their order, so an index alone says little.

    Example:
        >>> one = Outcomes("one", index=[0, 1], label=[1, 1], prediction=[1, 1], radius=[1, 1], alpha=0.001)
        >>> two = Outcomes("two", index=[0], label=[1], prediction=[1], radius=[1], alpha=0.01)
        >>> print(*differences([one, two]), sep="\n")
        alpha differs: 0.001 (one), 0.01 (two)
        two holds the first 1 of the 2 examples of one: it may be cut off
    """
    notes = []
    for setting in ("alpha", "bound", "norm", "num_samples", "stopping"):
        names_by_value: dict[Any, list[str]] = {}
        for source in sources:
            names_by_value.setdefault(getattr(source, setting), []).append(source.name)
        if len(names_by_value) > 1:
            notes.append(
                f"{setting} differs: {_listing(names_by_value.items(), _NOTHING.get(setting, 'not recorded'))}"
            )
    return notes + _different_examples(sources)


_WHOLE = ("index", "label", "prediction")
_NOTHING = {"stopping": "none"}


def _different_examples(sources: Sequence[Outcomes]) -> list[str]:
    names_by_examples: dict[tuple[tuple[int, int], ...], list[str]] = {}
    for source in sources:
        examples = tuple(sorted(zip(source.index.tolist(), source.label.tolist(), strict=True)))
        names_by_examples.setdefault(examples, []).append(source.name)
    notes, cut_off = [], set()
    for longer, shorter in itertools.permutations(names_by_examples, 2):
        if len(shorter) < len(longer) and longer[: len(shorter)] == shorter and shorter not in cut_off:
            cut_off.add(shorter)
            notes.append(
                f"{_names(names_by_examples[shorter])} holds the first {len(shorter)} of the {len(longer)} examples "
                f"of {_names(names_by_examples[longer])}: it may be cut off"
            )
    complete = {examples: names for examples, names in names_by_examples.items() if examples not in cut_off}
    if len(complete) > 1:
        groups = ((f"{len(examples)} examples", names) for examples, names in complete.items())
        notes.append(f"the sources hold different examples: {_listing(groups)}; compare within a group only")
    return notes


def _listing(groups: Iterable[tuple[Any, list[str]]], nothing: str = "") -> str:
    return ", ".join(f"{nothing if value is None else value} ({_names(names)})" for value, names in groups)


def _names(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"


def _first_repeated(values: np.ndarray) -> int:
    unique, counts = np.unique(values, return_counts=True)
    return int(unique[counts > 1][0])
