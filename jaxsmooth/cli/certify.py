"""``jaxsmooth certify``: the examples of a data set, certified into a results folder."""

import dataclasses
import sys
from pathlib import Path

from jaxsmooth import devices, validation
from jaxsmooth.cli import machine
from jaxsmooth.cli.progress import SweepProgress, duration
from jaxsmooth.cli.setup import SamplingOptions, set_up


@dataclasses.dataclass(frozen=True, kw_only=True)
class Certify(SamplingOptions):
    """Certify the examples of a data set: a class and a radius for each, into a results folder.

    Starting the same command again goes on where it stopped. With --radius, --radii or --tolerance an example leaves as
    soon as its answer is known, at the same guarantee: far fewer samples.

    Example: jaxsmooth certify --checkpoint runs/digits-0.25 --out runs/digits-0.25-certified --skip 2
    """

    out: Path
    """Results folder to write: new, empty, or one to go on with."""
    num_samples: int = 100_000
    """Noised copies per example that bound the probabilities (n); the most of them when stopping early."""
    selection_samples: int = 100
    """Noised copies per example that choose the class (n0)."""
    alpha: float = 0.001
    """Probability that the statement about an example is false."""
    bound: str | None = None
    """two-sided (Theorem 1 as stated; the default), one-sided (p_B = 1 - p_A, for comparison with published numbers;
    always with --radius and --radii) or selection-free (one-sided at alpha/2, without a selection stage)."""
    radius: float | None = None
    """Decide only whether the radius is at least this, and stop when it is decided."""
    radii: tuple[float, ...] = ()
    """Decide this for each of several radii: the points of a certified-accuracy curve."""
    guarantee: str = "each"
    """Of --radii: each radius by itself is false with probability at most alpha, or all of an example's verdicts
    together (simultaneous)."""
    tolerance: float | None = None
    """Stop when the radius in hand is within this fraction of what n samples could give, such as 0.02."""
    only_correct: bool = False
    """Leave examples whose selection stage names a wrong class at that: their certified accuracy is 0 anyway."""
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


def run(options: Certify) -> None:
    """Certifies, with a progress bar, and says what came out."""
    # Slow imports wait until here, so that --help does not.
    from jaxsmooth.cli import sources
    from jaxsmooth.sweep import run as sweep

    if options.radius is not None and options.radii:
        raise validation.InputError(
            f"radius must not be given together with radii, got {options.radius} and {list(options.radii)}"
        )
    radii = options.radii if options.radius is None else (options.radius,)
    machine.prepare(options.compilation_cache)
    shard = machine.parse_shard(options.shard)
    if options.distributed:
        if options.shard != "0/1":
            raise validation.InputError(f"shard must not be given with distributed, got {options.shard}")
        shard = devices.join_job(options.coordinator, options.num_processes, options.process_index)
    mesh, source, sigma, indices, batch_size = set_up(options)
    settings = sweep.Settings(
        sigma=sigma,
        num_samples=options.num_samples,
        selection_samples=options.selection_samples,
        alpha=options.alpha,
        bound=options.bound or ("one-sided" if radii else "two-sided"),
        seed=options.seed,
        radii=radii,
        guarantee=options.guarantee,
        tolerance=options.tolerance,
        only_correct=options.only_correct,
    )
    settings.check()
    sources.warn_if_hopeless(settings.num_samples, settings.alpha)
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
        standing = f"{stop.progress.done} of {stop.progress.num_examples} examples are in {options.out}"
        machine.leave_interrupted(stop.signal_number, standing, in_job=options.distributed)
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
