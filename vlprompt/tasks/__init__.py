"""Tasks: what to train and test on. Each file has one public class; a class is imported when it is asked for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from vlprompt.core.stage import Stage
from vlprompt.runtime import lazy_classes


class Task(Protocol):
    """A sequence of stages, and what their scores come to."""

    seed: int
    template: str  # of the dataset, for methods that want a hand-written text
    protocol: dict[str, Any]  # what a result must say of the data

    def stages(self) -> Iterator[Stage]: ...
    def summary(self, scores: list[dict[str, dict[str, float]]]) -> dict[str, float]: ...


HERE = Path(__file__).parent


def found() -> dict[str, str]:
    """{"few_shot": "FewShot", ...}: every file of this folder and its public class, read without importing it."""
    return lazy_classes.classes(HERE)


def __getattr__(name: str) -> Any:
    return lazy_classes.attribute(__name__, HERE, name)


def __dir__() -> list[str]:
    return [*found().values()]
