"""Show the warnings of this package and of libraries: one line each, once."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def show_warnings(console: "Console") -> Iterator[None]:
    """Print each warning that is issued within as one line, in place of Python's own form with a line of code.

    Args:
        console: where to write.
    """
    shown = set[tuple[str, str, int]]()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        text, library = " ".join(str(message).split()), _find_library(filename)
        # the texts of a library differ by numbers and tell the same
        key = (category.__name__, filename if library else text, lineno)
        if key not in shown:
            shown.add(key)
            origin = f"{library}: " if library else ""
            console.print(f"warning: {origin}{text}", style="yellow", markup=False, highlight=False, soft_wrap=True)

    previous = warnings.showwarning
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = previous


def _find_library(filename: str) -> str:
    """Return the name of the installed package that a file is of, "" for none and for this one."""
    _, separator, path = filename.replace("\\", "/").rpartition("/site-packages/")
    name = path.partition("/")[0].removesuffix(".py") if separator else ""
    return "" if name == "vlprompt" else name
