"""The exact group-sequential binomial test of "the radius is at least r".

With ``p0 = Phi(r/sigma)`` the null hypothesis is ``p_A <= p0``, and "certified" is said at the first look ``n_i``
at which the number of samples of class A reaches ``certify_at[i]``.

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

NumPy float64 on the host.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from jaxsmooth import confidence, validation
from jaxsmooth import radius as radius_lib

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
    check_radii(plans)
    return plans


def check_radii(plans: Sequence[StoppingPlan]) -> None:
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
