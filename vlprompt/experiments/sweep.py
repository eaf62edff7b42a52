"""Many runs by one command: resolve their configurations, and make those that are not finished."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlprompt.backbones.schemes import choose_threads
from vlprompt.config.build import build_method, build_task
from vlprompt.config.resolve import load_layered_config, resolve_grid
from vlprompt.config.run_config import RunConfig, hash_config
from vlprompt.data.report import summarize_dataset
from vlprompt.experiments.domain_pairs import expand_domain_pairs
from vlprompt.experiments.events import (
    DatasetOpened,
    Listener,
    Notice,
    RunFailed,
    RunFinished,
    RunStarted,
    SweepStarted,
    ignore_event,
)
from vlprompt.experiments.inputs import describe_inputs
from vlprompt.results.comparability import CONTINUAL, DOMAIN
from vlprompt.results.run_folder import Result, RunFolder
from vlprompt.results.run_inputs import Inputs
from vlprompt.runtime import distributed
from vlprompt.runtime.settings import SETTINGS

if TYPE_CHECKING:
    from vlprompt.core.towers import Backbone
    from vlprompt.experiments.memory_plan import MemoryPlan
    from vlprompt.tasks import Task

# backbones whose passes are so short that a second thread only waits for the first


@dataclass(frozen=True)
class SweepOptions:
    """How and where runs are made; nothing that they learn depends on it.

    Args:
        runs_folder: where the folder of each run goes.
        device: as `load` takes it.
        threads: CPU threads; None for torch's default, but one for the embedded backbones.
        save_every: seconds between two saved states.
        max_lessons: pause streams after this number of lessons.
        fresh: make a run in a new folder where its folder holds one on other inputs.
    """

    runs_folder: Path
    device: str | None = None
    threads: int | None = None
    save_every: float = 5.0
    max_lessons: int | None = None
    fresh: bool = False


@dataclass
class LoadedBackbones:
    """Backbones by name, each loaded once; those that differ in preprocessing only share their weights.

    Args:
        options: on which device, with how many threads.
        backbones: those that are loaded already.
    """

    options: SweepOptions
    backbones: "dict[str, Backbone]" = field(default_factory=dict)

    def load(self, config: RunConfig) -> "Backbone":
        """Return the backbone of a run, and set the threads that suit it."""
        import torch

        from vlprompt.core.towers import find_preprocessing, with_preprocessing
        from vlprompt.data.images.preprocess_presets import resolve_preprocessing

        SETTINGS.threads = self.options.threads
        if (threads := choose_threads(config.backbone)) is not None:
            torch.set_num_threads(threads)
        backbone = self._load_once(config.backbone)
        if config.preprocess is None:
            return backbone
        key = f"{config.backbone} {json.dumps(config.preprocess)}"
        if key not in self.backbones:
            preprocessing = resolve_preprocessing(config.preprocess, find_preprocessing(backbone))
            self.backbones[key] = with_preprocessing(backbone, preprocessing)
        return self.backbones[key]

    def _load_once(self, name: str) -> "Backbone":
        from vlprompt.backbones import load_backbone
        from vlprompt.backbones.feature_cache import attach_disk_cache

        if name not in self.backbones:  # without its notes, which are shown with each result
            backbone = load_backbone(name, self.options.device)
            self.backbones[name] = attach_disk_cache(backbone, SETTINGS.get_cache_folder())
        return self.backbones[name]


def resolve_sweep(
    methods: Sequence[str | None],
    shots: Sequence[int | None],
    seeds: Sequence[int | None],
    *,
    source: str | None = None,
    target: str | None = None,
    task: str | None = None,
    **options: Any,
) -> list[RunConfig]:
    """Resolve all combinations of methods, shots, seeds and pairs of domains.

    Args:
        methods: None for the one that a file of settings names.
        source: of domains: one, several with commas, "rest" or "none"; None for each in turn.
        target: of domains: one, or several in turn with commas; None for each in turn.
        task: its name; None for the one of a file, or that suits the methods.
        **options: dataset, backbone, config_file and overrides, as `load_layered_config` takes them.

    Raises:
        ValueError: for settings that can't be resolved, or domains with another task.
    """
    if source is not None or target is not None:
        if task not in (None, DOMAIN):
            raise ValueError(
                f"--source, --target: expected the task {DOMAIN}, got {task}. Leave them out, or set --task {DOMAIN}."
            )
        task = DOMAIN
    tasks = [load_layered_config(method, task=task, **options).values["task"] for method in methods]
    kinds = {settings["name"] for settings in tasks}
    if len(kinds) > 1 and DOMAIN in kinds:  # no task was named, and one of the methods allows only this one
        task = DOMAIN
        tasks = [load_layered_config(method, task=task, **options).values["task"] for method in methods]
    overrides = options.pop("overrides", ())
    configs = list[RunConfig]()
    for method, settings in zip(methods, tasks, strict=True):
        is_domain = settings["name"] == DOMAIN
        for pair in expand_domain_pairs(settings, source, target) if is_domain else [[]]:
            name = DOMAIN if is_domain else task
            configs += resolve_grid([method], shots, seeds, task=name, overrides=[*overrides, *pair], **options)
    return configs


def format_run_name(config: RunConfig, with_dataset: bool = True) -> str:
    """Format a run for the terminal: its dataset, method, shots and seed."""
    name = f"{config.method['name']} {_format_data_size(config.task)}, seed {config.seed}"
    return f"{_format_dataset_name(config.task)}: {name}" if with_dataset else name


def get_run_folder(runs_folder: Path, config: RunConfig) -> RunFolder:
    """runs/<method>-<dataset>-<shots>shot-seed<seed>-<hash>; only the hash distinguishes runs for certain."""
    method = config.method["name"].rpartition(":")[2]
    size = _format_data_size(config.task, "")
    name = f"{method}-{_format_dataset_name(config.task)}-{size}-seed{config.seed}-{config.hash}"
    return RunFolder(runs_folder / name)


def choose_run_folder(options: SweepOptions, config: RunConfig, inputs: Inputs) -> RunFolder:
    """Return the folder of a run on these inputs: the one of its configuration, or one beside it.

    Raises:
        ChangedInputsError: where that holds a run on other inputs and `fresh` does not allow a new folder.
    """
    folder = get_run_folder(options.runs_folder, config)
    siblings = sorted(folder.path.parent.glob(f"{escape(folder.path.name)}-*"))
    candidates = folder, *map(RunFolder, siblings)
    n_changes = {one: len(one.list_changed_inputs(inputs)) for one in candidates}
    nearest = min(n_changes, key=n_changes.__getitem__)
    if not n_changes[nearest]:
        return nearest
    if not options.fresh:
        nearest.require_inputs(inputs)
    return RunFolder(folder.path.with_name(f"{folder.path.name}-{hash_config(inputs)[:6]}"))


def _read_finished(options: SweepOptions, config: RunConfig, goes_on: bool) -> Result | None:
    """Return the result of a finished run, None for another or a damaged one.

    Data are opened only where there is something to compare.

    Args:
        options: where the runs are.
        config: of the run.
        goes_on: return None for a run that can't be compared, which then fails in its turn.

    Raises:
        ChangedInputsError: as `choose_run_folder`.
    """
    if not get_run_folder(options.runs_folder, config).path.exists():
        return None
    try:
        folder = choose_run_folder(options, config, describe_inputs(build_task(config.task), config))
    except (ValueError, OSError):
        if goes_on:
            return None
        raise
    folder.remove_leftovers()
    return folder.read_finished()


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
        lambda: [_read_finished(options, config, failures is not None) for config in configs]
    )
    if all(results):
        return results
    sweep = _Sweep(options, on_event, LoadedBackbones(options, {} if backbones is None else backbones))
    has_many_datasets = len({_format_dataset_name(config.task) for config in configs}) > 1
    on_event(SweepStarted(len(configs), sum(result is not None for result in results)))
    for index, config in enumerate(configs):
        if results[index] is not None:
            continue
        name = format_run_name(config, has_many_datasets)
        on_event(RunStarted(name, config))
        try:
            result = results[index] = sweep.run_one(name, config)
        except Exception as error:
            if failures is None:
                raise
            failures[index] = error
            on_event(RunFailed(name, error))
        else:
            on_event(RunFinished(name, result))
    return results


@dataclass
class _Sweep:
    options: SweepOptions
    on_event: Listener
    backbones: LoadedBackbones
    memory_plans: "dict[str, MemoryPlan]" = field(default_factory=dict)  # runs that differ by their seed share one

    def run_one(self, name: str, config: RunConfig) -> Result:
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
        return run(
            method,
            task,
            config,
            folder.path,
            save_every=self.options.save_every,
            on_event=self.on_event,
            max_lessons=self.options.max_lessons,
            memory_overrides=self._choose_memory_overrides(name, config, task, backbone),
        )

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


def _format_data_size(task: dict[str, Any], separator: str = " ") -> str:
    """Format how much data a run has: shots, or the lessons of a stream."""
    k, stages = task.get("shots"), task.get("stages")
    if task["name"] == CONTINUAL and k is None:
        return "stream" if stages is None else f"{stages if isinstance(stages, int) else len(stages)}{separator}stages"
    if task["name"] == DOMAIN and k is None:
        return task["setting"].replace("_", "-")
    return f"{k if k is not None else 'all'}{separator}shot" + ("s" if separator and k != 1 else "")


def _format_dataset_name(task: dict[str, Any]) -> str:
    """Format the data of a run for the name of its folder."""

    def shorten(dataset: object) -> str:
        return Path(str(dataset)).name.replace(" ", "_")

    if task["name"] != DOMAIN:
        return shorten(task.get("dataset", task["name"]))
    source = task["source"]
    sources = source if isinstance(source, list) else [source or _describe_missing_source(task["setting"])]
    pair = f"{'+'.join(map(shorten, sources))}-to-{shorten(task['target'])}"
    return f"{shorten(task['dataset'])}-{pair}" if task["dataset"] else pair


def _describe_missing_source(setting: str) -> str:
    return "none" if setting == "source_free" else "rest"
