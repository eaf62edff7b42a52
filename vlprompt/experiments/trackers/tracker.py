"""What is asked of a tracker."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vlprompt.results.run_folder import Result


@dataclass(frozen=True)
class TrackedRun:
    """A run as a tracker sees it.

    Args:
        name: of its folder, which is unique among the runs of a folder.
        config: its configuration.
        folder: its folder.
        runs_folder: where stores of all runs are.
    """

    name: str
    config: Mapping[str, Any]
    folder: Path
    runs_folder: Path


@dataclass(frozen=True)
class TrackedStep:
    """The numbers of one training step.

    Args:
        step: counted from 1 over all lessons.
        values: name -> number.
    """

    step: int
    values: Mapping[str, float]


class Tracker(Protocol):
    """Copies one run into a store. Its methods may raise anything: the run goes on without it."""

    def begin(self, run: TrackedRun, state: dict[str, Any]) -> dict[str, Any]:
        """Open the run in the store, or go on in it.

        Args:
            run: the run.
            state: what this returned when the run began; {} for the first time.

        Returns:
            What identifies the run in the store, as JSON can hold it.
        """
        ...

    def log(self, steps: Sequence[TrackedStep]) -> None:
        """Log steps that were not logged before."""
        ...

    def finish(self, result: Result | None) -> None:
        """Log the result, if there is one, and close the run."""
        ...
