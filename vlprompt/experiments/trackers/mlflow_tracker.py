"""MLflow: the store of MLFLOW_TRACKING_URI, by default a SQLite file in the runs' folder."""

import logging
import os
import time
from collections.abc import Sequence
from typing import Any

from vlprompt.experiments.trackers.tracker import TrackedRun, TrackedStep
from vlprompt.experiments.trackers.values import flatten_config, flatten_result
from vlprompt.results.run_folder import Result
from vlprompt.runtime.installation import require_package

MAX_METRICS_PER_CALL = 1000  # of a batch, as MLflow allows
MAX_PARAMETER_CHARACTERS = 6000
ARTIFACTS_FOLDER = ".mlflow"  # hidden, since it has copies of runs
FILES = ("config.yaml", "result.json", "prompt.safetensors", "steps.jsonl", "answers.safetensors")


class MlflowTracker:
    """Logs to the experiment MLFLOW_EXPERIMENT_NAME, by default vlprompt."""

    def __init__(self) -> None:
        self.mlflow: Any = require_package("mlflow", "mlflow", "--track mlflow")

    def begin(self, run: TrackedRun, state: dict[str, Any]) -> dict[str, Any]:
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self.run = run
        default = f"sqlite:///{run.runs_folder.absolute()}/mlflow.db"
        self.client = self.mlflow.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", default))
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "vlprompt")
        if run_id := state.get("run_id"):
            self.run_id = run_id
            self.client.update_run(run_id, "RUNNING")
            return state
        experiment = self.client.get_experiment_by_name(name)
        location = (
            None if "MLFLOW_TRACKING_URI" in os.environ else (run.runs_folder.absolute() / ARTIFACTS_FOLDER).as_uri()
        )
        identity = experiment.experiment_id if experiment else self.client.create_experiment(name, location)
        self.run_id = self.client.create_run(identity, run_name=run.name).info.run_id
        for key, value in flatten_config(run.config).items():
            self.client.log_param(self.run_id, key, str(value)[:MAX_PARAMETER_CHARACTERS])
        return {"run_id": self.run_id}

    def log(self, steps: Sequence[TrackedStep]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        logged = self._read_last_step()
        metrics = [
            Metric(f"train/{name}", value, now, one.step)
            for one in steps
            if one.step > logged
            for name, value in one.values.items()
        ]
        for begin in range(0, len(metrics), MAX_METRICS_PER_CALL):
            self.client.log_batch(self.run_id, metrics[begin : begin + MAX_METRICS_PER_CALL])

    def _read_last_step(self) -> int:
        """Return the last step in the store: a process that was killed may have logged more than it wrote down."""
        return max((one.step for one in self.client.get_metric_history(self.run_id, "train/loss")), default=0)

    def finish(self, result: Result | None) -> None:
        if result is not None:
            for name, value in {**result.summary, **flatten_result(result)}.items():
                self.client.log_metric(self.run_id, name.replace("+", "_"), value)
            for name in FILES:
                if (path := self.run.folder / name).exists():
                    self.client.log_artifact(self.run_id, str(path))
        self.client.set_terminated(self.run_id, "FINISHED" if result is not None else "KILLED")
