"""How many samples an example of a sweep gets, and what is said about it in the end.

Each procedure tells the engine where it looks (``marks``), how far samples may be scheduled (``horizon``) and when
an example is done (``finished``), and turns the counts of a finished example into the fields of its row. One
place to add another one: a class here, its fields in ``run.Settings``, its reading in ``recertify``.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from jaxsmooth import certification, stopping
from jaxsmooth.noise import Noise
from jaxsmooth.sweep.engine import Stream
from jaxsmooth.sweep.records import VERDICTS, Decision, sparse

_VERDICT_NAMES = dict(
    zip((stopping.CERTIFIED, stopping.NOT_CERTIFIED, stopping.UNDECIDED), VERDICTS, strict=True)
)
# Samples that may be drawn beyond what has been looked at: at least so many, and this share of what is in. They keep
# the devices busy and are drawn in vain where the example turns out to be decided.
_LEAST_AHEAD = 64
_SHARE_AHEAD = 0.125


class Statement(Protocol):
    """An engine's procedure whose finished examples become rows."""

    @property
    def marks(self) -> ArrayLike:
        """As in ``engine.Procedure``."""
        ...

    def horizon(self, stream: Stream) -> int:
        """As in ``engine.Procedure``."""
        ...

    def finished(self, stream: Stream) -> bool:
        """As in ``engine.Procedure``."""
        ...

    def fields(self, stream: Stream) -> dict[str, Any]:
        """Of the row of a finished example: all but index, label and seconds."""
        ...


@dataclasses.dataclass(frozen=True)
class FixedSize:
    """Selection, then estimation with a fixed number of samples.

    Attributes:
        noise: of the sweep.
        selection_samples: of the first stage; 0 under "selection-free".
        num_samples: of the second stage.
        alpha: level of the statement.
        bound: as in ``certify``.
    """

    noise: Noise
    selection_samples: int
    num_samples: int
    alpha: float
    bound: str

    @property
    def marks(self) -> tuple[int, ...]:
        """Ends of the stages."""
        end = self.selection_samples + self.num_samples
        return (self.selection_samples, end) if self.selection_samples else (end,)

    def horizon(self, stream: Stream) -> int:
        """All samples, whatever the counts say."""
        return self.marks[-1]

    def finished(self, stream: Stream) -> bool:
        """When all samples are in."""
        return stream.received >= self.marks[-1]

    def fields(self, stream: Stream) -> dict[str, Any]:
        """The certificate in float64."""
        counts = stream.counts[-1]
        selection_counts = stream.counts[0] if self.selection_samples else np.zeros_like(counts)
        certificate = certification.certificate_from_counts(
            selection_counts,
            counts,
            noise=self.noise,
            num_samples=self.num_samples,
            alpha=self.alpha,
            bound=self.bound,
        )
        return {
            "prediction": int(certificate.prediction),
            "radius": float(certificate.radius),
            "p_a_lower": float(certificate.p_a_lower),
            "p_b_upper": float(certificate.p_b_upper),
            "counts": sparse(counts),
            "selection_counts": sparse(selection_counts),
            "num_samples": self.num_samples,
            "selection_samples": self.selection_samples,
        }


@dataclasses.dataclass(frozen=True, eq=False)
class FixedRadii:
    """Whether the radius is at least r, for one or several r, with as few samples as that takes.

    Attributes:
        plans: from ``stopping_plans``.
        guarantee: as in ``certify_radii``.
        selection_samples: of the first stage.
    """

    plans: tuple[stopping.StoppingPlan, ...]
    guarantee: str
    selection_samples: int

    @cached_property
    def _looks(self) -> np.ndarray:
        return np.unique(np.concatenate([plan.looks for plan in self.plans]))

    @cached_property
    def marks(self) -> np.ndarray:
        """The end of the selection stage, and every look of every plan after it."""
        return self.selection_samples + np.concatenate([[0], self._looks])

    def horizon(self, stream: Stream) -> int:
        """The next look, and a little beyond."""
        return _look_ahead(self.marks, stream.received)

    def finished(self, stream: Stream) -> bool:
        """When every radius is decided."""
        return self._verdicts(stream) is not None

    def fields(self, stream: Stream) -> dict[str, Any]:
        """A decision per radius; class and radius are those of the largest that was certified."""
        verdicts = self._verdicts(stream)
        assert verdicts is not None
        cumulative = np.cumsum(stream.counts[1:], axis=0)
        decisions = tuple(
            Decision(
                plan.radius,
                _VERDICT_NAMES[found.verdict],
                found.samples_used,
                sparse(cumulative[np.searchsorted(self._looks, found.samples_used)]),
            )
            for plan, found in zip(self.plans, verdicts, strict=True)
        )
        certified = [decision.radius for decision in decisions if decision.verdict == VERDICTS[0]]
        last = max(decisions, key=lambda decision: decision.num_samples)
        return {
            "prediction": int(np.argmax(stream.counts[0])) if certified else certification.ABSTAIN,
            "radius": max(certified, default=0.0),
            "p_a_lower": 0.0,  # the statements are about radii; no bound is claimed
            "p_b_upper": 1.0,
            "counts": last.counts,
            "selection_counts": sparse(stream.counts[0]),
            "num_samples": last.num_samples,
            "selection_samples": self.selection_samples,
            "decisions": decisions,
        }

    def _verdicts(self, stream: Stream) -> list[stopping.Verdict] | None:
        num_received = stream.received - self.selection_samples
        if num_received < self._looks[0]:
            return None
        selected = int(np.argmax(stream.counts[0]))
        count_a = np.cumsum(stream.counts[1:, selected])
        return stopping.verdicts_from_counts(
            self.plans,
            num_received,
            lambda looks: count_a[np.searchsorted(self._looks, looks)],
            guarantee=self.guarantee,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class FreeRadius:
    """The radius, up to a tolerance.

    Attributes:
        plan: from ``tolerance_plan``.
        noise: of the sweep.
        selection_samples: of the first stage.
    """

    plan: stopping.TolerancePlan
    noise: Noise
    selection_samples: int

    @cached_property
    def marks(self) -> np.ndarray:
        """The end of the selection stage, and every look after it."""
        return self.selection_samples + np.concatenate([[0], self.plan.looks])

    def horizon(self, stream: Stream) -> int:
        """The next look: they are too far apart to draw beyond it."""
        return int(
            self.marks[np.searchsorted(self.marks, max(stream.received, self.selection_samples), "right")]
        )

    def finished(self, stream: Stream) -> bool:
        """When a look says so."""
        state = self._state(stream)
        return state is not None and state.stopped_at is not None

    def fields(self, stream: Stream) -> dict[str, Any]:
        """The largest radius of all looks, and the look that it comes from."""
        state = self._state(stream)
        assert state is not None
        assert state.stopped_at is not None
        cumulative = np.cumsum(stream.counts[1:], axis=0)
        certified = state.radius > 0.0
        decision = Decision(
            state.radius,
            VERDICTS[0] if certified else VERDICTS[1],
            int(self.plan.looks[state.best]),
            sparse(cumulative[state.best]),
        )
        return {
            "prediction": int(np.argmax(stream.counts[0])) if certified else certification.ABSTAIN,
            "radius": state.radius,
            "p_a_lower": state.p_a_lower,
            "p_b_upper": state.p_b_upper,
            "counts": sparse(cumulative[state.stopped_at]),
            "selection_counts": sparse(stream.counts[0]),
            "num_samples": int(self.plan.looks[state.stopped_at]),
            "selection_samples": self.selection_samples,
            "decisions": (decision,),
        }

    def _state(self, stream: Stream) -> stopping.ToleranceState | None:
        num_seen = int(np.searchsorted(self.marks, stream.received, side="right")) - 1
        if num_seen < 1:
            return None
        return stopping.tolerance_from_counts(
            self.plan,
            int(np.argmax(stream.counts[0])),
            np.cumsum(stream.counts[1 : 1 + num_seen], axis=0),
            noise=self.noise,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class OnlyCorrect:
    """Another procedure, for examples whose selection stage names the true class; the others are done after it.

    Their certified accuracy is 0 at every radius, whatever further samples would say.

    Attributes:
        procedure: the other one, with a selection stage.
        labels: true classes, by index.
        selection_samples: of the first stage.
    """

    procedure: Statement
    labels: np.ndarray
    selection_samples: int

    @property
    def marks(self) -> ArrayLike:
        """Those of the other procedure."""
        return self.procedure.marks

    def horizon(self, stream: Stream) -> int:
        """The selection stage, until that is in."""
        if stream.received < self.selection_samples:
            return self.selection_samples
        return self.procedure.horizon(stream)

    def finished(self, stream: Stream) -> bool:
        """After a selection stage that names a wrong class, or when the other procedure says so."""
        return self._is_wrong(stream) or self.procedure.finished(stream)

    def fields(self, stream: Stream) -> dict[str, Any]:
        """Nothing is claimed about an example that was left out."""
        if not self._is_wrong(stream):
            return self.procedure.fields(stream)
        return {
            "prediction": certification.ABSTAIN,
            "radius": 0.0,
            "p_a_lower": 0.0,
            "p_b_upper": 1.0,
            "counts": {},
            "selection_counts": sparse(stream.counts[0]),
            "num_samples": 0,
            "selection_samples": self.selection_samples,
        }

    def _is_wrong(self, stream: Stream) -> bool:
        return (
            stream.received >= self.selection_samples
            and np.argmax(stream.counts[0]) != self.labels[stream.index]
        )


@dataclasses.dataclass(frozen=True)
class FixedPredictions:
    """PREDICT with a fixed number of samples; for ``jaxsmooth predict``, which writes no rows.

    Attributes:
        num_samples: that are drawn.
        alpha: level of the answer.
    """

    num_samples: int
    alpha: float

    @property
    def marks(self) -> tuple[int]:
        """The end."""
        return (self.num_samples,)

    def horizon(self, stream: Stream) -> int:
        """All samples."""
        return self.num_samples

    def finished(self, stream: Stream) -> bool:
        """When all samples are in."""
        return stream.received >= self.num_samples

    def answer(self, stream: Stream) -> int | None:
        """Class or ABSTAIN."""
        found = certification.prediction_from_counts(
            stream.counts[0], num_samples=self.num_samples, alpha=self.alpha
        )
        return int(found.prediction)


@dataclasses.dataclass(frozen=True)
class EarlyPredictions:
    """PREDICT that stops as soon as it is certain enough.

    Attributes:
        num_samples: the most that are drawn.
        alpha: level of the answer.
    """

    num_samples: int
    alpha: float

    @cached_property
    def marks(self) -> list[int]:
        """The looks."""
        return stopping.prediction_looks(self.num_samples, self.alpha)

    def horizon(self, stream: Stream) -> int:
        """The next look."""
        return self.marks[int(np.searchsorted(self.marks, stream.received, side="right"))]

    def finished(self, stream: Stream) -> bool:
        """When a look answers, or gives up."""
        return self.answer(stream) is not None

    def answer(self, stream: Stream) -> int | None:
        """Class or ABSTAIN; None before it is decided."""
        num_seen = int(np.searchsorted(self.marks, stream.received, side="right"))
        counts = np.cumsum(stream.counts[:num_seen], axis=0)
        found = stopping.early_prediction_from_counts(counts, num_samples=self.num_samples, alpha=self.alpha)
        return None if found is None else found[0]


def plan_fingerprint(plans: Sequence[stopping.StoppingPlan | stopping.TolerancePlan]) -> str:
    """A hash of where plans look and of how they decide: another version's design makes another one."""
    digest = hashlib.sha256()
    for plan in plans:
        for field in dataclasses.fields(plan):
            value = getattr(plan, field.name)
            if isinstance(value, np.ndarray) and value.dtype.kind == "i":
                digest.update(f"{field.name}{value.shape}".encode() + value.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def _look_ahead(marks: np.ndarray, received: int) -> int:
    ahead = received + max(_LEAST_AHEAD, int(_SHARE_AHEAD * max(received - marks[0], 0)))
    following = np.searchsorted(marks, max(ahead, marks[0] + 1))
    return int(marks[min(int(following), len(marks) - 1)])
