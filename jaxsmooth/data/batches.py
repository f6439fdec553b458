"""Batches for training, read through grain: shuffled, augmented, from any step on, by several workers and hosts."""

import dataclasses
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator
from functools import lru_cache

import numpy as np

from jaxsmooth.data import augmentation
from jaxsmooth.data.dataset import Dataset

_THREADS = 2
_BATCHES_AHEAD = 4


@dataclasses.dataclass(frozen=True)
class Batches:
    """The batches of a training, each a function of the seed and its step alone.

    An epoch goes through the examples in a new order; what remains after its last full batch is left out.

    Attributes:
        dataset: training split.
        examples: int[num_examples], which examples of it to train on.
        batch_size: examples per step, over all hosts together.
        seed: of the order and the augmentation.
        augmentation: one of ``augmentation.AUGMENTATIONS``.
        host: (i, n): this host reads the i-th of n equal parts of every batch.
    """

    dataset: Dataset
    examples: np.ndarray
    batch_size: int
    seed: int
    augmentation: str = "none"
    host: tuple[int, int] = (0, 1)

    @property
    def per_epoch(self) -> int:
        """Steps of one epoch."""
        return len(self.examples) // self.batch_size

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """This host's part of a batch: images (uint8 or float32) and int32 labels."""
        epoch, number = divmod(step, self.per_epoch)
        order = _order(len(self.examples), self.seed, epoch)
        indices = self.examples[order[number * self.batch_size : (number + 1) * self.batch_size]]
        share = self.batch_size // self.host[1]
        rows = slice(self.host[0] * share, (self.host[0] + 1) * share)
        images = augmentation.read(
            self.dataset.images, indices, rows, self.augmentation, (self.seed, step, 1)
        )
        return images, self.dataset.labels[indices[rows]]

    def iterate(
        self, first_step: int, num_steps: int, num_workers: int = 0
    ) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
        """The batches of the steps ``first_step`` to ``num_steps - 1``, read ahead; close it when leaving early.

        Args:
            first_step: where to begin.
            num_steps: where to end.
            num_workers: processes that read; 0 reads in threads of this one, which is best for images in memory.
        """
        import grain

        steps = grain.MapDataset.range(first_step, num_steps).map(self.batch)
        if not num_workers:
            yield from steps.to_iter_dataset(
                grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_BATCHES_AHEAD)
            )
            return
        from absl import flags

        if not flags.FLAGS.is_parsed():  # grain's processes read flags, which only programs of absl parse
            flags.FLAGS.mark_as_parsed()
        one_ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        batches = iter(
            steps.to_iter_dataset(one_ahead).mp_prefetch(
                grain.MultiprocessingOptions(num_workers=num_workers), worker_init_fn=_become_worker
            )
        )
        try:
            for images, labels in batches:
                # Copies, so that nothing holds on to the shared memory in which they came.
                yield np.array(images), np.array(labels)
                del images, labels
        finally:
            batches.close()
            del batches
            gc.collect()  # grain's iterators point at each other and at the last batches in shared memory


def _become_worker(*_: int) -> None:
    """Leaves signals to the main process, which ends its workers, and ends with it when it is killed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@lru_cache(maxsize=2)
def _order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_examples)
