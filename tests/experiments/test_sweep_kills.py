"""Sweeps whose processes are killed, stopped, or on machines whose clocks differ: the table is that of one process."""

import os
import random
import signal
import subprocess
from functools import partial
from pathlib import Path

import pytest
from sweep_commands import (
    SECONDS_TO_WAIT,
    list_running,
    read_files,
    read_parent,
    read_runs,
    run_sweep_command,
    start_sweep,
    wait_for,
)

from vlprompt.experiments.sweeps.claims import BEATS_PER_PATIENCE

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("slow_method")]
SMALL = "backbone=glyph/random", "dataset=digits"
GRID = "method=coop,linear,zero_shot", *SMALL, "shots=1,2", "seed=1,2,3", "train.epochs=20"
N_RUNS = 18
ONE_RUN = "method=slow_method:Slow", *SMALL, "shots=1", "seed=1", "train.epochs=150"
HASTE = "--patience", 4, "--save-every", 0.2
# another machine: its name and clocks; processes of one are not looked up by the other
FAR = """
import socket, time
HOUR = 3600
wall, counter = time.time, time.monotonic
time.time, time.monotonic = lambda: wall() + HOUR, lambda: counter() + HOUR
socket.gethostname = lambda: "far"
"""


def test_eight_processes_with_kills_make_the_table_of_one(tmp_path: Path) -> None:
    # with a limit of its own no worker trains in micro-batches, which round differently, where little memory is free
    grid = *GRID, "--memory-limit", 4
    run_sweep_command(tmp_path / "one", *grid)
    runs, log, killed, chance = tmp_path / "eight", tmp_path / "eight.log", set[str](), random.Random(1)

    def kill_one(command: "subprocess.Popen[bytes]") -> bool:
        """Kill a worker of the command; no run twice, as one whose process dies again counts as the cause."""
        running = list_running(runs).items()
        victims = [(k, o.pid) for k, (o, _) in running if k not in killed and read_parent(o.pid) == command.pid]
        if victims:
            key, pid = chance.choice(victims)
            killed.add(key)
            os.kill(pid, signal.SIGKILL)
        return bool(victims)

    for is_first in (True, False):
        command = start_sweep(runs, *grid, "--jobs", 8)
        for _ in range(2):
            n_told = log.read_text().count("another worker goes on")
            wait_for(partial(kill_one, command), command)
            wait_for(lambda n=n_told: log.read_text().count("another worker goes on") > n, command)
        if is_first:
            command.kill()
            command.wait()
            assert len(read_runs(runs)) < N_RUNS
    assert command.wait(SECONDS_TO_WAIT) == 0, log.read_text()
    assert len(killed) == 4
    assert len(read_runs(runs)) == N_RUNS
    assert read_runs(runs) == read_runs(tmp_path / "one")


def begin_and_stop(runs: Path) -> "tuple[subprocess.Popen[bytes], Path]":
    """Start a sweep of one run, and stop its process in the middle."""
    command = start_sweep(runs, *ONE_RUN, *HASTE, SECONDS_PER_STEP="0.1")
    wait_for(lambda: list_running(runs), command)
    os.kill(command.pid, signal.SIGSTOP)
    [folder] = runs.glob("Slow*")
    assert not (folder / "result.json").exists()
    return command, folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, slow_method_folder: Path) -> Path:
    runs = tmp_path_factory.mktemp("alone") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(slow_method_folder), prepend=os.pathsep)
        run_sweep_command(runs, *ONE_RUN)
    return runs


def test_the_run_of_a_stopped_process_is_made_by_another_and_stays_as_it_is(tmp_path: Path, alone: Path) -> None:
    runs = tmp_path / "runs"
    stopped, folder = begin_and_stop(runs)
    try:
        (folder / ".lock").unlink()  # as seen from a machine to which the file system passes no locks
        run_sweep_command(runs, *ONE_RUN, *HASTE)
        files = read_files(folder)
    finally:
        os.kill(stopped.pid, signal.SIGCONT)
    assert stopped.wait(SECONDS_TO_WAIT) == 0
    assert read_files(folder) == files
    assert read_runs(runs) == read_runs(alone)


def test_a_locked_folder_of_a_stopped_process_waits_for_it_and_says_so(tmp_path: Path, alone: Path) -> None:
    runs, log = tmp_path / "runs", tmp_path / "second.log"
    stopped, _ = begin_and_stop(runs)
    try:
        second = start_sweep(runs, *ONE_RUN, *HASTE, log=log)
        wait_for(lambda: "got one that another process has locked" in log.read_text(), second)
    finally:
        os.kill(stopped.pid, signal.SIGCONT)
    assert stopped.wait(SECONDS_TO_WAIT) == 0
    assert second.wait(SECONDS_TO_WAIT) == 0, log.read_text()
    assert read_runs(runs) == read_runs(alone)


def test_a_machine_whose_clock_is_an_hour_off_shares_the_runs(tmp_path: Path) -> None:
    words = "method=slow_method:Slow", *SMALL, "shots=1", "seed=1,2", "train.epochs=300", *HASTE
    run_sweep_command(tmp_path / "one", *words)
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "sitecustomize.py").write_text(FAR)
    path = os.pathsep.join([str(tmp_path / "far"), os.environ["PYTHONPATH"]])
    runs, tokens = tmp_path / "runs", dict[str, set[str]]()
    near = start_sweep(runs, *words, SECONDS_PER_STEP="0.1")
    far = start_sweep(runs, *words, log=tmp_path / "far.log", PYTHONPATH=path, SECONDS_PER_STEP="0.1")

    def have_beaten() -> bool:
        """Whether both have had their runs for longer than the patience."""
        for key, (owner, _) in list_running(runs).items():
            tokens.setdefault(key, set()).add(owner.token)
        beats = [int(path.name.partition("-")[2]) for path in runs.glob(".sweep/claims/[!.]*/beat-*")]
        return len(beats) == 2 and min(beats) > 1.5 * BEATS_PER_PATIENCE

    wait_for(have_beaten, near)
    assert [len(one) for one in tokens.values()] == [1, 1]
    assert sum(owner.host == "far" for owner, _ in list_running(runs).values()) == 1
    far.kill()
    far.wait()
    assert near.wait(SECONDS_TO_WAIT) == 0, (tmp_path / "runs.log").read_text()
    assert read_runs(runs) == read_runs(tmp_path / "one")
