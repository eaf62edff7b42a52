"""A file tracked.jsonl in the run's folder: a line for the configuration, each step, each lesson and the result."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from vlprompt.experiments.trackers.tracker import TrackedOutcome, TrackedRun, TrackedStage, TrackedStep
from vlprompt.experiments.trackers.values import flatten_config

FILE = "tracked.jsonl"


class JsonlTracker:
    """Appends lines with a "kind": config, step, stage or result."""

    takes_files: ClassVar[bool] = False
    takes_pictures: ClassVar[bool] = False

    def begin(self, run: TrackedRun, state: dict[str, Any]) -> dict[str, Any]:
        self.path = run.files_folder / FILE
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        complete = [line for line in lines if line.endswith(b"\n")]
        contents = [json.loads(line) for line in complete]
        self.lessons = {content["lesson"] for content in contents if content["kind"] == "stage"}
        self.has_result = any(content["kind"] == "result" for content in contents)
        if not complete:
            group = {"group": run.group} if run.group else {}
            complete = [_format_line("config", {"name": run.name, **group, "config": flatten_config(run.config)})]
        self.path.write_bytes(b"".join(complete))  # without half a line of a process that was killed
        return {"file": FILE, "last_step": max((content.get("step", 0) for content in contents), default=0)}

    def log(self, steps: Sequence[TrackedStep]) -> None:
        self._append(b"".join(_format_line("step", {"step": one.step, **one.values}) for one in steps))

    def log_stage(self, stage: TrackedStage) -> None:
        if stage.lesson not in self.lessons:
            self._append(_format_line("stage", {"lesson": stage.lesson, **stage.values}))

    def finish(self, outcome: TrackedOutcome | None) -> None:
        if outcome is not None and not self.has_result:
            self._append(_format_line("result", outcome.scores))

    def _append(self, data: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(data)


def _format_line(kind: str, content: Mapping[str, Any]) -> bytes:
    return (json.dumps({"kind": kind, **content}) + "\n").encode()
