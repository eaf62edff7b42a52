"""Helpers for error messages."""

import errno
import os
import sysconfig
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from traceback import walk_tb
from types import FrameType
from typing import Any

MAX_CHOICES = 40  # to name in a message
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # no later file is written either
DEBUG_VARIABLE = "VLPROMPT_DEBUG"  # set to anything, it shows tracebacks
PACKAGE_FOLDER = Path(__file__).parents[1]


class UnknownClassError(ValueError):
    """A class that the method was not trained on, and can't predict by its name."""


class RunStoppedError(Exception):
    """A run was asked to stop between two steps; its state is saved, and the same command goes on from there."""


class RunLostError(RunStoppedError):
    """Another process has taken a run over, so that this one may write nothing more of it."""


class FolderInUseError(ValueError):
    """Another process is at work in a folder."""


class NonFiniteError(ArithmeticError):
    """A loss, gradient or logit is not finite; of a training the parameters are those from before the step."""


def is_finite(values: Any) -> bool:
    """Whether all numbers of a tensor are finite. The sum says so in one pass, except where it overflows."""
    values = values.detach()
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())


def suggest_nearest(name: str, choices: Iterable[str]) -> str:
    """Return "did you mean X?" where one of the choices is near, else the choices."""
    choices = list(choices)
    if near := get_close_matches(name, choices, 1, 0.5):
        return f"did you mean {near[0]!r}?"
    return f"the choices are {', '.join(choices[:MAX_CHOICES])}{' ...' * (len(choices) > MAX_CHOICES)}"


def is_debugging() -> bool:
    """Return whether errors end in a traceback instead of one line."""
    return bool(os.environ.get(DEBUG_VARIABLE))


def explain_error(error: Exception) -> str | None:
    """Return the message for a mistake in the input, in a user's own class, or too little memory.

    None for a bug in this package.
    """
    memory_texts = "out of memory", "can't allocate memory"  # of a GPU and of a CPU
    is_memory_error = isinstance(error, RuntimeError) and any(text in str(error) for text in memory_texts)
    if isinstance(error, MemoryError) or is_memory_error:
        cause = f" ({str(error).splitlines()[0]})" if str(error) else ""
        return (
            f"memory: expected enough for this run, got an error of the allocator{cause}. Set a smaller "
            "train.batch_size, train.micro_batch_size=4, or fewer tokens (method.n_tokens, method.n_ctx)."
        )
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    is_explained = is_input_error(error) or isinstance(error, OSError)
    if place := _locate_user_code(error):
        if is_explained and _is_inside(frames[-1], PACKAGE_FOLDER):  # this package refuses what the user's code did
            return f"{error} (from {place})"
        return (
            f"{place}: expected no error, got {type(error).__name__}: {error}. Correct it there; {DEBUG_VARIABLE}=1 "
            "shows the traceback."
        )
    return str(error) if is_explained else None


def is_input_error(error: Exception) -> bool:
    """Return whether an error comes from settings or data, so that the same command fails again."""
    return isinstance(error, ValueError | ArithmeticError)


def is_disk_error(error: BaseException | None) -> bool:
    """Return whether an error, or one that it explains, comes from a disk that takes no more files."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            return True
        error = error.__cause__
    return False


def describe_error(error: Exception) -> str:
    """Return the message of an error, of a bug in this package too."""
    if (message := explain_error(error)) is not None:
        return message
    if error.__traceback__ is None:  # it was made to be told, not raised
        return str(error)
    *_, (frame, line) = walk_tb(error.__traceback__)
    return (
        f"internal error: {type(error).__name__}: {error} ({frame.f_code.co_filename}, line {line}). "
        f"{DEBUG_VARIABLE}=1 shows the traceback."
    )


def _locate_user_code(error: Exception) -> str:
    """Return class, file and line where code of neither this package nor a library took part; "" for nowhere."""
    library_folders = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    for frame, line in reversed(list(walk_tb(error.__traceback__))):
        file = frame.f_code.co_filename
        if not file.startswith("<") and not any(_is_inside(frame, x) for x in (PACKAGE_FOLDER, *library_folders)):
            owner = frame.f_locals.get("self", frame.f_locals.get("cls"))
            cls = owner if isinstance(owner, type) else type(owner)
            name = frame.f_code.co_name if owner is None else f"{cls.__name__}.{frame.f_code.co_name}"
            return f"{name} ({file}, line {line})"
    return ""


def _is_inside(frame: FrameType, folder: Path) -> bool:
    return Path(frame.f_code.co_filename).is_relative_to(folder)
