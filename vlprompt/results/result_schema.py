"""What a result.json must hold, so that a table can show it."""

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from vlprompt.runtime.errors import suggest_nearest


def _require_finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("expected a finite number")
    return value


Number = Annotated[float, AfterValidator(_require_finite)]


class _Part(BaseModel):
    """A mapping with these keys, and any others."""

    model_config = ConfigDict(strict=True)


class _Named(_Part):
    name: str


class _Config(_Part):
    backbone: str
    method: _Named
    task: _Named
    train: dict[str, Any]
    seed: int


class _Cost(_Part):
    seconds: Number
    trained_parameters: Number
    peak_memory_mb: Number


class _Result(_Part):
    config: _Config
    scores: list[dict[str, dict[str, float]]]
    summary: dict[str, Number]
    cost: _Cost
    environment: dict[str, Any]
    protocol: dict[str, Any]


class _DomainProtocol(_Part):
    sources: list[str]
    target: str
    dataset: str


RESULT_PARTS = {  # key of a result.json -> what it holds
    "config": "the resolved configuration, every default filled in",
    "scores": "after each lesson: {test: {metric: value}}",
    "summary": "the numbers that tables show",
    "cost": "seconds, parameters, memory, size, and what the feature cache saved",
    "environment": "versions, device and threads of the run",
    "protocol": "what must agree where results are compared: hashes of the splits, template, classes, backbone",
    "class_accuracy": "after each lesson: {test: {class: percent of its items right}}",
    "confusion": "of the last tests: {test: {classes, counts}}, the confusion matrix as rows [true class, answered "
    "class, items] where there are any; classes are counted from 0, and the number of classes is no answer",
    "stages": "of each lesson: parameters, bytes of the state, seconds, use of each prompt, scores after each epoch",
}
COST_PARTS = {  # key of a result's cost -> what it is
    "seconds": "of wall-clock time, training and tests; of a resumed run those before the stop too",
    "trained_parameters": "number of parameters that were trained",
    "trained_percent": "the same in percent of the frozen backbone's",
    "peak_memory_mb": "most memory of a process (on a GPU: of its tensors), in MB of 2**20 bytes",
    "feature_cache_misses": "features that were computed",
    "feature_cache_hits": "features that were there already",
    "stored_bytes": "size of the file of what was learned",
}
RESULT_KEYS = tuple(RESULT_PARTS)


def validate_result(content: object) -> dict[str, Any]:
    """Return the content of a result.json.

    Raises:
        ValueError: for what is no result; it names the first wrong key.
    """
    if not isinstance(content, dict):
        raise ValueError(f"expected a mapping, got a {type(content).__name__}")
    if unknown := [key for key in content if key not in RESULT_KEYS]:
        raise ValueError(f"unknown key {unknown[0]!r}; {suggest_nearest(str(unknown[0]), RESULT_KEYS)}")
    _validate(_Result, content, "")
    if content["config"]["task"]["name"] == "domain":
        _validate(_DomainProtocol, content["protocol"], "protocol.")
    return content


def _validate(kind: type[_Part], content: Mapping[str, Any], prefix: str) -> None:
    try:
        kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = prefix + ".".join(map(str, first["loc"]))
        value = "nothing" if first["type"] == "missing" else repr(first["input"])[:60]
        raise ValueError(f"{key}: {first['msg']}, got {value}") from error
