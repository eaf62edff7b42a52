"""The jobs of Slurm by submitit's local executor, which queues a preempted job again as Slurm does."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from sweep_commands import list_running, read_runs

from vlprompt.experiments.events import SweepProgress
from vlprompt.experiments.schedulers.in_process import InProcess
from vlprompt.experiments.schedulers.scheduler import JobPhase, JobState
from vlprompt.experiments.schedulers.slurm import SlurmWorker
from vlprompt.experiments.sweeps.combinations import resolve_sweep
from vlprompt.experiments.sweeps.options import SweepOptions
from vlprompt.experiments.sweeps.supervisor import run_sweep
from vlprompt.experiments.sweeps.worker import WorkerJob

submitit = pytest.importorskip("submitit")


class LocalJobs:
    """A scheduler whose jobs are processes that submitit starts, pickled as for a cluster."""

    name, n_workers = "local", 2

    def __init__(self, folder: Path) -> None:
        self.folder, self.jobs = folder, dict[str, Any]()
        self.executor = submitit.LocalExecutor(folder, python=f"{sys.executable} -P")
        self.executor.update_parameters(timeout_min=30)

    def submit(self, job: WorkerJob, n_jobs: int) -> list[str]:
        jobs = [self.executor.submit(SlurmWorker(job)) for _ in range(n_jobs)]
        self.jobs |= {one.job_id: one for one in jobs}
        return [one.job_id for one in jobs]

    def poll(self, handle: str) -> JobState:
        job = self.jobs[handle]
        if not job.done():
            return JobState(JobPhase.RUNNING)
        error = job.exception()
        return JobState(JobPhase.ENDED, "" if error is None else str(error))

    def cancel(self, handle: str) -> None:
        self.jobs[handle].cancel()

    def close(self) -> None:
        for job in self.jobs.values():
            job.wait()


@pytest.mark.slow
def test_a_preempted_job_goes_on_in_another_process_with_the_same_bits(tmp_path: Path) -> None:
    configs = resolve_sweep(["coop"], [1, 2], [1], dataset="digits", overrides=["train.epochs=400"])
    run_sweep(configs, SweepOptions(tmp_path / "here"), InProcess())
    preempted: dict[str, int] = {}  # run -> process

    def preempt(event: object) -> None:
        if isinstance(event, SweepProgress) and not preempted:
            for run, (owner, n_done) in list_running(tmp_path / "there").items():
                if n_done > 5:
                    preempted[run] = owner.pid
                    os.kill(owner.pid, signal.SIGUSR2)

    scheduler, seen = LocalJobs(tmp_path / "jobs"), dict[str, set[int]]()

    def watch(event: object) -> None:
        preempt(event)
        for run, (owner, _) in list_running(tmp_path / "there").items():
            seen.setdefault(run, set()).add(owner.pid)

    options = SweepOptions(tmp_path / "there")
    report = run_sweep(configs, options, scheduler, watch, seconds_between_looks=0.1)
    assert preempted
    assert not report.errors
    assert all(report.results)
    logs = "".join(path.read_text() for path in (tmp_path / "jobs").rglob("*_log.out"))
    assert "Requeued job" in logs, logs
    assert any(len(seen[run]) > 1 for run in preempted), seen  # another process took the run on
    for folder in (tmp_path / "there").glob("coop*"):
        steps = (folder / "steps.jsonl").read_text().splitlines()
        assert steps == sorted(set(steps), key=steps.index)  # no step was made twice
    assert read_runs(tmp_path / "there") == read_runs(tmp_path / "here")
