"""Text datasets from the docstrings of the standard library, read from its source files without importing them."""

import ast
import hashlib
import inspect
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

MODULES = ("asyncio", "decimal", "email", "http", "logging", "multiprocessing", "tarfile", "unittest", "urllib", "xml")
PURE_PYTHON_SOURCES = {"decimal": "_pydecimal"}  # the Python twin of a module written in C
MODULE_MASK = "[name]"  # replaces the module's name in its texts
SPLIT_BY_BUCKET = ("train",) * 7 + ("val", "test", "test")
DocumentedNode = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class SourceFile(NamedTuple):
    """A source file of a module and its syntax tree."""

    module: str
    text: str
    tree: ast.Module


@cache
def load_sources() -> tuple[SourceFile, ...]:
    """Load the source files of MODULES without their tests; FileNotFoundError if Python ships no sources."""
    library, sources = Path(sysconfig.get_paths()["stdlib"]), []
    for module in MODULES:
        path = library / PURE_PYTHON_SOURCES.get(module, module)
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
        if path.is_dir():
            files = [file for file in files if {"test", "tests"}.isdisjoint(file.relative_to(path).parts)]
        for file in files:
            if not file.is_file():
                raise FileNotFoundError(
                    f"Python's module {module}: expected its source, got none ({str(file)!r}). Use a Python that "
                    "carries its library as .py files."
                )
            text = file.read_text("utf-8")
            sources.append(SourceFile(module, text, ast.parse(text)))
    return tuple(sources)


def iter_docstrings(tree: ast.Module) -> Iterator[tuple[DocumentedNode, str]]:
    """Yield documented nodes and the first paragraph of their docstring on one line."""
    for node in ast.walk(tree):
        if isinstance(node, DocumentedNode) and (docstring := ast.get_docstring(node, clean=False)):
            yield node, " ".join(inspect.cleandoc(docstring).split("\n\n")[0].split())


def mask_module_name(text: str, module: str) -> str:
    """Replace the words that contain the module's name."""
    return re.sub(rf"\w*{module}\w*", MODULE_MASK, text, flags=re.IGNORECASE)


def stable_hash(text: str) -> int:
    """Hash a text to an integer, the same in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def assign_split(text: str) -> str:
    """Assign a text to train, val or test (7 : 1 : 2) by its hash."""
    return SPLIT_BY_BUCKET[stable_hash(text) % 10]


def group_by_split(rows: list[dict[str, object]], text_key: str) -> dict[str, list[dict[str, object]]]:
    """Group rows by split, in the order of the hash of their `text_key`."""
    splits: dict[str, list[dict[str, object]]] = {"train": [], "val": [], "test": []}
    for row in sorted(rows, key=lambda row: stable_hash(str(row[text_key]))):
        splits[assign_split(str(row[text_key]))].append(row)
    return splits


def docstrings() -> dict[str, list[dict[str, object]]]:
    """Return rows (text, label): first paragraphs of 20 to 400 characters and their module.

    A text that occurs in more than one module is excluded.
    """
    module_by_text: dict[str, str] = {}
    n_modules = Counter[str]()
    for source in load_sources():
        for text in dict.fromkeys(
            mask_module_name(docstring, source.module) for _, docstring in iter_docstrings(source.tree)
        ):
            if 20 <= len(text) <= 400 and module_by_text.get(text) != source.module:
                module_by_text[text] = source.module
                n_modules[text] += 1
    rows: list[dict[str, object]] = [
        {"text": text, "label": module} for text, module in module_by_text.items() if n_modules[text] == 1
    ]
    return group_by_split(rows, "text")


def signatures() -> dict[str, list[dict[str, object]]]:
    """Return rows (signature, response): functions and first sentences of 20 to 200 characters."""
    sentence_by_signature: dict[str, str] = {}
    for source in load_sources():
        for node, docstring in iter_docstrings(source.tree):
            sentence = extract_first_sentence(docstring)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and 20 <= len(sentence) <= 200:
                keyword = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
                sentence_by_signature.setdefault(f"{keyword} {node.name}({ast.unparse(node.args)}):", sentence)
    return group_by_split(
        [{"signature": signature, "response": sentence} for signature, sentence in sentence_by_signature.items()],
        "signature",
    )


def extract_first_sentence(text: str) -> str:
    """Return the text up to the first sentence-ending mark."""
    return re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0]
