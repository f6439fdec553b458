"""A sweep on disk: resumes what is there, runs the engine, writes rows as it goes."""

import dataclasses
import datetime
import json
import platform
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from jaxsmooth import certification, confidence, files, stopping, validation
from jaxsmooth.noise import Gaussian
from jaxsmooth.sampling import ApplyFn
from jaxsmooth.signals import Signals
from jaxsmooth.sweep import procedures, records
from jaxsmooth.sweep.engine import Engine, Stream, Usage
from jaxsmooth.validation import InputError


@dataclasses.dataclass(frozen=True)
class Settings:
    """What determines a certificate, apart from the model and the data.

    Attributes:
        sigma: standard deviation of the Gaussian noise, in the units of the input.
        num_samples: samples of the estimation stage.
        selection_samples: samples of the selection stage.
        alpha: probability that the statement about one example is false.
        bound: "two-sided", "one-sided" or "selection-free"; "one-sided" with radii.
        seed: of all noise.
        radii: stop when it is decided for each of these radii whether it is certified; num_samples is the most.
        guarantee: of several radii, "each" or "simultaneous"; see ``stopping.certify_radii``.
        tolerance: stop when the radius in hand is at least 1 - tolerance of what num_samples could give.
        only_correct: leave examples whose selection stage names a wrong class at that.
    """

    sigma: float
    num_samples: int
    selection_samples: int
    alpha: float
    bound: str
    seed: int
    radii: tuple[float, ...] = ()
    guarantee: str = "each"
    tolerance: float | None = None
    only_correct: bool = False

    def check(self) -> None:
        """Raises InputError for a setting outside its range, or settings that exclude each other."""
        validation.check_positive("sigma", self.sigma)
        validation.check_integer(
            "num_samples", self.num_samples, at_least=1, at_most=confidence.MAX_NUM_SAMPLES
        )
        validation.check_integer("selection_samples", self.selection_samples, at_least=1)
        validation.check_alpha(self.alpha)
        validation.check_choice("bound", self.bound, certification.BOUNDS)
        validation.check_integer("seed", self.seed, at_least=0)
        validation.check_choice("guarantee", self.guarantee, stopping.GUARANTEES)
        if self.radii and self.tolerance is not None:
            raise InputError(
                f"radii must not be given together with tolerance, got {list(self.radii)} and {self.tolerance}"
            )
        if self.radii and self.bound != "one-sided":
            raise InputError(
                f"bound must be 'one-sided' with radii, whose tests bound p_A alone, got {self.bound!r}"
            )
        if self.bound == "selection-free":
            for name, value in (
                ("tolerance", self.tolerance is not None),
                ("only_correct", self.only_correct),
            ):
                if value:
                    raise InputError(f"{name} needs a selection stage, which bound 'selection-free' has not")
        self._plans()

    def _plans(self) -> tuple[Any, ...]:
        """What decides when to stop; empty where the number of samples is fixed."""
        if self.radii:
            return stopping.stopping_plans(
                self.radii, sigma=self.sigma, alpha=self.alpha, num_samples=self.num_samples
            )
        if self.tolerance is not None:
            plan = stopping.tolerance_plan(
                self.tolerance, alpha=self.alpha, num_samples=self.num_samples, bound=self.bound
            )
            return (plan,)
        return ()

    def procedure(self, labels: np.ndarray) -> procedures.Statement:
        """How many samples each example gets, and what is said about it.

        Args:
            labels: int[num_examples], true classes.
        """
        noise = Gaussian(self.sigma)
        procedure: procedures.Statement
        if self.radii:
            procedure = procedures.FixedRadii(self._plans(), self.guarantee, self.selection_samples)
        elif self.tolerance is not None:
            procedure = procedures.FreeRadius(self._plans()[0], noise, self.selection_samples)
        else:
            procedure = procedures.FixedSize(noise, self.stages[0], self.num_samples, self.alpha, self.bound)
        if self.only_correct:
            procedure = procedures.OnlyCorrect(procedure, labels, self.selection_samples)
        return procedure

    @property
    def stages(self) -> tuple[int, int]:
        """Samples of the selection stage (0 where there is none) and the most of the estimation stage."""
        return (0 if self.bound == "selection-free" else self.selection_samples, self.num_samples)

    def stopping(self) -> dict[str, Any]:
        """What the manifest says about early stopping; empty without."""
        entries: dict[str, Any] = {}
        if self.radii:
            entries["stopping"] = {"rule": "radii", "radii": list(self.radii)}
            if len(self.radii) > 1:
                entries["stopping"]["guarantee"] = self.guarantee
        elif self.tolerance is not None:
            entries["stopping"] = {"rule": "tolerance", "tolerance": self.tolerance}
        if entries:
            entries["stopping"]["plan"] = procedures.plan_fingerprint(self._plans())
        if self.only_correct:
            entries["only_correct"] = True
        return entries


@dataclasses.dataclass(frozen=True)
class Source:
    """The examples of a sweep and the model that answers, with what the manifest says about them.

    Attributes:
        apply_fn: as in ``sample_counts``.
        params: as there.
        model: name of the network.
        parameters: fingerprint of ``params``.
        images: ``images(i)`` is the input of example i.
        labels: int[num_examples].
        num_classes: number of classes.
        data: name, split and fingerprint of the data set.
        inference_dtype: in which the network computes.
    """

    apply_fn: ApplyFn
    params: Any
    model: str
    parameters: str
    images: Callable[[int], np.ndarray]
    labels: np.ndarray
    num_classes: int
    data: dict[str, Any]
    inference_dtype: str = "float32"


@dataclasses.dataclass
class Progress:
    """Where a sweep stands.

    Attributes:
        num_examples: examples of this run, those done before included.
        done: rows on disk or about to be.
        resumed: how many of them were there at the start.
        correct: rows whose certified class is the true one.
        usage: what this run has used.
    """

    num_examples: int
    done: int
    resumed: int
    correct: int
    usage: Usage


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived; everything received was written.

    Attributes:
        signal_number: which.
        progress: where the sweep stands.
    """

    def __init__(self, signal_number: int, progress: Progress):
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number
        self.progress = progress


def choose_indices(
    num_examples: int, *, skip: int = 1, maximum: int | None = None, indices: Sequence[int] | None = None
) -> list[int]:
    """Which examples to do, in the field's manner: every ``skip``-th of the first ``maximum``, or a list.

    Raises:
        InputError: for an index outside the data set, a skip below 1, or a list together with the others.

    Example:
        >>> choose_indices(10, skip=3, maximum=8)
        [0, 3, 6]
    """
    if indices is not None:
        if skip != 1 or maximum is not None:
            raise InputError(
                f"indices must not be given together with skip or max, got skip {skip}, max {maximum}"
            )
        for index in indices:
            validation.check_integer("indices", index, at_least=0)
            if index >= num_examples:
                raise InputError(
                    f"indices must lie in 0..{num_examples - 1}, the examples of the data set, got {index}"
                )
        return sorted(set(indices))
    validation.check_integer("skip", skip, at_least=1)
    if maximum is not None:
        num_examples = min(num_examples, validation.check_integer("max", maximum, at_least=1))
    return list(range(0, num_examples, skip))


def make_manifest(
    source: Source, settings: Settings, num_examples: int, mesh: Mesh, batch_size: int
) -> records.Manifest:
    """The manifest of a sweep: what determines its certificates, and a description of this run."""
    versions = {name: _version(name) for name in ("jaxsmooth", "jax", "jaxlib", "numpy", "scipy")}
    return records.Manifest(
        determines={
            "parameters": source.parameters,
            "model": source.model,
            "data": {**source.data, "num_classes": source.num_classes},
            "noise": {"name": "gaussian", "sigma": settings.sigma},
            "alpha": settings.alpha,
            "bound": settings.bound,
            "num_samples": settings.num_samples,
            "selection_samples": settings.stages[0],
            "seed": settings.seed,
            "prng": "threefry2x32",
            "inference_dtype": source.inference_dtype,
            **settings.stopping(),
        },
        describes={
            "versions": {"python": platform.python_version(), **versions},
            "num_examples": num_examples,
            "devices": [f"{device.platform}:{device.device_kind}" for device in mesh.devices.flat],
            "processes": jax.process_count(),
            "batch_size": batch_size,
            "command": sys.argv,
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        },
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # used from its folder without being installed
        return "not installed"


def certify_dataset(
    out: epath.PathLike,
    source: Source,
    settings: Settings,
    indices: Sequence[int],
    *,
    mesh: Mesh,
    batch_size: int,
    shard: tuple[int, int] = (0, 1),
    checkpoint_every: float = 60.0,
    max_not_finite: float = 0.01,
    on_update: Callable[[Progress], None] = lambda _: None,
) -> Progress:
    """Certifies examples into a results folder, going on from what is there.

    Args:
        out: results folder: new, empty, or of the same certificates.
        source: model and data.
        settings: what else determines the certificates.
        indices: which examples.
        mesh: devices of this process.
        batch_size: rows per call of the model, over all devices together.
        shard: (i, n): this process does every n-th of the indices, from the i-th on.
        checkpoint_every: seconds between parts.
        max_not_finite: largest share of samples whose logits may be NaN or infinite.
        on_update: called after every step.

    Returns:
        Where the sweep stands at its end.

    Raises:
        InputError: for a setting outside its range, a folder of something else or of another run, a second
            run on the same folder and shard, more shards than examples, a model that gives logits that are
            not finite.
        Interrupted: after SIGINT or SIGTERM, with everything received written.
    """
    settings.check()
    validation.check_positive("checkpoint_every", checkpoint_every)
    batch_size = validation.check_integer("batch_size", batch_size, at_least=1)
    validation.check_integer("num_shards", shard[1], at_least=1)
    if not 0 <= shard[0] < shard[1]:
        raise InputError(f"shard must be i/n with 0 <= i < n, got {shard[0]}/{shard[1]}")
    if shard[1] > len(indices):
        raise InputError(
            f"shard must be i/n with n at most the {len(indices)} examples, got {shard[0]}/{shard[1]}"
        )
    out = epath.Path(out)
    records.create(out, make_manifest(source, settings, len(indices), mesh, batch_size))
    indices = list(indices)[shard[0] :: shard[1]]
    name = f"{shard[0]:05d}-of-{shard[1]:05d}"
    lock = files.exclusive(
        out / records.LOCKS / name, f"got {out}: another run is writing shard {name} there"
    )
    with lock, Signals() as signals:
        wanted = set(indices)
        records.set_damaged_aside(out)
        done = {row.index: row for row in records.read_results(out).rows if row.index in wanted}
        progress = Progress(
            num_examples=len(indices),
            done=len(done),
            resumed=len(done),
            correct=sum(row.correct for row in done.values()),
            usage=Usage(),
        )
        procedure = settings.procedure(np.asarray(source.labels))
        engine = Engine(
            mesh,
            source.apply_fn,
            source.params,
            Gaussian(settings.sigma),
            seed=settings.seed,
            procedure=procedure,
            images=source.images,
            num_classes=source.num_classes,
            batch_size=batch_size,
        )
        progress.usage = engine.usage
        partial = _read_partial(out, engine, source.num_classes)
        streams = (partial.get(index) or engine.fresh(index) for index in indices if index not in done)
        writer = _Writer(out, name, checkpoint_every)
        on_update(progress)
        try:
            for finished in engine.run(streams):
                rows = [make_row(stream, source, procedure) for stream in finished]
                progress.done += len(rows)
                progress.correct += sum(row.correct for row in rows)
                writer.add(rows, engine)
                _check_finite(engine.usage, max_not_finite)
                on_update(progress)
                if signals.received:
                    raise Interrupted(signals.received, progress)
        finally:
            writer.flush(engine)
    return progress


def make_row(stream: Stream, source: Source, procedure: procedures.Statement) -> records.Row:
    """The row of a finished example: what its procedure says of its counts, in float64."""
    return records.Row(
        index=stream.index,
        label=int(source.labels[stream.index]),
        seconds=round(stream.seconds, 6),
        **procedure.fields(stream),
    )


def _check_finite(usage: Usage, largest_share: float) -> None:
    if not usage.not_finite:
        return
    if usage.not_finite > largest_share * usage.samples:
        raise InputError(
            f"apply_fn must give finite logits, got {usage.not_finite} of {usage.samples} samples that are not "
            f"(more than the share of {largest_share} allowed); what was received is written"
        )
    # The same text is shown once, by the usual rule for warnings.
    warnings.warn(
        "some logits are not finite; such samples are counted for no class and lower the radius", stacklevel=3
    )


class _Writer:
    """Writes finished rows as parts, and the counts of unfinished examples, at an interval."""

    def __init__(self, folder: epath.Path, name: str, interval: float):
        self._folder, self._name, self._interval = folder, name, interval
        self._rows: list[records.Row] = []
        taken = [part for part in records.part_names(folder) if part.startswith(name)]
        self._number = int(taken[-1].rsplit("-", 1)[1]) + 1 if taken else 0
        self._last = time.monotonic()

    def add(self, rows: list[records.Row], engine: Engine) -> None:
        self._rows += rows
        if time.monotonic() - self._last >= self._interval:
            self.flush(engine)

    def flush(self, engine: Engine) -> None:
        """Rows first: an example that is in both files is taken from its row."""
        if self._rows:
            records.write_part(self._folder, f"{self._name}-{self._number:06d}", self._rows)
            self._number += 1
            self._rows = []
        examples = [
            {
                "index": stream.index,
                "received": stream.received,
                "counts": [records.sparse(counts) for counts in stream.counts],
                "seconds": stream.seconds,
            }
            for stream in engine.unfinished()
        ]
        path = self._folder / records.PARTIAL / f"{self._name}.json"
        if examples or path.exists():
            path.parent.mkdir(exist_ok=True)
            files.write_atomically(path, json.dumps({"version": records.VERSION, "examples": examples}))
        self._last = time.monotonic()


def _read_partial(folder: epath.Path, engine: Engine, num_classes: int) -> dict[int, Stream]:
    """Counts of unfinished examples that an earlier run left, from all shards; damaged files count for nothing."""
    streams: dict[int, Stream] = {}
    for path in (
        sorted((folder / records.PARTIAL).glob("*.json")) if (folder / records.PARTIAL).exists() else []
    ):
        try:
            for values in json.loads(path.read_text())["examples"]:
                stream = engine.fresh(values["index"])
                for interval, counts in enumerate(values["counts"]):
                    stream.counts[interval] = records.dense(
                        {int(c): n for c, n in counts.items()}, num_classes
                    )
                stream.received = stream.scheduled = values["received"]
                stream.seconds = values["seconds"]
                if stream.index not in streams or streams[stream.index].received < stream.received:
                    streams[stream.index] = stream
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            continue
    return streams
