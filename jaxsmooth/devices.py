"""The same sampling over many devices: meshes, and the sharded step of a sweep."""

import math
import os
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from jaxsmooth import validation
from jaxsmooth.noise import Noise
from jaxsmooth.sampling import (
    MAX_SAMPLE_INDEX,
    ApplyFn,
    Segments,
    check_input,
    check_key,
    count_segments,
)

EXAMPLE_AXIS = "example"
NOISE_AXIS = "noise"

StepFn = Callable[[jax.Array, Any, Any, Any, Noise, Segments], jax.Array]


def noise_mesh(
    num_devices: int | None = None, platform: str | None = None, *, example_shards: int | None = None
) -> Mesh:
    """A mesh of this process's own devices, over which samples are dealt out.

    One axis, "noise", serves every purpose of a sweep. With ``example_shards`` there is an axis "example" before
    it, over which :func:`sharded_sample_counts` deals out the examples of a batch: devices far apart then share
    no example.

    Args:
        num_devices: how many devices to use; all of them when None.
        platform: "cpu", "gpu" or "tpu"; JAX's default when None.
        example_shards: size of the example axis, a divisor of the number of devices; no such axis when None.

    Raises:
        InputError: when there are no devices of that kind, fewer than asked for, or a number of them that
            example_shards does not divide.

    Example:
        >>> noise_mesh(1).shape["noise"]
        1
    """
    try:
        devices = jax.local_devices(backend=platform)
    except RuntimeError:
        raise validation.InputError(
            f"platform must be one that this machine has, got {platform!r}; it has {jax.default_backend()!r}"
        ) from None
    if num_devices is not None:
        num_devices = validation.check_integer("num_devices", num_devices, at_least=1)
        if num_devices > len(devices):
            raise validation.InputError(
                f"num_devices must be at most {len(devices)}, the {devices[0].platform} devices here, got {num_devices}"
            )
    chosen = np.array(devices[:num_devices])
    if example_shards is None:
        return Mesh(chosen, (NOISE_AXIS,), axis_types=(AxisType.Auto,))
    example_shards = validation.check_integer("example_shards", example_shards, at_least=1)
    if chosen.size % example_shards:
        raise validation.InputError(
            f"example_shards must divide the number of devices, {chosen.size}, got {example_shards}"
        )
    return Mesh(
        chosen.reshape(example_shards, -1), (EXAMPLE_AXIS, NOISE_AXIS), axis_types=(AxisType.Auto,) * 2
    )


def use_every_core() -> None:
    """Gives each CPU core an XLA device of its own; call it before anything else asks JAX for devices.

    XLA leaves cores idle within one device, so that one device per core is faster. Harmless where there
    are accelerators, and when devices already exist.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        jax.config.update("jax_num_cpu_devices", cores or 1)
    except RuntimeError:  # devices exist already, perhaps set up by the user
        return


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A copy of every array on every device of a mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def segment_step(mesh: Mesh, apply_fn: ApplyFn, batch_size: int) -> StepFn:
    """The compiled step of a sweep: :func:`count_segments` with its batches dealt out over a mesh.

    Args:
        mesh: from :func:`noise_mesh`.
        apply_fn: as in ``sample_counts``.
        batch_size: rows per call of the model, over all devices together; rounded up to a multiple of their number.

    Returns:
        ``step(key, indices, params, xs, noise, segments) -> int32[num_devices, num_segments, num_classes]``:
        slot s holds example ``indices[s]``, whose input is ``xs[s]`` and whose noise comes from
        ``fold_in(key, indices[s])``, or from ``key`` itself where ``indices`` is None. One partial count per
        device: adding them up on the host needs no communication between devices.
    """
    num_devices = mesh.size
    rows_per_device = -(-batch_size // num_devices)
    everywhere, split = PartitionSpec(), PartitionSpec(mesh.axis_names)

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=everywhere, out_specs=split)
    def step(
        key: jax.Array,
        indices: jax.Array | None,
        params: Any,
        xs: jax.Array,
        noise: Noise,
        segments: Segments,
    ) -> jax.Array:
        if indices is None:
            keys = jnp.broadcast_to(key, xs.shape[:1])
        else:
            keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)
        counts = count_segments(
            keys,
            apply_fn,
            params,
            xs,
            noise=noise,
            segments=segments,
            batch_size=rows_per_device,
            shard=jax.lax.axis_index(mesh.axis_names),
            num_shards=num_devices,
        )
        return counts[None]

    return step


@lru_cache(maxsize=8)
def _batch_step(mesh: Mesh, apply_fn: ApplyFn, batch_size: int) -> Callable[..., jax.Array]:
    """Counts [noise shards, num_examples, num_classes] of one range of samples of every example of a batch."""
    num_shards = mesh.shape[NOISE_AXIS]
    rows_per_device = -(-batch_size // mesh.size)
    by_example = PartitionSpec(EXAMPLE_AXIS)

    @jax.jit
    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(by_example, PartitionSpec(), by_example, PartitionSpec(), PartitionSpec(), PartitionSpec()),
        out_specs=PartitionSpec(NOISE_AXIS, EXAMPLE_AXIS),
    )
    def step(
        keys: jax.Array,
        params: Any,
        xs: jax.Array,
        noise: Noise,
        first_sample: jax.Array,
        num_samples: jax.Array,
    ) -> jax.Array:
        slots = jnp.arange(xs.shape[0], dtype=jnp.int32)
        counts = count_segments(
            keys,
            apply_fn,
            params,
            xs,
            noise=noise,
            segments=Segments(
                slots,
                jnp.broadcast_to(first_sample, slots.shape),
                jnp.arange(xs.shape[0] + 1, dtype=jnp.int32) * num_samples,
            ),
            batch_size=rows_per_device,
            shard=jax.lax.axis_index(NOISE_AXIS),
            num_shards=num_shards,
        )
        return counts[None]

    return step


@lru_cache(maxsize=8)
def _cached_step(mesh: Mesh, apply_fn: ApplyFn, batch_size: int) -> StepFn:
    return segment_step(mesh, apply_fn, batch_size)


def sharded_sample_counts(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Any,
    x: ArrayLike,
    *,
    mesh: Mesh,
    noise: Noise,
    num_samples: int,
    batch_size: int,
    first_sample: int = 0,
) -> np.ndarray:
    """:func:`jaxsmooth.sample_counts` with its batches dealt out over a mesh: the same samples, the same counts.

    Args:
        key: as in ``sample_counts``, like all arguments not named here; or one key per example, [num_examples], on a
            mesh with an example axis, whose size has to divide num_examples.
        apply_fn: as there.
        params: as there.
        x: as there; [num_examples, ...] with several keys.
        mesh: from :func:`noise_mesh`.
        noise: as there.
        num_samples: as there.
        batch_size: rows per call of the model, over all devices together.
        first_sample: as there.

    Returns:
        int64[num_classes], or [num_examples, num_classes], NumPy.

    Raises:
        InputError: as there.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsmooth import Gaussian
        >>> sharded_sample_counts(jax.random.key(0), lambda w, x: x @ w, jnp.eye(2), jnp.array([9.0, 0.0]),
        ...                       mesh=noise_mesh(), noise=Gaussian(0.5), num_samples=100, batch_size=32)
        array([100,   0])
    """
    batched = hasattr(key, "shape") and key.shape != ()
    check_key(key[0] if batched else key)
    x = check_input(x)
    num_samples = validation.check_integer("num_samples", num_samples, at_least=1)
    first_sample = validation.check_integer("first_sample", first_sample, at_least=0)
    batch_size = validation.check_integer("batch_size", batch_size, at_least=1)
    if batched:
        _check_batch(key, x, mesh, num_samples)
        by_example = NamedSharding(mesh, PartitionSpec(EXAMPLE_AXIS))
        keys, xs = jax.device_put((key, x), by_example)
        step_fn = _batch_step(mesh, apply_fn, batch_size)
        counts = step_fn(
            keys, replicate(params, mesh), xs, noise, np.int32(first_sample), np.int32(num_samples)
        )
        return np.asarray(counts).sum(axis=0, dtype=np.int64)
    step = _cached_step(mesh, apply_fn, batch_size)
    segments = Segments(
        np.zeros(1, np.int32), np.array([first_sample], np.int32), np.array([0, num_samples], np.int32)
    )
    key, params = replicate((key, params), mesh)
    counts = step(key, None, params, np.asarray(x)[None], noise, segments)
    return np.asarray(counts).sum(axis=(0, 1), dtype=np.int64)


def _check_batch(keys: jax.Array, xs: jax.Array, mesh: Mesh, num_samples: int) -> None:
    shards = dict(mesh.shape).get(EXAMPLE_AXIS)
    if shards is None:
        raise validation.InputError(
            "mesh must have an example axis for several keys: noise_mesh(..., example_shards=...)"
        )
    if keys.ndim != 1 or xs.shape[:1] != keys.shape or keys.size % shards:
        raise validation.InputError(
            f"key and x must have one leading axis that example_shards = {shards} divides, got shapes {keys.shape} "
            f"and {xs.shape}"
        )
    if num_samples * (keys.size // shards) > MAX_SAMPLE_INDEX // 2:
        raise validation.InputError(
            f"num_samples times the {keys.size // shards} examples of a shard must be at most {MAX_SAMPLE_INDEX // 2}, "
            f"got {num_samples}"
        )


def auto_batch_size(mesh: Mesh, apply_fn: ApplyFn, params: Any, shape: tuple[int, ...]) -> int:
    """Rows per call of the model that suit the devices' memory: a power of two per device.

    A small forward pass is compiled, and its own memory analysis says what a row takes. Accelerators are
    given a third of their memory, at most 4,096 rows; a CPU core 64 MB, at most 64 rows: larger batches are not
    faster there, and fill more rows in vain when a sweep's examples stop early.

    Args:
        mesh: from :func:`noise_mesh`.
        apply_fn: as in ``sample_counts``.
        params: as there.
        shape: of one input, without a batch axis.

    Returns:
        Rows over all devices together.
    """
    rows = 16
    inputs = jax.ShapeDtypeStruct((rows, *shape), jnp.float32)
    analysis = jax.jit(apply_fn).lower(params, inputs).compile().memory_analysis()
    memory = getattr(analysis, "temp_size_in_bytes", 0) if analysis is not None else 0
    per_row = max(memory / rows, 8.0 * math.prod(shape), 1.0)
    device = mesh.devices.flat[0]
    if device.platform == "cpu":
        budget, most = 2.0**26, 64
    else:
        budget, most = (device.memory_stats() or {}).get("bytes_limit", 2**33) / 3, 4096
    fitting = min(most, max(1, int(budget / per_row)))
    return 2 ** int(math.log2(fitting)) * mesh.size


def join_job(
    coordinator: str | None = None, num_processes: int | None = None, process_index: int | None = None
) -> tuple[int, int]:
    """Joins a job of several processes through ``jax.distributed``; call it before anything else of JAX.

    Slurm, Open MPI, Cloud TPU and GKE are found without arguments. The processes never wait for each other
    while sampling; each waits for the rest only when it leaves (:func:`leave_job`).

    Args:
        coordinator: ``host:port`` of process 0.
        num_processes: how many there are.
        process_index: which one this is.

    Returns:
        (this process, number of processes).

    Raises:
        InputError: when the job cannot be found or joined.
    """
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_index, shutdown_timeout_seconds=30 * 24 * 3600
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise validation.InputError(
            "distributed must find its job (Slurm, Open MPI, Cloud TPU, GKE), or be given coordinator, "
            f"num_processes and process_index, got {coordinator}, {num_processes}, {process_index}: {reason}"
        ) from None
    return jax.process_index(), jax.process_count()


def leave_job() -> None:
    """Waits until every process of the job is done, then disconnects."""
    jax.distributed.shutdown()
