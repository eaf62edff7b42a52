"""Imports go down the layers of the house, sizes stay small, and only adapters know the libraries of models."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = ["maps", "prompt", "stage", "attention", "tower", "language", "vision", "held", "merge", "shared"]
MAY = {  # a module or folder of vlprompt -> what it may import of vlprompt
    "maps": [],
    "prompt": [],
    "stage": [],
    "attention": ["prompt"],
    "graphs": ["prompt"],
    "tower": ["maps", "prompt", "stage", "attention"],
    "language": ["prompt", "tower"],
    "vision": ["maps", "prompt", "stage", "tower", "language"],
    "held": ["tower", "language", "vision"],
    "merge": ["maps", "prompt", "tower"],
    "shared": ["maps", "prompt", "stage", "attention", "tower"],
    "backbones": [*CORE, "graphs", "backbones"],
    "readers": [*CORE, "parts"],
    "words": [*CORE, "readers", "parts"],
    "demonstrations": CORE,
    "extracted": [],
    "parts": CORE,
    "method": [*CORE, "readers", "parts"],
    "around": [*CORE, "readers", "parts", "method"],
    "methods": [*CORE, "readers", "words", "demonstrations", "extracted", "parts", "method", "around"],
    "data": ["prompt", "stage", "data"],
    "metrics": [],
    "tasks": ["stage", "data", "metrics", "tasks"],
    "evaluate_text": [*CORE, "method", "metrics"],
    "evaluate": [*CORE, "ahead", "evaluate_text", "method", "data", "metrics", "tasks"],
    "ahead": ["stage"],
    "train": [*CORE, "ahead", "parts", "method", "data", "metrics", "tasks", "evaluate", "train"],
    "results": ["stage", "metrics", "tasks", "train", "results"],
}
MAY["described"] = [*CORE, "readers", "words", "method", "tasks", "train"]
MAY["tracking"] = [*CORE, "method", "methods", "metrics", "evaluate", "train"]
MAY["runner"] = [*CORE, "method", "tasks", "evaluate", "tracking", "train", "results", "described"]
MAY["config"] = [*MAY["runner"], "readers", "words", "runner", "methods", "data"]
LOWEST = [
    "counted",
    "errors",
    "how",
    "lazy",
    "memory",
    "source",
    "templates",
    "name",
    "images",
    "passages",
    "inputs",
    "workers",
    "world",
    "exchange",
]
MAY = {layer: [*allowed, *LOWEST] for layer, allowed in MAY.items()} | {layer: ["errors"] for layer in LOWEST}
MAY["inputs"], MAY["images"], MAY["exchange"] = ["images", "passages"], ["workers"], ["world"]
FILES = sorted((ROOT / "vlprompt").rglob("*.py"))


def imported(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "vlprompt":
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("vlprompt."))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
    layer = path.relative_to(ROOT / "vlprompt").parts[0].removesuffix(".py")
    if layer in MAY:
        assert set(imported(path)) <= set(MAY[layer]), f"{path} imports {sorted(set(imported(path)) - set(MAY[layer]))}"


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
    for path in (
        ROOT / "vlprompt" / "cli.py",
        ROOT / "vlprompt" / "data_cli.py",
        ROOT / "vlprompt" / "__init__.py",
        ROOT / "vlprompt" / "backbones" / "__init__.py",
    ):
        assert not {"torch", "numpy", "matplotlib", "pydantic", "omegaconf"} & set(top_level(path)), path


def test_sizes_of_the_house():
    for path in FILES:
        limit = 150 if "methods" in path.parts else 250
        assert len(path.read_text("utf-8").splitlines()) <= limit, path


def test_a_method_file_has_one_public_class():
    for path in (ROOT / "vlprompt" / "methods").glob("[!_]*.py"):
        classes = [
            n.name for n in ast.parse(path.read_text("utf-8")).body if isinstance(n, ast.ClassDef) and n.name[0] != "_"
        ]
        assert len(classes) == 1
        assert classes[0].lower() == path.stem.replace("_", ""), path
        head = ast.get_docstring(ast.parse(path.read_text("utf-8")))
        assert all(word in head for word in ("arXiv:", "Sites:", "Differs from", "Expected")), path


def test_no_python_beside_the_cards():
    assert not list((ROOT / "datasets").glob("*.py"))
