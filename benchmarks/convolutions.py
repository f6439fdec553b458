"""Convolutions in bfloat16 by themselves: XLA's own beside the matrix products of inference on a CPU.

    python benchmarks/convolutions.py --json out.json

The layers are those of ResNet-50 and of the CIFAR networks, eight of the same one after another with a relu
between, on all devices of this process.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np
import steps
from flax import nnx
from jax import lax
from jax.sharding import Mesh

from jaxsmooth import devices
from jaxsmooth.models import products

# kernel, height and width, channels in and out, rows on each device
LAYERS = [
    *((3, 56, 64, 4), (3, 28, 128, 4), (3, 14, 256, 4), (3, 7, 512, 4)),
    *((1, 56, 256, 4), (1, 28, 512, 4), (1, 14, 1024, 4), (1, 7, 2048, 4)),
    *((3, 32, 16, 128), (3, 16, 32, 128), (3, 8, 64, 128)),
]
_DEPTH = 8
FORMS: dict[str, Callable[..., jax.Array]] = {
    "XLA's convolution": lax.conv_general_dilated,
    "products": products.conv_general_dilated,
}


def program(mesh: Mesh, form: Callable[..., jax.Array], layer: tuple[int, ...]) -> steps.Program:
    """A loop over a network that is nothing but this layer."""
    size, side, channels, rows = layer
    kernels = np.random.default_rng(0).normal(size=(_DEPTH, size, size, channels, channels))
    kernels = jnp.asarray(kernels * (2 / (size * size * channels)) ** 0.5, jnp.bfloat16)
    names = lax.conv_dimension_numbers((1,) * 4, (1,) * 4, ("NHWC", "HWIO", "NHWC"))
    convolve = partial(form, window_strides=(1, 1), padding="SAME", dimension_numbers=names)

    def apply_fn(kernels: jax.Array, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.bfloat16)
        for kernel in kernels:
            x = nnx.relu(convolve(x, kernel))
        return products.mean_pool(x).astype(jnp.float32)

    net = steps.Network("one layer", None, apply_fn, kernels, (side, side, channels), channels)
    return steps.bare_loop(mesh, net, rows * mesh.size)


def measure(mesh: Mesh, layer: tuple[int, ...], seconds: float, repetitions: int) -> dict[str, Any]:
    """Both forms of one layer."""
    size, side, channels, rows = layer
    programs = {name: program(mesh, form, layer) for name, form in FORMS.items()}
    ways = {name: made.way for name, made in programs.items()}
    amounts = {name: common.calibrate(way, seconds) for name, way in ways.items()}
    rates = common.interleave(ways, amounts, repetitions)
    flops = 2 * _DEPTH * side**2 * (size * channels) ** 2
    return {
        "layer": layer,
        "batch_size": rows * mesh.size,
        "flops_per_second": {
            name: common.spread([flops * rate for rate in all_]) for name, all_ in rates.items()
        },
        "ratio": common.ratio(*reversed(rates.values())),
    }


def main() -> None:
    """Measures, prints a table, writes JSON."""
    parser = common.parser(__doc__, repetitions=3, seconds=1.0)
    options = common.parse(parser)
    products._LEAST_CHANNELS = 1  # the choice that inference makes is what is to be shown
    devices.use_every_core()
    report = common.Report(options, common.machine())
    mesh = devices.noise_mesh()
    report.table(
        "GFLOP/s of convolutions in bfloat16 on all devices together, median (min..max)",
        ["kernel, size, channels", "batch", *FORMS, "ratio"],
    )
    for layer in LAYERS[-1:] if options.smoke else LAYERS:
        result = measure(mesh, layer, options.seconds, options.repetitions)
        size, side, channels, _ = layer
        report.add(
            result,
            [
                f"{size}x{size}, {side}x{side}, {channels}",
                result["batch_size"],
                *(common.show(rate, scale=1e-9) for rate in result["flops_per_second"].values()),
                common.show(result["ratio"], digits=2),
            ],
        )
        jax.clear_caches()


if __name__ == "__main__":
    main()
