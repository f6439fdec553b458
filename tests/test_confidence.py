"""Binomial bounds and tables, against tails of the binomial law summed to 40 digits.

A lower bound L for k successes in n trials at level a is right when P_L(X >= k) <= a, and close to
the exact root when the same tail exceeds a at a slightly larger p. Neither check needs the root.
"""

import functools
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from scipy import special, stats

import jaxsmooth
from jaxsmooth import confidence

ALPHAS = (0.05, 1e-3, 2e-5)

mp = mpmath.mp.clone()
mp.dps = 55
_BITS = 190  # fixed point, about 57 digits


@functools.lru_cache(None)
def log_factorial(n):
    return mp.loggamma(n + 1)


def upper_tail(k, n, p):
    """P(Bin(n, p) >= k): the first term, times the sum of its ratios to the others in fixed point."""
    p = mp.mpf(p)
    if k <= 0 or k > n or p in (0, 1):
        return mp.mpf(k <= 0 or (p == 1 and k <= n))
    log_choose = log_factorial(n) - log_factorial(k) - log_factorial(n - k)
    first = mp.exp(log_choose) * p**k * (1 - p) ** (n - k)
    odds = int(mp.ldexp(p / (1 - p), _BITS))
    term = total = 1 << _BITS
    for j in range(k, n):
        term = (term * odds * (n - j) // (j + 1)) >> _BITS
        total += term
        if term < total >> 150 and j > n * p:
            break
    return first * mp.mpf(total) / 2**_BITS


def excess(probability, alpha):
    """Relative excess of a probability over a level, exact in the level."""
    return float(probability / mp.mpf(alpha) - 1)


def assert_right_and_close(k, n, alpha, p):
    """The bound is never above the exact one, and within 1e-11 of its smaller tail."""
    if k == 0:
        assert p == 0.0
        return
    assert 0.0 < p < 1.0
    assert excess(upper_tail(k, n, p), alpha) <= 0
    above = mp.mpf(p) + mp.mpf("1e-11") * min(mp.mpf(p), 1 - mp.mpf(p)) + (p > 0.5) * mp.mpf(2) ** -52
    assert excess(upper_tail(k, n, above), alpha) > 0


def assert_quantile_right_and_close(k, n, alpha, quantile):
    """The unit radius is never above the exact one, and less than 1e-9 below it."""
    if k == 0:
        assert quantile == -math.inf
        return
    assert excess(upper_tail(k, n, mp.ncdf(mp.mpf(quantile))), alpha) <= 0
    assert excess(upper_tail(k, n, mp.ncdf(mp.mpf(quantile) + mp.mpf("1e-9"))), alpha) > 0


def spread(n, size=12, seed=0):
    """Counts at both ends, where tables change their method, and at random."""
    rng = np.random.default_rng(seed)
    low = [0, 1, 2, 9, 100, 255, 256, 257, 1000]
    counts = np.concatenate([low, n - np.array(low), [n // 2, n // 2 + 1], rng.integers(0, n, size)])
    return np.unique(counts[(counts >= 0) & (counts <= n)]).astype(int)


@pytest.mark.parametrize(("n", "p"), [(1, 0.3), (7, 0.001), (12, 0.5), (40, 0.99), (60, 0.123)])
def test_the_oracle_itself(n, p):
    """The tail agrees with exact fractions."""
    exact = Fraction(p)
    terms = [math.comb(n, j) * exact**j * (1 - exact) ** (n - j) for j in range(n + 1)]
    for k in range(n + 1):
        total = sum(terms[k:])
        assert abs(upper_tail(k, n, p) / mp.mpf(total.numerator) * total.denominator - 1) < 1e-40


@pytest.mark.parametrize(
    ("count", "n", "alpha", "bound", "value"),
    [
        (100, 100, 0.001, "lower", 0.933254300796991),
        (990, 1000, 0.001, "lower", 0.976036187155311),
        (99000, 100000, 0.001, "lower", 0.988989340377475),
        (100000, 100000, 0.001, "lower", 0.999930924833009393),
        (0, 1000, 0.0005, "upper", 0.00757208865031),
    ],
)
def test_published_bounds(count, n, alpha, bound, value):
    computed = jaxsmooth.clopper_pearson(count, n, alpha, bound=bound)
    np.testing.assert_allclose(computed, value, rtol=1e-12)


@pytest.mark.parametrize(
    ("sigma", "radius"), [(0.25, 0.952864140847488), (0.5, 1.90572828169498), (1.0, 3.81145656338995)]
)
def test_published_largest_radius(sigma, radius):
    """All of 100,000 samples agree at alpha = .001."""
    unit = confidence.bound_table(100_000, 0.001).quantile[-1]
    np.testing.assert_allclose(sigma * unit, radius, rtol=1e-12)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("n", [1, 2, 50, 1000])
def test_every_count(n, alpha):
    table = confidence.bound_table(n, alpha)
    assert table.p_lower.shape == table.quantile.shape == (n + 1,)
    direct = jaxsmooth.clopper_pearson(np.arange(n + 1), n, alpha, bound="lower")
    np.testing.assert_allclose(direct, table.p_lower, rtol=1e-11)
    for k in range(n + 1):
        assert_right_and_close(k, n, alpha, table.p_lower[k])
        assert_quantile_right_and_close(k, n, alpha, table.quantile[k])


@pytest.mark.parametrize("alpha", ALPHAS)
def test_spread_of_counts_in_a_large_table(alpha):
    n = 100_000
    table = confidence.bound_table(n, alpha)
    for k in spread(n):
        assert_right_and_close(k, n, alpha, table.p_lower[k])
        assert_quantile_right_and_close(k, n, alpha, table.quantile[k])


@pytest.mark.parametrize("alpha", ALPHAS)
def test_large_table_against_scipy(alpha):
    """Every count of 100,000, to the accuracy of SciPy's own quantiles; and the direct function."""
    n, k = 100_000, np.arange(1, 100_001)
    table = confidence.bound_table(n, alpha)
    p, q = special.betaincinv(k, n - k + 1, alpha), special.betainccinv(n - k + 1, k, alpha)
    np.testing.assert_allclose(table.p_lower[1:], p, rtol=1e-11)
    quantile = np.where(p < 0.5, special.ndtri(p), -special.ndtri(q))
    np.testing.assert_allclose(table.quantile[1:], quantile, rtol=0, atol=1e-9)
    direct = jaxsmooth.clopper_pearson(k[::11], n, alpha, bound="lower")
    np.testing.assert_allclose(direct, table.p_lower[1::11], rtol=1e-11)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_ten_million_samples(alpha):
    n = 10_000_000
    counts = spread(n, size=2)
    for k, p in zip(counts, jaxsmooth.clopper_pearson(counts, n, alpha, bound="lower"), strict=True):
        assert_right_and_close(k, n, alpha, p)


@pytest.mark.slow
def test_table_of_ten_million_samples():
    n, alpha = 10_000_000, 0.001
    table = confidence.bound_table(n, alpha)
    assert table.p_lower.size == n + 1
    assert np.all(np.diff(table.p_lower) >= 0)
    assert np.all(np.diff(table.quantile[1:]) > 0)
    for k in spread(n, size=5, seed=1):
        assert_quantile_right_and_close(k, n, alpha, table.quantile[k])


@pytest.mark.parametrize("n", [1, 3, 17, 400, 20_000])
@pytest.mark.parametrize("alpha", [0.999, 0.5, 1e-9, 1e-30, 1e-100])
def test_unusual_levels(n, alpha):
    counts = spread(n, size=4)
    for k, p in zip(counts, jaxsmooth.clopper_pearson(counts, n, alpha, bound="lower"), strict=True):
        assert_right_and_close(k, n, alpha, p)


@pytest.mark.parametrize("alpha", [1e-160, 1e-200, 1e-300, 5e-324])
def test_absurd_levels_are_refused_or_right(alpha):
    """Levels near the end of float64's range give a sound bound or a clear refusal, never NaN."""
    for n in (10, 100, 300):
        try:
            bounds = jaxsmooth.clopper_pearson(np.arange(n + 1), n, alpha, bound="lower")
        except jaxsmooth.InputError as error:
            assert "alpha" in str(error)  # noqa: PT017
            continue
        for k, p in enumerate(bounds):
            assert 0 <= p < 1
            assert excess(upper_tail(k, n, p), alpha) <= 0 or k == 0


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("n", [1, 2, 50, 1000, 100_000])
def test_upper_bound(n, alpha):
    """P(X <= k) at the upper bound is at most alpha, and the bound mirrors the lower one."""
    counts = spread(n, size=4)
    upper = jaxsmooth.clopper_pearson(counts, n, alpha, bound="upper")
    mirrored = jaxsmooth.clopper_pearson(n - counts, n, alpha, bound="lower")
    np.testing.assert_allclose(upper, 1 - mirrored, rtol=0, atol=3e-16)
    for k, p in zip(counts, upper, strict=True):
        if k == n:
            assert p == 1.0
            continue
        q = 1 - mp.mpf(p)  # exact, where 1 - p in float64 would not be
        assert excess(upper_tail(n - k, n, q), alpha) <= 0
        inside = q + mp.mpf("1e-11") * min(q, 1 - q) + (p > 0.5) * mp.mpf(2) ** -52
        assert excess(upper_tail(n - k, n, inside + mp.mpf(2) ** -52 * (p < 0.5) * p), alpha) > 0


@pytest.mark.parametrize("bound", ["lower", "upper"])
@pytest.mark.parametrize("alpha", [0.05, 1e-3])
@pytest.mark.parametrize("n", [1, 5, 60, 300])
def test_exact_coverage(n, alpha, bound):
    """The enumerated probability that the bound fails is at most alpha, for every p of a grid.

    The grid has the hardest points, just beyond each bound, where the failure is alpha to ten digits.
    """
    bounds = jaxsmooth.clopper_pearson(np.arange(n + 1), n, alpha, bound=bound)
    hardest = np.nextafter(bounds, 0.0 if bound == "lower" else 1.0)
    hardest = hardest[(hardest > 0) & (hardest < 1)]
    failures = []
    for p in (*np.linspace(0.0, 1.0, 53), *hardest[:: max(1, n // 60)]):
        # The counts whose bound lies beyond p are an end of 0..n, because bounds grow with the count.
        if bound == "lower":
            wrong = int(np.searchsorted(bounds, p, side="right"))
            failure = upper_tail(wrong, n, p)
        else:
            wrong = n - int(np.searchsorted(bounds, p, side="left")) + 1
            failure = upper_tail(wrong, n, 1 - mp.mpf(p))
        failures.append(excess(failure, alpha))
    assert max(failures) <= 0
    assert max(failures) > -1e-6


def test_coverage_by_direct_enumeration():
    """The same over all counts one by one, with SciPy's probabilities (good to 1e-12)."""
    for n in (10, 100, 300):
        counts = np.arange(n + 1)
        p = np.linspace(0, 1, 201)[:, None]
        mass = stats.binom.pmf(counts, n, p)
        lower = jaxsmooth.clopper_pearson(counts, n, 0.001, bound="lower")
        upper = jaxsmooth.clopper_pearson(counts, n, 0.02, bound="upper")
        assert np.all((mass * (lower > p)).sum(axis=1) <= 0.001 * (1 + 1e-9))
        assert np.all((mass * (upper < p)).sum(axis=1) <= 0.02 * (1 + 1e-9))


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("n", [1, 2, 50, 1000, 5000, 100_000])
def test_monotone_in_the_count(n, alpha):
    table = confidence.bound_table(n, alpha)
    assert np.all(np.diff(table.p_lower) > 0)
    assert np.all(np.diff(table.quantile[1:]) > 0)
    assert np.all(table.p_lower < np.arange(n + 1) / n + (np.arange(n + 1) == 0))
    upper = jaxsmooth.clopper_pearson(np.arange(0, n + 1, 1 + n // 2000), n, alpha, bound="upper")
    assert np.all(np.diff(upper) > 0)


def test_monotone_in_the_level():
    levels = np.geomspace(1e-12, 0.9, 40)
    for k in (1, 30, 99, 100):
        lower = [jaxsmooth.clopper_pearson(k, 100, float(a), bound="lower") for a in levels]
        assert np.all(np.diff(lower) > 0)


def test_broadcasting_and_scalars():
    bound = functools.partial(jaxsmooth.clopper_pearson, alpha=0.01, bound="lower")
    assert isinstance(bound(3, 10), np.float64)
    assert isinstance(bound(3.0, np.int32(10)), np.float64)
    assert bound(np.array(3), 10) == bound(3, 10)
    grid = bound(np.array([[1], [2], [3]]), np.array([10, 20]))
    assert grid.shape == (3, 2)
    assert grid.dtype == np.float64
    for i, k in enumerate((1, 2, 3)):
        for j, n in enumerate((10, 20)):
            assert grid[i, j] == bound(k, n)
    assert bound([1, 2, 3], 10).shape == (3,)
    assert bound(5, [10, 20, 30, 40]).shape == (4,)
    assert bound(np.zeros((0,), int), 10).shape == (0,)
    upper = jaxsmooth.clopper_pearson([0, 10], [10, 10], 0.01, bound="upper")
    assert upper[1] == 1.0
    assert isinstance(jaxsmooth.clopper_pearson(3, 10, 0.01, bound="upper"), np.float64)


def test_tables_are_cached_and_read_only():
    first = confidence.bound_table(777, 0.01)
    assert confidence.bound_table(777, 0.01) is first
    assert confidence.bound_table(np.int64(777), np.float64(0.01)) is first
    wins = confidence.binomial_test_table(777, 0.01)
    assert confidence.binomial_test_table(777, 0.01) is wins
    for array in (*first, wins):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


@pytest.mark.parametrize("alpha", [0.3, 0.05, 1e-3, 2e-5, 1e-12])
def test_largest_bound_and_least_samples(alpha):
    """All samples agree: alpha^(1/n), which exceeds 1/2 from n > log2(1/alpha) on."""
    for n in (1, 2, 10, 1000, 10_000_000):
        assert_right_and_close(n, n, alpha, confidence.largest_bound(n, alpha))
        exact = mp.mpf(alpha) ** (mp.mpf(1) / n)
        assert exact - mp.mpf("3e-12") * (1 - exact) - mp.mpf(2) ** -52 <= mp.mpf(
            confidence.largest_bound(n, alpha)
        )
    least = int(mp.floor(-mp.log(mp.mpf(alpha), 2))) + 1
    assert confidence.least_num_samples(alpha) == least


@functools.lru_cache(None)
def exact_tails(m):
    """2^m P(Bin(m, 1/2) >= k) for k = 0..m+1, as whole numbers."""
    tails = [0]
    for k in range(m, -1, -1):
        tails.append(tails[-1] + math.comb(m, k))
    return tails[::-1]


@pytest.mark.parametrize("alpha", [0.9, 0.3, 0.05, 0.01, 1e-3, 1e-7, 1e-15])
def test_binomial_test_in_whole_numbers(alpha):
    """Least k with 2 P(Bin(m, 1/2) >= k) <= alpha, for all m up to 60, in exact arithmetic."""
    table = confidence.binomial_test_table(60, alpha)
    assert table.shape == (61,)
    assert table.dtype == np.int64
    for m in range(61):
        limit = Fraction(alpha) * 2**m / 2
        assert table[m] == next(k for k, tail in enumerate(exact_tails(m)) if tail <= limit)


@pytest.mark.parametrize("alpha", [0.5, 0.125, 2.0**-10])
def test_binomial_test_at_a_tie(alpha):
    """A tail exactly equal to the level is not significant: 2 P(Bin(4, 1/2) >= 4) = 1/8."""
    table = confidence.binomial_test_table(60, alpha)
    for m in range(61):
        limit = Fraction(alpha) * 2**m / 2
        assert table[m] == next(k for k, tail in enumerate(exact_tails(m)) if tail < limit)


@pytest.mark.parametrize("alpha", [0.05, 1e-3, 1e-9])
def test_binomial_test_against_scipy(alpha):
    table = confidence.binomial_test_table(100_000, alpha)
    for m in (61, 100, 999, 1000, 12_345, 99_999, 100_000):
        k = int(table[m])
        assert stats.binomtest(k, m, 0.5).pvalue <= alpha
        assert stats.binomtest(k - 1, m, 0.5).pvalue > alpha
    np.testing.assert_array_equal(table[:778], confidence.binomial_test_table(777, alpha))
    assert np.all(np.isin(np.diff(table), (0, 1)))
