"""steps.jsonl of a run."""

import json
from typing import Any

from vlprompt.results.run_folder import Folder, written


class Log:
    """steps.jsonl: one line a step, cut back to what the resumed state knows."""

    def __init__(self, place: Folder | None, size: int):
        self.place, self.size, self.lines = place, size, list[bytes]()

    def __enter__(self) -> "Log":
        if self.place is not None:
            self.place.steps.touch()
            with self.place.steps.open("r+b") as file:
                file.truncate(self.size)
        return self

    def write(self, line: dict[str, Any]) -> None:
        self.lines.append((json.dumps(line) + "\n").encode())
        if len(self.lines) >= 1000:
            self.flush()

    def flush(self) -> None:
        if self.place is not None and self.lines:
            with written(self.place.steps), self.place.steps.open("ab") as file:
                file.write(b"".join(self.lines))
            self.size += sum(map(len, self.lines))
        self.lines = []

    def __exit__(self, *error: object) -> None:
        self.flush()
