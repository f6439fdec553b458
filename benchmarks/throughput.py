"""Samples per second: from the bare forward pass to the whole engine of a sweep, one step at a time.

    python benchmarks/throughput.py --network cifar-resnet20 resnet50 --batch-size 256 --json out.json

On all devices of this process together. Ratios are taken within each repetition.
"""

import itertools
from typing import Any

import common
import jax
import steps
from jax.sharding import Mesh

from jaxsmooth import Gaussian, devices
from jaxsmooth.models import cost
from jaxsmooth.sweep import procedures
from jaxsmooth.sweep.engine import Engine

NETWORKS = ["cifar-resnet20", "cifar-resnet110", "resnet50", "vit-b16"]
LIMIT = "bare loop"


def engine_way(mesh: Mesh, net: steps.Network, batch_size: int, samples_per_example: int) -> common.Way:
    """The engine as ``jaxsmooth certify`` uses it, certificates included, over examples of a fixed size."""
    selection = min(100, samples_per_example // 2)
    procedure = procedures.FixedSize(
        Gaussian(steps.SIGMA), selection, samples_per_example - selection, alpha=0.001, bound="two-sided"
    )
    stored = steps.images(net.shape)
    engine = Engine(
        mesh,
        net.apply_fn,
        net.params,
        Gaussian(steps.SIGMA),
        seed=0,
        procedure=procedure,
        images=lambda index: stored[index % len(stored)],
        num_classes=net.num_classes,
        batch_size=batch_size,
    )
    rows = steps.rows_per_device(batch_size, mesh) * mesh.size
    next_index = itertools.count()

    def way(batches: int) -> int:
        before = engine.usage.samples
        examples = max(1, round(batches * rows / samples_per_example))
        for finished in engine.run(engine.fresh(next(next_index)) for _ in range(examples)):
            for stream in finished:
                procedure.fields(stream)
        return engine.usage.samples - before

    return way


def measure(
    mesh: Mesh,
    name: str,
    dtype: str,
    batch_size: int,
    samples_per_example: int,
    seconds: float,
    repetitions: int,
) -> dict[str, Any]:
    """Every figure of one network."""
    net = steps.network(name, dtype)
    programs = {
        "bare calls": steps.bare_calls(mesh, net, batch_size),
        LIMIT: steps.bare_loop(mesh, net, batch_size),
        "noise": steps.noised_loop(mesh, net, batch_size),
        "noise, counts": steps.counting_loop(mesh, net, batch_size),
    }
    batches = common.calibrate(programs[LIMIT].way, seconds)
    rows = programs[LIMIT].rows
    # An example is as large as asked for, unless a repetition would then not hold four; four fill their batches.
    per_example = max(2, min(samples_per_example, batches * rows // 4))
    ways = {label: program.way for label, program in programs.items()}
    ways["sample_counts"] = steps.sampling_way(mesh, net, batch_size)
    ways["engine"] = engine_way(mesh, net, batch_size, per_example)
    for label in ("sample_counts", "engine"):  # compiles, and lets the engine find the length of its steps
        ways[label](batches)
    ways["engine"](batches)
    rates = common.interleave(ways, dict.fromkeys(ways, batches), repetitions)
    flops = cost.flops_per_sample(net.model, net.shape)
    peak, origin = steps.peak_flops(mesh, dtype, min(1.0, seconds))
    limit = common.spread(rates[LIMIT])["median"]
    return {
        "network": name,
        "dtype": dtype,
        "batch_size": rows,
        "batches_per_repetition": batches,
        "samples_per_example": per_example,
        "samples_per_second": {label: common.spread(values) for label, values in rates.items()},
        "ratio_to_bare_loop": {label: common.ratio(values, rates[LIMIT]) for label, values in rates.items()},
        "flops_per_sample": flops,
        "flops_per_second": flops * limit,
        "peak_flops_per_second": peak,
        "peak_is": origin,
        "share_of_peak": flops * limit / peak if peak else None,
        "programs": {label: program.costs() for label, program in programs.items()},
        "peak_memory_bytes": common.peak_memory(),
    }


def row(result: dict[str, Any]) -> list[str]:
    """The line of the table."""
    rates, ratios = result["samples_per_second"], result["ratio_to_bare_loop"]
    share, flops = result["share_of_peak"], result["flops_per_second"]
    temporary = result["programs"]["noise, counts"]["temp_bytes"]
    return [
        f"{result['network']}, {result['dtype']}, {result['batch_size']}",
        common.show(rates[LIMIT], digits=1 if rates[LIMIT]["median"] < 100 else 0),
        *(f"{ratios[label]['median']:.3f}" for label in rates if label != LIMIT),
        f"{ratios['engine']['min']:.3f}..{ratios['engine']['max']:.3f}",
        f"{flops / 1e12:.3f}",
        "unknown" if share is None else f"{100 * share:.0f}%",
        "unknown" if temporary is None else f"{temporary / 2**20:,.1f}",
    ]


def main() -> None:
    """Measures, prints a table, writes JSON."""
    parser = common.parser(__doc__, repetitions=7, seconds=5.0)
    parser.add_argument("--network", nargs="+", default=NETWORKS, help="names of networks")
    parser.add_argument(
        "--batch-size", type=int, nargs="+", default=[256], help="rows over all devices together"
    )
    parser.add_argument("--dtype", nargs="+", default=["float32"], help="float32, bfloat16")
    parser.add_argument(
        "--samples-per-example", type=int, default=100_100, help="of the engine; fewer if slow"
    )
    options = common.parse(parser, network=["digits-cnn"], batch_size=[16], samples_per_example=100)
    devices.use_every_core()
    report = common.Report(options, common.machine())
    mesh = devices.noise_mesh()
    report.table(
        "Samples per second on all devices together, median (min..max), and ratios to the bare loop",
        [
            "network, dtype, batch",
            LIMIT,
            "bare calls",
            "+ noise",
            "+ counts",
            "sample_counts",
            "engine",
            "engine, min..max",
            "TFLOP/s of the bare loop",
            "of the peak",
            "MiB per device",
        ],
    )
    for name, dtype, batch_size in itertools.product(options.network, options.dtype, options.batch_size):
        result = measure(
            mesh, name, dtype, batch_size, options.samples_per_example, options.seconds, options.repetitions
        )
        report.add(result, row(result))
        jax.clear_caches()


if __name__ == "__main__":
    main()
