"""``jaxsmooth train`` and ``prepare`` as a person calls them."""

import io
import os
import signal
import subprocess
import sys
import time

import pytest

from jaxsmooth.cli.main import main
from jaxsmooth.cli.train import TrainProgress
from jaxsmooth.sweep import records
from jaxsmooth.training import checkpoints
from jaxsmooth.training.loop import Metrics, Progress
from tests.cli.test_commands import call
from tests.data.folders_of_images import make


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return make(tmp_path_factory.mktemp("photographs"), per_class=6, size=(12, 16))


def test_a_folder_of_images_is_trained_on_and_certified(capsys, photographs, tmp_path):
    data = f"folder:{photographs},resize=9,crop=8"
    options = ["--epochs", 2, "--batch-size", 4, "--held-out", 2, "--augmentation", "resized-crop-flip"]
    code, out, err = call(capsys, "train", "--data", data, "--out", tmp_path / "c", *options)
    assert code == 0, err
    assert "smoothed accuracy on 2 images kept apart" in out
    assert checkpoints.describe(tmp_path / "c").data == data
    options = ["--checkpoint", tmp_path / "c", "--out", tmp_path / "r", "--num-samples", 100, "--max", 3]
    code, out, err = call(capsys, "certify", *options)
    assert code == 0, err
    assert [row.label for row in records.read_results(tmp_path / "r").rows] == [0, 0, 0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data", "folder:nowhere"], "nowhere, which is not there"),
        (["--data", "folder:PHOTOS"], "images of one size, or be given as folder:PATH,resize=256,crop=224"),
        (["--data", "folder:PHOTOS,resize=8,crop=0"], "crop must be at least 1, got 0"),
        (["--data", "mnist", "--data-dir", "nowhere"], "`jaxsmooth prepare mnist --data-dir nowhere`"),
        (["--data", "cifar"], "data must be one of 'cifar10', 'cifar100', 'digits'"),
        (["--augmentation", "resized-crop-flip"], "augmentation must be 'none' or 'crop-flip' unless"),
        (["--num-devices", 99], "num_devices must be at most"),
        (["--schedule", "step"], "decay_epochs must be given"),
        (["--learning-rate", 1e30, "--optimizer", "sgd"], "no checkpoint was written yet"),
    ],
)
def test_mistakes_are_one_line(capsys, photographs, tmp_path, options, said):
    if any("PHOTOS" in str(option) for option in options):
        (photographs / "train" / "cat" / "odd.png").write_bytes(
            (make(tmp_path / "odd", size=(5, 5)) / "train" / "cat" / "0.png").read_bytes()
        )
    options = [str(option).replace("PHOTOS", str(photographs)) for option in options]
    code, _, err = call(capsys, "train", "--out", tmp_path / "c", *options)
    (photographs / "train" / "cat" / "odd.png").unlink(missing_ok=True)
    assert code == 2
    assert err.count("\n") == 1
    assert said in err


def test_preparing_says_what_is_wrong(capsys, tmp_path, monkeypatch):
    code, _, err = call(capsys, "prepare", "cifar11")
    assert (code, err.count("\n")) == (2, 1)
    assert "data must be one of 'cifar10'" in err
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    code, _, err = call(capsys, "prepare", "cifar10", "--data-dir", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert "pip install 'jaxsmooth[tfds]'" in err


def test_sigterm_leaves_a_checkpoint_says_how_to_go_on_and_exits_143(tmp_path):
    """A training far too long to end; it is stopped after its first epoch."""
    out = tmp_path / "c"
    program = "import sys; from jaxsmooth.cli.main import main; main(sys.argv[1:])"
    options = ["--out", str(out), "--epochs", "100000", "--checkpoint-every", "1", "--held-out", "100"]
    process = subprocess.Popen(
        [sys.executable, "-c", program, "train", *options],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    deadline = time.monotonic() + 120
    while not checkpoints.exists(out) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143
    step = checkpoints.describe(out).step
    lines = [line for line in err.splitlines() if not line.startswith("training: ")]
    assert lines == [
        f"stopped by SIGTERM: step {step} of 1800000 is in {out}; start the same command again to go on"
    ]


def test_a_finished_training_says_so(capsys, tmp_path):
    main(["train", "--out", str(tmp_path / "c"), "--epochs", "1"])
    code, _, err = call(capsys, "train", "--out", tmp_path / "c", "--epochs", "1")
    assert code == 0
    assert "was trained already: 1 epochs" in err


def test_progress_without_a_terminal_is_a_line_a_minute(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    bar = TrainProgress(128, stream=stream)
    for step in range(1, 122):  # a second each, from the end of the first on
        clock[0] += 1
        bar.update(Progress(10 + step, 1000, resumed=10, loss=0.5, seconds=step - 1.0))
    bar.epoch(Metrics(epoch=2, step=131, loss=0.75, accuracy=0.5, smoothed_accuracy=0.625))
    clock[0] += 9
    bar.epoch(Metrics(epoch=3, step=140, loss=0.75, accuracy=0.5, smoothed_accuracy=0.625))
    assert stream.getvalue().splitlines() == [
        "training: step 70/1000, loss 0.500, 128 images/s, 15 min 30 s left",
        "training: step 130/1000, loss 0.500, 128 images/s, 14 min 30 s left",
        "training: epoch 3: loss 0.7500, accuracy 0.5000, smoothed accuracy 0.625",
    ]
    quiet = io.StringIO()
    clock[0] += 100
    TrainProgress(128, quiet=True, stream=quiet).update(Progress(1, 2, 0, 0.5, 1.0))
    assert quiet.getvalue() == ""


def test_progress_on_a_terminal_is_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    bar = TrainProgress(128, stream=stream)
    bar.update(Progress(5, 10, resumed=0, loss=0.5, seconds=4.0))
    bar.epoch(Metrics(epoch=1, step=5, loss=0.75, accuracy=0.5))
    bar.update(Progress(6, 10, resumed=0, loss=0.25, seconds=5.0))
    bar.close()
    assert "768/1.28k" in stream.getvalue()
    assert "epoch 1, loss 0.250" in stream.getvalue()
