"""The folder of one search: search.yaml, grid.jsonl (a line per finished setting) and chosen.json, written last.

The setting under way is in vmap_state.safetensors if settings are vmapped, else in a run folder.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlprompt.engine.loop import State
from vlprompt.engine.vmap_training import VmapState
from vlprompt.results.atomic_files import explain_write_errors, write_atomically, write_json
from vlprompt.results.run_folder import lock_folder
from vlprompt.results.run_inputs import Inputs, list_differences
from vlprompt.results.tensor_files import read_tensors, serialize_tensors


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

        return self._read(self.config_path, yaml.safe_load)

    def _read(self, path: Path, parse: Callable[[str], Any]) -> Any:
        """Parse a file, which is a mapping; None if there is none, ValueError if it is broken."""
        from yaml import YAMLError

        if not path.exists():
            return None
        try:
            content = parse(path.read_text("utf-8"))
            if not isinstance(content, dict):
                raise ValueError(f"it holds a {type(content).__name__}")
        except (OSError, ValueError, LookupError, TypeError, YAMLError) as error:
            raise ValueError(
                f"{str(path)!r}: expected a file of a search, got a broken one ({' '.join(str(error).split())}). "
                f"Remove the folder {str(self.path)!r} to search again."
            ) from error
        return content

    def list_changed_inputs(self, inputs: Inputs) -> list[str]:
        """Return what differs between the inputs that the search began with and these; [] if it has not begun."""
        config = self.read_config()
        return [] if config is None else list_differences(config.get("inputs", {}), json.loads(json.dumps(inputs)))

    def read_entries(self) -> dict[str, dict[str, Any]]:
        """Return the finished settings by their key."""

        def parse(text: str) -> dict[str, dict[str, Any]]:
            entries = [json.loads(line) for line in text.splitlines()]
            return {entry["key"]: entry for entry in entries}

        return self._read(self.grid_path, parse) or {}

    def add_entries(self, entries: list[dict[str, Any]]) -> None:
        all_entries = [*self.read_entries().values(), *entries]
        write_atomically(self.grid_path, "".join(json.dumps(entry) + "\n" for entry in all_entries).encode())

    def read_chosen(self) -> dict[str, Any] | None:
        """Return the chosen setting; None if the search is not finished."""
        return self._read(self.chosen_path, json.loads)

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
