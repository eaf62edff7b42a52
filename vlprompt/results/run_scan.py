"""Read all runs of a folder: each once, and what is damaged by name."""

import json
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

from vlprompt.results.run_folder import Result, RunFolder, find_run_folders
from vlprompt.results.run_inputs import find_changes
from vlprompt.results.tables.all_tables import build_tables
from vlprompt.results.tables.summary import build_rows


@dataclass(frozen=True)
class RunScan:
    """What is in a folder of runs.

    Args:
        results: of the finished runs, each once.
        unfinished: folders of runs that are not finished.
        copies: folder of a run -> the folder of the same run (configuration, inputs, protocol) that is counted.
        broken: folder of a run -> why its result can't be read.
        alike: folder of a counted run -> another one of the same configuration and seed, on other data or weights.
    """

    results: list[Result]
    unfinished: list[Path]
    copies: dict[Path, Path]
    broken: dict[Path, str]
    alike: dict[Path, Path]

    def describe_left_out(self) -> list[str]:
        """Return a line for each run that is not in the tables, or counts beside one of its own kind."""
        lines = [f"left out: {reason}" for reason in self.broken.values()]
        lines += [f"counted once: {copy} is the same run as {original}" for copy, original in self.copies.items()]
        lines += [
            f"both counted: {folder} has the configuration and seed of {other}, but other data or weights"
            for folder, other in self.alike.items()
        ]
        if self.unfinished:
            names = ", ".join(path.name for path in self.unfinished)
            lines.append(f"not finished, give the same command again: {names}")
        return lines


def scan_runs(*roots: Path) -> RunScan:
    """Read all finished runs under folders; a damaged result and a copied run are reported, not counted.

    Raises:
        ValueError: if there is no such folder.
    """
    if missing := [root for root in roots if not root.is_dir()]:
        raise ValueError(
            f"runs: expected a folder of runs, got {str(missing[0])!r}, which does not exist. "
            "Make runs/ by `vlprompt run`."
        )
    scan, originals, configs = RunScan([], [], {}, {}, {}), dict[str, Path](), dict[str, Path]()
    folders = {folder.resolve(): folder for root in roots for folder in find_run_folders(root)}  # one may hold another
    for folder in folders.values():
        try:
            run_folder = RunFolder(folder)
            result = run_folder.read_result()
            if result is None:
                scan.unfinished.append(folder)
                continue
            run_folder.verify_answers()
            _require_presentable(result)
            identity = _identify_run(result)
        except ValueError as error:
            scan.broken[folder] = str(error)
            continue
        if (original := originals.setdefault(identity, folder)) != folder:
            scan.copies[folder] = original
            continue
        scan.results.append(result)
        if (other := configs.setdefault(_to_text(result.config), folder)) != folder:
            scan.alike[folder] = other
    return scan


def read_runs(root: Path) -> tuple[list[Result], list[Path]]:
    """Return all finished runs under a folder, each once, and the folders of unfinished ones.

    Damaged results are warned about and left out; `scan_runs` returns them.
    """
    scan = scan_runs(root)
    for reason in scan.broken.values():
        warnings.warn(f"{reason} It is left out here.", stacklevel=2)
    return scan.results, scan.unfinished


def _require_presentable(result: Result) -> None:
    """ValueError for a result whose keys and types are right, but whose values no table can show."""
    try:
        build_tables(build_rows([result]))
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ValueError(
            f"{str(result.folder)!r}: expected a result that a table can show, got {type(error).__name__}: {error}. "
            "Delete its result.json and give the command of the run again."
        ) from error


def _identify_run(result: Result) -> str:
    """Return what two results of one run agree in: configuration, inputs and protocol.

    Raises:
        ValueError: where the configuration of the folder is another one than that of the result.
    """
    folder = RunFolder(Path(result.folder or ""))
    if _to_text(folder.read_config()) != _to_text(result.config):
        raise ValueError(
            f"{str(folder.result_path)!r}: expected the result of the configuration in config.yaml, got one of another "
            "configuration. Delete it and give the command of the run again."
        )
    try:
        inputs = {
            name: value for name, value in folder.read_inputs().items() if name != "witnesses"
        }  # which lie where they lie
    except (OSError, ValueError, AttributeError):
        inputs = {}
    return _to_text([result.config, inputs, result.protocol])


def _to_text(value: object) -> str:
    return json.dumps(value, sort_keys=True)  # tuples are lists, and keys texts


def mark_changed_inputs(result: Result) -> Result:
    """Add to the protocol of a finished run what has changed of its data since, as far as this machine shows it."""
    try:
        changes = find_changes(RunFolder(Path(result.folder or "")).read_inputs())
    except (OSError, ValueError, AttributeError, TypeError):  # nothing to compare by
        return result
    return replace(result, protocol={**result.protocol, "changed_since": changes}) if changes else result
