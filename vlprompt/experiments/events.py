"""What happens in runs, sweeps and searches, as values; whoever shows, tracks or reports them listens."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vlprompt.config.run_config import RunConfig
from vlprompt.results.run_folder import Result


@dataclass(frozen=True)
class SweepStarted:
    """Some of the runs are still to be made."""

    n_runs: int
    n_finished: int


@dataclass(frozen=True)
class RunStarted:
    """A run of a sweep begins, perhaps with others side by side; until they end, steps and tests are theirs."""

    name: str
    config: RunConfig
    n_others: int = 0


@dataclass(frozen=True)
class DatasetOpened:
    """A run opened a dataset: what was taken for it, and what a user should know of that. Runs may share one."""

    summary: str
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Notice:
    """What a user should know of a run before it trains."""

    name: str
    text: str
    is_warning: bool = True


@dataclass(frozen=True)
class StepDone:
    """A training step was taken; steps count from 1, lessons from 0."""

    step: int
    total_steps: int
    loss: float
    lr: float
    lesson: int = 0
    n_lessons: int | None = 1  # None: not known beforehand
    terms: Mapping[str, float] = field(default_factory=dict)  # of the loss, by name


@dataclass(frozen=True)
class EpochDone:
    """The last step of an epoch was taken; epochs count from 1."""

    epoch: int
    lesson: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)  # of model selection, or of an adaptation's target


@dataclass(frozen=True)
class StageTested:
    """The tests of a stage are done; lessons count from 0."""

    lesson: int
    n_lessons: int | None  # None: not known beforehand
    scores: Mapping[str, Mapping[str, float]]  # metrics by test


@dataclass(frozen=True)
class EvaluationProgress:
    """A batch of a test was evaluated."""

    test: str
    n_done: int
    n_images: int


@dataclass(frozen=True)
class RunFinished:
    """A run of a sweep is done, or paused after a lesson."""

    name: str
    result: Result

    @property
    def change(self) -> str:
        """What was changed in the settings to suit the backbone or the data; "" for nothing."""
        return "; ".join(f"{setting} {how}" for setting, how in self.result.protocol["clipped_settings"].items())


@dataclass(frozen=True)
class RunFailed:
    """A run of a sweep ended by an error; the others go on.

    Args:
        name: of the run.
        error: by which it ended.
        is_final: whether it is not tried again.
    """

    name: str
    error: Exception
    is_final: bool = True


@dataclass(frozen=True)
class RunProgress:
    """How far a worker of a sweep is with a run.

    Args:
        name: of the run.
        activity: training or testing; "" for one that begins.
        n_done: steps or items.
        total: of steps or items; 0 where not known.
        place: the worker's host and process.
    """

    name: str
    activity: str = ""
    n_done: int = 0
    total: int = 0
    place: str = ""


@dataclass(frozen=True)
class SweepProgress:
    """Where a sweep with workers stands.

    Args:
        n_runs: in all.
        n_done: finished.
        n_failed: that failed for good.
        running: those under way, in this sweep or another one of the folder.
        n_workers: that are alive.
        n_waiting: workers that wait for their machine.
        seconds_left: until the last run is done; None where not known yet.
    """

    n_runs: int
    n_done: int
    n_failed: int
    running: tuple[RunProgress, ...] = ()
    n_workers: int = 0
    n_waiting: int = 0
    seconds_left: float | None = None


@dataclass(frozen=True)
class SearchStarted:
    """The settings of a grid are about to be trained and judged."""

    dataset: str
    n_settings: int


@dataclass(frozen=True)
class VmapStepDone:
    """A step was taken by several settings at once; steps count from 1."""

    n_settings: int
    step: int
    total_steps: int


@dataclass(frozen=True)
class PredictionProgress:
    """A batch of inputs was predicted; `total` is None where nobody knows how many there are."""

    n_done: int
    total: int | None


RunEvent = StepDone | EpochDone | StageTested | EvaluationProgress
Event = (
    RunEvent
    | SweepStarted
    | RunStarted
    | DatasetOpened
    | Notice
    | RunFinished
    | RunFailed
    | SweepProgress
    | SearchStarted
    | VmapStepDone
    | PredictionProgress
)
Listener = Callable[[Event], None]


def ignore_event(event: Event) -> None:
    """Listen to nothing."""
