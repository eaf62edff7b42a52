"""Workers that die, fail, wait and sleep: each run is made once, and nothing that it learns depends on it."""

import sys
from contextlib import ExitStack

import pytest

from vlprompt.experiments.events import Notice
from vlprompt.experiments.schedulers.in_process import InProcess
from vlprompt.experiments.schedulers.processes import Processes
from vlprompt.experiments.sweeps.combinations import resolve_sweep
from vlprompt.experiments.sweeps.options import SweepOptions
from vlprompt.experiments.sweeps.run_names import get_run_folder
from vlprompt.experiments.sweeps.supervisor import run_sweep
from vlprompt.results.run_folder import lock_folder
from vlprompt.runtime.errors import describe_error

METHOD = """
import os, signal
from vlprompt.methods import ZeroShot

class Mine(ZeroShot):
    def __init__(self, clip, mode: str = "works"):
        super().__init__(clip)
        with open(f"{mode}.log", "a") as log:
            log.write(f"{os.getpid()}\\n")
        if mode.startswith("dies"):
            os.kill(os.getpid(), signal.SIGKILL)
        if mode == "bug":
            raise TypeError("a bug")
        if mode == "mistake":
            raise ValueError("a mistake")
"""


@pytest.fixture
def choose_runs(tmp_path, monkeypatch):
    """A function that resolves a run of a method of the user's own for each mode."""
    (tmp_path / "worker_methods.py").write_text(METHOD)
    monkeypatch.chdir(tmp_path)
    yield lambda *modes: [
        resolve_sweep(["worker_methods:Mine"], [1], [1], dataset="digits", overrides=[f"method.mode={mode}"])[0]
        for mode in modes
    ]
    sys.modules.pop("worker_methods", None)


def count_attempts(folder, mode):
    return len((folder / f"{mode}.log").read_text().split())


def test_a_bug_is_tried_twice_and_a_mistake_once(tmp_path, choose_runs):
    report = run_sweep(choose_runs("bug", "mistake"), SweepOptions(tmp_path / "runs"), InProcess())
    assert sorted(report.errors) == [0, 1]
    assert "a bug" in report.errors[0]
    assert "a mistake" in report.errors[1]
    assert [count_attempts(tmp_path, mode) for mode in ("bug", "mistake")] == [2, 1]


def test_an_error_that_was_never_raised_is_its_message():
    """Such as that of a run whose process died."""
    assert describe_error(RuntimeError("its process died 2 times")) == "its process died 2 times"


@pytest.mark.slow
def test_runs_that_kill_their_process_stop_no_other(tmp_path, choose_runs):
    modes = ["dies", "dies_too", "bug", "mistake", "works"]
    notices = []

    def hear(event):
        if isinstance(event, Notice):
            notices.append(event.text)

    options = SweepOptions(tmp_path / "runs")
    report = run_sweep(choose_runs(*modes), options, Processes(2, tmp_path / "logs"), hear)
    assert sorted(report.errors) == [0, 1, 2, 3]
    assert report.results[4] is not None
    assert all("its process died 2 times" in report.errors[index] for index in (0, 1))
    assert [count_attempts(tmp_path, mode) for mode in modes[:4]] == [2, 2, 2, 1]
    assert sum("SIGKILL" in text for text in notices) == 4  # beside them the plan of the run that works


@pytest.mark.slow
def test_a_locked_run_is_left_until_it_is_free(tmp_path, choose_runs):
    [config] = choose_runs("works")
    options = SweepOptions(tmp_path / "runs")
    path = get_run_folder(options.runs_folder, config).path
    path.mkdir(parents=True)
    lock = ExitStack()
    lock.enter_context(lock_folder(path))

    def release_later(event):
        if (tmp_path / "works.log").exists() and count_attempts(tmp_path, "works") >= 2:
            lock.close()  # a worker has come to the locked folder, left it, and come again

    report = run_sweep([config], options, Processes(1, tmp_path / "logs"), release_later, seconds_between_looks=0.1)
    assert not report.errors
    assert report.results[0] is not None
    assert count_attempts(tmp_path, "works") >= 2
