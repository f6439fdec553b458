"""The same noise, bit for bit, whatever the batch size, the transformation and the number of devices.

The stub classifier hashes the bits of its input into one of 1024 classes: if one bit of one sample differs,
that sample lands in another class (all but 1 time in 1024) and the counts differ. The oracle draws each sample alone,
outside any compiled program, and rounds after each operation.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxsmooth import Gaussian, certify, sample_counts

NUM_CLASSES = 1024
NUM_SAMPLES = 101  # a multiple of no batch size but 1
SEED, EXAMPLE = 17, 3
SHAPES = [(8, 8, 1), (32, 32, 3), (5,), (3, 7)]
SIGMAS = [0.25, 0.3]
BATCH_SIZES = [1, 7, 96]


def hash_bits(inputs):
    """Class of each row, from the bits of its float32 entries and their places; integer arithmetic, so exact."""
    bits = jax.lax.bitcast_convert_type(inputs, jnp.uint32).reshape(inputs.shape[0], -1)
    odd = 2 * jnp.arange(bits.shape[1], dtype=jnp.uint32) + jnp.uint32(0x9E3779B1)
    mixed = (bits ^ (bits >> 15)) * odd
    mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0x85EBCA6B)
    return (jnp.sum(mixed ^ (mixed >> 16), axis=1, dtype=jnp.uint32) >> 7) % NUM_CLASSES


def hash_model(params, inputs):
    return jax.nn.one_hot((hash_bits(inputs) + jnp.uint32(params)) % NUM_CLASSES, NUM_CLASSES)


def example_key(example=EXAMPLE):
    return jax.random.fold_in(jax.random.key(SEED), example)


def example_x(shape, example=EXAMPLE):
    return np.asarray(jax.random.uniform(jax.random.key(100 + example), shape))


@cache
def one_by_one(shape, sigma, example=EXAMPLE):
    """The oracle: classes of the samples, each drawn alone and added to x by NumPy, which fuses nothing."""
    noise, key = Gaussian(sigma), example_key(example)
    drawn = [
        np.asarray(noise.sample(jax.random.fold_in(key, j), shape, jnp.float32)) for j in range(NUM_SAMPLES)
    ]
    return np.asarray(hash_bits(jnp.asarray(example_x(shape, example) + np.stack(drawn))))


def expected(shape, sigma, example=EXAMPLE, samples=slice(None)):
    return np.bincount(one_by_one(shape, sigma, example)[samples], minlength=NUM_CLASSES)


def counts_of(key, x, sigma, batch_size, params=0, num_samples=NUM_SAMPLES, first_sample=0):
    return sample_counts(
        key,
        hash_model,
        params,
        x,
        noise=Gaussian(sigma),
        num_samples=num_samples,
        batch_size=batch_size,
        first_sample=first_sample,
    )


def mesh_of(num_devices):
    devices = jax.devices()[:num_devices]
    return jax.make_mesh((num_devices,), ("d",), axis_types=(AxisType.Auto,), devices=devices)


def other_keys(num):
    """``num`` keys of which the first and the last are that of the example."""
    keys = [example_key(EXAMPLE + i) for i in range(num)]
    return jnp.stack([*keys[:-1], example_key()])


TRANSFORMS = {
    "jit": lambda count, key, x, sigma: jax.jit(count)(key, x, sigma),
    "jit, all constant": lambda count, key, x, sigma: jax.jit(lambda: count(key, x, sigma))(),
    "jit, sigma constant": lambda count, key, x, sigma: jax.jit(partial(count, sigma=sigma))(key, x),
    "vmap over x": lambda count, key, x, sigma: jax.vmap(count, (None, 0, None))(
        key, np.stack([x + 1, x]), sigma
    )[-1],
    "vmap over key": lambda count, key, x, sigma: jax.vmap(count, (0, None, None))(other_keys(3), x, sigma)[
        -1
    ],
    "jit of vmap over sigma": lambda count, key, x, sigma: jax.jit(jax.vmap(count, (None, None, 0)))(
        key, x, np.array([0.7, sigma], np.float32)
    )[-1],
    "lax.map over x": lambda count, key, x, sigma: jax.lax.map(
        lambda x: count(key, x, sigma), jnp.stack([x + 1, x])
    )[-1],
}


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_sizes(shape, sigma):
    for batch_size in BATCH_SIZES:
        counts = counts_of(example_key(), example_x(shape), sigma, batch_size)
        np.testing.assert_array_equal(counts, expected(shape, sigma), err_msg=f"batch_size {batch_size}")


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms(transform):
    """Sigma 0.3: a power of two would hide a product that is not rounded before the sum."""
    shape, batch_size = ((5,), 96) if transform.startswith("vmap") else ((8, 8, 1), 7)
    count = partial(counts_of, batch_size=batch_size)
    counts = TRANSFORMS[transform](count, example_key(), example_x(shape), 0.3)
    np.testing.assert_array_equal(counts, expected(shape, 0.3))


def test_every_sample_by_itself():
    """Sample j alone is the j-th sample of the range: not only the totals agree."""
    shape = (8, 8, 1)
    key, x = example_key(), example_x(shape)
    count = jax.jit(lambda j: counts_of(key, x, 0.3, 4, num_samples=1, first_sample=j))
    classes = [int(np.argmax(count(j))) for j in range(NUM_SAMPLES)]
    np.testing.assert_array_equal(classes, one_by_one(shape, 0.3))


def is_near(params, inputs):
    """Class 0 when all entries are those of ``params`` to within a few roundings, else class 1."""
    near = jnp.all(jnp.abs(inputs - params) < 4e-6, axis=(1, 2))
    return jnp.stack([near, ~near], axis=1).astype(jnp.float32)


@pytest.mark.parametrize("example", [0, 1, 1000])
def test_key_of_an_example(example):
    """Example i, sample j: the noise of fold_in(fold_in(key(seed), i), j), up to a few roundings."""
    shape, sigma = (3, 7), 0.3
    key = jax.random.fold_in(jax.random.key(SEED, impl="threefry2x32"), example)
    x = example_x(shape, example)
    for j in (0, 1, 77):
        direct = x + sigma * Gaussian(1.0).sample(jax.random.fold_in(key, j), shape)
        for first_sample, hits in ((j, 1), (j + 1, 0)):
            counts = sample_counts(
                key,
                is_near,
                direct,
                x,
                noise=Gaussian(sigma),
                num_samples=1,
                batch_size=7,
                first_sample=first_sample,
            )
            assert counts.tolist() == [hits, 1 - hits]


@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_examples_over_devices_by_pmap(num_devices):
    shape = (5,)
    examples = [EXAMPLE + i for i in range(num_devices)]
    keys = jnp.stack([example_key(i) for i in examples])
    xs = np.stack([example_x(shape, i) for i in examples])
    mapped = jax.pmap(
        lambda key, x: counts_of(key, x, 0.3, batch_size=7), devices=jax.devices()[:num_devices]
    )
    counts = mapped(keys, xs)
    for i, row in zip(examples, np.asarray(counts), strict=True):
        np.testing.assert_array_equal(row, expected(shape, 0.3, i))


@pytest.mark.parametrize(("num_devices", "batch_size"), [(1, 7), (2, 96), (8, 7)])
def test_examples_over_devices_by_shard_map(num_devices, batch_size):
    """Two examples a device, one after the other by vmap."""
    shape = (8, 8, 1)
    examples = [EXAMPLE + i for i in range(2 * num_devices)]
    keys = jnp.stack([example_key(i) for i in examples])
    xs = np.stack([example_x(shape, i) for i in examples])
    body = jax.vmap(lambda key, x: counts_of(key, x, 0.3, batch_size))
    sharded = jax.shard_map(body, mesh=mesh_of(num_devices), in_specs=(P("d"), P("d")), out_specs=P("d"))
    counts = jax.jit(sharded)(keys, xs)
    for i, row in zip(examples, np.asarray(counts), strict=True):
        np.testing.assert_array_equal(row, expected(shape, 0.3, i))


@pytest.mark.parametrize(
    ("num_devices", "shape", "batch_size"), [(1, (5,), 96), (2, (32, 32, 3), 7), (8, (8, 8, 1), 7)]
)
def test_samples_over_devices(num_devices, shape, batch_size):
    """One example: each device draws its own range of samples, and psum adds them up."""
    per_device = 96 // num_devices

    def body(key, x, sigma):
        first = jax.lax.axis_index("d") * per_device
        counts = counts_of(key, x, sigma, batch_size, num_samples=per_device, first_sample=first)
        return jax.lax.psum(counts, "d")

    sharded = jax.shard_map(body, mesh=mesh_of(num_devices), in_specs=(P(), P(), P()), out_specs=P())
    counts = jax.jit(sharded)(example_key(), example_x(shape), 0.3)
    np.testing.assert_array_equal(counts, expected(shape, 0.3, samples=slice(96)))


@pytest.mark.parametrize("split", ["nothing", "key", "x", "sigma", "params", "first_sample"])
def test_any_one_argument_may_be_split(split):
    """Under shard_map each argument alone may differ between devices, the others being the same on all."""
    shape, batch_size = (3, 7), 7
    x = example_x(shape)
    values = {
        "key": other_keys(2),
        "x": np.stack([x + 1, x]),
        "sigma": np.array([0.7, 0.3], np.float32),
        "params": np.array([5, 0], np.int32),
        "first_sample": np.array([9, 0], np.int32),
    }
    args = {name: both if name == split else both[-1] for name, both in values.items()}

    def body(args):
        args = {name: value[0] if name == split else value for name, value in args.items()}
        return counts_of(batch_size=batch_size, **args)[None]

    specs = ({name: P("d") if name == split else P() for name in args},)
    out = P() if split == "nothing" else P("d")
    counts = jax.jit(jax.shard_map(body, mesh=mesh_of(2), in_specs=specs, out_specs=out))(args)
    np.testing.assert_array_equal(counts[-1], expected(shape, 0.3))


def test_sharded_inputs_without_shard_map():
    """Arrays that already lie on eight devices, left to the compiler to partition."""
    shape = (8, 8, 1)
    mesh = mesh_of(8)
    examples = [EXAMPLE + i for i in range(8)]
    split = jax.sharding.NamedSharding(mesh, P("d"))
    keys = jax.device_put(jnp.stack([example_key(i) for i in examples]), split)
    xs = jax.device_put(np.stack([example_x(shape, i) for i in examples]), split)
    counts = jax.jit(jax.vmap(lambda key, x: counts_of(key, x, 0.3, batch_size=7)))(keys, xs)
    for i, row in zip(examples, np.asarray(counts), strict=True):
        np.testing.assert_array_equal(row, expected(shape, 0.3, i))


@pytest.mark.parametrize("where", ["eager", "pmap", "shard_map"])
def test_certify_everywhere(where):
    """Both stages draw the samples of their own index ranges."""
    shape, selection = (3, 7), 20

    def run(key, x):
        return certify(
            key,
            hash_model,
            0,
            x,
            noise=Gaussian(0.3),
            num_samples=NUM_SAMPLES - selection,
            alpha=0.01,
            batch_size=7,
            selection_samples=selection,
        )

    keys, xs = other_keys(2), np.stack([example_x(shape)] * 2)
    if where == "eager":
        certificate = run(keys[-1], xs[-1])
    else:
        mapped = {
            "pmap": jax.pmap(run, devices=jax.devices()[:2]),
            "shard_map": jax.jit(
                jax.shard_map(jax.vmap(run), mesh=mesh_of(2), in_specs=(P("d"), P("d")), out_specs=P("d"))
            ),
        }[where]
        certificate = jax.tree.map(lambda field: field[-1], mapped(keys, xs))
    np.testing.assert_array_equal(
        certificate.selection_counts, expected(shape, 0.3, samples=slice(selection))
    )
    np.testing.assert_array_equal(certificate.counts, expected(shape, 0.3, samples=slice(selection, None)))
    assert int(certificate.prediction) == -1
    assert float(certificate.radius) == 0.0
