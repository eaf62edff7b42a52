"""Read YAML files and check mappings against pydantic models, with errors that name file, key and remedy."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from vlprompt.runtime.errors import suggest_nearest

ERROR_PRIORITY = ("extra_forbidden", "missing")  # of several errors, what the user mistyped comes first
MAX_VALUE = 200  # characters of a value in an error


class Schema(BaseModel):
    """A frozen mapping of known keys without coercion. A field's description is what its errors say is expected."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", arbitrary_types_allowed=True)


S = TypeVar("S", bound=Schema)


def load_yaml_mapping(
    path: Path, expected: str = "a mapping of keys", typed_keys: Collection[str] | None = None
) -> dict[object, object]:
    """Load the mapping in a YAML file.

    Args:
        path: the file.
        expected: what it should hold, for errors.
        typed_keys: None for typed values everywhere; else the keys that have them, as `load_yaml` takes them.

    Raises:
        ValueError: if the file is not YAML or holds something else.
    """
    from yaml import YAMLError

    from vlprompt.runtime.yaml_text import load_yaml

    try:
        values = load_yaml(path.read_text("utf-8"), typed_keys)
    except (YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}. Correct the file.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected {expected}, got a {type(values).__name__}. Write KEY: VALUE lines.")
    return values


def validate(model: type[S], values: Mapping[object, object], where: object) -> S:
    """Build a model from a mapping.

    Args:
        model: the schema.
        values: keys and values, as YAML gives them.
        where: the file or object that errors name.

    Raises:
        ValueError: for an unknown key, a missing key or a wrong value; it names the key and what is expected.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{where}: {describe_error(error, model, values)}") from error


def describe_error(error: ValidationError, model: type[Schema], values: Mapping[object, object]) -> str:
    """Say in one sentence what the first error of a validation is."""
    errors = error.errors()
    first = min(errors, key=lambda one: ERROR_PRIORITY.index(one["type"]) if one["type"] in ERROR_PRIORITY else 9)
    path = _key_path(first["loc"], values, is_missing=first["type"] == "missing")
    key = ".".join(map(str, path))
    expected = _describe_field(model, path[0]) if path else ""
    match first["type"]:
        case "extra_forbidden" if len(path) == 1:
            return f"unknown key {key!r}; {suggest_nearest(key, sorted(_fields(model)))}"
        case "extra_forbidden":
            return f"unknown key {key!r}; {path[0]} is {expected}"
        case "missing":
            return f"the key {key!r} is missing. Add it: {path[0]} is {expected}."
        case "value_error":
            return ": ".join(filter(None, [key, str(first.get("ctx", {}).get("error"))]))
    plain = first["msg"].removeprefix("Input should be ").replace("valid dictionary", "mapping")
    value = repr(values[path[0]])
    got = value if len(value) <= MAX_VALUE else f"{value[:MAX_VALUE]}..."
    return f"{key if not expected else path[0]}: expected {expected or plain}, got {got}"


def _key_path(loc: tuple[int | str, ...], values: object, is_missing: bool) -> list[int | str]:
    """The keys of an error's location that the input has; pydantic adds the names of union members to them."""
    path: list[int | str] = []
    for position, part in enumerate(loc):
        if (isinstance(values, Mapping) and part in values) or (isinstance(values, list) and isinstance(part, int)):
            values = cast(Mapping[int | str, object], values)[part]
        elif not (is_missing and position == len(loc) - 1):
            continue
        path.append(part)
    return path


def _fields(model: type[Schema]) -> dict[str, FieldInfo]:
    """The fields of a schema by the keys that YAML uses."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _describe_field(model: type[Schema], key: int | str) -> str:
    field = _fields(model).get(str(key))
    return field.description or "" if field is not None else ""
