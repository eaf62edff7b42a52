"""Imports go down the floors of the house, there is no circle, and only adapters know the libraries of models."""

import ast
import re
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

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


@cache
def imports(path):
    """The files of vlprompt that a file imports, anywhere in it, for type checkers included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: write the whole name of a module"
            names = [
                f"{node.module}.{a.name}" if f"{node.module}.{a.name}"[9:] in NAMES else node.module for a in node.names
            ]
        else:
            continue
        found |= {name.partition(".")[2] for name in names if name.split(".")[0] == "vlprompt"}
    assert found <= NAMES.keys(), f"{path} imports {found - NAMES.keys()}"
    return frozenset(found)


def room(name):
    return name.split(".")[0]


@pytest.mark.parametrize("name", [name for name in NAMES if name])
def test_imports_go_down(name):
    for other in sorted(imports(NAMES[name]) - {""}):
        assert room(other) == room(name) or FLOOR[room(other)] < FLOOR[room(name)], (
            f"{name} (floor {FLOOR[room(name)]}) imports {other} (floor {FLOOR[room(other)]})"
        )


def test_no_circle_of_files():
    """A folder's __init__ is imported with each of its files, but here only where it is named."""
    try:
        TopologicalSorter({name: imports(path) - {name} for name, path in NAMES.items()}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_public_face_is_imported_by_nobody():
    """vlprompt/__init__.py names everything lazily; inside the house each file is imported from where it lies."""
    assert [name for name, path in NAMES.items() if name and "" in imports(path)] == []


def test_only_rooms_stand_at_the_top():
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py"}
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == FLOOR.keys()
    assert len(rooms) + 1 <= 15


def top_level(path):
    """Names of libraries that a file imports when it is imported."""
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (a.name.split(".")[0] for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def test_only_adapters_know_the_libraries_of_models():
    for path in FILES:
        if "backbones" not in path.parts and path.stem != "listing":
            assert not {"open_clip", "timm", "transformers", "peft"} & set(top_level(path)), path
            assert "import open_clip" not in path.read_text("utf-8"), path


def test_the_command_line_starts_without_torch():
    """Nor does anything that it imports when it is imported."""
    seen, todo = set(), {"cli.app", "", "backbones"}
    while todo:
        name = todo.pop()
        seen.add(name)
        path = NAMES[name]
        assert not HEAVY & set(top_level(path)), path
        body = ast.Module([n for n in ast.parse(path.read_text("utf-8")).body if isinstance(n, ast.ImportFrom)], [])
        names = {f"{n.module}.{a.name}" for n in body.body for a in n.names} | {n.module for n in body.body}
        todo |= {n.partition(".")[2] for n in names if n and n.startswith("vlprompt.")} & NAMES.keys() - seen


def functions():
    """(file, name, lines below its signature and docstring) of every function."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                first = node.body[1:] or node.body if ast.get_docstring(node) is not None else node.body
                yield path, node.name, node.end_lineno - first[0].lineno + 1


def test_functions_stay_short():
    assert [f"{path}: {name} has {lines} lines" for path, name, lines in functions() if lines > 40] == []


def public_docstrings(path):
    """(name, docstring) of a file and of all that is public in it."""
    tree = ast.parse(path.read_text("utf-8"))
    yield path.stem, ast.get_docstring(tree) or ""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name[0] != "_":
            yield node.name, ast.get_docstring(node) or ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_speak_the_language_of_the_field(path):
    for name, text in public_docstrings(path):
        assert not (words := PRIVATE_WORDS.findall(text)), f"{path}: {name} says {words}"


def test_files_stay_short():
    for path in FILES:
        lines = len(path.read_text("utf-8").splitlines())
        method = path.parent.name == "methods" and path.name[0] != "_"
        assert lines <= (150 if method else 400), f"{path}: {lines} lines"


def test_a_room_holds_a_dozen_files():
    """But the rooms whose files are plugins, one of each kind."""
    for folder in {path.parent for path in FILES} - {PACKAGE, PACKAGE / "methods", PACKAGE / "data" / "layouts"}:
        files = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= 14, f"{folder}: {len(files)} files"


def test_a_method_file_has_one_public_class():
    for path in (PACKAGE / "methods").glob("[!_]*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        classes = [n.name for n in tree.body if isinstance(n, ast.ClassDef) and n.name[0] != "_"]
        assert len(classes) == 1
        assert classes[0].lower() == path.stem.replace("_", ""), path
        head = ast.get_docstring(tree)
        assert all(word in head for word in ("arXiv:", "Sites:", "Differs from", "Expected")), path


def test_no_python_beside_the_cards():
    assert not list((ROOT / "datasets").glob("*.py"))
