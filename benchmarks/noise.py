"""Normals per second of each generator, and what noise costs within the whole step.

    python benchmarks/noise.py --network cifar-resnet20 resnet50 --json out.json

All of it on all devices of this process, in loops inside one program; noise is written to memory, as a
network needs it.
"""

import argparse
import math
from collections.abc import Callable
from typing import Any

import common
import jax
import jax.numpy as jnp
import steps
from jax.sharding import Mesh

from jaxsmooth import devices

NETWORKS = ["cifar-resnet20", "cifar-resnet110", "resnet50", "vit-b16"]
OURS = "Gaussian.sample, a key per sample"


def one_call(dtype: str) -> Callable[..., jax.Array]:
    """``jax.random.normal`` once for a whole batch, with one key: what a user without our contract would write."""

    def draw(key: jax.Array, samples: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(key, samples[0]), (samples.size, *shape), dtype)

    return draw


def generators() -> dict[str, tuple[Callable[..., jax.Array], str, str]]:
    """By name: how to draw, implementation of the key, dtype."""
    found = {OURS: (steps.our_noise, "threefry2x32", "float32")}
    for implementation in ("threefry2x32", "rbg", "unsafe_rbg"):
        for dtype in ("float32", "bfloat16"):
            found[f"jax.random.normal, {implementation}, {dtype}"] = (one_call(dtype), implementation, dtype)
    return found


def measure_generators(
    mesh: Mesh, shape: tuple[int, ...], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Every generator at one shape of input."""
    programs = {
        name: steps.noise_loop(
            mesh, shape, options.batch_size, draw, jax.random.key(0, impl=key), jnp.dtype(dtype)
        )
        for name, (draw, key, dtype) in generators().items()
    }
    ways = {name: program.way for name, program in programs.items()}
    amounts = {name: common.calibrate(way, options.seconds) for name, way in ways.items()}
    rates = common.interleave(ways, amounts, options.repetitions)
    numbers = math.prod(shape)
    return [
        {
            "generator": name,
            "shape": shape,
            "batch_size": programs[name].rows,
            "normals_per_second": common.spread([rate * numbers for rate in rates[name]]),
            "ratio_to_ours": common.ratio(rates[name], rates[OURS]),
            **programs[name].costs(),
        }
        for name in ways
    ]


def measure_share(mesh: Mesh, name: str, dtype: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds per sample of one network with stored inputs, with noise, and of the noise alone."""
    net = steps.network(name, dtype)
    key = jax.random.key(0)
    programs = {
        "stored inputs": steps.bare_loop(mesh, net, options.batch_size),
        "with noise": steps.noised_loop(mesh, net, options.batch_size),
        "noise alone": steps.noise_loop(
            mesh, net.shape, options.batch_size, steps.our_noise, key, jnp.dtype("float32")
        ),
    }
    ways = {label: program.way for label, program in programs.items()}
    amounts = {label: common.calibrate(way, options.seconds) for label, way in ways.items()}
    rates = common.interleave(ways, amounts, options.repetitions)
    pairs = list(zip(rates["stored inputs"], rates["with noise"], rates["noise alone"], strict=True))
    return {
        "network": name,
        "dtype": dtype,
        "batch_size": programs["with noise"].rows,
        "samples_per_second": {label: common.spread(values) for label, values in rates.items()},
        "share_by_difference": common.spread([1.0 - noised / bare for bare, noised, _ in pairs]),
        "share_of_noise_alone": common.spread([noised / alone for _, noised, alone in pairs]),
    }


def main() -> None:
    """Measures, prints two tables, writes JSON."""
    parser = common.parser(__doc__, repetitions=7, seconds=2.0)
    parser.add_argument("--network", nargs="*", default=NETWORKS, help="for the share of noise")
    parser.add_argument("--batch-size", type=int, default=256, help="rows over all devices together")
    parser.add_argument("--dtype", nargs="+", default=["float32"], help="of the networks: float32, bfloat16")
    parser.add_argument(
        "--shape", type=int, nargs=3, default=[32, 32, 3], help="of one input, for the generators"
    )
    options = common.parse(parser, network=["digits-cnn"], batch_size=16, shape=[8, 8, 1])
    devices.use_every_core()
    report = common.Report(options, common.machine())
    mesh = devices.noise_mesh()
    shape = tuple(options.shape)
    report.table(
        f"Millions of normals per second on all devices together, inputs of {list(shape)}, median (min..max)",
        ["generator", "millions/s", "ratio to ours"],
    )
    for result in measure_generators(mesh, shape, options):
        report.add(
            result,
            [
                result["generator"],
                common.show(result["normals_per_second"], digits=1, scale=1e-6),
                f"{result['ratio_to_ours']['median']:.2f}",
            ],
        )
    report.table(
        "Share of noise in the step: by the difference with and without, and noise alone over the step",
        ["network, dtype, batch", "samples/s with noise", "share by difference", "noise alone / step"],
    )
    for name in options.network:
        for dtype in options.dtype:
            result = measure_share(mesh, name, dtype, options)
            report.add(
                result,
                [
                    f"{name}, {dtype}, {result['batch_size']}",
                    common.show(result["samples_per_second"]["with noise"]),
                    common.show(result["share_by_difference"], digits=3),
                    common.show(result["share_of_noise_alone"], digits=3),
                ],
            )
            jax.clear_caches()


if __name__ == "__main__":
    main()
