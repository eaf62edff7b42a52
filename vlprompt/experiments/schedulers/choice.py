"""The schedulers by name."""

from importlib import import_module
from pathlib import Path
from typing import Any

from vlprompt.experiments.schedulers.scheduler import Scheduler
from vlprompt.runtime.errors import suggest_nearest

CLUSTERS = {  # name -> (module, class)
    "slurm": ("slurm", "Slurm"),
    "ray": ("ray_cluster", "RayCluster"),
}


def build_cluster(name: str, n_workers: int, log_folder: Path, options: dict[str, Any]) -> Scheduler:
    """Build the scheduler of a cluster.

    Args:
        name: of the cluster's system.
        n_workers: at once.
        log_folder: where workers write their logs.
        options: of the cluster, by name.

    Raises:
        ValueError: for an unknown name, or an option that it does not have.
        OSError: where the cluster or its client is not there.
    """
    if name not in CLUSTERS:
        raise ValueError(f"--on: unknown scheduler {name!r}; {suggest_nearest(name, CLUSTERS)}")
    module, cls = CLUSTERS[name]
    scheduler: Scheduler = getattr(import_module(f"vlprompt.experiments.schedulers.{module}"), cls)(
        n_workers, log_folder, options
    )
    return scheduler
