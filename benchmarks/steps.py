"""The work that is measured: networks, and programs that stop short of a whole certifier at one point each.

All of them run sharded over a mesh, as sampling does. The loops take the number of batches as an
argument and are compiled ahead of time, so that compilation is timed apart and the memory is known.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import common
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxsmooth import Gaussian, devices, sampling
from jaxsmooth.models import registry
from jaxsmooth.sampling import ApplyFn

SIGMA = 0.25
_EVERYWHERE, _SPLIT = PartitionSpec(), PartitionSpec(devices.NOISE_AXIS)

# Dense FLOP/s of one device, from the manufacturers' data sheets: of the vector units in float32 (of the matrix units
# where there is nothing else), of the matrix units in bfloat16.
_PEAKS = {
    "H200": {"float32": 67e12, "bfloat16": 989e12},
    "H100 PCIe": {"float32": 51e12, "bfloat16": 756e12},
    "H100 NVL": {"float32": 60e12, "bfloat16": 835e12},
    "H100": {"float32": 67e12, "bfloat16": 989e12},
    "A100": {"float32": 19.5e12, "bfloat16": 312e12},
    "TPU v4": {"bfloat16": 275e12},
    "TPU v5 lite": {"bfloat16": 197e12},
    "TPU v5e": {"bfloat16": 197e12},
}


class Network(NamedTuple):
    """A network with weights that nobody trained.

    Attributes:
        name: as in the registry.
        model: the module, with batch normalisation.
        apply_fn: for inference.
        params: for inference.
        shape: of one input.
        num_classes: number of classes.
    """

    name: str
    model: nnx.Module
    apply_fn: ApplyFn
    params: Any
    shape: tuple[int, ...]
    num_classes: int


def network(name: str, dtype: str = "float32") -> Network:
    """Builds a network in its usual size.

    Args:
        name: as in the registry.
        dtype: of the arithmetic.

    Raises:
        SystemExit: for a name that the registry does not know, in one line.
    """
    if name not in registry.names():
        raise SystemExit(f"network must be one of {', '.join(registry.names())}, got {name!r}")
    usual = registry.NETWORKS[name]
    channels = usual.input_shape[-1]
    model = registry.build(
        registry.ModelSpec(name, usual.num_classes, usual.input_shape, (0.5,) * channels, (0.25,) * channels)
    )
    random_statistics(model)
    apply_fn, params = registry.inference(model, dtype)
    return Network(name, model, apply_fn, params, usual.input_shape, usual.num_classes)


def random_statistics(model: nnx.Module) -> None:
    """Batch statistics and scales unlike their initial ones, small enough that depth does not blow signals up."""
    rng = np.random.default_rng(0)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.BatchNorm):
            for variable, low, high in (
                (module.mean, -0.1, 0.1),
                (module.var, 0.5, 1.5),
                (module.scale, 0.2, 0.4),
                (module.bias, -0.1, 0.1),
            ):
                variable[...] = jnp.asarray(rng.uniform(low, high, variable.shape), jnp.float32)


def images(shape: tuple[int, ...], count: int = 16) -> np.ndarray:
    """Inputs in [0, 1], float32[count, ...]."""
    return np.random.default_rng(1).random((count, *shape), np.float32)


def rows_per_device(batch_size: int, mesh: Mesh) -> int:
    """Rows of a batch that each device gets."""
    return -(-batch_size // mesh.size)


# ---- programs


class Program(NamedTuple):
    """A compiled loop over batches.

    Attributes:
        run: number of batches -> its output, not waited for.
        rows: samples of one batch, over all devices.
        lower_seconds: tracing and lowering took.
        compile_seconds: compiling took.
        temp_bytes: memory for intermediate values, per device; None where the compiler does not say.
    """

    run: Callable[[int], jax.Array]
    rows: int
    lower_seconds: float
    compile_seconds: float
    temp_bytes: int | None

    def way(self, batches: int) -> int:
        """Runs and waits."""
        jax.block_until_ready(self.run(batches))
        return batches * self.rows

    def costs(self) -> dict[str, Any]:
        """What is known before running."""
        return {name: getattr(self, name) for name in ("lower_seconds", "compile_seconds", "temp_bytes")}


def compiled(function: Any, *arguments: Any) -> tuple[Any, float, float, int | None]:
    """The executable of a jitted function, seconds to lower and to compile it, and its temporary memory."""
    started = time.perf_counter()
    lowered = function.lower(*arguments)
    lowered_at = time.perf_counter()
    executable = lowered.compile()
    done = time.perf_counter()
    memory = getattr(executable.memory_analysis(), "temp_size_in_bytes", None)
    return executable, lowered_at - started, done - lowered_at, memory


def bare_calls(mesh: Mesh, net: Network, batch_size: int) -> Program:
    """The forward pass on stored inputs, one call of the program per batch."""
    rows = rows_per_device(batch_size, mesh) * mesh.size
    stored = jax.device_put(images(net.shape, rows), NamedSharding(mesh, _SPLIT))
    params = devices.replicate(net.params, mesh)
    function = jax.jit(
        jax.shard_map(net.apply_fn, mesh=mesh, in_specs=(_EVERYWHERE, _SPLIT), out_specs=_SPLIT)
    )
    executable, *costs = compiled(function, params, stored)

    def run(batches: int) -> jax.Array:
        # Waiting for the one before the last keeps one call in flight, and the results of a few only in memory.
        last = [executable(params, stored)]
        for _ in range(batches - 1):
            last = [*last[-1:], executable(params, stored)]
            jax.block_until_ready(last[0])
        return last[-1]

    return Program(run, rows, *costs)


def _loop(
    mesh: Mesh, batch_size: int, body: Callable[..., jax.Array], carry: Any, *arguments: Any, specs: Any
) -> Program:
    """A program that folds ``body(carry, batch, samples, *arguments)`` over batches on every device.

    Args:
        mesh: devices.
        batch_size: rows over all devices.
        body: one batch of one device; ``samples`` are the indices of its rows.
        carry: shape and dtype of what is folded.
        arguments: on the devices.
        specs: how each of them is laid out.
    """
    rows = rows_per_device(batch_size, mesh)

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=(_EVERYWHERE, *specs), out_specs=_SPLIT)
    def function(num_batches: jax.Array, *arguments: Any) -> jax.Array:
        shard = jax.lax.axis_index(devices.NOISE_AXIS)

        def step(batch: jax.Array, value: jax.Array) -> jax.Array:
            samples = (batch * mesh.size + shard) * rows + jnp.arange(rows, dtype=jnp.int32)
            return body(value, batch, samples, *arguments)

        zero = sampling.zero_from((arguments, shard)).astype(carry.dtype)
        return jax.lax.fori_loop(0, num_batches, step, jnp.zeros(carry.shape, carry.dtype) + zero)[None]

    executable, *costs = compiled(function, np.int32(1), *arguments)
    return Program(lambda batches: executable(np.int32(batches), *arguments), rows * mesh.size, *costs)


def bare_loop(mesh: Mesh, net: Network, batch_size: int) -> Program:
    """The forward pass on stored inputs, in one program that loops over batches: what nothing can exceed.

    Two stored batches take turns, and the logits are kept as a running maximum, so that no compiler can move the
    network out of the loop.
    """
    rows = rows_per_device(batch_size, mesh)
    layout = PartitionSpec(None, devices.NOISE_AXIS)
    stored = jax.device_put(
        images(net.shape, 2 * rows * mesh.size).reshape(2, rows * mesh.size, *net.shape),
        NamedSharding(mesh, layout),
    )

    def body(best: jax.Array, batch: jax.Array, _: jax.Array, params: Any, stored: jax.Array) -> jax.Array:
        inputs = jax.lax.dynamic_index_in_dim(stored, batch % 2, keepdims=False)
        return jnp.maximum(best, net.apply_fn(params, inputs))

    carry = jax.eval_shape(net.apply_fn, net.params, jax.ShapeDtypeStruct((rows, *net.shape), jnp.float32))
    params = devices.replicate(net.params, mesh)
    return _loop(mesh, batch_size, body, carry, params, stored, specs=(_EVERYWHERE, layout))


def noised_loop(mesh: Mesh, net: Network, batch_size: int) -> Program:
    """The same with noise added to one input instead of stored ones."""
    rows = rows_per_device(batch_size, mesh)
    noise = Gaussian(SIGMA)

    def body(
        best: jax.Array, _: jax.Array, samples: jax.Array, key: jax.Array, params: Any, x: jax.Array
    ) -> jax.Array:
        noised = jax.vmap(lambda j: x + noise.sample(jax.random.fold_in(key, j), net.shape, jnp.float32))
        return jnp.maximum(best, net.apply_fn(params, noised(samples)))

    carry = jax.eval_shape(net.apply_fn, net.params, jax.ShapeDtypeStruct((rows, *net.shape), jnp.float32))
    arguments = devices.replicate((jax.random.key(0), net.params, images(net.shape)[0]), mesh)
    return _loop(mesh, batch_size, body, carry, *arguments, specs=(_EVERYWHERE,) * 3)


def counting_loop(mesh: Mesh, net: Network, batch_size: int) -> Program:
    """The same with its answers counted."""
    noise = Gaussian(SIGMA)

    def body(
        counts: jax.Array, _: jax.Array, samples: jax.Array, key: jax.Array, params: Any, x: jax.Array
    ) -> jax.Array:
        votes = sampling.batch_votes(key, net.apply_fn, params, x, noise, samples, net.num_classes)
        return counts + jnp.sum(votes, axis=0, dtype=jnp.int32)

    carry = jax.ShapeDtypeStruct((net.num_classes,), jnp.int32)
    arguments = devices.replicate((jax.random.key(0), net.params, images(net.shape)[0]), mesh)
    return _loop(mesh, batch_size, body, carry, *arguments, specs=(_EVERYWHERE,) * 3)


def noise_loop(
    mesh: Mesh,
    shape: tuple[int, ...],
    batch_size: int,
    draw: Callable[..., jax.Array],
    key: jax.Array,
    dtype: Any,
) -> Program:
    """Batches of noise alone, each written to memory over the one before.

    Args:
        mesh: devices.
        shape: of one input.
        batch_size: rows over all devices.
        draw: ``draw(key, samples, shape)``, [rows, *shape] of the given dtype.
        key: replicated to all devices.
        dtype: of the noise.
    """
    rows = rows_per_device(batch_size, mesh)

    def body(_: jax.Array, __: jax.Array, samples: jax.Array, key: jax.Array) -> jax.Array:
        return draw(key, samples, shape)

    carry = jax.ShapeDtypeStruct((rows, *shape), dtype)
    return _loop(mesh, batch_size, body, carry, devices.replicate(key, mesh), specs=(_EVERYWHERE,))


def our_noise(key: jax.Array, samples: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Noise as sampling draws it: a key of its own for each sample."""
    noise = Gaussian(SIGMA)
    return jax.vmap(lambda j: noise.sample(jax.random.fold_in(key, j), shape, jnp.float32))(samples)


def sampling_way(mesh: Mesh, net: Network, batch_size: int) -> common.Way:
    """``sample_counts`` over a mesh; compiles when first called."""
    x = images(net.shape)[0]
    params = devices.replicate(net.params, mesh)
    key = jax.random.key(0)
    rows = rows_per_device(batch_size, mesh) * mesh.size

    def way(batches: int) -> int:
        devices.sharded_sample_counts(
            key,
            net.apply_fn,
            params,
            x,
            mesh=mesh,
            noise=Gaussian(SIGMA),
            num_samples=batches * rows,
            batch_size=batch_size,
        )
        return batches * rows

    return way


# ---- arithmetic


def peak_flops(mesh: Mesh, dtype: str, seconds: float = 1.0) -> tuple[float | None, str]:
    """FLOP/s that all devices of a mesh could do together, and where the figure comes from.

    On a CPU it is the best of five that a large matrix product reaches there, elsewhere the data sheet's; None where
    unknown.
    """
    device = mesh.devices.flat[0]
    if device.platform == "cpu":
        return _matmul_flops(mesh, dtype, seconds), "a large matrix product, measured"
    for kind, peaks in _PEAKS.items():
        if kind in device.device_kind:
            found = peaks.get(dtype)
            return found and found * mesh.size, "data sheet"
    return None, "unknown"


def _matmul_flops(mesh: Mesh, dtype: str, seconds: float) -> float:
    size = 1024 if seconds > 0.1 else 128
    rng = np.random.default_rng(0)
    # Scaled so that products neither grow nor die out.
    weights = devices.replicate(jnp.asarray(rng.normal(size=(size, size)) / size**0.5, dtype), mesh)

    def body(value: jax.Array, batch: jax.Array, _: jax.Array, weights: jax.Array) -> jax.Array:
        value = jnp.where(batch == 0, weights, value)
        return jnp.dot(value, weights, preferred_element_type=jnp.float32).astype(dtype)

    carry = jax.ShapeDtypeStruct((size, size), dtype)
    program = _loop(mesh, mesh.size, body, carry, weights, specs=(_EVERYWHERE,))
    products = common.calibrate(program.way, seconds)
    rates = common.interleave({"products": program.way}, {"products": products}, 5)["products"]
    return max(rates) * 2 * size**3
