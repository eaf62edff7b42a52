"""Trackio: a local store in TRACKIO_DIR, by default in the runs' folder."""

import io
import os
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from typing import Any, ClassVar

from vlprompt.experiments.trackers.tracker import TrackedOutcome, TrackedRun, TrackedStage, TrackedStep
from vlprompt.experiments.trackers.values import flatten_config
from vlprompt.runtime.installation import require_package

REMOTE_VARIABLES = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")
DIRECTORY_VARIABLE = "TRACKIO_DIR"  # read when trackio is imported


class TrackioTracker:
    """Logs to the project TRACKIO_PROJECT, by default vlprompt."""

    takes_files: ClassVar[bool] = True
    takes_pictures: ClassVar[bool] = True

    def __init__(self) -> None:
        if find_spec("trackio") is None:  # importing it reads TRACKIO_DIR
            require_package("trackio", "trackio", "--track trackio")

    def begin(self, run: TrackedRun, state: dict[str, Any]) -> dict[str, Any]:
        os.environ.setdefault(DIRECTORY_VARIABLE, str(run.runs_folder.absolute() / "trackio"))
        self.project = os.environ.get("TRACKIO_PROJECT", "vlprompt")
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            self.trackio: Any = require_package("trackio", "trackio", "--track trackio")
            self.handle = self.trackio.init(
                project=self.project,
                name=run.name,
                group=run.group or None,
                config=flatten_config(run.config),
                resume="allow" if state else "never",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        self.name, self.last_step = run.name, self._read_last_step(run.name, state)
        return {"name": run.name, "last_step": self.last_step}

    def _read_last_step(self, name: str, state: dict[str, Any]) -> int:
        """Return the last step in a local store, which a killed process may not have brought up to its state."""
        if not state or any(variable in os.environ for variable in REMOTE_VARIABLES):
            return state.get("last_step", 0)
        from trackio.sqlite_storage import SQLiteStorage

        return SQLiteStorage.get_last_step(self.project, name) or 0

    def log(self, steps: Sequence[TrackedStep]) -> None:
        for one in steps:
            self.handle.log(dict(one.values), step=one.step)
            self.last_step = one.step

    def log_stage(self, stage: TrackedStage) -> None:
        self.handle.log({"stage/lesson": stage.lesson, **stage.values}, step=self.last_step)

    def finish(self, outcome: TrackedOutcome | None) -> None:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            if outcome is not None:
                self.handle.log(dict(outcome.scores), step=self.last_step)
                self._log_pictures(outcome)
                self._log_files(outcome)
            self.trackio.finish()

    def _log_pictures(self, outcome: TrackedOutcome) -> None:
        from PIL import Image

        pictures = (outcome.pictures or {}).items()
        images = {name: self.trackio.Image(Image.open(io.BytesIO(data))) for name, data in pictures}
        if images:
            self.handle.log(images, step=self.last_step)

    def _log_files(self, outcome: TrackedOutcome) -> None:
        if not hasattr(self.trackio, "Artifact"):  # of an earlier version
            return
        artifact = self.trackio.Artifact(self.name, type="run")
        for path in outcome.files:
            artifact.add_file(str(path))
        self.handle.log_artifact(artifact)
