"""Certified accuracy as a function of samples and of seconds: our procedures and the literature's, on a real model.

    python benchmarks/certified_accuracy.py --checkpoint runs/digits-0.25 --radius 0.25 0.5 --json out.json

Every procedure runs in the same engine with the same noise, over the same examples, with several limits on the number
of samples of an example. The literature's are those of literature.py.
"""

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import common
import literature
import numpy as np
from scipy import special

from jaxsmooth import Gaussian, devices
from jaxsmooth.cli import sources
from jaxsmooth.sweep import run
from jaxsmooth.sweep.engine import Engine, Stream
from jaxsmooth.validation import InputError

SELECTION = 100
_LOOKS_EVERY = 64  # samples between looks of procedures that could look after each


@dataclasses.dataclass(frozen=True, eq=False)
class Boundaries:
    """A procedure of two boundaries, such as a confidence sequence, after a selection stage.

    Attributes:
        boundaries: certify or give up, for every number of samples.
    """

    boundaries: literature.Boundaries

    @cached_property
    def looks(self) -> np.ndarray:
        """Numbers of samples at which the boundaries are compared with the counts."""
        last = self.boundaries.certify_at.size - 1
        return np.unique(np.append(np.arange(_LOOKS_EVERY, last, _LOOKS_EVERY), last))

    @cached_property
    def marks(self) -> np.ndarray:
        """As in ``engine.Procedure``."""
        return SELECTION + np.concatenate([[0], self.looks])

    def horizon(self, stream: Stream) -> int:
        """As far beyond what is in as our own procedures draw."""
        ahead = stream.received + max(64, (stream.received - SELECTION) // 8)
        return int(self.marks[min(int(np.searchsorted(self.marks, ahead)), len(self.marks) - 1)])

    def finished(self, stream: Stream) -> bool:
        """When a boundary is reached, or the end."""
        return self._verdict(stream) is not None

    def certified(self, stream: Stream) -> bool:
        """What a finished example says."""
        return bool(self._verdict(stream))

    def _verdict(self, stream: Stream) -> bool | None:
        seen = int(np.searchsorted(self.marks, stream.received, side="right")) - 1
        if seen < 1:
            return None
        counts = np.cumsum(stream.counts[1 : 1 + seen, np.argmax(stream.counts[0])])
        looks = self.looks[:seen]
        up = counts >= self.boundaries.certify_at[looks]
        stop = up | (counts <= self.boundaries.give_up_at[looks])
        if stop.any():
            return bool(up[np.argmax(stop)])
        return False if seen == self.looks.size else None


@dataclasses.dataclass(frozen=True, eq=False)
class Staged:
    """CertifyAdp (Horvath et al. 2022) after a selection stage; see ``literature.staged``.

    Attributes:
        p0: probability to be exceeded.
        alpha: level.
        stages: fresh samples of each stage.
        beta: level of giving up.
    """

    p0: float
    alpha: float
    stages: tuple[int, ...]
    beta: float = 1e-4

    @cached_property
    def marks(self) -> np.ndarray:
        """The ends of the stages."""
        return SELECTION + np.cumsum([0, *self.stages])

    def horizon(self, stream: Stream) -> int:
        """The stage that is going on."""
        return int(self.marks[np.searchsorted(self.marks, max(stream.received, SELECTION), side="right")])

    def finished(self, stream: Stream) -> bool:
        """When a stage decides, or the last is over."""
        return self._verdict(stream) is not None

    def certified(self, stream: Stream) -> bool:
        """What a finished example says."""
        return bool(self._verdict(stream))

    @cached_property
    def _boundaries(self) -> list[tuple[int, int]]:
        last = len(self.stages) - 1
        return [
            (
                literature.fixed_boundary(self.p0, self.alpha / len(self.stages), n),
                n - literature.fixed_boundary(1.0 - self.p0, self.beta / last, n) if stage < last else n,
            )
            for stage, n in enumerate(self.stages)
        ]

    def _verdict(self, stream: Stream) -> bool | None:
        for stage, (certify_at, give_up_at) in enumerate(self._boundaries):
            if stream.received < self.marks[stage + 1]:
                return None
            count = stream.counts[1 + stage, np.argmax(stream.counts[0])]
            if count >= certify_at:
                return True
            if count <= give_up_at:
                return False
        return False


class Entry(NamedTuple):
    """One procedure with one limit.

    Attributes:
        name: of the procedure.
        num_samples: limit.
        radius: that it decides; None when it gives a radius of its own.
        procedure: for the engine.
    """

    name: str
    num_samples: int
    radius: float | None
    procedure: Any


def entries(
    options: argparse.Namespace, sigma: float, labels: np.ndarray, notes: list[str]
) -> Iterator[Entry]:
    """All procedures that the options ask for; those that cannot be had are noted."""
    for n in options.num_samples:
        settings = run.Settings(sigma, n, SELECTION, options.alpha, "one-sided", options.seed)
        yield Entry("fixed n", n, None, settings.procedure(labels))
        tolerant = dataclasses.replace(settings, tolerance=options.tolerance)
        yield from _ours(f"ours, tolerance {options.tolerance:g}", n, None, tolerant, labels, notes)
        for radius in options.radius:
            decided = dataclasses.replace(settings, radii=(radius,))
            yield from _ours("ours, radius", n, radius, decided, labels, notes)
            only = dataclasses.replace(decided, only_correct=True)
            yield from _ours("ours, radius, only correct", n, radius, only, labels, notes)
            p0 = float(special.ndtr(radius / sigma))
            stages = (n // 100, n // 10, n)
            yield Entry("CertifyAdp (Horvath 2022)", n, radius, Staged(p0, options.alpha, stages))
            for name, design in (
                ("union bound (Voracek 2024)", literature.union_bound),
                ("betting, KT", literature.betting),
            ):
                yield Entry(name, n, radius, Boundaries(design(p0, options.alpha, n)))


def _ours(
    name: str, n: int, radius: float | None, settings: run.Settings, labels: np.ndarray, notes: list[str]
) -> Iterator[Entry]:
    try:
        settings.check()
        yield Entry(name, n, radius, settings.procedure(labels))
    except InputError as error:
        notes.append(f"{name}, at most {n}: {error}")


class Runner:
    """One entry with its compiled engine.

    Args:
        entry: what to run.
        source: model and data.
        sigma: of the noise.
        indices: which examples.
        options: of the command line.
    """

    def __init__(
        self, entry: Entry, source: run.Source, sigma: float, indices: list[int], options: argparse.Namespace
    ):
        self.entry, self._source, self._indices = entry, source, indices
        mesh = devices.noise_mesh()
        batch_size = options.batch_size or devices.auto_batch_size(
            mesh, source.apply_fn, source.params, source.images(0).shape
        )
        self._engine = Engine(
            mesh,
            source.apply_fn,
            source.params,
            Gaussian(sigma),
            seed=options.seed,
            procedure=entry.procedure,
            images=source.images,
            num_classes=source.num_classes,
            batch_size=batch_size,
        )
        for _ in self._engine.run([self._engine.fresh(indices[0])]):  # compiles
            pass

    def run(self, radii: list[float]) -> tuple[float, int, dict[float, float]]:
        """All examples: seconds, samples drawn, and certified accuracy at each radius."""
        before = self._engine.usage.samples
        streams: list[Stream] = []
        started = time.perf_counter()
        for finished in self._engine.run(self._engine.fresh(index) for index in self._indices):
            streams += finished
        seconds = time.perf_counter() - started
        correct = {
            radius: np.mean([self._certifies(stream, radius) for stream in streams]) for radius in radii
        }
        return seconds, self._engine.usage.samples - before, {r: float(value) for r, value in correct.items()}

    def _certifies(self, stream: Stream, radius: float) -> bool:
        label, procedure = self._source.labels[stream.index], self.entry.procedure
        if isinstance(procedure, (Boundaries, Staged)):
            return bool(procedure.certified(stream) and np.argmax(stream.counts[0]) == label)
        fields = procedure.fields(stream)
        return bool(fields["prediction"] == label and fields["radius"] >= radius)


def measure(entry: Entry, radii: list[float], runner: Runner, repetitions: int) -> list[dict[str, Any]]:
    """A result for each radius that the entry speaks about."""
    chosen = radii if entry.radius is None else [entry.radius]
    runs = [runner.run(chosen) for _ in range(repetitions)]
    examples = len(runner._indices)
    return [
        {
            "procedure": entry.name,
            "most_samples": entry.num_samples,
            "radius": radius,
            "examples": examples,
            "certified_accuracy": runs[0][2][radius],
            "samples_per_example": runs[0][1] / examples,
            "seconds_per_example": common.spread([seconds / examples for seconds, _, _ in runs]),
        }
        for radius in chosen
    ]


def main() -> None:
    """Measures, prints a table, writes JSON."""
    parser = common.parser(__doc__, repetitions=1, seconds=0.0)
    parser.add_argument("--checkpoint", type=Path, help="folder made by `jaxsmooth train` or `import-torch`")
    parser.add_argument("--data", help="data set; the one of the training if not given")
    parser.add_argument("--data-dir", type=Path, help="where prepared data sets are")
    parser.add_argument("--split", default="test")
    parser.add_argument("--skip", type=int, default=1, help="do every so-manieth example")
    parser.add_argument("--max", type=int, help="stop before this index")
    parser.add_argument("--sigma", type=float, help="of the noise; the one of the training if not given")
    parser.add_argument("--radius", type=float, nargs="+", default=[0.25, 0.5])
    parser.add_argument("--num-samples", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--tolerance", type=float, default=0.02)
    parser.add_argument("--alpha", type=float, default=0.001)
    parser.add_argument("--batch-size", type=int, help="rows over all devices together; fitted if not given")
    parser.add_argument("--seed", type=int, default=0)
    options = common.parse(parser, repetitions=1, max=2, radius=[0.25], num_samples=[1000], batch_size=64)
    if options.checkpoint is None and not options.smoke:
        parser.error("--checkpoint must be given")
    devices.use_every_core()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = options.checkpoint
        if checkpoint is None:  # nobody trained it
            checkpoint = Path(folder) / "checkpoint"
            request = {"kind": "checkpoint", "network": "digits-cnn", "folder": str(checkpoint)}
            common.run_worker("startup.py", request)
        source, sigma = sources.load_source(
            checkpoint, options.data, options.split, options.data_dir, sigma=options.sigma
        )
    indices = run.choose_indices(len(source.labels), skip=options.skip, maximum=options.max)
    report = common.Report(options, common.machine() | {"model": source.model, "data": source.data})
    report.table(
        f"{source.model}, {source.data['name']}, sigma {sigma:g}, {len(indices)} examples",
        ["radius", "procedure", "at most", "certified accuracy", "samples per example", "ms per example"],
    )
    notes: list[str] = []
    for entry in entries(options, sigma, np.asarray(source.labels), notes):
        runner = Runner(entry, source, sigma, indices, options)
        for result in measure(entry, options.radius, runner, options.repetitions):
            report.add(
                result,
                [
                    f"{result['radius']:g}",
                    entry.name,
                    f"{entry.num_samples:,}",
                    f"{result['certified_accuracy']:.4f}",
                    f"{result['samples_per_example']:,.0f}",
                    common.show(result["seconds_per_example"], digits=1, scale=1e3),
                ],
            )
    for note in notes:
        report.note(note)


if __name__ == "__main__":
    main()
