"""What a search varies: lists of values, and ranges that a sampler draws from."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

from vlprompt.config.build import get_constructor_types, resolve_class
from vlprompt.config.sources import PlainValue, Settings
from vlprompt.engine.train_config import TrainConfig

VMAP_KEYS = ("train.lr", "train.weight_decay")  # what settings that train vmapped may differ in
SEARCH_OPTIONS = ("lr_base_batch_size", "seed", "seeds")  # keys of `search` that are no lists of values


class Range(BaseModel):
    """Numbers from low to high, both included.

    Args:
        low: the least.
        high: the greatest.
        log: draw their logarithms uniformly.
        step: the distance of two neighbours from low on; None for any number, of integers 1.
        is_integer: whether only integers are meant.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    low: float
    high: float
    log: bool = False
    step: float | None = None
    is_integer: bool = False


Axis: TypeAlias = list[Any] | Range


def flatten_space(values: Mapping[str, PlainValue], prefix: str = "") -> Iterator[tuple[str, PlainValue]]:
    """Yield ("train.lr", value) of every value of a `search` section; a range is one value."""
    for key, value in values.items():
        if isinstance(value, Mapping) and not {"low", "high"} & value.keys():
            yield from flatten_space(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def read_axes(space: Settings, method: str, has_ranges: bool) -> dict[str, Axis]:
    """Return the lists of values and the ranges to search, by their key.

    Args:
        space: the flat `search` section.
        method: its name, by whose arguments a range is of integers or not.
        has_ranges: whether the sampler can draw from ranges.

    Raises:
        ValueError: for a key that can't be searched, or values that are none.
    """
    axes: dict[str, Axis] = {}
    for key, value in space.items():
        if key in SEARCH_OPTIONS:
            continue
        if key.partition(".")[0] not in ("train", "method") or "." not in key:
            raise ValueError(
                f"search: expected train.NAME, method.NAME or {', '.join(SEARCH_OPTIONS)}, got search.{key}. Write "
                "search.train.NAME or search.method.NAME and a list of values, such as search.train.lr=[0.1,0.01]."
            )
        axes[key] = _read_range(key, value, method) if isinstance(value, Mapping) else _read_list(key, value)
        if isinstance(axes[key], Range) and not has_ranges:
            raise ValueError(
                f"search.{key}: expected a list of values for a grid, got the range {dict(value)}. Give --sampler "
                "optuna, or write a list."
            )
    return axes


def parse_number(key: str, value: Any) -> float:
    """Parse a number that YAML may have read as text, as it does 1e-3."""
    try:
        if isinstance(value, bool):
            raise ValueError("a truth value")
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"search.{key}: expected a list of numbers, got {value!r}. Write search.{key}=[0.1,0.01]."
        ) from error


def _read_list(key: str, value: PlainValue) -> list[Any]:
    values = value if isinstance(value, list) else [value]
    if not values:
        raise ValueError(f"search.{key}: expected a list of values, got an empty one. Add values, or leave it out.")
    return values


def _read_range(key: str, value: Mapping[str, Any], method: str) -> Range:
    example = f"search.{key}={{low: 0.001, high: 0.1, log: true}}"
    if "is_integer" in value:
        raise ValueError(f"search.{key}: expected low, high, log and step, got is_integer. Write {example}.")
    has_integers = all(type(value.get(name, 1)) is int for name in ("low", "high", "step"))
    is_integer = has_integers and not _takes_real_numbers(key, method)
    try:
        limits = Range(**value, is_integer=is_integer)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        given = "nothing" if first["type"] == "missing" else repr(first["input"])
        expected = "low, high, log and step" if first["type"] == "extra_forbidden" else f"a value of {name}"
        given = f"{name}" if first["type"] == "extra_forbidden" else f"{given} ({first['msg']})"
        raise ValueError(f"search.{key}: expected {expected}, got {given}. Write {example}.") from error
    _require_valid_range(key, limits)
    return limits


def _require_valid_range(key: str, limits: Range) -> None:
    low, high, step = (f"{n:g}" if n is not None else "" for n in (limits.low, limits.high, limits.step))
    if not limits.low < limits.high:
        raise ValueError(f"search.{key}: expected low below high, got low {low} and high {high}. Exchange them.")
    if limits.log and limits.low <= 0:
        raise ValueError(
            f"search.{key}: expected low above 0 in a logarithmic range, got {low}. Set a small number above 0, or "
            "leave log out."
        )
    if limits.step is not None and limits.log:
        raise ValueError(f"search.{key}: expected log or step, got both. Leave one out.")
    if limits.step is not None and not 0 < limits.step <= limits.high - limits.low:
        raise ValueError(
            f"search.{key}: expected a step above 0 and at most high - low, got {step}. Set a smaller step."
        )


def _takes_real_numbers(key: str, method: str) -> bool:
    """Return whether the argument of a key is a real number; False too where its type is not known."""
    section, _, name = key.partition(".")
    types = get_constructor_types(TrainConfig if section == "train" else resolve_class("method", method))
    annotation = types.get(name)
    return annotation is float or float in getattr(annotation, "__args__", ())
