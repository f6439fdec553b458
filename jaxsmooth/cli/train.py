"""``jaxsmooth train``: a network trained with Gaussian noise, as a checkpoint folder."""

import dataclasses
import sys
import time
from pathlib import Path

from tqdm import tqdm

from jaxsmooth.cli import machine
from jaxsmooth.cli.progress import duration


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a network on noised images (Gaussian augmentation) and keep it as a checkpoint folder.

    Starting the same command again resumes an unfinished training.

    Example: jaxsmooth train --data digits --sigma 0.25 --out runs/digits-0.25
    """

    out: Path
    """Checkpoint folder to write: new, empty, or one to resume."""
    data: str = "digits"
    """Data set to train on: digits."""
    model: str = "digits-cnn"
    """Network: digits-cnn."""
    sigma: float = 0.25
    """Standard deviation of the noise, in units of the image (pixels in [0, 1])."""
    epochs: int = 40
    """Passes over the training images."""
    batch_size: int = 64
    """Images per step."""
    optimizer: str = "adamw"
    """sgd (momentum 0.9) or adamw."""
    learning_rate: float = 3e-3
    """At the start; it falls to zero along a cosine."""
    weight_decay: float = 1e-3
    """Coefficient of the decay of the weights."""
    seed: int = 0
    """Of the initial weights, the order of images and the noise."""
    checkpoint_every: int = 20
    """Epochs between checkpoints."""
    compilation_cache: str = "auto"
    """Folder for compiled programs; auto is in the user's cache folder, off keeps none."""


def run(options: Train) -> None:
    """Trains, with a progress bar, and says where the checkpoint is."""
    machine.prepare(options.compilation_cache)
    from jaxsmooth.data import registry as data_registry
    from jaxsmooth.models.registry import ModelSpec
    from jaxsmooth.training import loop

    dataset = data_registry.load(options.data, "train")
    spec = ModelSpec(options.model, dataset.num_classes, dataset.shape, dataset.mean, dataset.sd)
    fields = {field.name for field in dataclasses.fields(loop.Options)}
    values = {name: value for name, value in dataclasses.asdict(options).items() if name in fields}
    started = time.monotonic()
    last = None
    with tqdm(total=options.epochs * len(dataset), desc="training", unit="image", disable=None) as bar:

        def show(metrics: loop.Metrics) -> None:
            nonlocal last
            last = metrics
            bar.update(int(metrics["epoch"]) * len(dataset) - bar.n)
            bar.set_postfix(epoch=int(metrics["epoch"]), loss=f"{metrics['loss']:.3f}")

        loop.train(spec, dataset, loop.Options(**values), options.out, show)
    if last is None:
        print(f"{options.out} was trained already: {options.epochs} epochs", file=sys.stderr)
        return
    print(
        f"trained {options.model} at sigma {options.sigma} for {options.epochs} epochs in "
        f"{duration(time.monotonic() - started)}: loss {last['loss']:.3f}, accuracy on noised training images "
        f"{last['accuracy']:.3f}; checkpoint in {options.out}"
    )
