"""Write the files of a new method: a working start, its recipe, and the test that runs all checks on it."""

import sys
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from keyword import iskeyword
from pathlib import Path
from string import Template
from typing import Literal

MethodKind = Literal["clip", "tower", "wrapper", "language"]


@dataclass(frozen=True)
class NewMethod:
    """The files of a new method.

    Args:
        method: the file of its class.
        recipe: settings for `vlprompt run -c`.
        test: the test file.
        title: its name in a configuration, module:Class, as seen from the working folder.
    """

    method: Path
    recipe: Path
    test: Path
    title: str


def write_new_method(name: str, kind: MethodKind, folder: Path) -> NewMethod:
    """Write the files of a new method.

    Args:
        name: of its module, a Python identifier; the class has it in CamelCase.
        kind: what it is on: a CLIP, an image tower, another method or a language model.
        folder: where they go; made if it is not there.

    Raises:
        ValueError: for a name that is none, and for files that exist.
    """
    _require_module_name(name)
    class_name = "".join(part[:1].upper() + part[1:] for part in name.split("_"))
    title = f"{'.'.join([*_find_package_below(Path.cwd(), folder), name])}:{class_name}"
    new = NewMethod(folder / f"{name}.py", folder / f"{name}.yaml", folder / f"test_{name}.py", title)
    if existing := [str(path) for path in (new.method, new.recipe, new.test) if path.exists()]:
        raise ValueError(
            f"new method: expected files that do not exist, got {', '.join(existing)}. Choose another name or folder, "
            "or move them away."
        )
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"new method: expected a folder, got the file {str(folder)!r}. Name a folder.")
    _require_unused_name(name)
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "name": name,
        "class_name": class_name,
        "title": title,
        "recipe": str(new.recipe),
        "test": str(new.test),
        "module": ".".join([*_find_enclosing_packages(folder), name]),
    }
    sources = {new.method: f"{kind}.py.txt", new.recipe: f"{kind}.yaml.txt", new.test: "test.py.txt"}
    for path, source in sources.items():
        text = (files("vlprompt.testing") / "templates" / source).read_text("utf-8")
        path.write_text(Template(text).substitute(values), "utf-8")
    return new


def _require_module_name(name: str) -> None:
    """ValueError for a name that is no identifier."""
    if not name.isidentifier() or iskeyword(name) or not name.strip("_"):
        raise ValueError(
            f"new method: expected a name that Python can import, got {name!r}. Use letters, digits and underscores, "
            "as in my_method."
        )


def _require_unused_name(name: str) -> None:
    """ValueError for the name of an installed module, which a new file would hide."""
    if name in sys.stdlib_module_names or find_spec(name) is not None:
        raise ValueError(
            f"new method: expected a name that no installed module has, got {name!r}, which the new file would hide. "
            f"Choose another, such as my_{name}."
        )


def _find_package_below(root: Path, folder: Path) -> list[str]:
    """Return the parts of a module's name between a root and a folder; none where Python can't import by them."""
    if not folder.resolve().is_relative_to(root):
        return []
    parts = folder.resolve().relative_to(root).parts
    return list(parts) if all(part.isidentifier() and not iskeyword(part) for part in parts) else []


def _find_enclosing_packages(folder: Path) -> list[str]:
    """Return the packages (folders with an __init__.py) around a folder's files: pytest imports from above them."""
    packages, folder = list[str](), folder.resolve()
    while (folder / "__init__.py").is_file():
        packages.insert(0, folder.name)
        folder = folder.parent
    return packages
