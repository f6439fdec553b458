"""What the programs share: their options, the machine they run on, repetitions, spreads, tables and JSON."""

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

# How much work -> how many samples that was; returns when the devices are done with them.
Way = Callable[[int], int]

_PACKAGES = ("jaxsmooth", "jax", "jaxlib", "flax", "numpy", "scipy")
_ACCELERATOR_PACKAGES = (
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
    "libtpu",
)


def parser(doc: str, *, repetitions: int, seconds: float) -> argparse.ArgumentParser:
    """The options that every program has.

    Args:
        doc: docstring of the program.
        repetitions: default of ``--repetitions``.
        seconds: default of ``--seconds``.
    """
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, help="file to write: machine, command and every figure")
    made.add_argument(
        "--repetitions", type=int, default=repetitions, help="of every measurement, interleaved"
    )
    made.add_argument("--seconds", type=float, default=seconds, help="of one repetition, about")
    made.add_argument("--smoke", action="store_true", help="tiny sizes: that it runs, not how fast")
    return made


def parse(made: argparse.ArgumentParser, **smoke: Any) -> argparse.Namespace:
    """Options of the command line; ``--smoke`` puts other defaults in place, which explicit options still beat."""
    if "--smoke" in sys.argv:
        made.set_defaults(repetitions=2, seconds=0.02)
        made.set_defaults(**smoke)
    return made.parse_args()


# ---- the machine


def machine() -> dict[str, Any]:
    """What figures depend on besides the code and the command. Starts JAX's devices."""
    import jax

    local = jax.local_devices()
    return host() | {
        "devices": [f"{device.platform}:{device.device_kind}" for device in local],
        "device_memory_bytes": (local[0].memory_stats() or {}).get("bytes_limit"),
    }


def host() -> dict[str, Any]:
    """The part of :func:`machine` that is known without touching a device."""
    versions = {name: version(name) for name in _PACKAGES}
    versions |= {name: found for name in _ACCELERATOR_PACKAGES if (found := version(name))}
    return {
        "processor": processor(),
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load": os.getloadavg(),
        "system": platform.platform(),
        "versions": versions | {"python": platform.python_version()},
        "commit": commit(),
        "environment": {
            name: value
            for name, value in os.environ.items()
            if name.startswith("XLA_") or name in ("JAX_PLATFORMS", "OMP_NUM_THREADS", "JAX_NUM_CPU_DEVICES")
        },
    }


def processor() -> str:
    """Model name of the processor, as well as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def version(package: str) -> str | None:
    """Version of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """Commit of this checkout, with "+" where files were changed since."""
    try:
        run = [
            subprocess.run(
                ["git", *words], cwd=HERE, capture_output=True, text=True, check=True
            ).stdout.strip()
            for words in (
                ["rev-parse", "--short=12", "HEAD"],
                ["status", "--porcelain", "--untracked-files=no"],
            )
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return run[0] + ("+" if run[1] else "")


def peak_memory() -> dict[str, int | None]:
    """Most memory used so far, in bytes: of this process, and of its first device where that is known."""
    import jax

    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "device": (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
    }


# ---- repetitions


def calibrate(way: Way, seconds: float) -> int:
    """How much work takes about so many seconds; the first call, which may compile, is not timed."""
    way(1)
    amount = 1
    while True:
        started = time.perf_counter()
        way(amount)
        elapsed = max(time.perf_counter() - started, 1e-9)
        if elapsed > seconds / 5 or amount >= 2**24:
            return max(1, round(amount * seconds / elapsed))
        amount = max(2 * amount, min(10 * amount, int(amount * seconds / elapsed / 2)))


def interleave(
    ways: Mapping[str, Way], amounts: Mapping[str, int], repetitions: int
) -> dict[str, list[float]]:
    """Samples per second of every way in every repetition; each repetition begins with another one.

    Args:
        ways: what to compare.
        amounts: how much work for each.
        repetitions: how often.
    """
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for repetition in range(repetitions):
        names = list(ways)
        turn = repetition % len(names)
        for name in names[turn:] + names[:turn]:
            started = time.perf_counter()
            samples = ways[name](amounts[name])
            rates[name].append(samples / (time.perf_counter() - started))
    return rates


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles, extremes, and all values."""
    ordered = sorted(values)
    q1, _, q3 = statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else ordered * 3
    return {
        "median": statistics.median(ordered),
        "q1": q1,
        "q3": q3,
        "min": ordered[0],
        "max": ordered[-1],
        "all": list(values),
    }


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, Any]:
    """Spread of the ratios taken within each repetition."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


# ---- subprocesses


def run_worker(program: str, request: Mapping[str, Any], **environment: str) -> dict[str, Any]:
    """Starts ``program --worker REQUEST`` (JSON), waits, and reads the JSON on the last line that it prints.

    Raises:
        SystemExit: when it fails, with the end of what it said.
    """
    done = subprocess.run(
        [sys.executable, str(HERE / program), "--worker", json.dumps(request)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )
    if done.returncode:
        sys.exit(f"{program}: a measuring process failed on {request}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


# ---- reports


def show(figure: Mapping[str, Any], digits: int = 0, scale: float = 1.0) -> str:
    """A spread as ``median (min..max)``."""
    median, low, high = (f"{scale * figure[name]:,.{digits}f}" for name in ("median", "min", "max"))
    return f"{median} ({low}..{high})"


class Report:
    """Prints Markdown tables row by row, and keeps the JSON file up to date after every row.

    Args:
        options: of the command line.
        machine: from :func:`machine`.
    """

    def __init__(self, options: argparse.Namespace, machine: Mapping[str, Any]):
        self._path: Path | None = options.json
        self._started = time.perf_counter()
        self._content: dict[str, Any] = {
            "program": Path(sys.argv[0]).name,
            "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": 0.0,
            "smoke": options.smoke,
            "options": vars(options),
            "machine": dict(machine),
            "notes": [],
            "results": [],
            "tables": [],
        }

    def table(self, title: str, columns: Sequence[str]) -> None:
        """Begins a table."""
        lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        self._content["tables"].append({"title": title, "lines": lines})
        print(f"\n{title}\n", *lines, sep="\n", flush=True)

    def note(self, text: str) -> None:
        """Says something that the figures need."""
        self._content["notes"].append(text)
        print(text, flush=True)
        self.write()

    def add(self, result: Mapping[str, Any], cells: Sequence[object]) -> None:
        """Adds all figures of a measurement, and its row of the table."""
        self.add_rows(result, [cells])

    def add_rows(self, result: Mapping[str, Any], rows: Sequence[Sequence[object]]) -> None:
        """The same with several rows."""
        self._content["results"].append(dict(result))
        for cells in rows:
            line = "| " + " | ".join(map(str, cells)) + " |"
            self._content["tables"][-1]["lines"].append(line)
            print(line, flush=True)
        self.write()

    def write(self) -> None:
        """Writes the file, complete as far as it goes."""
        self._content["seconds"] = round(time.perf_counter() - self._started, 3)
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(self._path.name + ".part")
        temporary.write_text(json.dumps(self._content, indent=1, default=str) + "\n")
        temporary.replace(self._path)
