"""steps.jsonl of a run."""

import json
from typing import Any

from vlprompt.results.atomic_files import explain_write_errors
from vlprompt.results.run_folder import RunFolder


class StepLog:
    """steps.jsonl: one line a step, cut back to what the resumed state knows."""

    def __init__(self, folder: RunFolder | None, n_bytes: int):
        self.folder, self.n_bytes, self.pending_lines = folder, n_bytes, list[bytes]()

    def __enter__(self) -> "StepLog":
        if self.folder is not None:
            self.folder.steps_path.touch()
            with self.folder.steps_path.open("r+b") as file:
                file.truncate(self.n_bytes)
        return self

    def write(self, line: dict[str, Any]) -> None:
        self.pending_lines.append((json.dumps(line) + "\n").encode())
        if len(self.pending_lines) >= 1000:
            self.flush()

    def flush(self) -> None:
        if self.folder is not None and self.pending_lines:
            self.folder.before_write()
            with explain_write_errors(self.folder.steps_path), self.folder.steps_path.open("ab") as file:
                file.write(b"".join(self.pending_lines))
            self.n_bytes += sum(map(len, self.pending_lines))
        self.pending_lines = []

    def __exit__(self, *error: object) -> None:
        self.flush()
