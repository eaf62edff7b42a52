"""MLflow: the store of MLFLOW_TRACKING_URI, by default a SQLite file in the runs' folder."""

import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from vlprompt.experiments.trackers.tracker import TrackedOutcome, TrackedRun, TrackedStage, TrackedStep
from vlprompt.experiments.trackers.values import flatten_config
from vlprompt.runtime.installation import require_package

MAX_METRICS_PER_CALL, MAX_PARAMETERS_PER_CALL = 1000, 100  # of a batch, as MLflow allows
MAX_PARAMETER_CHARACTERS = 6000
ARTIFACTS_FOLDER = ".mlflow"  # hidden, since it has copies of runs
# a server that is gone costs seconds, where MLflow itself would try for minutes
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


class MlflowTracker:
    """Logs to the experiment MLFLOW_EXPERIMENT_NAME, by default vlprompt."""

    takes_files: ClassVar[bool] = True
    takes_pictures: ClassVar[bool] = True

    def __init__(self) -> None:
        self.mlflow: Any = require_package("mlflow", "mlflow", "--track mlflow")

    def begin(self, run: TrackedRun, state: dict[str, Any]) -> dict[str, Any]:
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        default = f"sqlite:///{run.runs_folder.absolute()}/mlflow.db"
        self.client = self.mlflow.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", default))
        self.last_step = 0
        if run_id := state.get("run_id"):
            self.run_id = run_id
            self.client.update_run(run_id, "RUNNING")
            history = self.client.get_metric_history(run_id, "train/loss")
            self.last_step = max((one.step for one in history), default=0)
            return {"run_id": run_id, "last_step": self.last_step}
        tags = {"group": run.group} if run.group else {}
        self.run_id = self.client.create_run(self._find_experiment(run), tags=tags, run_name=run.name).info.run_id
        self._log_parameters(flatten_config(run.config))
        return {"run_id": self.run_id}

    def _find_experiment(self, run: TrackedRun) -> str:
        """Return the identity of the experiment, which is new for the first run of a store."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "vlprompt")
        if experiment := self.client.get_experiment_by_name(name):
            return experiment.experiment_id
        is_local = "MLFLOW_TRACKING_URI" not in os.environ
        location = (run.runs_folder.absolute() / ARTIFACTS_FOLDER).as_uri() if is_local else None
        return self.client.create_experiment(name, location)

    def _log_parameters(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        parameters = [Param(key, str(value)[:MAX_PARAMETER_CHARACTERS]) for key, value in config.items()]
        for begin in range(0, len(parameters), MAX_PARAMETERS_PER_CALL):
            self.client.log_batch(self.run_id, params=parameters[begin : begin + MAX_PARAMETERS_PER_CALL])

    def _log_metrics(self, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Log (step, values)."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(_clean_name(name), value, now, step) for step, row in rows for name, value in row.items()]
        for begin in range(0, len(metrics), MAX_METRICS_PER_CALL):
            self.client.log_batch(self.run_id, metrics[begin : begin + MAX_METRICS_PER_CALL])

    def log(self, steps: Sequence[TrackedStep]) -> None:
        self._log_metrics([(one.step, one.values) for one in steps])
        self.last_step = steps[-1].step

    def log_stage(self, stage: TrackedStage) -> None:
        self._log_metrics([(stage.lesson, stage.values)])

    def finish(self, outcome: TrackedOutcome | None) -> None:
        if outcome is not None:
            self._log_metrics([(self.last_step, outcome.scores)])
            for path in outcome.files:
                self.client.log_artifact(self.run_id, str(path))
            for name, data in (outcome.pictures or {}).items():
                self._log_picture(name, data)
        self.client.set_terminated(self.run_id, "FINISHED" if outcome is not None else "KILLED")

    def _log_picture(self, name: str, data: bytes) -> None:
        with TemporaryDirectory() as folder:
            place, _, stem = name.rpartition("/")
            path = Path(folder) / f"{_clean_name(stem)}.png"
            path.write_bytes(data)
            self.client.log_artifact(self.run_id, str(path), place)


def _clean_name(name: str) -> str:
    """Return a name of the characters that MLflow takes."""
    return re.sub(r"[^\w\-. /]", "_", name)
