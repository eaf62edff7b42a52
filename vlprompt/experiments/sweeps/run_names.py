"""How runs are named: on the terminal, and by their folders."""

from glob import escape
from pathlib import Path
from typing import Any

from vlprompt.config.run_config import RunConfig, hash_config
from vlprompt.experiments.sweeps.options import SweepOptions
from vlprompt.results.comparability import CONTINUAL, DOMAIN
from vlprompt.results.run_folder import RunFolder
from vlprompt.results.run_inputs import Inputs


def format_run_name(config: RunConfig, with_dataset: bool = True) -> str:
    """Format a run for the terminal: its dataset, method, shots and seed."""
    name = f"{config.method['name']} {_format_data_size(config.task)}, seed {config.seed}"
    return f"{format_dataset_name(config.task)}: {name}" if with_dataset else name


def get_run_folder(runs_folder: Path, config: RunConfig) -> RunFolder:
    """runs/<method>-<dataset>-<shots>shot-seed<seed>-<hash>; only the hash distinguishes runs for certain."""
    method = config.method["name"].rpartition(":")[2]
    size = _format_data_size(config.task, "")
    name = f"{method}-{format_dataset_name(config.task)}-{size}-seed{config.seed}-{config.hash}"
    return RunFolder(runs_folder / name)


def choose_run_folder(options: SweepOptions, config: RunConfig, inputs: Inputs) -> RunFolder:
    """Return the folder of a run on these inputs: the one of its configuration, or one beside it.

    Raises:
        ChangedInputsError: where that holds a run on other inputs and `fresh` does not allow a new folder.
    """
    folder = get_run_folder(options.runs_folder, config)
    siblings = sorted(folder.path.parent.glob(f"{escape(folder.path.name)}-*"))
    candidates = folder, *map(RunFolder, siblings)
    n_changes = {one: len(one.list_changed_inputs(inputs)) for one in candidates}
    nearest = min(n_changes, key=n_changes.__getitem__)
    if not n_changes[nearest]:
        return nearest
    if not options.fresh:
        nearest.require_inputs(inputs)
    return RunFolder(folder.path.with_name(f"{folder.path.name}-{hash_config(inputs)[:6]}"))


def _format_data_size(task: dict[str, Any], separator: str = " ") -> str:
    """Format how much data a run has: shots, or the lessons of a stream."""
    k, stages = task.get("shots"), task.get("stages")
    if task["name"] == CONTINUAL and k is None:
        return "stream" if stages is None else f"{len(stages) if isinstance(stages, list) else stages}{separator}stages"
    if task["name"] == DOMAIN and k is None:
        return task["setting"].replace("_", "-")
    return f"{k if k is not None else 'all'}{separator}shot" + ("s" if separator and k != 1 else "")


def format_dataset_name(task: dict[str, Any]) -> str:
    """Format the data of a run for the name of its folder."""

    def shorten(dataset: object) -> str:
        return Path(str(dataset)).name.replace(" ", "_")

    if task["name"] != DOMAIN:
        return shorten(task.get("dataset", task["name"]))
    source = task["source"]
    sources = source if isinstance(source, list) else [source or _describe_missing_source(task["setting"])]
    pair = f"{'+'.join(map(shorten, sources))}-to-{shorten(task['target'])}"
    return f"{shorten(task['dataset'])}-{pair}" if task["dataset"] else pair


def _describe_missing_source(setting: str) -> str:
    return "none" if setting == "source_free" else "rest"
