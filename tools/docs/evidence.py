"""What holds a method to its paper: golden vectors of the authors' code, and tests that build it."""

import ast
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from docs.markdown_text import code, escape, table
from docs.paths import GOLDEN_FOLDER, ROOT
from vlprompt import methods

TWIN_FILES = ("methods/test_twins.py", "methods/test_image_tower_methods.py", "methods/test_continual_methods.py",
              "methods/test_domain_methods.py", "methods/test_in_context.py", "methods/test_language_methods.py",
              "methods/test_goldens.py", "backbones/test_peft.py")  # fmt: skip


# of the field `method`: weights, towers, metrics; and methods whose scores or features of patches alone are here
NO_METHODS = (None, "LoCoOp", "DualCoOp", "TaI-DPT")


@dataclass(frozen=True)
class GoldenVector:
    """One file of tests/golden: what the authors' code computed at a commit."""

    name: str
    source: str
    commit: str


def _plain(text: str) -> str:
    return "".join(character for character in text.lower().replace("+", "plus") if character.isalnum())


@cache
def find_golden_vectors() -> dict[str, list[GoldenVector]]:
    """Return {method: its golden vectors}, by the name of each file, else by its field `method`.

    Raises:
        ValueError: for a file of a method that there is not.
    """
    found: dict[str, list[GoldenVector]] = {}
    names = {_plain(name): name for name in methods.find_classes()}
    for path in sorted(GOLDEN_FOLDER.glob("*.json")):
        content = json.loads(path.read_text("utf-8"))
        if content.get("method") in NO_METHODS:
            continue
        title, kind = _plain(content["method"]), _plain(path.stem.partition("-")[0])
        fitting = [kind] if kind in names else [plain for plain in names if plain in title]
        if not fitting:
            raise ValueError(f"{path}: expected the name of a method, got {content['method']!r}. Correct the field.")
        vector = GoldenVector(path.stem, content["source"], content["commit"])
        found.setdefault(names[max(fitting, key=len)], []).append(vector)
    return found


@cache
def _read_tests(path: Path) -> list[tuple[str, str]]:
    """Return (name, source) of each test of a file."""
    text = path.read_text("utf-8")
    lines = text.splitlines()
    return [
        (node.name, "\n".join(lines[node.lineno - 1 : node.end_lineno]))
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


def find_tests(method: str) -> dict[str, list[str]]:
    """Return {file: tests} that call a method's class by its name, or have the method's name."""
    cls, found = methods.find_classes()[method], {}
    for file in TWIN_FILES:
        path = ROOT / "tests" / file
        tests = [
            name
            for name, source in (_read_tests(path) if path.is_file() else [])
            if name == f"test_{method}" or name.startswith(f"test_{method}_") or _calls(source, cls)
        ]
        if tests:
            found[f"tests/{file}"] = tests
    return found


def _calls(source: str, cls: str) -> bool:
    return any(f"{before}{cls}(" in source for before in (" ", ".", "(", "["))


def describe_evidence(method: str, root: str) -> list[str]:
    """Return the section of a method's page."""
    lines, vectors = [], find_golden_vectors().get(method, [])
    if vectors:
        lines += [
            "The authors' own code was run. These vectors hold what it computed; tests compare with them:",
            "",
        ]
        rows = [
            [f"[{one.name}]({root}tests/golden/{one.name}.json)", escape(one.source), code(one.commit[:10])]
            for one in vectors
        ]
        lines += table(["vector", "repository", "commit"], rows)
    else:
        lines += ["There is no golden vector of the authors' code for it.", ""]
    if tests := find_tests(method):
        lines += ["Tests that build it by name:", ""]
        for file, names in tests.items():
            lines.append(f"- [{file}]({root}{file}): {', '.join(code(name) for name in names)}")
        lines.append("")
    suite = "tests/conformance.py"
    return [*lines, f"The suite for every method is [{suite}]({root}{suite})." if _is_in_suite(method) else "", ""]


def _is_in_suite(method: str) -> bool:
    """Whether the conformance suite has the method: all that take images."""
    from docs.site_trace import find_tower_kind

    return find_tower_kind(method) != "language model"
