"""From the command to the first sample: imports, compilation, and `jaxsmooth certify` from its start.

    python benchmarks/startup.py --json out.json

Every figure is of fresh processes. The files themselves are in the system's cache after the first of them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common

IMPORTS = {
    "Python alone": "pass",
    "import numpy": "import numpy",
    "import jax": "import jax",
    "import jaxsmooth": "import jaxsmooth",
    "jaxsmooth --help": "from jaxsmooth.cli.main import main; main(['--help'])",
    "what certify imports": "import jaxsmooth.cli.certify, jaxsmooth.cli.sources, jaxsmooth.sweep.run",
}
_COMMAND = "from jaxsmooth.cli.main import main; main()"


# ---- in measuring processes


def work(request: dict[str, Any]) -> dict[str, Any]:
    """Builds a network, compiles a sweep's step for it and runs it once."""
    import jax
    import numpy as np
    import steps

    from jaxsmooth import Gaussian, devices
    from jaxsmooth.sampling import Segments

    devices.use_every_core()
    started = time.perf_counter()
    mesh = devices.noise_mesh()
    started_devices = time.perf_counter()
    net = steps.network(request["network"], request["dtype"])
    built = time.perf_counter()
    step = devices.segment_step(mesh, net.apply_fn, request["batch_size"])
    segments = Segments(np.zeros(64, np.int32), np.zeros(64, np.int32), np.array([0] + [1] * 64, np.int32))
    key, params = devices.replicate((jax.random.key(0), net.params), mesh)
    arguments = (
        key,
        np.zeros(32, np.uint32),
        params,
        np.zeros((32, *net.shape), np.float32),
        Gaussian(steps.SIGMA),
        segments,
    )
    executable, lower, compile_seconds, _ = steps.compiled(step, *arguments)
    ready = time.perf_counter()
    executable(*arguments).block_until_ready()
    return {
        "start_devices": started_devices - started,
        "build": built - started_devices,
        "lower": lower,
        "compile": compile_seconds,
        "first_batch": time.perf_counter() - ready,
        "machine": common.machine(),
    }


def make_checkpoint(request: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint of a network for the digits, with weights that nobody trained."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from jaxsmooth.data import registry as data
    from jaxsmooth.models import registry
    from jaxsmooth.training import checkpoints

    jax.config.update("jax_platforms", "cpu")
    digits = data.load("digits", "test")
    shape = digits.images.shape[1:]
    spec = registry.ModelSpec(request["network"], digits.num_classes, shape, digits.mean, digits.sd)
    description = checkpoints.Description(spec, "digits", 0.25, training={}, step=1)
    state = nnx.state(registry.build(spec))
    checkpoints.save(request["folder"], description, state, {"nothing": jnp.zeros(1)})
    return {}


# ---- in the parent process, which touches no device: one process at a time can have a TPU


def seconds_of(arguments: list[str]) -> float:
    """Wall time of a Python process.

    Raises:
        SystemExit: when it fails.
    """
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"startup: {arguments} failed:\n{done.stderr[-2000:]}")
    return time.perf_counter() - started


def first_sample(checkpoint: Path, cache: Path | str) -> dict[str, float]:
    """``jaxsmooth certify`` of one example with as few samples as can be: seconds from the command to its stages.

    The times at which it writes its files say when: the manifest when everything is loaded, the first
    part when the first batch of samples is in, compiled and counted.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "results"
        command = ["-c", _COMMAND, "certify", "--checkpoint", str(checkpoint), "--out", str(out)]
        command += ["--max", "1", "--num-samples", "1", "--selection-samples", "1"]
        started = time.time()
        total = seconds_of([*command, "--compilation-cache", str(cache)])
        parts = sorted((out / "parts").glob("*.jsonl"))
        return {
            "manifest": (out / "manifest.json").stat().st_mtime - started,
            "first_sample": parts[0].stat().st_mtime - started,
            "exit": total,
        }


def measure_commands(options: argparse.Namespace, network: str) -> dict[str, Any]:
    """In each repetition with an empty compilation cache, and again with what that left in it."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        common.run_worker(
            "startup.py", {"kind": "checkpoint", "network": network, "folder": str(base / "checkpoint")}
        )
        found: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
        for repetition in range(options.repetitions):
            cache = base / f"cache-{repetition}"
            for label in found:
                found[label].append(first_sample(base / "checkpoint", cache))
        cached = sum(1 for _ in cache.glob("*"))
    return {
        "kind": "first sample",
        "network": network,
        "files_in_cache": cached,
        **{
            label: {stage: common.spread([run[stage] for run in runs]) for stage in runs[0]}
            for label, runs in found.items()
        },
    }


def measure_compilation(options: argparse.Namespace, network: str, dtype: str) -> dict[str, Any]:
    """Compile time of one network, in fresh processes without a cache."""
    request = {"kind": "compile", "network": network, "dtype": dtype, "batch_size": options.batch_size}
    environment = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    runs = [common.run_worker("startup.py", request, **environment) for _ in range(options.repetitions)]
    stages = ("start_devices", "build", "lower", "compile", "first_batch")
    return {
        "kind": "compile",
        "network": network,
        "dtype": dtype,
        "machine": runs[0]["machine"],
        **{stage: common.spread([run[stage] for run in runs]) for stage in stages},
    }


def main() -> None:
    """Measures, prints three tables, writes JSON."""
    if sys.argv[1:2] == ["--worker"]:
        request = json.loads(sys.argv[2])
        print(json.dumps({"compile": work, "checkpoint": make_checkpoint}[request["kind"]](request)))
        return
    parser = common.parser(__doc__, repetitions=5, seconds=0.0)
    parser.add_argument(
        "--network",
        nargs="*",
        default=["digits-cnn", "cifar-resnet20", "cifar-resnet110", "resnet50", "vit-b16"],
        help="for the compile times",
    )
    parser.add_argument(
        "--command-network",
        nargs="*",
        default=["digits-cnn", "cifar-resnet110"],
        help="for `jaxsmooth certify`, on the digits",
    )
    parser.add_argument("--batch-size", type=int, default=256, help="rows over all devices together")
    parser.add_argument("--dtype", nargs="+", default=["float32"], help="for the compile times")
    options = common.parse(
        parser, network=["digits-cnn"], command_network=["digits-cnn"], batch_size=16, repetitions=1
    )
    report = None
    for network in options.network:
        for dtype in options.dtype:
            result = measure_compilation(options, network, dtype)
            if report is None:
                report = common.Report(options, result["machine"])
                report.table(
                    "Seconds to prepare a network and compile the step of a sweep, median (min..max)",
                    ["network, dtype", "trace and lower", "compile", "first batch", "build the network"],
                )
            stages = ("lower", "compile", "first_batch", "build")
            cells = [common.show(result[stage], digits=2) for stage in stages]
            report.add(result, [f"{network}, {dtype}", *cells])
    report = report or common.Report(options, common.host())

    report.table("Seconds to start Python and import, median (min..max)", ["what", "seconds"])
    os.environ["PYTHONDONTWRITEBYTECODE"] = ""  # compiled modules are kept, as for a user
    found: dict[str, list[float]] = {name: [] for name in list(IMPORTS)[: 2 if options.smoke else None]}
    for _ in range(options.repetitions):
        for name in found:
            found[name].append(seconds_of(["-c", IMPORTS[name]]))
    for name, values in found.items():
        figure = common.spread(values)
        report.add({"kind": "import", "what": name, "seconds": figure}, [name, common.show(figure, digits=2)])

    report.table(
        "`jaxsmooth certify`: seconds from the command to everything loaded, to the first samples, to the end",
        ["network", "compilation cache", "loaded", "first samples", "end"],
    )
    for network in options.command_network:
        result = measure_commands(options, network)
        rows = []
        for label in ("cold", "warm"):
            stages = [
                common.show(result[label][stage], digits=2) for stage in ("manifest", "first_sample", "exit")
            ]
            rows.append([network, label, *stages])
        report.add_rows(result, rows)


if __name__ == "__main__":
    main()
