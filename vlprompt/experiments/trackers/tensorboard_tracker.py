"""TensorBoard: event files in the run's folder."""

import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vlprompt.experiments.trackers.tracker import TrackedOutcome, TrackedRun, TrackedStage, TrackedStep
from vlprompt.experiments.trackers.values import flatten_config
from vlprompt.runtime.installation import require_package

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"


class TensorBoardTracker:
    """Writes scalars and pictures, the configuration as text, and hyper-parameters with the summary."""

    takes_files: ClassVar[bool] = False
    takes_pictures: ClassVar[bool] = True

    def __init__(self) -> None:
        require_package("tensorboard", "tensorboard", "--track tensorboard")

    def begin(self, run: TrackedRun, state: dict[str, Any]) -> dict[str, Any]:
        self.run, self.last_step, self.writer = run, state.get("last_step", 0), None
        self.config = flatten_config(run.config)
        if not state:
            self._open(None).add_text("config", f"```json\n{json.dumps(self.config, indent=1)}\n```")
        return {"folder": FOLDER}

    def _open(self, purge_step: int | None) -> "SummaryWriter":
        """Open an event file; readers drop what earlier files have from `purge_step` on."""
        from torch.utils.tensorboard import SummaryWriter

        if self.writer is None:
            self.writer = SummaryWriter(str(self.run.files_folder / FOLDER), purge_step=purge_step)
        return self.writer

    def log(self, steps: Sequence[TrackedStep]) -> None:
        writer = self._open(steps[0].step)  # a process that was killed may have logged steps that are made again
        for one in steps:
            self.last_step = one.step
            for name, value in one.values.items():
                writer.add_scalar(name, value, one.step)
        writer.flush()

    def log_stage(self, stage: TrackedStage) -> None:
        writer = self._open(None)
        for name, value in stage.values.items():
            writer.add_scalar(name, value, stage.lesson)
        writer.flush()

    def finish(self, outcome: TrackedOutcome | None) -> None:
        writer = self._open(None)
        if outcome is not None:
            summary = {name: outcome.scores[name] for name in outcome.summary}
            for name, value in outcome.scores.items():
                if name not in summary:
                    writer.add_scalar(name, value, self.last_step)
            writer.add_hparams(self.config, summary, run_name=".", global_step=self.last_step)
            for name, data in (outcome.pictures or {}).items():
                writer.add_image(name, _decode(data), self.last_step, dataformats="HWC")
        writer.close()


def _decode(data: bytes) -> Any:
    """Return the pixels (H, W, 3) of a PNG."""
    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
