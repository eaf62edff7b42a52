"""Make the runs that are not finished, one after another."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlprompt.config.build import build_method, build_task
from vlprompt.config.run_config import RunConfig
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
from vlprompt.experiments.inputs import describe_inputs, hash_named_files
from vlprompt.experiments.sweeps.options import LoadedBackbones, SweepOptions
from vlprompt.experiments.sweeps.run_names import (
    choose_run_folder,
    format_dataset_name,
    format_run_name,
    get_run_folder,
)
from vlprompt.results.run_folder import Result, RunFolder
from vlprompt.results.run_inputs import ChangedInputsError, Inputs
from vlprompt.runtime import distributed

if TYPE_CHECKING:
    from vlprompt.core.towers import Backbone
    from vlprompt.experiments.memory_plan import MemoryPlan
    from vlprompt.tasks import Task


@dataclass(frozen=True)
class StoredRun:
    """What the folders of runs hold of one run.

    Args:
        result: None where it is not finished, or damaged.
        error: why it can't be compared with what is there.
    """

    result: Result | None = None
    error: Exception | None = None

    @property
    def has_changed_inputs(self) -> bool:
        """Whether its folder holds a run on other data, files or weights."""
        return isinstance(self.error, ChangedInputsError)


def iter_stored_runs(configs: Sequence[RunConfig], options: SweepOptions) -> Iterator[StoredRun]:
    """Yield what is there of each run; data are opened once for all runs on them, where there is something to compare.

    Args:
        configs: of the runs.
        options: where they are.
    """
    described: dict[str, Inputs] = {}  # by the settings of the task
    for config in configs:
        if not get_run_folder(options.runs_folder, config).path.exists():
            yield StoredRun()
            continue
        try:
            key = json.dumps(config.task, sort_keys=True)
            if key not in described:
                described[key] = describe_inputs(build_task(config.task), config)
            inputs = {**described[key], "files": hash_named_files(config.to_dict())}
            folder = choose_run_folder(options, config, inputs)
        except (ValueError, OSError) as error:
            yield StoredRun(error=error)
            continue
        folder.remove_leftovers()
        yield StoredRun(None if _is_tracked_in_part(folder, options) else folder.read_finished())


def _is_tracked_in_part(folder: RunFolder, options: SweepOptions) -> bool:
    if not options.trackers:
        return False
    from vlprompt.experiments.trackers.tracking import is_tracked_in_part

    return is_tracked_in_part(folder.path, options.trackers)


def read_finished_runs(
    configs: Sequence[RunConfig], options: SweepOptions, goes_on: bool = True
) -> list[Result | None]:
    """Return the results of the runs that are finished, None for the others.

    Args:
        configs: of the runs.
        options: where they are.
        goes_on: return None for a run that can't be compared, which then fails in its turn.

    Raises:
        ChangedInputsError: for a run whose folder holds one on other inputs, without `goes_on` and `options.fresh`.
    """
    results = list[Result | None]()
    for stored in iter_stored_runs(configs, options):
        if stored.error is not None and not goes_on:
            raise stored.error
        results.append(stored.result)
    return results


def run_configs(
    configs: Sequence[RunConfig],
    options: SweepOptions,
    on_event: Listener = ignore_event,
    *,
    backbones: "dict[str, Backbone] | None" = None,
    failures: dict[int, Exception] | None = None,
) -> list[Result | None]:
    """Make the runs that are not finished, one after another.

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
    for index, config in enumerate(configs):
        if results[index] is not None:
            continue
        name = format_run_name(config, has_many_datasets)
        on_event(RunStarted(name, config))
        try:
            result = results[index] = maker.make(name, config)
        except Exception as error:
            if failures is None:
                raise
            failures[index] = error
            on_event(RunFailed(name, error))
        else:
            on_event(RunFinished(name, result))
    return results


class RunMaker:
    """Makes runs one after another in this process; what they share is loaded and measured once.

    Args:
        options: how and where.
        on_event: hears of each step, test and notice.
        backbones: those by name that are loaded already; others are added.
    """

    def __init__(
        self,
        options: SweepOptions,
        on_event: Listener = ignore_event,
        backbones: "dict[str, Backbone] | None" = None,
    ) -> None:
        self.options, self.on_event = options, on_event
        self.backbones = LoadedBackbones(options, {} if backbones is None else backbones)
        self.memory_plans: dict[str, MemoryPlan] = {}  # runs that differ by their seed share one

    def make(self, name: str, config: RunConfig) -> Result:
        """Make a run, or return the result of one that is finished.

        Args:
            name: of the run, for its notices.
            config: of the run.

        Raises:
            ChangedInputsError: for a run whose folder holds one on other inputs, unless `options.fresh`.
        """
        from vlprompt.experiments.runner import run

        with distributed.local_main_process_first():
            task = build_task(config.task)
            protocol = task.protocol  # opens the data, so that their errors come before a backbone is loaded
        for data in getattr(task, "opened_data", ()):  # a task of a user's own may have none
            self.on_event(DatasetOpened(summarize_dataset(data), data.remarks))
        for text in _iter_warnings(protocol):
            self.on_event(Notice(name, text))
        with distributed.local_main_process_first():
            backbone = self.backbones.load(config)
        method = build_method(config.method, backbone)
        inputs = distributed.broadcast_from_main(lambda: describe_inputs(task, config, backbone))
        folder = choose_run_folder(self.options, config, inputs)
        if damage := folder.find_damage():
            self.on_event(Notice(name, f"runs again, as a file is damaged: {damage}"))
        overrides = self._choose_memory_overrides(name, config, task, backbone)

        def make_run(on_event: Listener) -> Result:
            return run(
                method,
                task,
                config,
                folder.path,
                save_every=self.options.save_every,
                on_event=on_event,
                max_lessons=self.options.max_lessons,
                memory_overrides=overrides,
                inputs=inputs,
            )

        return self._track(make_run, config, folder)

    def _track(self, make_run: Callable[[Listener], Result], config: RunConfig, folder: RunFolder) -> Result:
        """Make a run, copied to the trackers by the main process."""
        has_all = folder.read_finished() is not None and not _is_tracked_in_part(folder, self.options)
        if not self.options.trackers or not distributed.is_main_process() or has_all:
            return make_run(self.on_event)
        from vlprompt.experiments.trackers.tracker import TrackedRun
        from vlprompt.experiments.trackers.tracking import follow_run

        tracked = TrackedRun(folder.path.name, config.to_dict(), folder.path, self.options.runs_folder)
        with follow_run(self.options.trackers, tracked) as listener:

            def hear(event: Event) -> None:
                listener.hear(event)
                self.on_event(event)

            result = make_run(hear)
            listener.finish(None if "paused" in result.protocol else result)
        return result

    def _choose_memory_overrides(
        self, name: str, config: RunConfig, task: "Task", backbone: "Backbone"
    ) -> dict[str, Any]:
        """Return the settings by which a run fits into the memory, and report its cost where that was measured."""
        from vlprompt.experiments.memory_plan import plan_memory

        if distributed.get_world_size() > 1:
            return {}
        stage = next(iter(task.stages()))
        n_test_images = sum(len(test) for test in stage.tests.values())
        sizes = len(stage.lesson.train.names), len(stage.lesson.train), n_test_images
        key = json.dumps([config.backbone, config.preprocess, config.method, config.train, *sizes])
        if key in self.memory_plans:
            return self.memory_plans[key].overrides

        def build() -> Any:
            return build_method(config.method, backbone)

        try:
            plan = self.memory_plans[key] = plan_memory(build, stage.lesson, config.train_config, n_test_images)
        except ValueError as error:  # a few images may be too few for a method; another mistake stops the run itself
            text = f"memory and time: not measured before the run ({error})"
            self.on_event(Notice(name, text, is_warning=False))
            return {}
        if plan.seconds or not plan.fits:
            self.on_event(Notice(name, f"about {plan}", is_warning=bool(plan.overrides) or not plan.fits))
        return plan.overrides


def _iter_warnings(protocol: dict[str, Any]) -> Iterator[str]:
    """Yield what a user should know of the data of a task."""
    if small := protocol.get("undersized_classes"):
        yield f"{len(small)} classes have fewer images than task.shots ({', '.join(small[:5])}); all of them are used"
    yield from protocol.get("warnings", [])
