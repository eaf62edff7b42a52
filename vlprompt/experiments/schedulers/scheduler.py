"""What a sweep asks of the machines that its workers run on."""

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from vlprompt.experiments.sweeps.worker import WorkerJob


class JobPhase(Enum):
    """Where a job stands."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True)
class JobState:
    """The state of a submitted job.

    Args:
        phase: where it stands.
        error: why it ended without doing its work, with the end of its log; "" for one that did, or that was asked to
            stop.
        place: where it runs, such as a host or a job's number.
    """

    phase: JobPhase
    error: str = ""
    place: str = ""


class Scheduler(Protocol):
    """Runs workers somewhere.

    A worker calls `vlprompt.experiments.sweeps.worker.work` with its job, and an event that is set when it is to stop.
    """

    name: str
    n_workers: int  # at once

    def submit(self, job: WorkerJob, n_jobs: int) -> list[str]:
        """Start workers, or queue them; return a handle of each.

        Raises:
            OSError: where the scheduler is not there.
        """
        ...

    def poll(self, handle: str) -> JobState:
        """Return the state of a job."""
        ...

    def cancel(self, handle: str) -> None:
        """Ask a job to stop with its state saved; one that has ended is left alone."""
        ...

    def close(self) -> None:
        """End what the scheduler began for itself; jobs that are asked to stop are waited for."""
        ...
