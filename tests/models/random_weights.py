"""Networks with every number in them random, running statistics included; nothing is compiled for it."""

import math

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxsmooth.models import registry


def spec(name, num_classes=10, input_shape=(8, 8, 3)):
    channels = input_shape[-1]
    return registry.ModelSpec(name, num_classes, input_shape, (0.4,) * channels, (0.3,) * channels)


def fill(make, seed=0):
    """The network that ``make`` builds, filled from NumPy."""
    model = nnx.eval_shape(make)
    rng = np.random.default_rng(seed)
    for _, module in nnx.iter_modules(model):
        for name, variable in vars(module).items():
            if isinstance(variable, nnx.Variable):
                draws = rng.normal(size=variable.shape)
                if name in ("scale", "var"):
                    draws = np.exp(0.3 * draws)
                elif name == "kernel":
                    draws /= math.sqrt(math.prod(variable.shape[:-1]))
                else:
                    draws *= 0.2
                variable.set_value(jnp.asarray(draws, jnp.float32))
    return model


def build(name, num_classes=10, input_shape=(8, 8, 3), seed=0):
    """A network of the registry."""
    return fill(lambda: registry.build(spec(name, num_classes, input_shape)), seed)


def images(number, shape=(8, 8, 3), seed=0):
    """float32[number, height, width, channels] around [0, 1]."""
    return jnp.asarray(np.random.default_rng(seed).normal(0.5, 0.5, (number, *shape)), jnp.float32)
