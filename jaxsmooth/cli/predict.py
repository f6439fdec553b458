"""``jaxsmooth predict``: the smoothed classifier's answers."""

import dataclasses
import sys
from pathlib import Path

from jaxsmooth import devices, files, validation
from jaxsmooth.cli.progress import SweepProgress, duration


@dataclasses.dataclass(frozen=True)
class Predict:
    """Predict with the smoothed classifier, or abstain where the samples do not settle it.

    Prints one line per example (idx, label, predict, correct; tab separated, abstention is -1).

    Example: jaxsmooth predict --checkpoint runs/digits-0.25 --max 20
    """

    checkpoint: Path
    """Checkpoint folder made by `jaxsmooth train`."""
    data: str | None = None
    """Data set; the one of the training if not given."""
    split: str = "test"
    """Split of the data set."""
    sigma: float | None = None
    """Standard deviation of the noise, in units of the image; the one of the training if not given."""
    num_samples: int = 1000
    """Noised copies per example."""
    alpha: float = 0.001
    """Probability that an answer is not the smoothed classifier's."""
    seed: int = 0
    """Of all noise."""
    skip: int = 1
    """Predict every so-manieth example."""
    max: int | None = None
    """Stop before this index."""
    indices: tuple[int, ...] | None = None
    """Predict just these examples."""
    batch_size: str = "auto"
    """Noised copies per call of the network, over all devices; auto fits it to the memory. Changes speed only."""
    platform: str | None = None
    """cpu, gpu or tpu; JAX's choice if not given."""
    num_devices: int | None = None
    """Devices to use; all if not given."""
    out: Path | None = None
    """New file for the lines, instead of printing them."""
    compilation_cache: str = "auto"
    """Folder for compiled programs; auto is in the user's cache folder, off keeps none."""


def run(options: Predict) -> None:
    """Predicts, prints the lines, and says how many were right."""
    # Slow imports wait until here, so that --help does not.
    from jaxsmooth import certification
    from jaxsmooth.cli import machine, sources
    from jaxsmooth.noise import Gaussian
    from jaxsmooth.sweep import run as sweep
    from jaxsmooth.sweep.engine import Engine, FixedStages

    if options.out is not None and options.out.exists():
        raise validation.InputError(f"out must be a new file, got {options.out}, which exists")
    machine.prepare(options.compilation_cache)
    batch_size = machine.parse_batch_size(options.batch_size)
    mesh = devices.noise_mesh(options.num_devices, options.platform)
    source, trained_sigma = sources.load_source(options.checkpoint, options.data, options.split)
    num_samples = validation.check_integer("num_samples", options.num_samples, at_least=1)
    alpha = validation.check_alpha(options.alpha)
    indices = sweep.choose_indices(
        len(source.labels), skip=options.skip, maximum=options.max, indices=options.indices
    )
    if batch_size is None:
        batch_size = devices.auto_batch_size(mesh, source.apply_fn, source.params, source.images(0).shape)
    engine = Engine(
        mesh,
        source.apply_fn,
        source.params,
        Gaussian(trained_sigma if options.sigma is None else options.sigma),
        seed=validation.check_integer("seed", options.seed, at_least=0),
        procedure=FixedStages((num_samples,)),
        images=source.images,
        num_classes=source.num_classes,
        batch_size=batch_size,
    )
    progress = sweep.Progress(len(indices), 0, 0, 0, engine.usage)
    bar = SweepProgress("predicting", mesh.size)
    answers: dict[int, int] = {}
    for finished in engine.run(engine.fresh(index) for index in indices):
        for stream in finished:
            answer = certification.prediction_from_counts(
                stream.counts[0], num_samples=num_samples, alpha=alpha
            )
            answers[stream.index] = int(answer.prediction)
            progress.correct += answers[stream.index] == source.labels[stream.index]
            progress.done += 1
        bar.update(progress)
    bar.close()
    lines = ["idx\tlabel\tpredict\tcorrect"]
    for index in indices:
        label = int(source.labels[index])
        lines.append(f"{index}\t{label}\t{answers[index]}\t{int(answers[index] == label)}")
    text = "\n".join(lines) + "\n"
    if options.out is None:
        print(text, end="", flush=True)
    else:
        files.write_atomically(options.out, text)
    abstained = sum(answer == certification.ABSTAIN for answer in answers.values())
    print(
        f"predicted {len(answers)} examples in {duration(progress.usage.wall_seconds)}: {progress.correct} correct, "
        f"{abstained} abstained" + (f"; lines in {options.out}" if options.out else ""),
        file=sys.stderr,
    )
