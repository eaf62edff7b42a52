"""The trackers by name."""

from importlib import import_module

from vlprompt.experiments.trackers.tracker import Tracker
from vlprompt.runtime.errors import suggest_nearest

TRACKERS = {  # name -> class, in the file of the name
    "jsonl": "JsonlTracker",
    "tensorboard": "TensorBoardTracker",
    "wandb": "WandbTracker",
    "mlflow": "MlflowTracker",
    "trackio": "TrackioTracker",
}


def parse_trackers(text: str | None) -> tuple[str, ...]:
    """Parse "jsonl,wandb".

    Raises:
        ValueError: for an unknown tracker.
        OSError: for one that is not installed, or lacks a login.
    """
    names = tuple(dict.fromkeys(name.strip() for name in (text or "").split(",") if name.strip()))
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"--track: unknown tracker {name!r}; {suggest_nearest(name, TRACKERS)}")
        build_tracker(name)
    return names


def build_tracker(name: str) -> Tracker:
    """Build a tracker.

    Raises:
        OSError: where its client is not installed, or it needs a login that is not there.
    """
    tracker: Tracker = getattr(import_module(f"vlprompt.experiments.trackers.{name}_tracker"), TRACKERS[name])()
    return tracker
