"""Is the radius at least r, for one radius or several: certify_radius and certify_radii."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxsmooth import sampling, validation
from jaxsmooth.certification import ABSTAIN
from jaxsmooth.noise import Gaussian, Noise
from jaxsmooth.sampling import ApplyFn
from jaxsmooth.stopping.plans import StoppingPlan, check_radii
from jaxsmooth.stopping.stream import Stream, check_example, sample_until

CERTIFIED = 1
NOT_CERTIFIED = 0
UNDECIDED = -1
_PENDING = 2  # not decided yet; never returned
GUARANTEES = ("each", "simultaneous")


class RadiusCertificate(NamedTuple):
    """The answer to "is the radius at least r?" for one input; from :func:`certify_radii`, one entry per radius.

    Attributes:
        verdict: CERTIFIED (1), NOT_CERTIFIED (0: sampling on was not worth while) or UNDECIDED (-1: the last look
            came and went); int32.
        prediction: with probability at least 1 - alpha the smoothed classifier answers this class everywhere
            within the radius; ABSTAIN (-1) unless certified; int32.
        samples_used: int32, estimation samples up to the look that decided. Whole batches are drawn; what lies
            beyond that look is not part of the statement.
        counts: int32[num_classes] of the estimation stage, up to that look.
        selection_counts: int32[num_classes] of the selection stage.
    """

    verdict: Any
    prediction: Any
    samples_used: Any
    counts: Any
    selection_counts: Any


def certify_radius(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Any,
    x: ArrayLike,
    *,
    noise: Noise,
    plan: StoppingPlan,
    batch_size: int,
    selection_samples: int = 100,
) -> RadiusCertificate:
    """Decides whether the smoothed classifier keeps its answer within ``plan.radius`` of x, and stops when it knows.

    Samples 0 .. selection_samples - 1 choose the class A; the samples after them are counted until the plan decides.
    Looks fall after exactly ``plan.looks`` samples, wherever batches end, and the first look that decides is the one
    that counts: the answer is the same for every batch size. Rows whose logits are not finite are failures.

    Args:
        key: typed threefry key of the example, ``fold_in(jax.random.key(seed), i)`` for example i.
        apply_fn: ``(params, inputs[batch, ...] float32) -> logits[batch, num_classes]``; see ``sample_counts``.
        params: first argument of ``apply_fn``.
        x: the input, floating point and finite, without a batch axis.
        noise: ``Gaussian(plan.sigma)``. A traced sigma cannot be compared with the plan's: that is then up to
            the caller.
        plan: from :func:`stopping_plan`.
        batch_size: rows per call of the model; changes memory and speed, not the noise.
        selection_samples: samples of the selection stage.

    Returns:
        A :class:`RadiusCertificate`.

    Raises:
        InputError: for an argument outside its range, or noise other than the plan's.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxsmooth import Gaussian
        >>> from jaxsmooth.stopping import stopping_plan
        >>> apply_fn = lambda w, inputs: inputs @ w
        >>> plan = stopping_plan(1.0, sigma=0.5, alpha=0.001, num_samples=100_000)
        >>> certificate = certify_radius(jax.random.key(0), apply_fn, jnp.eye(2), jnp.array([2.0, 0.0]),
        ...                              noise=Gaussian(0.5), plan=plan, batch_size=1000)
        >>> certificate.verdict.item(), certificate.prediction.item(), certificate.samples_used.item()
        (1, 0, 663)
    """
    certificate = certify_radii(
        key,
        apply_fn,
        params,
        x,
        noise=noise,
        plans=(plan,),
        batch_size=batch_size,
        selection_samples=selection_samples,
    )
    return RadiusCertificate(
        certificate.verdict[0],
        certificate.prediction[0],
        certificate.samples_used[0],
        certificate.counts[0],
        certificate.selection_counts,
    )


def certify_radii(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Any,
    x: ArrayLike,
    *,
    noise: Noise,
    plans: Sequence[StoppingPlan],
    batch_size: int,
    selection_samples: int = 100,
    guarantee: str = "each",
) -> RadiusCertificate:
    """Decides several radii of one input on one stream of samples, which ends when all are decided.

    - ``guarantee="each"``: each radius gets the verdict that :func:`certify_radius` would give it. For each radius by
      itself, the probability of certifying it falsely is at most alpha. *Proof*: a plan's error does not depend on
      what else is done with the samples; that sampling goes on after its decision changes nothing. This is the
      guarantee of a certified-accuracy table, whose every column is a statement about one radius.
    - ``guarantee="simultaneous"``: a radius is certified only if all smaller ones are, and with probability at least
      ``1 - alpha`` *all* that is certified is true. *Proof* (fixed-sequence testing, Maurer et al. 1995): the
      statements are nested, so all radii above the smallest false one, r*, are false, and to certify any of
      them r* has to be certified, which its own plan does with probability at most alpha. A radius is
      dropped (NOT_CERTIFIED) as soon as a smaller one has failed.

    Args:
        key: as in :func:`certify_radius`, like all arguments not named here.
        apply_fn: as there.
        params: as there.
        x: as there.
        noise: as there.
        plans: from :func:`stopping_plans`: increasing radii, one sigma.
        batch_size: as there.
        selection_samples: as there.
        guarantee: "each" or "simultaneous".

    Returns:
        A :class:`RadiusCertificate` with a leading axis of length ``len(plans)`` on all but the selection counts.

    Raises:
        InputError: as there, and for plans whose radii do not increase.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxsmooth import Gaussian
        >>> from jaxsmooth.stopping import stopping_plans
        >>> apply_fn = lambda w, inputs: inputs @ w
        >>> plans = stopping_plans([0.5, 1.0, 1.5], sigma=0.5, alpha=0.001, num_samples=100_000)
        >>> certificate = certify_radii(jax.random.key(0), apply_fn, jnp.eye(2), jnp.array([2.0, 0.0]),
        ...                             noise=Gaussian(0.5), plans=plans, batch_size=1000)
        >>> certificate.verdict.tolist()  # the true radius is the margin, 1.41
        [1, 1, 0]
    """
    validation.check_choice("guarantee", guarantee, GUARANTEES)
    for plan in plans:
        if not isinstance(plan, StoppingPlan):
            raise validation.InputError(f"plan must come from stopping_plan, got {type(plan).__name__}")
    check_radii(plans)
    if not isinstance(noise, Gaussian):
        raise validation.InputError(f"noise must be Gaussian for a radius of this plan, got {noise!r}")
    if not validation.is_traced(noise.sigma) and float(noise.sigma) not in (
        plans[0].sigma,
        float(np.float32(plans[0].sigma)),
    ):
        raise validation.InputError(
            f"noise must have the plan's sigma = {plans[0].sigma:g}, got {noise.sigma}"
        )
    x, batch_size, selection_samples = check_example(
        key, apply_fn, x, batch_size, selection_samples, max(plan.looks[-1].item() for plan in plans)
    )
    # The last look, which always decides, is repeated: to one length for all plans, and to few
    # different lengths, so that another radius does not recompile.
    num_looks = 32 * math.ceil(max(plan.looks.size for plan in plans) / 32)
    tables = [
        jnp.asarray(
            np.stack([np.pad(array, (0, num_looks - array.size), mode="edge") for array in arrays]), jnp.int32
        )
        for arrays in zip(*((plan.looks, plan.certify_at, plan.give_up_at) for plan in plans), strict=True)
    ]
    return _certify_radii(
        key,
        apply_fn,
        params,
        x,
        noise,
        *tables,
        jnp.int32(selection_samples),
        batch_size,
        guarantee == "simultaneous",
    )


@partial(jax.jit, static_argnames=("apply_fn", "batch_size", "nested"))
def _certify_radii(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Any,
    x: jax.Array,
    noise: Noise,
    looks: jax.Array,
    certify_at: jax.Array,
    give_up_at: jax.Array,
    selection_samples: jax.Array,
    batch_size: int,
    nested: bool,
) -> RadiusCertificate:
    """:func:`certify_radii` on tables [num_plans, num_looks], each ending with its own last look."""
    num_plans = looks.shape[0]
    never = jnp.iinfo(jnp.int32).max

    def decide(stream: Stream, before: RadiusCertificate) -> RadiusCertificate:
        count_a = stream.count_selected(looks)
        verdict = jnp.where(count_a <= give_up_at, NOT_CERTIFIED, _PENDING)
        verdict = jnp.where(count_a >= certify_at, CERTIFIED, verdict)
        verdict = jnp.where((looks == looks[:, -1:]) & (verdict == _PENDING), UNDECIDED, verdict)
        deciding = stream.seen(looks) & (verdict != _PENDING)
        first = jnp.argmax(deciding, axis=1)[:, None]
        at = jnp.where(jnp.any(deciding, axis=1), jnp.take_along_axis(looks, first, axis=1)[:, 0], never)
        verdict = jnp.take_along_axis(verdict, first, axis=1)[:, 0]

        pending = before.verdict == _PENDING
        at = jnp.where(pending, at, before.samples_used)
        verdict = jnp.where(pending, verdict, before.verdict)
        if nested:  # the first failure of a smaller radius ends a larger one
            failed_at = jnp.where((at < never) & (verdict != CERTIFIED), at, never)
            blocked_at = jnp.concatenate([jnp.full_like(at[:1], never), jax.lax.cummin(failed_at)[:-1]])
            verdict = jnp.where(pending & (blocked_at < at), NOT_CERTIFIED, verdict)
            at = jnp.where(pending, jnp.minimum(at, blocked_at), at)
        decided = pending & (at < never)
        counts = stream.count_all(at)
        return RadiusCertificate(
            verdict=jnp.where(decided, verdict, before.verdict),
            prediction=before.prediction,
            samples_used=jnp.where(decided, at, before.samples_used),
            counts=jnp.where(decided[:, None], counts, before.counts),
            selection_counts=stream.selection_counts,
        )

    num_classes = sampling.check_num_classes(apply_fn, params, x.shape, batch_size)
    zero = sampling.zero_from((key, params, x, noise, looks, certify_at, give_up_at, selection_samples))
    start = RadiusCertificate(
        verdict=jnp.full(num_plans, _PENDING, jnp.int32) + zero,
        prediction=jnp.full(num_plans, ABSTAIN, jnp.int32) + zero,
        samples_used=jnp.zeros(num_plans, jnp.int32) + zero,
        counts=jnp.zeros((num_plans, num_classes), jnp.int32) + zero,
        selection_counts=jnp.zeros(num_classes, jnp.int32) + zero,
    )
    end = sample_until(
        lambda certificate: jnp.all(certificate.verdict != _PENDING),
        decide,
        start,
        (key, apply_fn, params, x, noise),
        selection_samples,
        batch_size,
        zero,
    )
    certified = end.verdict == CERTIFIED
    if nested:
        certified = jax.lax.cumprod(certified.astype(jnp.int32)) == 1
    return end._replace(
        verdict=jnp.where(certified, CERTIFIED, jnp.minimum(end.verdict, NOT_CERTIFIED)),
        prediction=jnp.where(certified, jnp.argmax(end.selection_counts), ABSTAIN).astype(jnp.int32),
    )


class Verdict(NamedTuple):
    """The answer for one radius.

    Attributes:
        verdict: CERTIFIED, NOT_CERTIFIED or UNDECIDED.
        samples_used: estimation samples up to the look that decided.
    """

    verdict: int
    samples_used: int


def verdicts_from_counts(
    plans: Sequence[StoppingPlan],
    num_received: int,
    count_at: Callable[[np.ndarray], np.ndarray],
    *,
    guarantee: str = "each",
) -> list[Verdict] | None:
    """What :func:`certify_radii` decides on the samples so far; host.

    Args:
        plans: increasing radii.
        num_received: estimation samples so far.
        count_at: counts of class A after the given numbers of samples, all of them looks up to num_received.
        guarantee: "each" or "simultaneous".

    Returns:
        A verdict per radius, or None while one of them is open.
    """
    verdicts: list[Verdict] = []
    open_radii, blocked_at = False, math.inf  # where the first failure of a smaller radius ends a larger one
    for plan in plans:
        found = _first_verdict(plan, num_received, count_at)
        if guarantee == "simultaneous" and blocked_at < (math.inf if found is None else found.samples_used):
            found = Verdict(NOT_CERTIFIED, int(blocked_at))
        if found is None:
            open_radii = True
            continue
        if found.verdict != CERTIFIED:
            blocked_at = min(blocked_at, found.samples_used)
        verdicts.append(found)
    if open_radii:
        return None
    if guarantee == "simultaneous":
        failed = False
        for i, found in enumerate(verdicts):
            failed |= found.verdict != CERTIFIED
            if failed and found.verdict == CERTIFIED:
                verdicts[i] = found._replace(verdict=NOT_CERTIFIED)
    return verdicts


def _first_verdict(
    plan: StoppingPlan, num_received: int, count_at: Callable[[np.ndarray], np.ndarray]
) -> Verdict | None:
    looks = plan.looks[: int(np.searchsorted(plan.looks, num_received, side="right"))]
    count_a = count_at(looks)
    certified = count_a >= plan.certify_at[: looks.size]
    deciding = np.flatnonzero(
        certified | (count_a <= plan.give_up_at[: looks.size]) | (looks == plan.looks[-1])
    )
    if deciding.size == 0:
        return None
    first = int(deciding[0])
    if certified[first]:
        return Verdict(CERTIFIED, int(looks[first]))
    gave_up = count_a[first] <= plan.give_up_at[first]
    return Verdict(NOT_CERTIFIED if gave_up else UNDECIDED, int(looks[first]))
