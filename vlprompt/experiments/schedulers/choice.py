"""The schedulers by name."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from vlprompt.experiments.schedulers.scheduler import Scheduler
from vlprompt.runtime.errors import suggest_nearest

if TYPE_CHECKING:
    from pydantic import BaseModel

LOCAL = "local"  # this machine
CLUSTERS = {  # name -> (module, class, class of its options)
    "slurm": ("slurm", "Slurm", "SlurmOptions"),
    "ray": ("ray_cluster", "RayCluster", "RayOptions"),
}


def require_place(name: str, origin: str) -> None:
    """ValueError for a name that is neither a cluster's nor that of this machine."""
    if name not in (LOCAL, *CLUSTERS):
        raise ValueError(f"{origin}: unknown scheduler {name!r}; {suggest_nearest(name, (LOCAL, *CLUSTERS))}")


def get_options_schema(name: str) -> "type[BaseModel]":
    """Return the schema of the options of a cluster."""
    file, _, schema = CLUSTERS[name]
    return getattr(import_module(f"vlprompt.experiments.schedulers.{file}"), schema)


def build_cluster(name: str, n_workers: int, log_folder: Path, options: "BaseModel") -> Scheduler:
    """Build the scheduler of a cluster.

    Args:
        name: of the cluster's system.
        n_workers: at once.
        log_folder: where workers write their logs.
        options: of the schema of the cluster.

    Raises:
        OSError: where the cluster or its client is not there.
    """
    file, cls, _ = CLUSTERS[name]
    scheduler: Scheduler = getattr(import_module(f"vlprompt.experiments.schedulers.{file}"), cls)(
        n_workers, log_folder, options
    )
    return scheduler
