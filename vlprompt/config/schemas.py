"""Read plain values into a schema, with one error that names where they come from."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from vlprompt.runtime.errors import suggest_nearest

if TYPE_CHECKING:
    from pydantic import BaseModel

Schema = TypeVar("Schema", bound="BaseModel")
EXPECTATIONS = {"dict_type": "keys with values", "list_type": "a list"}  # by the type of pydantic's error


def parse_schema(cls: type[Schema], values: Mapping[Any, Any], origin: str, noun: str = "key") -> Schema:
    """Read values into a schema.

    Args:
        cls: the schema.
        values: of its fields, by name.
        origin: the file or option that they come from.
        noun: what a field is called in errors.

    Raises:
        ValueError: for a field that the schema does not have, or a value that it does not take.
    """
    from pydantic import ValidationError

    if unknown := [key for key in values if key not in cls.model_fields]:
        raise ValueError(
            f"{origin}: unknown {noun} {unknown[0]!r}; {suggest_nearest(str(unknown[0]), cls.model_fields)}"
        )
    try:
        return cls(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        expected = EXPECTATIONS.get(first["type"]) or first["msg"].removeprefix("Input should be ")
        raise ValueError(f"{origin}: {key}: expected {expected}, got {first['input']!r}. Set {key} to one.") from error
