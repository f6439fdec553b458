"""Wide residual networks (Zagoruyko and Komodakis 2016)."""

from functools import partial

import jax
from flax import nnx

from jaxsmooth.models import products
from jaxsmooth.models.layers import ConvNorm, Normalize, batch_norm, convolution


class PreActivationBlock(nnx.Module):
    """Batch norm, relu, 3x3 convolution, twice; where the width changes, the shortcut is a 1x1 convolution after
    the first relu.
    """

    def __init__(self, in_features: int, features: int, strides: int, *, rngs: nnx.Rngs):
        self.norm: nnx.Module = batch_norm(in_features, rngs=rngs)
        # The second batch norm comes right after the first convolution, and so can be folded into it.
        self.conv1 = ConvNorm(in_features, features, 3, strides, rngs=rngs)
        self.conv2 = convolution(features, features, 3, rngs=rngs)
        changes = in_features != features
        self.shortcut = nnx.data(
            convolution(in_features, features, 1, strides, rngs=rngs) if changes else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Feature maps in and out."""
        active = nnx.relu(self.norm(x))
        y = self.conv2(nnx.relu(self.conv1(active)))
        return y + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nnx.Module):
    """A 3x3 stem of 16 channels, three stages of pre-activation blocks, average pooling, linear layer.

    Args:
        num_classes: number of classes.
        input_shape: [height, width, channels].
        mean: per channel, for the normalisation layer inside.
        sd: per channel.
        depth: number of layers, 6n + 4.
        widen: how many times as wide as 16, 32 and 64 channels.
        rngs: random keys for the initial weights.
    """

    def __init__(
        self,
        num_classes: int,
        input_shape: tuple[int, int, int],
        mean: tuple[float, ...],
        sd: tuple[float, ...],
        *,
        depth: int,
        widen: int,
        rngs: nnx.Rngs,
    ):
        self.normalize = Normalize(mean, sd)
        self.stem = convolution(input_shape[-1], 16, 3, rngs=rngs)
        blocks, features = [], 16
        for stage, width in enumerate((16 * widen, 32 * widen, 64 * widen)):
            for number in range((depth - 4) // 6):
                strides = 2 if stage > 0 and number == 0 else 1
                blocks.append(PreActivationBlock(features, width, strides, rngs=rngs))
                features = width
        self.blocks = nnx.List(blocks)
        self.norm: nnx.Module = batch_norm(features, rngs=rngs)
        self.linear = nnx.Linear(features, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images [batch, height, width, channels] to logits [batch, num_classes]."""
        x = self.stem(self.normalize(x))
        for block in self.blocks:
            x = block(x)
        x = nnx.relu(self.norm(x))
        return self.linear(products.mean_pool(x))


wide_resnet28_10 = partial(WideResNet, depth=28, widen=10)
wide_resnet40_2 = partial(WideResNet, depth=40, widen=2)
