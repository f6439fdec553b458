"""Classifiers of users, in every framework, through ``load_source`` and in one line of code."""

import sys
import textwrap

import equinox as eqx
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxsmooth import Gaussian, InputError, sample_counts
from jaxsmooth.cli import sources
from jaxsmooth.models import registry
from jaxsmooth.sweep import records
from tests.cli.test_commands import call

SHAPE = (8, 8, 1)


@pytest.fixture
def module(tmp_path, monkeypatch, request):
    """Writes a module of the user's into the current folder; returns its name."""
    monkeypatch.chdir(tmp_path)
    # As for the installed command, the current folder is not on the path.
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(tmp_path))])
    name = f"user_{abs(hash(request.node.nodeid))}"

    def write(text):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        return name

    return write


PLAIN = """
    import jax.numpy as jnp
    import numpy as np

    def apply_fn(weights, inputs):
        return inputs.reshape(len(inputs), -1) @ weights

    def make():
        return apply_fn, np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
"""


def load(place, **more):
    return sources.load_source(None, "digits", "test", model=place, **{"sigma": 0.25, **more})


def test_a_function(module):
    name = module(PLAIN)
    source, sigma = load(f"{name}:make")
    assert sigma == 0.25
    assert (source.model, source.num_classes, source.inference_dtype) == (f"{name}:make", 10, "float32")
    assert source.parameters == registry.fingerprint(source.params)
    assert source.apply_fn(source.params, jnp.zeros((3, *SHAPE))).shape == (3, 10)
    assert source.data["name"] == "digits"


def test_an_nnx_module_is_put_into_evaluation_mode(module):
    """It comes in training mode: batch statistics and dropout."""
    name = module("""
        from flax import nnx

        class Net(nnx.Module):
            def __init__(self, rngs):
                self.norm = nnx.BatchNorm(64, rngs=rngs)
                self.drop = nnx.Dropout(0.5, rngs=rngs)
                self.linear = nnx.Linear(64, 10, rngs=rngs)

            def __call__(self, x):
                return self.linear(self.drop(self.norm(x.reshape(len(x), -1))))

        def make():
            return Net(nnx.Rngs(0))
    """)
    source, _ = load(f"{name}:make")
    assert source.apply_fn(source.params, jnp.zeros((3, *SHAPE))).dtype == jnp.float32
    source, _ = load(f"{name}:make", inference_dtype="bfloat16")
    assert source.inference_dtype == "bfloat16"
    floats = [leaf for leaf in jax.tree.leaves(source.params) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype("bfloat16")}


def test_a_linen_pair(module):
    name = module("""
        import jax, jax.numpy as jnp
        from flax import linen

        class Net(linen.Module):
            @linen.compact
            def __call__(self, x):
                return linen.Dense(10)(x.reshape(len(x), -1))

        def make():
            model = Net()
            return model.apply, model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    """)
    source, _ = load(f"{name}:make")
    assert source.apply_fn(source.params, jnp.zeros((3, *SHAPE))).shape == (3, 10)


def test_a_change_of_the_weights_changes_the_fingerprint(module):
    name = module(PLAIN + "\n    def other():\n        return apply_fn, make()[1] * 1.0001\n")
    assert load(f"{name}:make")[0].parameters != load(f"{name}:other")[0].parameters


@pytest.mark.parametrize(
    ("text", "attribute", "message"),
    [
        ("", "make", "could not be made: AttributeError: module .* has no attribute 'make'"),
        (
            "def make():\n    raise OSError('no weights\\nhere')",
            "make",
            "could not be made: OSError: no weights here$",
        ),
        (
            "import no_such_module",
            "make",
            "could not be made: ModuleNotFoundError: No module named 'no_such_module'",
        ),
        ("def make(x): pass", "make", "could not be made: TypeError"),
        ("make = 3", "make", "could not be made: TypeError: 'int' object is not callable"),
        ("def make(): (", "make", "could not be made: SyntaxError"),
        ("def make(): return 3", "make", r"must return \(apply_fn, params\) or a Flax NNX module, got 3"),
        (
            "def make(): return print, {'a': 'text'}",
            "make",
            r"params of arrays only, got str at params\['a'\]",
        ),
        (
            "def make(): return (lambda p, x: x.reshape(len(x), -1)[:, :3]), ()",
            "make",
            "must return logits for the 10 classes of digits, got 3",
        ),
        ("def make(): return (lambda p, x: x), ()", "make", "apply_fn must return logits of shape"),
        ("def make(): return (lambda p, x: x @ p), 2.0", "make", r"failed on inputs of shape \[4, 8, 8, 1\]"),
        (
            "def make(): return (lambda p, x: x.reshape(len(x), -1)[:, :10] - x.mean()), ()",
            "make",
            "must treat each row on its own, got logits that change with the other rows",
        ),
        (
            """
            import jax

            def apply_fn(weights, x):  # dropout left on, with a fixed key
                x = x.reshape(len(x), -1)
                return jax.random.bernoulli(jax.random.key(0), 0.5, x.shape) * x @ weights

            def make():
                return apply_fn, jax.numpy.ones((64, 10))
            """,
            "make",
            "must treat each row on its own, got logits that change with the row's place in the batch",
        ),
    ],
)
def test_mistakes_are_one_line(module, text, attribute, message):
    name = module(text)
    with pytest.raises(InputError, match=message) as caught:
        load(f"{name}:{attribute}")
    assert "\n" not in str(caught.value)


def test_other_mistakes(module, tmp_path):
    name = module(PLAIN)
    with pytest.raises(InputError, match=r"model must be package\.module:factory, got 'x'"):
        load("x")
    with pytest.raises(InputError, match="ModuleNotFoundError: No module named 'no_such_module'"):
        load("no_such_module:make")
    with pytest.raises(InputError, match="sigma must be given with model"):
        load(f"{name}:make", sigma=None)
    with pytest.raises(InputError, match="data must be given with model"):
        sources.load_source(None, None, "test", model=f"{name}:make", sigma=0.25)
    with pytest.raises(InputError, match="either checkpoint or model must be given"):
        sources.load_source(tmp_path, "digits", "test", model=f"{name}:make", sigma=0.25)
    with pytest.raises(InputError, match="either checkpoint or model must be given"):
        sources.load_source(None, "digits", "test", sigma=0.25)
    with pytest.raises(InputError, match="inference_dtype must be one of 'float32', 'bfloat16', got 'int8'"):
        load(f"{name}:make", inference_dtype="int8")
    with pytest.raises(InputError, match="inference_dtype must be float32 with an apply_fn of your own"):
        load(f"{name}:make", inference_dtype="bfloat16")


def test_the_commands_take_a_model(module, capsys, tmp_path):
    """Certified, resumed and predicted; other weights under the same name are not mixed into the folder."""
    name = module(PLAIN)
    model = ["--model", f"{name}:make", "--data", "digits", "--sigma", 0.25, "--num-samples", 200]
    out = tmp_path / "results"
    assert call(capsys, "certify", *model, "--out", out, "--max", 2)[0] == 0
    code, said, _ = call(capsys, "certify", *model, "--out", out, "--max", 3)
    assert (code, [row.index for row in records.read_results(out).rows]) == (0, [0, 1, 2])
    assert records.read_results(out).manifest.determines["model"] == f"{name}:make"
    assert said.startswith("certified 1 example")
    code, said, _ = call(capsys, "predict", *model, "--max", 2)
    assert (code, said.count("\n")) == (0, 3)
    sys.modules[name].make = lambda: (sys.modules[name].apply_fn, np.ones((64, 10), np.float32))
    code, said, err = call(capsys, "certify", *model, "--out", out, "--max", 4)
    assert (code, said, err.count("\n")) == (2, "", 1)
    assert "parameters" in err
    assert len(records.read_results(out).rows) == 3
    code, said, err = call(capsys, "certify", "--model", f"{name}:none", *model[2:], "--out", tmp_path / "n")
    assert (code, said, err.count("\n")) == (2, "", 1)
    assert not (tmp_path / "n").exists()


WRONG_IN_BFLOAT16 = """
    import jax.numpy as jnp
    from flax import nnx

    class Wrong(nnx.Module):
        def __init__(self):
            self.linear = nnx.Linear(64, 10, rngs=nnx.Rngs(0))

        def __call__(self, x):
            logits = self.linear(x.reshape(len(x), -1))
            return logits if x.dtype == jnp.float32 else jnp.full_like(logits, {})
"""


@pytest.mark.parametrize("wrong", ["jnp.nan", "jnp.inf", "1e4", "0"])
def test_logits_that_rounding_does_not_explain_are_refused(wrong, module, capsys, tmp_path):
    """As if a compiler had made a mistake that it does not make in float32."""
    name, out = module(WRONG_IN_BFLOAT16.format(wrong)), tmp_path / "results"
    command = ["certify", "--model", f"{name}:Wrong", "--data", "digits", "--sigma", 0.25, "--out", out]
    command += ["--num-samples", 100, "--max", 1]
    code, said, err = call(capsys, *command, "--inference-dtype", "bfloat16")
    assert (code, said, err.count("\n")) == (2, "", 1)
    assert f"inference_dtype must be float32 for model {name}:Wrong on this device, got bfloat16" in err
    assert not out.exists()
    assert call(capsys, *command)[0] == 0


def check_counts(apply_fn, params):
    """The one call that users make; every sample is counted for some class."""
    counts = sample_counts(
        jax.random.key(0),
        apply_fn,
        params,
        jnp.zeros(SHAPE),
        noise=Gaussian(0.25),
        num_samples=100,
        batch_size=32,
    )
    assert counts.shape == (10,)
    assert int(counts.sum()) == 100


def test_one_line_for_nnx():
    model = nnx.Sequential(lambda x: x.reshape(len(x), -1), nnx.Linear(64, 10, rngs=nnx.Rngs(0)))
    apply_fn, params = registry.inference(model)
    check_counts(apply_fn, params)


def test_one_line_for_linen():
    class Net(flax.linen.Module):
        @flax.linen.compact
        def __call__(self, x, train):
            x = flax.linen.BatchNorm(use_running_average=not train)(x)
            return flax.linen.Dense(10)(x.reshape(len(x), -1))

    model = Net()
    variables = model.init(jax.random.key(0), jnp.zeros((1, *SHAPE)), train=False)
    apply_fn, params = lambda v, x: model.apply(v, x, train=False), variables
    check_counts(apply_fn, params)


def test_one_line_for_equinox():
    linear = eqx.nn.Linear(64, 10, key=jax.random.key(0))
    model = eqx.nn.Sequential([eqx.nn.Lambda(jnp.ravel), linear])
    params, static = eqx.partition(model, eqx.is_array)
    apply_fn = lambda p, x: jax.vmap(eqx.combine(p, static))(x)  # noqa: E731
    check_counts(apply_fn, params)


def test_one_line_for_a_function():
    weights = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
    apply_fn, params = lambda w, x: x.reshape(len(x), -1) @ w, weights
    check_counts(apply_fn, params)
