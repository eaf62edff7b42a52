"""Sweeps whose processes are killed, stopped, or on machines whose clocks differ: the table is that of one process."""

import os
import random
import signal
import subprocess
from pathlib import Path

import pytest
from sweep_commands import list_running, read_files, read_runs, run_sweep_command, start_sweep, wait_for

pytestmark = pytest.mark.slow
SMALL = "backbone=glyph/random", "dataset=digits"
GRID = "method=coop,linear,zero_shot", *SMALL, "shots=1,2", "seed=1,2,3", "train.epochs=60"
ONE_RUN = "method=coop", *SMALL, "shots=1", "seed=1", "train.epochs=400"
# another machine: its name and clocks; processes of one are not looked up by the other
FAR = """
import socket, time
HOUR = {seconds}
wall, counter = time.time, time.monotonic
time.time, time.monotonic = lambda: wall() + HOUR, lambda: counter() + HOUR
socket.gethostname = lambda: "far"
"""


def test_eight_processes_with_kills_make_the_table_of_one(tmp_path: Path) -> None:
    run_sweep_command(tmp_path / "one", *GRID)
    runs, killed, chance = tmp_path / "eight", set[str](), random.Random(1)
    words = *GRID, "--jobs", 8
    command = start_sweep(runs, *words)

    def kill_one() -> bool:
        """Kill the worker of a run, none of which is killed twice: that would be one that kills its process."""
        victims = [(key, owner.pid) for key, (owner, _) in list_running(runs).items() if key not in killed]
        if victims:
            key, pid = chance.choice(victims)
            killed.add(key)
            os.kill(pid, signal.SIGKILL)
        return bool(victims)

    for _ in range(3):
        wait_for(kill_one, command)
    wait_for(lambda: list_running(runs), command)
    command.kill()
    command.wait()
    assert len(read_runs(runs)) < 18
    command = start_sweep(runs, *words)
    for _ in range(2):
        wait_for(kill_one, command)
    assert command.wait(240) == 0, (tmp_path / "eight.log").read_text()
    assert "another worker goes on" in (tmp_path / "eight.log").read_text()
    assert len(read_runs(runs)) == 18
    assert read_runs(runs) == read_runs(tmp_path / "one")


def begin_and_stop(runs: Path, *words: object) -> "tuple[subprocess.Popen[bytes], int, Path]":
    """Start a sweep of one run, and stop its worker in the middle."""
    command = start_sweep(runs, *ONE_RUN, "--jobs", 1, "--patience", 2, "--save-every", 0.2, *words)
    [(owner, _)] = wait_for(lambda: [one for one in list_running(runs).values() if one[1] > 20], command)
    os.kill(owner.pid, signal.SIGSTOP)
    [folder] = runs.glob("coop*")
    assert not (folder / "result.json").exists()
    return command, owner.pid, folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("alone") / "runs"
    run_sweep_command(runs, *ONE_RUN)
    return runs


def test_the_run_of_a_stopped_worker_is_made_by_another_and_stays_as_it_is(tmp_path: Path, alone: Path) -> None:
    command, pid, folder = begin_and_stop(tmp_path / "runs")
    try:
        (folder / ".lock").unlink()  # as seen from a machine to which the file system passes no locks
        wait_for((folder / "result.json").exists, command)
        files = read_files(folder)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert command.wait(240) == 0
    assert read_files(folder) == files
    assert read_runs(tmp_path / "runs") == read_runs(alone)


def test_a_locked_folder_of_a_stopped_worker_waits_for_it_and_says_so(tmp_path: Path, alone: Path) -> None:
    command, pid, _ = begin_and_stop(tmp_path / "runs")
    try:
        log = tmp_path / "runs.log"
        wait_for(lambda: "got one that another process has locked" in log.read_text(), command)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert command.wait(240) == 0, log.read_text()
    assert read_runs(tmp_path / "runs") == read_runs(alone)


@pytest.mark.parametrize("seconds", [3600, -3600])
def test_a_machine_whose_clock_is_an_hour_off_shares_the_runs(tmp_path: Path, seconds: int) -> None:
    words = "method=coop", *SMALL, "shots=1", "seed=1,2", "train.epochs=700", "--patience", 3, "--save-every", 0.2
    run_sweep_command(tmp_path / "one", *words)
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "sitecustomize.py").write_text(FAR.format(seconds=seconds))
    path = os.pathsep.join([str(tmp_path / "far"), *filter(None, [os.environ.get("PYTHONPATH")])])
    runs = tmp_path / "runs"
    near = start_sweep(runs, *words, "--jobs", 1)
    wait_for(lambda: list_running(runs), near)
    far = start_sweep(runs, *words, "--jobs", 1, log=tmp_path / "far.log", PYTHONPATH=path)
    both = wait_for(lambda: len(list_running(runs)) == 2 and list_running(runs), far)
    assert {owner.host for owner, _ in both.values()} == {
        "far",
        next(iter({o.host for o, _ in both.values()} - {"far"})),
    }
    owners = {key: {owner.token} for key, (owner, _) in both.items()}

    def is_through() -> bool:
        """Whether both runs are far on, each by the worker that began it: longer than the patience."""
        running = list_running(runs)
        for key, (owner, _) in running.items():
            owners[key].add(owner.token)
        return all(n_done > 400 for _, n_done in running.values()) or len(running) < 2

    wait_for(is_through, near)
    assert [len(tokens) for tokens in owners.values()] == [1, 1]
    [victim] = [owner for owner, _ in list_running(runs).values() if owner.host == "far"]
    far.kill()
    os.kill(victim.pid, signal.SIGKILL)
    assert near.wait(240) == 0, (tmp_path / "runs.log").read_text()
    assert read_runs(runs) == read_runs(tmp_path / "one")
