"""Slurm: its options, its absence, and a real cluster of this machine."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from pydantic import ValidationError
from sweep_commands import (
    SECONDS_TO_WAIT,
    list_running,
    read_parent,
    read_runs,
    read_variable,
    run_sweep_command,
    start_sweep,
    wait_for,
)

from vlprompt.experiments.events import Notice, SweepProgress
from vlprompt.experiments.schedulers import slurm
from vlprompt.experiments.schedulers.in_process import InProcess
from vlprompt.experiments.schedulers.scheduler import JobPhase
from vlprompt.experiments.schedulers.slurm import Slurm, SlurmOptions
from vlprompt.experiments.sweeps.combinations import resolve_sweep
from vlprompt.experiments.sweeps.options import SweepOptions
from vlprompt.experiments.sweeps.supervisor import run_sweep
from vlprompt.experiments.sweeps.worker import WorkerJob

sys.path.insert(0, str(Path(__file__).parents[2]))
from tools.slurm_node import SlurmNode, find_obstacle, start_node

SWEEP = "method=coop,linear", "dataset=digits", "shots=1,2", "seed=1,2"
ONE_RUN = "method=coop", "dataset=digits", "shots=1", "seed=1"
SLOW_METHOD = "method=slow_method:Slow", "dataset=digits", "backbone=glyph/random", "shots=1"
FILES = "prompt.safetensors", "answers.safetensors"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmNode]:
    if obstacle := find_obstacle():
        pytest.skip(f"Slurm can't be started: {obstacle}")
    with start_node(tmp_path_factory.mktemp("slurm")) as node, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", node.environment["SLURM_CONF"])
        yield node


def find_pid(place: str) -> int:
    match = re.search(r"process (\d+)", place)
    assert match is not None
    return int(match[1])


def make_configs(epochs: int):
    return resolve_sweep(["coop"], [1, 2], [1], dataset="digits", overrides=[f"train.epochs={epochs}"])


def list_steps(folder: Path) -> list[list[str]]:
    return [path.read_text().splitlines() for path in folder.glob("coop*/steps.jsonl")]


def read_files(folder: Path) -> dict[str, bytes]:
    paths = [path for name in FILES for path in folder.glob(f"*/{name}")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_options_refuse_unknown_names_and_impossible_values() -> None:
    with pytest.raises(ValidationError, match="partitoin"):
        SlurmOptions.model_validate({"partitoin": "gpu"})
    with pytest.raises(ValidationError, match="minutes"):
        SlurmOptions(minutes=0)


def test_without_slurm_one_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OSError, match="expected Slurm's commands, got no sbatch"):
        Slurm(2, tmp_path / "jobs")
    assert not (tmp_path / "jobs").exists()


FAKE_SLURM = {"sbatch": "echo Submitted batch job 7", "srun": "", "scancel": "", "squeue": 'cat "$0.answer"'}


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slurm's commands as scripts, of which squeue prints a file; it fails without one."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, line in FAKE_SLURM.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder / "squeue.answer"


def submit_one(folder: Path, **options: float) -> tuple[Slurm, str]:
    scheduler = Slurm(1, folder / "jobs", seconds_between_queries=0.0, **options)
    (handle,) = scheduler.submit(WorkerJob(str(folder), "list", "call"), 1)
    return scheduler, handle


def answer(file: Path, handle: str, state: str) -> None:
    number, _, task = handle.partition("_")
    file.write_text(f"{number}|{task or 'N/A'}|{state}|node1|\n")


def test_a_controller_that_is_silent_for_long_is_one_error(tmp_path: Path, fake: Path) -> None:
    scheduler, handle = submit_one(tmp_path)
    answer(fake, handle, "RUNNING")
    assert scheduler.poll(handle).phase is JobPhase.RUNNING
    fake.unlink()
    assert scheduler.poll(handle).phase is JobPhase.RUNNING  # as while the controller restarts
    scheduler.seconds_to_answer = 0.0
    with pytest.raises(OSError, match=r"got none for 0 seconds .*same command again when squeue works"):
        scheduler.poll(handle)
    scheduler.cancel(handle)
    scheduler.close()  # neither waits nor raises


def test_a_preempted_job_waits_until_slurm_queues_it_again_or_does_not(
    tmp_path: Path, fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler, handle = submit_one(tmp_path)
    for state, phase in [
        ("RUNNING", JobPhase.RUNNING),
        ("PREEMPTED", JobPhase.WAITING),
        ("PENDING", JobPhase.WAITING),
        ("NODE_FAIL", JobPhase.WAITING),
    ]:
        answer(fake, handle, state)
        assert scheduler.poll(handle).phase is phase
    monkeypatch.setattr(slurm, "SECONDS_TO_REQUEUE", 0.0)
    ended = scheduler.poll(handle)
    assert ended.phase is JobPhase.ENDED
    assert "NODE_FAIL" in ended.error


@pytest.mark.parametrize(
    ("option", "error"),
    [
        ("partitoin=gpu", "--on slurm: unknown option 'partitoin'"),
        ("minutes=0", "--on slurm: minutes: expected greater than or equal to 1, got 0"),
        ("minutes", "--on-option: expected KEY=VALUE, got 'minutes'"),
        ("cpus=many", "--on slurm: cpus: expected a valid integer"),
    ],
)
def test_a_wrong_option_is_one_error_before_anything_is_written(type_in, tmp_path: Path, option: str, error: str):
    code, text = type_in("sweep", *ONE_RUN, "--on", "slurm", "--on-option", option, "--out", tmp_path / "runs")
    assert code == 2
    assert error in text
    assert not (tmp_path / "runs").exists()


def test_a_sweep_without_slurm_is_one_error_before_anything_is_written(type_in, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, text = type_in("sweep", *ONE_RUN, "--on", "slurm", "--out", tmp_path / "runs")
    assert code != 0
    assert text.count("expected Slurm's commands, got no sbatch, srun, squeue, scancel") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_the_command_runs_a_grid_on_the_cluster(type_in, tmp_path: Path, node: SlurmNode) -> None:
    code, text = type_in("sweep", *SWEEP, "--on", "slurm", "--jobs", "2", "--out", tmp_path / "runs")
    assert code == 0, text
    assert "8 of 8 runs" in text
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == 8


@pytest.mark.slow
def test_a_killed_worker_is_reported_and_another_goes_on(tmp_path: Path, node: SlurmNode) -> None:
    notices, killed = list[Notice](), list[int]()

    def kill(event: object) -> None:
        if isinstance(event, Notice):
            notices.append(event)
        if isinstance(event, SweepProgress) and not killed and any(run.n_done > 5 for run in event.running):
            killed.append(next(find_pid(run.place) for run in event.running if run.n_done > 5))
            os.kill(killed[0], signal.SIGKILL)

    scheduler = Slurm(2, tmp_path / "jobs", seconds_between_queries=0.5)
    report = run_sweep(make_configs(400), SweepOptions(tmp_path / "runs"), scheduler, kill)
    assert killed
    assert all(report.results)
    assert not report.errors
    assert any("another worker goes on" in str(notice) for notice in notices), notices
    assert all(steps == sorted(set(steps), key=steps.index) for steps in list_steps(tmp_path / "runs"))


@pytest.mark.slow
def test_after_a_killed_command_a_second_one_makes_no_run_twice(tmp_path: Path, node: SlurmNode) -> None:
    runs, words = tmp_path / "runs", ["method=coop", "dataset=digits", "shots=1", "seed=1,2", "train.epochs=400"]
    command = [sys.executable, "-P", "-c", "from vlprompt.cli.app import main; main()", "sweep", *words]
    first = subprocess.Popen(
        [*command, "--on", "slurm", "--out", str(runs)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list(runs.glob(".sweep/claims/*/progress.json")):
        assert time.monotonic() < deadline
        assert first.poll() is None
        time.sleep(0.1)
    first.kill()
    first.wait()
    results = dict[Path, int]()

    def remember(event: object) -> None:
        for path in runs.glob("*/result.json"):
            results.setdefault(path, path.stat().st_ino)

    scheduler = Slurm(2, tmp_path / "jobs", seconds_between_queries=0.5)
    report = run_sweep(make_configs(400), SweepOptions(runs), scheduler, remember)
    assert all(report.results)
    assert not report.errors
    assert results
    assert all(path.stat().st_ino == number for path, number in results.items())  # each was written once
    assert all(steps == sorted(set(steps), key=steps.index) for steps in list_steps(runs))


@pytest.mark.slow
def test_a_preempted_job_saves_its_state_and_goes_on(tmp_path: Path, node: SlurmNode) -> None:
    configs = make_configs(800)
    run_sweep(configs, SweepOptions(tmp_path / "here"), InProcess())
    scheduler = Slurm(2, tmp_path / "jobs", SlurmOptions(partition="main"), seconds_between_queries=0.5)
    signals = list[str]()
    seen: dict[str, dict[int, list[int]]] = {}  # run -> process -> steps done, as they were seen

    def preempt(event: object) -> None:
        running = event.running if isinstance(event, SweepProgress) else ()
        for run in running:
            if run.activity == "training":
                seen.setdefault(run.name, {}).setdefault(find_pid(run.place), []).append(run.n_done)
        if running and all(run.n_done > 5 for run in running) and not signals:
            signals.extend(node.run("squeue", "--noheader", "--array", "--format=%i").split())
            for job in signals:
                node.run("scancel", "--signal=USR2", job)

    report = run_sweep(configs, SweepOptions(tmp_path / "there"), scheduler, preempt, seconds_between_looks=0.1)
    assert signals
    assert not report.errors
    assert all(report.results)
    resumed = [list(processes.values()) for processes in seen.values() if len(processes) > 1]
    assert resumed, seen
    for before, *others in resumed:
        assert before[-1] > 5
        assert all(after[0] >= before[-1] for after in others), seen  # progress is written at once, then each second
    logs = "".join(path.read_text() for path in (tmp_path / "jobs").glob("*_log.out"))
    assert "Requeued job" in logs or "queued again" in logs, logs
    for folder in (tmp_path / "there").glob("coop*"):
        steps = (folder / "steps.jsonl").read_text().splitlines()
        assert steps == sorted(set(steps), key=steps.index)  # no step was made twice
    assert read_files(tmp_path / "there") == read_files(tmp_path / "here")


@pytest.mark.slow
@pytest.mark.usefixtures("slow_method")
def test_a_job_that_reaches_its_time_limit_saves_its_state_and_goes_on(tmp_path: Path, node: SlurmNode) -> None:
    words = *SLOW_METHOD, "seed=1", "train.epochs=500"
    run_sweep_command(tmp_path / "here", *words)
    limit = "--on-option", "minutes=1", "--on-option", "seconds_to_save=15"
    text = run_sweep_command(tmp_path / "there", *words, "--on", "slurm", *limit, SECONDS_PER_STEP="0.1")
    assert "another worker" not in text  # it is the same job, not one that died
    logs = "".join(path.read_text() for path in (tmp_path / "there" / ".sweep" / "logs").glob("*_log.out"))
    assert "queued again, with the state of its run saved" in logs, logs
    assert read_runs(tmp_path / "there") == read_runs(tmp_path / "here")


@pytest.mark.slow
@pytest.mark.usefixtures("slow_method")
def test_a_node_that_goes_down_loses_its_run_to_the_other(tmp_path: Path, node: SlurmNode) -> None:
    words = *SLOW_METHOD, "seed=1,2", "train.epochs=200"
    run_sweep_command(tmp_path / "here", *words)
    runs = tmp_path / "there"
    with start_node(tmp_path / "slurm", n_cpus=1, n_nodes=2) as pair:
        variables = {**pair.environment, "SECONDS_PER_STEP": "0.1"}
        command = start_sweep(runs, *words, "--on", "slurm", "--jobs", 2, **variables)
        running = wait_for(lambda: len(list_running(runs)) == 2 and list_running(runs), command)
        nodes = {key: read_variable(owner.pid, "SLURMD_NODENAME") for key, (owner, _) in running.items()}
        assert sorted(nodes.values()) == ["node1", "node2"]
        pair.stop_slurmd("node2")
        [victim] = [owner for key, (owner, _) in running.items() if nodes[key] == "node2"]
        for pid in (read_parent(victim.pid), victim.pid):  # Slurm's process of the step, and the worker
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: "down" in pair.run("sinfo", "--noheader", "-n", "node2", "-o", "%T"), command)
        assert command.wait(SECONDS_TO_WAIT) == 0, (tmp_path / "there.log").read_text()
        assert "down" in pair.run("sinfo", "--noheader", "-n", "node2", "-o", "%T")
    assert read_runs(runs) == read_runs(tmp_path / "here")


def has_saved_its_jobs(node: SlurmNode) -> bool:
    """Whether the controller has written its state since the last job began, which it does seconds later."""
    times = node.run("squeue", "--noheader", "--array", "--Format=StartTime").split()
    saved = (node.folder / "state" / "job_state").stat().st_mtime
    return "N/A" not in times and all(saved > datetime.fromisoformat(time).timestamp() + 1 for time in times)


@pytest.mark.slow
@pytest.mark.usefixtures("slow_method")
def test_a_controller_that_crashes_and_comes_back_loses_nothing(tmp_path: Path, node: SlurmNode) -> None:
    words = *SLOW_METHOD, "seed=1,2", "train.epochs=200"
    run_sweep_command(tmp_path / "here", *words)
    runs = tmp_path / "there"
    command = start_sweep(runs, *words, "--on", "slurm", "--jobs", 2, SECONDS_PER_STEP="0.1")
    n_done = {key: n for key, (_, n) in wait_for(lambda: list_running(runs), command).items()}
    wait_for(lambda: has_saved_its_jobs(node), command)  # else it starts them again beside themselves
    node.stop_controller()
    with pytest.raises(subprocess.CalledProcessError):
        node.run("squeue", "--noheader")
    wait_for(lambda: any(n > n_done.get(key, n) for key, (_, n) in list_running(runs).items()), command)
    node.start_controller()
    assert command.wait(SECONDS_TO_WAIT) == 0, (tmp_path / "there.log").read_text()
    assert "another worker" not in (tmp_path / "there.log").read_text()  # nobody took the jobs for dead
    assert read_runs(runs) == read_runs(tmp_path / "here")


@pytest.mark.slow
def test_a_partition_that_is_not_there_is_one_error(tmp_path: Path, node: SlurmNode) -> None:
    scheduler = Slurm(1, tmp_path / "jobs", SlurmOptions(partition="moon"))
    with pytest.raises(OSError, match="invalid partition"):
        run_sweep(make_configs(1), SweepOptions(tmp_path / "runs"), scheduler)
