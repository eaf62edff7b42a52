"""Text datasets that come with the package, by the `loader` that their card names."""

from collections.abc import Callable
from functools import partial

from vlprompt.data.text_schema import Told


def _docstrings(name: str) -> dict[str, list[Told]]:
    from vlprompt.data.builtin import docstrings

    return _told(name, getattr(docstrings, name)())


def _code(name: str) -> dict[str, list[Told]]:
    from vlprompt.data.builtin import code_lines

    return _told(name, getattr(code_lines, name)())


def _told(name: str, parts: dict[str, list[dict[str, object]]]) -> dict[str, list[Told]]:
    return {
        part: [Told(f"{name}, {part} {i}", f"{part}/{i}", row) for i, row in enumerate(rows)]
        for part, rows in parts.items()
    }


LOADERS: dict[str, Callable[[], dict[str, list[Told]]]] = {
    "docstrings": partial(_docstrings, "docstrings"),
    "signatures": partial(_docstrings, "signatures"),
    "doc_or_code": partial(_code, "doc_or_code"),
    "python_tokens": partial(_code, "python_tokens"),
}
