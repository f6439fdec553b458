"""Several processes: jax.distributed, shards, and deaths."""

import random
import signal
import socket
import time

import pytest

from jaxsmooth.sweep import records
from tests.multidevice.jobs import await_steps, comparable, finish, kill, kill_and_resume, start


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("jobs") / "whole"
    code, err = finish(start(out=str(out), batch_size=500, every=60))
    assert code == 0, err
    rows = comparable(out)
    assert len(rows) == 40
    return rows


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_two_processes_of_a_job_give_the_rows_of_one(tmp_path, whole):
    coordinator = f"127.0.0.1:{free_port()}"
    processes = [
        start(out=str(tmp_path / "r"), coordinator=coordinator, process=i, devices=2) for i in range(2)
    ]
    for process in processes:
        code, err = finish(process)
        assert code == 0, err
    assert comparable(tmp_path / "r") == whole
    assert {name.split("-")[0] for name in records.part_names(tmp_path / "r")} == {"00000", "00001"}


def test_losing_one_process_of_a_job_costs_only_its_work(tmp_path, whole):
    """The other is not held up; starting the job again completes it."""
    coordinator = f"127.0.0.1:{free_port()}"
    processes = [
        start(out=str(tmp_path / "r"), coordinator=coordinator, process=i, batch_size=4) for i in range(2)
    ]
    await_steps(processes[1], 4)
    kill(processes[1])
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        done = {row["index"] for row in comparable(tmp_path / "r")} if (tmp_path / "r").exists() else set()
        if done >= set(range(0, 40, 2)):
            break
        time.sleep(0.2)
    assert done >= set(range(0, 40, 2))
    kill(processes[0])  # it waits for the lost one when it leaves
    coordinator = f"127.0.0.1:{free_port()}"
    processes = [start(out=str(tmp_path / "r"), coordinator=coordinator, process=i) for i in range(2)]
    for process in processes:
        code, err = finish(process)
        assert code == 0, err
    assert comparable(tmp_path / "r") == whole


def test_killed_again_and_again_ends_with_the_same_rows(tmp_path, whole):
    """SIGKILL at random moments, with a write at every step, so that many kills fall into a write."""
    assert kill_and_resume(tmp_path / "r", kills=4, rng=random.Random(0)) > 0
    assert comparable(tmp_path / "r") == whole


def test_sigterm_finishes_the_step_and_writes(tmp_path, whole):
    process = start(out=str(tmp_path / "r"), batch_size=4, every=60)
    await_steps(process, 4)
    process.send_signal(signal.SIGTERM)
    code, err = finish(process)
    assert code == 143, err
    assert (tmp_path / "r" / "partial").exists() or comparable(tmp_path / "r")
    code, err = finish(start(out=str(tmp_path / "r")))
    assert code == 0, err
    assert comparable(tmp_path / "r") == whole
