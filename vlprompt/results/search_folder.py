"""The folder of one search: search.yaml, grid.jsonl (a line per finished setting) and chosen.json, written last.

The setting under way is in vmap_state.safetensors if settings are vmapped, else in a run folder.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlprompt.engine.loop import State
from vlprompt.engine.vmap_training import VmapState
from vlprompt.results.run_folder import (
    explain_write_errors,
    lock_folder,
    read_tensors,
    serialize_tensors,
    write_atomically,
    write_json,
)


class SearchFolder:
    """The files of a search, each written atomically."""

    def __init__(self, path: Path):
        self.path, self.chosen_path, self.grid_path = path, path / "chosen.json", path / "grid.jsonl"
        self.vmap_state_path, self.current_run_path, self.config_path = (
            path / "vmap_state.safetensors",
            path / "current_run",
            path / "search.yaml",
        )

    @contextmanager
    def open(self, config: dict[str, Any]) -> Iterator[None]:
        """Made, and claimed for this process; ValueError when another one is at work in it."""
        import yaml

        with explain_write_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with lock_folder(self.path):
            for left in self.path.glob(".*.*.[0-9]*"):
                left.unlink()  # of a process that died while it wrote
            write_atomically(self.config_path, yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode())
            yield

    def read_config(self) -> dict[str, Any] | None:
        """Return what the search began with; None if it has not begun."""
        import yaml

        return yaml.safe_load(self.config_path.read_text("utf-8")) if self.config_path.exists() else None

    def read_entries(self) -> dict[str, dict[str, Any]]:
        """Return the finished settings by their key."""
        if not self.grid_path.exists():
            return {}
        entries = [json.loads(line) for line in self.grid_path.read_text("utf-8").splitlines()]
        return {entry["key"]: entry for entry in entries}

    def add_entries(self, entries: list[dict[str, Any]]) -> None:
        all_entries = [*self.read_entries().values(), *entries]
        write_atomically(self.grid_path, "".join(json.dumps(entry) + "\n" for entry in all_entries).encode())

    def read_chosen(self) -> dict[str, Any] | None:
        return json.loads(self.chosen_path.read_text("utf-8")) if self.chosen_path.exists() else None

    def finish(self, chosen: dict[str, Any]) -> None:
        write_json(self.chosen_path, chosen)
        self.vmap_state_path.unlink(missing_ok=True)

    def save_vmap_state(self, state: VmapState, keys: list[str], seconds: float) -> None:
        """Write the states of vmapped settings into one file."""
        tensors = {f"{i}/{name}": t for i, one in enumerate(state.states) for name, t in one.tensors.items()}
        cursors = [[s.epoch, s.batch_index, s.step, s.best_score] for s in state.states]
        metadata = {"keys": keys, "cursors": cursors, "non_finite": sorted(state.failed), "seconds": seconds}
        write_atomically(self.vmap_state_path, serialize_tensors(tensors, metadata))

    def load_vmap_state(self, keys: list[str]) -> tuple[VmapState | None, float]:
        """Return the states of exactly these settings and the seconds they took; None if they have not begun."""
        if not self.vmap_state_path.exists():
            return None, 0.0
        tensors, metadata = read_tensors(self.vmap_state_path)
        if metadata["keys"] != keys:
            return None, 0.0
        states = [State(epoch, index, step, best) for epoch, index, step, best in metadata["cursors"]]
        for name, tensor in tensors.items():
            index, _, tensor_name = name.partition("/")
            states[int(index)].tensors[tensor_name] = tensor
        return VmapState(states, set(metadata["non_finite"])), metadata["seconds"]
