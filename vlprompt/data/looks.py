"""A look as settings: a mapping of what is other than the backbone's own."""

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from vlprompt.errors import nearest
from vlprompt.stage import Look


def look(given: str | Mapping[str, Any], base: Look) -> Look:
    """The look `base` with the settings given; ValueError for one that there is not."""
    names = [f.name for f in fields(Look)]
    if isinstance(given, str):
        raise ValueError(f"there is no look {given!r}; give a mapping of {', '.join(names)}")
    if unknown := [k for k in given if k not in names]:
        raise ValueError(f"a look has no {unknown[0]!r}; {nearest(unknown[0], names)}")
    found = replace(base, **{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
    for name, value in asdict(found).items():
        if type(value) is not type(getattr(base, name)):
            raise ValueError(f"look.{name} must be like {getattr(base, name)!r}; got {value!r}")
    return found
