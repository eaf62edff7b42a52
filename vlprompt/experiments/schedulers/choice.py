"""The schedulers by name."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlprompt.experiments.schedulers.scheduler import Scheduler
from vlprompt.runtime.errors import suggest_nearest

if TYPE_CHECKING:
    from pydantic import BaseModel

CLUSTERS = {  # name -> (module, class, class of its options)
    "slurm": ("slurm", "Slurm", "SlurmOptions"),
    "ray": ("ray_cluster", "RayCluster", "RayOptions"),
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
    file, cls, options_cls = CLUSTERS[name]
    module = import_module(f"vlprompt.experiments.schedulers.{file}")
    scheduler: Scheduler = getattr(module, cls)(
        n_workers, log_folder, _parse_options(name, getattr(module, options_cls), options)
    )
    return scheduler


def _parse_options(name: str, cls: "type[BaseModel]", options: dict[str, Any]) -> "BaseModel":
    from pydantic import ValidationError

    if unknown := [key for key in options if key not in cls.model_fields]:
        raise ValueError(f"--on {name}: unknown option {unknown[0]!r}; {suggest_nearest(unknown[0], cls.model_fields)}")
    try:
        return cls(**options)
    except ValidationError as error:
        first = error.errors()[0]
        key, hint = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Input should be ")
        raise ValueError(
            f"--on {name}: {key}: expected {hint}, got {first['input']!r}. Set --on-option {key}=VALUE."
        ) from error
