"""A worker of a sweep: one process that takes runs which nobody makes, and makes them."""

import json
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from vlprompt.config.run_config import RunConfig
from vlprompt.experiments.events import (
    EvaluationProgress,
    Event,
    Listener,
    Notice,
    RunFailed,
    RunFinished,
    RunStarted,
    StepDone,
)
from vlprompt.experiments.side_by_side import get_group_key
from vlprompt.experiments.sweeps.claims import Claims, Heartbeat
from vlprompt.experiments.sweeps.options import SweepOptions
from vlprompt.experiments.sweeps.owner import Owner
from vlprompt.experiments.sweeps.run_names import format_run_name, get_run_folder
from vlprompt.experiments.sweeps.runs import NamedRun, RunMaker
from vlprompt.experiments.sweeps.sweep_folder import Outcome, SweepCall, SweepFolder
from vlprompt.results.run_folder import Result
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
        silent: run -> the last sign of its owner, which the command watched for the patience. A worker that begins has
            not seen it for so long.
    """

    runs_folder: str
    list_name: str
    call_name: str
    options: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    patience: float = 120.0
    parent: int | None = None
    silent: dict[str, str] = field(default_factory=dict)

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


def work(job: WorkerJob, stop: threading.Event, on_event: Listener | None = None) -> int:
    """Make runs of a list until all are done, failed, or made by others.

    Args:
        job: which runs, and how.
        stop: set it to stop the run under way with its state saved, and to return.
        on_event: hears of each run, step and test; None in another process than the command, which then reads what a
            user should know from the files of the call.

    Returns:
        How many runs ended here.
    """
    apply_settings(job.settings)
    folder = SweepFolder(Path(job.runs_folder))
    call = folder.get_call(job.call_name)
    if not call.exists():  # it was tidied up, since all of its runs had ended before this worker began
        return 0
    worker = _Worker(job, folder, stop, on_event or call.add_notice)
    with nullcontext() if on_event else worker.pass_warnings_on():
        return worker.work(folder.read_list(job.list_name))


class _Worker:
    def __init__(self, job: WorkerJob, folder: SweepFolder, stop: threading.Event, on_event: Listener) -> None:
        self.stop, self.on_event, self.options = stop, on_event, job.build_options()
        self.owner = Owner.create()
        self.claims: Claims = folder.open_claims(self.owner, job.patience, job.silent)
        self.call: SweepCall = folder.get_call(job.call_name)
        self.maker = RunMaker(self.options, on_event, before_write=self._require_claim)
        self.heartbeats: dict[str, Heartbeat] = {}  # of the runs under way
        self.run_name = ""
        self.ended = set[str]()  # runs of the call
        self._last_written: dict[str, float] = {}

    def work(self, configs: list[RunConfig]) -> int:
        finished, n_ended = self.call.read_finished(), 0
        pending = {config.hash: config for config in configs if config.hash not in finished}
        while not self.stop.is_set() and (key := self._take_next(pending)) is not None:
            with ExitStack() as claims:
                self.heartbeats = {key: claims.enter_context(self.claims.keep(key))}
                if self.call.read_outcome(key) is None:  # another worker may have ended it before this one took it
                    try:
                        n_ended += self._make([key, *self._take_others(key, pending, claims)], pending)
                    except OSError:
                        if self.call.exists():
                            raise
                        return n_ended  # the call was tidied up, since all of its runs have a result
        return n_ended

    @contextmanager
    def pass_warnings_on(self) -> Iterator[None]:
        """Pass warnings of Python on as notices, besides writing them to the log."""
        with warnings.catch_warnings():
            show = warnings.showwarning

            def pass_on(
                message: Warning | str,
                category: type[Warning],
                filename: str,
                lineno: int,
                file: TextIO | None = None,
                line: str | None = None,
            ) -> None:
                self.on_event(Notice(self.run_name, " ".join(str(message).split())))
                show(message, category, filename, lineno, file, line)

            warnings.showwarning = pass_on
            yield

    def _take_next(self, pending: dict[str, RunConfig]) -> str | None:
        """Claim a run; None where nothing is left, or others make all that is."""
        loaded, claimed = self.maker.backbones.backbones, set(self.claims.list_keys()) & pending.keys()
        busy = {pending[key].backbone for key in claimed}
        busy_groups = {get_group_key(pending[key]) for key in claimed} if self.options.side_by_side else set[str]()

        def rank(key: str) -> tuple[bool, bool, bool]:
            config = pending[key]
            is_in_busy_group = bool(busy_groups) and get_group_key(config) in busy_groups
            return is_in_busy_group, config.backbone not in loaded, config.backbone in busy

        for key in self.call.read_outcomes(self.ended):
            self.ended.add(key)
            pending.pop(key, None)
        return next((k for k in sorted(pending, key=rank) if self._take(k)), None)

    def _take(self, key: str) -> bool:
        return self.claims.take(key) or self.claims.take_over(key)

    def _take_others(self, key: str, pending: dict[str, RunConfig], claims: ExitStack) -> list[str]:
        """Claim the runs to train side by side with one that is claimed, as far as no other process has them.

        A run that was begun before, whose process may have died by it, is left to be made alone.
        """
        if not self.options.side_by_side or self.call.count_attempts(key):
            return []
        group = get_group_key(pending[key])
        others = [k for k, c in pending.items() if k != key and get_group_key(c) == group]
        others = [k for k in others if not self.call.count_attempts(k) and self.call.read_outcome(k) is None]
        named = [NamedRun(format_run_name(pending[k]), pending[k]) for k in (key, *others)]
        n_others, taken = self.maker.choose_group_size(named) - 1, list[str]()
        for other in others:
            if len(taken) < n_others and self._take(other):
                self.heartbeats[other] = claims.enter_context(self.claims.keep(other))
                if self.call.read_outcome(other) is None:
                    taken.append(other)
        return taken

    def _make(self, keys: list[str], pending: dict[str, RunConfig]) -> int:
        """Make runs that were claimed; return how many ended, by a result or for good without one.

        One that another process is at work on, or that is stopped, is left to a later worker.
        """
        start = time.monotonic()
        n_attempts = {key: self.call.add_attempt(key, self.owner) for key in keys}
        runs = [NamedRun(format_run_name(pending[key]), pending[key]) for key in keys]
        self.run_name = runs[0].name
        self.on_event(RunStarted(runs[0].name, runs[0].config, len(runs) - 1))
        results: list[Result | Exception]
        if max(n_attempts.values()) > MAX_ATTEMPTS:
            results = [RuntimeError(f"its process died {n_attempts[keys[0]] - 1} times")]
        else:
            results = self.maker.make_all(runs, [self._listen_to(key) for key in keys])
        n_ended = 0
        for key, result in zip(keys, results, strict=True):
            outcome = self._judge(key, pending, n_attempts[key], result)
            if outcome is not None:
                self.call.write_outcome(replace(outcome, seconds=(time.monotonic() - start) / len(keys)))
                n_ended += 1
        return n_ended

    def _judge(
        self, key: str, pending: dict[str, RunConfig], n_attempts: int, result: Result | Exception
    ) -> Outcome | None:
        """Return how a run ended; None for one that has not."""
        config = pending[key]
        folder, name = str(get_run_folder(self.options.runs_folder, config).path), format_run_name(config)
        if not isinstance(result, Exception):
            self.on_event(RunFinished(name, result))
            return Outcome(key, folder=result.folder or folder)
        is_lost = self.heartbeats[key].is_lost()  # an error may be that of a file that its new owner removed
        if isinstance(result, FolderInUseError):
            self.call.add_notice(Notice(name, f"waits: {result}"))  # once, however often it is tried
        if isinstance(result, RunStoppedError | FolderInUseError) or (is_lost and not is_disk_error(result)):
            self.call.remove_attempts(key, self.owner)
            del pending[key]
            return None
        if is_disk_error(result):  # the other runs would fail alike
            self.call.remove_attempts(key, self.owner)
            raise result
        is_final = is_input_error(result) or n_attempts >= MAX_ATTEMPTS
        self.on_event(RunFailed(name, result, is_final))
        return Outcome(key, describe_error(result), folder) if is_final else None

    def _require_claim(self, key: str) -> None:
        self.heartbeats[key].require()

    def _listen_to(self, key: str) -> Listener:
        """Return a listener that passes events of a run on, writes its progress, and stops it where it must."""
        heartbeat = self.heartbeats[key]

        def hear(event: Event) -> None:
            if isinstance(event, StepDone | EvaluationProgress):
                if self.stop.is_set():
                    raise RunStoppedError("stopped; the same command goes on from here")
                if heartbeat.is_lost():
                    heartbeat.require()
                self._write_progress(key, event)
            self.on_event(event)

        return hear

    def _write_progress(self, key: str, event: StepDone | EvaluationProgress) -> None:
        if (now := time.monotonic()) - self._last_written.get(key, 0.0) < SECONDS_PER_PROGRESS:
            return
        self._last_written[key] = now
        if isinstance(event, StepDone):
            progress = {"activity": "training", "n_done": event.step, "total": event.total_steps}
        else:
            progress = {"activity": f"testing {event.test}", "n_done": event.n_done, "total": event.n_images}
        self.claims.write_progress(key, progress)


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
