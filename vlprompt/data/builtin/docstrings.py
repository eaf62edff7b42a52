"""English that every Python carries: the docstrings of its own library, read from the source, never imported."""

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
BESIDE = {"decimal": "_pydecimal"}  # where the source of a module is that is also written in C
NAME = "[name]"  # stands for the module's own name in its texts
SHARES = ("train",) * 7 + ("val", "test", "test")
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Source(NamedTuple):
    """One file of a module: its text and its syntax tree."""

    module: str
    text: str
    tree: ast.Module


@cache
def sources() -> tuple[Source, ...]:
    """The files of MODULES in this Python's library, tests left out; OSError where it has no sources."""
    library, found = Path(sysconfig.get_paths()["stdlib"]), []
    for module in MODULES:
        path = library / BESIDE.get(module, module)
        inside = lambda file, path=path: {"test", "tests"}.isdisjoint(file.relative_to(path).parts)  # noqa: E731
        files = filter(inside, sorted(path.rglob("*.py"))) if path.is_dir() else [path.with_suffix(".py")]
        for file in files:
            if not file.is_file():
                raise FileNotFoundError(
                    f"this Python has no source of its module {module} ({str(file)!r}); take one that carries its "
                    "library as .py files"
                )
            text = file.read_text("utf-8")
            found.append(Source(module, text, ast.parse(text)))
    return tuple(found)


def documented(tree: ast.Module) -> Iterator[tuple[Documented, str]]:
    """What has a docstring, and the docstring's first paragraph in one line."""
    for node in ast.walk(tree):
        if isinstance(node, Documented) and (told := ast.get_docstring(node, clean=False)):
            yield node, " ".join(inspect.cleandoc(told).split("\n\n")[0].split())


def masked(text: str, module: str) -> str:
    """A text without the words that hold the module's name."""
    return re.sub(rf"\w*{module}\w*", NAME, text, flags=re.IGNORECASE)


def number(text: str) -> int:
    """A number from a text, the same in every Python."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def part_of(text: str) -> str:
    """7 of 10 texts are train, 1 is val, 2 are test, by the text alone."""
    return SHARES[number(text) % 10]


def parted(rows: list[dict[str, object]], key: str) -> dict[str, list[dict[str, object]]]:
    """Rows by part, in the order of the hash of what stands under `key`."""
    parts: dict[str, list[dict[str, object]]] = {"train": [], "val": [], "test": []}
    for row in sorted(rows, key=lambda row: number(str(row[key]))):
        parts[part_of(str(row[key]))].append(row)
    return parts


def docstrings() -> dict[str, list[dict[str, object]]]:
    """text, label: first paragraphs of 20 to 400 characters, and the module that they come from.

    A text that several modules have is left out.
    """
    found: dict[str, str] = {}
    homes = Counter[str]()
    for source in sources():
        for text in dict.fromkeys(masked(told, source.module) for _, told in documented(source.tree)):
            if 20 <= len(text) <= 400 and found.get(text) != source.module:
                found[text] = source.module
                homes[text] += 1
    return parted([{"text": text, "label": module} for text, module in found.items() if homes[text] == 1], "text")


def signatures() -> dict[str, list[dict[str, object]]]:
    """signature, response: the head of a function and the first sentence of its docstring, 20 to 200 characters."""
    found: dict[str, str] = {}
    for source in sources():
        for node, told in documented(source.tree):
            sentence = first_sentence(told)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and 20 <= len(sentence) <= 200:
                head = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
                found.setdefault(f"{head} {node.name}({ast.unparse(node.args)}):", sentence)
    return parted([{"signature": head, "response": sentence} for head, sentence in found.items()], "signature")


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence."""
    return re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0]
