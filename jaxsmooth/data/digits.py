"""The handwritten digits that scikit-learn ships: 1,797 scans of 8x8 pixels (Alpaydin and Kaynak 1998).

The first 1,297 train and the last 500 test. The scans are in order of collection, so that few writers
are in both.
"""

import numpy as np

from jaxsmooth import validation
from jaxsmooth.data.dataset import Dataset

_NUM_TRAIN = 1297


def load(split: str) -> Dataset:
    """The digits, with pixels in [0, 1] (17 levels of grey).

    Args:
        split: "train" or "test".

    Raises:
        InputError: for another split.
    """
    from sklearn.datasets import load_digits

    validation.check_choice("split", split, ("train", "test"))
    images, labels = load_digits(return_X_y=True)
    images = (images / 16.0).astype(np.float32).reshape(-1, 8, 8, 1)
    train = images[:_NUM_TRAIN]
    part = slice(0, _NUM_TRAIN) if split == "train" else slice(_NUM_TRAIN, None)
    return Dataset(
        name="digits",
        split=split,
        images=images[part],
        labels=labels[part].astype(np.int32),
        class_names=tuple(str(digit) for digit in range(10)),
        mean=(round(float(train.mean()), 4),),
        sd=(round(float(train.std()), 4),),
    )
