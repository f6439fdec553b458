"""Names, descriptions and fingerprints of networks."""

import jax
import numpy as np
import pytest

from jaxsmooth import InputError
from jaxsmooth.models import registry
from tests.models import random_weights


def test_normalisation_is_inside():
    """Scaling mean and sd with the image leaves the logits alone."""
    spec = registry.ModelSpec("digits-cnn", 10, (8, 8, 1), (0.3,), (0.4,))
    doubled = registry.ModelSpec("digits-cnn", 10, (8, 8, 1), (0.6,), (0.8,))
    once, twice = (
        registry.inference(random_weights.fill(lambda s=s: registry.build(s))) for s in (spec, doubled)
    )
    inputs = random_weights.images(4, (8, 8, 1))
    np.testing.assert_allclose(
        once.apply_fn(once.params, inputs), twice.apply_fn(twice.params, 2 * inputs), rtol=1e-4, atol=1e-5
    )


def test_fingerprint_sees_every_bit_and_name():
    params = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.float32)}
    flipped = {**params, "b": np.array([0, 0, 0, np.float32(1e-45)], np.float32)}
    renamed = {"a": params["a"], "c": params["b"]}
    reshaped = {**params, "a": params["a"].reshape(3, 2)}
    prints = {registry.fingerprint(p) for p in (params, flipped, renamed, reshaped)}
    assert len(prints) == 4
    assert registry.fingerprint(dict(params)) in prints


def test_fingerprint_takes_random_keys():
    """NNX networks with dropout hold one."""
    prints = {registry.fingerprint({"key": jax.random.key(seed)}) for seed in (0, 1)}
    assert len(prints) == 2


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match=r"model must be one of .*got 'resnet9000'"):
        registry.build(registry.ModelSpec("resnet9000", 10, (8, 8, 1), (0.3,), (0.4,)))


def test_incomplete_description_is_refused():
    with pytest.raises(InputError, match="model is not described completely"):
        registry.ModelSpec.from_dict({"name": "digits-cnn"})
