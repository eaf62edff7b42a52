"""Configurations and results as flat names and values."""

from collections.abc import Mapping
from typing import Any

from vlprompt.config.sources import iter_flat_settings
from vlprompt.results.run_folder import Result


def flatten_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return "section.key" -> a number, truth value or text."""
    return {
        key: value if isinstance(value, int | float | str | bool) else str(value)
        for key, value in iter_flat_settings(config)
    }


def flatten_result(result: Result) -> dict[str, float]:
    """Return "test/NAME/METRIC" of the last stage, and "cost/NAME"."""
    scores = {
        f"test/{test}/{metric}": float(value)
        for test, metrics in (result.scores[-1] if result.scores else {}).items()
        for metric, value in metrics.items()
    }
    return scores | {f"cost/{name}": float(value) for name, value in result.cost.items()}
