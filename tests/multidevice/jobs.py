"""Sweeps in processes of their own, to be killed, and the long version of the killing test.

python -m tests.multidevice.jobs --kills 100
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jaxsmooth.sweep import records

# A sweep whose arithmetic is exact, run by a process of its own: folder, shard, batch size, seconds between writes.
PROGRAM = """
import sys, json
options = json.loads(sys.argv[1])
import jax
jax.config.update("jax_num_cpu_devices", options.get("devices", 1))
from jaxsmooth import devices
shard = tuple(options.get("shard", (0, 1)))
if "coordinator" in options:
    shard = devices.join_job(options["coordinator"], 2, options["process"])
from tests.sweep import exact_model, test_run
from jaxsmooth.sweep import run
settings = run.Settings(0.5, num_samples=3000, selection_samples=20, alpha=0.001, bound="two-sided", seed=1)
source = run.Source(**{**test_run.SOURCE.__dict__, "labels": [0] * 40})
print("ready", flush=True)
try:
    run.certify_dataset(
        options["out"], source, settings, range(40), mesh=devices.noise_mesh(), batch_size=options["batch_size"],
        shard=shard, checkpoint_every=options["every"], on_update=lambda _: print("step", flush=True),
    )
except run.Interrupted as stop:
    import os
    os._exit(128 + stop.signal_number)
if "coordinator" in options:
    devices.leave_job()
"""


def start(**options):
    """A process that runs the sweep; it prints "ready" before it begins, and "step" after every step."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps({"batch_size": 16, "every": 0.01, **options})],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


def await_steps(process, number):
    """Waits until a process has begun its sweep and done a number of steps, or has ended."""
    for _ in range(number + 2):  # after "ready" comes a first "step" of what was there
        process.stdout.readline()


def kill(process):
    """SIGKILL, at once."""
    process.kill()
    process.communicate()


def finish(process, timeout=240):
    """Exit code and stderr."""
    _, err = process.communicate(timeout=timeout)
    return process.returncode, err


def comparable(folder):
    """Rows without what may differ from run to run."""
    rows = records.read_results(folder).rows
    return [{**row.__dict__, "seconds": 0} for row in rows]


def kill_and_resume(out, kills, rng):
    """Starts a sweep, kills it at a random moment, starts it again, ...; the last is left to finish.

    The moment is counted in steps, which begin short and double in length, and then in milliseconds, so that the
    first kill comes before the end on any machine. Returns the number of kills.
    """
    done = 0
    while True:
        process = start(out=str(out), batch_size=4)
        if done == kills:
            code, err = finish(process)
            assert code == 0, err
            return done
        await_steps(process, rng.randrange(13))  # 4 + 8 + ... rows: less than a third of the sweep
        time.sleep(rng.uniform(0, 0.1))
        kill(process)
        if process.returncode != -signal.SIGKILL:
            assert process.returncode == 0
            return done
        done += 1


def main():
    """Kills again and again, on as many folders as it takes; says whether all rows were right."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as root:
        code, err = finish(start(out=f"{root}/whole", batch_size=500, every=60))
        assert code == 0, err
        whole = comparable(f"{root}/whole")
        kills = folders = 0
        while kills < options.kills:
            out = Path(root) / f"killed-{folders}"
            kills += kill_and_resume(out, min(10, options.kills - kills), rng)
            folders += 1
            assert comparable(out) == whole, f"rows differ after {kills} kills"
            print(f"{kills} kills over {folders} sweeps: rows equal", flush=True)


if __name__ == "__main__":
    main()
