"""Training losses: pure functions of (logits_fn, key, images, labels)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsmooth.noise import Noise


class Loss(NamedTuple):
    """A loss and what to report beside it.

    Attributes:
        value: mean loss over the batch.
        accuracy: share of noised images that are classified correctly.
        gradient_norm: l2 norm of the gradient, filled in by the loop.
    """

    value: jax.Array
    accuracy: jax.Array
    gradient_norm: jax.Array | float = 0.0


def gaussian_augmentation(
    logits_fn: Callable[[jax.Array], jax.Array],
    key: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    *,
    noise: Noise,
) -> Loss:
    """Cross-entropy on one noised copy of each image (Lecuyer et al. 2019; Cohen et al. 2019, section 3.3).

    Args:
        logits_fn: images [batch, ...] to logits [batch, num_classes]; normalises inside.
        key: typed key; fresh for each step.
        images: float32 [batch, ...]. The noised images are not clipped.
        labels: int32 [batch].
        noise: the noise of certification.
    """
    keys = jax.random.split(key, images.shape[0])
    noised = images + jax.vmap(lambda key: noise.sample(key, images.shape[1:], jnp.float32))(keys)
    logits = logits_fn(noised)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return Loss(jnp.mean(losses), jnp.mean(jnp.argmax(logits, axis=-1) == labels))
