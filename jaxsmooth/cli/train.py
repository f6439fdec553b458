"""``jaxsmooth train``: a network trained with Gaussian noise, as a checkpoint folder."""

import dataclasses
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from tqdm import tqdm

from jaxsmooth import devices
from jaxsmooth.cli import machine
from jaxsmooth.cli.progress import duration

if TYPE_CHECKING:
    from jaxsmooth.training import loop

_SECONDS_BETWEEN_LINES = 60.0


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a network on noised images (Gaussian augmentation) and keep it as a checkpoint folder.

    Starting the same command again resumes an unfinished training, at the step of its last checkpoint.

    Example: jaxsmooth train --data digits --sigma 0.25 --out runs/digits-0.25
    """

    out: Path
    """Checkpoint folder to write: new, empty, or one to resume."""
    data: str = "digits"
    """Data set to train on: digits; cifar10, cifar100, fashion-mnist, imagenet, mnist or svhn (see jaxsmooth prepare);
    folder:PATH with a folder of images per class in PATH/train; for photographs folder:PATH,resize=256,crop=224."""
    data_dir: Path | None = None
    """Where prepared data sets are; $TFDS_DATA_DIR or ~/tensorflow_datasets when not given."""
    model: str = "digits-cnn"
    """Network; `jaxsmooth models` lists them."""
    sigma: float = 0.25
    """Standard deviation of the noise, in units of the image (pixels in [0, 1])."""
    epochs: int = 40
    """Passes over the training images."""
    batch_size: int = 64
    """Images per step, over all devices together."""
    optimizer: str = "adamw"
    """sgd (momentum 0.9) or adamw."""
    learning_rate: float = 3e-3
    """Its largest value."""
    schedule: str = "cosine"
    """How the learning rate falls: cosine (to zero), or step (times 0.1 at each of decay_epochs)."""
    decay_epochs: tuple[int, ...] = ()
    """Epochs, counted from 0, at whose start the schedule step lowers the learning rate."""
    warmup_epochs: int = 0
    """First epochs, over which the learning rate rises in a straight line."""
    weight_decay: float = 1e-3
    """Coefficient of the decay of the weights."""
    augmentation: str = "none"
    """none, crop-flip (padding 4, for CIFAR) or resized-crop-flip (for ImageNet)."""
    compute_dtype: str = "float32"
    """In which the network computes: float32 or bfloat16; weights, noise and loss stay float32."""
    held_out: int = 0
    """Training images kept apart, on which smoothed accuracy is checked."""
    check_every: int = 1
    """Epochs between these checks."""
    check_samples: int = 32
    """Noised copies of each image kept apart, whose majority vote is its prediction."""
    seed: int = 0
    """Of the initial weights, the order of images, their augmentation and the noise."""
    checkpoint_every: int = 20
    """Epochs between checkpoints."""
    checkpoint_seconds: float = 600.0
    """Also writes a checkpoint in the middle of an epoch when the last one is this old."""
    num_workers: int = 0
    """Processes that read and augment images; 0 reads in threads, which is best for small images."""
    num_devices: int | None = None
    """Devices to use; as many as divide the batch evenly when not given."""
    distributed: bool = False
    """Train with all processes of a job (jax.distributed): each reads its part of every batch."""
    coordinator: str | None = None
    """host:port of process 0, where the job cannot be found by itself."""
    num_processes: int | None = None
    """Number of processes of the job, likewise."""
    process_index: int | None = None
    """Which process this is, likewise."""
    compilation_cache: str = "auto"
    """Folder for compiled programs; auto is in the user's cache folder, off keeps none."""


def run(options: Train) -> None:
    """Trains, with a progress bar, and says where the checkpoint is."""
    machine.prepare(options.compilation_cache)
    if options.distributed:
        devices.join_job(options.coordinator, options.num_processes, options.process_index)
    import jax

    from jaxsmooth.data import registry as data_registry
    from jaxsmooth.models.registry import ModelSpec
    from jaxsmooth.training import loop

    fields = {field.name for field in dataclasses.fields(loop.Options)}
    settings = loop.Options(
        **{name: value for name, value in dataclasses.asdict(options).items() if name in fields}
    )
    settings.check()
    dataset = data_registry.load(options.data, "train", options.data_dir)
    spec = ModelSpec(options.model, dataset.num_classes, dataset.shape, dataset.mean, dataset.sd)
    started = time.monotonic()
    last = None
    bar = TrainProgress(options.batch_size, quiet=jax.process_index() > 0)

    def show(metrics: "loop.Metrics") -> None:
        nonlocal last
        last = metrics
        bar.epoch(metrics)

    try:
        loop.train(spec, dataset, settings, options.out, show, bar.update, options.num_devices)
    except loop.Interrupted as stop:
        bar.close()
        standing = f"step {stop.step} of {stop.num_steps} is in {options.out}"
        machine.leave_interrupted(stop.signal_number, standing, in_job=options.distributed)
    finally:
        bar.close()
    if last is None:
        print(f"{options.out} was trained already: {options.epochs} epochs", file=sys.stderr)
    elif jax.process_index() == 0:
        checked = (
            f", smoothed accuracy on {options.held_out} images kept apart {last['smoothed_accuracy']:.3f}"
            if "smoothed_accuracy" in last
            else ""
        )
        print(
            f"trained {options.model} at sigma {options.sigma} for {options.epochs} epochs in "
            f"{duration(time.monotonic() - started)}: loss {last['loss']:.3f}, accuracy on noised training images "
            f"{last['accuracy']:.3f}{checked}; checkpoint in {options.out}"
        )
    if options.distributed:
        sys.stdout.flush()
        devices.leave_job()


class TrainProgress:
    """A bar over images with images/s and time left; on no terminal a line per epoch and one a minute.

    Args:
        batch_size: images per step.
        quiet: shows nothing, for all processes of a job but the first.
        stream: where to write; stderr by default.
    """

    def __init__(self, batch_size: int, quiet: bool = False, stream: TextIO | None = None):
        self._batch_size, self._quiet = batch_size, quiet
        self._stream = stream or sys.stderr
        self._bar: tqdm | None = None
        self._last_line = time.monotonic()
        self._epoch = ""

    def update(self, progress: "loop.Progress") -> None:
        """Called after every step."""
        if self._quiet:
            return
        if not self._stream.isatty():
            if time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
                self._print(self._line(progress))
            return
        if self._bar is None:
            self._bar = tqdm(
                total=progress.num_steps * self._batch_size,
                initial=progress.resumed * self._batch_size,
                desc="training",
                unit="image",
                unit_scale=True,
                file=self._stream,
                dynamic_ncols=True,
            )
        self._bar.set_postfix_str(f"{self._epoch}loss {progress.loss:.3f}", refresh=False)
        self._bar.update(progress.step * self._batch_size - self._bar.n)

    def epoch(self, metrics: "loop.Metrics") -> None:
        """Called after every epoch."""
        smoothed = (
            f", smoothed accuracy {metrics['smoothed_accuracy']:.3f}"
            if "smoothed_accuracy" in metrics
            else ""
        )
        self._epoch = f"epoch {int(metrics['epoch'])}{smoothed}, "
        # Quick trainings would fill the screen: at most a line every five seconds.
        if not self._quiet and not self._stream.isatty() and time.monotonic() - self._last_line >= 5.0:
            means = f"loss {metrics['loss']:.4f}, accuracy {metrics['accuracy']:.4f}"
            self._print(f"epoch {int(metrics['epoch'])}: {means}{smoothed}")

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _print(self, line: str) -> None:
        self._last_line = time.monotonic()
        print(f"training: {line}", file=self._stream, flush=True)

    def _line(self, progress: "loop.Progress") -> str:
        fresh = progress.step - progress.resumed - 1  # the clock starts when the first step is done
        rate = fresh / max(progress.seconds, 1e-9)
        left = f", {duration((progress.num_steps - progress.step) / rate)} left" if fresh else ""
        return (
            f"step {progress.step}/{progress.num_steps}, loss {progress.loss:.3f}, "
            f"{rate * self._batch_size:,.0f} images/s{left}"
        )
