"""Slurm: its options, its absence, and a real cluster of this machine."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from vlprompt.experiments.events import SweepProgress
from vlprompt.experiments.schedulers.in_process import InProcess
from vlprompt.experiments.schedulers.slurm import Slurm, SlurmOptions
from vlprompt.experiments.sweeps.combinations import resolve_sweep
from vlprompt.experiments.sweeps.options import SweepOptions
from vlprompt.experiments.sweeps.supervisor import run_sweep

sys.path.insert(0, str(Path(__file__).parents[2]))
from tools.slurm_node import SlurmNode, find_obstacle, start_node

FILES = "prompt.safetensors", "answers.safetensors"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmNode]:
    if obstacle := find_obstacle():
        pytest.skip(f"Slurm can't be started: {obstacle}")
    with start_node(tmp_path_factory.mktemp("slurm")) as node, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", node.environment["SLURM_CONF"])
        yield node


def make_configs(epochs: int):
    return resolve_sweep(["coop"], [1, 2], [1], dataset="digits", overrides=[f"train.epochs={epochs}"])


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


@pytest.mark.slow
def test_a_preempted_job_saves_its_state_and_goes_on(tmp_path: Path, node: SlurmNode) -> None:
    configs = make_configs(800)
    run_sweep(configs, SweepOptions(tmp_path / "here"), InProcess())
    scheduler = Slurm(2, tmp_path / "jobs", SlurmOptions(partition="main"), seconds_between_queries=0.5)
    signals = list[str]()

    def preempt(event: object) -> None:
        is_under_way = isinstance(event, SweepProgress) and any(run.n_done > 5 for run in event.running)
        if is_under_way and not signals:
            signals.extend(node.run("squeue", "--noheader", "--array", "--format=%i").split())
            for job in signals:
                node.run("scancel", "--signal=USR2", job)

    report = run_sweep(configs, SweepOptions(tmp_path / "there"), scheduler, preempt)
    assert signals
    assert not report.errors
    assert all(report.results)
    logs = "".join(path.read_text() for path in (tmp_path / "jobs").glob("*_log.out"))
    assert "Requeued job" in logs or "queued again" in logs, logs
    for folder in (tmp_path / "there").glob("coop*"):
        steps = (folder / "steps.jsonl").read_text().splitlines()
        assert steps == sorted(set(steps), key=steps.index)  # no step was made twice
    assert read_files(tmp_path / "there") == read_files(tmp_path / "here")


@pytest.mark.slow
def test_a_partition_that_is_not_there_is_one_error(tmp_path: Path, node: SlurmNode) -> None:
    scheduler = Slurm(1, tmp_path / "jobs", SlurmOptions(partition="moon"))
    with pytest.raises(OSError, match="invalid partition"):
        run_sweep(make_configs(1), SweepOptions(tmp_path / "runs"), scheduler)
