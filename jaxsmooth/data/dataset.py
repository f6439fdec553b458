"""What the rest of the project asks of a data set."""

import dataclasses
import hashlib
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np


class Pixels:
    """Images in memory as bytes, a quarter of what float32 takes; an index gives float32 in [0, 1].

    Args:
        raw: uint8[num_examples, height, width, channels].

    Example:
        >>> Pixels(np.full((2, 1, 1, 1), 51, np.uint8))[0].item()
        0.20000000298023224
    """

    def __init__(self, raw: np.ndarray):
        self.raw = raw
        self.shape = raw.shape

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, index: Any) -> np.ndarray:
        return to_float(self.raw[index])


class LazyImages:
    """Images that are read when asked for; an index gives float32 in [0, 1].

    Args:
        read: ``read(i)`` is image i as it is evaluated, uint8[height, width, channels].
        original: ``original(i)`` is image i before any resizing, uint8[its height, its width, channels].
        shape: [num_examples, height, width, channels].
    """

    def __init__(
        self, read: Callable[[int], np.ndarray], original: Callable[[int], np.ndarray], shape: tuple[int, ...]
    ):
        self.read, self.original, self.shape = read, original, tuple(shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        chosen = np.arange(len(self))[index]
        if chosen.ndim == 0:
            return to_float(self.read(int(chosen)))
        return to_float(np.stack([self.read(int(i)) for i in chosen]))


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One split of a labelled image data set, in memory or read as it is used.

    Attributes:
        name: what :func:`jaxsmooth.data.registry.load` takes to load it again.
        split: name of the split.
        images: indexed by a number or an array of numbers, float32[..., height, width, channels] in [0, 1]; a
            NumPy array, :class:`Pixels` or :class:`LazyImages`.
        labels: int32[num_examples].
        class_names: a name per class.
        mean: mean of the training split's pixels, per channel.
        sd: their standard deviation.
        title: name for people and results, without a path; like ``name`` when empty.
        hash_of_images: for images that are not in memory, what stands for their contents in the fingerprint.
    """

    name: str
    split: str
    images: Any
    labels: np.ndarray
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    sd: tuple[float, ...]
    title: str = ""
    hash_of_images: Callable[[], str] | None = None

    def __post_init__(self) -> None:
        if not self.title:
            object.__setattr__(self, "title", self.name)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, ...]:
        """[height, width, channels] of an image."""
        return tuple(self.images.shape[1:])

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all images and labels."""
        digest = hashlib.sha256(f"{tuple(self.images.shape)}".encode())
        if self.hash_of_images is not None:
            digest.update(self.hash_of_images().encode())
        else:
            pixels = self.images.raw if isinstance(self.images, Pixels) else self.images
            digest.update(np.ascontiguousarray(pixels).tobytes())
        digest.update(np.ascontiguousarray(self.labels, np.int64).tobytes())
        return digest.hexdigest()


def to_float(images: Any) -> Any:
    """Bytes 0..255 as float32 in [0, 1]; float32 stays. NumPy arrays and JAX arrays alike."""
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    return images
