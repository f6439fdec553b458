"""Samples per second: the bare forward pass, sampling, and the whole engine of a sweep, in one run.

    python benchmarks/throughput.py --network cifar-resnet20 --batch-size 256 --json out.json

Each figure is the median of interleaved repetitions, on all devices of this process together, after compiling.
The bare pass is the jitted network on stored inputs, sharded over the same devices: what nothing
built on this network could exceed.
"""

import argparse
import json
import platform
import statistics
import time
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxsmooth import Gaussian, devices
from jaxsmooth.models import registry
from jaxsmooth.sweep.engine import Engine, FixedStages

SHAPES = {"digits-cnn": ((8, 8, 1), 10), "resnet50": ((224, 224, 3), 1000)}


def machine() -> dict[str, object]:
    """What the figures depend on besides the code."""
    return {
        "devices": [f"{d.platform}:{d.device_kind}" for d in jax.local_devices()],
        "processor": platform.processor() or platform.machine(),
        "system": platform.platform(),
        "versions": {name: metadata.version(name) for name in ("jaxsmooth", "jax", "jaxlib", "flax")}
        | {"python": platform.python_version()},
    }


def measure(network: str, batch_size: int, seconds: float, repetitions: int) -> dict[str, object]:
    """Samples per second of each way, by repetition."""
    mesh = devices.noise_mesh()
    shape, num_classes = SHAPES.get(network, ((32, 32, 3), 10))
    channels = shape[-1]
    spec = registry.ModelSpec(network, num_classes, shape, (0.5,) * channels, (0.25,) * channels)
    apply_fn, params = registry.inference(registry.build(spec))
    params = devices.replicate(params, mesh)
    noise = Gaussian(0.25)
    images = np.random.default_rng(0).random((16, *shape), np.float32)
    split = PartitionSpec(devices.NOISE_AXIS)
    stored = jax.device_put(
        np.random.default_rng(1).random((batch_size, *shape), np.float32), NamedSharding(mesh, split)
    )
    forward = jax.jit(jax.shard_map(apply_fn, mesh=mesh, in_specs=(PartitionSpec(), split), out_specs=split))
    key = jax.random.key(0)

    def bare(batches: int) -> int:
        out = [forward(params, stored) for _ in range(batches)]
        jax.block_until_ready(out)
        return batches * batch_size

    def noise_only(batches: int) -> int:
        out = [draw(key, jnp.arange(batch_size)) for _ in range(batches)]
        jax.block_until_ready(out)
        return batches * batch_size

    draw = jax.jit(
        jax.shard_map(
            lambda key, samples: jax.vmap(
                lambda j: noise.sample(jax.random.fold_in(key, j), shape, jnp.float32)
            )(samples),
            mesh=mesh,
            in_specs=(PartitionSpec(), split),
            out_specs=split,
        )
    )

    def sampling(batches: int) -> int:
        devices.sharded_sample_counts(
            key,
            apply_fn,
            params,
            images[0],
            mesh=mesh,
            noise=noise,
            num_samples=batches * batch_size,
            batch_size=batch_size,
        )
        return batches * batch_size

    # Several examples in every repetition, whose budgets are no multiple of the batch.
    def make_engine(batches: int) -> tuple[Engine, int]:
        per_example = max(2, batches * batch_size // 5)
        engine = Engine(
            mesh,
            apply_fn,
            params,
            noise,
            seed=0,
            procedure=FixedStages((min(100, per_example - 1), per_example - min(100, per_example - 1))),
            images=lambda i: images[i % 16],
            num_classes=num_classes,
            batch_size=batch_size,
        )
        return engine, per_example

    bare(1)
    started = time.perf_counter()
    bare(2)
    batches = max(2, round(2 * seconds / (time.perf_counter() - started)))
    engine, per_example = make_engine(batches)

    def sweep(batches: int) -> int:
        before = engine.usage.samples
        for _ in engine.run(engine.fresh(i) for i in range(5)):
            pass
        return engine.usage.samples - before

    ways = {"bare": bare, "noise only": noise_only, "sample_counts": sampling, "engine": sweep}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way(1 if way is not sweep else batches)
    for _ in range(repetitions):
        for name, way in ways.items():
            started = time.perf_counter()
            samples = way(batches)
            rates[name].append(samples / (time.perf_counter() - started))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "network": network,
        "batch_size": batch_size,
        "samples_per_example": per_example,
        "samples_per_second": medians,
        "all": rates,
        # Ratios are taken within each repetition, then the median.
        "engine / bare": statistics.median(
            e / b for e, b in zip(rates["engine"], rates["bare"], strict=True)
        ),
        "sample_counts / bare": statistics.median(
            s / b for s, b in zip(rates["sample_counts"], rates["bare"], strict=True)
        ),
        "engine / sample_counts": statistics.median(
            e / s for e, s in zip(rates["engine"], rates["sample_counts"], strict=True)
        ),
    }


def main() -> None:
    """Measures, prints a table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", nargs="+", default=["cifar-resnet20"], help="names of networks")
    parser.add_argument("--batch-size", type=int, default=256, help="rows over all devices together")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    devices.use_every_core()
    results = []
    ratio_names = ["sample_counts / bare", "engine / bare", "engine / sample_counts"]
    print("| network | bare | noise only | sample_counts | engine | " + " | ".join(ratio_names) + " |")
    print("|---|---|---|---|---|---|---|---|")
    for network in options.network:
        result = measure(network, options.batch_size, options.seconds, options.repetitions)
        results.append(result)
        rates = [f"{rate:,.0f}" for rate in result["samples_per_second"].values()]  # type: ignore[attr-defined]
        ratios = [f"{result[name]:.3f}" for name in ratio_names]
        print("| " + " | ".join([network, *rates, *ratios]) + " |", flush=True)
    if options.json:
        report = {"machine": machine(), "command": vars(options) | {"json": None}, "results": results}
        options.json.write_text(json.dumps(report, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
