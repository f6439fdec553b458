"""The same losses on any number of devices, after any kill, with any readers; schedules, precision, NaN."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache

from jaxsmooth import InputError
from jaxsmooth.data import registry as data
from jaxsmooth.data.dataset import Dataset, Pixels
from jaxsmooth.models import registry
from jaxsmooth.models.layers import ConvNorm, Normalize
from jaxsmooth.training import checkpoints, loop

OPTIONS = loop.Options(
    *(0.25, 2, 16, "sgd", 0.05, 1e-4, 0, 1),
    augmentation="crop-flip",
    held_out=8,
    check_samples=4,
    checkpoint_seconds=1e6,
)


class Small(nnx.Module):
    """Two convolutions with batch normalisation, to be quick."""

    def __init__(self, num_classes, input_shape, mean, sd, *, rngs):
        self.normalize = Normalize(mean, sd)
        self.first = ConvNorm(input_shape[-1], 8, 3, 2, rngs=rngs)
        self.second = ConvNorm(8, 8, 3, rngs=rngs)
        self.linear = nnx.Linear(8, num_classes, rngs=rngs)

    def __call__(self, x):
        """Images to logits."""
        x = self.second(nnx.relu(self.first(self.normalize(x))))
        return self.linear(nnx.relu(x).mean((1, 2)))


SPEC = registry.ModelSpec("small", 2, (8, 8, 3), (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """The same few programs again and again: compiled by the first test that needs them."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(autouse=True)
def small_network(monkeypatch):
    monkeypatch.setitem(registry.NETWORKS, "small", registry.Network(Small, 2, (8, 8, 3), "a test"))


@pytest.fixture(scope="module")
def dataset():
    """104 images, bright above or bright below: 96 train, in 6 steps an epoch."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 104).astype(np.int32)
    raw = rng.integers(0, 128, (104, 8, 8, 3), dtype=np.uint8)
    for image, label in zip(raw, labels, strict=True):
        image[4 * label : 4 * label + 4] += 127
    return Dataset("made", "train", Pixels(raw), labels, ("above", "below"), SPEC.mean, SPEC.sd)


def run(dataset, out, options=OPTIONS, stop_after=None, **arguments):
    """Losses of the steps; stops with a signal after a step when asked to."""
    losses = {}

    def note(progress):
        losses[progress.step] = progress.loss
        if progress.step == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    loop.train(SPEC, dataset, options, out, on_step=note, **arguments)
    return losses


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "c"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.NETWORKS, "small", registry.Network(Small, 2, (8, 8, 3), "a test"))
        losses = run(dataset, out, num_devices=1)
    return out, losses


def test_losses_arrive_for_every_step_and_fall(whole):
    out, losses = whole
    assert list(losses) == list(range(1, 13))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [6, 12]
    assert lines[1]["loss"] == pytest.approx(np.mean([losses[step] for step in range(7, 13)]), rel=1e-12)
    assert lines[1]["loss"] < lines[0]["loss"]
    assert 0 <= lines[1]["smoothed_accuracy"] <= 1


@pytest.mark.parametrize("num_devices", [2, 4])
def test_more_devices_give_the_same_losses_to_rounding(dataset, whole, tmp_path, num_devices):
    """Batch normalisation over the whole batch: with a device's own rows alone, losses differ in the second digit."""
    losses = run(dataset, tmp_path / "c", num_devices=num_devices)
    np.testing.assert_allclose(list(losses.values()), list(whole[1].values()), rtol=2e-4)
    one, _ = checkpoints.load_model(whole[0])
    many, _ = checkpoints.load_model(tmp_path / "c")
    for a, b in zip(jax.tree.leaves(nnx.state(one)), jax.tree.leaves(nnx.state(many)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("stop_after", [1, 9])
def test_a_signal_leaves_a_checkpoint_and_the_rest_ends_the_same(dataset, whole, tmp_path, stop_after):
    with pytest.raises(loop.Interrupted) as stop:
        run(dataset, tmp_path / "c", stop_after=stop_after, num_devices=1)
    assert stop.value.signal_number == signal.SIGTERM
    step = checkpoints.describe(tmp_path / "c").step
    # Up to two more steps were on their way.
    assert stop.value.step == step
    assert stop_after <= step <= stop_after + 3
    rest = run(dataset, tmp_path / "c", num_devices=1)
    assert rest == {number: loss for number, loss in whole[1].items() if number > step}
    final = checkpoints.describe(tmp_path / "c")
    assert final.fingerprint == checkpoints.describe(whole[0]).fingerprint
    assert (tmp_path / "c" / "metrics.jsonl").read_text() == (whole[0] / "metrics.jsonl").read_text()


def test_old_checkpoints_are_followed_in_the_middle_of_an_epoch_and_resumed(dataset, whole, tmp_path):
    """A kill that nothing can catch: the files of the moment are what remains."""
    options = dataclasses.replace(OPTIONS, checkpoint_seconds=1e-9)

    class Kill(Exception):
        pass

    def kill(progress):
        if progress.step == 9:
            raise Kill

    with pytest.raises(Kill):
        loop.train(SPEC, dataset, options, tmp_path / "c", on_step=kill, num_devices=1)
    existing = checkpoints.describe(tmp_path / "c")
    assert existing.step == 8
    assert existing.sums["loss"] == pytest.approx(whole[1][7] + whole[1][8], rel=1e-12)
    with (tmp_path / "c" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "step": 12, "lo')  # half a line of the future
    run(dataset, tmp_path / "c", num_devices=1)
    assert checkpoints.describe(tmp_path / "c").fingerprint == checkpoints.describe(whole[0]).fingerprint
    assert (tmp_path / "c" / "metrics.jsonl").read_text() == (whole[0] / "metrics.jsonl").read_text()


def test_a_training_that_ended_before_its_first_checkpoint_starts_anew(dataset, whole, tmp_path):
    class Kill(Exception):
        pass

    def kill(progress):
        if progress.step == 9:
            raise Kill

    options = dataclasses.replace(OPTIONS, checkpoint_every=2)
    with pytest.raises(Kill):
        loop.train(SPEC, dataset, options, tmp_path / "c", on_step=kill, num_devices=1)
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["metrics.jsonl"]
    assert run(dataset, tmp_path / "c", options, num_devices=1) == whole[1]
    assert (tmp_path / "c" / "metrics.jsonl").read_text() == (whole[0] / "metrics.jsonl").read_text()


def test_a_second_training_in_the_same_folder_is_refused(dataset, tmp_path):
    class Done(Exception):
        pass

    def start_another(_):
        with pytest.raises(InputError, match=r"out must not be in use, got .*: another run is writing there"):
            run(dataset, tmp_path / "c", num_devices=1)
        raise Done

    with pytest.raises(Done):
        loop.train(SPEC, dataset, OPTIONS, tmp_path / "c", on_step=start_another, num_devices=1)


def test_options_of_the_machine_may_change_on_resuming_others_not(dataset, whole, tmp_path):
    options = dataclasses.replace(OPTIONS, checkpoint_seconds=5.0, checkpoint_every=7, num_workers=3)
    assert run(dataset, whole[0], options) == {}
    for change in ({"held_out": 9}, {"augmentation": "none"}, {"warmup_epochs": 1}):
        ((name, value),) = change.items()
        with pytest.raises(InputError, match=rf"training.{name}: .* there, {value} now"):
            run(dataset, whole[0], dataclasses.replace(OPTIONS, **change))


def test_other_images_of_the_same_name_are_refused(dataset, whole):
    other = dataclasses.replace(dataset, images=Pixels(dataset.images.raw[::-1]))
    with pytest.raises(InputError, match=r"data_fingerprint: .* there, .* now"):
        run(other, whole[0])


def test_workers_do_not_change_the_losses(dataset, whole, tmp_path):
    losses = run(
        dataset, tmp_path / "c", dataclasses.replace(OPTIONS, num_workers=1, epochs=2), num_devices=1
    )
    assert losses == whole[1]


def test_bfloat16_computes_close_to_float32_and_keeps_float32_weights(dataset, whole, tmp_path):
    losses = run(
        dataset, tmp_path / "c", dataclasses.replace(OPTIONS, compute_dtype="bfloat16"), num_devices=1
    )
    values, expected = np.array(list(losses.values())), np.array(list(whole[1].values()))
    assert 0 < np.abs(values - expected).max() < 0.05
    model, _ = checkpoints.load_model(tmp_path / "c")
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {np.dtype(np.float32)}


def test_images_kept_apart_are_checked_by_vote_and_not_trained_on(dataset):
    batches, (images, labels) = loop._split(dataset, OPTIONS)
    assert (len(batches.examples), len(images)) == (96, 8)
    apart = np.setdiff1d(np.arange(104), batches.examples)
    np.testing.assert_array_equal(images, dataset.images.raw[apart])
    np.testing.assert_array_equal(labels, dataset.labels[apart])


def test_smoothed_accuracy_is_that_of_the_majority(dataset):
    """A network that calls the brighter half errs on noised copies now and then, and never by majority."""

    class Brighter(nnx.Module):
        def __call__(self, x):
            return jax.numpy.stack([x[:, :4].mean((1, 2, 3)), x[:, 4:].mean((1, 2, 3))], axis=-1)

    options = dataclasses.replace(OPTIONS, sigma=4.0, check_samples=200)
    part = (dataset.images[np.arange(30)], dataset.labels[:30])
    assert loop.smoothed_accuracy(Brighter(), part, options, loop._mesh(16, 2)) == 1.0
    assert loop.smoothed_accuracy(Brighter(), (part[0], 1 - part[1]), options, loop._mesh(16, 2)) == 0.0


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(dataset, tmp_path):
    """The learning rate explodes in the second epoch."""
    options = dataclasses.replace(OPTIONS, epochs=3, schedule="step", decay_epochs=(1,))
    out = tmp_path / "c"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "learning_rates", lambda *_: lambda step: jax.numpy.where(step < 6, 0.05, 1e30))
        with pytest.raises(InputError, match=r"in epoch 2; the checkpoint of step 6 is kept") as error:
            run(dataset, out, options)
    assert "\n" not in str(error.value)
    model, description = checkpoints.load_model(out)
    assert description.step == 6
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(nnx.state(model)))
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 1


def rates(steps, **options):
    schedule = loop.learning_rates(dataclasses.replace(OPTIONS, learning_rate=0.1, **options), 10)
    return [float(schedule(step)) for step in steps]


def test_learning_rates():
    found = rates([0, 299, 300, 599, 600, 899], epochs=90, schedule="step", decay_epochs=(30, 60))
    np.testing.assert_allclose(found, [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6)
    found = rates([0, 4, 9, 10, 299, 300], epochs=90, schedule="step", decay_epochs=(30, 60), warmup_epochs=1)
    np.testing.assert_allclose(found, [0.01, 0.05, 0.1, 0.1, 0.1, 0.01], rtol=1e-6)
    found = rates([0, 9, 10, 60, 110], epochs=11, warmup_epochs=1)
    np.testing.assert_allclose(found, [0.01, 0.1, 0.1, 0.05, 0], rtol=1e-6, atol=1e-9)
    found = rates([0, 50, 100], epochs=10)
    np.testing.assert_allclose(found, [0.1, 0.05, 0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schedule": "stairs"}, "schedule must be one of 'cosine', 'step', got 'stairs'"),
        ({"schedule": "step"}, r"decay_epochs must be given with the schedule 'step'.*got \[\] with 'step'"),
        ({"decay_epochs": (3,)}, r"decay_epochs .* only with it, got \[3\] with 'cosine'"),
        ({"decay_epochs": (0,), "schedule": "step"}, "decay_epochs must be at least 1, got 0"),
        ({"warmup_epochs": 3}, "warmup_epochs must be at most 2, got 3"),
        ({"augmentation": "mixup"}, "augmentation must be one of 'none', 'crop-flip', .*got 'mixup'"),
        ({"augmentation": "resized-crop-flip"}, r".*cut to squares .*got 'resized-crop-flip' with made"),
        ({"compute_dtype": "float16"}, "compute_dtype must be one of 'float32', 'bfloat16', got 'float16'"),
        ({"held_out": 104}, "held_out must be less than the 104 training images, got 104"),
        ({"held_out": 100}, "batch_size must be at most the 4 training images, got 16"),
        ({"held_out": -1}, "held_out must be at least 0, got -1"),
        ({"check_every": 0}, "check_every must be at least 1, got 0"),
        ({"check_samples": 0}, "check_samples must be at least 1, got 0"),
        ({"checkpoint_seconds": 0.0}, "checkpoint_seconds must be positive and finite, got 0.0"),
        ({"num_workers": -1}, "num_workers must be at least 0, got -1"),
    ],
)
def test_options_outside_their_range_are_refused(dataset, tmp_path, change, said):
    with pytest.raises(InputError, match=f"^{said}") as error:
        run(dataset, tmp_path / "c", dataclasses.replace(OPTIONS, **change))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("num_devices", "said"),
    [(0, "at least 1, got 0"), (9, "at most 8, got 9"), (3, "a multiple of num_devices 3, got 16")],
)
def test_numbers_of_devices_that_do_not_go_are_refused(dataset, tmp_path, num_devices, said):
    with pytest.raises(InputError, match=said):
        run(dataset, tmp_path / "c", num_devices=num_devices)


def test_labels_of_other_classes_are_refused(dataset, tmp_path):
    other = dataclasses.replace(dataset, class_names=("a", "b", "c"))
    with pytest.raises(InputError, match=r"and 2 classes, got made with images .* and 3 classes"):
        run(other, tmp_path / "c")


PROGRAM = """
import sys, json
out, coordinator, process = sys.argv[1:]
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
from jaxsmooth import devices
devices.join_job(coordinator, 2, int(process))
from jaxsmooth.data import registry as data
from jaxsmooth.models import registry
from jaxsmooth.training import loop
options = loop.Options(0.25, 1, 400, "sgd", 0.05, 1e-4, 0, 1, held_out=50, check_samples=2)
spec = registry.ModelSpec("digits-cnn", 10, (8, 8, 1), (0.3,), (0.4,))
losses = []
loop.train(spec, data.load("digits", "train"), options, out, on_step=lambda p: losses.append(p.loss))
loop.train(spec, data.load("digits", "train"), options, out)  # what is done stays done
print(json.dumps(losses), flush=True)
devices.leave_job()
"""


@pytest.mark.slow
def test_two_hosts_give_the_losses_of_one(tmp_path):
    """Two processes with two devices each, every one reading half of each batch, against one with one."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{s.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path / "two"), coordinator, str(process)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], [err[-2000:] for _, err in outputs]
    found = [json.loads(out.splitlines()[-1]) for out, _ in outputs]
    options = loop.Options(0.25, 1, 400, "sgd", 0.05, 1e-4, 0, 1, held_out=50, check_samples=2)
    spec = registry.ModelSpec("digits-cnn", 10, (8, 8, 1), (0.3,), (0.4,))
    losses = []
    loop.train(
        spec,
        data.load("digits", "train"),
        options,
        tmp_path / "one",
        on_step=lambda progress: losses.append(progress.loss),
        num_devices=1,
    )
    assert found[0] == found[1]
    np.testing.assert_allclose(found[0], losses, rtol=1e-4)
    assert len((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()) == 1
    _, description = checkpoints.load_model(tmp_path / "two")
    assert description.step == 3


def test_a_finished_training_leaves_weights_alone(whole):
    """The state of the optimizer doubles the size and serves only to go on."""
    (step,) = (whole[0] / "steps").iterdir()
    assert (step / "model").is_dir()
    assert not (step / "optimizer").exists()
