"""Networks: evaluation mode, rows independent of each other, fingerprints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsmooth import InputError
from jaxsmooth.models import registry

SPEC = registry.ModelSpec("digits-cnn", 10, (8, 8, 1), (0.3,), (0.4,))


@pytest.fixture(scope="module")
def network():
    return registry.inference(registry.build(SPEC))


SLOW = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("cifar-resnet56", "cifar-resnet110", "resnet50")
]


@pytest.mark.parametrize("name", ["digits-cnn", "cifar-resnet20", *SLOW])
def test_rows_do_not_depend_on_their_batch(name):
    """A network in training mode, or with batch statistics, would fail this by orders of magnitude."""
    apply_fn, params = registry.inference(
        registry.build(registry.ModelSpec(name, 10, (8, 8, 1), (0.3,), (0.4,)))
    )
    apply_fn = jax.jit(apply_fn)
    inputs = jax.random.normal(jax.random.key(0), (9, 8, 8, 1))
    together = apply_fn(params, inputs)
    others_changed = apply_fn(params, inputs.at[1:].multiply(100.0))
    alone = apply_fn(params, inputs[:1])
    np.testing.assert_allclose(others_changed[0], together[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(alone[0], together[0], rtol=1e-5, atol=1e-5)
    assert together.shape == (9, 10)
    assert together.dtype == jnp.float32


def test_normalisation_is_inside(network):
    """Scaling mean and sd with the image leaves the logits alone."""
    twice = registry.inference(
        registry.build(registry.ModelSpec("digits-cnn", 10, (8, 8, 1), (0.6,), (0.8,)))
    )
    inputs = jax.random.uniform(jax.random.key(1), (4, 8, 8, 1))
    np.testing.assert_allclose(
        network.apply_fn(network.params, inputs),
        twice.apply_fn(twice.params, 2 * inputs),
        rtol=1e-4,
        atol=1e-5,
    )


def test_fingerprint_sees_every_bit_and_name():
    params = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.float32)}
    flipped = {**params, "b": np.array([0, 0, 0, np.float32(1e-45)], np.float32)}
    renamed = {"a": params["a"], "c": params["b"]}
    reshaped = {**params, "a": params["a"].reshape(3, 2)}
    prints = {registry.fingerprint(p) for p in (params, flipped, renamed, reshaped)}
    assert len(prints) == 4
    assert registry.fingerprint(dict(params)) in prints


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match=r"model must be one of .*got 'resnet9000'"):
        registry.build(registry.ModelSpec("resnet9000", 10, (8, 8, 1), (0.3,), (0.4,)))


def test_incomplete_description_is_refused():
    with pytest.raises(InputError, match="model is not described completely"):
        registry.ModelSpec.from_dict({"name": "digits-cnn"})


def test_folded_batch_norm_is_the_same_function():
    """Random running statistics and affine parameters; logits agree to float32 rounding."""
    from flax import nnx

    from jaxsmooth.models.layers import fold_batch_norm

    model = registry.build(registry.ModelSpec("cifar-resnet20", 10, (16, 16, 3), (0.5,) * 3, (0.2,) * 3))
    keys = iter(jax.random.split(jax.random.key(0), 1000))
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.BatchNorm):
            shape = module.mean.shape
            module.mean[...] = 0.2 * jax.random.normal(next(keys), shape)
            module.var[...] = jnp.exp(0.3 * jax.random.normal(next(keys), shape))
            module.scale[...] = 1 + 0.2 * jax.random.normal(next(keys), shape)
            module.bias[...] = 0.2 * jax.random.normal(next(keys), shape)
    view = nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)
    inputs = jax.random.normal(next(keys), (4, 16, 16, 3))
    expected = jax.jit(lambda x: view(x))(inputs)
    folded = fold_batch_norm(model)
    assert not any(isinstance(module, nnx.BatchNorm) for _, module in nnx.iter_modules(folded))
    assert any(isinstance(module, nnx.BatchNorm) for _, module in nnx.iter_modules(model))
    actual = jax.jit(lambda x: folded(x))(inputs)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("cifar-resnet20", 272_474), ("cifar-resnet110", 1_730_714), ("resnet50", 25_557_032)],
)
def test_networks_have_the_published_number_of_parameters(name, parameters):
    """With 1x1 convolutions as shortcuts in the CIFAR networks: He et al.'s count plus 2,752."""
    from flax import nnx

    shape, classes = ((224, 224, 3), 1000) if name == "resnet50" else ((32, 32, 3), 10)
    spec = registry.ModelSpec(name, classes, shape, (0.5,) * 3, (0.2,) * 3)
    model = jax.eval_shape(lambda: nnx.state(registry.build(spec), nnx.Param))
    assert sum(leaf.size for leaf in jax.tree.leaves(model)) == parameters
