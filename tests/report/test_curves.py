import math
from fractions import Fraction

import numpy as np
import pytest

from jaxsmooth.report import curves
from jaxsmooth.report.outcomes import Outcomes
from jaxsmooth.validation import InputError


def made_up(seed: int, num_examples: int) -> Outcomes:
    """Radii on a coarse grid, so that many are equal and many equal the radii asked for."""
    rng = np.random.default_rng(seed)
    prediction = rng.integers(-1, 4, num_examples)
    return Outcomes(
        "made up",
        index=np.arange(num_examples),
        label=rng.integers(0, 4, num_examples),
        prediction=prediction,
        radius=np.where(prediction < 0, 0.0, rng.integers(0, 20, num_examples) / 10),
        p_a_lower=rng.integers(0, 50, num_examples) / 50,
    )


@pytest.mark.parametrize("seed", range(5))
def test_certified_counts_are_those_of_a_loop(seed):
    outcomes = made_up(seed, 97)
    radii = [0.0, 0.1, 0.3, 0.30000000000000004, 0.7, 1.9, 2.0]
    rows = list(zip(outcomes.label, outcomes.prediction, outcomes.radius, strict=True))
    expected = [sum(1 for label, pred, radius in rows if label == pred and radius >= r) for r in radii]
    assert curves.certified_counts(outcomes, radii).tolist() == expected


def test_average_certified_radius_is_exact():
    # 0.1 + 0.2 + 0.3 and its third are not what they seem in floating point.
    outcomes = Outcomes("a", [0, 1, 2, 3], [0, 0, 0, 0], [0, 0, 0, 1], [0.1, 0.2, 0.3, 9.0])
    assert curves.average_certified_radius(outcomes) == Fraction(15, 100)


def test_p_a_quantiles_are_the_next_value_down():
    outcomes = made_up(3, 41)
    values = sorted(outcomes.p_a_lower.tolist())
    expected = [values[math.floor(q * 40)] for q in (0, 0.1, 0.5, 0.99, 1)]
    assert curves.p_a_quantiles(outcomes, (0, 0.1, 0.5, 0.99, 1)).tolist() == expected


def test_p_a_quantiles_need_the_bounds():
    with pytest.raises(InputError, match="p_a_lower is not known for a"):
        curves.p_a_quantiles(Outcomes("a", [0], [0], [0], [1.0]), [0.5])


@pytest.mark.parametrize("seed", range(3))
def test_the_curve_is_certified_accuracy_everywhere(seed):
    outcomes = made_up(seed, 60)
    curve = curves.certified_accuracy_curve(outcomes)
    for r in np.linspace(0.0, 2.5, 173):
        step = np.searchsorted(curve.radius, r, side="left")
        value = curve.accuracy[step] if step < curve.radius.size else 0.0
        assert value == np.mean((outcomes.prediction == outcomes.label) & (outcomes.radius >= r))


def test_a_curve_without_a_correct_example_is_flat():
    curve = curves.certified_accuracy_curve(Outcomes("a", [0, 1], [0, 0], [1, -1], [0.5, 0.0]))
    assert curve.radius.tolist() == [0.0]
    assert curve.accuracy.tolist() == [0.0]


def test_band_half_width_by_hand():
    # log(2 / 0.05) = log 40 = 3.688879454113936
    assert curves.band_half_width(500) == pytest.approx(math.sqrt(3.688879454113936 / 1000), rel=1e-14)
    assert curves.band_half_width(200, confidence=0.99) == pytest.approx(
        math.sqrt(math.log(200) / 400), rel=1e-14
    )


def test_the_band_covers_the_true_curve():
    """Radii uniform on [0, 1] for 7 examples in 10, the rest wrong: the true curve is 0.7 (1 - r).

    A band leaves the true curve out with probability at most 0.05; with 1000 trials, more than 0.078 of them failing
    is four standard errors above that: false alarm below 1e-4.
    """
    rng = np.random.default_rng(0)
    size, failures = 40, 0
    for _ in range(1000):
        right = rng.random(size) < 0.7
        radius = rng.random(size)
        outcomes = Outcomes("a", np.arange(size), np.zeros(size, int), np.where(right, 0, 1), radius)
        curve = curves.certified_accuracy_curve(outcomes)
        # On (radius[i-1], radius[i]] the true curve falls from its value at the left end to that at the right.
        left = 0.7 * (1 - np.concatenate([[0.0], curve.radius[:-1]]))
        at_right = 0.7 * (1 - curve.radius)
        beyond = 0.7 * (1 - curve.radius[-1]) > curves.band_half_width(size)
        failures += bool(np.any(curve.upper < left) or np.any(curve.lower > at_right) or beyond)
    assert failures / 1000 <= 0.078


@pytest.mark.parametrize("arguments", [(0, 0.95), (10, 1.0), (10, 0.0)])
def test_band_refuses(arguments):
    with pytest.raises(InputError):
        curves.band_half_width(arguments[0], confidence=arguments[1])


def test_negative_radius_is_refused():
    with pytest.raises(InputError, match="radii must be at least 0, got -1"):
        curves.certified_counts(Outcomes("a", [0], [0], [0], [1.0]), [0, -1])
