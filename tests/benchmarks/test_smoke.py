"""Every benchmark program runs, on tiny sizes; how fast is none of a test's business."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The longest first, for they run two at a time.
PROGRAMS = [
    "startup",
    "scaling",
    "versus_pytorch",
    "certified_accuracy",
    "noise",
    "throughput",
    "convolutions",
    "samples_to_decide",
]


def arguments(program, folder):
    if program != "samples_to_decide":
        return ["--smoke"]
    log = folder / "log.tsv"
    radii = [f"{i}\t0\t{max(0, i % 2)}\t{0.01 * i:.2f}\t1\t0:00:01" for i in range(20)]
    log.write_text("\n".join(["idx\tlabel\tpredict\tradius\tcorrect\ttime", *radii]) + "\n")
    return [f"0.25={log}", "--num-samples", "10000", "--runs", "1"]


def run(program, folder):
    path = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [
            sys.executable,
            str(ROOT / "benchmarks" / f"{program}.py"),
            *arguments(program, folder),
            "--json",
            str(folder / f"{program}.json"),
        ],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(filter(None, path))},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("benchmarks")


@pytest.fixture(scope="module")
def runs(folder):
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(PROGRAMS, pool.map(lambda program: run(program, folder), PROGRAMS), strict=True))


@pytest.mark.parametrize("program", PROGRAMS)
def test_program_prints_a_table_and_writes_its_figures(program, runs, folder):
    done = runs[program]
    if program == "versus_pytorch" and find_spec("torch") is None:
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert "pip install torch" in done.stderr
        pytest.skip("needs torch")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "|---|" in done.stdout
    record = json.loads((folder / f"{program}.json").read_text())
    assert record["command"].startswith(f"python benchmarks/{program}.py")
    if program == "samples_to_decide":
        assert len(record["rows"]) == 3
        return
    assert record["smoke"] is True
    assert record["results"]
    assert record["machine"]["devices"][0].startswith("cpu")
    assert record["machine"]["versions"]["jax"]
    for table in record["tables"]:
        assert all(line in done.stdout for line in table["lines"])
        assert len({line.count("|") for line in table["lines"]}) == 1
