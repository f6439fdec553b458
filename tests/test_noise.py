"""Gaussian noise: its moments, its bits, and its life as a pytree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxsmooth
from jaxsmooth import Gaussian
from jaxsmooth import noise as noise_lib


@pytest.fixture(scope="module")
def draws():
    """A million values of unit noise, as float64, from one key."""
    return np.asarray(Gaussian(1.0).sample(jax.random.key(0), (1_000_000,), jnp.float32), np.float64)


def test_pytree_with_one_leaf():
    leaves, treedef = jax.tree.flatten(Gaussian(0.25))
    assert leaves == [0.25]
    rebuilt = jax.tree.unflatten(treedef, [0.5])
    assert isinstance(rebuilt, Gaussian)
    assert rebuilt.sigma == 0.5
    assert jax.tree.map(lambda s: 2 * s, Gaussian(0.25)).sigma == 0.5
    assert jax.tree.structure(Gaussian(0.25)) == jax.tree.structure(Gaussian(3.0))


def test_norm_and_equality():
    assert Gaussian(0.25).norm == 2
    assert Gaussian(0.25) == Gaussian(0.25)
    assert Gaussian(0.25) != Gaussian(0.5)
    assert "0.25" in repr(Gaussian(0.25))


def test_by_name():
    assert noise_lib.from_name("gaussian", 0.25) == Gaussian(0.25)


@pytest.mark.parametrize("dtype", ["float32", np.float32, jnp.float32])
def test_shape_and_dtype(dtype):
    for shape in ((), (2, 3, 4)):
        sample = Gaussian(0.25).sample(jax.random.key(1), shape, dtype)
        assert sample.shape == shape
        assert sample.dtype == np.float32


def test_depends_on_the_key_alone():
    noise = Gaussian(0.25)
    one, again, other = (noise.sample(jax.random.key(seed), (5, 7), jnp.float32) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.any(one == other)


def test_scales_exactly():
    """Powers of two commute with rounding, so these are equal bit for bit."""
    unit = np.asarray(Gaussian(1.0).sample(jax.random.key(3), (5, 7), jnp.float32))
    for sigma in (0.25, 0.5, 4.0):
        sample = Gaussian(sigma).sample(jax.random.key(3), (5, 7), jnp.float32)
        np.testing.assert_array_equal(sample, np.float32(sigma) * unit)


def test_moments(draws):
    """Mean, variance, skewness and kurtosis within 5.5 standard errors; false alarm 2e-7 in all."""
    n = draws.size
    assert abs(draws.mean()) < 5.5 * (1 / n) ** 0.5
    assert abs(draws.var() - 1) < 5.5 * (2 / n) ** 0.5
    assert abs(stats.skew(draws)) < 5.5 * (6 / n) ** 0.5
    assert abs(stats.kurtosis(draws)) < 5.5 * (24 / n) ** 0.5


def test_distribution(draws):
    """Kolmogorov-Smirnov, and binomial counts in the tails; false alarm 5e-6 in all."""
    assert stats.kstest(draws[:200_000], "norm").pvalue > 1e-6
    for edge in (1.0, 2.0, 3.0, 4.0):
        outside = int(np.sum(np.abs(draws) > edge))
        assert stats.binomtest(outside, draws.size, 2 * stats.norm.sf(edge)).pvalue > 1e-6


def test_resolution(draws):
    """Not a coarse grid: nearly all of a thousand values differ, where bfloat16 noise has 128."""
    assert np.unique(draws[:1000]).size > 990


def test_neighbours_are_uncorrelated():
    """Between entries of one draw and between keys; false alarm 2e-7 in all (5.5 standard errors)."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(5), jnp.arange(1000))
    z = np.asarray(jax.vmap(lambda k: Gaussian(1.0).sample(k, (200,), jnp.float32))(keys), np.float64)
    for left, right in ((z[:, :-1], z[:, 1:]), (z[:-1], z[1:]), (z[: z.shape[0] // 2], z[z.shape[0] // 2 :])):
        assert abs(np.mean(left * right)) < 5.5 / left.size**0.5


@pytest.mark.parametrize(
    ("key", "counter", "words"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_known_answers_of_threefry(key, counter, words):
    """The published test vectors of threefry2x32 with 20 rounds (Random123, kat_vectors)."""
    found = noise_lib.threefry2x32(
        *(np.uint32(k) for k in key), *(jnp.array([c], jnp.uint32) for c in counter)
    )
    assert tuple(int(word[0]) for word in found) == words


def test_threefry_is_the_one_of_jax():
    from jax.extend.random import threefry_2x32

    key = jax.random.key_data(jax.random.key(11))
    counters = np.arange(2000, dtype=np.uint32) * np.uint32(2654435761)
    found = noise_lib.threefry2x32(key[0], key[1], jnp.asarray(counters[:1000]), jnp.asarray(counters[1000:]))
    np.testing.assert_array_equal(np.concatenate(found), threefry_2x32(key, jnp.asarray(counters)))


@pytest.mark.parametrize("size", [1, 2, 7, 100_000])
def test_values_are_box_muller_of_their_words(size):
    """In float64 from the same words, to 4e-7 of the length of each pair."""
    key = jax.random.key(12)
    data = [int(word) for word in jax.random.key_data(key)]
    half = (size + 1) // 2
    first, second = (
        np.asarray(word, np.uint32)
        for word in noise_lib.threefry2x32(
            *(np.uint32(word) for word in data),
            jnp.full(half, noise_lib._DOMAIN, jnp.uint32),
            jnp.arange(half, dtype=jnp.uint32),
        )
    )
    length = np.sqrt(-2 * np.log(((first >> 1) + 0.5) / 2**31))
    angle = (second << np.uint32(2)).astype(np.int32) / 2**32 * np.pi / 2
    sign = np.where(second >> np.uint32(31), -1.0, 1.0)
    swapped = (second >> np.uint32(30)) & 1 == 1
    long, short = sign * length * np.cos(angle), length * np.sin(angle)
    expected = np.concatenate([np.where(swapped, short, long), np.where(swapped, long, short)])[:size]
    found = np.asarray(Gaussian(1.0).sample(key, (size,), jnp.float32), np.float64)
    scale = np.concatenate([length, length])[:size]
    # Near u = 1 the length of float32 words is coarse: 2^-24 / length.
    np.testing.assert_array_less(np.abs(found - expected), 4e-7 * scale + 6e-8 / np.maximum(scale, 3e-4))


def test_octants_are_equally_likely(draws):
    """The angle of pairs, and their squared length, whatever the octant; false alarm 1e-6 each."""
    x, y = draws[:500_000], draws[500_000:]
    octant = ((np.arctan2(y, x) + np.pi) // (np.pi / 4)).astype(int) % 8
    assert stats.chisquare(np.bincount(octant, minlength=8)).pvalue > 1e-6
    assert stats.kstest(np.arctan2(y, x)[:200_000], stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue > 1e-6
    assert stats.kstest((x**2 + y**2)[:200_000], stats.chi2(2).cdf).pvalue > 1e-6
    assert abs(np.corrcoef(x**2, y**2)[0, 1]) < 5.5 / 500_000**0.5


def test_refuses_other_generators():
    with pytest.raises(jaxsmooth.InputError, match="key must use threefry2x32, got rbg"):
        Gaussian(0.25).sample(jax.random.key(0, impl="rbg"), (3,))


TRANSFORMS = {
    "jit": lambda draw, keys, noise: np.stack([jax.jit(draw)(key, noise) for key in keys]),
    "vmap": lambda draw, keys, noise: jax.vmap(draw, (0, None))(keys, noise),
    "jit of vmap": lambda draw, keys, noise: jax.jit(jax.vmap(draw, (0, None)))(keys, noise),
    "constant sigma": lambda draw, keys, noise: jax.jit(jax.vmap(lambda key: draw(key, noise)))(keys),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("sigma", [0.12, 0.25])
def test_same_bits(transform, sigma):
    """Compiled or not, one by one or together, the noise of a key is the same to the last bit."""
    keys = jax.random.split(jax.random.key(7), 4)

    def draw(key, noise):
        return noise.sample(key, (5, 7), jnp.float32)

    eager = np.stack([draw(key, Gaussian(sigma)) for key in keys])
    np.testing.assert_array_equal(TRANSFORMS[transform](draw, keys, Gaussian(sigma)), eager)


def test_same_bits_of_the_noised_input():
    """The sum x + noise, which is what a model sees, survives fusion too."""
    keys = jax.random.split(jax.random.key(7), 4)
    x = jnp.linspace(0, 1, 35, dtype=jnp.float32).reshape(5, 7)

    def noised(key, noise):
        return x + noise.sample(key, x.shape, jnp.float32)

    eager = np.stack([noised(key, Gaussian(0.12)) for key in keys])
    np.testing.assert_array_equal(jax.jit(jax.vmap(noised, (0, None)))(keys, Gaussian(0.12)), eager)


def test_vmap_over_sigma():
    sigmas = jnp.array([0.12, 0.25, 0.5, 1.0], jnp.float32)
    key = jax.random.key(8)
    together = jax.vmap(lambda s: Gaussian(s).sample(key, (5, 7), jnp.float32))(sigmas)
    apart = [Gaussian(s).sample(key, (5, 7), jnp.float32) for s in sigmas]
    np.testing.assert_array_equal(together, np.stack(apart))


def test_new_sigma_does_not_retrace():
    traces = []

    @jax.jit
    def draw(key, noise):
        traces.append(noise)
        return noise.sample(key, (5, 7), jnp.float32)

    key = jax.random.key(9)
    for sigma in (0.12, 0.25, 0.5, 1.0):
        sample = draw(key, Gaussian(sigma))
        np.testing.assert_allclose(sample, Gaussian(sigma).sample(key, (5, 7), jnp.float32), rtol=1e-6)
    assert len(traces) == 1


def test_sigma_made_inside_jit():
    """A scale that is only known when the program runs is accepted."""
    key = jax.random.key(10)
    inside = jax.jit(lambda s: Gaussian(2 * s).sample(key, (5, 7), jnp.float32))(0.125)
    np.testing.assert_array_equal(inside, Gaussian(0.25).sample(key, (5, 7), jnp.float32))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32, "bfloat16"])
def test_refuses_coarse_dtypes(dtype):
    with pytest.raises(jaxsmooth.InputError, match=f"dtype.*{jnp.dtype(dtype).name}"):
        Gaussian(0.25).sample(jax.random.key(0), (3,), dtype)


def test_float64_when_enabled():
    with jax.enable_x64(True):
        sample = Gaussian(0.25).sample(jax.random.key(0), (4,), jnp.float64)
        assert sample.dtype == np.float64
        assert np.any(np.asarray(sample) != np.asarray(sample).astype(np.float32))


def test_float64_is_not_silently_lowered():
    """Without 64-bit mode there is no float64 noise: a clear refusal, not float32 under its name."""
    with jax.enable_x64(False), pytest.raises(jaxsmooth.InputError, match=r"dtype.*float64"):
        Gaussian(0.25).sample(jax.random.key(0), (4,), jnp.float64)


@pytest.mark.parametrize("sigma", [0.12, 1, np.float32(0.5), np.array(0.3)])
def test_radius_is_the_certified_radius(sigma):
    p_a, p_b = np.array([0.2, 0.5, 0.9, 0.999, 1.0]), np.array([0.1, 0.45, 0.1, 0.0005, 0.0])
    noise = Gaussian(sigma)
    one_sided, two_sided = noise.radius(p_a), noise.radius(p_a, p_b)
    np.testing.assert_array_equal(one_sided, jaxsmooth.certified_radius(p_a, sigma=float(sigma)))
    np.testing.assert_array_equal(two_sided, jaxsmooth.certified_radius(p_a, p_b, sigma=float(sigma)))
    assert one_sided.dtype == np.float64
    np.testing.assert_allclose(noise.radius(0.9), float(sigma) * stats.norm.ppf(0.9), rtol=1e-12)


def test_radius_with_a_device_scalar():
    assert Gaussian(jnp.float32(0.25)).radius(0.9) == Gaussian(0.25).radius(0.9)
