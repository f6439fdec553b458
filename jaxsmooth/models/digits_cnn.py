"""A small convolutional network for small images."""

import jax
from flax import nnx

from jaxsmooth.models.layers import Normalize


class DigitsCNN(nnx.Module):
    """Three 3x3 convolutions (16, 32, 32 channels, the second with stride 2) and a linear layer.

    Args:
        num_classes: number of classes.
        input_shape: [height, width, channels].
        mean: per channel, for the normalisation layer.
        sd: per channel.
        rngs: random keys for the initial weights.
    """

    def __init__(
        self,
        num_classes: int,
        input_shape: tuple[int, int, int],
        mean: tuple[float, ...],
        sd: tuple[float, ...],
        *,
        rngs: nnx.Rngs,
    ):
        height, width, channels = input_shape
        self.normalize = Normalize(mean, sd)
        self.conv1 = nnx.Conv(channels, 16, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, (3, 3), strides=2, rngs=rngs)
        self.conv3 = nnx.Conv(32, 32, (3, 3), rngs=rngs)
        self.linear = nnx.Linear(32 * (-(-height // 2)) * (-(-width // 2)), num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images [batch, height, width, channels] to logits [batch, num_classes]."""
        x = self.normalize(x)
        for conv in (self.conv1, self.conv2, self.conv3):
            x = nnx.relu(conv(x))
        return self.linear(x.reshape(x.shape[0], -1))
