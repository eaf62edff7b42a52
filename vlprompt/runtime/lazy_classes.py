"""Folders of one class per file: named without importing them, imported when asked for."""

import ast
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any


@cache
def classes(folder: Path) -> dict[str, str]:
    """{"few_shot": "FewShot", ...}: every file of the folder and its public class."""
    found = {}
    for path in sorted(folder.glob("[!_]*.py")):
        body = ast.parse(path.read_text("utf-8")).body
        found[path.stem] = next(n.name for n in body if isinstance(n, ast.ClassDef) and n.name[0] != "_")
    return found


def attribute(package: str, folder: Path, name: str) -> Any:
    """The class `name` of a package of such files; AttributeError with what there is."""
    for file, cls in classes(folder).items():
        if cls == name:
            return getattr(import_module(f"{package}.{file}"), name)
    raise AttributeError(f"{package} has no {name!r}; it has {', '.join(classes(folder).values())}")
