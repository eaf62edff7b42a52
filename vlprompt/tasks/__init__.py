"""Tasks: what to train and test on. One file, one public class, imported on first access."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vlprompt.runtime.lazy_classes import lazy_package

if TYPE_CHECKING:  # tasks are listed and named without torch
    from vlprompt.core.stage import Stage


class Task(Protocol):
    """A sequence of stages, and the summary of their scores."""

    seed: int
    template: str  # prompt template of the dataset
    protocol: dict[str, Any]  # what a result records about the data

    def stages(self) -> Iterator["Stage"]: ...
    def summary(self, scores: list[dict[str, dict[str, float]]]) -> dict[str, float]: ...


find_classes, __getattr__, __dir__ = lazy_package(__name__, Path(__file__).parent)
