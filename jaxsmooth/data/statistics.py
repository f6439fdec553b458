"""Mean and standard deviation of pixels, for the normalisation layer of a network."""

import re
from typing import Any

import numpy as np

Statistics = tuple[tuple[float, ...], tuple[float, ...]]

# The values of the published smoothed classifiers (Cohen et al. 2019, architectures.py and datasets.py there).
CIFAR10: Statistics = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Over the pixels of the training images, as usually quoted.
CIFAR100: Statistics = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
SVHN: Statistics = ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))
MNIST: Statistics = ((0.1307,), (0.3081,))
FASHION_MNIST: Statistics = ((0.2860,), (0.3530,))

_CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
_MEASURED_IMAGES = 2000


def published(class_names: tuple[str, ...], shape: tuple[int, ...]) -> Statistics | None:
    """The values that the field uses, where the classes tell which data set this is.

    Args:
        class_names: of the data set. CIFAR-10 is known by its ten names and its size, ImageNet by WordNet
            identifiers (n01440764).
        shape: [height, width, channels] of an image.

    Returns:
        Mean and standard deviation per channel, or None for a data set that is not known.
    """
    if class_names == _CIFAR10_CLASSES and shape == (32, 32, 3):
        return CIFAR10
    if shape[-1] == 3 and all(re.fullmatch(r"n\d{8}", name) for name in class_names):
        return IMAGENET
    return None


def measured(images: Any) -> Statistics:
    """Mean and standard deviation per channel over at most 2,000 evenly spaced images, in float64.

    Args:
        images: indexed like ``Dataset.images``.
    """
    count = total = squares = 0.0
    for index in range(0, len(images), -(-len(images) // _MEASURED_IMAGES)):
        image = np.asarray(images[index], np.float64)
        count += image[..., 0].size
        total = total + image.sum(axis=(0, 1))
        squares = squares + (image**2).sum(axis=(0, 1))
    mean = np.asarray(total / count)
    # A channel without contrast must not divide by zero.
    sd = np.sqrt(np.maximum(squares / count - mean**2, 1e-6))
    return tuple(round(float(v), 4) for v in mean), tuple(round(float(v), 4) for v in sd)
