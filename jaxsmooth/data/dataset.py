"""What the rest of the project asks of a data set."""

import dataclasses
import hashlib

import numpy as np


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One split of a labelled image data set in memory.

    Attributes:
        name: name of the data set.
        split: name of the split.
        images: float32[num_examples, height, width, channels] in [0, 1].
        labels: int32[num_examples].
        class_names: a name per class.
        mean: mean of the training split's pixels, per channel.
        sd: their standard deviation.
    """

    name: str
    split: str
    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    sd: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, ...]:
        """[height, width, channels] of an image."""
        return self.images.shape[1:]

    @property
    def fingerprint(self) -> str:
        """A hash of all images and labels."""
        digest = hashlib.sha256(f"{self.images.shape}".encode())
        digest.update(np.ascontiguousarray(self.images).tobytes())
        digest.update(np.ascontiguousarray(self.labels, np.int64).tobytes())
        return digest.hexdigest()
