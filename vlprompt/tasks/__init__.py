"""Tasks: what to train and test on. Each file has one public class; a class is imported when it is asked for."""

import ast
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from vlprompt.stage import Stage


class Task(Protocol):
    """A sequence of stages, and what their scores come to."""

    seed: int
    template: str  # of the dataset, for methods that want a hand-written text
    protocol: dict[str, Any]  # what a result must say of the data

    def stages(self) -> Iterator[Stage]: ...
    def summary(self, scores: list[dict[str, dict[str, float]]]) -> dict[str, float]: ...


@cache
def found() -> dict[str, str]:
    """{"few_shot": "FewShot", ...}: every file of this folder and its public class, read without importing it."""
    classes = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        public = [
            n.name for n in ast.parse(path.read_text("utf-8")).body if isinstance(n, ast.ClassDef) and n.name[0] != "_"
        ]
        classes[path.stem] = public[0]
    return classes


def __getattr__(name: str) -> Any:
    for file, cls in found().items():
        if cls == name:
            return getattr(import_module(f"{__name__}.{file}"), name)
    raise AttributeError(f"vlprompt.tasks has no {name!r}; it has {', '.join(found().values())}")


def __dir__() -> list[str]:
    return [*found().values()]
