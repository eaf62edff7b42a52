"""Imports go down the floors of the house, there is no circle, and only adapters know the libraries of models."""

import ast
import re
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vlprompt"
FLOORS = (  # from the ground up; rooms of one floor do not see each other
    ("runtime", "metrics"),
    ("core",),
    ("data", "layers"),
    ("backbones", "methods", "tasks", "engine"),
    ("config", "results"),
    ("experiments",),
    ("testing",),
    ("cli",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS, 1) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))
# words of a private language that the field has terms for: cached, metadata, recomputed in the backward pass, text item
PRIVATE_WORDS = re.compile(
    r"\b(told|tells|kept|held(?!.out)|made again|going back|speaks?|sights?|passages?|so "
    r"many)\b"
)
HEAVY = {"torch", "numpy", "matplotlib", "pydantic", "transformers", "open_clip", "timm", "peft"}


def name_of(path):
    """The dotted name of a file below vlprompt: "core.prompt"; of a folder's __init__ that of the folder."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


NAMES = {name_of(path): path for path in FILES}


class Facts(NamedTuple):
    """What the tests ask about a file, read in one pass."""

    imports: frozenset[str]  # the files of vlprompt that it imports, anywhere in it, for type checkers included
    libraries: frozenset[str]  # that it imports when it is imported
    on_import: frozenset[str]  # the files of vlprompt that it imports when it is imported
    functions: tuple[tuple[str, int], ...]  # (name, lines below its signature and docstring)
    docstrings: tuple[tuple[str, str], ...]  # (name, docstring) of the file and of all that is public in it
    classes: tuple[str, ...]  # public ones


@cache
def read(path):
    tree = ast.parse(path.read_text("utf-8"))
    imports, functions, docstrings = set(), [], [(path.stem, ast.get_docstring(tree) or "")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports |= imported_files(path, node)
        if isinstance(node, ast.FunctionDef):
            functions.append((node.name, count_lines(node)))
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name[0] != "_":
            docstrings.append((node.name, ast.get_docstring(node) or ""))
    assert imports <= NAMES.keys(), f"{path} imports {imports - NAMES.keys()}"
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    libraries = {name.split(".")[0] for node in top for name in imported_modules(node)}
    starts = {
        name
        for node in top
        if isinstance(node, ast.ImportFrom)
        for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
    }
    on_import = {n.partition(".")[2] for n in starts if n.startswith("vlprompt.")} & NAMES.keys()
    classes = [n.name for n in tree.body if isinstance(n, ast.ClassDef) and n.name[0] != "_"]
    return Facts(*map(frozenset, (imports, libraries, on_import)), *map(tuple, (functions, docstrings, classes)))


def imported_modules(node):
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]


def imported_files(path, node):
    """The files of vlprompt that an import names."""
    names = imported_modules(node)
    if isinstance(node, ast.ImportFrom):
        assert not node.level, f"{path}:{node.lineno}: write the whole name of a module"
        names = [
            f"{node.module}.{a.name}" if f"{node.module}.{a.name}"[9:] in NAMES else node.module for a in node.names
        ]
    return {name.partition(".")[2] for name in names if name.split(".")[0] == "vlprompt"}


def count_lines(function):
    """The lines of a function below its signature and docstring."""
    first = function.body[1:] or function.body if ast.get_docstring(function) is not None else function.body
    return function.end_lineno - first[0].lineno + 1


def room(name):
    return name.split(".")[0]


def test_imports_go_down():
    faults = [
        f"{name} (floor {FLOOR[room(name)]}) imports {other} (floor {FLOOR[room(other)]})"
        for name in filter(None, NAMES)
        for other in sorted(read(NAMES[name]).imports - {""})
        if room(other) != room(name) and FLOOR[room(other)] >= FLOOR[room(name)]
    ]
    assert not faults, "\n".join(faults)


def test_no_circle_of_files():
    """A folder's __init__ is imported with each of its files, but here only where it is named."""
    try:
        TopologicalSorter({name: read(path).imports - {name} for name, path in NAMES.items()}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_public_face_is_imported_by_nobody():
    """vlprompt/__init__.py names everything lazily; inside the house each file is imported from where it lies."""
    assert [name for name, path in NAMES.items() if name and "" in read(path).imports] == []


def test_only_rooms_stand_at_the_top():
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py"}
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == FLOOR.keys()
    assert len(rooms) + 1 <= 15


def test_only_adapters_know_the_libraries_of_models():
    for path in FILES:
        if "backbones" not in path.parts and path.stem != "listing":
            assert not {"open_clip", "timm", "transformers", "peft"} & read(path).libraries, path
            assert "import open_clip" not in path.read_text("utf-8"), path


def test_the_command_line_starts_without_torch():
    """Nor does anything that it imports when it is imported."""
    seen, todo = set(), {"cli.app", "", "backbones"}
    while todo:
        name = todo.pop()
        seen.add(name)
        assert not HEAVY & read(NAMES[name]).libraries, NAMES[name]
        todo |= read(NAMES[name]).on_import - seen


def test_functions_stay_short():
    functions = [(path, *function) for path in FILES for function in read(path).functions]
    assert [f"{path}: {name} has {lines} lines" for path, name, lines in functions if lines > 40] == []


def test_docstrings_speak_the_language_of_the_field():
    docstrings = [(path, *docstring) for path in FILES for docstring in read(path).docstrings]
    faults = [f"{path}: {name} says {words}" for path, name, t in docstrings if (words := PRIVATE_WORDS.findall(t))]
    assert not faults, "\n".join(faults)


def test_files_stay_short():
    for path in FILES:
        lines = len(path.read_text("utf-8").splitlines())
        assert lines <= (150 if path.parent.name == "methods" else 400), f"{path}: {lines} lines"


def test_a_room_holds_a_dozen_files():
    """But the rooms whose files are plugins, one of each kind."""
    for folder in {path.parent for path in FILES} - {PACKAGE, PACKAGE / "methods", PACKAGE / "data" / "layouts"}:
        files = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= 14, f"{folder}: {len(files)} files"


def test_a_method_file_has_one_public_class():
    for path in (PACKAGE / "methods").glob("[!_]*.py"):
        facts = read(path)
        assert len(facts.classes) == 1
        assert facts.classes[0].lower() == path.stem.replace("_", ""), path
        head = facts.docstrings[0][1]
        assert all(word in head for word in ("arXiv:", "Sites:", "Differs from", "Expected")), path


def test_no_python_beside_the_cards():
    assert not list((ROOT / "datasets").glob("*.py"))
