"""Eight simulated devices for the whole suite, set before JAX is first used."""

import os
import tempfile

import jax

# Nothing is left in the cache folder of the person who runs the tests.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="jaxsmooth-tests-")

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_platforms", "cpu")
jax.devices()  # made now: a command that a test calls asks for as many as there are cores
