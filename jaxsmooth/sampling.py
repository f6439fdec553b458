"""Counting what a classifier says about noised copies of an input: the only place that calls a model.

The noise of sample j is drawn from ``fold_in(key, j)`` and nothing else. Batches, devices, the order
of work and restarts therefore cannot change it, and any range of samples can be drawn on its own.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxsmooth import validation
from jaxsmooth.noise import Noise, check_noise

ApplyFn = Callable[[Any, jax.Array], jax.Array]

# Sample indices are int32, and the last batch may reach past the last sample.
MAX_SAMPLE_INDEX = 2**31 - 1


def sample_counts(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Any,
    x: ArrayLike,
    *,
    noise: Noise,
    num_samples: int,
    batch_size: int,
    first_sample: int | jax.Array = 0,
) -> jax.Array:
    """Counts the classes that ``apply_fn`` gives to noised copies of x (SampleUnderNoise, Cohen et al. 2019).

    Sample j is ``x + noise.sample(fold_in(key, j), ...)``, for j in ``first_sample ..
    first_sample + num_samples - 1``, so that counts over adjoining ranges add up. A row whose logits
    are not finite is counted for no class: ``num_samples - counts.sum()`` is the number of such rows.

    Args:
        key: typed threefry key of the example, ``fold_in(jax.random.key(seed), i)`` for example i.
        apply_fn: ``(params, inputs[batch, ...] float32) -> logits[batch, num_classes]``; deterministic, each row
            independent of the others. Compiled once per function object: pass the same one each time.
        params: first argument of ``apply_fn``, any pytree.
        x: the input, floating point and finite, without a batch axis.
        noise: the noise, such as ``Gaussian(0.25)``; its scale may be traced.
        num_samples: how many samples, at least 1; changing it does not recompile.
        batch_size: rows per call of the model. It bounds the memory and changes no noise.
        first_sample: index of the first sample; may be traced.

    Returns:
        int32[num_classes].

    Raises:
        InputError: for an argument outside its range, or a model whose output is not [batch, classes].

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxsmooth import Gaussian
        >>> apply_fn = lambda w, inputs: inputs @ w
        >>> counts = sample_counts(jax.random.key(0), apply_fn, jnp.eye(2), jnp.array([9.0, 0.0]),
        ...                        noise=Gaussian(0.5), num_samples=100, batch_size=32)
        >>> counts.tolist()
        [100, 0]
    """
    num_samples = validation.check_integer("num_samples", num_samples, at_least=1)
    batch_size = validation.check_integer("batch_size", batch_size, at_least=1)
    if not validation.is_traced(first_sample):
        first_sample = validation.check_integer("first_sample", first_sample, at_least=0)
        check_last_sample(first_sample + num_samples, batch_size)
    edges = jnp.stack([jnp.int32(first_sample), jnp.int32(first_sample) + num_samples])
    return _checked_count(key, apply_fn, params, x, noise, edges, batch_size)[0]


def sample_stage_counts(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Any,
    x: ArrayLike,
    *,
    noise: Noise,
    stages: Sequence[int],
    batch_size: int,
) -> jax.Array:
    """Counts of consecutive stages of samples, in one pass that wastes nothing between them.

    Row s equals :func:`sample_counts` with ``num_samples=stages[s]`` and
    ``first_sample=sum(stages[:s])``; a batch may hold samples of two stages.

    Args:
        key: as in :func:`sample_counts`, like all arguments not named here.
        apply_fn: as there.
        params: as there.
        x: as there.
        noise: as there.
        stages: number of samples of each stage, each at least 1.
        batch_size: as there.

    Returns:
        int32[len(stages), num_classes].

    Raises:
        InputError: as there.
    """
    batch_size = validation.check_integer("batch_size", batch_size, at_least=1)
    sizes = [validation.check_integer("num_samples", size, at_least=1) for size in stages]
    check_last_sample(sum(sizes), batch_size)
    edges = jnp.asarray(np.concatenate([[0], np.cumsum(sizes)]), jnp.int32)
    return _checked_count(key, apply_fn, params, x, noise, edges, batch_size)


def check_input(x: ArrayLike, name: str = "x") -> jax.Array:
    """The input as float32; refuses other kinds of numbers, and values that are not finite where known."""
    dtype = getattr(x, "dtype", None)
    if dtype is None:
        try:
            x = np.asarray(x)
        except ValueError:
            raise validation.InputError(f"{name} must be an array, got a ragged sequence") from None
        dtype = x.dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise validation.InputError(
            f"{name} must be floating point, got {dtype}; convert it to the range the model was trained on"
        )
    if not validation.is_traced(x):
        with np.errstate(over="ignore"):
            not_finite = int(np.sum(~np.isfinite(np.asarray(x, np.float32))))
        if not_finite:
            raise validation.InputError(
                f"{name} must be finite, got {not_finite} entries that are NaN or infinite"
            )
    return jnp.asarray(x, jnp.float32)


def check_key(key: jax.Array) -> None:
    """A single typed threefry key, the generator for which the promise about the noise holds."""
    if not (hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise validation.InputError(
            f"key must be a typed key such as jax.random.key(0), got {getattr(key, 'dtype', type(key).__name__)}"
        )
    if key.shape != ():
        raise validation.InputError(
            f"key must be a single key, got shape {key.shape}; use jax.vmap for several"
        )
    implementation = str(jax.random.key_impl(key))
    if implementation != "threefry2x32":
        raise validation.InputError(
            f"key must use threefry2x32, whose noise does not depend on the batch, got {implementation}; "
            "make it with jax.random.key(seed, impl='threefry2x32')"
        )


def check_last_sample(end: int, batch_size: int) -> None:
    if end > MAX_SAMPLE_INDEX:
        raise validation.InputError(
            f"num_samples must keep sample indices below {MAX_SAMPLE_INDEX}, got a last index of {end}"
        )
    if end + batch_size > MAX_SAMPLE_INDEX:  # the padding has indices too
        raise validation.InputError(
            f"batch_size must keep sample indices below {MAX_SAMPLE_INDEX}, got {batch_size} after {end} samples"
        )


def _checked_count(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Any,
    x: ArrayLike,
    noise: Noise,
    edges: jax.Array,
    batch_size: int,
) -> jax.Array:
    check_key(key)
    check_noise(noise)
    x = check_input(x)
    if not callable(apply_fn):
        raise validation.InputError(
            f"apply_fn must be a function of (params, inputs), got {validation.show(apply_fn)}"
        )
    try:
        hash(apply_fn)
    except TypeError:
        raise validation.InputError(
            f"apply_fn must be hashable, got {type(apply_fn).__name__}; wrap it in a function: lambda params, x: ..."
        ) from None
    return _count(key, apply_fn, params, x, noise, edges, batch_size)


@partial(jax.jit, static_argnames=("apply_fn", "batch_size"))
def _count(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Any,
    x: jax.Array,
    noise: Noise,
    edges: jax.Array,
    batch_size: int,
) -> jax.Array:
    """Counts [len(edges) - 1, num_classes] of the samples between consecutive edges."""
    num_classes = check_num_classes(apply_fn, params, x.shape, batch_size)

    def add_batch(batch: jax.Array, counts: jax.Array) -> jax.Array:
        samples = edges[0] + batch * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
        votes = batch_votes(key, apply_fn, params, x, noise, samples, num_classes)
        in_stage = (samples >= edges[:-1, None]) & (samples < edges[1:, None])  # also masks the padding
        return counts + jnp.sum(in_stage[:, :, None] & votes, axis=1, dtype=jnp.int32)

    counts = jnp.zeros((edges.shape[0] - 1, num_classes), jnp.int32) + zero_from(
        (key, params, x, noise, edges)
    )
    num_batches = (edges[-1] - edges[0] + batch_size - 1) // batch_size
    return jax.lax.fori_loop(0, num_batches, add_batch, counts)


def batch_votes(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Any,
    x: jax.Array,
    noise: Noise,
    samples: jax.Array,
    num_classes: int,
) -> jax.Array:
    """One-hot answers, bool[batch, num_classes], for the given samples; all False where not finite.

    ``key`` and ``x`` are those of one example, or one of each per row: key[batch] and x[batch, ...].
    """
    shape, axis = (x.shape, None) if key.ndim == 0 else (x.shape[1:], 0)

    def noised(key: jax.Array, x: jax.Array, sample: jax.Array) -> jax.Array:
        return x + noise.sample(jax.random.fold_in(key, sample), shape, jnp.float32)

    logits = apply_fn(params, jax.vmap(noised, in_axes=(axis, axis, 0))(key, x, samples))
    answer = jnp.argmax(logits, axis=-1)[:, None] == jnp.arange(num_classes)
    return answer & jnp.all(jnp.isfinite(logits), axis=-1, keepdims=True)


class Segments(NamedTuple):
    """Ranges of samples of several examples, laid end to end as the rows of one piece of work.

    Attributes:
        slot: int32[num_segments], which example each segment belongs to.
        first_sample: int32[num_segments], index of its first sample.
        edges: int32[num_segments + 1], rising from 0: segment m is rows edges[m] .. edges[m+1] - 1. Unused
            segments at the end are empty.
    """

    slot: Any
    first_sample: Any
    edges: Any


def count_segments(
    keys: jax.Array,
    apply_fn: ApplyFn,
    params: Any,
    xs: jax.Array,
    *,
    noise: Noise,
    segments: Segments,
    batch_size: int,
    shard: int | jax.Array = 0,
    num_shards: int = 1,
) -> jax.Array:
    """Counts classes over segments of several examples, with no row wasted between them.

    What :func:`sample_counts` does for one range of one example, for a sweep: batches run through the rows
    from end to end, whichever example they belong to. Meant to be called inside jit or shard_map.

    Args:
        keys: typed keys [num_slots], one per example.
        apply_fn: as in :func:`sample_counts`.
        params: as there.
        xs: inputs [num_slots, ...], float32.
        noise: as there.
        segments: the work.
        batch_size: rows per call of the model.
        shard: which of ``num_shards`` interleaved shares of the batches to do; may be traced.
        num_shards: in how many shares the batches are dealt out.

    Returns:
        int32[num_segments, num_classes]; the shares of all shards add up to the whole.
    """
    num_classes = check_num_classes(apply_fn, params, xs.shape[1:], batch_size)
    edges = segments.edges

    def add_batch(batch: jax.Array, counts: jax.Array) -> jax.Array:
        rows = (batch * num_shards + shard) * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
        segment = jnp.searchsorted(edges, rows, side="right", method="compare_all") - 1
        segment = jnp.minimum(segment, segments.slot.shape[0] - 1)
        slot = segments.slot[segment]
        samples = segments.first_sample[segment] + rows - edges[segment]
        votes = batch_votes(keys[slot], apply_fn, params, xs[slot], noise, samples, num_classes)
        valid = (rows < edges[-1])[:, None]  # masks the padding
        return counts.at[segment].add((votes & valid).astype(jnp.int32))

    counts = jnp.zeros((segments.slot.shape[0], num_classes), jnp.int32)
    counts += zero_from((keys, params, xs, noise, segments, jnp.asarray(shard)))
    stride = num_shards * batch_size
    return jax.lax.fori_loop(0, (edges[-1] + stride - 1) // stride, add_batch, counts)


def check_num_classes(apply_fn: ApplyFn, params: Any, shape: tuple[int, ...], batch_size: int) -> int:
    """Number of classes, from the shape of the model's output; refuses any other kind of output."""
    logits = jax.eval_shape(apply_fn, params, jax.ShapeDtypeStruct((batch_size, *shape), jnp.float32))
    found = f"{getattr(logits, 'dtype', type(logits).__name__)}{list(getattr(logits, 'shape', ()))}"
    if not (hasattr(logits, "shape") and len(logits.shape) == 2 and logits.shape[0] == batch_size):
        raise validation.InputError(
            f"apply_fn must return logits of shape [batch, num_classes] = [{batch_size}, num_classes], got {found}"
        )
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise validation.InputError(f"apply_fn must return floating-point logits, got {found}")
    if logits.shape[1] < 2:
        raise validation.InputError(f"apply_fn must return logits for at least 2 classes, got {found}")
    return logits.shape[1]


def zero_from(tree: Any) -> jax.Array:
    """An int32 zero that varies over every mapped axis over which any leaf of the tree varies.

    Inside shard_map a loop's carry must vary over the same axes as what is added to it.
    """
    total = jnp.int32(0)
    for leaf in map(jnp.asarray, jax.tree.leaves(tree)):
        array = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        total += jnp.sum(jnp.reshape(array, -1)[:0]).astype(jnp.int32)
    return total
