"""Residual networks (He et al. 2016) of the published smoothed classifiers."""

from functools import partial

import jax
from flax import nnx

from jaxsmooth.models import products
from jaxsmooth.models.layers import ConvNorm, Normalize


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions; the shortcut is a 1x1 convolution where the shape changes."""

    expansion = 1

    def __init__(self, in_features: int, features: int, strides: int, *, rngs: nnx.Rngs):
        self.conv1 = ConvNorm(in_features, features, 3, strides, rngs=rngs)
        self.conv2 = ConvNorm(features, features, 3, rngs=rngs)
        changes = strides != 1 or in_features != features
        self.shortcut = nnx.data(ConvNorm(in_features, features, 1, strides, rngs=rngs) if changes else None)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Feature maps in and out."""
        y = self.conv2(nnx.relu(self.conv1(x)))
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class Bottleneck(nnx.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions, the last four times as wide."""

    expansion = 4

    def __init__(self, in_features: int, features: int, strides: int, *, rngs: nnx.Rngs):
        out = features * self.expansion
        self.conv1 = ConvNorm(in_features, features, 1, rngs=rngs)
        self.conv2 = ConvNorm(features, features, 3, strides, rngs=rngs)
        self.conv3 = ConvNorm(features, out, 1, rngs=rngs)
        changes = strides != 1 or in_features != out
        self.shortcut = nnx.data(ConvNorm(in_features, out, 1, strides, rngs=rngs) if changes else None)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Feature maps in and out."""
        y = self.conv3(nnx.relu(self.conv2(nnx.relu(self.conv1(x)))))
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nnx.Module):
    """Stem, stages of residual blocks, average pooling, linear layer; the normalisation layer is inside.

    Args:
        num_classes: number of classes.
        input_shape: [height, width, channels].
        mean: per channel, for the normalisation layer.
        sd: per channel.
        block: BasicBlock or Bottleneck.
        stages: number of blocks of each stage.
        widths: channels of each stage.
        large_stem: 7x7 convolution with stride 2 and max-pooling (ImageNet), else 3x3 (CIFAR).
        rngs: random keys for the initial weights.
    """

    def __init__(
        self,
        num_classes: int,
        input_shape: tuple[int, int, int],
        mean: tuple[float, ...],
        sd: tuple[float, ...],
        *,
        block: type[BasicBlock] | type[Bottleneck],
        stages: tuple[int, ...],
        widths: tuple[int, ...],
        large_stem: bool,
        rngs: nnx.Rngs,
    ):
        self.normalize = Normalize(mean, sd)
        self.large_stem = large_stem
        self.stages = stages
        channels = input_shape[-1]
        self.stem = ConvNorm(channels, widths[0], *((7, 2) if large_stem else (3, 1)), rngs=rngs)
        blocks, features = [], widths[0]
        for stage, (count, width) in enumerate(zip(stages, widths, strict=True)):
            for number in range(count):
                strides = 2 if stage > 0 and number == 0 else 1
                blocks.append(block(features, width, strides, rngs=rngs))
                features = width * block.expansion
        self.blocks = nnx.List(blocks)
        self.linear = nnx.Linear(features, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images [batch, height, width, channels] to logits [batch, num_classes]."""
        x = nnx.relu(self.stem(self.normalize(x)))
        if self.large_stem:
            x = products.max_pool(x, 3, stride=2, padding=1)
        for block in self.blocks:
            x = block(x)
        return self.linear(products.mean_pool(x))


def _cifar(depth: int) -> partial[ResNet]:
    per_stage = (depth - 2) // 6
    return partial(ResNet, block=BasicBlock, stages=(per_stage,) * 3, widths=(16, 32, 64), large_stem=False)


cifar_resnet20 = _cifar(20)
cifar_resnet56 = _cifar(56)
cifar_resnet110 = _cifar(110)
resnet50 = partial(ResNet, block=Bottleneck, stages=(3, 4, 6, 3), widths=(64, 128, 256, 512), large_stem=True)
