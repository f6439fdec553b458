"""Meshes, sampling over them, and batch sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsmooth import Gaussian, InputError, devices, sample_counts
from tests.sweep import exact_model


@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_sharded_counts_are_those_of_one_device(num_devices):
    key, x = jax.random.key(4), exact_model.images(5)
    options = {"noise": Gaussian(0.3), "num_samples": 1001, "first_sample": 17}
    one = sample_counts(key, exact_model.apply_fn, exact_model.PARAMS, x, batch_size=100, **options)
    many = devices.sharded_sample_counts(
        key,
        exact_model.apply_fn,
        exact_model.PARAMS,
        x,
        mesh=devices.noise_mesh(num_devices),
        batch_size=96,
        **options,
    )
    np.testing.assert_array_equal(one, many)


@pytest.mark.parametrize(("num_devices", "example_shards"), [(1, 1), (4, 2), (8, 2), (8, 4)])
def test_batches_of_examples_over_two_axes(num_devices, example_shards):
    """Each example's counts are those of one device by itself."""
    mesh = devices.noise_mesh(num_devices, example_shards=example_shards)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(4), i))(jnp.arange(8))
    xs = np.stack([exact_model.images(i) for i in range(8)])
    options = {"noise": Gaussian(0.3), "num_samples": 301, "first_sample": 17}
    many = devices.sharded_sample_counts(
        keys, exact_model.apply_fn, exact_model.PARAMS, xs, mesh=mesh, batch_size=32, **options
    )
    for i in range(8):
        one = sample_counts(
            keys[i], exact_model.apply_fn, exact_model.PARAMS, xs[i], batch_size=100, **options
        )
        np.testing.assert_array_equal(one, many[i])


def test_a_single_example_uses_both_axes():
    key, x = jax.random.key(4), exact_model.images(5)
    options = {"noise": Gaussian(0.3), "num_samples": 1001}
    one = sample_counts(key, exact_model.apply_fn, exact_model.PARAMS, x, batch_size=100, **options)
    many = devices.sharded_sample_counts(
        key,
        exact_model.apply_fn,
        exact_model.PARAMS,
        x,
        mesh=devices.noise_mesh(8, example_shards=2),
        batch_size=96,
        **options,
    )
    np.testing.assert_array_equal(one, many)


def test_batches_that_do_not_fit_the_mesh():
    keys, xs = jax.random.split(jax.random.key(0), 3), np.zeros((3, *exact_model.SHAPE), np.float32)
    options = {"noise": Gaussian(0.3), "num_samples": 10, "batch_size": 8}

    def count(mesh, keys, xs):
        return devices.sharded_sample_counts(
            keys, exact_model.apply_fn, exact_model.PARAMS, xs, mesh=mesh, **options
        )

    with pytest.raises(InputError, match="mesh must have an example axis"):
        count(devices.noise_mesh(2), keys, xs)
    with pytest.raises(InputError, match="example_shards = 2 divides, got shapes"):
        count(devices.noise_mesh(2, example_shards=2), keys, xs)
    with pytest.raises(InputError, match="one leading axis"):
        count(devices.noise_mesh(2, example_shards=1), keys, xs[:2])
    with pytest.raises(InputError, match="example_shards must divide the number of devices, 8, got 3"):
        devices.noise_mesh(8, example_shards=3)


def test_memory_of_a_step_depends_on_neither_samples_nor_examples():
    """The compiled program's own analysis, for 1,000 and for 1,000,000 rows; and its inputs are fixed slots."""
    from jaxsmooth.sampling import Segments

    mesh = devices.noise_mesh(2)
    step = devices.segment_step(mesh, exact_model.apply_fn, 64)

    def temporary(rows):
        segments = Segments(
            np.zeros(4, np.int32), np.zeros(4, np.int32), np.array([0, rows, rows, rows, rows], np.int32)
        )
        xs = np.zeros((2, *exact_model.SHAPE), np.float32)
        lowered = step.lower(
            jax.random.key(0), np.zeros(2, np.uint32), exact_model.PARAMS, xs, Gaussian(0.5), segments
        )
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporary(1000) == temporary(1_000_000) < 2**20


def test_bad_meshes():
    with pytest.raises(InputError, match="num_devices must be at most 8"):
        devices.noise_mesh(9)
    with pytest.raises(InputError, match="num_devices must be at least 1"):
        devices.noise_mesh(0)
    with pytest.raises(InputError, match="platform must be one that this machine has, got 'quantum'"):
        devices.noise_mesh(platform="quantum")


def test_automatic_batch_sizes_shrink_with_the_memory_of_a_row():
    def wide(params, inputs):
        hidden = jnp.tanh(inputs.reshape(inputs.shape[0], -1) @ params)
        return jnp.sort(hidden, axis=-1)[:, :3]

    mesh = devices.noise_mesh(2)
    small = devices.auto_batch_size(mesh, wide, np.ones((6, 10), np.float32), (6,))
    large = devices.auto_batch_size(mesh, wide, np.ones((6, 4_000_000), np.float32), (6,))
    assert small == 2 * 64
    assert 2 <= large < small
    assert large & (large - 1) == 0  # a power of two, per device and thus for two


def test_a_job_that_cannot_be_found_is_one_line():
    import subprocess
    import sys

    program = (
        "from jaxsmooth.cli.main import main; main('certify --checkpoint x --out y --distributed'.split())"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if "error" in line]
    assert "distributed must find its job" in line
