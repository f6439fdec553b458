"""A classifier whose arithmetic is exact, so that counts must be equal however the rows are batched."""

import jax
import jax.numpy as jnp
import numpy as np

NUM_CLASSES = 7
SHAPE = (3, 2, 1)


def apply_fn(params, inputs):
    """Hashes the bits of each row into a class."""
    bits = jax.lax.bitcast_convert_type(inputs, jnp.uint32).reshape(inputs.shape[0], -1)
    mixed = (
        jax.lax.reduce(bits * jnp.uint32(2654435761), jnp.uint32(0), jax.lax.bitwise_xor, (1,))
        + params["salt"]
    )
    # Favours class 0, so that certificates are not all abstentions.
    hashed = (mixed >> 7) % 31
    return jax.nn.one_hot(jnp.where(hashed < NUM_CLASSES, hashed, 0), NUM_CLASSES)


PARAMS = {"salt": np.uint32(5)}


def images(index):
    """Input of an example."""
    return np.full(SHAPE, index / 8, np.float32)
