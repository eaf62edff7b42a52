"""Workers as actors of Ray: on this machine, or on a cluster."""

import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from vlprompt.experiments.schedulers.scheduler import JobPhase, JobState
from vlprompt.experiments.sweeps.worker import WorkerJob, work
from vlprompt.runtime.installation import require_package

SECONDS_TO_CONNECT, SECONDS_TO_STOP = 5.0, 60.0
OBJECT_STORE_BYTES = 100 * 2**20  # of a Ray of this process: workers share files, not objects
SHARED_VARIABLES = ("VLPROMPT_", "HF_")  # beginnings of the names that workers get
ERROR_CHARACTERS = 500  # of Ray's own text, in an error


class RayOptions(BaseModel):
    """Where Ray is, and what each worker takes of it.

    Args:
        address: "auto", HOST:PORT, or ray://HOST:PORT by Ray Client; by default that of RAY_ADDRESS, else None, which
            starts Ray on this machine.
        cpus: of each worker.
        gpus: of each worker; a fraction shares one.
        memory_mb: of each worker (2**20 bytes); None asks for none.
        runtime_env: as Ray takes it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str | None = Field(default_factory=lambda: os.environ.get("RAY_ADDRESS") or None)
    cpus: float = Field(default=1.0, gt=0)
    gpus: float = Field(default=0.0, ge=0)
    memory_mb: float | None = Field(default=None, gt=0)
    runtime_env: dict[str, Any] = Field(default_factory=dict)

    def describe_resources(self) -> dict[str, float]:
        """Return what an actor asks of Ray."""
        resources: dict[str, float] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        return resources if self.memory_mb is None else {**resources, "memory": int(self.memory_mb * 2**20)}


class RayWorker:
    """An actor that works as long as there are runs; `stop` is called while `work` runs."""

    def __init__(self, folder: str, variables: dict[str, str], paths: list[str]) -> None:
        os.chdir(folder)  # names of data are relative to it
        os.environ.update(variables)
        sys.path.extend(path for path in paths if path not in sys.path)
        self.event = threading.Event()

    def locate(self) -> str:
        return f"{socket.gethostname()}, process {os.getpid()}"

    def work(self, job: str) -> int:
        return work(WorkerJob.parse(job), self.event)

    def stop(self) -> None:
        self.event.set()


class RayCluster:
    """An actor of Ray for each worker; Ray starts none again by itself.

    Args:
        n_workers: how many at once.
        log_folder: not used: Ray has logs of its own.
        options: where Ray is, and what each worker takes.
    """

    name = "Ray"

    def __init__(self, n_workers: int, log_folder: Path, options: RayOptions | None = None) -> None:
        self.options, self.n_workers = options or RayOptions(), n_workers
        self._ray: Any = None
        self._is_connected_here = False
        self._actors: dict[str, tuple[Any, Any, Any]] = {}  # handle -> actor, its place and its work as Ray's objects
        self._cancelled = set[str]()
        self._n_jobs = 0

    def submit(self, job: WorkerJob, n_jobs: int) -> list[str]:
        self._connect()
        return [self._start(job) for _ in range(n_jobs)]

    def _start(self, job: WorkerJob) -> str:
        handle, self._n_jobs = str(self._n_jobs), self._n_jobs + 1
        variables = {k: v for k, v in os.environ.items() if k.startswith(SHARED_VARIABLES)}
        resources = self.options.describe_resources()
        actor_class = self._ray.remote(max_restarts=0, max_concurrency=3, **resources)(RayWorker)
        actor = actor_class.remote(os.getcwd(), variables, [path for path in sys.path if path])
        self._actors[handle] = actor, actor.locate.remote(), actor.work.remote(job.to_json())
        return handle

    def _connect(self) -> None:
        if self._ray is not None:
            return
        environment = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}
        for name, value in environment.items():  # read when Ray is imported
            os.environ.setdefault(name, value)
        ray = require_package("ray", "ray", "sweep on Ray")
        if not ray.is_initialized():
            _require_listener(self.options.address)
            handler = signal.getsignal(signal.SIGTERM)
            try:
                ray.init(**self._choose_init_options())
            except Exception as error:  # Ray has no class of its own for a cluster that is not there
                raise OSError(_explain_address(self.options.address, str(error))) from error
            finally:
                if threading.current_thread() is threading.main_thread():
                    signal.signal(signal.SIGTERM, handler)  # Ray's would end the process at once
            self._is_connected_here = True
        self._ray = ray

    def _choose_init_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "configure_logging": False}
        if self.options.runtime_env:
            options["runtime_env"] = self.options.runtime_env
        if self.options.address is not None:
            return {**options, "address": self.options.address}
        n_cpus = max(1, -int(-self.n_workers * self.options.cpus // 1))
        options |= {"address": "local", "num_cpus": n_cpus, "include_dashboard": False}
        options |= {"object_store_memory": OBJECT_STORE_BYTES, "_node_ip_address": "127.0.0.1"}
        return options if self.options.gpus else {**options, "num_gpus": 0}

    def poll(self, handle: str) -> JobState:
        _, place, result = self._actors[handle]
        where = self._locate(place)
        if not self._ray.wait([result], timeout=0)[0]:
            return JobState(JobPhase.RUNNING if where else JobPhase.WAITING, place=where)
        try:
            self._ray.get(result)
            error = ""
        except Exception as caught:  # of the worker, or of Ray for one that died
            error = "" if handle in self._cancelled else f"worker {handle}: {_shorten(str(caught))}"
        self._end(handle)
        return JobState(JobPhase.ENDED, error, where)

    def _locate(self, place: Any) -> str:
        if not self._ray.wait([place], timeout=0)[0]:
            return ""
        try:
            return self._ray.get(place)
        except Exception:  # the actor died, which its work says
            return ""

    def _end(self, handle: str) -> None:
        """Give back what an actor takes."""
        self._ray.kill(self._actors[handle][0])

    def cancel(self, handle: str) -> None:
        if handle not in self._cancelled:
            self._cancelled.add(handle)
            self._actors[handle][0].stop.remote()

    def close(self) -> None:
        if self._ray is None:
            return
        ends = [self._actors[handle][2] for handle in self._cancelled]
        deadline = time.monotonic() + SECONDS_TO_STOP
        if ends:
            self._ray.wait(ends, num_returns=len(ends), timeout=max(0.0, deadline - time.monotonic()))
        for handle in self._actors:
            self._end(handle)
        if self._is_connected_here:  # a cluster that was there stays
            self._ray.shutdown()
        self._ray = None


def _require_listener(address: str | None) -> None:
    """Raise OSError soon where nobody answers at an address; Ray itself waits long."""
    if address in (None, "auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), SECONDS_TO_CONNECT).close()
    except (OSError, ValueError) as error:
        raise OSError(_explain_address(address, str(error))) from error


def _explain_address(address: str | None, error: str) -> str:
    return (
        f"Ray: expected a cluster at {address or 'this machine'}, got none ({_shorten(error)}). Start one by "
        "`ray start --head`, or leave the address out; where one is there, set RAY_AUTH_MODE=token as on its nodes."
    )


def _shorten(text: str) -> str:
    return " ".join(text.split())[-ERROR_CHARACTERS:]
