"""Folders of one class per file: named without importing them, imported when asked for."""

import ast
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any


@cache
def find_public_classes(folder: Path) -> dict[str, str]:
    """Return the public class of each file: {"few_shot": "FewShot", ...}.

    Raises:
        ValueError: for a file that is no Python, or has no public class.
    """
    classes = {}
    for path in sorted(folder.glob("[!_]*.py")):
        try:
            body = ast.parse(path.read_bytes()).body
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"{str(path)!r}: expected Python, got a file that is none ({error}). Mend it.") from error
        names = [node.name for node in body if isinstance(node, ast.ClassDef) and node.name[0] != "_"]
        if not names:
            raise ValueError(
                f"{str(path)!r}: expected a public class, got none. Add one, or call the file _{path.name}."
            )
        classes[path.stem] = names[0]
    return classes


def load_class(package: str, folder: Path, name: str) -> Any:
    """Import a class of a package of such files.

    Raises:
        AttributeError: with the classes that there are.
    """
    for file, class_name in find_public_classes(folder).items():
        if class_name == name:
            return getattr(import_module(f"{package}.{file}"), name)
    classes = ", ".join(find_public_classes(folder).values())
    raise AttributeError(f"{package}: expected one of {classes}, got {name!r}. Import one of these.")


def lazy_package(
    package: str, folder: Path
) -> tuple[Callable[[], dict[str, str]], Callable[[str], Any], Callable[[], list[str]]]:
    """Return `find_classes`, `__getattr__` and `__dir__` for a package of such files.

    Args:
        package: its dotted name.
        folder: where its files lie.
    """

    def find_classes() -> dict[str, str]:
        """Map file names to their public classes ({"coop": "CoOp", ...}) without importing them."""
        return find_public_classes(folder)

    return find_classes, lambda name: load_class(package, folder, name), lambda: [*find_classes().values()]
