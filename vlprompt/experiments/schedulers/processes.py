"""Workers as processes of this machine."""

import math
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vlprompt.experiments.schedulers.logs import add_log_end
from vlprompt.experiments.schedulers.scheduler import JobPhase, JobState
from vlprompt.experiments.sweeps.worker import WorkerJob
from vlprompt.runtime.memory import measure_available

WORKER_CODE = "from vlprompt.experiments.sweeps.worker import main; main()"
SECONDS_TO_STOP = 60.0  # until a process that was asked to stop is killed


def name_devices(n_devices: int, visible: str | None) -> tuple[str, ...]:
    """Name the GPUs of this process as CUDA_VISIBLE_DEVICES does.

    Args:
        n_devices: that torch sees.
        visible: CUDA_VISIBLE_DEVICES of this process.
    """
    names = [name.strip() for name in visible.split(",")] if visible else [str(i) for i in range(n_devices)]
    return tuple(names[:n_devices])


def choose_device(devices: Sequence[str], place: int) -> str:
    """Return the GPU of the worker at a place; with more workers than GPUs, several share one evenly."""
    return devices[place % len(devices)]


class Processes:
    """A process for each worker, which shares out the CPUs; a worker ends with the command that started it.

    Args:
        n_workers: how many at once.
        log_folder: where each writes its log.
        devices: GPUs to share out, as CUDA_VISIBLE_DEVICES names them; none where the workers see what this one sees.
    """

    name = "processes"

    def __init__(self, n_workers: int, log_folder: Path, devices: Sequence[str] = ()) -> None:
        self.n_workers, self.log_folder = n_workers, log_folder
        self.n_threads = max(1, len(os.sched_getaffinity(0)) // n_workers)
        self.memory_limit_mb = measure_available(torch.device("cpu")) / n_workers
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.devices = tuple(devices)
        self._places: dict[str, int] = {}
        self._cancelled = set[str]()

    def submit(self, job: WorkerJob, n_jobs: int) -> list[str]:
        return [self._start(job) for _ in range(n_jobs)]

    def _start(self, job: WorkerJob) -> str:
        self.log_folder.mkdir(parents=True, exist_ok=True)
        index = self._choose_place()
        handle, job = str(len(self._processes)), replace(job, settings=self._share_memory(job), parent=os.getpid())
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.n_threads)}  # where no option says otherwise
        if self.devices:
            environment["CUDA_VISIBLE_DEVICES"] = choose_device(self.devices, index)
        with (self.log_folder / f"{handle}.log").open("wb") as log:
            self._processes[handle] = subprocess.Popen(
                [sys.executable, "-P", "-c", WORKER_CODE, job.to_json()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # a Ctrl-C goes to the command alone, which asks its workers to stop
            )
        self._places[handle] = index
        return handle

    def _share_memory(self, job: WorkerJob) -> dict[str, Any]:
        """Limit a worker on CPUs to its share of what was free at the start, where no option limits it."""
        has_limit = job.settings.get("memory_limit_mb", math.inf) < math.inf
        return job.settings if has_limit or self.devices else {**job.settings, "memory_limit_mb": self.memory_limit_mb}

    def _choose_place(self) -> int:
        """Return the lowest number of a worker that no running process has, so that devices are shared evenly."""
        taken = {self._places[handle] for handle, process in self._processes.items() if process.poll() is None}
        return next(index for index in range(len(taken) + 1) if index not in taken)

    def poll(self, handle: str) -> JobState:
        process = self._processes[handle]
        status, place = process.poll(), f"process {process.pid}"
        if status is None:
            return JobState(JobPhase.RUNNING, place=place)
        error = "" if status == 0 or handle in self._cancelled else self._describe_death(handle, status)
        return JobState(JobPhase.ENDED, error, place)

    def _describe_death(self, handle: str, status: int) -> str:
        how = f"signal {-status} ({signal.Signals(-status).name})" if status < 0 else f"exit status {status}"
        return add_log_end(f"worker {handle}: ended by {how}", self.log_folder / f"{handle}.log")

    def cancel(self, handle: str) -> None:
        process = self._processes[handle]
        if process.poll() is None:
            self._cancelled.add(handle)
            process.terminate()

    def close(self) -> None:
        for process in self._processes.values():
            try:
                process.wait(SECONDS_TO_STOP)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
