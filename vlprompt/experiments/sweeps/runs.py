"""Make the runs that are not finished, one after another or side by side."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from vlprompt.config.build import build_task
from vlprompt.config.run_config import RunConfig
from vlprompt.core.towers import find_input_tower
from vlprompt.data.report import summarize_dataset
from vlprompt.experiments.events import (
    DatasetOpened,
    Event,
    Listener,
    Notice,
    RunFailed,
    RunFinished,
    RunStarted,
    SweepStarted,
    ignore_event,
)
from vlprompt.experiments.inputs import describe_inputs
from vlprompt.experiments.learned.prompt import build_run_method
from vlprompt.experiments.side_by_side import (
    MemberJob,
    count_runs_that_fit,
    explain_conflict,
    get_group_key,
    group_by_key,
    measure_shared_work,
    run_jobs,
)
from vlprompt.experiments.sweeps.options import LoadedBackbones, SweepOptions
from vlprompt.experiments.sweeps.run_names import (
    choose_run_folder,
    format_dataset_name,
    format_run_name,
)
from vlprompt.experiments.sweeps.stored_runs import lacks_tracked_parts, read_finished_runs
from vlprompt.results.run_folder import Result, RunFolder
from vlprompt.results.run_inputs import Inputs
from vlprompt.runtime import distributed

if TYPE_CHECKING:
    from vlprompt.core.method import Method
    from vlprompt.core.towers import Backbone
    from vlprompt.engine.side_by_side import GroupMember
    from vlprompt.experiments.planning.planned_memory import MemoryPlan
    from vlprompt.tasks import Task


def run_configs(
    configs: Sequence[RunConfig],
    options: SweepOptions,
    on_event: Listener = ignore_event,
    *,
    backbones: "dict[str, Backbone] | None" = None,
    failures: dict[int, Exception] | None = None,
) -> list[Result | None]:
    """Make the runs that are not finished, one after another, or side by side where options say so and it pays.

    Args:
        configs: what to run.
        options: how and where.
        on_event: hears of each run, step and test.
        backbones: those by name that are loaded already; others are added.
        failures: if given, errors are written there by the index of the run and the other runs go on.

    Returns:
        The result of each; None for one that failed.

    Raises:
        ChangedInputsError: for a run whose folder holds one on other inputs, unless `options.fresh`.
    """
    results: list[Result | None] = distributed.broadcast_from_main(
        lambda: read_finished_runs(configs, options, failures is not None)
    )
    if all(results):
        return results
    maker = RunMaker(options, on_event, backbones)
    has_many_datasets = len({format_dataset_name(config.task) for config in configs}) > 1
    on_event(SweepStarted(len(configs), sum(result is not None for result in results)))
    index_of = {id(config): index for index, config in enumerate(configs)}
    pending = [config for config, result in zip(configs, results, strict=True) if result is None]
    groups = group_by_key(pending) if options.side_by_side else [[config] for config in pending]
    for group in groups:
        named = [NamedRun(format_run_name(config, has_many_datasets), config) for config in group]
        while named:
            size = maker.choose_group_size(named)
            part, named = named[:size], named[size:]
            on_event(RunStarted(part[0].name, part[0].config, size - 1))
            for run, result in zip(part, maker.make_all(part), strict=True):
                index = index_of[id(run.config)]
                if not isinstance(result, Exception):
                    results[index] = result
                    on_event(RunFinished(run.name, result))
                    continue
                if failures is None:
                    raise result
                failures[index] = result
                on_event(RunFailed(run.name, result))
    return results


@dataclass(frozen=True)
class NamedRun:
    """A run, and its name for notices."""

    name: str
    config: RunConfig


@dataclass(frozen=True)
class _PreparedRun:
    """A run whose data are open and whose folder is chosen."""

    config: RunConfig
    task: "Task"
    backbone: "Backbone"
    method: "Method"
    inputs: Inputs
    folder: RunFolder
    memory_plan: "MemoryPlan | None"  # None where it was not planned

    @property
    def memory_overrides(self) -> dict[str, Any]:
        return {} if self.memory_plan is None else self.memory_plan.overrides


class RunMaker:
    """Makes runs in this process; what they share is loaded and measured once.

    Args:
        options: how and where.
        on_event: hears of each step, test and notice.
        backbones: those by name that are loaded already; others are added.
        before_write: called with the hash of a run before each of its files is written; see `run`.
    """

    def __init__(
        self,
        options: SweepOptions,
        on_event: Listener = ignore_event,
        backbones: "dict[str, Backbone] | None" = None,
        before_write: Callable[[str], None] | None = None,
    ) -> None:
        self.options, self.on_event, self.before_write = options, on_event, before_write
        self.backbones = LoadedBackbones(options, {} if backbones is None else backbones)
        self.memory_plans: dict[str, MemoryPlan] = {}  # runs that differ by their seed share one
        self._max_sizes: dict[str, int] = {}  # of groups by their key: runs at once
        self._prepared: dict[str, _PreparedRun] = {}  # runs whose group is chosen, by their hash

    def choose_group_size(self, runs: Sequence[NamedRun]) -> int:
        """Return how many of these runs, from the first, train side by side; 1 where it does not pay.

        Args:
            runs: of one group.
        """
        if len(runs) == 1:
            return 1
        first = runs[0]
        key = get_group_key(first.config)
        if key not in self._max_sizes:
            try:
                size, reason = self._measure_group_size(first)
            except Exception:  # the run itself will fail by it; the others of the group are asked for their own
                return 1
            if reason:
                self.on_event(Notice(first.name, f"{len(runs)} runs train one by one: {reason}", is_warning=False))
            self._max_sizes[key] = size
        n_parts = -(-len(runs) // self._max_sizes[key])
        return -(-len(runs) // n_parts)

    def _measure_group_size(self, first: NamedRun) -> tuple[int, str]:
        """Return how many runs of a group may train at once, and why it is 1 where it is."""
        if distributed.get_world_size() > 1:
            return 1, "several processes share the work of each"
        if conflict := explain_conflict(first.config):
            return 1, conflict
        prepared = self._prepared[first.config.hash] = self._prepare(first)
        if overrides := prepared.memory_overrides.keys() - {"micro_batch_size"}:
            return 1, f"to fit into the memory they need {', '.join(f'train.{name}' for name in sorted(overrides))}"
        lesson = next(iter(prepared.task.stages())).lesson
        try:
            work = measure_shared_work(
                lambda backbone: build_run_method(first.config.method, backbone),
                prepared.backbone,
                lesson,
                first.config.train_config.batch_size,
            )
        except ValueError as error:  # a few images may be too few for a method
            return 1, f"what their steps share was not measured ({error})"
        if reason := work.explain_no_gain(find_input_tower(prepared.backbone).device.type):
            return 1, reason
        size = count_runs_that_fit(prepared.memory_plan)
        return size, "the memory has no room for the activations of two" if size == 1 else ""

    def make_all(self, runs: Sequence[NamedRun], listeners: Sequence[Listener] = ()) -> list[Result | Exception]:
        """Make runs of a group side by side, or one alone.

        Args:
            runs: as many as `choose_group_size` says.
            listeners: of the events of each run; default `on_event`.

        Returns:
            The result of each, or the error by which it ended.
        """
        listeners = listeners or [self.on_event] * len(runs)
        if len(runs) == 1:
            try:
                return [self.make(runs[0].name, runs[0].config, listeners[0])]
            except Exception as error:
                return [error]
        return self._make_side_by_side(runs, listeners)

    def make(self, name: str, config: RunConfig, on_event: Listener | None = None) -> Result:
        """Make a run, or return the result of one that is finished.

        Args:
            name: of the run, for its notices.
            config: of the run.
            on_event: hears of its steps and tests; default that of all.

        Raises:
            ChangedInputsError: for a run whose folder holds one on other inputs, unless `options.fresh`.
        """
        prepared = self._prepare(NamedRun(name, config))
        return self._execute(prepared, on_event or self.on_event, None)

    def _make_side_by_side(self, runs: Sequence[NamedRun], listeners: Sequence[Listener]) -> list[Result | Exception]:
        outcomes: dict[int, Result | Exception] = {}
        prepared: dict[int, _PreparedRun] = {}
        for index, run in enumerate(runs):
            try:
                prepared[index] = self._prepare(run)
            except Exception as error:
                outcomes[index] = error

        def make_job(one: _PreparedRun) -> MemberJob:
            return lambda member, listener: self._execute(one, listener, member)

        if prepared:
            jobs = [make_job(one) for one in prepared.values()]
            backbone = next(iter(prepared.values())).backbone
            mine = [listeners[index] for index in prepared]
            outcomes |= zip(prepared, run_jobs(backbone, jobs, mine, runs[0].config.backbone), strict=True)
        return [outcomes[index] for index in range(len(runs))]

    def _prepare(self, run: NamedRun) -> _PreparedRun:
        """Open the data of a run, load its backbone and choose its folder."""
        if (known := self._prepared.pop(run.config.hash, None)) is not None:
            return known
        name, config = run.name, run.config
        with distributed.local_main_process_first():
            task = build_task(config.task)
            protocol = task.protocol  # opens the data, so that their errors come before a backbone is loaded
        for data in getattr(task, "opened_data", ()):  # a task of a user's own may have none
            self.on_event(DatasetOpened(summarize_dataset(data), data.remarks))
        for text in _iter_warnings(protocol):
            self.on_event(Notice(name, text))
        with distributed.local_main_process_first():
            backbone = self.backbones.load(config)
        method = build_run_method(config.method, backbone)
        inputs = distributed.broadcast_from_main(lambda: describe_inputs(task, config, backbone, method))
        folder = choose_run_folder(self.options, config, inputs)
        if damage := folder.find_damage():
            self.on_event(Notice(name, f"runs again, as a file is damaged: {damage}"))
        plan = self._plan_memory(name, config, task, backbone)
        return _PreparedRun(config, task, backbone, method, inputs, folder, plan)

    def _execute(self, prepared: _PreparedRun, on_event: Listener, member: "GroupMember | None") -> Result:
        """Make a prepared run, as a member of a group where it is one."""
        from vlprompt.experiments.runner import run

        config = prepared.config
        method = prepared.method if member is None else build_run_method(config.method, member.backbone)
        before_write = partial(self.before_write, config.hash) if self.before_write else None

        def make_run(listener: Listener) -> Result:
            return run(
                method,
                prepared.task,
                config,
                prepared.folder.path,
                save_every=self.options.save_every,
                on_event=listener,
                max_lessons=self.options.max_lessons,
                memory_overrides=prepared.memory_overrides,
                member=member,
                before_write=before_write,
                inputs=prepared.inputs,
                keep_predictions=self.options.keep_predictions,
            )

        return self._track(make_run, config, prepared.folder, on_event)

    def _track(
        self, make_run: Callable[[Listener], Result], config: RunConfig, folder: RunFolder, on_event: Listener
    ) -> Result:
        """Make a run, copied to the trackers by the main process."""
        has_all = folder.read_finished() is not None and not lacks_tracked_parts(folder, self.options)
        if not self.options.trackers or not distributed.is_main_process() or has_all:
            return make_run(on_event)
        from vlprompt.experiments.trackers.tracker import TrackedRun
        from vlprompt.experiments.trackers.tracking import follow_run

        tracked = TrackedRun(folder.path.name, config.to_dict(), folder.path, folder.path, self.options.runs_folder)
        with follow_run(self.options.trackers, tracked) as listener:

            def hear(event: Event) -> None:
                listener.hear(event)
                on_event(event)

            result = make_run(hear)
            listener.finish(None if "paused" in result.protocol else result)
        return result

    def _plan_memory(self, name: str, config: RunConfig, task: "Task", backbone: "Backbone") -> "MemoryPlan | None":
        """Plan how a run fits into the memory, and report its cost where that was measured."""
        from vlprompt.experiments.planning.memory_plan import plan_memory

        stage = next(iter(task.stages()))
        tests = (*stage.tests.values(), *stage.unknown_tests.values())
        sizes = len(stage.lesson.train.names), len(stage.lesson.train), sum(map(len, tests))
        key = json.dumps([config.backbone, config.preprocess, config.method, config.train, *sizes])
        if key in self.memory_plans:
            return self.memory_plans[key]

        def build() -> Any:
            return build_run_method(config.method, backbone)

        try:
            plan = self.memory_plans[key] = plan_memory(build, stage.lesson, config.train_config, tests)
        except ValueError as error:  # a few images may be too few for a method; another mistake stops the run itself
            text = f"memory and time: not measured before the run ({error})"
            self.on_event(Notice(name, text, is_warning=False))
            return None
        if plan.seconds or not plan.fits:
            self.on_event(Notice(name, f"about {plan}", is_warning=bool(plan.overrides) or not plan.fits))
        return plan


def _iter_warnings(protocol: dict[str, Any]) -> Iterator[str]:
    """Yield what a user should know of the data of a task."""
    if small := protocol.get("undersized_classes"):
        yield f"{len(small)} classes have fewer images than task.shots ({', '.join(small[:5])}); all of them are used"
    yield from protocol.get("warnings", [])
