"""What is asked of a tracker."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol


@dataclass(frozen=True)
class TrackedRun:
    """A run as a tracker sees it.

    Args:
        name: of its folder, which is unique among the runs of a folder; of a trial, that of its search and its number.
        config: its configuration.
        folder: its folder.
        files_folder: where trackers write files of this run alone; it stays, whatever becomes of the run's folder.
        runs_folder: where stores of all runs are.
        group: name of the search whose trial it is, "" for a run by itself.
    """

    name: str
    config: Mapping[str, Any]
    folder: Path
    files_folder: Path
    runs_folder: Path
    group: str = ""


@dataclass(frozen=True)
class TrackedStep:
    """The numbers of one training step, and of the epoch that ended with it.

    Args:
        step: counted from 1 over all lessons.
        values: name -> number.
    """

    step: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class TrackedStage:
    """The tests after a lesson of a stream.

    Args:
        lesson: counted from 1.
        values: name -> number.
    """

    lesson: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class TrackedOutcome:
    """What a finished run came to.

    Args:
        scores: name -> number of its summary, of its last tests and of its cost.
        summary: names of those scores that tables show.
        files: of its folder, to be copied.
        pictures: PNG images by name.
    """

    scores: Mapping[str, float]
    summary: Sequence[str] = ()
    files: Sequence[Path] = ()
    pictures: Mapping[str, bytes] | None = None


class Tracker(Protocol):
    """Copies one run into a store. Its methods may raise anything: the run goes on without it."""

    takes_files: ClassVar[bool]
    takes_pictures: ClassVar[bool]

    def begin(self, run: TrackedRun, state: dict[str, Any]) -> dict[str, Any]:
        """Open the run in the store, or go on in it.

        Args:
            run: the run.
            state: what this returned when the run began; {} for the first time.

        Returns:
            What identifies the run in the store, as JSON can hold it, and as last_step the last step that the store
            has, where it can be asked: a process that was killed may have logged more than it wrote down.
        """
        ...

    def log(self, steps: Sequence[TrackedStep]) -> None:
        """Log steps that were not logged before."""
        ...

    def log_stage(self, stage: TrackedStage) -> None:
        """Log the tests after a lesson of a stream."""
        ...

    def finish(self, outcome: TrackedOutcome | None) -> None:
        """Log the outcome, if there is one, and close the run."""
        ...
