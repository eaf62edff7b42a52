"""Weights & Biases: online with a login, or offline by WANDB_MODE=offline."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from vlprompt.experiments.trackers.tracker import TrackedRun, TrackedStep
from vlprompt.experiments.trackers.values import flatten_result
from vlprompt.experiments.trackers.wandb_files import read_last_step
from vlprompt.results.run_folder import Result
from vlprompt.runtime.installation import require_package

LOCAL_MODES = ("offline", "disabled", "dryrun")


class WandbTracker:
    """Logs to the project WANDB_PROJECT, by default vlprompt; files go to WANDB_DIR, by default the runs' folder."""

    def __init__(self) -> None:
        self.wandb: Any = require_package("wandb", "wandb", "--track wandb")
        is_local = os.environ.get("WANDB_MODE", "online") in LOCAL_MODES
        if not is_local and not self.wandb.api.api_key:
            raise OSError(
                "--track wandb: expected a login or WANDB_MODE=offline, got neither. Call `wandb login`, or set "
                "WANDB_MODE=offline and send the files later by `wandb sync`."
            )

    def begin(self, run: TrackedRun, state: dict[str, Any]) -> dict[str, Any]:
        self.run, identity = run, state.get("id") or uuid4().hex[:12]
        folder = os.environ.get("WANDB_DIR", str(run.runs_folder))
        last_step = read_last_step(Path(folder), identity)
        self.handle = self.wandb.init(
            project=os.environ.get("WANDB_PROJECT", "vlprompt"),
            id=identity,
            name=run.name,
            dir=folder,
            config=dict(run.config),
            resume="allow",
            reinit="create_new",
            settings=self.wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )
        return {"id": identity} | ({} if last_step is None else {"last_step": last_step})

    def log(self, steps: Sequence[TrackedStep]) -> None:
        for one in steps:
            self.handle.log({f"train/{name}": value for name, value in one.values.items()}, step=one.step, commit=True)

    def finish(self, result: Result | None) -> None:
        if result is not None:
            self.handle.summary.update({**result.summary, **flatten_result(result)})
            artifact = self.wandb.Artifact(f"run-{self.handle.id}", type="run")
            for name in ("config.yaml", "result.json", "prompt.safetensors", "steps.jsonl"):
                if (path := self.run.folder / name).exists():
                    artifact.add_file(str(path))
            self.handle.log_artifact(artifact)
        self.handle.finish()
