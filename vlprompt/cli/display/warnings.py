"""Show the warnings and log messages of this package and of libraries: one line each, once."""

import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from vlprompt.runtime import distributed
from vlprompt.runtime.errors import is_debugging

if TYPE_CHECKING:
    from rich.console import Console

MAX_TEXTS = 3  # of one line of a library's code; counters and addresses make each of its messages another one
# log messages that say nothing of what to do: (of which library, how they begin) -> what is shown instead, once
EXPLANATIONS = {
    ("huggingface_hub", re.compile(r"HTTP Error|Retrying in|Rate limited|'.*' thrown")): (
        "the Hugging Face hub does not answer as it should ({message}); it is tried again for half a minute a file. "
        "Check the network (HF_ENDPOINT), or set HF_HUB_OFFLINE=1 to take only what is here."
    ),
}
STANDARD_DESCRIPTORS = (1, 2)


class _Reporter:
    """Print warnings and log messages as one line each, none twice.

    Args:
        console: where to write; of several processes the first one prints.
    """

    def __init__(self, console: "Console"):
        self.console = console
        self.shown: dict[tuple[object, ...], set[str]] = {}  # texts by the line of code that they come from

    def show(self, source: tuple[object, ...], library: str, text: str, level: str = "warning") -> None:
        texts = self.shown.setdefault(source, set())
        if text in texts or len(texts) > MAX_TEXTS or not distributed.is_main_process():
            return
        texts.add(text)
        text = text if len(texts) <= MAX_TEXTS else "more of the kind follows (VLPROMPT_DEBUG=1 shows all)"
        line = f"{level}: {library}: {text}" if library else f"{level}: {text}"
        self.console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def show_warning(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """Stand in for `warnings.showwarning`."""
        text, library = " ".join(str(message).split()), _find_library(filename)
        self.show((category.__name__, filename if library else text, lineno), library, text)

    def show_record(self, record: logging.LogRecord) -> None:
        text, library = " ".join(record.getMessage().split()), record.name.partition(".")[0]
        for (owner, beginning), explanation in EXPLANATIONS.items():
            if library == owner and beginning.match(text):
                if (owner, explanation) not in self.shown:
                    self.show((owner, explanation), "", explanation.format(message=text))
                return
        if record.exc_info and (cause := record.exc_info[1]) is not None:
            text += f" ({type(cause).__name__}: {' '.join(str(cause).split())})"
        level = "error" if record.levelno >= logging.ERROR else "warning"
        self.show((record.name, record.pathname, record.lineno), "" if library == "root" else library, text, level)


@contextmanager
def show_warnings(console: "Console") -> Iterator[None]:
    """Print each warning and log message that is issued within as one line, once, in place of the raw forms.

    Messages below warnings are left to their loggers, and so are log files. Warnings that libraries write from C++ past
    Python have no reader: they are switched off, but not for debugging.

    Args:
        console: where to write.
    """
    if not is_debugging():
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported
    reporter, previous = _Reporter(console), warnings.showwarning
    warnings.showwarning = reporter.show_warning
    try:
        with _divert_logs(reporter.show_record):
            yield
    finally:
        warnings.showwarning = previous


@contextmanager
def _divert_logs(show_record: Callable[[logging.LogRecord], None]) -> Iterator[None]:
    """Pass warnings that any logger writes to the terminal to `show_record` instead.

    Libraries give their loggers handlers of their own when they are imported, at some time within; all of these write
    by one method.
    """
    write = logging.StreamHandler.emit

    def emit(handler: "logging.StreamHandler[Any]", record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING or is_debugging() or not _is_terminal(handler):
            write(handler, record)
            return
        try:
            show_record(record)
        except Exception:  # as of every handler: a message that can't be formatted ends no run
            handler.handleError(record)

    logging.StreamHandler.emit = emit  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        logging.StreamHandler.emit = write


def _is_terminal(handler: "logging.StreamHandler[Any]") -> bool:
    """Whether a handler writes to standard output or error, captured or not."""
    if isinstance(handler, logging.FileHandler):
        return False
    if handler.stream in (sys.stdout, sys.stderr):
        return True
    try:
        return handler.stream.fileno() in STANDARD_DESCRIPTORS
    except (AttributeError, OSError, ValueError):  # a stream in memory, or a closed one
        return False


def _find_library(filename: str) -> str:
    """Return the name of the installed package that a file is of, "" for none and for this one."""
    _, separator, path = filename.replace("\\", "/").rpartition("/site-packages/")
    name = path.partition("/")[0].removesuffix(".py") if separator else ""
    return "" if name == "vlprompt" else name
