"""Vision transformers (Dosovitskiy et al. 2021; the small one is of Touvron et al. 2021)."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from jaxsmooth import validation
from jaxsmooth.models.layers import Normalize

_WEIGHTS = nnx.initializers.truncated_normal(0.02)


class EncoderBlock(nnx.Module):
    """Self-attention, then a perceptron four times as wide; layer norm before each, and a sum around each."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.norm1 = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.query_key_value = nnx.Linear(width, 3 * width, kernel_init=_WEIGHTS, rngs=rngs)
        self.projection = nnx.Linear(width, width, kernel_init=_WEIGHTS, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.linear1 = nnx.Linear(width, 4 * width, kernel_init=_WEIGHTS, rngs=rngs)
        self.linear2 = nnx.Linear(4 * width, width, kernel_init=_WEIGHTS, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Tokens [batch, tokens, width] in and out."""
        batch, tokens, width = x.shape
        split = self.query_key_value(self.norm1(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        # The softmax inside is in float32 whatever the dtype.
        mixed = jax.nn.dot_product_attention(split[:, :, 0], split[:, :, 1], split[:, :, 2])
        x = x + self.projection(mixed.reshape(batch, tokens, width))
        return x + self.linear2(nnx.gelu(self.linear1(self.norm2(x)), approximate=False))


class VisionTransformer(nnx.Module):
    """Patches and a class token with learned positions, encoder blocks, and a linear layer on the class token.

    Args:
        num_classes: number of classes.
        input_shape: [height, width, channels]; height and width multiples of ``patch``.
        mean: per channel, for the normalisation layer inside.
        sd: per channel.
        patch: height and width of a patch.
        width: numbers per token.
        heads: of the attention.
        depth: number of encoder blocks.
        rngs: random keys for the initial weights.

    Raises:
        InputError: for an image that cannot be cut into whole patches.
    """

    def __init__(
        self,
        num_classes: int,
        input_shape: tuple[int, int, int],
        mean: tuple[float, ...],
        sd: tuple[float, ...],
        *,
        patch: int = 16,
        width: int,
        heads: int,
        depth: int = 12,
        rngs: nnx.Rngs,
    ):
        height, image_width, channels = input_shape
        if height % patch or image_width % patch:
            raise validation.InputError(
                f"input_shape must be a multiple of {patch} in height and width, got {list(input_shape)}"
            )
        tokens = (height // patch) * (image_width // patch) + 1
        self.normalize = Normalize(mean, sd)
        self.patches = nnx.Conv(
            channels,
            width,
            (patch, patch),
            strides=patch,
            padding="VALID",
            kernel_init=nnx.initializers.lecun_normal(),
            rngs=rngs,
        )
        self.class_token = nnx.Param(_WEIGHTS(rngs.params(), (1, 1, width)))
        self.positions = nnx.Param(_WEIGHTS(rngs.params(), (1, tokens, width)))
        self.blocks = nnx.List([EncoderBlock(width, heads, rngs=rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.linear = nnx.Linear(width, num_classes, kernel_init=_WEIGHTS, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images [batch, height, width, channels] to logits [batch, num_classes]."""
        x = self.patches(self.normalize(x))
        batch, _, _, width = x.shape
        token = jnp.broadcast_to(self.class_token[...], (batch, 1, width))
        x = jnp.concatenate([token, x.reshape(batch, -1, width)], axis=1) + self.positions[...]
        for block in self.blocks:
            x = block(x)
        return self.linear(self.norm(x[:, 0]))


vit_b16 = partial(VisionTransformer, width=768, heads=12)
vit_s16 = partial(VisionTransformer, width=384, heads=6)
