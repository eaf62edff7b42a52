"""Configurations, steps and results as flat names and values, the same in every store."""

import json
from collections.abc import Mapping
from typing import Any

from vlprompt.config.sources import iter_flat_settings
from vlprompt.results.run_folder import Result


def flatten_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return "section.key" -> a number, truth value or text; other values are JSON, as key=value takes them."""
    return {
        key: value if isinstance(value, int | float | str | bool) else json.dumps(value)
        for key, value in iter_flat_settings(config)
    }


def flatten_step(loss: float, lr: float, terms: Mapping[str, float], epoch: Mapping[str, float]) -> dict[str, float]:
    """Return "train/NAME" of a step, and "epoch/NAME" of the epoch that ended with it; one term alone is the loss."""
    several = {f"train/loss/{name}": value for name, value in terms.items()} if len(terms) > 1 else {}
    return {"train/loss": loss, "train/lr": lr, **several, **{f"epoch/{name}": value for name, value in epoch.items()}}


def flatten_scores(prefix: str, scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return "PREFIX/TEST/METRIC" of tests."""
    return {f"{prefix}/{test}/{name}": float(value) for test, one in scores.items() for name, value in one.items()}


def flatten_result(result: Result) -> dict[str, float]:
    """Return the summary, "test/TEST/METRIC" of the last stage, and "cost/NAME"."""
    cost = {f"cost/{name}": float(value) for name, value in result.cost.items()}
    tests = flatten_scores("test", result.scores[-1] if result.scores else {})
    return {**{name: float(value) for name, value in result.summary.items()}, **tests, **cost}
