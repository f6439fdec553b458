"""Checks on arguments, in one place and one voice: ``alpha must lie in (0, 1), got 1.5``.

Every check raises :class:`InputError` with a single line that names the argument and the value.
The commands print exactly that line; anything else that escapes is a bug and keeps its traceback.
"""

import math
import numbers
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

_LARGEST_SAMPLE_INDEX = 2**31 - 1


class InputError(ValueError):
    """A mistake of the caller's, explained in one line."""


def is_traced(value: Any) -> bool:
    """Whether a value is known only when the compiled program runs."""
    return isinstance(value, jax.core.Tracer)


def _known_number(name: str, value: Any) -> float:
    if is_traced(value):
        raise InputError(
            f"{name} must be a Python number known when tracing, got a traced array; "
            "close over it, or mark it as a static argument"
        )
    if isinstance(value, (bool, np.bool_)):
        raise InputError(f"{name} must be a number, got {value!r}")
    if isinstance(value, numbers.Real):
        try:
            return float(value)
        except OverflowError:
            raise InputError(f"{name} must be a number of ordinary size, got {show(value)}") from None
    if isinstance(value, (np.ndarray, jax.Array)) and value.ndim == 0:
        return float(value)
    raise InputError(f"{name} must be a number, got {show(value)}")


def check_alpha(alpha: Any, name: str = "alpha") -> float:
    """A probability of error: strictly between 0 and 1."""
    number = _known_number(name, alpha)
    if not 0.0 < number < 1.0:
        raise InputError(f"{name} must lie in (0, 1), got {alpha}")
    return number


def check_positive(name: str, value: Any) -> float:
    """A positive, finite real number."""
    number = _known_number(name, value)
    if not (number > 0.0 and math.isfinite(number)):
        raise InputError(f"{name} must be positive and finite, got {value}")
    return number


def check_not_negative(name: str, value: Any) -> np.ndarray:
    """Numbers that are at least 0 (arrays welcome; infinity is allowed, NaN is not)."""
    array = _float64(name, value)
    bad = ~(array >= 0.0)
    if np.any(bad):
        raise InputError(f"{name} must be at least 0, got {_first(array, bad)}")
    return array


def check_integer(name: str, value: Any, at_least: int, at_most: int = _LARGEST_SAMPLE_INDEX) -> int:
    """A whole number, known when tracing, within limits."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, (bool, np.bool_))
    number = int(value) if whole else _known_number(name, value)
    if not float(min(abs(number), 2**60)).is_integer():
        raise InputError(f"{name} must be a whole number, got {str(value)[:80]}")
    if number < at_least:
        raise InputError(f"{name} must be at least {at_least}, got {str(value)[:80]}")
    if number > at_most:
        raise InputError(f"{name} must be at most {at_most}, got {str(value)[:80]}")
    return int(number)


def check_probabilities(name: str, value: Any) -> np.ndarray:
    """Probabilities in [0, 1], as float64 (arrays welcome)."""
    array = _float64(name, value)
    bad = ~((array >= 0.0) & (array <= 1.0))
    if np.any(bad):
        raise InputError(f"{name} must lie in [0, 1], got {_first(array, bad)}")
    return array


def check_finite(name: str, value: Any) -> np.ndarray:
    """Finite numbers, as float64 (arrays welcome)."""
    array = _float64(name, value)
    bad = ~np.isfinite(array)
    if np.any(bad):
        raise InputError(f"{name} must be finite, got {_first(array, bad)}")
    return array


def check_counts(name: str, value: Any, num_samples: np.ndarray | int) -> np.ndarray:
    """Whole numbers in 0..num_samples, as int64 (arrays welcome)."""
    array = check_whole(name, value)
    bad = ~((array >= 0) & (array <= num_samples))
    if np.any(bad):
        limit = np.broadcast_to(np.asarray(num_samples), bad.shape)
        raise InputError(
            f"{name} must lie in 0..num_samples = 0..{_first(limit, bad)}, got {_first(array, bad)}"
        )
    return array


def check_whole(name: str, value: Any) -> np.ndarray:
    """Whole numbers, as int64 (arrays welcome)."""
    array = _float64(name, value)
    bad = ~(np.abs(array) <= 2.0**53) | (array != np.floor(array))
    if np.any(bad):
        raise InputError(f"{name} must be a whole number, got {_first(array, bad)}")
    return array.astype(np.int64)


def broadcast(**arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Arrays of one shape; refuses shapes that do not go together, by name."""
    try:
        return tuple(np.broadcast_arrays(*arrays.values()))
    except ValueError:
        shapes = ", ".join(str(array.shape) for array in arrays.values())
        raise InputError(f"{' and '.join(arrays)} must have shapes that broadcast, got {shapes}") from None


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """One of a few words."""
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def check_norm(name: str, value: Any) -> float:
    """The exponent p of an l_p norm: a number in [1, inf]."""
    if isinstance(value, str):
        raise InputError(
            f"{name} must be a number in [1, inf] (use math.inf for the largest entry), got {value!r}"
        )
    number = _known_number(name, value)
    if not number >= 1.0:
        raise InputError(f"{name} must be a norm l_p with p in [1, inf], got {value}")
    return number


def _float64(name: str, value: Any) -> np.ndarray:
    if is_traced(value):
        raise InputError(
            f"{name} is a traced array, but this function runs on the host in float64; call it outside jit"
        )
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "iuf":
            raise TypeError
        return array.astype(np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be a number or an array of numbers, got {show(value)}") from None


def show(value: Any) -> str:
    """A value on one short line."""
    shape = getattr(value, "shape", ())
    return f"an array of shape {shape}" if shape else " ".join(repr(value).split())[:80]


def _first(array: np.ndarray, bad: np.ndarray) -> Any:
    return np.broadcast_to(array, bad.shape)[bad].ravel()[0]
