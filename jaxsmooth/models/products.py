"""Layers in the form that XLA computes fastest, and rightly, on a CPU: the same function as ever.

There XLA hands every convolution to a library that computes in float32 whatever the dtype, but matrix products to
others, which use the processor's bfloat16 instructions. GPUs and TPUs get the stock operations.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

# With fewer channels XLA's convolution is the faster one, in bfloat16 too: the products are too thin.
_LEAST_CHANNELS = 64
# Neighbourhoods are gathered for so many bytes at once, to stay in a core's cache.
_GATHERED_BYTES = 2**21

_CHANNELS_LAST = lax.conv_dimension_numbers((1,) * 4, (1,) * 4, ("NHWC", "HWIO", "NHWC"))
_Pairs = Sequence[tuple[int, int]]


def use_products(model: nnx.Module) -> None:
    """Makes convolutions and linear layers of a network compute by the functions of this file.

    Args:
        model: changed in place; layers in which another function was put before keep that.
    """
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.Conv) and module.conv_general_dilated is lax.conv_general_dilated:
            module.conv_general_dilated = conv_general_dilated
        elif isinstance(module, nnx.Linear) and module.dot_general is lax.dot_general:
            module.dot_general = dot_general


def dot_general(left: jax.Array, right: jax.Array, dimension_numbers: Any, **options: Any) -> jax.Array:
    """``lax.dot_general``, accumulated in float32, in the dtype of its operands unless another is asked for.

    XLA's CPU libraries take bfloat16 operands only with a float32 result (jax 0.10); elsewhere this changes nothing.
    """
    result = options.pop("preferred_element_type", None) or left.dtype
    wide = jnp.promote_types(result, jnp.float32)
    return lax.dot_general(left, right, dimension_numbers, preferred_element_type=wide, **options).astype(
        result
    )


def conv_general_dilated(
    inputs: jax.Array, kernel: jax.Array, window_strides: Sequence[int], padding: str | _Pairs, **options: Any
) -> jax.Array:
    """``lax.conv_general_dilated``; on a CPU, in bfloat16 and with many channels, as matrix products.

    Args:
        inputs: [batch, height, width, in_features]; in any other layout the stock convolution.
        kernel: [height, width, in_features, out_features].
        window_strides: one per spatial dimension.
        padding: as there.
        **options: as there; with any but the default, the stock convolution.

    Returns:
        What ``lax.conv_general_dilated`` returns, up to the rounding of its dtype.
    """
    stock: Callable[..., jax.Array] = partial(
        lax.conv_general_dilated, window_strides=window_strides, padding=padding, **options
    )
    precision = options.pop("precision", None)
    height, width, in_features, _ = kernel.shape if kernel.ndim == 4 else (0,) * 4
    if inputs.dtype != jnp.bfloat16 or in_features < _LEAST_CHANNELS or not _is_plain(**options):
        return stock(inputs, kernel)

    def products(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
        strides, pads = tuple(window_strides), padding
        if isinstance(pads, str):
            pads = lax.padtype_to_pads(inputs.shape[1:3], (height, width), strides, pads)
        if any(map(any, pads)):
            inputs = jnp.pad(inputs, ((0, 0), *pads, (0, 0)))
        form = _pointwise if (height, width) == (1, 1) else _gathered
        return form(inputs, kernel, strides, precision)

    return lax.platform_dependent(inputs, kernel, cpu=products, default=stock)


def _is_plain(
    *,
    dimension_numbers: Any = None,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    **others: Any,
) -> bool:
    dilations = {*(lhs_dilation or ()), *(rhs_dilation or ())}
    return dimension_numbers == _CHANNELS_LAST and dilations <= {1} and set(others.values()) <= {None, 1}


def _pointwise(inputs: jax.Array, kernel: jax.Array, strides: tuple[int, ...], precision: Any) -> jax.Array:
    """A 1x1 convolution: one product over channels."""
    inputs = inputs[:, :: strides[0], :: strides[1]]
    return dot_general(inputs, kernel[0, 0], (((3,), (0,)), ((), ())), precision=precision)


def _gathered(inputs: jax.Array, kernel: jax.Array, strides: tuple[int, ...], precision: Any) -> jax.Array:
    """One product per row of the kernel, over pixels that hold their neighbours along the width as channels.

    All neighbours at once would be written three times as often, and no neighbours at all would make
    three times as many sums.
    """
    height, width, in_features, out_features = kernel.shape
    batch, rows, columns, _ = inputs.shape
    rows, columns = (rows - height) // strides[0] + 1, (columns - width) // strides[1] + 1
    kernel = kernel.reshape(height, width * in_features, out_features)

    def convolve(images: jax.Array) -> jax.Array:
        wide = jnp.concatenate([_taps(images, j, columns, strides[1], 2) for j in range(width)], axis=-1)
        total = sum(
            lax.dot_general(
                _taps(wide, i, rows, strides[0], 1),
                kernel[i],
                (((3,), (0,)), ((), ())),
                precision=precision,
                preferred_element_type=jnp.float32,
            )
            for i in range(height)
        )
        return jnp.asarray(total, inputs.dtype)

    fitting = _GATHERED_BYTES // (inputs.shape[1] * columns * width * in_features * inputs.dtype.itemsize)
    at_once = max(n for n in range(1, batch + 1) if batch % n == 0 and n <= max(1, fitting))
    if at_once == batch:
        return convolve(inputs)
    pieces = inputs.reshape(batch // at_once, at_once, *inputs.shape[1:])
    return lax.map(convolve, pieces).reshape(batch, rows, columns, out_features)


def _taps(array: jax.Array, start: int, count: int, stride: int, axis: int) -> jax.Array:
    """So many entries of an axis, from ``start`` on."""
    return lax.slice_in_dim(array, start, start + (count - 1) * stride + 1, stride, axis)


def max_pool(inputs: jax.Array, size: int, stride: int, padding: int) -> jax.Array:
    """The largest value of each ``size`` x ``size`` window, per channel.

    On a CPU along one axis after the other, as maxima of whole slices: XLA's windows are not vectorised there.

    Args:
        inputs: [batch, height, width, channels].
        size: of the window.
        stride: between windows.
        padding: rows and columns of minus infinity on each side.

    Returns:
        [batch, (height + 2 padding - size) // stride + 1, likewise, channels].
    """

    def slices(x: jax.Array) -> jax.Array:
        for axis in (1, 2):
            count = (x.shape[axis] + 2 * padding - size) // stride + 1
            edges = [(padding, padding, 0) if a == axis else (0, 0, 0) for a in range(4)]
            padded = lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), edges)
            x = _taps(padded, 0, count, stride, axis)
            for start in range(1, size):
                x = jnp.maximum(x, _taps(padded, start, count, stride, axis))
        return x

    windows = partial(
        nnx.max_pool,
        window_shape=(size, size),
        strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
    )
    return lax.platform_dependent(inputs, cpu=slices, default=windows)


def mean_pool(inputs: jax.Array) -> jax.Array:
    """Mean over height and width: [batch, height, width, channels] to [batch, channels].

    The barrier keeps XLA from fusing the mean with the layers before it: on a CPU, jaxlib 0.12.0 then reads memory
    that nobody wrote if there are two bfloat16 relus among them.
    """
    return jnp.mean(lax.optimization_barrier(inputs), axis=(1, 2))
