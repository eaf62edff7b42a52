"""TensorBoard: event files in the run's folder."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vlprompt.experiments.trackers.tracker import TrackedRun, TrackedStep
from vlprompt.experiments.trackers.values import flatten_config, flatten_result
from vlprompt.results.run_folder import Result
from vlprompt.runtime.installation import require_package

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"


class TensorBoardTracker:
    """Writes scalars of steps and scores, the configuration as text, and hyper-parameters with the summary."""

    def __init__(self) -> None:
        require_package("tensorboard", "tensorboard", "--track tensorboard")

    def begin(self, run: TrackedRun, state: dict[str, Any]) -> dict[str, Any]:
        self.run, self.last_step, self.writer = run, state.get("last_step", 0), None
        if not state:
            self._open(None).add_text("config", f"```json\n{json.dumps(dict(run.config), indent=1)}\n```")
        return {"folder": FOLDER}

    def _open(self, purge_step: int | None) -> "SummaryWriter":
        """Open an event file; readers drop what earlier files have from `purge_step` on."""
        from torch.utils.tensorboard import SummaryWriter

        if self.writer is None:
            self.writer = SummaryWriter(str(self.run.folder / FOLDER), purge_step=purge_step)
        return self.writer

    def log(self, steps: Sequence[TrackedStep]) -> None:
        writer = self._open(steps[0].step)  # a process that was killed may have logged steps that are made again
        for one in steps:
            self.last_step = one.step
            for name, value in one.values.items():
                writer.add_scalar(f"train/{name}", value, one.step)
        writer.flush()

    def finish(self, result: Result | None) -> None:
        writer = self._open(None)
        if result is not None:
            for name, value in flatten_result(result).items():
                writer.add_scalar(name, value, self.last_step)
            metrics = {f"summary/{name}": value for name, value in result.summary.items()}
            writer.add_hparams(flatten_config(self.run.config), metrics, run_name=".")
        writer.close()
