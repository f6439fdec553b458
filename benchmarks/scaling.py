"""How speed grows with devices, and how time and memory of a sweep grow with examples and with samples.

    python benchmarks/scaling.py --network cifar-resnet20 --json out.json

Each point is measured by a process of its own. On accelerators the first 1, 2, 4, 8 of them are used. On a CPU
devices are simulated on the same cores: that shows the overhead of having many, not speed.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common

COUNTS = [1, 2, 4, 8]


# ---- in the measuring process


def work(request: dict[str, Any]) -> dict[str, Any]:
    """Answers a request of the parent process."""
    import jax

    if request["cache"]:
        jax.config.update("jax_compilation_cache_dir", request["cache"])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    answer = {"devices": devices_point, "sweep": sweep_point}[request["kind"]](request)
    return answer | {"machine": common.machine()}


def devices_point(request: dict[str, Any]) -> dict[str, Any]:
    """Samples per second of ``sample_counts`` on some devices, with the batch as a whole or per device as given."""
    import jax
    import steps

    from jaxsmooth import devices

    num_devices = request["num_devices"]
    if jax.local_device_count() < num_devices:
        return {"skipped": f"{jax.local_device_count()} devices here"}
    mesh = devices.noise_mesh(num_devices)
    net = steps.network(request["network"], request["dtype"])
    batches = {"strong": request["batch_size"], "weak": request["batch_size"] * num_devices}
    ways = {name: steps.sampling_way(mesh, net, batch) for name, batch in batches.items()}
    amounts = {name: common.calibrate(way, request["seconds"]) for name, way in ways.items()}
    rates = common.interleave(ways, amounts, request["repetitions"])
    return {"rates": rates, "batch_sizes": batches, "peak_memory_bytes": common.peak_memory()}


def sweep_point(request: dict[str, Any]) -> dict[str, Any]:
    """A sweep into a folder; figures count from the first step on, which includes compiling."""
    import numpy as np
    import steps

    from jaxsmooth import devices
    from jaxsmooth.models import registry
    from jaxsmooth.sweep import run

    devices.use_every_core()
    mesh = devices.noise_mesh()
    net = steps.network(request["network"], request["dtype"])
    stored = steps.images(net.shape)
    num_examples = request["num_examples"]
    source = run.Source(
        apply_fn=net.apply_fn,
        params=net.params,
        model=net.name,
        parameters=registry.fingerprint(net.params),
        images=lambda index: stored[index % len(stored)],
        labels=np.zeros(num_examples, np.int32),
        num_classes=net.num_classes,
        data={"name": "random", "split": "test", "fingerprint": "none"},
    )
    settings = run.Settings(
        steps.SIGMA, request["num_samples"], selection_samples=100, alpha=0.001, bound="two-sided", seed=0
    )
    marks: list[
        tuple[float, int, int | None]
    ] = []  # after the first steps and the last: time, samples, memory

    def on_update(progress: run.Progress) -> None:
        if progress.usage.samples:
            del marks[1:]
            marks.append((time.perf_counter(), progress.usage.samples, common.peak_memory()["host"]))

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        progress = run.certify_dataset(
            Path(folder) / "results",
            source,
            settings,
            range(num_examples),
            mesh=mesh,
            batch_size=request["batch_size"],
            on_update=on_update,
        )
    ended = time.perf_counter()
    first, last = marks[0], marks[-1]
    if first is last:  # a sweep of a single step: all there is
        first = (started, 0, first[2])
    memory = common.peak_memory()
    return {
        "samples": progress.usage.samples,
        "seconds": ended - started,
        "seconds_to_first_step": marks[0][0] - started,
        "seconds_per_sample": (ended - first[0]) / (last[1] - first[1]),
        "busy_share": progress.usage.busy_seconds / progress.usage.wall_seconds,
        "peak_memory_bytes": memory,
        "host_memory_growth_bytes": memory["host"] - first[2],
    }


# ---- in the parent process, which touches no device: one process at a time can have a TPU


def scale_devices(options: argparse.Namespace, cache: str, report: list[common.Report]) -> float:
    """Rounds over all device counts, so that slow changes of the machine fall on all of them.

    Returns:
        Samples per second of the most devices.
    """
    rates: dict[int, dict[str, list[float]]] = {}
    answers: dict[int, dict[str, Any]] = {}
    for _ in range(options.rounds):
        for count in options.devices:
            request = {
                "kind": "devices",
                "cache": cache,
                "num_devices": count,
                **{
                    name: getattr(options, name)
                    for name in ("network", "dtype", "batch_size", "seconds", "repetitions")
                },
            }
            answers[count] = common.run_worker("scaling.py", request, JAX_NUM_CPU_DEVICES=str(count))
            if "skipped" in answers[count]:
                continue
            found = rates.setdefault(count, {"strong": [], "weak": []})
            for name, values in answers[count]["rates"].items():
                found[name] += values
    begin(options, report, answers[options.devices[-1]]["machine"])
    report[0].table(
        f"{options.network}, {options.dtype}: samples per second by number of devices, median (min..max)",
        [
            "devices",
            f"strong: batch {options.batch_size} in all",
            "ratio",
            f"weak: batch {options.batch_size} each",
            "ratio",
        ],
    )
    base = min(rates)
    for count in options.devices:
        if count not in rates:
            report[0].note(f"{count} devices: skipped, {answers[count]['skipped']}")
            continue
        spreads = {name: common.spread(values) for name, values in rates[count].items()}
        ratios = {
            name: spreads[name]["median"] / common.spread(rates[base][name])["median"] for name in spreads
        }
        result = {
            "kind": "devices",
            "num_devices": count,
            "samples_per_second": spreads,
            "ratio_to_fewest_devices": ratios,
            "batch_sizes": answers[count]["batch_sizes"],
            "peak_memory_bytes": answers[count]["peak_memory_bytes"],
            "machine": answers[count]["machine"],
        }
        cells = [cell for name in spreads for cell in (common.show(spreads[name]), f"{ratios[name]:.2f}")]
        report[0].add(result, [count, *cells])
    return common.spread(rates[max(rates)]["strong"])["median"]


def scale_sweep(options: argparse.Namespace, cache: str, report: list[common.Report]) -> None:
    """Sweeps of more examples, then of more samples per example; one is the middle of both."""
    points = [(examples, options.samples[0]) for examples in options.examples]
    points += [(options.examples[0], samples) for samples in options.samples[1:]]
    answers: dict[tuple[int, int], list[dict[str, Any]]] = {point: [] for point in points}
    for _ in range(options.rounds):
        for examples, samples in points:
            request = {
                "kind": "sweep",
                "cache": cache,
                "num_examples": examples,
                "num_samples": samples,
                **{name: getattr(options, name) for name in ("network", "dtype", "batch_size")},
            }
            answers[examples, samples].append(common.run_worker("scaling.py", request))
    begin(options, report, answers[points[0]][0]["machine"])
    report[0].table(
        f"{options.network}, {options.dtype}: sweeps by number of examples and of samples, median (min..max)",
        [
            "examples",
            "samples each",
            "ms per sample",
            "s per example",
            "peak memory, MB",
            "of it after the first step",
            "device memory, MB",
        ],
    )
    for (examples, samples), runs in answers.items():
        figures = {
            "milliseconds_per_sample": common.spread([1e3 * run["seconds_per_sample"] for run in runs]),
            "seconds_per_example": common.spread(
                [run["seconds_per_sample"] * run["samples"] / examples for run in runs]
            ),
            "host_memory_bytes": common.spread([run["peak_memory_bytes"]["host"] for run in runs]),
            "host_memory_growth_bytes": common.spread([run["host_memory_growth_bytes"] for run in runs]),
        }
        device = [run["peak_memory_bytes"]["device"] for run in runs]
        known = [value for value in device if value is not None]
        result = {"kind": "sweep", "examples": examples, "samples": samples, **figures, "runs": runs}
        report[0].add(
            result,
            [
                examples,
                f"{samples:,}",
                common.show(figures["milliseconds_per_sample"], digits=3),
                common.show(figures["seconds_per_example"], digits=3),
                common.show(figures["host_memory_bytes"], scale=1e-6),
                common.show(figures["host_memory_growth_bytes"], digits=1, scale=1e-6),
                f"{max(known) / 1e6:,.0f}" if known else "unknown",
            ],
        )


def begin(options: argparse.Namespace, report: list[common.Report], machine: dict[str, Any]) -> None:
    """Begins the report once a measuring process has said what machine this is."""
    if not report:
        report.append(common.Report(options, machine))


def main() -> None:
    """Measures, prints two tables, writes JSON."""
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(work(json.loads(sys.argv[2]))))
        return
    parser = common.parser(__doc__, repetitions=3, seconds=3.0)
    parser.add_argument("--network", default="cifar-resnet20")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16")
    parser.add_argument("--batch-size", type=int, default=256, help="rows; see the tables")
    parser.add_argument("--rounds", type=int, default=3, help="processes per point, interleaved")
    parser.add_argument(
        "--devices", type=int, nargs="*", default=COUNTS, help="device counts; none to leave out"
    )
    parser.add_argument(
        "--examples", type=int, nargs="*", default=[10, 20, 40, 80], help="of the sweeps; none to leave out"
    )
    parser.add_argument(
        "--samples",
        type=int,
        nargs="+",
        default=[1_000, 2_000, 4_000, 8_000],
        help="per example of the sweeps",
    )
    options = common.parse(
        parser, network="digits-cnn", batch_size=16, rounds=1, devices=[1, 2], examples=[2], samples=[200]
    )
    report: list[common.Report] = []
    with tempfile.TemporaryDirectory() as cache:
        rate = scale_devices(options, cache, report) if options.devices else 0.0
        if options.examples:
            least = min(100_000, max(1_000, round(rate * options.seconds / options.examples[0], -3)))
            options.samples = options.samples or [int(least) * factor for factor in (1, 2, 4, 8)]
            scale_sweep(options, cache, report)


if __name__ == "__main__":
    main()
