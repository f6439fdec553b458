"""``jaxsmooth predict``: the smoothed classifier's answers."""

import dataclasses
import sys
from pathlib import Path

from jaxsmooth import certification, files, validation
from jaxsmooth.cli import machine
from jaxsmooth.cli.progress import SweepProgress, duration
from jaxsmooth.cli.setup import SamplingOptions, set_up


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predict(SamplingOptions):
    """Predict with the smoothed classifier, or abstain where the samples do not settle it.

    Prints one line per example (idx, label, predict, correct; tab separated, abstention is -1).

    Example: jaxsmooth predict --checkpoint runs/digits-0.25 --max 20
    """

    num_samples: int = 1000
    """Noised copies per example; the most of them with --stop-early."""
    alpha: float = 0.001
    """Probability that an answer is not the smoothed classifier's."""
    stop_early: bool = False
    """Answer as soon as the samples so far settle it, at the same guarantee; far fewer samples when n is large."""
    out: Path | None = None
    """New file for the lines, instead of printing them."""


def run(options: Predict) -> None:
    """Predicts, prints the lines, and says how many were right."""
    # Slow imports wait until here, so that --help does not.
    from jaxsmooth.noise import Gaussian
    from jaxsmooth.sweep import run as sweep
    from jaxsmooth.sweep.engine import Engine
    from jaxsmooth.sweep.procedures import EarlyPredictions, FixedPredictions

    if options.out is not None and options.out.exists():
        raise validation.InputError(f"out must be a new file, got {options.out}, which exists")
    machine.prepare(options.compilation_cache)
    mesh, source, sigma, indices, batch_size = set_up(options)
    num_samples = validation.check_integer("num_samples", options.num_samples, at_least=1)
    alpha = validation.check_alpha(options.alpha)
    procedure = (EarlyPredictions if options.stop_early else FixedPredictions)(num_samples, alpha)
    engine = Engine(
        mesh,
        source.apply_fn,
        source.params,
        Gaussian(sigma),
        seed=validation.check_integer("seed", options.seed, at_least=0),
        procedure=procedure,
        images=source.images,
        num_classes=source.num_classes,
        batch_size=batch_size,
    )
    progress = sweep.Progress(len(indices), 0, 0, 0, engine.usage)
    bar = SweepProgress("predicting", mesh.size)
    answers: dict[int, int] = {}
    for finished in engine.run(engine.fresh(index) for index in indices):
        for stream in finished:
            answer = procedure.answer(stream)
            assert answer is not None
            answers[stream.index] = answer
            progress.correct += answer == source.labels[stream.index]
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
    written = f"; lines in {options.out}" if options.out else ""
    print(
        f"predicted {len(answers)} examples in {duration(progress.usage.wall_seconds)}: {progress.correct} correct, "
        f"{abstained} abstained; {progress.usage.samples:,} samples{written}",
        file=sys.stderr,
    )
