"""A worker in the process of the command itself."""

import threading

from vlprompt.experiments.events import Listener, ignore_event
from vlprompt.experiments.schedulers.scheduler import JobPhase, JobState
from vlprompt.experiments.sweeps.worker import WorkerJob, work


class InProcess:
    """Works when it is submitted to, so that `submit` returns when the worker has ended.

    Args:
        on_event: hears of each run, step and test.
        stop: set it to stop with the state saved.
    """

    name, n_workers = "in process", 1

    def __init__(self, on_event: Listener = ignore_event, stop: threading.Event | None = None) -> None:
        self.on_event, self.stop = on_event, stop or threading.Event()

    def submit(self, job: WorkerJob, n_jobs: int) -> list[str]:
        work(job, self.stop, self.on_event)
        return ["0"]

    def poll(self, handle: str) -> JobState:
        return JobState(JobPhase.ENDED)

    def cancel(self, handle: str) -> None:
        self.stop.set()

    def close(self) -> None:
        pass
