"""The LeNet for MNIST of MACER's and Jeong and Shin's published checkpoints (after LeCun et al. 1998)."""

import jax
from flax import nnx

from jaxsmooth.models.layers import Normalize


class LeNet(nnx.Module):
    """Two 5x5 convolutions (20 and 50 channels) with 2x2 max-pooling, 500 hidden units, linear layer.

    Args:
        num_classes: number of classes.
        input_shape: [height, width, channels].
        mean: per channel, for the normalisation layer inside.
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
        # Each convolution takes off four pixels, each pooling halves.
        height, width = (((side - 4) // 2 - 4) // 2 for side in input_shape[:2])
        self.normalize = Normalize(mean, sd)
        self.conv1 = nnx.Conv(input_shape[-1], 20, (5, 5), padding="VALID", rngs=rngs)
        self.conv2 = nnx.Conv(20, 50, (5, 5), padding="VALID", rngs=rngs)
        self.hidden = nnx.Linear(height * width * 50, 500, rngs=rngs)
        self.linear = nnx.Linear(500, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images [batch, height, width, channels] to logits [batch, num_classes]."""
        x = self.normalize(x)
        for conv in (self.conv1, self.conv2):
            x = nnx.max_pool(nnx.relu(conv(x)), (2, 2), strides=(2, 2))
        return self.linear(nnx.relu(self.hidden(x.reshape(x.shape[0], -1))))
