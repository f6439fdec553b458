"""``jaxsmooth certify``: the examples of a data set, certified into a results folder."""

import dataclasses
import os
import sys
from pathlib import Path

from jaxsmooth import devices, validation
from jaxsmooth.cli.progress import SweepProgress, duration


@dataclasses.dataclass(frozen=True)
class Certify:
    """Certify the examples of a data set: a class and a radius for each, into a results folder.

    Starting the same command again goes on where it stopped.

    Example: jaxsmooth certify --checkpoint runs/digits-0.25 --out runs/digits-0.25-certified --skip 2
    """

    checkpoint: Path
    """Checkpoint folder made by `jaxsmooth train`."""
    out: Path
    """Results folder to write: new, empty, or one to go on with."""
    data: str | None = None
    """Data set; the one of the training if not given."""
    split: str = "test"
    """Split of the data set."""
    sigma: float | None = None
    """Standard deviation of the noise, in units of the image; the one of the training if not given."""
    num_samples: int = 100_000
    """Noised copies per example that bound the probabilities (n)."""
    selection_samples: int = 100
    """Noised copies per example that choose the class (n0)."""
    alpha: float = 0.001
    """Probability that the statement about an example is false."""
    bound: str = "two-sided"
    """two-sided (Theorem 1 as stated) or one-sided (p_B = 1 - p_A, for comparison with published numbers)."""
    seed: int = 0
    """Of all noise."""
    skip: int = 1
    """Certify every so-manieth example."""
    max: int | None = None
    """Stop before this index."""
    indices: tuple[int, ...] | None = None
    """Certify just these examples."""
    batch_size: str = "auto"
    """Noised copies per call of the network, over all devices; auto fits it to the memory. Changes speed only."""
    platform: str | None = None
    """cpu, gpu or tpu; JAX's choice if not given."""
    num_devices: int | None = None
    """Devices of this process to use; all if not given."""
    shard: str = "0/1"
    """i/n: do every n-th example from the i-th on; for job arrays, all into the same folder or merged later."""
    distributed: bool = False
    """Join a job of several processes (found by itself on Slurm, Open MPI, Cloud TPU, GKE) and share its work."""
    coordinator: str | None = None
    """host:port of process 0 of the job, where it is not found by itself."""
    num_processes: int | None = None
    """Number of processes of the job, likewise."""
    process_index: int | None = None
    """Which process this is, likewise."""
    checkpoint_every: float = 60.0
    """Seconds between writing results; a kill costs at most that."""
    max_not_finite: float = 0.01
    """Largest share of samples whose logits may be NaN or infinite before the run is stopped."""
    compilation_cache: str = "auto"
    """Folder for compiled programs; auto is in the user's cache folder, off keeps none."""


def run(options: Certify) -> None:
    """Certifies, with a progress bar, and says what came out."""
    # Slow imports wait until here, so that --help does not.
    from jaxsmooth.cli import machine, sources
    from jaxsmooth.sweep import run as sweep

    machine.prepare(options.compilation_cache)
    shard = machine.parse_shard(options.shard)
    batch_size = machine.parse_batch_size(options.batch_size)
    if options.distributed:
        if options.shard != "0/1":
            raise validation.InputError(f"shard must not be given with distributed, got {options.shard}")
        shard = devices.join_job(options.coordinator, options.num_processes, options.process_index)
    mesh = devices.noise_mesh(options.num_devices, options.platform)
    source, trained_sigma = sources.load_source(options.checkpoint, options.data, options.split)
    settings = sweep.Settings(
        sigma=trained_sigma if options.sigma is None else options.sigma,
        num_samples=options.num_samples,
        selection_samples=options.selection_samples,
        alpha=options.alpha,
        bound=options.bound,
        seed=options.seed,
    )
    settings.check()
    sources.warn_if_hopeless(settings.num_samples, settings.alpha)
    indices = sweep.choose_indices(
        len(source.labels), skip=options.skip, maximum=options.max, indices=options.indices
    )
    if batch_size is None:
        shape = source.images(0).shape
        batch_size = devices.auto_batch_size(mesh, source.apply_fn, source.params, shape)
    bar = SweepProgress("certifying", mesh.size)
    try:
        progress = sweep.certify_dataset(
            options.out,
            source,
            settings,
            indices,
            mesh=mesh,
            batch_size=batch_size,
            shard=shard,
            checkpoint_every=options.checkpoint_every,
            max_not_finite=options.max_not_finite,
            on_update=bar.update,
        )
    except sweep.Interrupted as stop:
        bar.close()
        print(
            f"stopped by {stop}: {stop.progress.done} of {stop.progress.num_examples} examples are in {options.out}; "
            "start the same command again to go on",
            file=sys.stderr,
        )
        sys.stderr.flush()
        sys.stdout.flush()
        # Leaving at once: in a job, an ordinary exit would wait for the other processes.
        os._exit(128 + stop.signal_number) if options.distributed else sys.exit(128 + stop.signal_number)
    finally:
        bar.close()
    print(summary(progress, mesh.size, options.out))
    if options.distributed:
        sys.stdout.flush()
        devices.leave_job()


def summary(progress: "sweep.Progress", num_devices: int, out: Path) -> str:  # type: ignore[name-defined]  # noqa: F821
    """The closing line of a sweep."""
    usage = progress.usage
    fresh = progress.done - progress.resumed
    if not fresh:
        return f"all {progress.done} examples were certified already; results in {out}"
    busy = min(1.0, usage.busy_seconds / max(usage.wall_seconds, 1e-9))
    return (
        f"certified {fresh} examples in {duration(usage.wall_seconds)} "
        f"({usage.samples:,} samples, {usage.samples / max(usage.wall_seconds, 1e-9):,.0f}/s, "
        f"{usage.wall_seconds * num_devices / 3600:.3f} device-hours, computing {int(100 * busy)}% of the time): "
        f"{progress.correct} of {progress.done} certified with the true class; results in {out}"
    )
