"""The folder of one search: search.yaml, grid.jsonl (a line per setting that is done) and chosen.json, written last.

What is under way lies beside them: side.safetensors where settings train side by side, a run's folder where they train
one after another.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlprompt.engine.loop import State
from vlprompt.engine.vmap_training import Standing
from vlprompt.results.run_folder import claim, read_tensors, tensors_as_bytes, write, write_json, written


class Searched:
    """What a search leaves on the disk; every file is written whole."""

    def __init__(self, path: Path):
        self.path, self.chosen_path, self.grid = path, path / "chosen.json", path / "grid.jsonl"
        self.side, self.now, self.told = path / "side.safetensors", path / "now", path / "search.yaml"

    @contextmanager
    def opened(self, config: dict[str, Any]) -> Iterator[None]:
        """Made, and claimed for this process; ValueError when another one is at work in it."""
        import yaml

        with written(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        held = claim(self.path)
        try:
            for left in self.path.glob(".*.*.[0-9]*"):
                left.unlink()  # of a process that died while it wrote
            write(self.told, yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode())
            yield
        finally:
            if held is not None:
                os.close(held)

    def began(self) -> dict[str, Any] | None:
        """What the search began with; None where it has not."""
        import yaml

        return yaml.safe_load(self.told.read_text("utf-8")) if self.told.exists() else None

    def lines(self) -> dict[str, dict[str, Any]]:
        """Settings that are done, by their key."""
        if not self.grid.exists():
            return {}
        found = [json.loads(line) for line in self.grid.read_text("utf-8").splitlines()]
        return {line["key"]: line for line in found}

    def add(self, lines: list[dict[str, Any]]) -> None:
        every = [*self.lines().values(), *lines]
        write(self.grid, "".join(json.dumps(line) + "\n" for line in every).encode())

    def chosen(self) -> dict[str, Any] | None:
        return json.loads(self.chosen_path.read_text("utf-8")) if self.chosen_path.exists() else None

    def finish(self, chosen: dict[str, Any]) -> None:
        write_json(self.chosen_path, chosen)
        self.side.unlink(missing_ok=True)

    def save(self, standing: Standing, keys: list[str], seconds: float) -> None:
        """Where settings side by side stand, in one file."""
        tensors = {f"{i}/{name}": t for i, state in enumerate(standing.states) for name, t in state.tensors.items()}
        cursors = [[s.epoch, s.place, s.step, s.best] for s in standing.states]
        told = {"keys": keys, "cursors": cursors, "out": sorted(standing.out), "seconds": seconds}
        write(self.side, tensors_as_bytes(tensors, told))

    def load(self, keys: list[str]) -> tuple[Standing | None, float]:
        """Where these very settings stood, and the seconds they took; None where they have not begun."""
        if not self.side.exists():
            return None, 0.0
        tensors, told = read_tensors(self.side)
        if told["keys"] != keys:
            return None, 0.0
        states = [State(epoch, place, step, best) for epoch, place, step, best in told["cursors"]]
        for name, tensor in tensors.items():
            place, _, rest = name.partition("/")
            states[int(place)].tensors[rest] = tensor
        return Standing(states, set(told["out"])), told["seconds"]
