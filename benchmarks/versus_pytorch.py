"""Samples per second beside PyTorch: the usual loop of the field, the best a user would make of it, and ours.

    python benchmarks/versus_pytorch.py --network cifar-resnet110 resnet50 --json out.json

Same device, same network, same weights: logits are compared first, and nothing is timed unless they agree.
PyTorch runs in a process of its own (see torch_side.py), of another Python if --torch-python says so; the two
take turns, and the one that waits does nothing.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import common

# Both processes need memory of the same accelerator.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import numpy as np
import steps
import throughput
from flax import nnx

from jaxsmooth import devices
from jaxsmooth.models import registry

TOLERANCE = 1e-3
USUAL = "PyTorch, usual"
_NAMES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


class Side:
    """The process in which PyTorch runs."""

    def __init__(self, python: str, verbose: bool):
        self._errors = None if verbose else tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            [python, str(common.HERE / "torch_side.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def ask(self, what: str, **request: Any) -> dict[str, Any]:
        """Sends a request and waits for the answer.

        Raises:
            SystemExit: in one line, when there is none or it is an error.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps({"do": what, **request}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise SystemExit(f"versus_pytorch: {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise SystemExit(f"versus_pytorch: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        self._process.wait()
        if self._errors is not None:
            self._errors.seek(0)
            if lines := self._errors.read().strip().splitlines():
                return lines[-1]
        return f"the PyTorch process ended with {self._process.returncode}"

    def close(self) -> None:
        """Ends it."""
        self._process.communicate()


def torch_weights(model: nnx.Module) -> dict[str, np.ndarray]:
    """The network's weights and batch statistics under PyTorch's names, in PyTorch's layouts."""
    weights = {}
    for place, leaf in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(model))):
        *path, last = (str(getattr(entry, "key", entry)) for entry in place)
        array = np.asarray(leaf)
        if array.ndim == 4:  # [height, width, in, out] -> [out, in, height, width]
            array = array.transpose(3, 2, 0, 1)
        elif array.ndim == 2:
            array = array.T
        weights[".".join([*path, _NAMES[last]])] = np.ascontiguousarray(array)
    return weights


def load(side: Side, net: steps.Network, batch_size: int) -> dict[str, float]:
    """Gives the weights to PyTorch: largest differences of logits, relative to the largest logit.

    Raises:
        SystemExit: when they are not the same network.
    """
    inputs = steps.images(net.shape, 8)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.npz"
        weights = {f"w:{name}": array for name, array in torch_weights(net.model).items()}
        np.savez(file, inputs=np.ascontiguousarray(inputs.transpose(0, 3, 1, 2)), **weights)
        logits = side.ask(
            "load",
            file=str(file),
            network=net.name,
            batch_size=batch_size,
            num_classes=net.num_classes,
            sigma=steps.SIGMA,
        )
    with jax.default_matmul_precision("highest"):
        ours = np.asarray(jax.jit(net.apply_fn)(net.params, inputs))
    scale = float(np.abs(ours).max())
    found = {name: float(np.abs(ours - np.array(theirs)).max()) / scale for name, theirs in logits.items()}
    if not max(found.values()) < TOLERANCE:
        raise SystemExit(f"versus_pytorch: {net.name}: logits differ by {found}, more than {TOLERANCE}")
    return found


def variants(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """PyTorch's ways by name."""
    chosen: dict[str, dict[str, Any]] = {USUAL: {"usual": True}}
    for dtype in options.dtype:
        chosen[f"PyTorch, best eager {dtype}"] = {"usual": False, "dtype": dtype, "compile": ""}
        if options.compile != "off":
            chosen[f"PyTorch, best compiled {dtype}"] = {
                "usual": False,
                "dtype": dtype,
                "compile": options.compile,
            }
    return chosen


def measure(side: Side, name: str, batch_size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Every figure of one network with one batch size."""
    mesh = devices.noise_mesh()
    net = steps.network(name)
    rows = steps.rows_per_device(batch_size, mesh) * mesh.size
    differences = load(side, net, rows)
    ways: dict[str, common.Way] = {}
    prepared = {}
    for label, variant in variants(options).items():
        prepared[label] = side.ask("prepare", name=label, **variant)
        if "reason" not in prepared[label]:
            ways[label] = lambda batches, label=label: sum(
                side.ask("run", name=label, num_samples=batches * rows)["counts"]
            )
    amounts = {label: common.calibrate(way, options.seconds) for label, way in ways.items()}
    for dtype in options.dtype:
        ours = net._replace(**registry.inference(net.model, dtype)._asdict())
        label = f"jaxsmooth sample_counts {dtype}"
        ways[label] = steps.sampling_way(mesh, ours, rows)
        amounts[label] = common.calibrate(ways[label], options.seconds)
        label = f"jaxsmooth engine {dtype}"
        batches = amounts[f"jaxsmooth sample_counts {dtype}"]
        ways[label] = throughput.engine_way(mesh, ours, rows, max(2, min(100_100, batches * rows // 5)))
        amounts[label] = batches
        ways[label](batches)
        ways[label](batches)
    rates = common.interleave(ways, amounts, options.repetitions)
    return {
        "network": name,
        "batch_size": rows,
        "logit_differences": differences,
        "prepared": prepared,
        "batches_per_repetition": amounts,
        "samples_per_second": {label: common.spread(values) for label, values in rates.items()},
        "ratio_to_usual": {label: common.ratio(values, rates[USUAL]) for label, values in rates.items()},
        "peak_memory_bytes": {"jaxsmooth": common.peak_memory(), "PyTorch": side.ask("memory")},
    }


def main() -> None:
    """Measures, prints a table, writes JSON."""
    parser = common.parser(__doc__, repetitions=7, seconds=5.0)
    parser.add_argument("--network", nargs="+", default=["cifar-resnet20", "cifar-resnet110", "resnet50"])
    parser.add_argument(
        "--batch-size", type=int, nargs="+", default=[256], help="rows over all devices together"
    )
    parser.add_argument(
        "--dtype", nargs="+", default=["float32", "bfloat16"], help="of the best ways and of ours"
    )
    parser.add_argument("--compile", default="default", help="mode of torch.compile, or off")
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--verbose", action="store_true", help="show what the PyTorch process says")
    options = common.parse(
        parser, network=["cifar-resnet20"], batch_size=[8, 16], compile="off", dtype=["float32"]
    )
    devices.use_every_core()
    side = Side(options.torch_python, options.verbose)
    platform = jax.local_devices()[0].platform
    if jax.local_device_count() > 1 and platform != "cpu":
        raise SystemExit(
            "versus_pytorch: one accelerator, please, for the PyTorch loop uses one: CUDA_VISIBLE_DEVICES=0"
        )
    started = side.ask("start", platform=platform, threads=common.cores())
    report = common.Report(options, common.machine() | {"pytorch": started})
    report.table(
        "Samples per second, median (min..max), and ratio to the usual loop of PyTorch",
        ["network, batch", "way", "samples/s", "ratio", "least ratio", "most", "logits agree to"],
    )
    try:
        results = []
        for name, batch_size in itertools.product(options.network, options.batch_size):
            results.append(measure(side, name, batch_size, options))
            report.add_rows(results[-1], rows_of(results[-1]))
            jax.clear_caches()
    finally:
        side.close()
    if len(options.batch_size) > 1:
        report.table(
            "Every way with the batch that suits it best, and ratio to the usual loop with the batch that suits that",
            ["network", "way", "best batch", "samples/s", "ratio"],
        )
        for name in options.network:
            report.add_rows({"network": name, "best": True}, best_of(results, name))


def rows_of(result: dict[str, Any]) -> list[list[str]]:
    """The lines of the table."""
    agree = f"{max(result['logit_differences'].values()):.0e}"
    lines = []
    for label, rate in result["samples_per_second"].items():
        ratio = result["ratio_to_usual"][label]
        lines.append(
            [
                f"{result['network']}, {result['batch_size']}",
                label,
                common.show(rate, digits=1 if rate["median"] < 100 else 0),
                *(f"{ratio[name]:.2f}" for name in ("median", "min", "max")),
                agree,
            ]
        )
    for label, prepared in result["prepared"].items():
        if "reason" in prepared:
            lines.append(
                [f"{result['network']}, {result['batch_size']}", label, prepared["reason"], "", "", "", agree]
            )
    return lines


def best_of(results: list[dict[str, Any]], network: str) -> list[list[str]]:
    """The lines of the second table for a network: medians, each of the batch where it is largest."""
    best: dict[str, tuple[float, int]] = {}
    for result in results:
        if result["network"] == network:
            for label, rate in result["samples_per_second"].items():
                best[label] = max(best.get(label, (0.0, 0)), (rate["median"], result["batch_size"]))
    return [
        [network, label, str(batch), f"{rate:,.{1 if rate < 100 else 0}f}", f"{rate / best[USUAL][0]:.2f}"]
        for label, (rate, batch) in best.items()
    ]


if __name__ == "__main__":
    main()
