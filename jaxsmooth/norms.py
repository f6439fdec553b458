"""Relations between l_p norms on R^d: equivalence constants, converted radii, inclusion of balls.

For p, q in [1, inf] the least c with ``|x|_p <= c |x|_q`` for all x in R^d is 1 if p >= q, and
d^(1/p - 1/q) otherwise (Hoelder's inequality, attained by the all-ones vector). Host float64.
"""

import numpy as np

from jaxsmooth import validation

# The power below is computed to a few units in the last place; radii are lowered by more than that.
_ROUNDING = 1e-14


def norm_constant(p: float, q: float, dimension: int) -> np.float64:
    """Least c with ``|x|_p <= c |x|_q`` for every x in R^dimension.

    Args:
        p: exponent of the norm on the left, in [1, inf].
        q: exponent of the norm on the right, in [1, inf].
        dimension: number of entries of x, at least 1.

    Returns:
        max(1, d^(1/p - 1/q)), rounded to nearest.

    Raises:
        InputError: for an exponent below 1 or a dimension below 1.

    Example:
        >>> float(norm_constant(2, float("inf"), 9))
        3.0
    """
    p, q = validation.check_norm("p", p), validation.check_norm("q", q)
    return _constant(p, q, dimension)


def convert_radius(
    radius: np.ndarray | float, from_norm: float, to_norm: float, dimension: int
) -> np.ndarray:
    """Largest radius in another norm whose ball lies inside the given ball.

    A point is certified against every perturbation with ``|delta|_from < radius``; the returned
    radius r' is the largest with ``|delta|_to < r'  =>  |delta|_from < radius``, that is
    ``radius / norm_constant(from_norm, to_norm, d)``. It is rounded down.

    Args:
        radius: radius in ``from_norm``, at least 0 (arrays welcome).
        from_norm: exponent of the norm in which ``radius`` is given.
        to_norm: exponent of the norm wanted.
        dimension: number of entries of the input (3072 for a 32x32 colour image).

    Returns:
        float64 of the shape of ``radius``.

    Raises:
        InputError: for a negative radius, an exponent below 1, or a dimension below 1.

    Example:
        >>> print(f"{convert_radius(1.0, 2, float('inf'), 3072):.12f}")
        0.018042195912
    """
    radii = validation.check_not_negative("radius", radius)
    p, q = validation.check_norm("from_norm", from_norm), validation.check_norm("to_norm", to_norm)
    constant = _constant(p, q, dimension)
    if constant == 1.0:
        return radii[()]
    converted = radii / constant * (1.0 - _ROUNDING)
    return np.where(np.isinf(radii), radii, np.nextafter(converted, 0.0))[()]


def ball_contains(
    outer_norm: float, outer_radius: float, inner_norm: float, inner_radius: float, dimension: int
) -> bool:
    """Whether the l_inner ball of one radius lies inside the l_outer ball of another.

    Radii such as sqrt(d) are seldom representable, so the comparison forgives a relative excess of
    1e-14. Use :func:`convert_radius` for a radius that must be safe to the last bit.

    Raises:
        InputError: for a negative radius, an exponent below 1, or a dimension below 1.

    Example:
        >>> ball_contains(2, 3.0, float("inf"), 1.0, dimension=9)
        True
    """
    outer = validation.check_not_negative("outer_radius", outer_radius)
    inner = validation.check_not_negative("inner_radius", inner_radius)
    for name, radius in (("outer_radius", outer), ("inner_radius", inner)):
        if radius.ndim:
            raise validation.InputError(f"{name} must be one number, got an array of shape {radius.shape}")
    p, q = validation.check_norm("outer_norm", outer_norm), validation.check_norm("inner_norm", inner_norm)
    return bool(inner * _constant(p, q, dimension) <= outer * (1.0 + _ROUNDING))


def _constant(p: float, q: float, dimension: int) -> np.float64:
    dimension = validation.check_integer("dimension", dimension, at_least=1, at_most=2**53)
    if p >= q:
        return np.float64(1.0)
    return np.float64(dimension) ** (1.0 / p - 1.0 / q)
