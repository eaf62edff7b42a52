"""Weights & Biases: online with a login, or offline by WANDB_MODE=offline."""

import io
import os
import socket
from collections.abc import Sequence
from configparser import ConfigParser
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit
from urllib.request import getproxies
from uuid import uuid4

from vlprompt.experiments.trackers.tracker import TrackedOutcome, TrackedRun, TrackedStage, TrackedStep
from vlprompt.experiments.trackers.values import flatten_config
from vlprompt.experiments.trackers.wandb_files import STEP, read_last_step
from vlprompt.runtime.installation import require_package

LOCAL_MODES = ("offline", "disabled", "dryrun")
CONNECT_SECONDS = 10
TIMEOUTS = {"init_timeout": 30, "finish_timeout": 300, "finish_timeout_raises": True}  # the client may wait for ever
LATER = "set WANDB_MODE=offline and send the files later by `wandb sync`."


class WandbTracker:
    """Logs to the project WANDB_PROJECT, by default vlprompt; files go to WANDB_DIR, by default the runs' folder."""

    takes_files: ClassVar[bool] = True
    takes_pictures: ClassVar[bool] = True

    def __init__(self) -> None:
        self.wandb: Any = require_package("wandb", "wandb", "--track wandb")
        if os.environ.get("WANDB_MODE", "online") in LOCAL_MODES:
            return
        with redirect_stderr(io.StringIO()):  # newer versions tell that this will go
            key = self.wandb.api.api_key
        if not key:
            raise OSError(
                "--track wandb: expected a login or WANDB_MODE=offline, got neither. Call `wandb login`, or " + LATER
            )
        _require_server(_read_server(self.wandb.Settings()))

    def begin(self, run: TrackedRun, state: dict[str, Any]) -> dict[str, Any]:
        self.run, identity = run, state.get("id") or uuid4().hex[:12]
        folder = os.environ.get("WANDB_DIR", str(run.runs_folder))
        last_step = read_last_step(Path(folder), identity)
        self.last_step = state.get("last_step", 0) if last_step is None else last_step
        self.n_stages = len(state.get("lessons", []))  # rows beside those of steps: numbers of rows may only rise
        timeouts = {name: value for name, value in TIMEOUTS.items() if name in self.wandb.Settings.model_fields}
        settings = self.wandb.Settings(silent=True, console="off", disable_git=True, save_code=False, **timeouts)
        self.handle = self.wandb.init(
            project=os.environ.get("WANDB_PROJECT", "vlprompt"),
            id=identity,
            name=run.name,
            group=run.group or None,
            dir=folder,
            config=flatten_config(run.config),
            resume="allow",
            reinit="create_new",
            settings=settings,
        )
        for pattern in ("train/*", "epoch/*"):
            self.handle.define_metric(pattern, step_metric=STEP)
        self.handle.define_metric("stage/*", step_metric="stage/lesson")
        return {"id": identity} | ({} if last_step is None else {"last_step": last_step})

    def log(self, steps: Sequence[TrackedStep]) -> None:
        for one in steps:
            self.handle.log({STEP: one.step, **one.values}, step=one.step + self.n_stages, commit=True)
            self.last_step = one.step

    def log_stage(self, stage: TrackedStage) -> None:
        self.n_stages += 1
        row = {"stage/lesson": stage.lesson, **stage.values}
        self.handle.log(row, step=self.last_step + self.n_stages, commit=True)

    def finish(self, outcome: TrackedOutcome | None) -> None:
        if outcome is not None:
            self.handle.summary.update(dict(outcome.scores))
            self._log_pictures(outcome)
            artifact = self.wandb.Artifact(f"run-{self.handle.id}", type="run")
            for path in outcome.files:
                artifact.add_file(str(path))
            self.handle.log_artifact(artifact)
        self.handle.finish()

    def _log_pictures(self, outcome: TrackedOutcome) -> None:
        from PIL import Image

        pictures = (outcome.pictures or {}).items()
        images = {name: self.wandb.Image(Image.open(io.BytesIO(data))) for name, data in pictures}
        if images:
            self.handle.log(images, step=self.last_step + self.n_stages + 1)


def _read_server(settings: Any) -> str:
    """Return the address that `wandb login` wrote; `wandb.setup` knows it too, but leaves a process behind."""
    files = ConfigParser()
    files.read([path for path in (settings.settings_system, settings.settings_workspace) if path])
    return os.environ.get("WANDB_BASE_URL") or files.get("default", "base_url", fallback=settings.base_url)


def _require_server(url: str) -> None:
    """Raise OSError where no server answers: a client would wait for it before each run."""
    proxies, address = getproxies(), urlsplit(url)
    if address.scheme in proxies or "all" in proxies:
        return  # which alone may know the way
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), CONNECT_SECONDS).close()
    except OSError as error:
        raise OSError(
            f"--track wandb: expected a server at {url}, got no answer ({error.strerror or error}). Connect to the "
            f"network, or {LATER}"
        ) from error
