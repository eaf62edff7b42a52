"""A worker of a sweep: one process that takes runs which nobody makes, and makes them."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from vlprompt.config.run_config import RunConfig
from vlprompt.experiments.events import (
    EvaluationProgress,
    Event,
    Listener,
    RunFailed,
    RunFinished,
    RunStarted,
    StepDone,
    ignore_event,
)
from vlprompt.experiments.sweeps.claims import Claims, Heartbeat
from vlprompt.experiments.sweeps.options import SweepOptions
from vlprompt.experiments.sweeps.owner import Owner
from vlprompt.experiments.sweeps.run_names import format_run_name, get_run_folder
from vlprompt.experiments.sweeps.runs import RunMaker
from vlprompt.experiments.sweeps.sweep_folder import Outcome, SweepCall, SweepFolder
from vlprompt.runtime.errors import (
    FolderInUseError,
    RunStoppedError,
    describe_error,
    is_debugging,
    is_disk_error,
    is_input_error,
)
from vlprompt.runtime.settings import SETTINGS

MAX_ATTEMPTS = 2  # a run whose process died, or that failed by no mistake of the user's, is tried once more
SECONDS_PER_PROGRESS = 1.0  # between two written progresses
SECONDS_TO_STOP = 30.0  # between two steps, for a worker whose parent has ended


@dataclass(frozen=True)
class WorkerJob:
    """What a worker needs to know; plain values, so that it can be sent to any machine.

    Args:
        runs_folder: where the folder of each run goes.
        list_name: of the list of configurations.
        call_name: of the call of the command.
        options: fields of `SweepOptions` besides runs_folder.
        settings: fields of `RuntimeSettings`.
        patience: seconds without a beat after which another worker counts as dead.
        parent: the process with which the worker ends; None for one that goes on by itself.
    """

    runs_folder: str
    list_name: str
    call_name: str
    options: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    patience: float = 120.0
    parent: int | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> "WorkerJob":
        return cls(**json.loads(text))

    def build_options(self) -> SweepOptions:
        return SweepOptions(Path(self.runs_folder), **self.options)


def describe_settings() -> dict[str, Any]:
    """Describe the settings of this process for its workers."""
    return {name: str(v) if isinstance(v, Path) else v for name, v in asdict(SETTINGS).items()}


def apply_settings(settings: dict[str, Any]) -> None:
    """Set in this process what `describe_settings` described in another."""
    for name, value in settings.items():
        setattr(SETTINGS, name, Path(value) if name == "data_root" and value is not None else value)


def work(job: WorkerJob, stop: threading.Event, on_event: Listener = ignore_event) -> int:
    """Make runs of a list until all are done, failed, or made by others.

    Args:
        job: which runs, and how.
        stop: set it to stop the run under way with its state saved, and to return.
        on_event: hears of each run, step and test.

    Returns:
        How many runs ended here.
    """
    apply_settings(job.settings)
    folder = SweepFolder(Path(job.runs_folder))
    worker = _Worker(job, folder, stop, on_event)
    return worker.work(folder.read_list(job.list_name))


class _Worker:
    def __init__(self, job: WorkerJob, folder: SweepFolder, stop: threading.Event, on_event: Listener) -> None:
        self.stop, self.on_event, self.options = stop, on_event, job.build_options()
        self.owner = Owner.create()
        self.claims: Claims = folder.open_claims(self.owner, job.patience)
        self.call: SweepCall = folder.get_call(job.call_name)
        self.maker = RunMaker(self.options, self._hear)
        self.heartbeat: Heartbeat | None = None
        self.ended = set[str]()  # runs of the call
        self._last_written = 0.0

    def work(self, configs: list[RunConfig]) -> int:
        finished, n_ended = self.call.read_finished(), 0
        pending = {config.hash: config for config in configs if config.hash not in finished}
        while not self.stop.is_set() and (key := self._take_next(pending)) is not None:
            with self.claims.keep(key) as heartbeat:
                self.heartbeat = heartbeat
                if self.call.read_outcome(key) is None:  # another worker may have ended it before this one took it
                    n_ended += self._make(key, pending)
        return n_ended

    def _take_next(self, pending: dict[str, RunConfig]) -> str | None:
        """Claim a run; None where nothing is left, or others make all that is."""
        loaded = self.maker.backbones.backbones
        busy = {pending[key].backbone for key in self.claims.list_keys() if key in pending}

        def rank(key: str) -> tuple[bool, bool]:
            return pending[key].backbone not in loaded, pending[key].backbone in busy

        for key in self.call.read_outcomes(self.ended):
            self.ended.add(key)
            pending.pop(key, None)
        return next((k for k in sorted(pending, key=rank) if self.claims.take(k) or self.claims.take_over(k)), None)

    def _make(self, key: str, pending: dict[str, RunConfig]) -> bool:
        """Make a run that was claimed; return whether it ended, by a result or for good without one.

        One that another process is at work on, or that is stopped, is left to a later worker.
        """
        config = pending[key]
        name, start = format_run_name(config), time.monotonic()
        n_attempts = self.call.add_attempt(key, self.owner)
        folder = str(get_run_folder(self.options.runs_folder, config).path)
        outcome: Outcome | None
        self.on_event(RunStarted(name, config))
        try:
            if n_attempts > MAX_ATTEMPTS:
                raise RuntimeError(f"its process died {n_attempts - 1} times")
            result = self.maker.make(name, config)
        except (RunStoppedError, FolderInUseError):
            self.call.remove_attempts(key, self.owner)
            del pending[key]
            return False
        except Exception as error:
            if is_disk_error(error):  # the other runs would fail alike
                self.call.remove_attempts(key, self.owner)
                raise
            is_final = is_input_error(error) or n_attempts >= MAX_ATTEMPTS
            outcome = Outcome(key, describe_error(error), folder) if is_final else None
            self.on_event(RunFailed(name, error, is_final))
        else:
            outcome = Outcome(key, folder=result.folder or folder)
            self.on_event(RunFinished(name, result))
        if outcome is not None:
            self.call.write_outcome(replace(outcome, seconds=time.monotonic() - start))
        return outcome is not None

    def _hear(self, event: Event) -> None:
        """Pass an event on, write the progress now and then, and stop the run where it must."""
        if isinstance(event, StepDone | EvaluationProgress):
            if self.stop.is_set():
                raise RunStoppedError("stopped; the same command goes on from here")
            if self.heartbeat is not None and self.heartbeat.is_lost():
                raise RunStoppedError("another process took the run, as this one did not beat")
            self._write_progress(event)
        self.on_event(event)

    def _write_progress(self, event: StepDone | EvaluationProgress) -> None:
        if (now := time.monotonic()) - self._last_written < SECONDS_PER_PROGRESS or self.heartbeat is None:
            return
        self._last_written = now
        if isinstance(event, StepDone):
            progress = {"activity": "training", "n_done": event.step, "total": event.total_steps}
        else:
            progress = {"activity": f"testing {event.test}", "n_done": event.n_done, "total": event.n_images}
        self.claims.write_progress(self.heartbeat.key, progress)


@contextmanager
def stop_on_signals(*signals: signal.Signals) -> Iterator[threading.Event]:
    """Yield an event that these signals set, so that a run stops with its state saved."""
    stop = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = {one: signal.signal(one, handle) for one in signals}
    try:
        yield stop
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def main() -> None:
    """Run a worker process; the job is the one argument, as JSON."""
    job = WorkerJob.parse(sys.argv[1])
    with stop_on_signals(signal.SIGTERM, signal.SIGINT) as stop:
        threading.Thread(target=_end_with_parent, args=(job.parent, stop), daemon=True).start()
        try:
            work(job, stop)
        except Exception as error:
            if is_debugging():
                raise
            sys.exit(describe_error(error))


def _end_with_parent(parent: int | None, stop: threading.Event) -> None:
    """Stop when the parent has ended; end the process where it is too busy to stop in time."""
    while parent is not None and os.getppid() == parent:
        time.sleep(SECONDS_PER_PROGRESS)
    if parent is not None:
        stop.set()
        time.sleep(SECONDS_TO_STOP)
        os._exit(1)
