"""Random crops and flips of training images, on the host, as the papers use them.

Every function takes its random numbers from a generator that it is given, and draws the same ones for a batch
whichever of its rows are wanted: hosts that share a batch agree without talking.
"""

import math

import numpy as np
from PIL import Image

from jaxsmooth.data.dataset import LazyImages, Pixels

AUGMENTATIONS = ("none", "crop-flip", "resized-crop-flip")

_PADDING = 4
_AREA = (0.08, 1.0)
_RATIO = (3 / 4, 4 / 3)


def read(
    images: object, indices: np.ndarray, rows: slice, augmentation: str, seed: tuple[int, ...]
) -> np.ndarray:
    """Some rows of a batch of augmented training images.

    Args:
        images: ``Dataset.images``.
        indices: int[batch_size], which images are in the batch.
        rows: which rows of the batch are wanted.
        augmentation: "none"; "crop-flip" for CIFAR, a crop of the same size after padding with 4 black pixels, and a
            flip; "resized-crop-flip" for ImageNet, a part of 8 to 100% of the area with a ratio of 3/4 to 4/3,
            resized, and a flip.
        seed: of the batch.

    Returns:
        uint8 or float32 [rows, height, width, channels].
    """
    if augmentation == "resized-crop-flip":
        assert isinstance(images, LazyImages)
        size = images.shape[1]
        wanted = range(len(indices))[rows]
        return np.stack(
            [
                random_resized_crop_flip(
                    images.original(int(indices[row])), size, np.random.default_rng((*seed, row))
                )
                for row in wanted
            ]
        )
    batch = _raw(images, indices[rows])
    if augmentation == "none":
        return batch
    rng = np.random.default_rng(seed)
    offsets = rng.integers(0, 2 * _PADDING + 1, (2, len(indices)))
    flips = rng.random(len(indices)) < 0.5
    return crop_flip(batch, offsets[0, rows], offsets[1, rows], flips[rows])


def crop_flip(images: np.ndarray, tops: np.ndarray, lefts: np.ndarray, flips: np.ndarray) -> np.ndarray:
    """Crops of the images' own size out of the images padded with 4 black pixels, some of them mirrored.

    Args:
        images: [batch, height, width, channels].
        tops: int[batch] in 0..8, first row of the crop.
        lefts: int[batch] in 0..8, first column.
        flips: bool[batch], whether to mirror.

    Example:
        >>> image = np.arange(4).reshape(1, 2, 2, 1)
        >>> crop_flip(image, np.array([4]), np.array([4]), np.array([True]))[0, :, :, 0]
        array([[1, 0],
               [3, 2]])
    """
    _, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (_PADDING, _PADDING), (_PADDING, _PADDING), (0, 0)))
    columns = lefts[:, None] + np.where(flips[:, None], np.arange(width)[::-1], np.arange(width))
    rows = tops[:, None] + np.arange(height)
    return padded[np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]


def random_resized_crop_flip(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random part of an image, resized to a square (bilinear), mirrored half of the time.

    torchvision's ``RandomResizedCrop`` and ``RandomHorizontalFlip``: ten attempts at a part that fits, then
    the largest centred part of an allowed ratio.

    Args:
        image: uint8[height, width, 3].
        size: side of the result.
        rng: where the random numbers come from.

    Returns:
        uint8[size, size, 3].
    """
    height, width = image.shape[:2]
    top, left, part_height, part_width = _random_part(height, width, rng)
    part = Image.fromarray(image[top : top + part_height, left : left + part_width])
    resized = np.asarray(part.resize((size, size), Image.Resampling.BILINEAR))
    return resized[:, ::-1] if rng.random() < 0.5 else resized


def _random_part(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    for _ in range(10):
        area = height * width * rng.uniform(*_AREA)
        ratio = math.exp(rng.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        part_width, part_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < part_width <= width and 0 < part_height <= height:
            top = int(rng.integers(0, height - part_height + 1))
            left = int(rng.integers(0, width - part_width + 1))
            return top, left, part_height, part_width
    ratio = min(max(width / height, _RATIO[0]), _RATIO[1])
    part_width, part_height = min(width, round(height * ratio)), min(height, round(width / ratio))
    return (height - part_height) // 2, (width - part_width) // 2, part_height, part_width


def _raw(images: object, indices: np.ndarray) -> np.ndarray:
    """Bytes where there are bytes: the device makes floats of them, and a quarter travels to it."""
    if isinstance(images, Pixels):
        return images.raw[indices]
    if isinstance(images, LazyImages):
        return np.stack([images.read(int(i)) for i in indices])
    return images[indices]  # type: ignore[index]
