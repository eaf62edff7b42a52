"""A file tracked.jsonl in the run's folder: a line for the configuration, each step and the result."""

import json
from collections.abc import Sequence
from typing import Any

from vlprompt.experiments.trackers.tracker import TrackedRun, TrackedStep
from vlprompt.results.run_folder import Result

FILE = "tracked.jsonl"


class JsonlTracker:
    """Appends lines with a "kind": config, step or result."""

    def begin(self, run: TrackedRun, state: dict[str, Any]) -> dict[str, Any]:
        self.path = run.folder / FILE
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        complete = [line for line in lines if line.endswith(b"\n")]
        contents = [json.loads(line) for line in complete]
        self.last_step = max((content.get("step", 0) for content in contents), default=0)
        self.has_result = any(content["kind"] == "result" for content in contents)
        if not complete:
            complete = [_format_line("config", {"name": run.name, "config": dict(run.config)})]
        self.path.write_bytes(b"".join(complete))  # without half a line of a process that was killed
        return {"file": FILE}

    def log(self, steps: Sequence[TrackedStep]) -> None:
        new = [step for step in steps if step.step > self.last_step]
        self._append(b"".join(_format_line("step", {"step": one.step, **one.values}) for one in new))

    def finish(self, result: Result | None) -> None:
        if result is not None and not self.has_result:
            self._append(
                _format_line("result", {"summary": result.summary, "scores": result.scores, "cost": result.cost})
            )

    def _append(self, data: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(data)


def _format_line(kind: str, content: dict[str, Any]) -> bytes:
    return (json.dumps({"kind": kind, **content}) + "\n").encode()
