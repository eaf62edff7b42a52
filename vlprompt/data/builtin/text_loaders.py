"""Loaders of the built-in text datasets, by the `loader` of their card."""

from collections.abc import Callable
from functools import partial

from vlprompt.data.text_schema import TextRow


def _load_docstrings(name: str) -> dict[str, list[TextRow]]:
    from vlprompt.data.builtin import docstrings

    return _wrap_rows(name, getattr(docstrings, name)())


def _load_code_lines(name: str) -> dict[str, list[TextRow]]:
    from vlprompt.data.builtin import code_lines

    return _wrap_rows(name, getattr(code_lines, name)())


def _wrap_rows(name: str, rows_by_split: dict[str, list[dict[str, object]]]) -> dict[str, list[TextRow]]:
    return {
        part: [TextRow(f"{name}, {part} {i}", f"{part}/{i}", row) for i, row in enumerate(rows)]
        for part, rows in rows_by_split.items()
    }


TEXT_LOADERS: dict[str, Callable[[], dict[str, list[TextRow]]]] = {
    "docstrings": partial(_load_docstrings, "docstrings"),
    "signatures": partial(_load_docstrings, "signatures"),
    "doc_or_code": partial(_load_code_lines, "doc_or_code"),
    "python_tokens": partial(_load_code_lines, "python_tokens"),
}
