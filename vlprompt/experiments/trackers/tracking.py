"""Follow runs by trackers: numbers go to them in batches, and no trouble of theirs stops a run."""

import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vlprompt.experiments.events import Event, StepDone
from vlprompt.experiments.trackers.choice import build_tracker
from vlprompt.experiments.trackers.tracker import TrackedRun, TrackedStep, Tracker
from vlprompt.results.atomic_files import write_json
from vlprompt.results.run_folder import Result

STATE_FILE = "trackers.json"  # in a run's folder: how each tracker identifies the run, and the last step that it has
LESSONS = "steps"  # in it: how many steps each lesson has
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
        self._steps_of_lessons = self.state.setdefault(LESSONS, {})
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
        self._steps_of_lessons[str(event.lesson)] = event.total_steps
        earlier = sum(n for lesson, n in self._steps_of_lessons.items() if int(lesson) < event.lesson)
        terms = {f"loss/{name}": value for name, value in event.terms.items()} if len(event.terms) > 1 else {}
        self._pending.append(TrackedStep(earlier + event.step, {"loss": event.loss, "lr": event.lr, **terms}))
        if time.monotonic() - self._last_flush >= SECONDS_PER_BATCH:
            self.flush()

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
        self.flush()
        for name, tracker in list(self.trackers.items()):
            self._guard(name, lambda tracker=tracker: tracker.finish(result))

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


def _read_state(folder: Path) -> dict[str, dict[str, Any]]:
    with suppress(OSError, ValueError):
        content = json.loads((folder / STATE_FILE).read_text("utf-8"))
        if isinstance(content, dict):
            return content
    return {}
