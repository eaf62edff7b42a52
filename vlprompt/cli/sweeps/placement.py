"""Where the runs of a sweep are made: what its file says, and the options of the command line over it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel

    from vlprompt.experiments.schedulers.scheduler import Scheduler
    from vlprompt.experiments.sweeps.options import SweepOptions
    from vlprompt.experiments.sweeps.sweep_file import SweepSpace


@dataclass(frozen=True)
class Placement:
    """Where the runs of a sweep are made.

    Args:
        cluster: its name; None for this machine.
        n_workers: at once.
        options: of the cluster.
    """

    cluster: str | None
    n_workers: int
    options: "BaseModel | None" = None

    @property
    def is_in_process(self) -> bool:
        """Whether the command makes the runs itself."""
        return self.cluster is None and self.n_workers == 1

    def build_scheduler(self, options: "SweepOptions") -> "Scheduler":
        """Build the scheduler of the workers."""
        from vlprompt.experiments.schedulers.choice import build_cluster
        from vlprompt.experiments.schedulers.processes import Processes
        from vlprompt.experiments.sweeps.sweep_folder import SweepFolder

        log_folder = SweepFolder(options.runs_folder).path / "logs"
        if self.cluster is None or self.options is None:
            return Processes(self.n_workers, log_folder, _list_gpus(options.device))
        return build_cluster(self.cluster, self.n_workers, log_folder, self.options)


def choose_placement(space: "SweepSpace", jobs: int | None, on: str | None, words: Sequence[str]) -> Placement:
    """Choose where runs are made.

    Args:
        space: of the sweep, with what its file says.
        jobs: of the command line; None for what the file says, as for `on`.
        on: the name of a cluster, or local.
        words: options of the cluster as they were typed, over those of the file.

    Raises:
        ValueError: for a cluster that there is not, or an option that it does not have.
    """
    from vlprompt.config.schemas import parse_schema
    from vlprompt.experiments.schedulers.choice import CLUSTERS, LOCAL, get_options_schema, require_place

    place = space.place
    name = on or place.on or LOCAL
    require_place(name, "--on" if on else f"{space.file}: on")
    sections: dict[str, dict[str, Any]] = {cluster: getattr(place, cluster) for cluster in CLUSTERS}
    schemas = {cluster: get_options_schema(cluster) for cluster in CLUSTERS if cluster == name or sections[cluster]}
    parsed = {
        cluster: parse_schema(schema, sections[cluster], f"{space.file}: {cluster}", "option")
        for cluster, schema in schemas.items()
    }
    n_workers = jobs or place.jobs or 1
    if name == LOCAL:
        if words:
            raise ValueError(
                "--on-option: expected with --on slurm or --on ray, got neither. Name one, or leave it out."
            )
        return Placement(None, n_workers)
    if not words:
        return Placement(name, n_workers, parsed[name])
    typed = _parse_words(words, schemas[name], name)
    return Placement(
        name, n_workers, parse_schema(schemas[name], {**sections[name], **typed}, f"--on {name}", "option")
    )


def _parse_words(words: Sequence[str], schema: "type[BaseModel]", name: str) -> dict[str, Any]:
    """Parse KEY=VALUE words by the types of the options."""
    from vlprompt.config.override_types import parse_typed
    from vlprompt.config.sources import parse_text

    values: dict[str, Any] = {}
    for word in words:
        key, separator, text = word.partition("=")
        if not separator:
            raise ValueError(f"--on-option: expected KEY=VALUE, got {word!r}. Write --on-option partition=gpu.")
        field = schema.model_fields.get(key)
        values[key] = parse_text(text) if field is None else parse_typed(text, field.annotation, key)
    return values


def _list_gpus(device: str | None) -> tuple[str, ...]:
    """List the GPUs that workers share out; none where the option names one device, or the CPU."""
    import torch

    from vlprompt.experiments.schedulers.processes import name_devices

    if device not in (None, "cuda"):
        return ()
    return name_devices(torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES"))
