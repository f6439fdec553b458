"""The embedded digits."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxsmooth import InputError
from jaxsmooth.data import registry


def test_splits_are_the_scans_in_order():
    train, test = registry.load("digits", "train"), registry.load("digits", "test")
    original = load_digits()
    assert (len(train), len(test)) == (1297, 500)
    images = np.concatenate([train.images, test.images])
    np.testing.assert_array_equal(images[..., 0] * 16, original.images)
    np.testing.assert_array_equal(np.concatenate([train.labels, test.labels]), original.target)
    assert train.images.dtype == np.float32
    assert (train.shape, train.num_classes) == ((8, 8, 1), 10)
    assert test.mean == train.mean == pytest.approx((train.images.mean(),), abs=1e-4)


def test_fingerprints_tell_splits_apart_and_stay():
    prints = [registry.load("digits", split).fingerprint for split in ("train", "test", "test")]
    assert prints[0] != prints[1] == prints[2]


def test_what_is_not_there_is_refused():
    with pytest.raises(InputError, match=r"data must be one of .*got 'mnist1'"):
        registry.load("mnist1", "test")
    with pytest.raises(InputError, match=r"split must be one of 'train', 'test', got 'val'"):
        registry.load("digits", "val")
