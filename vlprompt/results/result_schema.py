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


RESULT_KEYS = ("config", "scores", "summary", "cost", "environment", "protocol", "class_accuracy", "stages")


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
