"""What sweeps leave in their folder: what workers may still need stays, the rest goes."""

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from vlprompt.config.run_config import RunConfig
from vlprompt.experiments.events import DatasetOpened, Event, Notice, RunFinished, StepDone
from vlprompt.experiments.schedulers.in_process import InProcess
from vlprompt.experiments.sweeps.claims import Claims
from vlprompt.experiments.sweeps.combinations import resolve_sweep
from vlprompt.experiments.sweeps.options import SweepOptions
from vlprompt.experiments.sweeps.owner import Owner
from vlprompt.experiments.sweeps.run_names import get_run_folder
from vlprompt.experiments.sweeps.supervisor import run_sweep
from vlprompt.experiments.sweeps.sweep_folder import MAX_ENDED_CALLS, Outcome, SweepCall, SweepFolder
from vlprompt.experiments.sweeps.worker import WorkerJob, work

BACKBONE, DEEP = "glyph/random", ["train.epochs=1", "method.depth=99"]
METHOD = """
import warnings
from vlprompt.methods import ZeroShot

class Warned(ZeroShot):
    def __init__(self, clip):
        super().__init__(clip)
        warnings.warn("the weights are tired")
"""


def make_configs(*seeds: int) -> list[RunConfig]:
    return resolve_sweep(["coop"], [1], list(seeds), dataset="digits", backbone=BACKBONE, overrides=["train.epochs=20"])


class Elsewhere(InProcess):
    """A worker that nobody listens to, as in another process."""

    def submit(self, job: WorkerJob, n_jobs: int) -> list[str]:
        work(job, self.stop)
        return ["0"]


def begin(folder: SweepFolder, name: str, *seeds: int) -> SweepCall:
    """Write a call of a command that was killed."""
    dead = replace(Owner.create(), process_start="long ago")
    return folder.begin_call(name, dead, make_configs(*seeds), [])


def test_what_workers_of_a_killed_command_may_need_stays(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    closed, through, begun, open_ = (begin(folder, name, seed) for seed, name in enumerate("abcd", 1))
    closed.end()
    [key] = (config.hash for config in make_configs(2))
    through.write_outcome(Outcome(key, "it failed"))
    done = get_run_folder(tmp_path, make_configs(3)[0]).path
    done.mkdir()
    (done / "result.json").touch()
    latest = [begin(folder, f"latest{i}", 5) for i in range(MAX_ENDED_CALLS)]
    assert len(folder.list_names()) == 5
    folder.tidy()
    assert [call.exists() for call in (closed, through, begun, open_)] == [False, False, False, True]
    assert all(call.exists() for call in latest)
    assert set(folder.list_names()) == {open_.read_list_name(), latest[0].read_list_name()}
    for call in (open_, latest[0]):
        assert folder.read_list(call.read_list_name())
    job = WorkerJob(str(tmp_path), closed.read_list_name(), closed.path.name)
    assert work(job, threading.Event()) == 0  # one that was queued for long


def test_a_worker_whose_call_goes_ends(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    call, finished = begin(folder, "call", 1, 2), list[RunFinished]()

    def remove(event: Event) -> None:
        if isinstance(event, RunFinished):
            finished.append(event)
            shutil.rmtree(call.path)

    job = WorkerJob(str(tmp_path), call.read_list_name(), "call")
    assert work(job, threading.Event(), remove) == 0
    assert len(finished) == 1
    assert not call.exists()


def read_all(folder: Path) -> dict[str, tuple[bytes, int]]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


@pytest.mark.parametrize("save_every", [0.0, 1000.0])
def test_a_worker_that_lost_its_run_writes_nothing_more_of_it(tmp_path: Path, save_every: float) -> None:
    folder, [config] = SweepFolder(tmp_path), make_configs(1)
    call, before = begin(folder, "call", 1), dict[str, tuple[bytes, int]]()
    other: Claims = folder.open_claims(Owner.create(), patience=-1)
    path, n_steps = get_run_folder(tmp_path, config).path, list[int]()

    def steal(event: Event) -> None:
        if isinstance(event, StepDone):
            n_steps.append(event.step)
            if event.step == 7:
                assert other.take_over(config.hash)
                before.update(read_all(path))

    job = WorkerJob(str(tmp_path), call.read_list_name(), "call", {"save_every": save_every}, patience=0.01)
    assert work(job, threading.Event(), steal) == 0
    assert n_steps[-1] == 7
    assert "config.yaml" in before
    assert read_all(path) == before
    assert other.is_mine(config.hash)


def test_what_workers_elsewhere_have_to_tell_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "warned_method.py").write_text(METHOD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    configs = resolve_sweep(["warned_method:Warned"], [1], [1, 2], dataset="digits", backbone=BACKBONE)
    deep = resolve_sweep(["maple"], [1], [1], dataset="digits", backbone=BACKBONE, overrides=DEEP)
    events = list[Event]()
    report = run_sweep([*configs, *deep], SweepOptions(tmp_path / "runs"), Elsewhere(), events.append)
    assert not report.errors
    texts = [event.text for event in events if isinstance(event, Notice)]
    assert sum("the weights are tired" in text for text in texts) == 1
    assert sum("depth clipped from 99" in text for text in texts) == 1, texts
    assert sum(isinstance(event, DatasetOpened) for event in events) == 1
