"""Plans that stop sampling early, at the same guarantee as a fixed number of samples.

**Is the radius at least r?** :func:`stopping_plan` designs an exact group-sequential binomial test and
:func:`certify_radius` runs it. With ``p0 = Phi(r/sigma)`` the null hypothesis is ``p_A <= p0``, and "certified"
is said at the first look ``n_i`` at which the number of samples of class A reaches ``certify_at[i]``.

*Why the error is at most alpha.* The event that some count reaches its boundary can only be helped by turning a
failure into a success, so its probability grows with p_A and is largest at p0. There it is computed, not bounded:
the distribution of the number of failures among the paths that have not been certified is carried from look to
look by convolution with a binomial distribution (Armitage, McPherson and Rowe 1969), and each boundary is the
least count whose added crossing probability fits what may have been spent by then (the spending functions of Lan
and DeMets 1983). Giving up is *non-binding*: the computation pretends that it never happens, so that it can only
lower the error. The class A comes from an independent first stage.

*What the arithmetic adds.* Everything in the convolution is a product or a sum of positive float64 numbers, so
rounding is a relative error that can be bounded term by term; the windows cut off tails, whose probability is
bounded by Bernstein's inequality and counted as error; p0 is rounded up. The stored ``error`` contains all three
and is at most alpha.

**Which radius?** :func:`tolerance_plan` and :func:`certify_tolerance` stop when the radius in hand is nearly what
the whole budget could still give.

Plans are NumPy float64 on the host; the functions that take a key and a model are pure JAX.
"""

import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from scipy import special

from jaxsmooth import confidence, sampling, validation
from jaxsmooth import radius as radius_lib
from jaxsmooth.certification import (
    _SHARE_OF_P_A,
    ABSTAIN,
    BOUNDS,
    Certificate,
    _round_down,
    _scale_on_device,
    certificate_from_counts,
)
from jaxsmooth.noise import Gaussian, Noise
from jaxsmooth.sampling import ApplyFn

CERTIFIED = 1
NOT_CERTIFIED = 0
UNDECIDED = -1
_PENDING = 2  # not decided yet; never returned

# The design, chosen for inputs whose probabilities lie smoothly around p0. Then the number of inputs that need
# about n samples falls as n^(-3/2), their cost grows as n^(-1/2) dn, and spending in proportion to cost,
# which minimises the mean number of samples to first order, is spending as sqrt(n/N).
_FIRST_LOOK = 5
_LOOK_RATIO = 1.1  # 1.02 would save 2% of the samples and need five times as many looks
# Share of alpha spent before the last look, and probability of giving up early at the p_A that the last look
# certifies with probability 0.95. Together they cost less than 1% of power where counts are large. Where
# they are not, one failure more or less at the last look is worth more, and the share is lowered until it fits.
_INTERIM_SHARE = 0.08
_LEAST_INTERIM_SHARE = 1e-4
_POWER_LOSS = 0.01
_POWERS = (0.35, 0.5, 0.65, 0.8)  # of the fixed-n test, where the loss is largest
_LARGE_VARIANCE = 2000.0  # of the count, from which one failure is worth less than 1% of power
_GIVE_UP_LEVEL = 0.004
_GIVE_UP_POWER = 0.95

# Looks when the radius is free: 20 samples, then 1.5 times apart.
_INTERIM_LOOKS = tuple(round(20 * 1.5**i) for i in range(33))
_HOPE = 0.01  # level of the bounds in the rule that leaves an example that will abstain; costs no guarantee

_EPSILON = float(np.finfo(np.float64).eps)
_RESERVE = 1e-8  # of alpha, kept for rounding and for tails
_TAILS = 1e-9  # of alpha: all tails cut off during one construction


@dataclass(frozen=True, eq=False)
class StoppingPlan:
    """When to stop asking whether the radius is at least r; made by :func:`stopping_plan`.

    After ``looks[i]`` samples the answer is "certified" if the count of class A is at least ``certify_at[i]``, and
    "not certified" (sampling on is not worth while) if it is at most ``give_up_at[i]``. After the last look what
    is neither is undecided.

    Attributes:
        looks: int64[num_looks], cumulative numbers of samples, rising to at most ``num_samples``.
        certify_at: int64[num_looks], ``looks[i] + 1`` where nothing can be certified.
        give_up_at: int64[num_looks], -1 where there is no giving up.
        radius: the radius r in question, in the units of the input.
        sigma: standard deviation of the noise.
        alpha: the level asked for.
        num_samples: the budget N.
        error: upper bound on the probability of certifying a radius that is false, at most alpha.

    Raises:
        InputError: for looks that do not increase, or boundaries that do not fit them.
    """

    looks: np.ndarray
    certify_at: np.ndarray
    give_up_at: np.ndarray
    radius: float
    sigma: float
    alpha: float
    num_samples: int
    error: float

    def __post_init__(self) -> None:
        for name in ("looks", "certify_at", "give_up_at"):
            array = np.array(getattr(self, name), np.int64)
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        _check_looks(self.looks)
        if not self.looks.shape == self.certify_at.shape == self.give_up_at.shape:
            raise validation.InputError(
                "looks, certify_at and give_up_at must have one shape, got "
                f"{self.looks.shape}, {self.certify_at.shape} and {self.give_up_at.shape}"
            )
        if np.any(self.give_up_at >= self.certify_at):
            raise validation.InputError("give_up_at must lie below certify_at at every look")


def stopping_plan(radius: float, *, sigma: float, alpha: float, num_samples: int) -> StoppingPlan:
    """The exact group-sequential test of "the radius is at least r" with at most ``num_samples`` samples.

    Looks come at 5 samples and then 10% apart. Before the last look, at most ``0.08 alpha sqrt(n/N)`` of the error
    has been spent after n samples; the last look spends the rest. It comes as soon as it
    can: the number of failures that N samples would be allowed, at the least number of samples at
    which that many are allowed. Giving up has probability at most 0.004, spent as sqrt(n/N) too, at the p_A
    that the last look alone would certify with probability 0.95, and less at any larger p_A. See the module
    docstring for the proof. Cached: asking again costs nothing.

    Args:
        radius: the l2 radius r in question, in the units of the input; positive and finite.
        sigma: standard deviation of the Gaussian noise, in the same units.
        alpha: probability that "certified" is said of a radius that is false, in (0, 1).
        num_samples: the most samples that may be drawn, 1 to 10,000,000.

    Returns:
        A :class:`StoppingPlan`.

    Raises:
        InputError: for an argument outside its range, or a radius that not even num_samples successes certify.

    Example:
        >>> plan = stopping_plan(0.5, sigma=0.5, alpha=0.001, num_samples=1000)
        >>> plan.error <= 0.001, len(plan.looks), plan.looks[-1].item(), plan.certify_at[-1].item()
        (True, 55, 998, 875)
    """
    return _stopping_plan(
        validation.check_positive("radius", radius),
        validation.check_positive("sigma", sigma),
        validation.check_alpha(alpha),
        validation.check_integer("num_samples", num_samples, 1, confidence.MAX_NUM_SAMPLES),
    )


@lru_cache(maxsize=64)
def _stopping_plan(radius: float, sigma: float, alpha: float, num_samples: int) -> StoppingPlan:
    sigma_in_use = min(sigma, float(np.float32(sigma)))  # the noise is drawn in float32
    largest = radius_lib.certified_radius(
        confidence.largest_bound(num_samples, alpha * (1.0 - 2.0 * _RESERVE)), sigma=sigma_in_use
    )
    if not radius <= largest:
        raise validation.InputError(
            f"radius must be at most {_floor(float(largest))}, the most that num_samples = {num_samples} can certify "
            f"at sigma = {sigma:g} and alpha = {alpha:g}, got {radius}"
        )
    # p0 rounded up. The quotient's rounding moves the tail by z^2 < 1500 ulps of relative size; SciPy's own is less.
    failure = float(special.ndtr(-radius / sigma_in_use)) * (1.0 - 1e-12)
    share = _INTERIM_SHARE
    while True:
        looks, most_failures, error = _acceptance(failure, alpha, num_samples, share)
        plan = StoppingPlan(
            looks=looks,
            certify_at=looks - most_failures,
            give_up_at=looks - _least_failures_to_give_up(looks, most_failures, num_samples),
            radius=radius,
            sigma=sigma,
            alpha=alpha,
            num_samples=num_samples,
            error=error,
        )
        share *= 0.6
        if share < _LEAST_INTERIM_SHARE or _power_loss(plan, failure) <= _POWER_LOSS:
            return plan


def _power_loss(plan: StoppingPlan, failure: float) -> float:
    """Largest difference in power from the test with all samples; 0 if one failure matters little."""
    if plan.num_samples * failure * (1.0 - failure) > _LARGE_VARIANCE:
        return 0.0
    most_failures = max(0.0, np.nan_to_num(np.floor(special.bdtrik(plan.alpha, plan.num_samples, failure))))
    power = np.array(_POWERS)
    alternative = special.betaincinv(most_failures + 1.0, plan.num_samples - most_failures, 1.0 - power)
    return float(np.max(power - operating_characteristics(plan, 1.0 - alternative).certified))


def crossing_probability(looks: ArrayLike, certify_at: ArrayLike, p: float) -> float:
    """Probability that a count of successes is at least ``certify_at[i]`` at one of the looks or more.

    An upper bound, above the exact value by less than about 1e-9 of it plus 1e-17: the error of a plan is its value at
    ``p = Phi(radius/sigma)``.

    Args:
        looks: cumulative numbers of samples, increasing.
        certify_at: boundary at each look; ``looks[i] + 1`` for none.
        p: probability of a success, in (0, 1).

    Returns:
        The probability.

    Raises:
        InputError: for looks that do not increase, or p outside (0, 1).

    Example:
        >>> f"{crossing_probability([1, 2], [1, 2], 0.25):.4f}"  # 1/4 + (3/4) 0
        '0.2500'
    """
    looks, most_failures = np.asarray(looks), np.asarray(looks) - np.asarray(certify_at)
    _check_looks(looks)
    failure = 1.0 - validation.check_alpha(p, "p")
    walk, spent = _START, 0.0
    for num_samples, failures in zip(looks, most_failures, strict=True):
        if walk.mass.size == 0:
            break
        walk = _advance(walk, int(num_samples), failure, 1e-20)
        walk, added = _remove_up_to(walk, failures)
        spent += added
    return _upper_bound(spent, walk)


class OperatingCharacteristics(NamedTuple):
    """What a plan does when class A has probability p.

    Attributes:
        certified: float64, probability of "certified".
        given_up: float64, probability of "not certified" before the last look.
        mean_samples: float64, expected number of samples.
    """

    certified: np.ndarray
    given_up: np.ndarray
    mean_samples: np.ndarray


def operating_characteristics(plan: StoppingPlan, p: ArrayLike) -> OperatingCharacteristics:
    """Power and expected number of samples of a plan, by the convolution that designed it (giving up included).

    Args:
        plan: a stopping plan.
        p: probability of class A, in [0, 1] (arrays welcome).

    Returns:
        :class:`OperatingCharacteristics` of the shape of p, with an absolute error below 1e-9 (relative, for
        the number of samples).

    Raises:
        InputError: for a probability outside [0, 1].

    Example:
        >>> plan = stopping_plan(0.5, sigma=0.5, alpha=0.001, num_samples=10_000)
        >>> [f"{value:.3f}" for value in operating_characteristics(plan, 0.9)]
        ['1.000', '0.000', '772.644']
    """
    p = validation.check_probabilities("p", p)
    values = [_characteristics(plan, 1.0 - value) for value in p.ravel()]
    return OperatingCharacteristics(
        *(np.reshape(column, p.shape)[()] for column in zip(*values, strict=True))
    )


def _characteristics(plan: StoppingPlan, failure: float) -> tuple[float, float, float]:
    failure = float(np.clip(failure, 1e-300, 1.0 - _EPSILON))
    walk, certified, given_up, mean_samples = _START, 0.0, 0.0, 0.0
    for look, certify_at, give_up_at in zip(plan.looks, plan.certify_at, plan.give_up_at, strict=True):
        if walk.mass.size == 0:
            break
        mean_samples += (look - walk.num_samples) * walk.mass.sum()
        walk = _advance(walk, int(look), failure, 1e-15)
        walk, added = _remove_up_to(walk, look - certify_at)
        certified += added
        walk, added = _remove_from(walk, look - give_up_at)
        given_up += added
    return certified, given_up, mean_samples


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


GUARANTEES = ("each", "simultaneous")


def stopping_plans(
    radii: Sequence[float], *, sigma: float, alpha: float, num_samples: int
) -> tuple[StoppingPlan, ...]:
    """One :func:`stopping_plan` per radius, each at level alpha, for :func:`certify_radii`.

    Args:
        radii: the radii in question, increasing.
        sigma: standard deviation of the noise.
        alpha: level of each plan.
        num_samples: budget of each plan.

    Returns:
        The plans, in the order of the radii.

    Raises:
        InputError: for radii that do not increase (one given twice, say), or as :func:`stopping_plan`.

    Example:
        >>> [plan.radius for plan in stopping_plans([0.25, 0.5], sigma=0.5, alpha=0.001, num_samples=1000)]
        [0.25, 0.5]
    """
    if len(radii) == 0:
        raise validation.InputError("radii must hold at least one radius, got none")
    plans = tuple(
        stopping_plan(radius, sigma=sigma, alpha=alpha, num_samples=num_samples) for radius in radii
    )
    _check_radii(plans)
    return plans


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
    _check_radii(plans)
    if not isinstance(noise, Gaussian):
        raise validation.InputError(f"noise must be Gaussian for a radius of this plan, got {noise!r}")
    if not validation.is_traced(noise.sigma) and float(noise.sigma) not in (
        plans[0].sigma,
        float(np.float32(plans[0].sigma)),
    ):
        raise validation.InputError(
            f"noise must have the plan's sigma = {plans[0].sigma:g}, got {noise.sigma}"
        )
    x, batch_size, selection_samples = _checked(
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

    def decide(stream: _Stream, before: RadiusCertificate) -> RadiusCertificate:
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
    zero = sampling._zero_from((key, params, x, noise, looks, certify_at, give_up_at, selection_samples))
    start = RadiusCertificate(
        verdict=jnp.full(num_plans, _PENDING, jnp.int32) + zero,
        prediction=jnp.full(num_plans, ABSTAIN, jnp.int32) + zero,
        samples_used=jnp.zeros(num_plans, jnp.int32) + zero,
        counts=jnp.zeros((num_plans, num_classes), jnp.int32) + zero,
        selection_counts=jnp.zeros(num_classes, jnp.int32) + zero,
    )
    end = _sample_until(
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
    validation.check_choice("bound", bound, BOUNDS)
    return _tolerance_plan(
        validation.check_alpha(tolerance, "tolerance"),
        validation.check_alpha(alpha),
        validation.check_integer("num_samples", num_samples, 1, confidence.MAX_NUM_SAMPLES),
        bound,
    )


@lru_cache(maxsize=4)
def _tolerance_plan(tolerance: float, alpha: float, num_samples: int, bound: str) -> TolerancePlan:
    looks, levels = _looks_and_levels(alpha, num_samples)
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
    table_a = tables(_SHARE_OF_P_A if two_sided else 1.0)
    table_b = tables(1.0 - _SHARE_OF_P_A) if two_sided else [None, None, None]
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
    """Upper bound of Wilson (1927) at level ``_HOPE``: quick, and good enough for a rule that carries no guarantee."""
    z = float(special.ndtri(1.0 - _HOPE))
    centre = counts + 0.5 * z**2
    spread = z * np.sqrt(counts * (1.0 - counts / num_samples) + 0.25 * z**2)
    return (centre + spread) / (num_samples + z**2)


def _looks_and_levels(alpha: float, num_samples: int) -> tuple[list[int], list[float]]:
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
        ('0.651', 3892)
    """
    if not isinstance(plan, TolerancePlan):
        raise validation.InputError(f"plan must come from tolerance_plan, got {type(plan).__name__}")
    x, batch_size, selection_samples = _checked(
        key, apply_fn, x, batch_size, selection_samples, plan.num_samples
    )
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    tables = [
        None if table is None else jnp.asarray(_round_down(table, dtype))
        for table in (
            plan.bound_a,
            plan.bound_b,
            plan.predicted_a,
            plan.predicted_b,
            plan.hoped_a,
            plan.hoped_b,
        )
    ]
    scale = _scale_on_device(noise, dtype)
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

    def decide(stream: _Stream, before: ToleranceCertificate) -> ToleranceCertificate:
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
    zero = sampling._zero_from((key, params, x, noise, scale, looks, offsets, tables, selection_samples))
    end = _sample_until(
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


def selection_free_certificate(
    counts: ArrayLike, *, noise: Noise, num_samples: int, alpha: float
) -> Certificate:
    """One-sided certificate from a single stage: the most frequent class of the very samples that bound it.

    The radius is ``sigma Phi^-1(L)``, L the Clopper-Pearson bound of the leader's count k at level ``alpha/2``, if
    ``L > 1/2``; host, NumPy float64, rounded down.

    *Proof.* Let ``k*`` be the least count with ``L > 1/2`` and ``h(p) = P(Bin(n, p) >= k*)``, so that
    ``h(1/2) <= alpha/2``. A statement about the class with p > 1/2, if there is one, is false with probability at
    most alpha/2. A statement about another class needs its count to reach k*. As k* > n/2, h is convex on
    [0, 1/2] (its derivative is the density of Beta(k*, n-k*+1), whose mode is at least 1/2) and ``h(0) = 0``, so
    ``h(p) <= 2 p h(1/2) <= p alpha``. Summed over the other classes this is at most alpha times the sum of their
    probabilities: at most alpha/2 if one class has more than 1/2, and at most alpha, with nothing to
    add, if none has.

    Args:
        counts: integers [..., num_classes] of one stage.
        noise: the noise under which they were drawn.
        num_samples: samples drawn; more than ``counts`` sum to when rows were not finite.
        alpha: probability that a statement is false.

    Returns:
        A :class:`jaxsmooth.Certificate` of NumPy arrays, with ``counts`` for both stages.

    Raises:
        InputError: for counts that are not whole numbers, or exceed num_samples.

    Example:
        >>> from jaxsmooth import Gaussian
        >>> certificate = selection_free_certificate([990, 10], noise=Gaussian(0.5), num_samples=1000, alpha=0.001)
        >>> certificate.prediction.item(), f"{certificate.radius:.6f}"
        (0, '0.979440')
    """
    alpha = validation.check_alpha(alpha)
    # With the leader as the selected class, the level alpha/2 is all that differs from two stages.
    return certificate_from_counts(
        counts, counts, noise=noise, num_samples=num_samples, alpha=0.5 * alpha, bound="one-sided"
    )


class EarlyPrediction(NamedTuple):
    """What PREDICT says about one input, and what it cost.

    Attributes:
        prediction: the smoothed classifier's class with probability at least 1 - alpha, or ABSTAIN (-1); int32.
        samples_used: int32, samples up to the look that decided.
        counts: int32[num_classes], up to that look.
    """

    prediction: Any
    samples_used: Any
    counts: Any


def predict_early(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Any,
    x: ArrayLike,
    *,
    noise: Noise,
    num_samples: int,
    alpha: float,
    batch_size: int,
) -> EarlyPrediction:
    """Predicts the smoothed classifier's class as soon as it is certain enough, or abstains after ``num_samples``.

    At looks 1.5 times apart :func:`jaxsmooth.predict` is asked about all samples so far, at levels that sum to alpha
    (20% for all looks but the last); the first answer is given. *Proof*: at each look by itself the test of
    the leader against the runner-up returns a wrong class with probability at most its level (Hung and
    Fithian 2019: the leader may be chosen by the same data), and the first answer is wrong only if some
    look's answer is.

    Args:
        key: as in :func:`certify_radius`, like all arguments not named here.
        apply_fn: as there.
        params: as there.
        x: as there.
        noise: the noise.
        num_samples: the most samples that may be drawn.
        alpha: probability that a class other than the smoothed classifier's is returned, in (0, 1).
        batch_size: as there.

    Returns:
        An :class:`EarlyPrediction`.

    Raises:
        InputError: as there.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxsmooth import Gaussian
        >>> apply_fn = lambda w, inputs: inputs @ w
        >>> found = predict_early(jax.random.key(0), apply_fn, jnp.eye(2), jnp.array([0.0, 2.0]),
        ...                       noise=Gaussian(0.5), num_samples=100_000, alpha=0.001, batch_size=100)
        >>> found.prediction.item(), found.samples_used.item()
        (1, 20)
    """
    alpha = validation.check_alpha(alpha)
    num_samples = validation.check_integer("num_samples", num_samples, 1, confidence.MAX_NUM_SAMPLES)
    x, batch_size, _ = _checked(key, apply_fn, x, batch_size, 1, num_samples)
    looks, offsets, thresholds = _prediction_tables(alpha, num_samples)
    return _predict_early(
        key,
        apply_fn,
        params,
        x,
        noise,
        jnp.asarray(looks, jnp.int32),
        jnp.asarray(offsets, jnp.int32),
        jnp.asarray(thresholds, jnp.int32),
        batch_size,
    )


@lru_cache(maxsize=4)
def _prediction_tables(alpha: float, num_samples: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Looks, where each begins in the table, and the least significant count for every number of trials."""
    looks, levels = _looks_and_levels(alpha, num_samples)
    tables = [confidence.binomial_test_table(n, level) for n, level in zip(looks, levels, strict=True)]
    return np.array(looks), np.cumsum([0] + [n + 1 for n in looks[:-1]]), np.concatenate(tables)


@partial(jax.jit, static_argnames=("apply_fn", "batch_size"))
def _predict_early(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Any,
    x: jax.Array,
    noise: Noise,
    looks: jax.Array,
    offsets: jax.Array,
    thresholds: jax.Array,
    batch_size: int,
) -> EarlyPrediction:
    def decide(stream: _Stream, before: EarlyPrediction) -> EarlyPrediction:
        counts = stream.count_all(looks)
        (first, second), leaders = jax.lax.top_k(counts, 2)[0].T, jnp.argmax(counts, axis=-1)
        # Rows that were not finite are the runner-up's; looks beyond this batch are read, and not used.
        second += jnp.maximum(looks - jnp.sum(counts, axis=-1), 0)
        certain = first >= thresholds[offsets + jnp.clip(first + second, 0, looks)]
        stop = stream.seen(looks) & (certain | (looks == looks[-1]))
        stopping, look = jnp.any(stop), jnp.argmax(stop)
        answer = jnp.where(certain[look], leaders[look], ABSTAIN).astype(jnp.int32)
        return EarlyPrediction(
            prediction=jnp.where(stopping, answer, before.prediction),
            samples_used=jnp.where(stopping, looks[look], before.samples_used),
            counts=jnp.where(stopping, counts[look], before.counts),
        )

    num_classes = sampling.check_num_classes(apply_fn, params, x.shape, batch_size)
    zero = sampling._zero_from((key, params, x, noise, looks, offsets, thresholds))
    return _sample_until(
        lambda prediction: prediction.samples_used > 0,
        decide,
        EarlyPrediction(zero, zero, jnp.zeros(num_classes, jnp.int32) + zero),
        (key, apply_fn, params, x, noise),
        jnp.int32(0),
        batch_size,
        zero,
    )


class _Stream(NamedTuple):
    """One batch's share of the stream of samples.

    Attributes:
        selection_counts: int32[num_classes], up to the end of this batch.
        selected: the leader of the selection stage, once that is over.
        counts: int32[num_classes], of the estimation stage, before this batch.
        votes: bool[batch, num_classes], one-hot answers; all False for rows of the selection stage.
        drawn: int32[batch], estimation samples up to each row (not positive during the selection stage).
    """

    selection_counts: jax.Array
    selected: jax.Array
    counts: jax.Array
    votes: jax.Array
    drawn: jax.Array

    def seen(self, looks: jax.Array) -> jax.Array:
        """Whether a look, after so many estimation samples, falls into this batch."""
        return (looks >= self.drawn[0]) & (looks <= self.drawn[-1])

    def count_selected(self, looks: jax.Array) -> jax.Array:
        """Count of the selected class at looks of any shape."""
        votes = self.votes[:, self.selected] & (self.drawn <= looks[..., None])
        return self.counts[self.selected] + jnp.sum(votes, axis=-1, dtype=jnp.int32)

    def count_all(self, looks: jax.Array) -> jax.Array:
        """Counts [num_looks, num_classes] at looks [num_looks]."""
        votes = self.votes & (self.drawn <= looks[:, None])[..., None]
        return self.counts + jnp.sum(votes, axis=1, dtype=jnp.int32)


def _sample_until(
    finished: Callable[[Any], jax.Array],
    decide: Callable[[_Stream, Any], Any],
    start: Any,
    example: tuple[jax.Array, ApplyFn, Any, jax.Array, Noise],
    selection_samples: jax.Array,
    batch_size: int,
    zero: jax.Array,
) -> Any:
    """Draws batch after batch and updates a state, ``decide(stream, state)``, until it is finished."""
    key, apply_fn, params, x, noise = example
    num_classes = sampling.check_num_classes(apply_fn, params, x.shape, batch_size)

    def step(carry: tuple) -> tuple:
        batch, selection_counts, counts, state = carry
        samples = batch * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
        votes = sampling.batch_votes(key, apply_fn, params, x, noise, samples, num_classes)
        drawn = samples - selection_samples + 1
        estimating = (drawn > 0)[:, None]
        selection_counts += jnp.sum(votes & ~estimating, axis=0, dtype=jnp.int32)
        votes &= estimating
        stream = _Stream(selection_counts, jnp.argmax(selection_counts), counts, votes, drawn)
        state = decide(stream, state)
        return batch + 1, selection_counts, counts + jnp.sum(votes, axis=0, dtype=jnp.int32), state

    none = jnp.zeros(num_classes, jnp.int32) + zero
    carry = (zero, none, none, start)
    return jax.lax.while_loop(lambda carry: ~finished(carry[-1]), step, carry)[-1]


def _checked(
    key: jax.Array,
    apply_fn: ApplyFn,
    x: ArrayLike,
    batch_size: int,
    selection_samples: int,
    num_samples: int,
) -> tuple[jax.Array, int, int]:
    sampling.check_key(key)
    x = sampling.check_input(x)
    batch_size = validation.check_integer("batch_size", batch_size, at_least=1)
    selection_samples = validation.check_integer("selection_samples", selection_samples, at_least=1)
    sampling._check_last_sample(selection_samples + num_samples, batch_size)
    if not (callable(apply_fn) and isinstance(apply_fn, Hashable)):
        raise validation.InputError(
            f"apply_fn must be a hashable function of (params, inputs), got {type(apply_fn).__name__}"
        )
    return x, batch_size, selection_samples


def _check_radii(plans: Sequence[StoppingPlan]) -> None:
    if len(plans) == 0:
        raise validation.InputError("plans must hold at least one plan, got none")
    radii = [plan.radius for plan in plans]
    if any(b <= a for a, b in itertools.pairwise(radii)):
        raise validation.InputError(f"radii must increase, each given once, got {radii}")
    if len({plan.sigma for plan in plans}) > 1:
        raise validation.InputError(
            f"plans must share one sigma, got {sorted({plan.sigma for plan in plans})}"
        )


class _Walk(NamedTuple):
    """Where the paths that are still sampling are: entry j of ``mass`` is P(``fewest + j`` failures so far)."""

    num_samples: int
    fewest: int
    mass: np.ndarray
    dropped: float  # probability cut off, at most
    rounding: float  # relative error of each entry, at most


_START = _Walk(0, 0, np.ones(1), 0.0, 0.0)


def _acceptance(
    failure: float, alpha: float, num_samples: int, interim_share: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Looks, the most failures that are certified at each (-1: none), and the error."""
    limit = alpha * (1.0 - _RESERVE)
    # Adding one failure to what is allowed moves the last look by a few expected failures at most; leave it room.
    interim = _geometric_looks(num_samples - math.ceil(4.0 / failure))
    tail = _TAILS * alpha / (2.0 * (len(interim) + 1))
    walk, spent, most_failures = _START, 0.0, []
    for look in interim:
        walk = _advance(walk, look, failure, tail)
        allowed = interim_share * limit * math.sqrt(look / num_samples) - spent
        failures = walk.fewest - 1 + int(np.searchsorted(np.cumsum(walk.mass), allowed, side="right"))
        walk, added = _remove_up_to(walk, failures)
        spent += added
        most_failures.append(failures if added > 0.0 else -1)

    allowed = limit - spent
    at_budget = _advance(walk, num_samples, failure, tail)
    failures = at_budget.fewest - 1 + int(np.searchsorted(np.cumsum(at_budget.mass), allowed, side="right"))
    low, last_look = walk.num_samples, num_samples  # bisection: too early, early enough
    while last_look - low > 1:
        middle = (low + last_look) // 2
        if _remove_up_to(_advance(walk, middle, failure, tail), failures)[1] <= allowed:
            last_look = middle
        else:
            low = middle
    walk, added = _remove_up_to(_advance(walk, last_look, failure, tail), failures)
    error = _upper_bound(spent + added, walk)
    assert error <= alpha, f"the error of the plan is {error}, above alpha = {alpha}"
    return np.array([*interim, last_look]), np.array([*most_failures, failures]), error


def _least_failures_to_give_up(looks: np.ndarray, most_failures: np.ndarray, num_samples: int) -> np.ndarray:
    """The giving-up boundary in failures; ``looks + 1`` where there is none. It needs no rigour."""
    last, failures = float(looks[-1]), float(most_failures[-1])
    failure = float(special.betaincinv(failures + 1.0, last - failures, 1.0 - _GIVE_UP_POWER))
    walk, spent, least_failures = _START, 0.0, looks + 1
    for i, look in enumerate(looks[:-1]):
        if walk.mass.size == 0:
            break
        walk = _advance(walk, int(look), failure, 1e-12)
        walk, _ = _remove_up_to(walk, most_failures[i])
        allowed = _GIVE_UP_LEVEL * math.sqrt(look / num_samples) - spent
        size = int(np.searchsorted(np.cumsum(walk.mass[::-1]), allowed, side="right"))
        boundary = walk.fewest + walk.mass.size - size
        walk, added = _remove_from(walk, boundary)
        spent += added
        least_failures[i] = min(boundary, look + 1)
    return least_failures


def _geometric_looks(end: int) -> list[int]:
    looks, look = [], float(_FIRST_LOOK)
    while round(look) < end:
        looks.append(round(look))
        look = max(look * _LOOK_RATIO, look + 1.0)
    return looks


def _advance(walk: _Walk, num_samples: int, failure: float, tail: float) -> _Walk:
    """The walk at a later number of samples, less tails of probability at most ``2 tail``, which are recorded."""
    fewest, weights = _increment(num_samples - walk.num_samples, failure, tail)
    mass = np.convolve(walk.mass, weights)
    # Paths with the most failures are the least likely to be certified: the window ends there.
    kept = mass.size - int(np.searchsorted(np.cumsum(mass[::-1]), tail))
    # Relative errors of a weight (below), of a product, and of a sum of at most weights.size terms.
    rounding = 10.0 * (weights.size + 1) * _EPSILON
    return _Walk(
        num_samples,
        walk.fewest + fewest,
        mass[: max(kept, 1)],
        walk.dropped + 2.0 * tail,
        walk.rounding + rounding,
    )


def _increment(num_trials: int, failure: float, tail: float) -> tuple[int, np.ndarray]:
    """Binomial probabilities on a window that misses at most ``tail``, from the window's first count on.

    With v the variance, Bernstein's inequality is ``P(|X - EX| >= t) <= 2 exp(-t^2/(2v + 2t/3))``. Inside,
    ratios of neighbouring probabilities are multiplied up from the mode, six roundings each, and normalised
    over the window: no entry is below the exact probability by more than that rounding.
    """
    mean, variance = num_trials * failure, num_trials * failure * (1.0 - failure)
    log_odds = math.log(2.0 / tail)
    reach = log_odds / 3.0 + math.sqrt(log_odds**2 / 9.0 + 2.0 * variance * log_odds)
    first, last = max(0, math.floor(mean - reach)), min(num_trials, math.ceil(mean + reach))
    mode = min(max(math.floor((num_trials + 1) * failure), first), last)
    odds = failure / (1.0 - failure)
    up = np.arange(mode, last, dtype=np.float64)
    down = np.arange(mode, first, -1, dtype=np.float64)
    weights = np.concatenate(
        [
            np.cumprod(down / ((num_trials - down + 1.0) * odds))[::-1],
            [1.0],
            np.cumprod((num_trials - up) / (up + 1.0) * odds),
        ]
    )
    return first, weights / weights.sum()


def _remove_up_to(walk: _Walk, failures: int) -> tuple[_Walk, float]:
    """The walk without the paths that have at most ``failures`` failures, and their probability."""
    cut = min(max(int(failures) - walk.fewest + 1, 0), walk.mass.size)
    return walk._replace(fewest=walk.fewest + cut, mass=walk.mass[cut:]), float(walk.mass[:cut].sum())


def _remove_from(walk: _Walk, failures: int) -> tuple[_Walk, float]:
    """The walk without the paths that have at least ``failures`` failures, and their probability."""
    kept = min(max(int(failures) - walk.fewest, 0), walk.mass.size)
    return walk._replace(mass=walk.mass[:kept]), float(walk.mass[kept:].sum())


def _upper_bound(probability: float, walk: _Walk) -> float:
    return probability * (1.0 + walk.rounding) + walk.dropped


def _check_looks(looks: np.ndarray) -> None:
    if looks.ndim != 1 or looks.size == 0 or looks[0] < 1 or np.any(np.diff(looks) <= 0):
        raise validation.InputError(f"looks must be positive and increase, got {_shortened(looks)}")


def _shortened(values: np.ndarray) -> str:
    return np.array2string(np.asarray(values), threshold=6).replace("\n", "")


def _floor(value: float) -> float:
    """Rounded down to six digits, so that the number printed is one that works."""
    scale = 10.0 ** (5 - math.floor(math.log10(value))) if value > 0.0 else 1.0
    return math.floor(value * scale) / scale
