"""Norm constants, converted radii and inclusion of balls, against mpmath and explicit vectors."""

import math
from itertools import combinations, pairwise, product

import mpmath
import numpy as np
import pytest

import jaxsmooth

INF = math.inf
EXPONENTS = (1.0, 1.25, 2.0, 3.0, 17.0, INF)
DIMENSIONS = (1, 2, 3, 10, 3072, 150528)
PAIRS = list(product(EXPONENTS, EXPONENTS))

mp = mpmath.mp.clone()
mp.dps = 40


def exact_constant(p, q, dimension):
    """max(1, d^(1/p - 1/q)) for exactly these floats."""
    inverse = [mp.mpf(0) if e == INF else 1 / mp.mpf(e) for e in (p, q)]
    return max(mp.mpf(1), mp.mpf(dimension) ** (inverse[0] - inverse[1]))


def extremal_vector(p, q, dimension):
    """A vector with |x|_p = c |x|_q for the least c."""
    x = np.ones(dimension)
    if p >= q:
        x[1:] = 0.0
    return x


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_six_named_constants(dimension):
    d = dimension
    named = {
        (INF, 1): 1.0,
        (1, INF): d,
        (INF, 2): 1.0,
        (2, INF): math.sqrt(d),
        (2, 1): 1.0,
        (1, 2): math.sqrt(d),
    }
    for (p, q), value in named.items():
        np.testing.assert_allclose(jaxsmooth.norm_constant(p, q, d), value, rtol=1e-15)


@pytest.mark.parametrize(("p", "q"), PAIRS)
def test_constant_against_mpmath(p, q):
    for d in (*DIMENSIONS, 10**12):
        assert abs(jaxsmooth.norm_constant(p, q, d) / exact_constant(p, q, d) - 1) < 1e-14


@pytest.mark.parametrize(("p", "q"), PAIRS)
@pytest.mark.parametrize("dimension", [1, 2, 3, 10, 3072])
def test_constant_is_attained_and_never_violated(p, q, dimension):
    constant = jaxsmooth.norm_constant(p, q, dimension)
    x = extremal_vector(p, q, dimension)
    np.testing.assert_allclose(np.linalg.norm(x, p), constant * np.linalg.norm(x, q), rtol=1e-12)
    rng = np.random.default_rng(0)
    for draw in (rng.standard_normal, rng.standard_cauchy, rng.standard_exponential):
        for x in draw((20, dimension)):
            assert np.linalg.norm(x, p) <= constant * np.linalg.norm(x, q) * (1 + 1e-12)


def test_published_conversions():
    np.testing.assert_allclose(jaxsmooth.convert_radius(1.0, 2, INF, 3072), 0.0180421959121758, rtol=1e-12)
    np.testing.assert_allclose(jaxsmooth.convert_radius(1.0, 2, INF, 150528), 0.00257745655888226, rtol=1e-12)


@pytest.mark.parametrize(("from_norm", "to_norm"), PAIRS)
def test_converted_radius_is_largest_and_not_rounded_up(from_norm, to_norm):
    radii = np.concatenate([[0.0, 1.0, 1e-290, 1e300], np.random.default_rng(1).exponential(size=50)])
    for d in (*DIMENSIONS, 10**12):
        converted = jaxsmooth.convert_radius(radii, from_norm, to_norm, d)
        constant = exact_constant(from_norm, to_norm, d)
        for radius, value in zip(radii, converted, strict=True):
            exact = mp.mpf(radius) / constant
            assert exact * (1 - mp.mpf("1e-13")) <= mp.mpf(value) <= exact


def test_smallest_floats_are_not_rounded_up():
    radii = np.array([1, 2, 3, 7]) * 5e-324
    converted = jaxsmooth.convert_radius(radii, 2, INF, 2)
    assert all(mp.mpf(c) <= mp.mpf(r) / mp.sqrt(2) for r, c in zip(radii, converted, strict=True))


@pytest.mark.parametrize(("from_norm", "to_norm"), [(p, q) for p, q in PAIRS if q <= p])
def test_smaller_exponent_keeps_the_radius(from_norm, to_norm):
    radii = np.random.default_rng(2).exponential(size=20)
    np.testing.assert_array_equal(jaxsmooth.convert_radius(radii, from_norm, to_norm, 3072), radii)


def test_shapes_and_ends():
    assert isinstance(jaxsmooth.convert_radius(0.3, 2, INF, 4), np.float64)
    assert jaxsmooth.convert_radius(np.ones((2, 3)), 2, INF, 4).shape == (2, 3)
    assert jaxsmooth.convert_radius([1.0, 2.0], 2, INF, 4).dtype == np.float64
    assert jaxsmooth.convert_radius(0.0, 2, INF, 4) == 0.0
    assert jaxsmooth.convert_radius(INF, 2, INF, 4) == INF


@pytest.mark.parametrize("dimension", [2, 3, 10, 784, 3072, 150528])
def test_chain_of_balls(dimension):
    """B1(1) in B2(1) in Binf(1) in B2(sqrt d) in B1(d); each neighbour touches the next."""
    d = dimension
    chain = [(1, 1.0), (2, 1.0), (INF, 1.0), (2, math.sqrt(d)), (1, float(d))]
    for (inner, inner_radius), (outer, outer_radius) in combinations(chain, 2):
        assert jaxsmooth.ball_contains(outer, outer_radius, inner, inner_radius, d) is True
        assert jaxsmooth.ball_contains(inner, inner_radius, outer, outer_radius, d) is False
    for (inner, inner_radius), (outer, outer_radius) in pairwise(chain):
        assert jaxsmooth.ball_contains(outer, outer_radius * (1 - 1e-9), inner, inner_radius, d) is False


@pytest.mark.parametrize(("outer", "inner"), PAIRS)
def test_inclusion_against_points(outer, inner):
    """Inclusion holds for random points of the inner ball; without it, an extremal vector gets out."""
    rng = np.random.default_rng(3)
    for d in (1, 2, 5):
        for inner_radius, outer_radius in rng.exponential(size=(20, 2)):
            points = rng.standard_normal((20, d))
            points = np.vstack([points, extremal_vector(outer, inner, d)])
            points *= inner_radius / np.linalg.norm(points, inner, axis=1, keepdims=True)
            lengths = np.linalg.norm(points, outer, axis=1)
            inside = jaxsmooth.ball_contains(outer, outer_radius, inner, inner_radius, d)
            assert inside == np.all(lengths <= outer_radius * (1 + 1e-12))


@pytest.mark.parametrize(("from_norm", "to_norm"), PAIRS)
def test_converted_ball_is_inside_and_touches(from_norm, to_norm):
    for d in DIMENSIONS:
        radius = jaxsmooth.convert_radius(0.7, from_norm, to_norm, d)
        assert jaxsmooth.ball_contains(from_norm, 0.7, to_norm, radius, d)
        assert not jaxsmooth.ball_contains(from_norm, 0.7, to_norm, radius * (1 + 1e-9), d)


def test_empty_and_infinite_balls():
    assert jaxsmooth.ball_contains(2, 0.0, INF, 0.0, 5)
    assert not jaxsmooth.ball_contains(2, 0.0, INF, 1e-300, 5)
    assert jaxsmooth.ball_contains(2, INF, INF, 1.0, 5)
    assert not jaxsmooth.ball_contains(2, 1.0, INF, INF, 5)
