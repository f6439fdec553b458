"""Small folders of images for tests."""

import numpy as np
from PIL import Image


def pixels(seed, size=(8, 8)):
    """Random uint8[height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def make(root, classes=("cat", "dog"), per_class=3, splits=("train", "test"), size=(8, 8)):
    """Writes PNG files of random pixels; seeds count up over splits, classes and files."""
    seed = 0
    for split in splits:
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(per_class):
                Image.fromarray(pixels(seed, size)).save(folder / f"{number}.png")
                seed += 1
    return root
