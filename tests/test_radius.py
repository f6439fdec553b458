"""Theorem 1, statement by statement, against 40-digit quantiles, SciPy densities and enumeration."""

import functools
import math
from itertools import combinations

import mpmath
import numpy as np
import pytest
from scipy import special, stats

import jaxsmooth

mp = mpmath.mp.clone()
mp.dps = 50

SIGMAS = (0.12, 0.25, 0.5, 1.0, 3.7)


@functools.lru_cache(None)
def exact_quantile(p):
    """Phi^-1 of exactly this float: Newton's method in mpmath, which doubles the digits each time."""
    p = mp.mpf(p)
    if p in (0, 1):
        return -mp.inf if p == 0 else mp.inf
    if p == 0.5:
        return mp.mpf(0)
    if p > 0.5:
        return _lower_quantile(1 - p) * -1
    return _lower_quantile(p)


def _lower_quantile(p):
    x = mp.mpf(float(special.ndtri(float(p))))
    for _ in range(3):
        x += (p - mp.ncdf(x)) / mp.npdf(x)
    assert abs(mp.ncdf(x) / p - 1) < 1e-40
    return x


def grid():
    """Probabilities over the whole of (0, 1), thick at the middle and at both ends."""
    tiny = 10.0 ** -np.arange(1, 17, 0.5)
    near_half = 0.5 - np.concatenate([tiny, 2.0 ** -np.arange(45, 55)])
    half = np.concatenate([np.linspace(0.01, 0.49, 25), tiny[1:], [1e-30, 1e-100, 1e-300], near_half])
    half = half[(half > 0) & (half < 0.5)]
    return np.unique(np.concatenate([half, [0.5], 1.0 - half[half > 1e-16]]))


@pytest.mark.parametrize(
    ("p_a", "p_b", "sigma", "value"),
    [
        (0.9, 0.1, 0.5, 0.640775782772300),
        (0.45, 0.3, 0.5, 0.0996847914632417),
        (0.999, 0.0005, 0.25, 0.797594879707464),
    ],
)
def test_published_radii(p_a, p_b, sigma, value):
    np.testing.assert_allclose(jaxsmooth.certified_radius(p_a, p_b, sigma=sigma), value, rtol=1e-12)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_one_sided_radius_against_mpmath(sigma):
    p = grid()
    for value, radius in zip(p, jaxsmooth.certified_radius(p, sigma=sigma), strict=True):
        exact = max(mp.mpf(0), mp.mpf(sigma) * exact_quantile(value))
        assert exact - 1e-9 <= mp.mpf(radius) <= exact


def test_two_sided_radius_against_mpmath():
    p = grid()
    p_a, p_b = (side.ravel() for side in np.meshgrid(p, p))
    allowed = [mp.mpf(a) + mp.mpf(b) <= 1 for a, b in zip(p_a, p_b, strict=True)]
    p_a, p_b = p_a[allowed], p_b[allowed]
    assert p_a.size > 5000
    radii = jaxsmooth.certified_radius(p_a, p_b, sigma=0.25)
    for a, b, radius in zip(p_a, p_b, radii, strict=True):
        exact = max(mp.mpf(0), (exact_quantile(a) - exact_quantile(b)) / 8)
        assert exact - 1e-9 <= mp.mpf(radius) <= exact


@pytest.mark.parametrize("p_a", [1e-300, 1e-9, 0.1, 0.3, 0.45, 0.4999999, 0.5])
def test_nearly_equal_probabilities(p_a):
    """The difference of two quantiles that share nearly all their digits is not rounded up."""
    below = np.concatenate([p_a * (1 - 10.0 ** -np.arange(1, 16)), [np.nextafter(p_a, 0)]])
    for p_b, radius in zip(below, jaxsmooth.certified_radius(p_a, below, sigma=1.0), strict=True):
        exact = (exact_quantile(p_a) - exact_quantile(p_b)) / 2
        assert exact - 1e-9 <= mp.mpf(radius) <= exact
    assert jaxsmooth.certified_radius(p_a, p_a, sigma=1.0) == 0.0
    assert jaxsmooth.certified_radius(below, p_a, sigma=1.0).max() == 0.0


def test_extremes():
    radius = functools.partial(jaxsmooth.certified_radius, sigma=0.5)
    assert radius(1.0) == radius(1.0, 0.0) == math.inf
    assert radius(0.0) == radius(0.5) == radius(0.0, 0.0) == radius(0.0, 1.0) == 0.0
    assert radius(0.3, 0.7) == radius(0.0, 0.5) == 0.0
    assert radius(np.nextafter(1.0, 0.0)) < 5.0


def test_radius_shapes():
    assert isinstance(jaxsmooth.certified_radius(0.9, sigma=1.0), np.float64)
    assert isinstance(jaxsmooth.certified_radius(0.9, 0.1, sigma=1.0), np.float64)
    p_a, p_b = np.full((3, 1), 0.7), np.full((1, 4), 0.2)
    radii = jaxsmooth.certified_radius(p_a, p_b, sigma=1.0)
    assert radii.shape == (3, 4)
    assert radii.dtype == np.float64
    assert np.all(radii == jaxsmooth.certified_radius(0.7, 0.2, sigma=1.0))
    assert jaxsmooth.certified_radius([0.7, 0.8], sigma=1.0).shape == (2,)


def test_radius_is_monotone():
    p = grid()
    assert np.all(np.diff(jaxsmooth.certified_radius(p, sigma=1.0)) >= 0)
    assert np.all(np.diff(jaxsmooth.certified_radius(0.5, p[p <= 0.5], sigma=1.0)) <= 0)


@pytest.mark.parametrize(("bound", "sign"), [("lower", -1), ("upper", 1)])
def test_shifted_probability_against_mpmath(bound, sign):
    p = np.array([1e-12, 1e-3, 0.1, 0.4999, 0.5, 0.7, 0.9, 0.999, 1 - 1e-12])
    for sigma in SIGMAS:
        for distance in (0.0, 1e-6, 0.1, 0.5, 1.7):
            values = jaxsmooth.probability_after_shift(p, distance, sigma=sigma, bound=bound)
            for before, after in zip(p, values, strict=True):
                shift = sign * mp.mpf(distance) / mp.mpf(sigma)
                exact = mp.ncdf(exact_quantile(before) + shift)
                assert abs(mp.mpf(after) - exact) <= 1e-11 * min(exact, 1 - exact) + 2e-16


def test_shifted_probability_at_the_ends():
    after = functools.partial(jaxsmooth.probability_after_shift, sigma=0.5)
    for bound, limit in (("lower", 0.0), ("upper", 1.0)):
        np.testing.assert_array_equal(after([0.0, 1.0], 3.0, bound=bound), [0.0, 1.0])
        np.testing.assert_allclose(after([0.2, 0.7], 0.0, bound=bound), [0.2, 0.7], rtol=1e-14)
        assert after(0.5, 1e6, bound=bound) == limit
    assert after(np.full((2, 1), 0.5), np.ones(3), bound="lower").shape == (2, 3)
    assert isinstance(after(0.5, 1.0, bound="lower"), np.float64)


@pytest.mark.parametrize(("p_a", "p_b"), [(0.9, 0.1), (0.45, 0.3), (0.999, 0.0005), (0.7, 0.2), (0.51, 0.49)])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_shifted_probabilities_cross_at_the_radius(p_a, p_b, sigma):
    """The bound is tight: A still wins just inside R and has lost just outside."""

    def margin(distance):
        lower = jaxsmooth.probability_after_shift(p_a, distance, sigma=sigma, bound="lower")
        return lower - jaxsmooth.probability_after_shift(p_b, distance, sigma=sigma, bound="upper")

    radius = jaxsmooth.certified_radius(p_a, p_b, sigma=sigma)
    assert abs(margin(radius)) < 1e-12
    assert margin(radius * (1 - 1e-6)) > 1e-9
    assert margin(radius * (1 + 1e-6)) < -1e-9


@pytest.mark.parametrize(("bound", "p"), [("lower", 0.8), ("upper", 0.15), ("lower", 0.31)])
def test_half_space_probabilities_by_monte_carlo(bound, p):
    """Exact binomial tests before and after the shift; false alarm at most 2e-6 for each case."""
    rng = np.random.default_rng(4)
    sigma, d, draws = 0.5, 6, 200_000
    x, shift = rng.normal(size=d), 0.3 * rng.normal(size=d)
    after = jaxsmooth.probability_after_shift(p, np.linalg.norm(shift), sigma=sigma, bound=bound)
    assert after < p if bound == "lower" else after > p
    for centre, probability in ((x, p), (x + shift, float(after))):
        z = centre + sigma * rng.standard_normal((draws, d))
        inside = jaxsmooth.half_space_contains(z, x, shift, p, sigma=sigma, bound=bound)
        assert stats.binomtest(int(inside.sum()), draws, probability).pvalue > 1e-6


def test_half_spaces_cross_at_the_radius_by_monte_carlo():
    """At distance R both classes are equally likely; false alarm at most 1e-6."""
    rng = np.random.default_rng(5)
    p_a, p_b, sigma, draws = 0.6, 0.25, 0.25, 400_000
    x, direction = rng.normal(size=3), rng.normal(size=3)
    shift = direction / np.linalg.norm(direction) * jaxsmooth.certified_radius(p_a, p_b, sigma=sigma)
    z = x + shift + sigma * rng.standard_normal((draws, 3))
    in_a = jaxsmooth.half_space_contains(z, x, shift, p_a, sigma=sigma, bound="lower")
    in_b = jaxsmooth.half_space_contains(z, x, shift, p_b, sigma=sigma, bound="upper")
    assert not np.any(in_a & in_b)
    wins, losses = int(in_a.sum()), int(in_b.sum())
    assert stats.binomtest(wins, wins + losses, 0.5).pvalue > 1e-6


@pytest.mark.parametrize("bound", ["lower", "upper"])
def test_half_space_is_the_published_inequality(bound):
    """Membership along the direction d, by the formula of the proof, on an arbitrary axis."""
    x, shift, sigma, p = np.array([1.0, -2.0]), np.array([3.0, 4.0]), 0.5, 0.8
    along = np.linspace(-2, 2, 81)[:, None] * shift / 5 + np.array([4.0, -3.0])  # the last is orthogonal
    projection = along @ shift
    edge = sigma * 5 * stats.norm.ppf(p if bound == "lower" else 1 - p)
    expected = projection <= edge if bound == "lower" else projection >= edge
    inside = jaxsmooth.half_space_contains(x + along, x, shift, p, sigma=sigma, bound=bound)
    np.testing.assert_array_equal(inside, expected)
    assert 0 < inside.sum() < inside.size


def test_half_space_ends_and_shapes():
    z = np.random.default_rng(6).normal(size=(2, 3, 4))
    for bound in ("lower", "upper"):
        contains = functools.partial(
            jaxsmooth.half_space_contains, z, np.zeros(4), np.ones(4), sigma=1.0, bound=bound
        )
        assert contains(0.5).shape == (2, 3)
        assert contains(1.0).all()
        assert not contains(0.0).any()
    inside = jaxsmooth.half_space_contains([0.1], [0.0], [1.0], 0.9, sigma=1.0, bound="lower")
    assert isinstance(inside, np.bool_)


def test_likelihood_ratio_against_densities():
    rng = np.random.default_rng(7)
    for d, sigma in ((1, 0.25), (3, 1.0), (8, 2.0)):
        mean, shift = rng.normal(size=d), rng.normal(size=d) * sigma
        z = mean + 2 * sigma * rng.normal(size=(50, d))
        after = stats.multivariate_normal(mean + shift, sigma**2 * np.eye(d)).logpdf(z)
        before = stats.multivariate_normal(mean, sigma**2 * np.eye(d)).logpdf(z)
        ratio = jaxsmooth.likelihood_ratio(z, mean, shift, sigma=sigma)
        np.testing.assert_allclose(ratio, np.exp(after - before), rtol=1e-11)


def test_likelihood_ratio_integrates_to_one():
    """The mean of m(Z) under the unshifted law is 1 (Gauss-Hermite quadrature)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    for sigma, shift in ((0.5, 0.4), (1.0, 1.5), (2.0, -1.0)):
        ratio = jaxsmooth.likelihood_ratio(0.3 + sigma * nodes[:, None], [0.3], [shift], sigma=sigma)
        np.testing.assert_allclose(weights @ ratio / weights.sum(), 1.0, rtol=1e-12)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.93])
def test_level_sets_of_the_ratio_are_half_spaces(p):
    """{m <= t} is A and {m >= t'} is B, for the t at which each carries probability p."""
    rng = np.random.default_rng(8)
    sigma, x, shift = 0.7, rng.normal(size=4), rng.normal(size=4)
    z = x + sigma * rng.standard_normal((2000, 4))
    ratio = jaxsmooth.likelihood_ratio(z, x, shift, sigma=sigma)
    length = np.linalg.norm(shift) / sigma
    for bound, quantile in (("lower", stats.norm.ppf(p)), ("upper", stats.norm.ppf(1 - p))):
        level = math.exp(length * quantile - length**2 / 2)
        inside = jaxsmooth.half_space_contains(z, x, shift, p, sigma=sigma, bound=bound)
        np.testing.assert_array_equal(inside, ratio <= level if bound == "lower" else ratio >= level)


@pytest.mark.parametrize("distance", [0.1, 0.5, 2.0])
def test_neyman_pearson_by_enumeration(distance):
    """Of all unions of 12 equally likely cells, those at either end are extreme after the shift."""
    cells, sigma = 12, 0.5
    edges = sigma * stats.norm.ppf(np.linspace(0, 1, cells + 1))
    shifted = np.diff(stats.norm.cdf(edges, loc=distance, scale=sigma))
    for size in range(1, cells):
        masses = [shifted[list(chosen)].sum() for chosen in combinations(range(cells), size)]
        for bound, extreme in (("lower", min(masses)), ("upper", max(masses))):
            bound_value = jaxsmooth.probability_after_shift(size / cells, distance, sigma=sigma, bound=bound)
            np.testing.assert_allclose(bound_value, extreme, rtol=1e-10)


def test_smoothed_intervals_never_beat_the_bound():
    """Bounds hold for arbitrary one-dimensional classifiers (unions of intervals), at any shift."""
    rng = np.random.default_rng(9)
    for _ in range(200):
        edges, sigma = np.sort(rng.normal(size=6)), rng.uniform(0.2, 2)
        mass = [np.diff(stats.norm.cdf(edges, loc=s, scale=sigma))[::2].sum() for s in (0.0, 0.3, -1.1)]
        for shift, after in zip((0.3, 1.1), mass[1:], strict=True):
            low, high = (
                jaxsmooth.probability_after_shift(mass[0], shift, sigma=sigma, bound=b)
                for b in ("lower", "upper")
            )
            assert low - 1e-12 <= after <= high + 1e-12
