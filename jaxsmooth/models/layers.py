"""Layers that the networks share."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class Normalize(nnx.Module):
    """Subtracts a mean and divides by a standard deviation, per channel: ``(x - mean) / sd``.

    It lives inside the network, so that noise and radii are in the units of the image.

    Args:
        mean: one number per channel.
        sd: one number per channel.
    """

    def __init__(self, mean: tuple[float, ...], sd: tuple[float, ...]):
        self.mean = tuple(map(float, mean))
        self.sd = tuple(map(float, sd))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images [..., channels] in and out, in one dtype.

        The arithmetic is in float32: a mean of 0.4914 is 0.4922 in bfloat16.
        """
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return ((x.astype(wide) - jnp.asarray(self.mean, wide)) / jnp.asarray(self.sd, wide)).astype(x.dtype)


class ScaleShift(nnx.Module):
    """``x * scale + shift`` per channel: what is left of a batch normalisation that no convolution can take in.

    Args:
        scale: [channels].
        shift: [channels].
    """

    def __init__(self, scale: jax.Array, shift: jax.Array):
        self.scale = nnx.Param(scale)
        self.shift = nnx.Param(shift)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Feature maps [..., channels] in and out."""
        return x * self.scale[...] + self.shift[...]


def _scale_and_shift(norm: nnx.BatchNorm) -> tuple[np.ndarray, np.ndarray]:
    """Batch normalisation with its running statistics, as float64 factors: (scale, shift), [channels] each."""

    def value(variable: nnx.Variable | None, default: float) -> np.ndarray:
        return np.asarray(default if variable is None else variable.get_value(), np.float64)

    scale = value(norm.scale, 1.0) / np.sqrt(value(norm.var, 1.0) + norm.epsilon)
    return scale, value(norm.bias, 0.0) - value(norm.mean, 0.0) * scale


def convolution(
    in_features: int, out_features: int, size: int, strides: int = 1, *, rngs: nnx.Rngs
) -> nnx.Conv:
    """A convolution without bias, with the padding and initial weights of the published PyTorch networks.

    Padding is (size - 1) / 2 on every side, whatever the stride ("SAME" puts all of it to the right at stride 2).
    """
    return nnx.Conv(
        in_features,
        out_features,
        (size, size),
        strides=strides,
        padding=(size - 1) // 2,
        use_bias=False,
        kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
        rngs=rngs,
    )


def batch_norm(features: int, *, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """Batch normalisation with PyTorch's constants; momentum is the weight of the old average: its 0.1 is 0.9 here."""
    return nnx.BatchNorm(features, momentum=0.9, epsilon=1e-5, rngs=rngs)


class ConvNorm(nnx.Module):
    """A :func:`convolution`, then batch normalisation; or, after folding, one convolution with bias.

    Args:
        in_features: channels in.
        out_features: channels out.
        size: height and width of the kernel.
        strides: of the convolution.
        rngs: random keys for the initial weights.
    """

    def __init__(self, in_features: int, out_features: int, size: int, strides: int = 1, *, rngs: nnx.Rngs):
        self.conv = convolution(in_features, out_features, size, strides, rngs=rngs)
        self.norm: nnx.BatchNorm | None = nnx.data(batch_norm(out_features, rngs=rngs))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images [batch, height, width, in_features] to [batch, height', width', out_features]."""
        x = self.conv(x)
        return x if self.norm is None else self.norm(x)

    def fold(self) -> None:
        """Folds the running statistics into the convolution, in float64: the same function in evaluation mode."""
        norm, conv = self.norm, self.conv
        if norm is None:
            return
        factor, shift = _scale_and_shift(norm)
        kernel = np.asarray(conv.kernel[...], np.float64) * factor
        conv.kernel.set_value(jnp.asarray(kernel, jnp.float32))
        conv.use_bias, conv.bias = True, nnx.Param(jnp.asarray(shift, jnp.float32))
        self.norm = None


def fold_batch_norm(model: nnx.Module) -> nnx.Module:
    """A copy of a network for inference, without batch normalisation.

    Where a convolution comes just before (:class:`ConvNorm`), its kernel takes in the scale and its bias the
    shift; elsewhere, as at the start of a pre-activation block, a :class:`ScaleShift` takes the place.

    Args:
        model: any network; a BatchNorm over another axis than the last, or held in a list, stays as it is.

    Returns:
        A network with the same logits in evaluation mode, up to float32 rounding.
    """
    folded = nnx.clone(model)
    modules = [module for _, module in nnx.iter_modules(folded)]
    for module in modules:
        if isinstance(module, ConvNorm):
            module.fold()
    for module in modules:
        for name, norm in list(vars(module).items()):
            if isinstance(norm, nnx.BatchNorm) and norm.axis == -1 and norm.axis_name is None:
                scale, shift = (jnp.asarray(factor, jnp.float32) for factor in _scale_and_shift(norm))
                setattr(module, name, ScaleShift(scale, shift))
    return folded
