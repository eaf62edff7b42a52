"""What a model folder says of the result behind it, without paths of this machine."""

import re
from glob import escape
from pathlib import Path
from typing import Any

from vlprompt.experiments.learned.local_paths import shorten_settings
from vlprompt.experiments.learned.state import LearnedState
from vlprompt.results.comparability import make_config_key
from vlprompt.results.run_folder import Result, RunFolder
from vlprompt.results.tables.summary import compute_mean_std

# of the protocol: classes and key stand elsewhere, a note may name files
LEFT_OUT = ("classes", "backbone_key", "note")
SEED_IN_NAME = re.compile(r"-seed\d+-.*")


def build_result_entry(state: LearnedState, result: Result | None) -> dict[str, Any] | None:
    """Return the result of a prompt as config.json has it; None where there is none.

    Args:
        state: of the prompt.
        result: of its run; default: that of the folder that it was read from.
    """
    if result is None and state.provenance:
        return state.provenance["result"]
    result = result or RunFolder(Path(state.source).expanduser()).read_result()
    if result is None:
        return None
    protocol = {key: value for key, value in result.protocol.items() if key not in LEFT_OUT}
    return {
        "summary": result.summary,
        "seeds": _average_seeds(result),
        "protocol": shorten_settings(protocol),
        "cost": result.cost,
        "environment": shorten_settings(result.environment),
    }


def _average_seeds(result: Result) -> dict[str, Any] | None:
    """Return mean and deviation over the runs beside this one that differ by their seed only; None for one alone."""
    if result.folder is None:
        return None
    folder, key = Path(result.folder).absolute(), make_config_key(result)
    by_seed = {result.config["seed"]: result}
    for path in sorted(folder.parent.glob(f"{escape(SEED_IN_NAME.sub('-seed', folder.name))}*/result.json")):
        other = RunFolder(path.parent).read_finished()
        if other is not None and make_config_key(other) == key:
            by_seed.setdefault(other.config["seed"], other)
    if len(by_seed) == 1:
        return None
    metrics = [name for name in result.summary if all(name in other.summary for other in by_seed.values())]
    stats = {name: compute_mean_std([other.summary[name] for other in by_seed.values()]) for name in metrics}
    return {
        "seeds": sorted(by_seed),
        "mean": {name: value.mean for name, value in stats.items()},
        "std": {name: value.std for name, value in stats.items()},
    }
