"""run: train and test a method on a task, resumably, and write one folder."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from vlprompt.backbones.cache.stats import CacheStats
from vlprompt.backbones.schemes import choose_threads
from vlprompt.config.describe import describe_run, to_plain_value
from vlprompt.config.run_config import RunConfig
from vlprompt.core.method import Method
from vlprompt.core.stage import Lesson, Stage
from vlprompt.core.towers import VisionTower, find_feature_cache, find_input_tower, validate_stage_inputs
from vlprompt.engine.loop import Loop, State, Step, fit
from vlprompt.engine.model_selection import SELECTION_DESCRIPTIONS
from vlprompt.engine.side_by_side import GroupMember
from vlprompt.engine.train_config import TrainConfig
from vlprompt.engine.unseen_classes import require_test_classes
from vlprompt.experiments.adaptation_metrics import evaluate_baselines, record_epoch
from vlprompt.experiments.events import EpochDone, Listener, StageTested, StepDone
from vlprompt.experiments.inputs import describe_inputs, describe_uses
from vlprompt.experiments.learned.teacher import find_teachers, require_teachers
from vlprompt.experiments.provenance import describe_environment, describe_learned_state, describe_predictions
from vlprompt.experiments.run_requirements import (
    require_image_towers,
    require_label_kind,
    require_task,
    require_valid_options,
)
from vlprompt.experiments.stage_tests import StageOutcome, StageTests, TestScores
from vlprompt.results.run_folder import Result, RunFolder
from vlprompt.results.run_inputs import Inputs
from vlprompt.results.step_log import StepLog
from vlprompt.results.tensor_files import serialize_tensors
from vlprompt.runtime import collectives, distributed, memory
from vlprompt.runtime.errors import NonFiniteError, RunLostError, RunStoppedError
from vlprompt.runtime.seeding import make_generator
from vlprompt.tasks import Task

NO_OVERRIDES: Mapping[str, Any] = MappingProxyType({})


def run(
    method: Method,
    task: Task,
    config: TrainConfig | RunConfig | None = None,
    folder: str | Path | None = None,
    seed: int | None = None,
    *,
    save_every: float = 5.0,
    on_event: Listener | None = None,
    max_lessons: int | None = None,
    memory_overrides: Mapping[str, Any] = NO_OVERRIDES,
    member: GroupMember | None = None,
    before_write: Callable[[], None] | None = None,
    inputs: Inputs | None = None,
    keep_predictions: bool = False,
) -> Result:
    """Train and test a method on a task.

    Args:
        method: on its backbone, as it was constructed.
        task: what to train and test on.
        config: of the training, default `TrainConfig()`; or the resolved configuration that method and task were
            built from.
        folder: where to write, None for nowhere. A folder that holds this very run is resumed, or its result is
            returned at once.
        seed: of initial values, order and augmentations; default that of a `RunConfig`, else the task's.
        save_every: seconds between two saved states.
        on_event: called after each step and each batch of a test. A RunStoppedError that it raises stops the run
            where it is, and the same call goes on from there.
        max_lessons: pause after this number of lessons. The result is of those, says so under protocol["paused"] and
            is not written; the same call without `max_lessons` goes on.
        memory_overrides: settings of training that change what it holds in memory and nothing that it learns
            (micro_batch_size, text_micro_batch, activation_checkpointing), as memory_plan.py chooses them. They are
            in the result, not in the configuration.
        member: the place of this run among others that train side by side; `method` is built on its `clip`.
        before_write: called before each file of the run is written. A RunLostError that it raises ends the run, and
            nothing more is written.
        inputs: what the run stands on, where that is described already.
        keep_predictions: write the predictions and logits of each item of the last tests into the folder, in Parquet.

    Raises:
        ValueError: for a folder that holds another run, or a method that does not suit the backbone, task or tests.
        NonFiniteError: for a loss that is not a number, after the last good state was saved.
    """
    require_image_towers(method)
    require_task(method, task)
    require_teachers(method, task, None if folder is None else Path(folder))
    require_valid_options(max_lessons, memory_overrides)
    config = config or TrainConfig()
    seed = seed if seed is not None else config.seed if isinstance(config, RunConfig) else task.seed
    run_config = describe_run(method, task, config, seed)
    train = config.train_config if isinstance(config, RunConfig) else config
    run_folder = None if folder is None or not distributed.is_main_process() else RunFolder(Path(folder), before_write)
    config_dict = run_config.to_dict()
    if inputs is None:
        inputs = distributed.broadcast_from_main(
            lambda: {} if run_folder is None else describe_inputs(task, run_config, method.backbone, method)
        )

    def read_finished() -> Result | None:
        return distributed.broadcast_from_main(lambda: run_folder and run_folder.read_finished())

    result = read_finished()
    if result is not None and result.config == config_dict:
        if run_folder is not None:
            run_folder.require_inputs(inputs)
            run_folder.remove_leftovers()
        return result
    options = save_every, on_event, max_lessons, dict(memory_overrides), inputs, member, keep_predictions
    job = _Run(method, task, replace(train, **memory_overrides), run_config, run_folder, *options)
    opened = nullcontext() if run_folder is None else run_folder.open(config_dict, inputs)
    with use_threads(run_config.backbone), opened:
        return read_finished() or job.execute()


@contextmanager
def use_threads(backbone: str) -> Iterator[None]:
    """Compute with the threads that were asked for, or with one where more only slow a small backbone."""
    before = torch.get_num_threads()
    torch.set_num_threads(choose_threads(backbone) or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass
class _RunProgress:
    """What a saved state says of the run: the stage where it goes on, and whether that stage was being trained."""

    next_stage: int = 0
    is_training: bool = False
    scores: list[TestScores] = field(default_factory=list)
    class_accuracy: list[TestScores] = field(default_factory=list)
    confusion: dict[str, dict[str, Any]] = field(default_factory=dict)  # of the last tests
    stages: list[dict[str, Any]] = field(default_factory=list)
    epochs: list[dict[str, float]] = field(default_factory=list)  # of the stage that is being trained
    seconds: float = 0.0
    log_bytes: int = 0
    trained_parameters: int = 0
    side_by_side: int = 0  # most runs that shared a pass of its training, itself among them
    memory_overrides: dict[str, Any] = field(default_factory=dict)  # of any part of the training
    cache_counts: list[int] = field(default_factory=lambda: [0, 0])  # misses, hits


@dataclass
class _Run:
    method: Method
    task: Task
    train_config: TrainConfig
    run_config: RunConfig
    folder: RunFolder | None
    save_every: float
    on_event: Listener | None
    max_lessons: int | None
    memory_overrides: dict[str, Any]
    inputs: Inputs
    member: GroupMember | None
    keeps_predictions: bool = False

    def execute(self) -> Result:
        saved = distributed.broadcast_from_main(lambda: self.folder.load_state() if self.folder else None)
        self.progress, state = (_RunProgress(**saved[1]), saved[0]) if saved else (_RunProgress(), None)
        self.progress.memory_overrides = self.progress.memory_overrides | self.memory_overrides
        self.clock = time.monotonic if self.member is None else self.member.clock
        self.start_time, self.previous_seconds = self.clock(), self.progress.seconds
        backbone = self.method.backbone
        memory.reset_peak(torch.device("cpu") if backbone is None else backbone.device)
        self.cache_stats = CacheStats(find_feature_cache(backbone), self.progress.cache_counts)
        lessons, pause = list[Lesson](), ""
        self.lessons = lessons
        with torch.random.fork_rng(), StepLog(self.folder, self.progress.log_bytes) as self.step_log:
            for index, stage in enumerate(self.task.stages()):
                validate_stage_inputs(backbone, stage)
                require_label_kind(self.method, stage.lesson)
                if needs_training := self._needs_training(stage.lesson):
                    lessons.append(stage.lesson.without_items())
                if index < self.progress.next_stage:
                    if needs_training:  # for the shapes that the lesson gives the method
                        self._begin_lesson(lessons[-1], index)
                    continue
                if pause := self._describe_pause(index, stage.lesson):
                    break
                self._run_stage(index, stage, state)
                state = None
        return self._build_result(lessons, pause)

    def _describe_pause(self, index: int, lesson: Lesson) -> str:
        """Return where the run pauses, "" where it goes on."""
        if self.max_lessons is None:
            return ""
        if lesson.total == 1:
            raise ValueError(
                f"--max-lessons: expected a stream of several lessons to pause, got --max-lessons={self.max_lessons} "
                "for "
                "one lesson. Leave --max-lessons out."
            )
        return f"after {index} of {lesson.total} lessons" if index >= self.max_lessons else ""

    def _needs_training(self, lesson: Lesson) -> bool:
        """Return whether the method begins a lesson: after the source only methods that adapt begin unlabelled ones."""
        return not lesson.index or bool(len(lesson.train)) or not lesson.unlabelled or self.method.needs_unlabelled

    def _run_stage(self, index: int, stage: Stage, state: State | None) -> None:
        """Train on a lesson, test, and save; `state` is where a run was stopped."""
        progress, lesson, start = self.progress, stage.lesson, self.clock()
        scores: TestScores = {}
        if state is not None and not progress.is_training:
            self.method.load_state_dict({k.removeprefix("method/"): v for k, v in state.tensors.items()})
            state = None
        require_test_classes(self.method, stage, getattr(self.task, "seen_classes_hint", ""))
        keeps_predictions = self.keeps_predictions and self.folder is not None
        origin = describe_predictions(self.run_config.to_dict(), self.lessons) if keeps_predictions else None
        tests = StageTests(self.method, self.train_config, self.on_event, origin)
        if stage.initial_tests:
            self._begin_lesson(lesson.without_items(), index)
            scores |= tests.evaluate_unseen(stage.initial_tests)
        if self._needs_training(lesson):
            self._begin_lesson(lesson, index)
            n_parameters = self._count_parameters()
            progress.trained_parameters = max(progress.trained_parameters, n_parameters)
            progress.is_training = True
            self._train_stage(stage, state)
            with collectives.synchronize_state(self.method):
                self.method.end_lesson(lesson)
        outcome = tests.evaluate(stage)
        scores |= outcome.scores | tests.evaluate_unseen(stage.future_tests)
        scores |= evaluate_baselines(self.method, stage, progress.epochs, self.train_config.micro_batch_size)
        progress.scores = [*progress.scores, scores]
        progress.class_accuracy = [*progress.class_accuracy, outcome.class_accuracy]
        progress.stages = [*progress.stages, self._describe_stage(self.clock() - start, outcome)]
        progress.confusion = outcome.confusion
        if self.folder is not None:
            if outcome.answers:
                self.folder.save_answers(outcome.answers, outcome.unknown_scores)
            self.folder.save_predictions(outcome.predictions)
        progress.next_stage, progress.is_training, progress.epochs = index + 1, False, []
        self._report_stage(lesson)
        self.cache_stats.flush()
        if lesson.total != index + 1:
            self._save_state(State(tensors={f"method/{k}": v.detach() for k, v in self.method.state_dict().items()}))

    def _describe_stage(self, seconds: float, outcome: StageOutcome) -> dict[str, Any]:
        return {
            "parameters": self._count_parameters(),
            "state_bytes": sum(t.nbytes for t in self.method.state_dict().values()),
            "seconds": seconds,
            **({"prompt_usage": outcome.prompt_usage} if outcome.prompt_usage else {}),
            **({"notes": [*outcome.notes]} if outcome.notes else {}),
            **({"epochs": self.progress.epochs} if self.progress.epochs else {}),
        }

    def _count_parameters(self) -> int:
        return sum(p.numel() for p in self.method.parameters())

    def _begin_lesson(self, lesson: Lesson, index: int) -> None:
        with collectives.synchronize_state(self.method):
            self.method.begin_lesson(lesson, make_generator(self.run_config.seed, "begin", index))

    def _train_stage(self, stage: Stage, resume_state: State | None) -> None:
        lesson, train, seed = stage.lesson, self.train_config, self.run_config.seed
        if lesson.domains and lesson.total != 1 and not lesson.unlabelled:  # a source, before the target comes
            if train.model_selection == "val":
                raise ValueError(
                    "train.model_selection: expected a rule without source images for task.setting=source_free, got "
                    "val. Set train.model_selection=entropy."
                )
            train = replace(train, model_selection="last")

        def record(loop: Loop) -> dict[str, float]:
            epoch = record_epoch(stage, train, seed, loop)
            self.progress.epochs = [*self.progress.epochs, epoch]
            return {**epoch, "oracle": epoch["target"]}

        differentiate = torch.autograd.grad
        if self.member is not None:
            differentiate = self.member.differentiate
        last_saved, step = time.monotonic(), None
        on_epoch = record if stage.needs_epoch_metrics else None
        try:
            for step in fit(self.method, lesson, train, seed, resume_state, on_epoch, differentiate):
                values = {"stage": lesson.index, "epoch": step.epoch, "step": step.step, "lr": step.lr}
                self.step_log.write({**values, **step.terms})
                self._report_epoch(step, lesson)
                if self.folder is not None and time.monotonic() - last_saved >= self.save_every:
                    self._save_state(step.loop.state())
                    last_saved = time.monotonic()
                self._report_step(step, lesson)
            if step is not None:
                self._save_state(step.loop.state())  # the tests may take long
        except RunLostError:
            raise
        except (NonFiniteError, RunStoppedError):
            if step is not None:
                self._save_state(step.loop.state())
            raise

    def _report_epoch(self, step: Step, lesson: Lesson) -> None:
        """Report the end of an epoch; before the state is saved, so that a run that goes on has reported it."""
        if self.on_event and not step.loop.cursor.batch_index:
            scores = self.progress.epochs[-1] if self.progress.epochs else step.loop.epoch_scores
            scores = {name: value for name, value in scores.items() if name not in ("epoch", "step")}
            self.on_event(EpochDone(step.epoch + 1, lesson.index, scores))

    def _report_stage(self, lesson: Lesson) -> None:
        """Report the tests of a stage; before the state is saved, so that a run that goes on has reported them."""
        if self.on_event:
            self.on_event(StageTested(lesson.index, lesson.total, self.progress.scores[-1]))

    def _report_step(self, step: Step, lesson: Lesson) -> None:
        if self.on_event:
            place = lesson.index, lesson.total
            self.on_event(StepDone(step.step, step.total_steps, step.loss, step.lr, *place, step.terms))

    def _measure_seconds(self) -> float:
        return self.previous_seconds + self.clock() - self.start_time

    def _count_side_by_side(self) -> int:
        return max(self.progress.side_by_side, 0 if self.member is None else self.member.n_joined)

    def _save_state(self, state: State) -> None:
        if self.folder is not None:
            self.step_log.flush()
            self.progress.cache_counts = self.cache_stats.counts()
            self.progress.seconds, self.progress.log_bytes = self._measure_seconds(), self.step_log.n_bytes
            self.progress.side_by_side = self._count_side_by_side()
            self.folder.save_state(state, asdict(self.progress))

    def _build_result(self, lessons: list[Lesson], pause: str) -> Result:
        progress, backbone = self.progress, self.method.backbone
        tower = None if backbone is None else find_input_tower(backbone)
        device, key = (torch.device("cpu"), "") if tower is None else (tower.device, tower.key)
        config = self.run_config.to_dict()
        cost: dict[str, float] = {
            "seconds": self._measure_seconds(),
            "trained_parameters": progress.trained_parameters,
        }
        if backbone is not None and backbone.n_parameters:
            cost["trained_percent"] = 100 * progress.trained_parameters / backbone.n_parameters
        cost["peak_memory_mb"] = max(distributed.all_gather(memory.measure_peak(device)))
        cost |= self.cache_stats.cost()
        learned = serialize_tensors(self.method.state_dict(), describe_learned_state(key, lessons, config))
        cost["stored_bytes"] = len(learned)
        environment = describe_environment(device)
        environment |= {"memory_overrides": progress.memory_overrides} if progress.memory_overrides else {}
        n_runs = self._count_side_by_side()
        environment |= {"trained_side_by_side": n_runs} if n_runs > 1 else {}
        result = Result(
            config,
            progress.scores,
            self.task.summary(progress.scores),
            cost,
            environment,
            self._describe_protocol(pause),
            progress.class_accuracy,
            progress.stages,
            confusion=progress.confusion,
        )
        folder = None if pause else self.folder
        return distributed.broadcast_from_main(lambda: result if folder is None else folder.finish(result, learned))

    def _describe_protocol(self, pause: str) -> dict[str, Any]:
        """Return what must agree where results are compared."""
        backbone = self.method.backbone
        tower = None if backbone is None else find_input_tower(backbone)
        clipped = {
            setting: how
            for part in self.method.modules()
            for setting, how in getattr(part, "clipped_settings", {}).items()
        }
        teachers = find_teachers(self.method)
        protocol = {
            **self.task.protocol,
            **describe_uses(self.method),
            **({"teachers": {setting: teacher.key for setting, teacher in teachers.items()}} if teachers else {}),
            **({"contents": self.inputs["contents"]} if self.inputs else {}),
            "selection": SELECTION_DESCRIPTIONS[self.train_config.model_selection],
            "backbone_key": "" if tower is None else tower.key,
            "clipped_settings": clipped if tower is None else {**tower.notes, **clipped},
        }
        if self.method.is_online:
            protocol["order_dependent"] = True
        if isinstance(tower, VisionTower):
            protocol["preprocess"] = to_plain_value(asdict(tower.preprocessing))
        if self.progress.trained_parameters and protocol.get("augment", "none") != "none":
            protocol["augmentations"] = self.train_config.augmentations or "one per epoch"
        return protocol | ({"paused": pause} if pause else {})
