"""The distributions added to inputs, and the norm and radius that each one certifies.

A noise is a pytree whose scale is a leaf: compiled programs take the scale as an argument, so that
changing it does not recompile.
"""

import math
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
        if str(jax.random.key_impl(key)) != "threefry2x32":
            raise validation.InputError(
                f"key must use threefry2x32, got {jax.random.key_impl(key)}; jax.random.key(seed, impl='threefry2x32')"
            )
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


# Rotations of threefry2x32 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", table 2), its parity
# constant, and the first word of the counters of a draw, which fold_in and split never use.
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_DOMAIN = 0x6E6F6973  # "nois"

# Chebyshev fits, highest power first: log(1 + f) / f on [-1/3, 1/3] to 3e-8; sin(pi/2 t) / t to 5e-9 and cos(pi/2 t) to
# 3e-8 in t^2, for |t| <= 1/2.
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
_SIN = (-0.0046021631, 0.0796802193, -0.64596349, 1.57079637)
_COS = (-0.020408256, 0.253598601, -1.23369706, 1.0)


@partial(jax.jit, static_argnames="shape")
def _normal_float32(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normals in float32: the same bits in every program, and cheaper than those of ``jax.random.normal``.

    Box and Muller (1958): ``sqrt(-2 log u) (cos, sin)(2 pi v)``. u has 31 bits, so that values reach 6.66 (those of
    ``jax.random.normal`` end at 5.42), v has 32. Entry i of the first half and entry i of the second come from the two
    words of ``threefry2x32(key, (_DOMAIN, i))``; JAX makes one word out of the two, which costs twice as much.

    Compiled logarithms and sines change last bits with the size of the array and with what is fused around them, and
    products and sums may or may not become fused multiply-adds. Here every product that feeds a sum loses its last
    bit to an integer operation, which keeps the two apart, and the functions are spelled out. Error below
    4e-7 relative to the length of a pair.
    """
    size = math.prod(shape)
    counters = jnp.arange((size + 1) // 2, dtype=jnp.uint32)
    words = jax.random.key_data(key)
    first, second = threefry2x32(words[0], words[1], jnp.full_like(counters, _DOMAIN), counters)
    u = ((first >> 1).astype(jnp.int32).astype(jnp.float32) + 0.5) * np.float32(2.0**-31)
    length = jnp.sqrt(2 * jnp.maximum(-_log(u), 0))
    # A sign, which of the two is the longer, and a signed angle of at most pi/4: eight octants in all.
    t = (second << 2).astype(jnp.int32).astype(jnp.float32) * np.float32(2.0**-32)
    square = _apart(t * t)
    long = _float(_bits(length * _polynomial(_COS, square)) ^ (second & np.uint32(1 << 31)).astype(jnp.int32))
    short = length * (t * _polynomial(_SIN, square))
    swapped = (second & np.uint32(1 << 30)) != 0
    pair = jnp.where(swapped, short, long), jnp.where(swapped, long, short)
    # Without the barrier, what reads the result would compute each pair twice.
    return jnp.concatenate(jax.lax.optimization_barrier(pair))[:size].reshape(shape)


def threefry2x32(
    key_0: Any, key_1: Any, counter_0: jax.Array, counter_1: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The counter-based generator threefry2x32 with 20 rounds (Salmon et al. 2011): two words per pair of counters.

    Written out round by round, which the compiler of a CPU vectorises better than JAX's own.

    Args:
        key_0: first word of the key, uint32 scalar.
        key_1: second word.
        counter_0: uint32 array, first words of the counters.
        counter_1: uint32 array of the same shape, second words.

    Returns:
        Two uint32 arrays of that shape.
    """
    schedule = key_0, key_1, key_0 ^ key_1 ^ np.uint32(_PARITY)
    x, y = counter_0 + schedule[0], counter_1 + schedule[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x = x + y
            y = ((y << np.uint32(rotation)) | (y >> np.uint32(32 - rotation))) ^ x
        x = x + schedule[(group + 1) % 3]
        y = y + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return x, y


def _log(x: jax.Array) -> jax.Array:
    """Natural logarithm of positive float32 that are not subnormal."""
    bits = _bits(x)
    exponent = (bits - np.int32(0x3F2AAAAB)) >> 23  # x = m 2^exponent with m in [2/3, 4/3)
    f = _float(bits - (exponent << 23)) - 1
    return _apart(f * _polynomial(_LOG, f)) + _apart(exponent.astype(jnp.float32) * np.float32(np.log(2)))


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
