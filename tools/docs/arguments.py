"""Arguments of a constructor: names, types, defaults and descriptions."""

import inspect
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from docs.docstrings import find_descriptions
from docs.markdown_text import code, escape, table
from vlprompt.config.build import get_backbone_kind, get_constructor_types, get_nested_kind

REQUIRED = "required"


@dataclass(frozen=True)
class Argument:
    """One argument.

    Args:
        name: as it is written in a setting.
        type: its type, as text.
        default: its default, as text.
        description: from the docstring.
        is_backbone: whether it is the frozen backbone, which is no setting.
    """

    name: str
    type: str
    default: str
    description: str
    is_backbone: bool = False

    def row(self, prefix: str = "") -> list[str]:
        """Return the cells of a table's row."""
        default = self.default if self.default == REQUIRED else code(self.default)
        return [code(prefix + self.name), code(self.type), default, escape(self.description)]


def format_type(annotation: Any) -> str:
    """Return an annotation as settings are written: choices instead of Literal, None last."""
    if annotation is type(None):
        return "null"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " | ".join(dict.fromkeys(format_type(one) for one in arguments))
    if origin in (list, tuple):
        inner = [format_type(one) for one in arguments if one is not Ellipsis]
        return f"{origin.__name__}[{', '.join(inner)}{', ...' if Ellipsis in arguments else ''}]"
    if origin is dict:
        return f"dict[{', '.join(map(format_type, arguments))}]"
    if hasattr(annotation, "__metadata__"):
        return format_type(arguments[0])
    return {Path: "path", Any: "any", str: "text"}.get(annotation, getattr(annotation, "__name__", str(annotation)))


def format_default(value: object) -> str:
    """Return a default as a setting is written."""
    if isinstance(value, tuple | list):
        return "[" + ", ".join(format_default(one) for one in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value) if isinstance(value, str) and not value.strip() else str(value)


@cache
def describe_arguments(cls: type) -> tuple[Argument, ...]:
    """Return the arguments of a class in the order of its constructor.

    Raises:
        ValueError: for one without a description in a docstring.
    """
    descriptions, annotations = find_descriptions(cls), get_constructor_types(cls)
    found = []
    for name, parameter in inspect.signature(cls).parameters.items():
        if name not in descriptions:
            raise ValueError(
                f"{cls.__module__}.{cls.__qualname__}: expected a description of the argument {name!r} in the "
                "docstring, got none. Write it under Args."
            )
        default = REQUIRED if parameter.default is parameter.empty else format_default(parameter.default)
        kind = get_nested_kind(annotations[name])
        if kind == "head" and default == REQUIRED:
            default = "linear"
        is_backbone = get_backbone_kind(name, annotations[name]) is not None
        type_ = f"a {kind}" if kind else format_type(annotations[name])
        found.append(Argument(name, type_, default, descriptions[name], is_backbone))
    return tuple(found)


def arguments_table(cls: type, prefix: str, keep: Callable[[Argument], bool] = lambda _: True) -> list[str]:
    """Return a table of the settings of a class."""
    rows = [one.row(prefix) for one in describe_arguments(cls) if not one.is_backbone and keep(one)]
    if not rows:
        return ["It has no settings.", ""]
    return table(["setting", "type", "default", "what it does"], rows)
