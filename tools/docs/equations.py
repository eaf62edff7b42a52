"""Equations: TeX becomes MathML when the site is built, so that a page needs no script to show it."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from docs.markdown_text import replace_outside_fences
from docs.paths import EQUATIONS_FILE

DISPLAY_BLOCK = re.compile(r"^\$\$\s*\n(.+?)\n\$\$\s*$", re.M | re.S)
DISPLAY_LINE = re.compile(r"^\$\$(.+?)\$\$\s*$", re.M)
INLINE = re.compile(r"(?<![\\$`\w])\$([^$`\n]+?)\$(?![\w$`])")


def to_mathml(tex: str, display: bool = True) -> str:
    """Return MathML on one line.

    Raises:
        ValueError: for TeX that can't be converted.
    """
    from latex2mathml.converter import convert

    try:
        math = convert(" ".join(tex.split()), display="block" if display else "inline")
    except Exception as error:
        raise ValueError(f"equation: expected TeX, got {tex!r} ({error}). Correct it.") from error
    if "\\" in re.sub(r"<annotation.*?</annotation>", "", math):
        raise ValueError(f"equation: expected TeX that latex2mathml knows, got {tex!r}. Write it another way.")
    return math


def display_equation(tex: str) -> str:
    """Return a block with an equation."""
    return f'<div class="equation">{to_mathml(tex)}</div>'


def convert_blocks(markdown: str) -> str:
    """Turn blocks between lines of $$ into MathML, outside of fenced code."""

    def replace(match: re.Match[str]) -> str:
        return f"\n{display_equation(match[1])}\n"

    return replace_outside_fences(markdown, lambda piece: DISPLAY_LINE.sub(replace, DISPLAY_BLOCK.sub(replace, piece)))


def explain_equation(where: str) -> str:
    """Return Markdown with $...$ as one HTML paragraph, so that no Markdown is read inside MathML."""
    from markdown import markdown

    math: list[str] = []

    def remember(match: re.Match[str]) -> str:
        math.append(to_mathml(match[1], display=False))
        return f"MATH{len(math) - 1}HTAM"

    html = markdown(INLINE.sub(remember, " ".join(where.split())))
    return re.sub(r"MATH(\d+)HTAM", lambda match: math[int(match[1])], html)


@cache
def read_equations(path: Path = EQUATIONS_FILE) -> dict[str, dict[str, Any]]:
    """Return {method: {tex: ..., where: ...}}; empty where the file is missing."""
    return yaml.safe_load(path.read_text("utf-8")) if path.is_file() else {}
