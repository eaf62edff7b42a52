"""What the folders of runs hold of those of a sweep."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vlprompt.config.build import build_task
from vlprompt.config.run_config import RunConfig
from vlprompt.experiments.inputs import describe_inputs, hash_named_files
from vlprompt.experiments.learned.teacher import hash_teacher_runs
from vlprompt.experiments.sweeps.options import SweepOptions
from vlprompt.experiments.sweeps.run_names import choose_run_folder, get_run_folder
from vlprompt.results.run_folder import Result, RunFolder
from vlprompt.results.run_inputs import ChangedInputsError, Inputs


@dataclass(frozen=True)
class StoredRun:
    """What the folders of runs hold of one run.

    Args:
        result: None where it is not finished, or damaged.
        error: why it can't be compared with what is there.
    """

    result: Result | None = None
    error: Exception | None = None

    @property
    def has_changed_inputs(self) -> bool:
        """Whether its folder holds a run on other data, files or weights."""
        return isinstance(self.error, ChangedInputsError)


def iter_stored_runs(configs: Sequence[RunConfig], options: SweepOptions) -> Iterator[StoredRun]:
    """Yield what is there of each run; data are opened once for all runs on them, where there is something to compare.

    Args:
        configs: of the runs.
        options: where they are.
    """
    described: dict[str, Inputs] = {}  # by the settings of the task
    for config in configs:
        if not get_run_folder(options.runs_folder, config).path.exists():
            yield StoredRun()
            continue
        try:
            key = json.dumps(config.task, sort_keys=True)
            if key not in described:
                described[key] = describe_inputs(build_task(config.task), config)
            inputs = {**described[key], "files": hash_named_files(config.to_dict())}
            inputs["teacher_runs"] = hash_teacher_runs(config.method)
            folder = choose_run_folder(options, config, inputs)
        except (ValueError, OSError) as error:
            yield StoredRun(error=error)
            continue
        folder.remove_leftovers()
        yield StoredRun(None if lacks_tracked_parts(folder, options) else folder.read_finished())


def lacks_tracked_parts(folder: RunFolder, options: SweepOptions) -> bool:
    """Whether a store that the options name lacks a part of a run."""
    if not options.trackers:
        return False
    from vlprompt.experiments.trackers.tracking import is_tracked_in_part

    return is_tracked_in_part(folder.path, options.trackers)


def read_finished_runs(
    configs: Sequence[RunConfig], options: SweepOptions, goes_on: bool = True
) -> list[Result | None]:
    """Return the results of the runs that are finished, None for the others.

    Args:
        configs: of the runs.
        options: where they are.
        goes_on: return None for a run that can't be compared, which then fails in its turn.

    Raises:
        ChangedInputsError: for a run whose folder holds one on other inputs, without `goes_on` and `options.fresh`.
    """
    results = list[Result | None]()
    for stored in iter_stored_runs(configs, options):
        if stored.error is not None and not goes_on:
            raise stored.error
        results.append(stored.result)
    return results
