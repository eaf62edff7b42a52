"""A sweep by workers: start them where a scheduler says, watch them, and replace those that died."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from secrets import token_hex

from vlprompt.config.run_config import RunConfig
from vlprompt.experiments.events import (
    Listener,
    Notice,
    RunProgress,
    SweepProgress,
    SweepStarted,
    ignore_event,
)
from vlprompt.experiments.schedulers.scheduler import JobPhase, JobState, Scheduler
from vlprompt.experiments.sweeps.claims import Claims
from vlprompt.experiments.sweeps.options import SweepOptions
from vlprompt.experiments.sweeps.owner import Owner
from vlprompt.experiments.sweeps.run_names import format_run_name
from vlprompt.experiments.sweeps.stored_runs import read_finished_runs
from vlprompt.experiments.sweeps.sweep_folder import Outcome, SweepCall, SweepFolder
from vlprompt.experiments.sweeps.worker import WorkerJob, describe_settings
from vlprompt.results.run_folder import Result, RunFolder

MAX_DEATHS_IN_A_ROW = 3  # of workers that began no run, without a run that ended in between
MAX_SECONDS_TO_WAIT = 30.0  # for a run that another command makes, before a worker asks for it again


@dataclass
class SweepReport:
    """What a sweep came to.

    Args:
        results: of each configuration in their order; None for one without.
        errors: why runs failed, by the index of the configuration.
    """

    results: list[Result | None] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)


def run_sweep(
    configs: Sequence[RunConfig],
    options: SweepOptions,
    scheduler: Scheduler,
    on_event: Listener = ignore_event,
    *,
    patience: float = 120.0,
    seconds_between_looks: float = 0.5,
) -> SweepReport:
    """Make the runs that are not finished by workers of a scheduler.

    Args:
        configs: what to run.
        options: how and where.
        scheduler: of the workers.
        on_event: hears where the sweep stands.
        patience: seconds without a beat after which a worker of another machine counts as dead.
        seconds_between_looks: at the workers and at what they wrote.

    Raises:
        OSError: where the scheduler is not there, or its workers die one after another.
    """
    results = read_finished_runs(configs, options)
    report = SweepReport(results)
    if all(results):
        return report
    on_event(SweepStarted(len(configs), sum(result is not None for result in results)))
    supervisor = _Supervisor(configs, results, options, scheduler, on_event, patience)
    try:
        supervisor.watch(seconds_between_looks)
    except OSError:  # where a scheduler does not answer, nobody knows of its workers
        supervisor.may_have_workers = True
        raise
    finally:
        supervisor.close()
    for index, config in enumerate(configs):
        outcome = supervisor.outcomes.get(config.hash)
        if outcome is not None and outcome.error:
            report.errors[index] = outcome.error
        elif outcome is not None:
            report.results[index] = RunFolder(options.runs_folder / Path(outcome.folder).name).read_finished()
    return report


class _Supervisor:
    def __init__(
        self,
        configs: Sequence[RunConfig],
        results: Sequence[Result | None],
        options: SweepOptions,
        scheduler: Scheduler,
        on_event: Listener,
        patience: float,
    ) -> None:
        self.scheduler, self.on_event, self.n_runs = scheduler, on_event, len(configs)
        self.pending = {c.hash: c for c, result in zip(configs, results, strict=True) if result is None}
        self.n_finished_before = self.n_runs - len(self.pending)
        self.folder = SweepFolder(options.runs_folder)
        owner = Owner.create()
        self.claims: Claims = self.folder.open_claims(owner, patience)
        call_name, finished = token_hex(8), [config.hash for config in configs if config.hash not in self.pending]
        self.call: SweepCall = self.folder.begin_call(call_name, owner, configs, finished)
        self.job = WorkerJob(
            str(options.runs_folder.absolute()),
            self.call.read_list_name(),
            call_name,
            options.describe(),
            describe_settings(),
            patience,
        )
        self.alive: dict[str, JobState] = {}
        self.frozen: dict[str, Owner] = {}  # by token
        self.outcomes: dict[str, Outcome] = {}
        self.notices = set[str]()  # that were passed on
        self.may_have_workers = False  # after the end
        self.n_deaths, self.start = 0, time.monotonic()
        self.n_idle_ends, self.n_ended_before, self.next_start = 0, 0, self.start

    def watch(self, seconds_between_looks: float) -> None:
        """Look at the workers until every run has ended."""
        while len(self.outcomes) < len(self.pending):
            self._start_workers()
            self._look_at_workers()
            self._read_outcomes()
            self._pass_notices_on()
            self.on_event(self._measure_progress())
            if len(self.outcomes) < len(self.pending):
                time.sleep(seconds_between_looks)

    def _start_workers(self) -> None:
        """Start as many workers as there are runs that nobody makes."""
        left = self.pending.keys() - self.outcomes.keys()
        owners = {key: self.claims.read_owner(key) for key in self.claims.list_keys() if key in left}
        signs = {key: self.claims.find_last_sign(key) for key in owners}
        silent = {key: sign for key, sign in signs.items() if sign is not None}
        here = {k: owner for k, owner in owners.items() if owner is not None and self.call.has_attempt(k, owner)}
        taken = {key for key, owner in owners.items() if owner is not None and key not in silent}
        self._note_frozen(here, silent)
        n_free, n_taken_here = len(left) - len(taken), len(taken & here.keys())
        n_at_work = max(0, len(self.alive) - len(self.frozen))
        n_jobs = min(self.scheduler.n_workers, n_free + n_taken_here) - n_at_work
        if n_jobs > 0 and n_free and time.monotonic() >= self.next_start:
            for handle in self.scheduler.submit(replace(self.job, silent=silent), n_jobs):
                self.alive[handle] = JobState(JobPhase.WAITING)

    def _note_frozen(self, here: dict[str, Owner], silent: dict[str, str]) -> None:
        """Note the workers that are alive and silent, as stopped or suspended ones: others make their runs."""
        for key, owner in here.items():
            if key in silent:
                self.frozen[owner.token] = owner
            else:
                self.frozen.pop(owner.token, None)
        self.frozen = {token: owner for token, owner in self.frozen.items() if not owner.has_ended()}

    def _look_at_workers(self) -> None:
        for handle in list(self.alive):
            state = self.alive[handle] = self.scheduler.poll(handle)
            if state.phase is JobPhase.ENDED:
                del self.alive[handle]
                self._wait_before_next_start()
                if state.error:
                    self._report_death(state)

    def _wait_before_next_start(self) -> None:
        """Wait ever longer where workers end without ending a run, as where another command makes it."""
        n_ended = len(self.call.list_ended())
        self.n_idle_ends = 0 if n_ended > self.n_ended_before else self.n_idle_ends + 1
        self.n_ended_before = n_ended
        self.next_start = time.monotonic() + min(MAX_SECONDS_TO_WAIT, 2.0**self.n_idle_ends - 1)

    def _report_death(self, state: JobState) -> None:
        self.n_deaths += 1
        # a run whose workers die ends by itself after some attempts, so that these deaths stop no other run
        if self.n_deaths >= MAX_DEATHS_IN_A_ROW + self.call.count_open_attempts():
            raise OSError(
                f"{self.scheduler.name}: expected workers that make runs, got {self.n_deaths} that died one after "
                f"another ({state.error}). Mend that, and give the same command again: it goes on from here."
            )
        self.on_event(Notice(state.place or self.scheduler.name, f"{state.error}; another worker goes on"))

    def _read_outcomes(self) -> None:
        for key, outcome in self.call.read_outcomes(self.outcomes).items():
            if key in self.pending:
                self.outcomes[key], self.n_deaths = outcome, 0

    def _pass_notices_on(self) -> None:
        for notice in self.call.read_notices(self.notices):
            self.on_event(notice)

    def _measure_progress(self) -> SweepProgress:
        running = list[RunProgress]()
        for key in self.claims.list_keys():
            if key in self.pending and key not in self.outcomes:
                progress, owner = self.claims.read_progress(key), self.claims.read_owner(key)
                running.append(parse_progress(progress, format_run_name(self.pending[key]), owner))
        n_failed = sum(bool(outcome.error) for outcome in self.outcomes.values())
        n_done = len(self.outcomes) - n_failed
        n_left = len(self.pending) - len(self.outcomes)
        seconds = (time.monotonic() - self.start) / n_done * n_left if n_done else None
        n_waiting = sum(state.phase is JobPhase.WAITING for state in self.alive.values())
        return SweepProgress(
            self.n_runs,
            self.n_finished_before + n_done,
            n_failed,
            tuple(running),
            len(self.alive) - n_waiting,
            n_waiting,
            seconds,
        )

    def close(self) -> None:
        """Ask the workers that are left to stop, and wait for them."""
        for handle in self.alive:
            self.scheduler.cancel(handle)
        self.scheduler.close()
        self._pass_notices_on()
        if not self.may_have_workers:
            self.call.end()
        self.folder.tidy()


def parse_progress(progress: dict[str, object], name: str, owner: Owner | None) -> RunProgress:
    """Parse what a worker wrote of a run."""
    place = "" if owner is None else f"{owner.host}, process {owner.pid}"
    n_done, total = progress.get("n_done"), progress.get("total")
    return RunProgress(
        name,
        str(progress.get("activity", "")),
        n_done if isinstance(n_done, int) else 0,
        total if isinstance(total, int) else 0,
        place,
    )
