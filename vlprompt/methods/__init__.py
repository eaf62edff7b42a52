"""One paper, one file, one public class; a class is imported when it is asked for."""

import ast
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any


@cache
def found() -> dict[str, str]:
    """{"coop": "CoOp", ...}: every file of this folder and its public class, read without importing it."""
    classes = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        public = [
            n.name for n in ast.parse(path.read_text("utf-8")).body if isinstance(n, ast.ClassDef) and n.name[0] != "_"
        ]
        classes[path.stem] = public[0]
    return classes


def __getattr__(name: str) -> Any:
    for file, cls in found().items():
        if cls == name:
            return getattr(import_module(f"{__name__}.{file}"), name)
    raise AttributeError(f"vlprompt.methods has no {name!r}; it has {', '.join(found().values())}")


def __dir__() -> list[str]:
    return [*found().values()]
