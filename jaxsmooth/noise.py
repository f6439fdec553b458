"""The distributions added to inputs, and the norm and radius that each one certifies.

A noise is a pytree whose scale is a leaf: compiled programs take the scale as an argument, so that
changing it does not recompile.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from jaxsmooth import radius as radius_lib
from jaxsmooth import validation


class Noise(Protocol):
    """What sampling and certification ask of a noise distribution."""

    @property
    def norm(self) -> float:
        """Exponent of the l_p norm in which the radius is measured."""
        ...

    @property
    def scale(self) -> Any:
        """What a radius for unit noise is multiplied by."""
        ...

    def sample(self, key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
        """One draw of the noise for an input of this shape."""
        ...

    def radius(self, p_a: ArrayLike, p_b: ArrayLike | None = None) -> np.ndarray:
        """Certified radius, float64 on the host."""
        ...


@jax.tree_util.register_pytree_node_class
class Gaussian:
    """Isotropic Gaussian noise N(0, sigma^2 I), which certifies l2 balls (Cohen et al. 2019, Theorem 1).

    Args:
        sigma: standard deviation, in the units of the input; positive and finite.

    Raises:
        InputError: for a sigma that is not a positive finite number.

    Example:
        >>> import jax
        >>> noise = Gaussian(0.25)
        >>> noise.sample(jax.random.key(0), (2, 3), "float32").shape
        (2, 3)
        >>> print(f"{noise.radius(0.999, 0.0005):.10f}")
        0.7975948797
    """

    __slots__ = ("sigma",)

    sigma: Any

    def __init__(self, sigma: Any):
        if not validation.is_traced(sigma):
            validation.check_positive("sigma", sigma)
        self.sigma = sigma

    @property
    def norm(self) -> float:
        """Gaussian noise certifies l2 balls."""
        return 2.0

    @property
    def scale(self) -> Any:
        """The standard deviation: radii are proportional to it."""
        return self.sigma

    def sample(self, key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
        """Draws ``sigma * z`` with z standard normal.

        Args:
            key: a typed key (``jax.random.key``).
            shape: shape of the input, without a batch axis.
            dtype: at least float32; lower precisions have too few values to pass for a Gaussian
                (bfloat16 has 128), so cast after adding the noise.

        Returns:
            Array of ``shape`` and ``dtype``.

        Raises:
            InputError: for a dtype below float32, or float64 without ``jax_enable_x64``.
        """
        dtype = jnp.dtype(dtype)
        if dtype not in (jnp.float32, jnp.float64):
            raise validation.InputError(
                f"dtype must be float32 or float64, got {dtype}; draw float32 noise and cast the sum"
            )
        if jax.dtypes.canonicalize_dtype(dtype) != dtype:
            raise validation.InputError(f"dtype must be float32 unless jax_enable_x64 is set, got {dtype}")
        # The clamps change no value. They keep the compiler from merging this product with the constants
        # before it, or with the sum after it, which would move last bits from one program to the next.
        largest = jnp.asarray(3e38, dtype)
        z = _normal_float32(key, shape) if dtype == jnp.float32 else jax.random.normal(key, shape, dtype)
        z = jax.lax.clamp(-largest, z, largest)
        return jax.lax.clamp(-largest, jnp.asarray(self.sigma, dtype) * z, largest)

    def radius(self, p_a: ArrayLike, p_b: ArrayLike | None = None) -> np.ndarray:
        """Certified l2 radius; :func:`jaxsmooth.certified_radius` with this sigma (host, float64)."""
        return radius_lib.certified_radius(p_a, p_b, sigma=self.sigma)  # type: ignore[arg-type]

    def tree_flatten(self) -> tuple[tuple[Any], None]:
        """The scale is the only leaf."""
        return (self.sigma,), None

    @classmethod
    def tree_unflatten(cls, _: None, leaves: tuple[Any]) -> "Gaussian":
        """Rebuilds without checks: JAX passes placeholders through here."""
        noise = object.__new__(cls)
        noise.sigma = leaves[0]
        return noise

    def __repr__(self) -> str:
        return f"Gaussian(sigma={self.sigma!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Gaussian) and bool(self.sigma == other.sigma)

    def __hash__(self) -> int:
        return hash((Gaussian, float(self.sigma)))


def check_noise(noise: Any) -> None:
    """Refuses what is not a noise, such as a bare sigma."""
    if not (hasattr(noise, "sample") and hasattr(noise, "scale")):
        raise validation.InputError(
            f"noise must be a noise such as Gaussian(0.25), got {validation.show(noise)}"
        )


# erf^-1(u) sqrt(2) / u as polynomials, highest power first, in w = -log(1 - u^2): of w - 2.5 for w < 5, of
# sqrt(w) - 3 beyond (Giles 2010, "Approximating the erfinv function", the coefficients that XLA uses too).
_CENTRE = (
    2.81022636e-08,
    3.43273939e-07,
    -3.5233877e-06,
    -4.39150654e-06,
    0.00021858087,
    -0.00125372503,
    -0.00417768164,
    0.246640727,
    1.50140941,
)
_TAIL = (
    -0.000200214257,
    0.000100950558,
    0.00134934322,
    -0.00367342844,
    0.00573950773,
    -0.0076224613,
    0.00943887047,
    1.00167406,
    2.83297682,
)


# log(1 + f) / f on [-1/3, 1/3] to 3e-8, highest power first (Chebyshev fit).
_LOG = (
    0.140873283,
    -0.15403156,
    0.13980709,
    -0.164127991,
    0.200124264,
    -0.250080258,
    0.333331585,
    -0.499999315,
    1.0,
)


@partial(jax.jit, static_argnames="shape")
def _normal_float32(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """``jax.random.normal`` in float32, but the same bits in every program.

    The compiled erf_inv changes last bits with the size of the array and with what is fused around it: products and
    sums may or may not become fused multiply-adds, and log1p comes in several implementations. Here every
    product that feeds a sum loses its last bit to an integer operation, which keeps the two apart, and
    the logarithm is spelled out. Error below 4e-7 relative.
    """
    lowest = np.nextafter(np.float32(-1), np.float32(0))
    u = jax.random.uniform(key, shape, jnp.float32, lowest, 1.0)  # exact products: the same bits anyway
    gap = (1 - u) * (1 + u)
    bits = _bits(gap)
    exponent = (bits - np.int32(0x3F2AAAAB)) >> 23  # gap = m 2^exponent with m in [2/3, 4/3)
    f = _float(bits - (exponent << 23)) - 1
    log = _apart(f * _polynomial(_LOG, f)) + _apart(exponent.astype(jnp.float32) * np.float32(np.log(2)))
    w = jnp.maximum(-log, 0)
    in_tail = w >= 5
    step = jnp.where(in_tail, jnp.sqrt(w) - 3, w - 2.5)
    root2 = 2**0.5
    ratio = [
        jnp.where(in_tail, np.float32(root2 * tail), np.float32(root2 * centre))
        for tail, centre in zip(_TAIL, _CENTRE, strict=True)
    ]
    return u * _polynomial(ratio, step)


def _polynomial(coefficients: Sequence[Any], x: jax.Array) -> jax.Array:
    total = jnp.float32(coefficients[0])
    for coefficient in coefficients[1:]:
        total = _apart(total * x) + jnp.float32(coefficient)
    return total


def _apart(product: jax.Array) -> jax.Array:
    """The product without its last bit; the integer operation keeps it from fusing with a sum."""
    return _float(_bits(product) & np.int32(-2))


def _bits(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, jnp.int32)


def _float(bits: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def from_name(name: str, scale: float) -> Noise:
    """The noise that a manifest or a configuration names: ``from_name("gaussian", 0.25)``."""
    validation.check_choice("noise", name, ("gaussian",))
    return Gaussian(scale)
