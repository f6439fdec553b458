"""Theorem 1 of Cohen, Rosenfeld and Kolter (2019) and its proof, each statement as a function.

For eps ~ N(0, sigma^2 I) and a classifier with P(f(x+eps) = A) >= pA >= pB >= P(f(x+eps) = c) for
every other class c, the smoothed classifier answers A everywhere within R = sigma/2 (Phi^-1(pA) -
Phi^-1(pB)) of x, and no larger radius holds for all such classifiers. All functions are NumPy
float64 on the host.
"""

import numpy as np
from scipy import special

from jaxsmooth import validation

# scipy.special.ndtri is good to about 1e-15 relative; radii are lowered by more than that.
_ROUNDING = 1e-14


def certified_radius(
    p_a_lower: np.ndarray | float, p_b_upper: np.ndarray | float | None = None, *, sigma: float
) -> np.ndarray:
    """Radius of Theorem 1, ``sigma/2 (Phi^-1(pA) - Phi^-1(pB))``, rounded down.

    Args:
        p_a_lower: lower bound on the probability of the predicted class (arrays welcome).
        p_b_upper: upper bound on the probability of every other class; ``1 - p_a_lower`` when None,
            and then the radius is ``sigma Phi^-1(pA)``.
        sigma: standard deviation of the noise, in the units of the input.

    Returns:
        float64 l2 radius in the units of the input; 0 where nothing is certified (pA <= pB), and
        infinity where pA = 1.

    Raises:
        InputError: for a probability outside [0, 1], p_a_lower + p_b_upper > 1, or sigma <= 0.

    Example:
        >>> print(f"{certified_radius(0.9, 0.1, sigma=0.5):.12f}")
        0.640775782772
    """
    sigma = validation.check_positive("sigma", sigma)
    p_a = validation.check_probabilities("p_a_lower", p_a_lower)
    quantile_a = special.ndtri(p_a)
    if p_b_upper is None:
        quantile_b = -quantile_a
    else:
        p_b = validation.check_probabilities("p_b_upper", p_b_upper)
        p_a, p_b = validation.broadcast(p_a_lower=p_a, p_b_upper=p_b)
        bad = p_a + p_b > 1.0 + 1e-12  # forgives the rounding of 1 - p
        if np.any(bad):
            raise validation.InputError(
                "p_a_lower + p_b_upper must be at most 1, got "
                f"{p_a[bad].ravel()[0]} + {p_b[bad].ravel()[0]} = {(p_a + p_b)[bad].ravel()[0]}"
            )
        quantile_b = special.ndtri(p_b)
    with np.errstate(invalid="ignore", over="ignore"):
        unit = (quantile_a - quantile_b) - _ROUNDING * (np.abs(quantile_a) + np.abs(quantile_b))
        unit = np.where(np.isposinf(quantile_a - quantile_b), np.inf, unit)
        # NaN (both quantiles infinite and equal) and negative values certify nothing.
        radius = 0.5 * sigma * np.where(unit > 0.0, unit, 0.0)
    return np.where(np.isposinf(unit), np.inf, np.nextafter(radius, 0.0))[()]


def probability_after_shift(
    p: np.ndarray | float, distance: np.ndarray | float, *, sigma: float, bound: str
) -> np.ndarray:
    """Worst probability of a class after the input has moved: ``Phi(Phi^-1(p) -/+ distance/sigma)``.

    Among all classifiers that give a class probability p at x, the half-space of
    :func:`half_space_contains` gives it the least ("lower") or the most ("upper") at distance
    ``|delta|_2`` (Cohen et al. 2019, equations 10 and 11 of the proof of Theorem 1).

    Args:
        p: probability at x, in [0, 1] (arrays welcome).
        distance: l2 length of the shift, at least 0, in the units of the input.
        sigma: standard deviation of the noise.
        bound: "lower" or "upper".

    Returns:
        float64 probability, rounded to nearest.

    Raises:
        InputError: for an argument outside its range.

    Example:
        >>> print(f"{probability_after_shift(0.9, 0.25, sigma=0.25, bound='lower'):.6f}")
        0.610856
    """
    sigma = validation.check_positive("sigma", sigma)
    validation.check_choice("bound", bound, ("lower", "upper"))
    p, distance = validation.broadcast(
        p=validation.check_probabilities("p", p), distance=validation.check_not_negative("distance", distance)
    )
    quantile = special.ndtri(p)
    with np.errstate(over="ignore"):
        # An infinite distance defeats any classifier that is not constant.
        shift = np.nan_to_num(distance / sigma)
    return special.ndtr(quantile - shift if bound == "lower" else quantile + shift)[()]


def half_space_contains(
    z: np.ndarray,
    x: np.ndarray,
    shift: np.ndarray,
    p: float,
    *,
    sigma: float,
    bound: str,
) -> np.ndarray:
    """Membership of points in the two half-spaces of the proof of Theorem 1.

    ``bound="lower"``: ``A = {z : d.(z - x) <= sigma |d| Phi^-1(p)}``, whose probability falls fastest as
    the centre moves from x along d. ``bound="upper"``: ``B = {z : d.(z - x) >= sigma |d| Phi^-1(1-p)}``,
    whose probability grows fastest. Both carry exactly p under N(x, sigma^2 I).

    Args:
        z: points, shape [..., d].
        x: centre of the noise, shape [d].
        shift: the direction d, shape [d], not zero.
        p: probability of the half-space at x, in [0, 1].
        sigma: standard deviation of the noise.
        bound: "lower" for A, "upper" for B.

    Returns:
        bool array of shape [...].

    Raises:
        InputError: for an argument outside its range, or a shift of zero.

    Example:
        >>> bool(half_space_contains([0.0, 0.0], [0.0, 0.0], [1.0, 0.0], 0.9, sigma=1.0, bound="lower"))
        True
    """
    sigma = validation.check_positive("sigma", sigma)
    validation.check_choice("bound", bound, ("lower", "upper"))
    quantile = special.ndtri(validation.check_probabilities("p", p))
    z, x, shift = _check_points(z=z, x=x, shift=shift)
    length = np.linalg.norm(shift)
    if length == 0.0:
        raise validation.InputError("shift must not be zero: it gives the half-space its direction")
    along = (z - x) @ (shift / length) / sigma
    return (along <= quantile if bound == "lower" else along >= -quantile)[()]


def likelihood_ratio(z: np.ndarray, mean: np.ndarray, shift: np.ndarray, *, sigma: float) -> np.ndarray:
    """Density of N(mean + shift, sigma^2 I) over that of N(mean, sigma^2 I), at z.

    ``m(z) = exp(d.(z - mean)/sigma^2 - |d|^2/(2 sigma^2))``: monotone in d.z, so that by Neyman and
    Pearson its level sets, half-spaces, are the extreme classifiers (Cohen et al. 2019, Lemma 4
    and its Gaussian case).

    Args:
        z: points, shape [..., d].
        mean: centre before the shift, shape [d].
        shift: the shift d, shape [d].
        sigma: standard deviation of the noise.

    Returns:
        float64 array of shape [...].

    Raises:
        InputError: for values that are not finite, or sigma <= 0.

    Example:
        >>> float(likelihood_ratio([0.5], [0.0], [1.0], sigma=1.0))
        1.0
    """
    sigma = validation.check_positive("sigma", sigma)
    z, mean, shift = _check_points(z=z, mean=mean, shift=shift)
    with np.errstate(over="ignore", under="ignore"):
        return np.exp(((z - mean) @ shift - 0.5 * np.sum(shift * shift)) / sigma**2)[()]


def _check_points(**arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Points [..., d], then vectors [d] of the same length."""
    points = tuple(validation.check_finite(name, array) for name, array in arrays.items())
    dimension = points[0].shape[-1:]
    for name, vector in list(zip(arrays, points, strict=True))[1:]:
        if not dimension or vector.shape != dimension:
            raise validation.InputError(
                f"{name} must be a vector as long as the points z[..., d], got shape {vector.shape} and z "
                f"of shape {points[0].shape}"
            )
    return points
