"""Training learns, resumes exactly, and its checkpoints refuse damage."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsmooth import Gaussian, InputError
from jaxsmooth.data import registry as data
from jaxsmooth.models import registry
from jaxsmooth.training import checkpoints, loop, objectives

SPEC = registry.ModelSpec("digits-cnn", 10, (8, 8, 1), (0.3,), (0.4,))
OPTIONS = loop.Options(0.25, 4, 128, "adamw", 3e-3, 1e-3, seed=0, checkpoint_every=2)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", "train")


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("training") / "checkpoint"
    metrics = []
    loop.train(SPEC, digits, OPTIONS, out, metrics.append)
    return out, metrics


def test_the_loss_is_the_cross_entropy_of_noised_images():
    images = jnp.arange(12.0).reshape(3, 4)
    labels = jnp.array([0, 3, 1])
    loss = objectives.gaussian_augmentation(
        lambda x: x, jax.random.key(0), images, labels, noise=Gaussian(1e-6)
    )
    logits = np.asarray(images, np.float64)
    expected = np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(3), labels])
    assert float(loss.value) == pytest.approx(expected, abs=1e-4)
    assert float(loss.accuracy) == pytest.approx(1 / 3)


def test_the_noise_of_training_is_the_noise_asked_for():
    """Variance of 40,000 noised zeros; within 4 standard errors (false alarm 6e-5)."""
    seen = []

    def logits_fn(x):
        seen.append(x)
        return x[:, :2]

    objectives.gaussian_augmentation(
        logits_fn, jax.random.key(1), jnp.zeros((400, 100)), jnp.zeros(400, jnp.int32), noise=Gaussian(0.5)
    )
    (noised,) = seen
    assert abs(float(jnp.mean(noised**2)) / 0.25 - 1) < 4 * np.sqrt(2 / 40_000)
    assert len(np.unique(np.asarray(noised))) > 39_000  # a fresh draw for every pixel of every image


def test_training_learns(trained):
    _, metrics = trained
    assert [m["epoch"] for m in metrics] == [1, 2, 3, 4]
    assert metrics[-1]["loss"] < 0.5 * metrics[0]["loss"]
    assert metrics[-1]["accuracy"] > 0.8


def test_metrics_are_on_disk(trained):
    out, metrics = trained
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines == metrics


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [2, 3])
def test_resuming_gives_the_same_weights(trained, digits, tmp_path, after):
    def stop(metrics):
        if metrics["epoch"] == after:
            raise Stop

    with pytest.raises(Stop):
        loop.train(SPEC, digits, OPTIONS, tmp_path / "c", stop)
    assert checkpoints.describe(tmp_path / "c").step == 2 * (1297 // 128)
    loop.train(SPEC, digits, OPTIONS, tmp_path / "c")
    assert checkpoints.describe(tmp_path / "c").fingerprint == checkpoints.describe(trained[0]).fingerprint


def test_a_loaded_network_is_the_trained_one(trained, digits):
    model, description = checkpoints.load_model(trained[0])
    apply_fn, params = registry.inference(model)
    assert registry.fingerprint(params) != ""
    assert description.model == SPEC
    answers = np.argmax(apply_fn(params, digits.images), axis=-1)
    assert np.mean(answers == digits.labels) > 0.9


def copy(source, target):
    import shutil

    shutil.copytree(source, target)
    return target


def test_one_flipped_byte_is_found(trained, tmp_path):
    out = copy(trained[0], tmp_path / "c")
    big = max((out / "steps").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    content = bytearray(big.read_bytes())
    content[len(content) // 2] ^= 1
    big.write_bytes(content)
    with pytest.raises(InputError, match="is damaged: it has other bytes in steps/") as error:
        checkpoints.load_model(out)
    assert "\n" not in str(error.value)


def test_a_missing_step_is_found(trained, tmp_path):
    import shutil

    out = copy(trained[0], tmp_path / "c")
    shutil.rmtree(out / "steps")
    with pytest.raises(InputError, match="is damaged: it lacks steps/"):
        checkpoints.load_model(out)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda d: d["model"].update(num_classes=7),
            r"another architecture than digits-cnn: .*\[10\], not \[7\]",
        ),
        (lambda d: d["model"].update(name="vgg"), "model must be one of"),
        (lambda d: d["model"].pop("mean"), "not described completely"),
        (lambda d: d.pop("step") and d.pop("model"), "lacks fields"),
        (lambda d: d.update(version=9), "format version 9"),
        (lambda d: d.update(format="zip"), "not one of jaxsmooth's"),
    ],
)
def test_a_changed_description_is_refused(trained, tmp_path, change, said):
    out = copy(trained[0], tmp_path / "c")
    values = json.loads((out / "checkpoint.json").read_text())
    change(values)
    (out / "checkpoint.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=said):
        checkpoints.load_model(out)


def test_no_checkpoint_at_all(tmp_path):
    with pytest.raises(InputError, match="checkpoint must be a folder made by"):
        checkpoints.load_model(tmp_path / "nothing")
    (tmp_path / "checkpoint.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        checkpoints.load_model(tmp_path)


def test_other_options_are_refused_with_the_difference(trained, digits):
    other = dataclasses.replace(OPTIONS, sigma=0.5)
    with pytest.raises(InputError, match=r"training.sigma: 0.25 there, 0.5 now"):
        loop.train(SPEC, digits, other, trained[0])


def test_a_folder_of_something_else_is_left_alone(digits, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="holds something else"):
        loop.train(SPEC, digits, OPTIONS, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(digits, tmp_path):
    options = dataclasses.replace(OPTIONS, optimizer="sgd", learning_rate=1e30, epochs=1)
    with pytest.raises(InputError, match=r"learning_rate must be small enough to train, got 1e\+30"):
        loop.train(SPEC, digits, options, tmp_path / "c")
    assert not checkpoints.exists(tmp_path / "c")


@pytest.mark.parametrize(
    "change",
    [
        {"sigma": 0.0},
        {"epochs": 0},
        {"batch_size": 0},
        {"batch_size": 5000},
        {"optimizer": "magic"},
        {"learning_rate": -1.0},
        {"weight_decay": -1.0},
        {"seed": -1},
        {"checkpoint_every": 0},
    ],
)
def test_options_outside_their_range_are_refused(digits, tmp_path, change):
    ((name, value),) = change.items()
    with pytest.raises(InputError, match=rf"^{name} .*got .*{value}"):
        loop.train(SPEC, digits, dataclasses.replace(OPTIONS, **change), tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_data_that_does_not_fit_is_refused(digits, tmp_path):
    with pytest.raises(InputError, match=r"made for images \[32, 32, 3\] and 10 classes, got digits"):
        loop.train(dataclasses.replace(SPEC, input_shape=(32, 32, 3)), digits, OPTIONS, tmp_path / "c")
