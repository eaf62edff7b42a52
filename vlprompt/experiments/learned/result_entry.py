"""What a model folder says of the result behind it, without paths of this machine."""

from pathlib import Path
from typing import Any

from vlprompt.experiments.learned.local_paths import shorten_settings
from vlprompt.experiments.learned.model_files import CONFIG_FILE, is_model_folder, read_model_config
from vlprompt.experiments.learned.state import LearnedState
from vlprompt.results.run_folder import Result, RunFolder

LEFT_OUT = ("classes", "note")  # of the protocol: the classes stand in the lessons, a note may name files


def build_result_entry(state: LearnedState, result: Result | None) -> dict[str, Any] | None:
    """Return the result of a prompt as config.json has it; None where there is none.

    Args:
        state: of the prompt.
        result: of its run; default: what the folder has that it was read from.
    """
    source = Path(state.source).expanduser()
    if result is None and is_model_folder(source):
        entry = read_model_config(source / CONFIG_FILE, state.source).result
        return None if entry is None else entry.model_dump()
    result = result or RunFolder(source).read_result()
    if result is None:
        return None
    protocol = {key: value for key, value in result.protocol.items() if key not in LEFT_OUT}
    return {
        "summary": result.summary,
        "seeds": None,
        "protocol": shorten_settings(protocol),
        "cost": result.cost,
        "environment": shorten_settings(result.environment),
    }
