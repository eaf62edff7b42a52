"""One paper, one file, one public class; a class is imported when it is asked for."""

from pathlib import Path
from typing import Any

from vlprompt.runtime import lazy_classes

HERE = Path(__file__).parent


def found() -> dict[str, str]:
    """{"coop": "CoOp", ...}: every file of this folder and its public class, read without importing it."""
    return lazy_classes.classes(HERE)


def __getattr__(name: str) -> Any:
    return lazy_classes.attribute(__name__, HERE, name)


def __dir__() -> list[str]:
    return [*found().values()]
