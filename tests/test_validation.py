"""Bad input, one by one: each is refused in a single line that names the argument and the value."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsmooth
from jaxsmooth import confidence
from jaxsmooth import noise as noise_lib

NAN, INF = math.nan, math.inf


def bounds(count=5, num_samples=10, alpha=0.01, bound="lower"):
    return jaxsmooth.clopper_pearson(count, num_samples, alpha, bound=bound)


def radius(p_a_lower=0.8, p_b_upper=0.1, sigma=0.5):
    return jaxsmooth.certified_radius(p_a_lower, p_b_upper, sigma=sigma)


def after_shift(p=0.8, distance=0.1, sigma=0.5, bound="lower"):
    return jaxsmooth.probability_after_shift(p, distance, sigma=sigma, bound=bound)


def half_space(z=(0.0, 0.0), x=(0.0, 0.0), shift=(1.0, 0.0), p=0.8, sigma=0.5, bound="lower"):
    return jaxsmooth.half_space_contains(z, x, shift, p, sigma=sigma, bound=bound)


def ratio(z=(0.0, 0.0), mean=(0.0, 0.0), shift=(1.0, 0.0), sigma=0.5):
    return jaxsmooth.likelihood_ratio(z, mean, shift, sigma=sigma)


def constant(p=2, q=1, dimension=3):
    return jaxsmooth.norm_constant(p, q, dimension)


def convert(radius=1.0, from_norm=2, to_norm=INF, dimension=3):
    return jaxsmooth.convert_radius(radius, from_norm, to_norm, dimension)


def contains(outer_norm=2, outer_radius=2.0, inner_norm=1, inner_radius=1.0, dimension=3):
    return jaxsmooth.ball_contains(outer_norm, outer_radius, inner_norm, inner_radius, dimension)


def table(num_samples=10, alpha=0.01):
    return confidence.bound_table(num_samples, alpha)


def wins(num_trials=10, alpha=0.01):
    return confidence.binomial_test_table(num_trials, alpha)


def largest(num_samples=10, alpha=0.01):
    return confidence.largest_bound(num_samples, alpha)


def least(alpha=0.01):
    return confidence.least_num_samples(alpha)


def gaussian(sigma=0.5):
    return jaxsmooth.Gaussian(sigma)


def from_name(name="gaussian", scale=0.5):
    return noise_lib.from_name(name, scale)


def each(functions, argument, values):
    """Test cases: every function with every bad value of one argument."""
    return [(f, argument, value) for f in functions for value in values]


NOT_NUMBERS = ("0.5", None, 1j, [0.5, "a"])
PROBABILITIES = (-0.1, 1.5, -1e-9, 1 + 1e-9, NAN, INF, [0.5, 1.5], *NOT_NUMBERS)
LEVELS = (0, 1, 0.0, 1.0, 1.5, -0.001, NAN, INF, [0.01], "0.01", None)
SCALES = (0, 0.0, -1.0, NAN, INF, -INF, "1", None, [1.0])
COUNTS = (11, -1, 2.5, NAN, INF, -INF, [3, 11], [3, 2.5], "3", None)
SAMPLES = (0, -5, 2.5, NAN, INF, "10", None)
NORMS = (0.5, 0, -1, NAN, "l3", "2", "inf", None, [2])
DIMENSIONS = (0, -3, 2.5, NAN, INF, "3", None)
RADII = (-0.5, -1e-300, NAN, -INF, "1", None)
WORDS = ("both", "two-sided", "", None, 0, ["lower"])

BAD = [
    *each([bounds, table, wins, largest, least], "alpha", LEVELS),
    *each([radius, after_shift, half_space, ratio, gaussian], "sigma", SCALES),
    *each([bounds], "count", COUNTS),
    *each([bounds, table, largest], "num_samples", SAMPLES),
    *each([wins], "num_trials", SAMPLES),
    *each([radius], "p_a_lower", PROBABILITIES),
    *each([radius], "p_b_upper", [v for v in PROBABILITIES if v is not None]),
    *each([after_shift, half_space], "p", PROBABILITIES),
    *each([after_shift], "distance", RADII),
    *each([half_space, ratio], "z", ([0.0, NAN], [0.0, INF], None)),
    *each([half_space], "x", ([0.0, NAN], [0.0, INF], None)),
    *each([ratio], "mean", ([0.0, NAN], [0.0, INF], None)),
    *each([half_space, ratio], "shift", ([0.0, NAN], [0.0, INF], None)),
    *each([constant], "p", NORMS),
    *each([constant], "q", NORMS),
    *each([convert], "from_norm", NORMS),
    *each([convert], "to_norm", NORMS),
    *each([contains], "outer_norm", NORMS),
    *each([contains], "inner_norm", NORMS),
    *each([constant, convert, contains], "dimension", DIMENSIONS),
    *each([convert], "radius", RADII),
    *each([contains], "outer_radius", RADII),
    *each([contains], "inner_radius", RADII),
    *each([bounds, after_shift, half_space], "bound", WORDS),
    *each([from_name], "name", ("laplace", "Gaussian", "", None)),
    *each([from_name], "scale", (0.0, -1.0, NAN, INF)),
]


def refusal(function, *args, **kwargs):
    """The message of the refusal, after checking its kind and its form."""
    with pytest.raises(jaxsmooth.InputError) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert message
    assert "\n" not in message
    return message


def shown(value):
    """The texts by which a message may show a value: all of it or, of a list, the last and bad entry."""
    return [repr(value), *(shown(value[-1]) if isinstance(value, list) else [str(value) or "empty"])]


def test_input_error_is_a_value_error():
    assert issubclass(jaxsmooth.InputError, ValueError)


def test_the_calls_below_are_otherwise_good():
    for function in {case[0] for case in BAD}:
        function()


@pytest.mark.parametrize(("function", "argument", "value"), BAD)
def test_bad_input(function, argument, value):
    message = refusal(function, **{argument: value})
    name = {"name": "noise", "scale": "sigma"}.get(argument, argument)
    assert name in message.split()
    assert any(text in message for text in shown(value))


def test_one_voice():
    assert refusal(bounds, alpha=1.5) == "alpha must lie in (0, 1), got 1.5"


@pytest.mark.parametrize(
    ("p_a", "p_b"), [(0.6, 0.5), (1.0, 0.1), (0.5, 0.5 + 1e-9), ([0.5, 0.9], 0.2), (0.95, [0.01, 0.2])]
)
def test_probabilities_above_one_together(p_a, p_b):
    message = refusal(radius, p_a, p_b)
    assert "p_a_lower + p_b_upper" in message
    assert str(np.max(p_a)) in message
    assert str(np.max(p_b)) in message


def test_rounding_of_the_complement_is_forgiven():
    p = np.random.default_rng(0).uniform(size=1000)
    radius(p, 1 - p)


def test_shift_of_zero():
    assert "shift" in refusal(half_space, shift=[0.0, 0.0])


def test_the_count_is_measured_against_its_own_number_of_samples():
    message = refusal(bounds, count=[5, 15], num_samples=[10, 12])
    assert "15" in message
    assert "12" in message


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (bounds, {"count": [1, 2], "num_samples": [10, 20, 30]}),
        (radius, {"p_a_lower": [0.5, 0.6], "p_b_upper": [0.1, 0.1, 0.1]}),
        (after_shift, {"p": [0.5, 0.6], "distance": [0.1, 0.1, 0.1]}),
        (half_space, {"z": np.zeros(3), "x": np.zeros(2)}),
        (ratio, {"z": np.zeros(3), "mean": np.zeros(2)}),
        (table, {"num_samples": [10, 20]}),
        (wins, {"num_trials": [10, 20]}),
        (contains, {"outer_radius": [1.0, 2.0]}),
    ],
)
def test_bad_shapes(function, arguments):
    """Arrays that do not fit are a mistake like any other: a line that names the argument."""
    message = refusal(function, **arguments)
    assert any(name in message for name in arguments)


@pytest.mark.parametrize(
    ("function", "argument"),
    [
        (bounds, "alpha"),
        (gaussian, "sigma"),
        (radius, "p_a_lower"),
        (bounds, "count"),
        (constant, "dimension"),
    ],
)
def test_large_arrays_of_the_wrong_kind_fit_on_a_line(function, argument):
    assert argument in refusal(function, **{argument: np.full((40, 40), "a")})


TRACED = [
    *((bounds, name) for name in ("count", "num_samples", "alpha")),
    *((radius, name) for name in ("p_a_lower", "p_b_upper", "sigma")),
    *((after_shift, name) for name in ("p", "distance", "sigma")),
    *((half_space, name) for name in ("p", "sigma")),
    *((convert, name) for name in ("radius", "from_norm", "dimension")),
    *((contains, name) for name in ("outer_radius", "inner_radius", "dimension")),
    *((constant, name) for name in ("p", "q", "dimension")),
    *((table, name) for name in ("num_samples", "alpha")),
    *((wins, name) for name in ("num_trials", "alpha")),
    (ratio, "sigma"),
]


@pytest.mark.parametrize(("function", "argument"), TRACED)
def test_traced_values_are_refused(function, argument):
    """These functions run on the host; inside jit they say so, instead of failing in NumPy."""

    def traced(value):
        function(**{argument: value})
        return value

    message = refusal(jax.jit(traced), 1)
    assert argument in message.split()
    assert "traced" in message


@pytest.mark.parametrize(("function", "argument"), [(half_space, "z"), (half_space, "x"), (ratio, "mean")])
def test_traced_points_are_refused(function, argument):
    def traced(value):
        function(**{argument: value})
        return value

    assert argument in refusal(jax.jit(traced), jnp.zeros(2)).split()


def test_traced_radius_of_noise():
    message = refusal(jax.jit(lambda noise: noise.radius(0.9)), jaxsmooth.Gaussian(0.5))
    assert "sigma" in message
    assert "traced" in message


def test_nothing_is_traced_away():
    """Constants of a traced program are known, and the functions work on them."""

    @functools.partial(jax.jit, static_argnames="sigma")
    def traced(value, sigma):
        return value * float(jaxsmooth.certified_radius(0.9, sigma=sigma))

    np.testing.assert_allclose(traced(1.0, sigma=0.5), jaxsmooth.certified_radius(0.9, sigma=0.5), rtol=1e-6)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (bounds, {"count": 3.0, "num_samples": np.int32(10), "alpha": np.float32(0.25)}),
        (bounds, {"count": jnp.array([3, 4]), "num_samples": 10}),
        (bounds, {"count": np.array([3], np.uint8)}),
        (radius, {"p_a_lower": jnp.float32(0.5), "sigma": np.float32(0.5)}),
        (radius, {"p_a_lower": [0.5, 1], "p_b_upper": 0}),
        (constant, {"p": np.int64(2), "q": INF, "dimension": np.int32(5)}),
        (convert, {"radius": [0, INF]}),
        (gaussian, {"sigma": jnp.float32(0.5)}),
        (gaussian, {"sigma": 1}),
        (table, {"num_samples": np.int32(5), "alpha": np.float64(0.25)}),
    ],
)
def test_good_input_of_many_kinds(function, arguments):
    function(**arguments)
