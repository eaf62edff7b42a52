"""run: a method and a task, joined; the few lines between data and results."""

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from vlprompt.backbones.cache.stats import Counted
from vlprompt.config.describe import configuration, plain
from vlprompt.core.batch import Split
from vlprompt.core.compute_options import How
from vlprompt.core.introspection import backbone_of, computed
from vlprompt.core.method import Method
from vlprompt.core.stage import Lesson, Stage
from vlprompt.core.towers import Clip, VisionTower, fits, kept_of, tower_of
from vlprompt.engine.evaluate import evaluate
from vlprompt.engine.loop import Loop, NotFinite, State, fit
from vlprompt.engine.model_selection import SELECTION
from vlprompt.engine.train_config import Train
from vlprompt.experiments.adaptation_metrics import beside, epoch_record
from vlprompt.experiments.provenance import environment, learned_from
from vlprompt.results.run_folder import Folder, Result, tensors_as_bytes
from vlprompt.results.step_log import Log
from vlprompt.runtime import collectives, distributed, memory
from vlprompt.runtime.errors import UnknownClass
from vlprompt.runtime.seeding import generator
from vlprompt.tasks import Task

Watch = Callable[[str, int, int, str], None]
SPARED = ("micro_batch", "chunk", "checkpointing")
NONE: Mapping[str, Any] = MappingProxyType({})


def run(method: Method, task: Task, train: Train | None = None, folder: str | Path | None = None,
        seed: int | None = None, *, save_every: float = 5.0, watch: Watch | None = None,
        until: int | None = None, spare: Mapping[str, Any] = NONE) -> Result:  # fmt: skip
    """Train and test a method on a task.

    train: default `Train()`. folder: where to write (None: nowhere); a folder that holds this very run is resumed, or
    its result given at once. seed: of initial values, order and views; default the task's. save_every: seconds between
    two saved states. watch: called after each step and each batch of a test with (what, done, of how many, note).
    until: stop after so many lessons; the result is of those, says so under protocol["paused"] and is not written, and
    the same call without `until` goes on. spare: settings of training that change what it holds and nothing that it
    learns (micro_batch, chunk, checkpointing), as plan.py chooses them; they are in the result, not in what tells a run
    from others. Raises NotFinite for a loss that is not a number, after saving the last good
    state.
    """
    train, seed = train or Train(), task.seed if seed is None else seed
    if any(isinstance(getattr(part, "tower", None), Clip) for part in method.modules()):
        raise ValueError(f"{type(method).__name__} stands on an image tower, not on a CLIP: give it clip.image")
    if until is not None and until < 1:
        raise ValueError(f"a run can pause after 1 lesson or more, not after {until}")
    if strange := set(spare) - set(SPARED):
        raise ValueError(f"spare may say {', '.join(SPARED)}, not {', '.join(sorted(strange))}")
    config = configuration(method, task, train, seed)
    place = None if folder is None or not distributed.first() else Folder(Path(folder))
    one = _Run(method, task, replace(train, **spare), seed, config, place, save_every, watch, until, dict(spare))
    done = distributed.of_first(lambda: place and place.done())
    if done is not None and done.config == config:
        return done
    with nullcontext() if place is None else place.opened(config):
        return distributed.of_first(lambda: place and place.done()) or one.go()


@dataclass
class _Told:
    """What a saved state says of the run: `stage` is where it goes on, `begun` whether that stage was being trained."""

    stage: int = 0
    begun: bool = False
    scores: list[dict[str, dict[str, float]]] = field(default_factory=list)
    classes: list[dict[str, dict[str, float]]] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    epochs: list[dict[str, float]] = field(default_factory=list)  # of the stage that is being trained
    seconds: float = 0.0
    log: int = 0
    trained: int = 0
    features: list[int] = field(default_factory=lambda: [0, 0])  # computed, and found


@dataclass
class _Run:
    method: Method
    task: Task
    train: Train
    seed: int
    config: dict[str, Any]
    place: Folder | None
    save_every: float
    watch: Watch | None
    until: int | None
    spare: dict[str, Any]

    def go(self) -> Result:
        saved = distributed.of_first(lambda: self.place.load() if self.place else None)
        self.told, state = (_Told(**saved[1]), saved[0]) if saved else (_Told(), None)
        self.began, self.spent, lessons, paused = time.monotonic(), self.told.seconds, list[Lesson](), ""
        backbone = backbone_of(self.method)
        memory.forget(torch.device("cpu") if backbone is None else backbone.device)
        self.features = Counted(kept_of(backbone), self.told.features)
        with torch.random.fork_rng(), Log(self.place, self.told.log) as self.log:
            for index, stage in enumerate(self.task.stages()):
                fits(backbone, stage)
                if learns := self._learns(stage.lesson):
                    lessons.append(stage.lesson.empty())
                if index < self.told.stage:
                    if learns:  # only the shape that it gave the method
                        self._begin(lessons[-1], index)
                    continue
                if self.until is not None and stage.lesson.total == 1:
                    raise ValueError("there is one lesson only, so nothing to pause after: leave out --until-task")
                if self.until is not None and index >= self.until:
                    paused = f"after {index} of {stage.lesson.total} lessons"
                    break
                self._stage(index, stage, state)
                state = None
        return self._result(lessons, paused)

    def _learns(self, lesson: Lesson) -> bool:
        """Whether a lesson is one for the method: after the source only what adapts begins one without labels."""
        return not lesson.index or bool(len(lesson.train)) or not lesson.unlabelled or self.method.adapts

    def _stage(self, index: int, stage: Stage, state: State | None) -> None:
        """Learn a lesson, test, and save what came of it; `state` is where a run was stopped."""
        told, lesson, start = self.told, stage.lesson, time.monotonic()
        scores, classes = dict[str, dict[str, float]](), dict[str, dict[str, float]]()
        if state is not None and not told.begun:
            self.method.load_state_dict({k.removeprefix("method/"): v for k, v in state.tensors.items()})
            state = None
        if stage.before:
            self._begin(lesson.empty(), index)
            scores |= self._ahead(stage.before)
        if self._learns(lesson):
            self._begin(lesson, index)
            told.trained = max(told.trained, sum(p.numel() for p in self.method.parameters()))
            told.begun = True
            self._learn(stage, state)
            with collectives.as_one(self.method):
                self.method.end(lesson)
        used = dict[str, list[float]]()
        for name, test in stage.tests.items():
            found = self._test(name, test)
            scores |= {name: found.numbers, **{f"{name}/{k}": part for k, part in found.parts.items()}}
            classes[name] = found.classes
            used |= {name if k is None else f"{name}/{k}": share for k, share in found.used.items()}
        scores |= self._ahead(stage.ahead) | beside(self.method, stage, told.epochs, self.train.micro_batch)
        about: dict[str, Any] = {"parameters": sum(p.numel() for p in self.method.parameters())}
        about["bytes"] = sum(t.nbytes for t in self.method.state_dict().values())
        about |= {"seconds": time.monotonic() - start} | ({"used": used} if used else {})
        about |= {"epochs": told.epochs} if told.epochs else {}
        told.scores, told.classes = [*told.scores, scores], [*told.classes, classes]
        told.stages, told.stage, told.begun, told.epochs = [*told.stages, about], index + 1, False, []
        self.features.flush()
        if lesson.total != index + 1:
            self._save(State(tensors={f"method/{k}": v.detach() for k, v in self.method.state_dict().items()}))

    def _begin(self, lesson: Lesson, index: int) -> None:
        with collectives.as_one(self.method):
            self.method.begin(lesson, generator(self.seed, "begin", index))

    def _learn(self, stage: Stage, resume: State | None) -> None:
        last, step, lesson, train = time.monotonic(), None, stage.lesson, self.train
        if lesson.domains and lesson.total != 1 and not lesson.unlabelled:  # a source, before the target comes
            if train.select == "val":
                raise ValueError("train.select=val needs source images, gone in task.setting=source_free: take entropy")
            train = replace(train, select="last")

        def judge(loop: Loop) -> dict[str, float]:
            self.told.epochs = [*self.told.epochs, epoch_record(stage, train, self.seed, loop)]
            return {**self.told.epochs[-1], "oracle": self.told.epochs[-1]["target"]}

        try:
            for step in fit(self.method, lesson, train, self.seed, resume, judge if stage.track else None):
                about = {"stage": lesson.index, "epoch": step.epoch, "step": step.step, "lr": step.lr}
                self.log.write({**about, **step.terms})
                if self.place is not None and time.monotonic() - last >= self.save_every:
                    self._save(step.loop.state())
                    last = time.monotonic()
                if self.watch:
                    what = "training" if lesson.total == 1 else f"lesson {lesson.index + 1}/{lesson.total}"
                    self.watch(what, step.step, step.steps, f"loss {step.loss:.3f}  lr {step.lr:.1e}")
            if step is not None:
                self._save(step.loop.state())  # the tests may take long
        except NotFinite:
            if step is not None:
                self._save(step.loop.state())
            raise

    def _test(self, name: str, test: Split) -> Any:
        watch = self.watch and (lambda done, total: self.watch and self.watch(f"testing {name}", done, total, ""))
        with computed(self.method, How(chunk=self.train.chunk)):
            return evaluate(self.method, test, micro_batch=self.train.micro_batch, watch=watch)

    def _ahead(self, tests: dict[str, Split]) -> dict[str, dict[str, float]]:
        """Scores of what a method has not met yet; none of those that it can't answer."""
        scores = {}
        for name, test in tests.items():
            try:
                scores[name] = self._test(name, test).numbers
            except UnknownClass:
                return {}
        return scores

    def _save(self, state: State) -> None:
        if self.place is not None:
            self.log.flush()
            self.told.features = self.features.counts()
            self.told.seconds, self.told.log = self.spent + time.monotonic() - self.began, self.log.size
            self.place.save(state, asdict(self.told))

    def _result(self, lessons: list[Lesson], paused: str) -> Result:
        told, method, backbone = self.told, self.method, backbone_of(self.method)
        tower = None if backbone is None else tower_of(backbone)
        device, key = (torch.device("cpu"), "") if tower is None else (tower.device, tower.key)
        cost = {"seconds": self.spent + time.monotonic() - self.began, "trained_parameters": told.trained}
        if backbone is not None and backbone.size:
            cost["trained_percent"] = 100 * told.trained / backbone.size
        cost["peak_memory_mb"] = max(distributed.gather(memory.peak(device)))
        cost |= self.features.cost()
        learned = tensors_as_bytes(method.state_dict(), learned_from(key, lessons, self.config))
        cost["stored_bytes"] = len(learned)
        cuts = {setting: how for part in method.modules() for setting, how in getattr(part, "cuts", {}).items()}
        protocol = {**self.task.protocol, "selection": SELECTION[self.train.select], "backbone_key": key, "cut": cuts}
        if tower is not None:
            protocol |= {"transform": plain(asdict(tower.look))} if isinstance(tower, VisionTower) else {}
            protocol |= {"cut": {**tower.notes, **cuts}}
        if told.trained and protocol.get("augment", "none") != "none":
            protocol["views"] = self.train.views or "one per epoch"
        protocol |= {"paused": paused} if paused else {}
        around = environment(device) | ({"spare": self.spare} if self.spare else {})
        result = Result(self.config, told.scores, self.task.summary(told.scores), cost, around, protocol,
                        told.classes, told.stages)  # fmt: skip
        place = None if paused else self.place
        return distributed.of_first(lambda: result if place is None else place.finish(result, learned))
