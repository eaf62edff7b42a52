"""Workers as jobs of a Slurm cluster, submitted by submitit as arrays; each takes many runs."""

import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from vlprompt.experiments.schedulers.logs import add_log_end
from vlprompt.experiments.schedulers.scheduler import JobPhase, JobState
from vlprompt.experiments.sweeps.worker import WorkerJob, stop_on_signals, work
from vlprompt.runtime.installation import require_package

COMMANDS = "sbatch", "srun", "squeue", "scancel"
SECONDS_TO_STOP = 120.0  # until a job that was asked to stop is cancelled
SECONDS_PER_COMMAND = 60.0
SECONDS_TO_REQUEUE = 60.0  # until a job that Slurm took off its node, and did not queue again, counts as ended
WAITING_STATES = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
RUNNING_STATES = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
REQUEUED_STATES = {"PREEMPTED", "NODE_FAIL"}  # Slurm queues the job again, unless the cluster forbids it
GONE = "GONE"  # of a job that the controller has forgotten


class SlurmOptions(BaseModel):
    """What a job of a worker asks of Slurm.

    Args:
        partition: its name; None for the cluster's default, as for account, qos and constraint.
        account: that pays.
        qos: quality of service.
        constraint: on features of the node.
        minutes: the time limit; a job that reaches it saves its state and is queued again.
        cpus: of a worker.
        gpus: of a worker.
        memory_gb: of a worker; None for the cluster's default.
        seconds_to_save: before the time limit at which the state is saved.
        setup: shell lines before the worker starts, such as "module load cuda".
        parameters: others of sbatch by their long names, such as {"mail-type": "FAIL"}.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    minutes: int = Field(default=60, ge=1)
    cpus: int = Field(default=1, ge=1)
    gpus: int = Field(default=0, ge=0)
    memory_gb: float | None = Field(default=None, gt=0)
    seconds_to_save: int = Field(default=90, ge=1)
    setup: tuple[str, ...] = ()
    parameters: dict[str, str | int | bool] = Field(default_factory=dict)

    def to_submitit(self) -> dict[str, Any]:
        """Return the parameters of submitit's executor."""
        names = {"partition": self.partition, "account": self.account, "qos": self.qos, "constraint": self.constraint}
        megabytes = None if self.memory_gb is None else f"{round(self.memory_gb * 1024)}MB"
        values = {
            **names,
            "mem": megabytes,
            "gpus_per_node": self.gpus or None,
            "additional_parameters": {"requeue": True, **self.parameters},
        }
        return {
            "job_name": "vlprompt",
            "time": self.minutes,
            "cpus_per_task": self.cpus,
            "signal_delay_s": self.seconds_to_save,
            "stderr_to_stdout": True,
            "setup": [f"export OMP_NUM_THREADS={self.cpus}", *self.setup],
            "srun_args": [f"--cpus-per-task={self.cpus}"],  # srun does not take it from sbatch since Slurm 22.05
            **{name: value for name, value in values.items() if value is not None},
        }


class SlurmWorker:
    """The function of a job: a worker that saves the state and is queued again when Slurm asks for the node.

    SIGUSR1 and SIGUSR2 (of a preemption or the time limit) queue it again; after SIGTERM that is left to Slurm, which
    sends it to cancelled jobs as well.
    """

    def __init__(self, job: WorkerJob) -> None:
        self.job = job

    def __call__(self) -> int:
        import submitit

        is_preempted = threading.Event()
        with stop_on_signals(signal.SIGTERM, signal.SIGINT) as stop:

            def handle(number: int, frame: FrameType | None) -> None:
                is_preempted.set()
                stop.set()

            for one in (signal.SIGUSR1, signal.SIGUSR2):
                signal.signal(one, handle)  # in place of submitit's, which ends in the middle of a step
            n_ended = work(self.job, stop)
        if is_preempted.is_set():
            submitit.JobEnvironment()._requeue(0)
            sys.exit("queued again, with the state of its run saved")
        return n_ended


class Slurm:
    """A job for each worker.

    Args:
        n_workers: how many at once.
        log_folder: where jobs and their logs are written; all nodes need to see it, and the folder of the runs.
        options: of the jobs.
        seconds_between_queries: of the controller, by one command for all jobs.
        seconds_to_answer: for which the controller may leave queries without an answer, as while it restarts.

    Raises:
        OSError: without submitit, or the commands of Slurm.
    """

    name = "slurm"

    def __init__(
        self,
        n_workers: int,
        log_folder: Path,
        options: SlurmOptions | None = None,
        seconds_between_queries: float = 5.0,
        seconds_to_answer: float = 600.0,
    ) -> None:
        self.n_workers, self.folder, self.options = n_workers, log_folder.absolute(), options or SlurmOptions()
        self.seconds_between_queries, self.seconds_to_answer = seconds_between_queries, seconds_to_answer
        self._states: dict[str, tuple[str, str]] = {}  # handle -> (state, node)
        self._jobs: dict[str, Any] = {}
        self._cancelled, self._last_query = set[str](), float("-inf")
        self._last_answer = time.monotonic()
        self._off_since: dict[str, float] = {}  # handle -> when its job was first seen off its node
        submitit = require_package("submitit", "slurm", "--on slurm")
        if lacking := [name for name in COMMANDS if shutil.which(name) is None]:
            raise OSError(
                f"--on slurm: expected Slurm's commands, got no {', '.join(lacking)}. Run this on a login node of the "
                "cluster, or use --jobs."
            )
        python = f"{shlex.quote(sys.executable)} -P"  # the working folder may have folders named as packages
        self.executor = submitit.SlurmExecutor(self.folder, python=python)
        self.executor.update_parameters(**self.options.to_submitit())

    def submit(self, job: WorkerJob, n_jobs: int) -> list[str]:
        if self.options.memory_gb is not None:
            job = replace(job, settings={**job.settings, "memory_limit_mb": self.options.memory_gb * 1024})
        try:
            with self.executor.batch():
                jobs = [self.executor.submit(SlurmWorker(job)) for _ in range(n_jobs)]
        except Exception as error:  # submitit has errors of its own for what sbatch refuses
            raise OSError(
                f"slurm: expected sbatch to take the jobs, got {str(error).strip()!r}. Correct the options of Slurm."
            ) from error
        self._last_answer = time.monotonic()
        for one in jobs:
            self._jobs[one.job_id], self._states[one.job_id] = one, ("PENDING", "")
        return [one.job_id for one in jobs]

    def poll(self, handle: str) -> JobState:
        self._query()
        state, node = self._states[handle]
        place = f"job {handle}{' on ' * bool(node)}{node}"
        if state in WAITING_STATES or self._may_be_requeued(handle, state):
            return JobState(JobPhase.WAITING, place=place)
        if state in RUNNING_STATES:
            return JobState(JobPhase.RUNNING, place=place)
        has_ended_well = state == "COMPLETED" or (state == GONE and self._jobs[handle].paths.result_pickle.exists())
        if has_ended_well or handle in self._cancelled:
            return JobState(JobPhase.ENDED, place=place)
        return JobState(JobPhase.ENDED, self._describe_death(handle, state), place)

    def _may_be_requeued(self, handle: str, state: str) -> bool:
        """Whether Slurm took a job off its node, so lately that it may still queue it again."""
        if state not in REQUEUED_STATES or handle in self._cancelled:
            self._off_since.pop(handle, None)
            return False
        return time.monotonic() - self._off_since.setdefault(handle, time.monotonic()) < SECONDS_TO_REQUEUE

    def _describe_death(self, handle: str, state: str) -> str:
        return add_log_end(f"job {handle}: ended as {state}", self._jobs[handle].paths.stdout)

    def _query(self) -> None:
        """Ask the controller for all jobs at once, seldom; where it doesn't answer for a while, the last states stand.

        squeue needs no accounting, and lists ended jobs for a while.

        Raises:
            OSError: where the controller has not answered for long.
        """
        if time.monotonic() - self._last_query < self.seconds_between_queries:
            return
        open_states = WAITING_STATES | RUNNING_STATES | REQUEUED_STATES
        open_jobs = [handle for handle, (state, _) in self._states.items() if state in open_states]
        if not open_jobs:
            return
        command = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(open_jobs)}"]
        answer = _run([*command, "--Format=ArrayJobID:|,ArrayTaskID:|,State:|,NodeList:|"])
        self._last_query = time.monotonic()
        if answer.returncode != 0 and "Invalid job id" not in answer.stderr:
            if (silence := self._last_query - self._last_answer) > self.seconds_to_answer:
                raise OSError(
                    f"slurm: expected an answer of the controller, got none for {silence:.0f} seconds "
                    f"({answer.stderr.strip()}). Its jobs go on; give the same command again when squeue works."
                )
            return
        self._last_answer = self._last_query
        states = dict[str, tuple[str, str]]()
        for line in answer.stdout.splitlines():
            number, task, state, node = line.strip().split("|")[:4]
            states[number if task == "N/A" else f"{number}_{task}"] = state, node
        self._states.update({handle: states.get(handle, (GONE, "")) for handle in open_jobs})

    def cancel(self, handle: str) -> None:
        self._cancelled.add(handle)
        _run(["scancel", "--state=PENDING", handle])
        _run(["scancel", "--state=RUNNING", "--signal=TERM", handle])

    def close(self) -> None:
        deadline = time.monotonic() + SECONDS_TO_STOP
        while left := self._list_cancelled():
            if time.monotonic() > deadline:
                _run(["scancel", *left])
                return
            time.sleep(min(1.0, self.seconds_between_queries))

    def _list_cancelled(self) -> list[str]:
        """List the jobs that were asked to stop and have not; none where the controller doesn't answer."""
        with suppress(OSError):
            return [handle for handle in self._cancelled if self.poll(handle).phase is not JobPhase.ENDED]
        return []


def _run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_PER_COMMAND, check=False)
    except subprocess.TimeoutExpired as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))
