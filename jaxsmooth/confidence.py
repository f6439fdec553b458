"""Exact binomial confidence bounds, and tables from a count to a bound and a normal quantile.

Everything here is NumPy and SciPy in float64 on the host, and errs on the safe side. Compiled code
never computes a bound: it looks one up in a table.

How a bound is computed. The lower Clopper-Pearson bound L for k successes in n trials at level a is
the p with ``F(p) = P(Bin(n, p) >= k) = a``, and F is the distribution function of Beta(k, n-k+1).
For 1 <= k <= n that density is log-concave, so log F is concave in p (Prekopa 1973), and a Newton
step on log F from any starting point lands at or below L: the tangent lies above the function. One
step from a good guess is therefore both accurate to second order and safe by construction. What is
left is the rounding of F itself (relative error below 3e-12 against 50-digit sums, n up to 1e7), which
the last widening covers. The smaller of p and 1 - p is the number that is carried, so that bounds
near 0 and near 1 keep their relative precision.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from scipy import interpolate, special

from jaxsmooth import validation

MAX_NUM_SAMPLES = 10_000_000

_WIDENING = 2e-12  # relative, of the smaller tail; see the module docstring
_QUANTILE_ROUNDING = 1e-14  # relative error of scipy.special.ndtri is about 1e-15
_CHUNK = 16_384  # counts per work item of a table
_EXACT_ENDS = 256  # counts at either end of a table whose first guess is not interpolated


Guess = Callable[[np.ndarray], np.ndarray]


class BoundTable(NamedTuple):
    """Lower confidence bounds for every possible count.

    Attributes:
        p_lower: float64[n + 1], the lower bound on the probability at count = 0..n.
        quantile: float64[n + 1], Phi^-1 of that bound, rounded down. Times sigma it is the
            one-sided certified radius wherever it is positive.
    """

    p_lower: np.ndarray
    quantile: np.ndarray


class _Tails(NamedTuple):
    """A probability p carried as its smaller tail: ``p`` if ``below_half``, else ``1 - p``."""

    small: np.ndarray
    below_half: np.ndarray

    def p(self) -> np.ndarray:
        return np.where(self.below_half, self.small, np.nextafter(1.0 - self.small, 0.0))

    def quantile(self) -> np.ndarray:
        magnitude = special.ndtri(self.small)
        quantile = np.where(self.below_half, magnitude, -magnitude)
        return quantile - _QUANTILE_ROUNDING * np.abs(quantile)


def clopper_pearson(
    count: np.ndarray | int, num_samples: np.ndarray | int, alpha: float, *, bound: str
) -> np.ndarray:
    """One-sided exact (Clopper and Pearson 1934) bound on a binomial probability, rounded outwards.

    ``L(k, n, a)`` is the a-quantile of Beta(k, n-k+1), 0 at k = 0; ``U(k, n, a) = 1 - L(n-k, n, a)``.
    The bound fails with probability at most ``alpha``.

    Args:
        count: number of successes, in 0..num_samples (arrays welcome).
        num_samples: number of trials, 1 to 10,000,000 (arrays welcome).
        alpha: probability of error of this one bound, in (0, 1).
        bound: "lower" or "upper".

    Returns:
        float64, of the broadcast shape of ``count`` and ``num_samples``.

    Raises:
        InputError: for a count that is not a whole number in 0..num_samples, or an argument
            outside its range.

    Example:
        >>> print(f"{clopper_pearson(990, 1000, 0.001, bound='lower'):.12f}")
        0.976036187155
    """
    alpha = _check_level(alpha)
    validation.check_choice("bound", bound, ("lower", "upper"))
    count, num_samples = validation.broadcast(
        count=validation.check_whole("count", count), num_samples=_check_num_samples(num_samples)
    )
    count = validation.check_counts("count", count, num_samples)
    if bound == "lower":
        return _lower_tails(count, num_samples, alpha).p()[()]
    tails = _lower_tails(num_samples - count, num_samples, alpha)
    return np.where(tails.below_half, np.nextafter(1.0 - tails.small, 1.0), tails.small)[()]


@lru_cache(maxsize=16)
def _bound_table(num_samples: int, alpha: float) -> BoundTable:
    counts = np.arange(num_samples + 1, dtype=np.int64)
    guess = _interpolated_guess(num_samples, alpha)

    def work(chunk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        tails = _lower_tails(chunk, np.asarray(num_samples), alpha, guess)
        return tails.p(), tails.quantile()

    p_lower, quantile = (np.concatenate(column) for column in zip(*_in_chunks(work, counts), strict=True))
    p_lower.setflags(write=False)
    quantile.setflags(write=False)
    return BoundTable(p_lower, quantile)


def bound_table(num_samples: int, alpha: float) -> BoundTable:
    """Lower Clopper-Pearson bounds and their normal quantiles for every count 0..num_samples.

    Cached: asking again costs nothing. The upper bound comes from the same table by symmetry,
    ``U(k) = 1 - L(n-k)`` and ``Phi^-1(U(k)) = -Phi^-1(L(n-k))``.

    Args:
        num_samples: number of trials, 1 to 10,000,000.
        alpha: probability of error of each bound, in (0, 1).

    Returns:
        A :class:`BoundTable` of read-only arrays.

    Raises:
        InputError: for an argument outside its range.

    Example:
        >>> print(f"{bound_table(100, 0.001).p_lower[100]:.12f}")
        0.933254300797
    """
    return _bound_table(_check_size("num_samples", num_samples), _check_level(alpha))


def largest_bound(num_samples: np.ndarray | int, alpha: float) -> np.ndarray:
    """Largest lower bound that num_samples can give, ``alpha**(1/n)`` (all samples agree).

    Example:
        >>> print(f"{largest_bound(10, 0.001):.3f}")
        0.501
    """
    num_samples = _check_num_samples(num_samples)
    return clopper_pearson(num_samples, num_samples, alpha, bound="lower")


def least_num_samples(alpha: float) -> int:
    """Least n whose largest lower bound exceeds 1/2, below which everything abstains.

    Example:
        >>> least_num_samples(0.001)
        10
    """
    alpha = validation.check_alpha(alpha)
    n = max(1, int(np.floor(np.log2(1.0 / alpha))) - 1)
    while largest_bound(n, alpha) <= 0.5:
        n += 1
    return n


def binomial_test_table(num_trials: int, alpha: float) -> np.ndarray:
    """Least number of wins that a two-sided binomial test against 1/2 finds significant.

    Entry m is the least k with ``2 P(Bin(m, 1/2) >= k) < alpha``, and m + 1 where there is none. (A tie with
    alpha counts as not significant.) Cached, like :func:`bound_table`.

    Args:
        num_trials: largest number of trials m, 1 to 10,000,000.
        alpha: level of the test, in (0, 1).

    Returns:
        Read-only int64[num_trials + 1].

    Raises:
        InputError: for an argument outside its range.

    Example:
        >>> binomial_test_table(12, 0.001)[9:].tolist()
        [10, 11, 11, 12]
    """
    return _binomial_test_table(_check_size("num_trials", num_trials), _check_level(alpha))


@lru_cache(maxsize=16)
def _binomial_test_table(num_trials: int, alpha: float) -> np.ndarray:
    trials = np.arange(num_trials + 1, dtype=np.int64)
    table = np.concatenate(_in_chunks(lambda chunk: _least_significant(chunk, 0.5 * alpha), trials))
    table.setflags(write=False)
    return table


def _least_significant(trials: np.ndarray, level: float) -> np.ndarray:
    """Least k with P(Bin(m, 1/2) >= k) <= level, from the normal guess, corrected until exact."""

    def tail(wins: np.ndarray) -> np.ndarray:
        inner = (wins >= 1) & (wins <= trials)
        value = special.betainc(np.where(inner, wins, 1), np.where(inner, trials - wins + 1, 1), 0.5)
        return np.where(inner, value, np.where(wins < 1, 1.0, 0.0))

    limit = level * (1.0 - 1e-11)  # the relative error of betainc, on the safe side
    wins = np.ceil(0.5 * trials - 0.5 * special.ndtri(level) * np.sqrt(trials) + 0.5).astype(np.int64)
    wins = np.clip(wins, 0, trials + 1)
    while np.any(low := (tail(wins) > limit) & (wins <= trials)):
        wins = wins + low
    while np.any(high := tail(wins - 1) <= limit):
        wins = wins - high
    return wins


def _in_chunks(work: Callable[[np.ndarray], Any], counts: np.ndarray) -> list[Any]:
    """Results of ``work`` on pieces of ``counts``, in order; SciPy's functions release the interpreter lock."""
    chunks = [counts[start : start + _CHUNK] for start in range(0, counts.size, _CHUNK)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(work, chunks))


def _check_num_samples(num_samples: np.ndarray | int) -> np.ndarray:
    array = validation.check_whole("num_samples", num_samples)
    if np.any(array < 1):
        raise validation.InputError(f"num_samples must be at least 1, got {array.min()}")
    if np.any(array > MAX_NUM_SAMPLES):
        raise validation.InputError(f"num_samples must be at most {MAX_NUM_SAMPLES}, got {array.max()}")
    return array


def _check_size(name: str, value: int) -> int:
    return validation.check_integer(name, value, at_least=1, at_most=MAX_NUM_SAMPLES)


def _check_level(alpha: float) -> float:
    """A level at which the tails below are computed with their full relative precision."""
    alpha = validation.check_alpha(alpha)
    if alpha < 1e-100:
        raise validation.InputError(f"alpha must be at least 1e-100, got {alpha}")
    return alpha


def _lower_tails(
    count: np.ndarray, num_samples: np.ndarray, alpha: float, guess: Guess | None = None
) -> _Tails:
    """Clopper-Pearson lower bound of each count, as its smaller tail, on the safe side."""
    count, num_samples = np.broadcast_arrays(count, num_samples)
    a = count.astype(np.float64)
    b = (num_samples - count + 1).astype(np.float64)
    inner = (count > 0) & (count < num_samples)
    a_in, b_in = np.where(inner, a, 1.0), np.where(inner, b, 1.0)

    quantile = np.full(a.shape, np.nan)
    if guess is not None:
        middle = inner & (a >= _EXACT_ENDS) & (b >= _EXACT_ENDS)
        quantile[middle] = guess(np.log(a[middle]) - np.log(b[middle]))
    exact = np.isnan(quantile)
    p = np.where(exact, 0.5, special.ndtr(quantile))
    q = np.where(exact, 0.5, special.ndtr(-quantile))
    p[exact] = special.betaincinv(a_in[exact], b_in[exact], alpha)
    q[exact] = special.betainccinv(b_in[exact], a_in[exact], alpha)

    below_half = p < 0.5
    small = np.where(below_half, p, q)
    todo = inner
    for _ in range(8):
        step, log_error = _newton_step(small, below_half, a_in, b_in, alpha)
        small = np.where(todo, small + step, small)
        # The error after a step is of the order of the square of the one before it.
        todo = todo & (np.abs(log_error) > 1e-5)
        if not np.any(todo):
            break
    # Away from p, on the safe side: a lower bound moves down, so its upper tail 1 - p moves up.
    small = np.where(below_half, small * (1.0 - _WIDENING), small * (1.0 + _WIDENING))

    # Every sample a success: L = alpha^(1/n), so 1 - L = -expm1(log(alpha)/n), in closed form.
    whole = count == num_samples
    log_p = np.log(alpha) / num_samples
    whole_below = log_p < np.log(0.5)
    widening = 4e-16 * (4.0 - log_p)
    whole_small = np.where(whole_below, np.exp(log_p) * (1.0 - widening), -np.expm1(log_p) * (1.0 + widening))
    small = np.where(whole, whole_small, np.where(count == 0, 0.0, small))
    below_half = np.where(whole, whole_below, below_half | (count == 0))
    return _Tails(small, below_half)


def _newton_step(
    small: np.ndarray, below_half: np.ndarray, a: np.ndarray, b: np.ndarray, alpha: float
) -> tuple[np.ndarray, np.ndarray]:
    """Newton step of log F(p) = log(alpha), in the smaller tail, and log(F/alpha) before it."""
    tail = np.empty_like(small)
    upper = ~below_half
    tail[below_half] = special.betainc(a[below_half], b[below_half], small[below_half])
    tail[upper] = special.betaincc(b[upper], a[upper], small[upper])
    p_exponent, q_exponent = np.where(below_half, a, b), np.where(below_half, b, a)
    log_density = (
        (p_exponent - 1.0) * np.log(small) + (q_exponent - 1.0) * np.log1p(-small) - special.betaln(a, b)
    )
    log_error = np.log(tail) - np.log(alpha)
    step = log_error * tail * np.exp(-log_density)
    return np.where(below_half, -step, step), log_error


def _interpolated_guess(num_samples: int, alpha: float) -> Guess | None:
    """A smooth function from log(k/(n-k+1)) to Phi^-1(L(k)), good to about 1e-10; only a first guess."""
    if num_samples < 8 * _EXACT_ENDS:
        return None
    ends = np.log(_EXACT_ENDS / (num_samples - _EXACT_ENDS + 1.0)) - 0.05
    odds = np.linspace(ends, -ends, 1500)
    a = (num_samples + 1.0) * special.expit(odds)
    b = (num_samples + 1.0) * special.expit(-odds)
    p, q = special.betaincinv(a, b, alpha), special.betainccinv(b, a, alpha)
    quantile = np.where(p < 0.5, special.ndtri(p), -special.ndtri(q))
    return interpolate.CubicSpline(odds, quantile)
