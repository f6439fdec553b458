"""Which radius: certify_tolerance stops when the radius in hand is nearly what the whole budget could give."""

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from scipy import special

from jaxsmooth import confidence, sampling, validation
from jaxsmooth.certification import ABSTAIN, SHARE_OF_P_A, round_down, scale_in_use, scale_on_device
from jaxsmooth.noise import Noise
from jaxsmooth.sampling import ApplyFn
from jaxsmooth.stopping.stream import Stream, check_example, sample_until

# Looks when the radius is free: 20 samples, then 1.5 times apart.
_INTERIM_LOOKS = tuple(round(20 * 1.5**i) for i in range(33))
HOPE = 0.01  # level of the bounds in the rule that leaves an example that will abstain; costs no guarantee


@dataclass(frozen=True, eq=False)
class TolerancePlan:
    """When to stop refining a radius; made by :func:`tolerance_plan`.

    The tables hold, for look i and count k = 0..looks[i], at ``offsets[i] + k``, normal quantiles of lower bounds on a
    probability: times sigma they are one-sided radii. "A" is read at the count of class A, "B" at the number of samples
    that the runner-up did not get.

    Attributes:
        looks: int64[num_looks], rising to ``num_samples``.
        levels: float64[num_looks], the error of each look; they sum to at most alpha.
        offsets: int64[num_looks], where each look begins in the tables.
        bound_a, bound_b: the bound at this look (valid), float64 of size ``sum(looks + 1)``.
        predicted_a, predicted_b: what N samples would give if the frequencies stayed as they are.
        hoped_a, hoped_b: what N samples would give at an upper 99% confidence bound.
        tolerance: fraction of the radius that one is willing to lose.
        alpha: the level asked for.
        num_samples: the budget N.
        bound: "two-sided" or "one-sided".
    """

    looks: np.ndarray
    levels: np.ndarray
    offsets: np.ndarray
    bound_a: np.ndarray
    bound_b: np.ndarray | None
    predicted_a: np.ndarray
    predicted_b: np.ndarray | None
    hoped_a: np.ndarray
    hoped_b: np.ndarray | None
    tolerance: float
    alpha: float
    num_samples: int
    bound: str


def tolerance_plan(
    tolerance: float, *, alpha: float, num_samples: int, bound: str = "two-sided"
) -> TolerancePlan:
    """When to stop refining a radius that may be anything, with at most ``num_samples`` samples.

    Looks come 1.5 times apart; 20% of alpha is shared equally by all looks but the last, which has 80%. At
    every look the class probabilities are bounded at that look's level as :func:`jaxsmooth.certify` does; the radius in
    hand is the largest so far. *Proof*: by the union bound all bounds of all looks hold together with probability
    at least 1 - alpha, and then every radius computed from them is true, whichever is reported and
    whatever decided when to stop. Hence a stopping rule may look at anything:

    - stop when the radius in hand is at least ``1 - tolerance`` of what N samples would give at the present
      frequencies;
    - stop when nothing is in hand and not even upper 99% bounds on the frequencies would let N samples certify.

    Args:
        tolerance: relative loss of radius that one accepts for stopping early, in (0, 1).
        alpha: probability that the radius is false, in (0, 1).
        num_samples: the most samples that may be drawn, 1 to 10,000,000.
        bound: "two-sided" or "one-sided", as in :func:`jaxsmooth.certify`.

    Returns:
        A :class:`TolerancePlan`. Cached.

    Raises:
        InputError: for an argument outside its range.

    Example:
        >>> plan = tolerance_plan(0.05, alpha=0.001, num_samples=1000)
        >>> plan.looks.tolist(), bool(plan.levels.sum() <= 0.001)
        ([20, 30, 45, 68, 101, 152, 228, 342, 513, 769, 1000], True)
    """
    validation.check_choice("bound", bound, ("two-sided", "one-sided"))
    return _tolerance_plan(
        validation.check_alpha(tolerance, "tolerance"),
        validation.check_alpha(alpha),
        validation.check_integer("num_samples", num_samples, 1, confidence.MAX_NUM_SAMPLES),
        bound,
    )


@lru_cache(maxsize=4)
def _tolerance_plan(tolerance: float, alpha: float, num_samples: int, bound: str) -> TolerancePlan:
    looks, levels = looks_and_levels(alpha, num_samples)
    # The same frequency, and an upper bound on it, as counts among N samples.
    same = [np.rint(np.arange(n + 1) * (num_samples / n)).astype(np.int64) for n in looks]
    hoped = [
        np.minimum(np.ceil(num_samples * _wilson_upper(np.arange(n + 1), n)), num_samples).astype(np.int64)
        for n in looks
    ]

    def tables(share: float) -> list[np.ndarray]:
        quantiles = [
            confidence.bound_table(n, share * level).quantile for n, level in zip(looks, levels, strict=True)
        ]
        return [
            np.concatenate(parts)
            for parts in (quantiles, [quantiles[-1][k] for k in same], [quantiles[-1][k] for k in hoped])
        ]

    two_sided = bound == "two-sided"
    table_a = tables(SHARE_OF_P_A if two_sided else 1.0)
    table_b = tables(1.0 - SHARE_OF_P_A) if two_sided else [None, None, None]
    return TolerancePlan(
        looks=np.array(looks),
        levels=np.array(levels),
        offsets=np.cumsum([0] + [n + 1 for n in looks[:-1]]),
        bound_a=table_a[0],
        bound_b=table_b[0],
        predicted_a=table_a[1],
        predicted_b=table_b[1],
        hoped_a=table_a[2],
        hoped_b=table_b[2],
        tolerance=tolerance,
        alpha=alpha,
        num_samples=num_samples,
        bound=bound,
    )


def _wilson_upper(counts: np.ndarray, num_samples: int) -> np.ndarray:
    """Upper bound of Wilson (1927) at level ``HOPE``: quick, and good enough for a rule that carries no guarantee."""
    z = float(special.ndtri(1.0 - HOPE))
    centre = counts + 0.5 * z**2
    spread = z * np.sqrt(counts * (1.0 - counts / num_samples) + 0.25 * z**2)
    return (centre + spread) / (num_samples + z**2)


def looks_and_levels(alpha: float, num_samples: int) -> tuple[list[int], list[float]]:
    """Looks 1.5 apart; 20% of alpha shared by all but the last. Levels sum to at most alpha in float64."""
    looks = [look for look in _INTERIM_LOOKS if look < 0.9 * num_samples]
    interim = [0.2 * alpha / len(looks)] * len(looks) if looks else []
    return [*looks, num_samples], [*interim, (alpha - sum(interim)) * (1.0 - 1e-12)]


class ToleranceCertificate(NamedTuple):
    """A radius, and what it cost.

    Attributes:
        prediction: the smoothed classifier's class, or ABSTAIN (-1); int32.
        radius: with probability at least 1 - alpha the smoothed classifier answers ``prediction`` everywhere within
            this distance of x; 0 on abstention.
        samples_used: int32, estimation samples up to the look at which sampling stopped.
        counts: int32[num_classes] of the estimation stage, up to that look.
        selection_counts: int32[num_classes] of the selection stage.
    """

    prediction: Any
    radius: Any
    samples_used: Any
    counts: Any
    selection_counts: Any


def certify_tolerance(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Any,
    x: ArrayLike,
    *,
    noise: Noise,
    plan: TolerancePlan,
    batch_size: int,
    selection_samples: int = 100,
) -> ToleranceCertificate:
    """Certifies a radius, and stops when the rest of the budget would add little to it.

    Args:
        key: as in :func:`certify_radius`, like all arguments not named here.
        apply_fn: as there.
        params: as there.
        x: as there.
        noise: the noise; its scale may be traced.
        plan: from :func:`tolerance_plan`.
        batch_size: as there.
        selection_samples: as there.

    Returns:
        A :class:`ToleranceCertificate`; the radius in the default float type, rounded down.

    Raises:
        InputError: as there.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxsmooth import Gaussian
        >>> apply_fn = lambda w, inputs: inputs @ w
        >>> plan = tolerance_plan(0.05, alpha=0.001, num_samples=10_000)
        >>> certificate = certify_tolerance(jax.random.key(0), apply_fn, jnp.eye(2), jnp.array([1.0, 0.0]),
        ...                                 noise=Gaussian(0.5), plan=plan, batch_size=1000)
        >>> f"{certificate.radius:.3f}", certificate.samples_used.item()  # the margin is 0.707
        ('0.638', 3892)
    """
    if not isinstance(plan, TolerancePlan):
        raise validation.InputError(f"plan must come from tolerance_plan, got {type(plan).__name__}")
    x, batch_size, selection_samples = check_example(
        key, apply_fn, x, batch_size, selection_samples, plan.num_samples
    )
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    tables = [
        None if table is None else jnp.asarray(round_down(table, dtype))
        for table in (
            plan.bound_a,
            plan.bound_b,
            plan.predicted_a,
            plan.predicted_b,
            plan.hoped_a,
            plan.hoped_b,
        )
    ]
    scale = scale_on_device(noise, dtype)
    return _certify_tolerance(
        key,
        apply_fn,
        params,
        x,
        noise,
        scale,
        jnp.asarray(plan.looks, jnp.int32),
        jnp.asarray(plan.offsets, jnp.int32),
        tables,
        jnp.asarray(1.0 - plan.tolerance, dtype),
        jnp.int32(selection_samples),
        batch_size,
    )


@partial(jax.jit, static_argnames=("apply_fn", "batch_size"))
def _certify_tolerance(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Any,
    x: jax.Array,
    noise: Noise,
    scale: Any,
    looks: jax.Array,
    offsets: jax.Array,
    tables: list[Any],
    enough: jax.Array,
    selection_samples: jax.Array,
    batch_size: int,
) -> ToleranceCertificate:
    bound_a, bound_b, predicted_a, predicted_b, hoped_a, hoped_b = tables

    def decide(stream: Stream, before: ToleranceCertificate) -> ToleranceCertificate:
        counts = stream.count_all(looks)  # [num_looks, num_classes]
        is_selected = jnp.arange(counts.shape[-1]) == stream.selected
        count_a = jnp.sum(jnp.where(is_selected, counts, 0), axis=-1)
        # The runner-up may have had every row that was not finite; the rest is what it cannot have had. Looks
        # beyond this batch are read, and not used, at counts that are too small for them: stay inside the table.
        rest = jnp.clip(jnp.sum(counts, -1) - jnp.max(jnp.where(is_selected, 0, counts), -1), 0, looks)

        def radius(table_a: jax.Array, table_b: jax.Array | None) -> jax.Array:
            unit = table_a[offsets + jnp.clip(count_a, 0, looks)]
            if table_b is None:
                return unit
            return jnp.maximum(unit, 0.5 * jnp.nextafter(unit + table_b[offsets + rest], -jnp.inf))

        seen = stream.seen(looks)
        unit = jax.lax.cummax(jnp.where(seen, radius(bound_a, bound_b), before.radius))
        unit = jnp.maximum(unit, before.radius)
        good = (unit > 0.0) & (unit >= enough * radius(predicted_a, predicted_b))
        hopeless = (unit <= 0.0) & (radius(hoped_a, hoped_b) <= 0.0)
        stop = seen & (good | hopeless | (looks == looks[-1]))
        stopping, first = jnp.any(stop), jnp.argmax(stop)
        return ToleranceCertificate(
            prediction=jnp.where(stopping, stream.selected, before.prediction).astype(jnp.int32),
            radius=jnp.where(stopping, unit[first], unit[-1]),
            samples_used=jnp.where(stopping, looks[first], before.samples_used),
            counts=jnp.where(stopping, counts[first], before.counts),
            selection_counts=stream.selection_counts,
        )

    num_classes = sampling.check_num_classes(apply_fn, params, x.shape, batch_size)
    zero = sampling.zero_from((key, params, x, noise, scale, looks, offsets, tables, selection_samples))
    end = sample_until(
        lambda certificate: certificate.samples_used > 0,
        decide,
        ToleranceCertificate(
            prediction=zero,
            radius=zero.astype(bound_a.dtype),
            samples_used=zero,
            counts=jnp.zeros(num_classes, jnp.int32) + zero,
            selection_counts=jnp.zeros(num_classes, jnp.int32) + zero,
        ),
        (key, apply_fn, params, x, noise),
        selection_samples,
        batch_size,
        zero,
    )
    radius = jnp.maximum((scale * end.radius).astype(end.radius.dtype), 0.0)
    radius = jnp.nextafter(radius, jnp.zeros_like(radius))  # the product was rounded
    return end._replace(
        prediction=jnp.where(radius > 0.0, end.prediction, ABSTAIN).astype(jnp.int32), radius=radius
    )


class ToleranceState(NamedTuple):
    """What the looks so far say; see :func:`tolerance_from_counts`.

    Attributes:
        stopped_at: number of the look at which sampling stops, or None while it goes on.
        best: number of the look that gave the largest radius, of those up to the end.
        radius: that radius, 0 if nothing is certified; float64, rounded down.
        p_a_lower: lower bound on p_A at that look.
        p_b_upper: upper bound on the probability of every other class at that look.
    """

    stopped_at: int | None
    best: int
    radius: float
    p_a_lower: float
    p_b_upper: float


def tolerance_from_counts(
    plan: TolerancePlan, selected: int, counts: ArrayLike, *, noise: Noise
) -> ToleranceState:
    """What :func:`certify_tolerance` decides on the looks so far; host, NumPy float64, rounded down.

    Args:
        plan: from :func:`tolerance_plan`.
        selected: the class A of the selection stage.
        counts: integers [num_seen, num_classes] of the estimation stage, up to each of the first num_seen looks of
            the plan, at least one.
        noise: the noise under which they were drawn.

    Returns:
        A :class:`ToleranceState`.
    """
    counts = np.asarray(counts)
    looks, offsets = plan.looks[: len(counts)], plan.offsets[: len(counts)]
    place_a = offsets + counts[:, selected]
    place_b = offsets + counts.sum(-1) - np.delete(counts, selected, axis=-1).max(-1)

    def unit_radius(table_a: np.ndarray, table_b: np.ndarray | None) -> np.ndarray:
        unit = table_a[place_a]
        if table_b is None:
            return unit
        return np.maximum(unit, 0.5 * np.nextafter(unit + table_b[place_b], -np.inf))

    unit = unit_radius(plan.bound_a, plan.bound_b)
    in_hand = np.maximum(np.maximum.accumulate(unit), 0.0)
    good = (in_hand > 0.0) & (
        in_hand >= (1.0 - plan.tolerance) * unit_radius(plan.predicted_a, plan.predicted_b)
    )
    hopeless = (in_hand <= 0.0) & (unit_radius(plan.hoped_a, plan.hoped_b) <= 0.0)
    stop = np.flatnonzero(good | hopeless | (looks == plan.looks[-1]))
    stopped_at = int(stop[0]) if stop.size else None
    best = int(np.argmax(unit[: None if stopped_at is None else stopped_at + 1]))
    # SciPy's ndtr is good to some 1e-15; the factor makes it a bound.
    p_a_lower = float(special.ndtr(plan.bound_a[place_a[best]])) * (1.0 - 1e-12)
    p_b_upper = 1.0 - p_a_lower
    if plan.bound_b is not None:
        p_b_upper = min(p_b_upper, 1.0 - float(special.ndtr(plan.bound_b[place_b[best]])) * (1.0 - 1e-12))
    radius = max(float(np.nextafter(scale_in_use(noise) * unit[best], -np.inf)), 0.0)
    return ToleranceState(stopped_at, best, radius, p_a_lower, float(np.nextafter(p_b_upper, 2.0)))
