"""Convolutions and pooling in the forms for a CPU, against exact arithmetic on small integers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from jaxsmooth.models import layers, products, registry
from tests.models import random_weights

CHANNELS_LAST = lax.conv_dimension_numbers((1,) * 4, (1,) * 4, ("NHWC", "HWIO", "NHWC"))


def integers(seed, shape, largest):
    """Integers, so that bfloat16 operands, float32 sums, and results below 256 are exact."""
    return np.random.default_rng(seed).integers(-largest, largest + 1, shape)


def windows(inputs, size, strides, pads, fill=0):
    """[batch, rows, columns, channels, height, width] of every window, in NumPy."""
    padded = np.pad(inputs, ((0, 0), *pads, (0, 0)), constant_values=fill)
    return np.lib.stride_tricks.sliding_window_view(padded, size, (1, 2))[:, :: strides[0], :: strides[1]]


def exact_convolution(inputs, kernel, strides, pads):
    return np.einsum("bijchw,hwcf->bijf", windows(inputs, kernel.shape[:2], strides, pads), kernel)


def as_layer(function=products.conv_general_dilated, **options):
    """A function as ``nnx.Conv`` calls it."""
    usual = {
        "lhs_dilation": (1, 1),
        "rhs_dilation": (1, 1),
        "dimension_numbers": CHANNELS_LAST,
        "feature_group_count": 1,
        "precision": None,
        "out_sharding": None,
    }
    return partial(function, **usual | options)


def lowered(function, *arguments, platform="cpu"):
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("at_once", [1, 2, 100], ids=lambda n: f"{n} images at once")
@pytest.mark.parametrize(
    ("size", "strides", "pads"),
    [
        ((1, 1), (1, 1), ((0, 0), (0, 0))),
        ((1, 1), (2, 2), ((0, 0), (0, 0))),
        ((1, 1), (1, 2), ((1, 0), (0, 2))),
        ((3, 3), (1, 1), ((1, 1), (1, 1))),
        ((3, 3), (2, 2), ((1, 1), (1, 1))),
        ((3, 3), (1, 2), ((0, 1), (2, 0))),
        ((1, 3), (1, 1), ((0, 0), (1, 1))),
        ((4, 2), (3, 1), ((0, 0), (0, 0))),
        ((7, 6), (1, 1), ((0, 0), (0, 0))),  # one window
    ],
)
def test_every_value_is_exact(size, strides, pads, at_once, monkeypatch):
    inputs, kernel = integers(0, (4, 7, 6, 66), 2), integers(1, (*size, 66, 5), 1)
    expected = exact_convolution(inputs, kernel, strides, pads)
    columns = expected.shape[2]
    monkeypatch.setattr(
        products, "_GATHERED_BYTES", at_once * (7 + sum(pads[0])) * columns * size[1] * 66 * 2
    )
    arguments = jnp.asarray(inputs, jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16), strides, pads
    actual = jax.jit(as_layer(), static_argnums=(2, 3))(*arguments)
    assert actual.dtype == jnp.bfloat16
    np.testing.assert_array_equal(actual, jnp.asarray(expected, jnp.bfloat16))


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 3)])
def test_named_padding_is_that_of_the_stock_convolution(padding, strides):
    inputs, kernel = (
        jnp.asarray(integers(seed, shape, 1), jnp.bfloat16)
        for seed, shape in enumerate([(3, 8, 7, 64), (3, 2, 64, 9)])
    )
    stock = as_layer(lax.conv_general_dilated)(inputs, kernel, strides, padding)
    np.testing.assert_array_equal(as_layer()(inputs, kernel, strides, padding), stock)


def test_products_on_a_cpu_and_the_stock_convolution_elsewhere():
    inputs, kernel = jnp.zeros((2, 8, 8, 64), jnp.bfloat16), jnp.zeros((3, 3, 64, 64), jnp.bfloat16)
    function = partial(as_layer(), window_strides=(1, 1), padding="SAME")
    on_cpu, on_gpu, on_tpu = (
        lowered(function, inputs, kernel, platform=platform) for platform in ("cpu", "cuda", "tpu")
    )
    assert "stablehlo.dot_general" in on_cpu
    assert "stablehlo.convolution" not in on_cpu
    for text in (on_gpu, on_tpu):
        assert "stablehlo.convolution" in text
        assert "stablehlo.dot_general" not in text


@pytest.mark.parametrize(
    ("channels", "dtype", "options"),
    [
        (64, "float32", {}),
        (32, "bfloat16", {}),
        (64, "bfloat16", {"rhs_dilation": (2, 1)}),
        (64, "bfloat16", {"lhs_dilation": (1, 2)}),
        (64, "bfloat16", {"feature_group_count": 2}),
        (64, "bfloat16", {"preferred_element_type": jnp.float32}),
        (
            64,
            "bfloat16",
            {"dimension_numbers": lax.conv_dimension_numbers((1,) * 4, (1,) * 4, ("HWNC", "HWIO", "NHWC"))},
        ),
    ],
)
def test_whatever_else_is_asked_for_is_the_stock_convolution(channels, dtype, options):
    groups = options.get("feature_group_count", 1)
    shape = (6, 6, 2, channels) if "dimension_numbers" in options else (2, 6, 6, channels)
    inputs = jnp.asarray(integers(0, shape, 1), dtype)
    kernel = jnp.asarray(integers(1, (3, 3, channels // groups, 8), 1), dtype)
    assert "stablehlo.dot_general" not in lowered(
        partial(as_layer(**options), window_strides=(1, 1), padding=((1, 1), (1, 1))), inputs, kernel
    )
    arguments = inputs, kernel, (1, 1), ((1, 1), (1, 1))
    np.testing.assert_array_equal(
        as_layer(**options)(*arguments), as_layer(lax.conv_general_dilated, **options)(*arguments)
    )


def test_a_convolution_over_one_dimension():
    layer = nnx.Conv(64, 8, (3,), rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    inputs = jnp.asarray(integers(0, (2, 9, 64), 2), jnp.bfloat16)
    expected = layer(inputs)
    products.use_products(layer)
    np.testing.assert_array_equal(layer(inputs), expected)


def test_matrix_products_accumulate_in_float32():
    """In bfloat16 a sum of ones ends at 256; XLA may accumulate in float32 without being asked."""
    left, right = jnp.ones((2, 600), jnp.bfloat16), jnp.ones((600, 3), jnp.bfloat16)
    function = partial(products.dot_general, dimension_numbers=(((1,), (0,)), ((), ())))
    actual = function(left, right)
    assert actual.dtype == jnp.bfloat16
    assert "(tensor<2x600xbf16>, tensor<600x3xbf16>) -> tensor<2x3xf32>" in lowered(function, left, right)
    np.testing.assert_array_equal(actual, np.full((2, 3), 600))
    asked_for = function(left, right, preferred_element_type=jnp.float32)
    assert asked_for.dtype == jnp.float32


def test_layers_with_a_function_of_their_own_keep_it():
    def own(*arguments, **options):
        return lax.conv_general_dilated(*arguments, **options)

    model = nnx.Sequential(
        nnx.Conv(3, 4, (3, 3), conv_general_dilated=own, rngs=nnx.Rngs(0)),
        nnx.Conv(4, 4, (3, 3), rngs=nnx.Rngs(0)),
    )
    products.use_products(model)
    assert model.layers[0].conv_general_dilated is own
    assert model.layers[1].conv_general_dilated is products.conv_general_dilated


def test_inference_uses_products_and_leaves_the_network_alone():
    model = nnx.Sequential(
        layers.ConvNorm(3, 64, 1, rngs=nnx.Rngs(0)), layers.ConvNorm(64, 8, 3, rngs=nnx.Rngs(0))
    )
    apply_fn, params = registry.inference(model, "bfloat16")
    text = lowered(apply_fn, params, jnp.zeros((2, 6, 6, 3)))
    assert text.count("stablehlo.dot_general") == 3  # a 3x3 kernel has three rows; three channels are too few
    assert text.count("stablehlo.convolution") == 1
    assert model.layers[1].conv.conv_general_dilated is lax.conv_general_dilated


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("size", "stride", "padding"), [(3, 2, 1), (2, 2, 0), (3, 1, 1), (5, 3, 2)])
def test_max_pool(size, stride, padding, dtype):
    inputs = integers(0, (2, 9, 8, 3), 100) - 200  # below the zero that a wrong padding would bring in
    found = windows(inputs, (size, size), (stride, stride), ((padding, padding),) * 2, fill=-999)
    actual = products.max_pool(jnp.asarray(inputs, dtype), size, stride, padding)
    assert actual.dtype == dtype
    np.testing.assert_array_equal(actual, jnp.asarray(found.max((-2, -1)), dtype))


def test_max_pool_can_be_trained_through():
    x = jnp.asarray(np.random.default_rng(0).permutation(36.0 * jnp.ones(36) + jnp.arange(36.0)), jnp.float32)
    gradient = jax.grad(lambda x: products.max_pool(x.reshape(1, 6, 6, 1), 2, 2, 0).sum())(x)
    largest = windows(np.asarray(x).reshape(1, 6, 6, 1), (2, 2), (2, 2), ((0, 0), (0, 0))).max((-2, -1))
    np.testing.assert_array_equal(gradient, np.isin(np.asarray(x), largest))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mean_pool_after_two_relus(dtype):
    """Compiled as one program: without its barrier jaxlib 0.12.0 gives any numbers at all in bfloat16."""
    inputs, factor = integers(0, (4, 8, 8, 64), 2), integers(1, (64,), 2)

    @jax.jit
    def function(x, factor):
        return products.mean_pool(nnx.relu(nnx.relu(x - 1) * factor))

    expected = np.maximum(np.maximum(inputs - 1, 0) * factor, 0).mean((1, 2))  # in 64ths, exact
    actual = function(jnp.asarray(inputs, dtype), jnp.asarray(factor, dtype))
    np.testing.assert_array_equal(actual, jnp.asarray(expected, dtype))


def test_rows_of_a_network_with_wide_layers_under_vmap_and_in_a_batch():
    """The forms work under vmap, too, and each row is its own."""
    model = random_weights.build("wide-resnet40-2", input_shape=(8, 8, 3))
    apply_fn, params = registry.inference(model, "bfloat16")
    inputs = random_weights.images(4)
    together = jax.jit(apply_fn)(params, inputs)
    singly = jax.jit(jax.vmap(lambda x: apply_fn(params, x[None])[0]))(inputs)
    scale = float(jnp.abs(together).max())
    np.testing.assert_allclose(singly, together, rtol=0, atol=0.05 * scale)
    other = jax.jit(apply_fn)(params, inputs.at[1:].multiply(-3.0))
    np.testing.assert_array_equal(other[0], together[0])
