"""Pieces of Markdown: text of docstrings made safe, links to papers, tables."""

import re
from collections.abc import Callable, Iterable, Sequence

FENCES = re.compile(r"(^```.*?^```[ \t]*$)", re.M | re.S)
CODE = re.compile(r"(`[^`]*`)")
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
NO_BREAK = "\u00a0"


def escape(text: str) -> str:
    """Return text of a docstring as Markdown that shows it as it is, on one line, with links to arXiv."""
    pieces = CODE.split(" ".join(text.split()))
    return "".join(piece if piece.startswith("`") and piece != "`" else _escape_piece(piece) for piece in pieces)


def _escape_piece(text: str) -> str:
    text = text.replace("\\", "\\\\").replace("*", "\\*").replace("<", "&lt;").replace("_", "\\_")
    text = text.replace("[", "\\[").replace("]", "\\]")
    return ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def paragraphs(text: str) -> list[str]:
    """Return the lines of a docstring's paragraphs, an empty line behind each."""
    return [line for part in text.split("\n\n") for line in (escape(part), "")]


def code(text: object) -> str:
    """Return text as inline code."""
    value = str(text).replace("\n", "\\n")
    return f"`` {value} ``" if "`" in value else f"`{value}`"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table; an empty last line ends it."""
    lines = ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings)]
    for row in rows:
        if len(row) != len(headings):
            raise ValueError(f"table: expected {len(headings)} cells, got {len(row)}: {row!r}. Correct the row.")
        lines.append("| " + " | ".join(_escape_pipes(cell) or " " for cell in row) + " |")
    return [*lines, ""]


def _escape_pipes(cell: str) -> str:
    """Return a cell whose pipes end no column; inside of code they never do."""
    return "".join(piece if i % 2 else piece.replace("|", "\\|") for i, piece in enumerate(CODE.split(cell)))


def replace_outside_fences(text: str, replace: Callable[[str], str]) -> str:
    """Return Markdown with every piece replaced that is not in a fenced block."""
    return "".join(piece if i % 2 else replace(piece) for i, piece in enumerate(FENCES.split(text)))


def fenced(language: str, text: str) -> list[str]:
    """Return the lines of a fenced block."""
    return [f"```{language}", *text.rstrip().splitlines(), "```", ""]


def page_title(title: str, subtitle: str = "") -> list[str]:
    """Return a page's first lines."""
    return [f"# {title}", "", *([subtitle, ""] if subtitle else [])]
