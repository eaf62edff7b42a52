"""Follow runs by trackers: numbers go to them in batches, and no trouble of theirs stops a run."""

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vlprompt.experiments.events import Event, StepDone
from vlprompt.experiments.trackers.choice import build_tracker
from vlprompt.experiments.trackers.tracker import TrackedRun, TrackedStep, Tracker
from vlprompt.results.atomic_files import write_json
from vlprompt.results.run_folder import Result, RunFolder

STATE_FILE = "trackers.json"  # in a run's folder: how each tracker identifies the run, and the last step that it has
HAS_RESULT = "has_result"  # in it: whether the tracker has all of a finished run
SECONDS_PER_BATCH = 2.0


class TrackedRunListener:
    """Hears the steps of one run and passes them to its trackers.

    Args:
        names: of the trackers.
        run: the run.
    """

    def __init__(self, names: Sequence[str], run: TrackedRun) -> None:
        run.folder.mkdir(parents=True, exist_ok=True)
        self.run, self.state = run, _read_state(run.folder)
        self.trackers: dict[str, Tracker] = {}
        self._pending = list[TrackedStep]()
        self._last_flush = time.monotonic()
        self._steps_before: int | None = None  # of earlier lessons; None before the first step is heard
        self._lesson = self._steps_of_lesson = 0
        for name in names:
            self._guard(name, lambda name=name: self._begin(name))
        self._write_state()

    def _begin(self, name: str) -> None:
        tracker, known = build_tracker(name), self.state.get(name, {})
        self.state[name] = {**known, **tracker.begin(self.run, known)}
        self.trackers[name] = tracker

    def hear(self, event: Event) -> None:
        """Note a step; every other event is nothing to a tracker."""
        if not isinstance(event, StepDone):
            return
        if self._steps_before is None:
            self._pending = self._read_earlier_steps(event.lesson, event.step)
            self._steps_before = len(self._pending) - event.step + 1
        elif event.lesson != self._lesson:
            self._steps_before += self._steps_of_lesson
        self._lesson, self._steps_of_lesson = event.lesson, event.step
        values = _describe_step(event.loss, event.lr, event.terms)
        self._pending.append(TrackedStep(self._steps_before + event.step, values))
        if time.monotonic() - self._last_flush >= SECONDS_PER_BATCH:
            self.flush()

    def _read_earlier_steps(self, lesson: float, step: float) -> list[TrackedStep]:
        """Return the steps before this one from the log of the run, which a killed process may not have passed on."""
        steps = list[TrackedStep]()
        with suppress(OSError, ValueError, KeyError):
            for line in RunFolder(self.run.folder).steps_path.read_text("utf-8").splitlines():
                terms = json.loads(line)
                place, lr, _ = (terms.pop("stage"), terms.pop("step")), terms.pop("lr"), terms.pop("epoch")
                if place >= (lesson, step):
                    break
                steps.append(TrackedStep(len(steps) + 1, _describe_step(sum(terms.values()), lr, terms)))
        return steps

    def flush(self) -> None:
        """Pass on what was noted; steps that a tracker has, from before the run was resumed, are left out."""
        steps, self._pending, self._last_flush = self._pending, [], time.monotonic()
        if not steps:
            return
        for name, tracker in list(self.trackers.items()):
            new = [step for step in steps if step.step > self.state[name].get("last_step", 0)]
            if new and self._guard(name, lambda tracker=tracker, new=new: tracker.log(new)):
                self.state[name]["last_step"] = new[-1].step
        self._write_state()

    def finish(self, result: Result | None) -> None:
        """End the run in every tracker."""
        if self._steps_before is None and result is not None:  # the process before was killed after the last step
            self._pending = self._read_earlier_steps(math.inf, math.inf)
        self.flush()
        for name, tracker in list(self.trackers.items()):
            if self._guard(name, lambda tracker=tracker: tracker.finish(result)) and result is not None:
                self.state[name][HAS_RESULT] = True
                self._write_state()

    def _write_state(self) -> None:
        with suppress(OSError):
            write_json(self.run.folder / STATE_FILE, self.state)

    def _guard(self, name: str, call: Callable[[], None]) -> bool:
        """Call a tracker; one that fails is left out of the rest of the run, with a warning."""
        try:
            call()
        except Exception as error:
            self.trackers.pop(name, None)
            reason = " ".join(str(error).split()) or type(error).__name__
            warnings.warn(
                f"--track {name}: {reason}. The run {self.run.name} goes on without it.", UserWarning, stacklevel=2
            )
            return False
        return True


def _describe_step(loss: float, lr: float, terms: Mapping[str, float]) -> dict[str, float]:
    """Return the numbers of a step; one term alone is the loss."""
    several = {f"loss/{name}": value for name, value in terms.items()} if len(terms) > 1 else {}
    return {"loss": loss, "lr": lr, **several}


@contextmanager
def follow_run(names: Sequence[str], run: TrackedRun) -> "Iterator[TrackedRunListener]":
    """Follow a run; what the with-block does not finish is closed as stopped."""
    listener = TrackedRunListener(names, run)
    try:
        yield listener
    except BaseException:
        listener.finish(None)
        with suppress(OSError):
            run.folder.rmdir()  # of a run that did not begin
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
