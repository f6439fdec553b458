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
        """Images [..., channels] in and out."""
        return (x - jnp.asarray(self.mean, x.dtype)) / jnp.asarray(self.sd, x.dtype)


class ConvNorm(nnx.Module):
    """A convolution without bias, then batch normalisation; or, after folding, one convolution with bias.

    Padding is (size - 1) / 2 on every side, as in the published PyTorch networks, whatever the stride.

    Args:
        in_features: channels in.
        out_features: channels out.
        size: height and width of the kernel.
        strides: of the convolution.
        rngs: random keys for the initial weights.
    """

    def __init__(self, in_features: int, out_features: int, size: int, strides: int = 1, *, rngs: nnx.Rngs):
        self.conv = nnx.Conv(
            in_features,
            out_features,
            (size, size),
            strides=strides,
            padding=(size - 1) // 2,
            use_bias=False,
            kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
            rngs=rngs,
        )
        # momentum here is the weight of the old average: PyTorch's 0.1 is Flax's 0.9.
        self.norm: nnx.BatchNorm | None = nnx.data(
            nnx.BatchNorm(out_features, momentum=0.9, epsilon=1e-5, rngs=rngs)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images [batch, height, width, in_features] to [batch, height', width', out_features]."""
        x = self.conv(x)
        return x if self.norm is None else self.norm(x)

    def fold(self) -> None:
        """Folds the running statistics into the convolution, in float64: the same function in evaluation mode."""
        norm, conv = self.norm, self.conv
        if norm is None:
            return
        assert norm.scale is not None
        assert norm.bias is not None
        mean, variance, scale, bias = (
            np.asarray(variable.get_value(), np.float64)
            for variable in (norm.mean, norm.var, norm.scale, norm.bias)
        )
        factor = scale / np.sqrt(variance + norm.epsilon)
        folded = nnx.Conv(
            conv.in_features,
            conv.out_features,
            conv.kernel_size,
            strides=conv.strides,
            padding=conv.padding,
            rngs=nnx.Rngs(0),
        )
        folded.kernel[...] = jnp.asarray(np.asarray(conv.kernel[...], np.float64) * factor, jnp.float32)
        assert folded.bias is not None
        folded.bias[...] = jnp.asarray(bias - mean * factor, jnp.float32)
        self.conv, self.norm = folded, None


def fold_batch_norm(model: nnx.Module) -> nnx.Module:
    """A copy of a network for inference, with every batch normalisation folded into its convolution.

    Args:
        model: a network built of :class:`ConvNorm` and layers without batch statistics.

    Returns:
        A network with the same logits in evaluation mode, up to float32 rounding.
    """
    folded = nnx.clone(model)
    for _, module in nnx.iter_modules(folded):
        if isinstance(module, ConvNorm):
            module.fold()
    return folded
