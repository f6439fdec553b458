"""sample_counts: ranges of samples, traces, memory, rows that are not finite, and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxsmooth import Gaussian, InputError, certify, predict, sample_counts
from jaxsmooth.radius import probability_after_shift

KEY = jax.random.fold_in(jax.random.key(2024), 6)


def nearest(params, inputs):
    """Class of the nearest of ``params`` points on the line of the first entry."""
    return -jnp.abs(inputs[:, :1] - params)


CENTRES = jnp.linspace(-1.5, 1.5, 7)
X = jnp.array([0.1, 0.2, 0.3])


def count(num_samples, batch_size=32, first_sample=0, params=CENTRES, sigma=0.7, key=KEY, x=X):
    return sample_counts(
        key,
        nearest,
        params,
        x,
        noise=Gaussian(sigma),
        num_samples=num_samples,
        batch_size=batch_size,
        first_sample=first_sample,
    )


def first_entries(num_samples, sigma=0.7):
    """First entry of each noised copy of X, drawn one by one."""
    noise = Gaussian(sigma)
    draws = [noise.sample(jax.random.fold_in(KEY, j), X.shape, jnp.float32)[0] for j in range(num_samples)]
    return np.float32(X[0]) + np.asarray(draws)


@pytest.mark.parametrize("num_samples", [1, 31, 32, 33, 100])
def test_counts_exactly_num_samples(num_samples):
    """No padding row is counted and none is lost; the classes are those of samples drawn one by one."""
    counts = count(num_samples)
    answers = np.argmin(np.abs(first_entries(100)[:, None] - np.asarray(CENTRES)), axis=1)
    np.testing.assert_array_equal(counts, np.bincount(answers[:num_samples], minlength=7))
    assert counts.dtype == np.int32


def test_adjoining_ranges_add_up():
    whole = count(1000)
    parts = [count(300), count(1, first_sample=300), count(699, first_sample=301)]
    np.testing.assert_array_equal(whole, sum(parts))


def test_first_sample_may_be_traced():
    traced = jax.jit(lambda first: count(50, first_sample=first))
    for first in (0, 7, 100_000):
        np.testing.assert_array_equal(traced(first), count(50, first_sample=first))


def test_certify_draws_consecutive_ranges():
    """Selection takes samples 0 .. s - 1, estimation the next n."""
    certificate = certify(
        KEY,
        nearest,
        CENTRES,
        X,
        noise=Gaussian(0.7),
        num_samples=333,
        alpha=0.01,
        batch_size=32,
        selection_samples=70,
    )
    np.testing.assert_array_equal(certificate.selection_counts, count(70))
    np.testing.assert_array_equal(certificate.counts, count(333, first_sample=70))


def test_predict_draws_from_sample_0():
    prediction = predict(
        KEY, nearest, CENTRES, X, noise=Gaussian(0.7), num_samples=333, alpha=0.01, batch_size=32
    )
    np.testing.assert_array_equal(prediction.counts, count(333))


@pytest.mark.parametrize("dtype", [np.float64, jnp.bfloat16, np.float16])
def test_x_of_any_floating_type(dtype):
    """Noise is added in float32 to what x says, here numbers that every type holds exactly."""
    x = np.array([0.5, 0.25, 1.0])
    np.testing.assert_array_equal(count(100, x=x.astype(dtype)), count(100, x=x.astype(np.float32)))
    np.testing.assert_array_equal(count(100, x=x.tolist()), count(100, x=x.astype(np.float32)))


def run_any(fn, key, params, x, sigma, num_samples=50):
    if fn is sample_counts:
        return fn(key, params[0], params[1], x, noise=Gaussian(sigma), num_samples=num_samples, batch_size=16)
    return fn(
        key,
        params[0],
        params[1],
        x,
        noise=Gaussian(sigma),
        num_samples=num_samples,
        alpha=0.1,
        batch_size=16,
    )


@pytest.mark.parametrize("fn", [sample_counts, certify, predict])
@pytest.mark.parametrize("outer_jit", [False, True])
def test_number_of_traces(fn, outer_jit):
    """The model is traced for the first call alone: new values of every argument reuse the program."""
    traces = []

    def apply_fn(params, inputs):
        traces.append(inputs.shape)
        return nearest(params, inputs)

    def run(key, params, x, sigma, num_samples=50):
        return run_any(fn, key, (apply_fn, params), x, sigma, num_samples)

    if outer_jit:
        run = jax.jit(run, static_argnames="num_samples")
    run(KEY, CENTRES, X, 0.7)
    first = len(traces)
    assert 1 <= first <= 4
    run(KEY, CENTRES, X, 0.3)
    run(jax.random.key(1), CENTRES, X, 0.7)
    run(KEY, CENTRES, X + 1, 0.7)
    run(KEY, 2 * CENTRES, X, 0.7)
    run(KEY, CENTRES, X, 0.7, num_samples=51)
    assert len(traces) == first
    if not outer_jit:
        run(KEY, CENTRES[:3], X, 0.7)
        assert len(traces) > first, "the counter counts"


def test_memory_does_not_grow_with_num_samples():
    """Scratch memory of the compiled program is that of one batch."""
    x = jnp.zeros((8, 8, 3))

    def scratch(num_samples, batch_size):
        def run(key, x):
            return sample_counts(
                key,
                lambda _, inputs: inputs.reshape(inputs.shape[0], -1)[:, :4],
                None,
                x,
                noise=Gaussian(0.5),
                num_samples=num_samples,
                batch_size=batch_size,
            )

        compiled = jax.jit(run).lower(KEY, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small = scratch(1000, 16)
    assert scratch(10_000_000, 16) == small
    assert scratch(1000, 256) > 4 * small, "the measure sees the batch"


BAD_LOGITS = {
    "nan": jnp.array([jnp.nan, 0.0, 1.0]),
    "inf": jnp.array([0.0, 1.0, jnp.inf]),
    "minus inf": jnp.array([-jnp.inf, 0.0, 1.0]),
}


@pytest.mark.parametrize("bad", BAD_LOGITS)
def test_rows_that_are_not_finite_are_counted_for_no_class(bad):
    """Rows whose first entry is above 0.4 go bad; the others are all of class 1."""

    def apply_fn(bad_row, inputs):
        return jnp.where(inputs[:, :1] > 0.4, bad_row, jnp.array([0.0, 1.0, 0.0]))

    counts = sample_counts(
        KEY, apply_fn, BAD_LOGITS[bad], X, noise=Gaussian(0.7), num_samples=100, batch_size=32
    )
    good = int(np.sum(first_entries(100) <= 0.4))
    assert 0 < good < 100
    assert counts.tolist() == [0, good, 0]


def test_vmap_over_x_and_over_sigma():
    xs = jnp.stack([X, X + 1, X - 1])
    for row, x in zip(jax.vmap(lambda x: count(100, x=x))(xs), xs, strict=True):
        np.testing.assert_array_equal(row, count(100, x=x))
    sigmas = [0.2, 0.7, 1.3]
    for row, sigma in zip(jax.vmap(lambda s: count(100, sigma=s))(jnp.array(sigmas)), sigmas, strict=True):
        np.testing.assert_array_equal(row, count(100, sigma=sigma))


def half_spaces(params, inputs):
    """Classes 0 and 1 in the half-spaces of Theorem 1 along the unit vector u, class 2 between them."""
    u, edge_a, edge_b = params
    along = inputs @ u
    return jnp.stack([along <= edge_a, along >= edge_b, (along > edge_a) & (along < edge_b)], 1).astype(
        jnp.float32
    )


@pytest.mark.parametrize(("p_a", "p_b", "sigma"), [(0.7, 0.1, 0.5), (0.45, 0.3, 0.25)])
def test_theorem_1_is_tight(p_a, p_b, sigma):
    """Moved by R, the two half-spaces are equally likely; moved by less, A leads. Six exact tests at 1e-6."""
    u = np.array([2.0, -1.0, 2.0]) / 3
    edges = sigma * stats.norm.ppf(p_a), sigma * stats.norm.isf(p_b)
    radius = sigma / 2 * (stats.norm.ppf(p_a) - stats.norm.ppf(p_b))
    n = 100_000
    for share in (0.0, 0.8, 1.0):
        counts = sample_counts(
            KEY,
            half_spaces,
            (jnp.asarray(u, jnp.float32), *edges),
            share * radius * u,
            noise=Gaussian(sigma),
            num_samples=n,
            batch_size=5000,
        )
        for observed, p, bound in ((counts[0], p_a, "lower"), (counts[1], p_b, "upper")):
            shifted = probability_after_shift(p, share * radius, sigma=sigma, bound=bound)
            assert stats.binomtest(int(observed), n, float(shifted)).pvalue > 1e-6
        in_front = stats.binomtest(int(counts[0]), int(counts[0] + counts[1]), 0.5, alternative="greater")
        assert (in_front.pvalue < 1e-6) == (share < 1)


def linear(params, inputs):
    return inputs @ params


def call(fn, **changes):
    """``fn`` with good arguments but for ``changes``."""
    arguments = {
        "key": KEY,
        "apply_fn": linear,
        "params": jnp.eye(3),
        "x": X,
        "noise": Gaussian(0.5),
        "num_samples": 20,
        "batch_size": 10,
    }
    if fn is not sample_counts:
        arguments["alpha"] = 0.01
    arguments |= changes
    positional = [arguments.pop(name) for name in ("key", "apply_fn", "params", "x")]
    return fn(*positional, **arguments)


class Unhashable:
    __hash__ = None

    def __call__(self, params, inputs):
        return linear(params, inputs)


def returning(output):
    """A model that gives ``output(logits)`` for ordinary logits [10, 3]."""
    return lambda params, inputs: output(inputs @ params)


# What is wrong: the changed arguments, and words that the message must contain: the argument, then the value.
BAD_INPUT = {
    "integer x": ({"x": np.array([1, 2, 3])}, "x", "int64"),
    "integer list": ({"x": [1, 2, 3]}, "x", "int"),
    "8-bit x": ({"x": np.zeros(3, np.uint8)}, "x", "uint8"),
    "boolean x": ({"x": np.zeros(3, bool)}, "x", "bool"),
    "complex x": ({"x": np.zeros(3, np.complex64)}, "x", "complex64"),
    "text x": ({"x": "abc"}, "x", "<U3"),
    "no x": ({"x": None}, "x", ""),
    "ragged x": ({"x": [[1.0], [1.0, 2.0]]}, "x", ""),
    "nan in x": ({"x": np.array([0.0, np.nan, 1.0])}, "x", "1"),
    "inf in x": ({"x": np.array([np.inf, -np.inf, 1.0])}, "x", "2"),
    "too large for float32": ({"x": np.array([1e39, 0.0, 1.0])}, "x", "1"),
    "logits 1-D": ({"apply_fn": returning(lambda y: y[:, 0])}, "apply_fn", "[10]"),
    "logits 3-D": ({"apply_fn": returning(lambda y: y[None])}, "apply_fn", "[1, 10, 3]"),
    "logits scalar": ({"apply_fn": returning(jnp.sum)}, "apply_fn", "[]"),
    "logits transposed": ({"apply_fn": returning(lambda y: y.T)}, "apply_fn", "[3, 10]"),
    "logits of another batch": ({"apply_fn": returning(lambda y: y[:5])}, "apply_fn", "[5, 3]"),
    "logits in a tuple": ({"apply_fn": returning(lambda y: (y, y))}, "apply_fn", "tuple"),
    "no logits": ({"apply_fn": returning(lambda y: None)}, "apply_fn", "None"),
    "class numbers": (
        {"apply_fn": returning(lambda y: jnp.argmax(y, 1, keepdims=True))},
        "apply_fn",
        "int32",
    ),
    "integer logits": ({"apply_fn": returning(lambda y: y.astype(jnp.int32))}, "apply_fn", "int32"),
    "complex logits": ({"apply_fn": returning(lambda y: y + 0j)}, "apply_fn", "complex64"),
    "one class": ({"apply_fn": returning(lambda y: y[:, :1])}, "apply_fn", "[10, 1]"),
    "no classes": ({"apply_fn": returning(lambda y: y[:, :0])}, "apply_fn", "[10, 0]"),
    "unhashable model": ({"apply_fn": Unhashable()}, "apply_fn", "Unhashable"),
    "no model": ({"apply_fn": None}, "apply_fn", "None"),
    "parameters for a model": ({"apply_fn": {"w": np.zeros((40, 40))}}, "apply_fn", ""),
    "no samples": ({"num_samples": 0}, "num_samples", "0"),
    "-1 samples": ({"num_samples": -1}, "num_samples", "-1"),
    "2.5 samples": ({"num_samples": 2.5}, "num_samples", "2.5"),
    "True samples": ({"num_samples": True}, "num_samples", "True"),
    "text samples": ({"num_samples": "20"}, "num_samples", "'20'"),
    "None samples": ({"num_samples": None}, "num_samples", "None"),
    "nan samples": ({"num_samples": float("nan")}, "num_samples", "nan"),
    "2**31 samples": ({"num_samples": 2**31}, "num_samples", str(2**31)),
    "10**400 samples": ({"num_samples": 10**400}, "num_samples", ""),
    "matrix of samples": ({"num_samples": np.ones((3, 3))}, "num_samples", ""),
    "batch of 0": ({"batch_size": 0}, "batch_size", "0"),
    "batch of -2": ({"batch_size": -2}, "batch_size", "-2"),
    "batch of 1.5": ({"batch_size": 1.5}, "batch_size", "1.5"),
    "batch of True": ({"batch_size": True}, "batch_size", "True"),
    "batch of nan": ({"batch_size": float("nan")}, "batch_size", "nan"),
    "batch of text": ({"batch_size": "x"}, "batch_size", "'x'"),
    "batch of None": ({"batch_size": None}, "batch_size", "None"),
    "batch of 2**40": ({"batch_size": 2**40}, "batch_size", str(2**40)),
    "raw key": ({"key": np.zeros(2, np.uint32)}, "key", "uint32"),
    "seed for a key": ({"key": 0}, "key", "int"),
    "no key": ({"key": None}, "key", "None"),
    "batch of keys": ({"key": jax.random.split(KEY, 3)}, "key", "(3,)"),
    "rbg key": ({"key": jax.random.key(0, impl="rbg")}, "key", "rbg"),
    "unsafe_rbg key": ({"key": jax.random.key(0, impl="unsafe_rbg")}, "key", "unsafe_rbg"),
    "sigma for noise": ({"noise": 0.5}, "noise", "0.5"),
    "no noise": ({"noise": None}, "noise", "None"),
}


def assert_one_line(error, *words):
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 300
    for word in words:
        assert word in message


@pytest.mark.parametrize("wrong", BAD_INPUT)
@pytest.mark.parametrize("fn", [sample_counts, certify, predict])
def test_bad_input(fn, wrong):
    changes, name, value = BAD_INPUT[wrong]
    with pytest.raises(InputError, match=rf"^{name}\b") as error:
        call(fn, **changes)
    assert_one_line(error, value)


@pytest.mark.parametrize("sigma", [0, -0.5, float("nan"), float("inf"), "0.5", None, True, np.ones(2)])
def test_bad_sigma(sigma):
    with pytest.raises(InputError, match=r"^sigma\b") as error:
        Gaussian(sigma)
    assert_one_line(error, "(2,)" if isinstance(sigma, np.ndarray) else str(sigma))


@pytest.mark.parametrize("first_sample", [-1, 1.5, None, "0", True, 2**31 - 5])
def test_bad_first_sample(first_sample):
    with pytest.raises(InputError) as error:
        call(sample_counts, first_sample=first_sample)
    assert_one_line(error, "sample")


@pytest.mark.parametrize("name", ["num_samples", "batch_size"])
@pytest.mark.parametrize("fn", [sample_counts, certify, predict])
def test_traced_sizes(fn, name):
    with pytest.raises(InputError, match=rf"^{name}\b") as error:
        jax.jit(lambda size: call(fn, **{name: size}))(5)
    assert_one_line(error, "traced")


@pytest.mark.parametrize("wrong", ["integer x", "logits 1-D", "batch of keys", "2.5 samples", "rbg key"])
def test_bad_input_when_tracing(wrong):
    """The same refusal from inside jit, at trace time."""
    changes, name, value = BAD_INPUT[wrong]
    traced = {k: v for k, v in changes.items() if k in ("x", "key")}
    fixed = {k: v for k, v in changes.items() if k not in traced}
    with pytest.raises(InputError, match=rf"^{name}\b") as error:
        jax.jit(lambda traced: call(certify, **traced, **fixed))(traced)
    assert_one_line(error, value.replace("int64", "int"))


def test_nan_that_only_the_program_sees_is_no_exception():
    """Inside jit a NaN in x is a value: the logits are NaN and no class is counted."""
    counts = jax.jit(lambda x: call(sample_counts, x=x))(jnp.array([jnp.nan, 0.0, 1.0]))
    assert counts.tolist() == [0, 0, 0]
