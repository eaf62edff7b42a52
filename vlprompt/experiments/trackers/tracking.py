"""Follow runs by trackers: numbers go to them in batches, and no trouble of theirs stops a run."""

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vlprompt.experiments.events import EpochDone, Event, StageTested, StepDone
from vlprompt.experiments.trackers.choice import build_tracker
from vlprompt.experiments.trackers.run_files import describe_left_out, list_run_files
from vlprompt.experiments.trackers.tracker import TrackedOutcome, TrackedRun, TrackedStage, TrackedStep, Tracker
from vlprompt.experiments.trackers.values import flatten_result, flatten_scores, flatten_step
from vlprompt.results.atomic_files import write_json
from vlprompt.results.run_folder import Result, RunFolder

STATE_FILE = "trackers.json"  # how each tracker identifies the run, and the last step and the lessons that it has
HAS_RESULT = "has_result"  # in it: whether the tracker has all of a finished run
EPOCHS_FILE = "epoch_scores.jsonl"  # which steps.jsonl lacks, for a process that goes on
SECONDS_PER_BATCH = 2.0
MAX_SHARE = 0.02  # of the time that a run may spend on passing batches on: a slow store gets larger ones


class TrackedRunListener:
    """Hears the events of one run and passes its numbers to its trackers.

    Args:
        names: of the trackers.
        run: the run.
    """

    def __init__(self, names: Sequence[str], run: TrackedRun) -> None:
        self.run, self.trackers = run, dict[str, Tracker]()
        self.state = dict[str, dict[str, Any]]()
        self._pending = list[TrackedStep]()
        self._next_flush = time.monotonic() + SECONDS_PER_BATCH
        self._steps_before: int | None = None  # of earlier lessons; None before the first step is heard
        self._lesson = self._steps_of_lesson = 0
        self._epoch_scores: Mapping[str, float] = {}  # of the epoch that ends with the step that is heard next
        if names:
            run.files_folder.mkdir(parents=True, exist_ok=True)
            self.state = _read_state(run.files_folder)
            for name in names:
                self._guard(name, lambda name=name: self._begin(name))
            self._write_state()

    def _begin(self, name: str) -> None:
        tracker, known = build_tracker(name), self.state.get(name, {})
        self.state[name] = {**known, **tracker.begin(self.run, known)}
        self.trackers[name] = tracker

    def hear(self, event: Event) -> None:
        """Note what an event has for a tracker; the tests of a stream's lesson are passed on at once."""
        try:
            if self.trackers:
                self._note(event)
        except Exception as error:
            self.trackers = {}
            _warn(f"--track: {_format_error(error)}. The run {self.run.name} goes on without trackers.")

    def _note(self, event: Event) -> None:
        if isinstance(event, EpochDone) and event.scores:
            self._epoch_scores = event.scores
            self._write_epoch(event)
        elif isinstance(event, StepDone):
            self._hear_step(event)
        elif isinstance(event, StageTested) and event.n_lessons != 1:
            self.flush()
            self._pass_stage(TrackedStage(event.lesson + 1, flatten_scores("stage", event.scores)))

    def _hear_step(self, event: StepDone) -> None:
        if self._steps_before is None:
            self._pending = self._read_earlier_steps(event.lesson, event.step)
            self._steps_before = len(self._pending) - event.step + 1
        elif event.lesson != self._lesson:
            self._steps_before += self._steps_of_lesson
        self._lesson, self._steps_of_lesson = event.lesson, event.step
        values = flatten_step(event.loss, event.lr, event.terms, self._epoch_scores)
        self._epoch_scores = {}
        self._pending.append(TrackedStep(self._steps_before + event.step, values))
        if time.monotonic() >= self._next_flush:
            self.flush()

    def _write_epoch(self, event: EpochDone) -> None:
        """Append the scores of an epoch to the file from which a process that goes on reads them."""
        line = json.dumps({"lesson": event.lesson, "epoch": event.epoch, "scores": dict(event.scores)})
        with suppress(OSError), (self.run.files_folder / EPOCHS_FILE).open("a") as file:
            file.write(f"{line}\n")

    def _read_earlier_steps(self, lesson: float, step: float) -> list[TrackedStep]:
        """Return the steps before this one from the log of the run, which a killed process may not have passed on."""
        epochs, steps = _read_epochs(self.run.files_folder / EPOCHS_FILE), list[TrackedStep]()
        lines = list(_iter_lines(RunFolder(self.run.folder).steps_path))
        with suppress(KeyError):
            for line, following in zip(lines, [*lines, {}][1:], strict=True):
                terms = dict(line)
                place, lr = (terms.pop("stage"), terms.pop("step")), terms.pop("lr")
                epoch = place[0], terms.pop("epoch") + 1
                if place >= (lesson, step):
                    break
                is_last = (following.get("stage"), following.get("epoch", -1) + 1) != epoch
                scores = epochs.get(epoch, {}) if is_last else {}
                steps.append(TrackedStep(len(steps) + 1, flatten_step(sum(terms.values()), lr, terms, scores)))
        return steps

    def flush(self) -> None:
        """Pass on what was noted; steps that a tracker has, from before the run was resumed, are left out."""
        steps, self._pending, start = self._pending, [], time.monotonic()
        if steps:
            for name, tracker in list(self.trackers.items()):
                new = [step for step in steps if step.step > self.state[name].get("last_step", 0)]
                if new and self._guard(name, lambda tracker=tracker, new=new: tracker.log(new)):
                    self.state[name]["last_step"] = new[-1].step
            self._write_state()
        end = time.monotonic()
        self._next_flush = end + max(SECONDS_PER_BATCH, (end - start) / MAX_SHARE)

    def _pass_stage(self, stage: TrackedStage) -> None:
        for name, tracker in list(self.trackers.items()):
            lessons = self.state[name].setdefault("lessons", [])
            if stage.lesson not in lessons and self._guard(name, lambda tracker=tracker: tracker.log_stage(stage)):
                lessons.append(stage.lesson)
        self._write_state()

    def finish(self, result: Result | None) -> None:
        """End the run in every tracker."""
        if self.trackers and result is not None:
            if self._steps_before is None:  # the process before was killed after the last step
                self._pending = self._read_earlier_steps(math.inf, math.inf)
            self.flush()
            for index, scores in enumerate(result.scores if len(result.scores) > 1 else []):
                self._pass_stage(TrackedStage(index + 1, flatten_scores("stage", scores)))
        self.flush()
        outcome = None if result is None or not self.trackers else self._collect_outcome(result)
        for name, tracker in list(self.trackers.items()):
            if self._guard(name, lambda tracker=tracker: tracker.finish(outcome)) and result is not None:
                self.state[name][HAS_RESULT] = True
                self._write_state()

    def _collect_outcome(self, result: Result) -> TrackedOutcome:
        files, pictures = list[Path](), dict[str, bytes]()
        if any(tracker.takes_files for tracker in self.trackers.values()):
            files, left_out = list_run_files(self.run.folder)
            if left_out:
                _warn(describe_left_out(left_out, self.run.name))
        if any(tracker.takes_pictures for tracker in self.trackers.values()):
            from vlprompt.experiments.trackers.pictures import render_run_pictures

            try:
                pictures = render_run_pictures(result)
            except Exception as error:
                _warn(f"--track: no pictures of the run {self.run.name}: {_format_error(error)}.")
        return TrackedOutcome(flatten_result(result), tuple(result.summary), files, pictures)

    def _write_state(self) -> None:
        with suppress(OSError):
            write_json(self.run.files_folder / STATE_FILE, self.state)

    def _guard(self, name: str, call: Callable[[], None]) -> bool:
        """Call a tracker; one that fails is left out of the rest of the run, with a warning."""
        try:
            call()
        except Exception as error:
            self.trackers.pop(name, None)
            _warn(f"--track {name}: {_format_error(error)}. The run {self.run.name} goes on without it.")
            return False
        return True


def _warn(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=2)


def _format_error(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


@contextmanager
def follow_run(names: Sequence[str], run: TrackedRun) -> "Iterator[TrackedRunListener]":
    """Follow a run; what the with-block does not finish is closed as stopped."""
    listener = TrackedRunListener(names, run)
    try:
        yield listener
    except BaseException:
        listener.finish(None)
        with suppress(OSError):
            run.files_folder.rmdir()  # of a run that did not begin
        raise


def is_tracked_in_part(folder: Path, names: Sequence[str]) -> bool:
    """Return whether one of these trackers began a run and has not all of it, as its process was killed at the end."""
    state = _read_state(folder)
    return any(name in state and not state[name].get(HAS_RESULT) for name in names)


def _read_state(folder: Path) -> dict[str, dict[str, Any]]:
    with suppress(OSError, ValueError):
        content = json.loads((folder / STATE_FILE).read_text("utf-8"))
        if isinstance(content, dict):
            return content
    return {}


def _read_epochs(path: Path) -> dict[tuple[int, int], dict[str, float]]:
    """Return (lesson, epoch from 1) -> scores."""
    return {(line["lesson"], line["epoch"]): line["scores"] for line in _iter_lines(path)}


def _iter_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a file of JSON; one that a killed process left half written ends it."""
    with suppress(OSError, ValueError):
        for line in path.read_text("utf-8").splitlines():
            yield json.loads(line)
