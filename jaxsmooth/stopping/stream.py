"""Drawing samples of one example batch by batch, inside a compiled program, until something is decided."""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsmooth import sampling, validation
from jaxsmooth.noise import Noise
from jaxsmooth.sampling import ApplyFn


class Stream(NamedTuple):
    """One batch's share of the stream of samples.

    Attributes:
        selection_counts: int32[num_classes], up to the end of this batch.
        selected: the leader of the selection stage, once that is over.
        counts: int32[num_classes], of the estimation stage, before this batch.
        votes: bool[batch, num_classes], one-hot answers; all False for rows of the selection stage.
        drawn: int32[batch], estimation samples up to each row (not positive during the selection stage).
    """

    selection_counts: jax.Array
    selected: jax.Array
    counts: jax.Array
    votes: jax.Array
    drawn: jax.Array

    def seen(self, looks: jax.Array) -> jax.Array:
        """Whether a look, after so many estimation samples, falls into this batch."""
        return (looks >= self.drawn[0]) & (looks <= self.drawn[-1])

    def count_selected(self, looks: jax.Array) -> jax.Array:
        """Count of the selected class at looks of any shape."""
        votes = self.votes[:, self.selected] & (self.drawn <= looks[..., None])
        return self.counts[self.selected] + jnp.sum(votes, axis=-1, dtype=jnp.int32)

    def count_all(self, looks: jax.Array) -> jax.Array:
        """Counts [num_looks, num_classes] at looks [num_looks]."""
        votes = self.votes & (self.drawn <= looks[:, None])[..., None]
        return self.counts + jnp.sum(votes, axis=1, dtype=jnp.int32)


def sample_until(
    finished: Callable[[Any], jax.Array],
    decide: Callable[[Stream, Any], Any],
    start: Any,
    example: tuple[jax.Array, ApplyFn, Any, jax.Array, Noise],
    selection_samples: jax.Array,
    batch_size: int,
    zero: jax.Array,
) -> Any:
    """Draws batch after batch and updates a state, ``decide(stream, state)``, until it is finished."""
    key, apply_fn, params, x, noise = example
    num_classes = sampling.check_num_classes(apply_fn, params, x.shape, batch_size)

    def step(carry: tuple) -> tuple:
        batch, selection_counts, counts, state = carry
        samples = batch * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
        votes = sampling.batch_votes(key, apply_fn, params, x, noise, samples, num_classes)
        drawn = samples - selection_samples + 1
        estimating = (drawn > 0)[:, None]
        selection_counts += jnp.sum(votes & ~estimating, axis=0, dtype=jnp.int32)
        votes &= estimating
        stream = Stream(selection_counts, jnp.argmax(selection_counts), counts, votes, drawn)
        state = decide(stream, state)
        return batch + 1, selection_counts, counts + jnp.sum(votes, axis=0, dtype=jnp.int32), state

    none = jnp.zeros(num_classes, jnp.int32) + zero
    carry = (zero, none, none, start)
    return jax.lax.while_loop(lambda carry: ~finished(carry[-1]), step, carry)[-1]


def check_example(
    key: jax.Array,
    apply_fn: ApplyFn,
    x: ArrayLike,
    batch_size: int,
    selection_samples: int,
    num_samples: int,
) -> tuple[jax.Array, int, int]:
    sampling.check_key(key)
    x = sampling.check_input(x)
    batch_size = validation.check_integer("batch_size", batch_size, at_least=1)
    selection_samples = validation.check_integer("selection_samples", selection_samples, at_least=1)
    sampling.check_last_sample(selection_samples + num_samples, batch_size)
    if not (callable(apply_fn) and isinstance(apply_fn, Hashable)):
        raise validation.InputError(
            f"apply_fn must be a hashable function of (params, inputs), got {type(apply_fn).__name__}"
        )
    return x, batch_size, selection_samples
