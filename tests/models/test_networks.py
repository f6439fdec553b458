"""Every network: evaluation mode, rows independent of each other, folding, precision, published sizes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxsmooth import InputError
from jaxsmooth.models import cost, layers, registry, resnet, vit
from jaxsmooth.models.wide_resnet import WideResNet
from tests.models import random_weights

CONSTANTS = ((0.4,) * 3, (0.3,) * 3)
SMALL = {
    # the same classes as the large ones, with fewer blocks
    "wide residual, depth 10": partial(WideResNet, 10, (8, 8, 3), *CONSTANTS, depth=10, widen=2),
    "bottlenecks, 4 blocks": partial(
        resnet.ResNet,
        10,
        (32, 32, 3),
        *CONSTANTS,
        block=resnet.Bottleneck,
        stages=(1, 1, 1, 1),
        widths=(8, 16, 32, 64),
        large_stem=True,
    ),
    "transformer, 2 blocks": partial(
        vit.VisionTransformer, 10, (8, 8, 3), *CONSTANTS, patch=4, width=32, heads=4, depth=2
    ),
}
SIZES = {"lenet": (28, 28, 1), "resnet50": (32, 32, 3), "vit-b16": (32, 32, 3), "vit-s16": (32, 32, 3)}
QUICK = ("digits-cnn", "lenet", "cifar-resnet20")
NETWORKS = [
    *SMALL,
    *(pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in registry.names()),
]


def make(name):
    """A network in training mode with random weights and statistics, and the shape of its inputs."""
    if name in SMALL:
        build = SMALL[name]
        return random_weights.fill(lambda: build(rngs=nnx.Rngs(0))), build.args[1]
    shape = SIZES.get(name, (8, 8, 3))
    return random_weights.build(name, 10, shape), shape


def close(actual, expected, tolerance=1e-4):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * float(jnp.abs(expected).max()))


def folded_away(model):
    return not any(isinstance(module, nnx.BatchNorm) for _, module in nnx.iter_modules(model))


@pytest.mark.parametrize("name", NETWORKS)
def test_inference_is_the_network_in_evaluation_mode_row_by_row(name):
    """Folded or not, alone or in a batch, whatever the other rows are; batch statistics would fail by far."""
    model, shape = make(name)
    apply_fn, params = registry.inference(model)
    apply_fn = jax.jit(apply_fn)
    inputs = random_weights.images(5, shape)
    together = apply_fn(params, inputs)
    assert together.shape == (5, 10)
    assert together.dtype == jnp.float32
    assert float(jnp.std(together, axis=0).max()) > 1e-3 * float(
        jnp.abs(together).max()
    )  # it looks at its input

    close(apply_fn(params, inputs.at[1:].multiply(100.0))[0], together[0], 1e-5)
    close(apply_fn(params, inputs[:1])[0], together[0], 1e-5)
    np.testing.assert_array_equal(apply_fn(params, inputs), together)

    graphdef, state = nnx.split(registry.evaluation_view(model))
    with jax.default_matmul_precision("highest"):
        unfolded = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))(state, inputs)
    close(together, unfolded)
    assert folded_away(layers.fold_batch_norm(model))


def test_the_test_above_sees_training_mode():
    model, shape = make("wide residual, depth 10")
    inputs = random_weights.images(5, shape)
    apply_fn = nnx.jit(lambda model, x: model(x))
    first = apply_fn(model, inputs)[0]
    other = apply_fn(model, inputs.at[1:].multiply(100.0))[0]
    assert float(jnp.abs(first - other).max()) > 0.1 * float(jnp.abs(first).max())


def test_folding_leaves_the_original_alone():
    model, _ = make("wide residual, depth 10")
    before = registry.fingerprint(nnx.state(model))
    layers.fold_batch_norm(model)
    assert registry.fingerprint(nnx.state(model)) == before
    assert not folded_away(model)


def test_batch_norm_without_its_own_scale_or_over_another_axis():
    """A user's layers: the first becomes a scale and a shift, the second stays."""

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.plain = nnx.BatchNorm(3, use_scale=False, use_bias=False, rngs=rngs)
            self.rows = nnx.BatchNorm(8, axis=1, rngs=rngs)

        def __call__(self, x):
            return jnp.mean(self.rows(self.plain(x)), axis=(1, 2))

    model = random_weights.fill(lambda: Net(nnx.Rngs(0)))
    inputs = random_weights.images(2)
    apply_fn, params = registry.inference(model)
    close(apply_fn(params, inputs), registry.evaluation_view(model)(inputs))
    folded = layers.fold_batch_norm(model)
    assert isinstance(folded.plain, layers.ScaleShift)
    assert isinstance(folded.rows, nnx.BatchNorm)


def products(apply_fn, params, shape):
    """(dtypes of the operands, precision) of every convolution and matrix product of a network."""
    inputs = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    for equation in cost.equations(jax.make_jaxpr(apply_fn)(params, inputs).jaxpr):
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield {str(v.aval.dtype) for v in equation.invars}, equation.params["precision"]


@pytest.mark.parametrize("name", [*SMALL, "cifar-resnet20"])
def test_precision_is_pinned(name):
    model, shape = make(name)
    highest = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)
    found = list(products(*registry.inference(model), shape))
    assert found
    assert all(entry == ({"float32"}, highest) for entry in found)
    found = list(products(*registry.inference(model, "bfloat16"), shape))
    assert found
    assert all(dtypes == {"bfloat16"} for dtypes, _ in found)


@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_is_the_same_network_to_its_rounding(name):
    model, shape = make(name)
    inputs = random_weights.images(4, shape)
    exact, rounded = registry.inference(model), registry.inference(model, dtype="bfloat16")
    logits = jax.jit(rounded.apply_fn)(rounded.params, inputs)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(rounded.params)} == {jnp.dtype("bfloat16")}
    expected = jax.jit(exact.apply_fn)(exact.params, inputs)
    close(logits, expected, 0.05)
    assert not np.array_equal(logits, expected)


def test_other_dtypes_are_refused():
    model, _ = make("transformer, 2 blocks")
    with pytest.raises(
        InputError, match="inference_dtype must be one of 'float32', 'bfloat16', got 'float16'"
    ):
        registry.inference(model, "float16")


def test_normalisation_is_computed_in_float32():
    """In bfloat16 the mean alone would be off by 0.0008, and 0.008 of a standard deviation."""
    normalize = layers.Normalize((0.4914,), (0.1,))
    inputs = jnp.full((1, 1), 0.5, jnp.bfloat16)
    assert normalize(inputs).dtype == jnp.bfloat16
    np.testing.assert_allclose(float(normalize(inputs)[0, 0]), (0.5 - 0.4914) / 0.1, rtol=2.0**-8)


PUBLISHED_PARAMETERS = {
    # He et al. count 1x1 convolutions as shortcuts out of the CIFAR networks: 2,752 fewer
    "cifar-resnet20": 272_474,
    "cifar-resnet56": 855_770,
    "cifar-resnet110": 1_730_714,
    "lenet": 431_080,
    "resnet50": 25_557_032,
    "vit-b16": 86_567_656,
    "vit-s16": 22_050_664,
    "wide-resnet28-10": 36_479_194,
    "wide-resnet40-2": 2_243_546,
}


# Multiply-adds as published: torchvision's tables for 224x224, Zagoruyko and Komodakis's 5.2e9.
PUBLISHED_PRODUCTS = {"resnet50": 4.09e9, "vit-b16": 17.56e9, "vit-s16": 4.6e9, "wide-resnet28-10": 5.24e9}


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_published_sizes(name):
    network = registry.NETWORKS[name]
    model = registry.abstract(random_weights.spec(name, network.num_classes, network.input_shape))
    assert cost.num_parameters(model) == PUBLISHED_PARAMETERS[name]
    if name in PUBLISHED_PRODUCTS:
        flops = cost.flops_per_sample(model, network.input_shape)
        assert flops / 2 == pytest.approx(PUBLISHED_PRODUCTS[name], rel=2e-3)


def test_flops_of_a_network_small_enough_to_count_by_hand():
    """LeNet on 28x28: 24*24*20*25 and 8*8*50*500 multiply-adds, then 800*500 and 500*10."""
    model = registry.abstract(random_weights.spec("lenet", 10, (28, 28, 1)))
    products = 24 * 24 * 20 * 25 + 8 * 8 * 50 * 25 * 20 + 800 * 500 + 500 * 10
    assert cost.flops_per_sample(model, (28, 28, 1)) == 2 * products


def test_the_transformer_equals_its_formulas():
    """One encoder block written out in NumPy float64 (Dosovitskiy et al. 2021, equations 1 to 4)."""
    from scipy import special

    model = random_weights.fill(
        lambda: vit.VisionTransformer(
            5, (8, 4, 3), *CONSTANTS, patch=4, width=12, heads=3, depth=1, rngs=nnx.Rngs(0)
        )
    )
    inputs = random_weights.images(2, (8, 4, 3))
    block = model.blocks[0]

    def value(variable):
        return np.asarray(variable[...], np.float64)

    def linear(layer, x):
        return x @ value(layer.kernel) + value(layer.bias)

    def norm(layer, x):
        centred = x - x.mean(-1, keepdims=True)
        sd = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return centred / sd * value(layer.scale) + value(layer.bias)

    x = (np.asarray(inputs, np.float64) - 0.4) / 0.3
    patches = x.reshape(2, 2, 4, 1, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 2, 48)
    tokens = patches @ value(model.patches.kernel).reshape(48, 12) + value(model.patches.bias)
    x = np.concatenate([np.tile(value(model.class_token), (2, 1, 1)), tokens], 1) + value(model.positions)
    query, key, values = np.split(linear(block.query_key_value, norm(block.norm1, x)), 3, axis=-1)
    heads = []
    for head in np.split(np.arange(12), 3):
        scores = query[..., head] @ key[..., head].transpose(0, 2, 1) / np.sqrt(4)
        heads.append(special.softmax(scores, axis=-1) @ values[..., head])
    x = x + linear(block.projection, np.concatenate(heads, -1))
    hidden = linear(block.linear1, norm(block.norm2, x))
    x = x + linear(block.linear2, hidden * special.ndtr(hidden))
    expected = linear(model.linear, norm(model.norm, x[:, 0]))

    apply_fn, params = registry.inference(model)
    np.testing.assert_allclose(apply_fn(params, inputs), expected, rtol=1e-4, atol=1e-4)


def test_images_that_cannot_be_cut_into_patches_are_refused():
    with pytest.raises(InputError, match=r"input_shape must be a multiple of 16 .*got \[28, 28, 3\]"):
        registry.abstract(random_weights.spec("vit-s16", 10, (28, 28, 3)))
