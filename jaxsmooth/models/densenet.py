"""Densely connected networks (Huang et al. 2017) in the shape of Jeong and Shin's published checkpoints."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from jaxsmooth.models import products
from jaxsmooth.models.layers import ConvNorm, Normalize, batch_norm, convolution


class DenseLayer(nnx.Module):
    """Batch norm, relu, 1x1 convolution, batch norm, relu, 3x3 convolution; its channels join those of the input."""

    def __init__(self, in_features: int, growth: int, *, rngs: nnx.Rngs):
        self.norm: nnx.Module = batch_norm(in_features, rngs=rngs)
        self.conv1 = ConvNorm(in_features, 4 * growth, 1, rngs=rngs)
        self.conv2 = convolution(4 * growth, growth, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Feature maps [..., in_features] to [..., in_features + growth]."""
        y = nnx.relu(self.norm(x))
        return jnp.concatenate([x, self.conv2(nnx.relu(self.conv1(y)))], axis=-1)


class DenseNet(nnx.Module):
    """A 3x3 stem, dense blocks with 2x2 average pooling between them, average pooling, linear layer.

    Args:
        num_classes: number of classes.
        input_shape: [height, width, channels].
        mean: per channel, for the normalisation layer inside.
        sd: per channel.
        blocks: layers of each dense block.
        growth: channels that each layer adds.
        rngs: random keys for the initial weights.
    """

    def __init__(
        self,
        num_classes: int,
        input_shape: tuple[int, int, int],
        mean: tuple[float, ...],
        sd: tuple[float, ...],
        *,
        blocks: tuple[int, ...],
        growth: int,
        rngs: nnx.Rngs,
    ):
        self.normalize = Normalize(mean, sd)
        features = 2 * growth
        self.stem = convolution(input_shape[-1], features, 3, rngs=rngs)
        dense = []
        for layers in blocks:
            dense.append(
                nnx.List(
                    [DenseLayer(features + number * growth, growth, rngs=rngs) for number in range(layers)]
                )
            )
            features += layers * growth
        self.blocks = nnx.List(dense)
        self.norm: nnx.Module = batch_norm(features, rngs=rngs)
        self.linear = nnx.Linear(features, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images [batch, height, width, channels] to logits [batch, num_classes]."""
        x = self.stem(self.normalize(x))
        for number, block in enumerate(self.blocks):
            if number > 0:
                x = nnx.avg_pool(x, (2, 2), strides=(2, 2))
            for layer in block:
                x = layer(x)
        x = nnx.relu(self.norm(x))
        return self.linear(products.mean_pool(x))


cifar_densenet40 = partial(DenseNet, blocks=(6, 6, 6), growth=12)
