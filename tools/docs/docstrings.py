"""Read docstrings: the parts of a method's header, and the Args of a class."""

import ast
import re
from dataclasses import dataclass
from functools import cache
from inspect import cleandoc
from pathlib import Path

ARGUMENT = re.compile(r"^( {4})(\w+(?:, \w+)*): (.*)$")
REFERENCE = re.compile(r"^as in (\w+)(?:, (.*))?\.?$")
USE = re.compile(r"\s*\bUse:\s+[^.]+\.")  # what the list of methods groups by; it is no part of the text
SECTIONS = ("Args:", "Returns:", "Raises:", "Attributes:")


@dataclass(frozen=True)
class MethodHeader:
    """The docstring of a method's file, by its parts.

    Args:
        title: the first line: name and paper.
        idea: paragraphs of what it does.
        sites: where it enters the towers.
        differs: how it differs from the paper and the authors' code.
        expected: published numbers.
    """

    title: str
    idea: tuple[str, ...]
    sites: str
    differs: str
    expected: str


@cache
def read_module_docstring(path: Path) -> str:
    """Return the docstring of a Python file, "" where there is none."""
    return ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""


def read_method_header(path: Path) -> MethodHeader:
    """Split the header of a method's file.

    Raises:
        ValueError: for a part that is missing.
    """
    title, _, rest = read_module_docstring(path).partition("\n")
    paragraphs = [USE.sub("", " ".join(part.split())) for part in rest.strip().split("\n\n")]
    differs = [part for part in paragraphs if part.startswith("Differs from")]
    expected = [part for part in paragraphs if part.startswith("Expected")]
    idea, sites = [], ""
    for part in paragraphs:
        if part not in (*differs, *expected):
            before, found, after = part.partition("Sites: ")
            sites = after if found else sites
            idea += [before.strip()] if before.strip() else []
    parts = {"title": title, "idea": idea, "Sites:": sites, "Differs from": differs, "Expected": expected}
    if missing := [name for name, part in parts.items() if not part]:
        raise ValueError(f"{path}: expected a header with {missing[0]!r}, got none. Write it in the docstring.")
    return MethodHeader(title, tuple(idea), sites, " ".join(differs), " ".join(expected))


def read_summary(docstring: str) -> str:
    """Return what stands before the first section of a docstring, paragraphs separated by blank lines."""
    lines = []
    for line in cleandoc(docstring).splitlines():
        if line.strip() in SECTIONS:
            break
        lines.append(line)
    return "\n".join(lines).strip()


def read_section(docstring: str, section: str = "Args:") -> dict[str, str]:
    """Return {name: description} of a section of a Google-style docstring; "a, b: text" describes both."""
    names: list[str] = []
    texts: dict[str, str] = {}
    is_inside = False
    for line in cleandoc(docstring).splitlines():
        if not line.startswith(" ") and line.strip():
            is_inside = line.strip() == section
        elif is_inside and (match := ARGUMENT.match(line)):
            names = match[2].split(", ")
            texts |= dict.fromkeys(names, match[3])
        elif is_inside and line.strip():
            texts |= {name: f"{texts[name]} {line.strip()}" for name in names}
    return texts


def find_descriptions(cls: type) -> dict[str, str]:
    """Return {argument: description} of a class, with what it refers to ("as in FewShot") filled in."""
    own: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        if base.__module__.startswith("vlprompt"):
            own |= read_section(base.__doc__ or "")
    others = {base.__name__: base for base in _list_documented_classes()}
    return {name: _resolve(name, text, others) for name, text in own.items()}


def _resolve(name: str, text: str, classes: dict[str, type]) -> str:
    match = REFERENCE.match(text)
    if match is None or match[1] not in classes:
        return text
    referred = find_descriptions(classes[match[1]]).get(name)
    if referred is None:
        raise ValueError(f"{name}: expected an argument of {match[1]}, got none of that name. Correct {text!r}.")
    return referred.rstrip(".") + (f" ({match[2].rstrip('.')})" if match[2] else "") + "."


@cache
def _list_documented_classes() -> tuple[type, ...]:
    from vlprompt import tasks
    from vlprompt.layers import heads, verbalizers
    from vlprompt.methods import ZeroShot

    classes = [getattr(tasks, name) for name in tasks.find_classes().values()]
    for module in (heads, verbalizers):
        classes += [value for name, value in vars(module).items() if isinstance(value, type) and name.endswith("Head")]
    return (*classes, verbalizers.Verbalizer, ZeroShot)
