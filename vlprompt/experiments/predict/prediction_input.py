"""An image or a text to predict: its name, and how it is opened."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vlprompt.data.images.decoding import open_image
from vlprompt.runtime.file_index import read_stamp


@dataclass(frozen=True, slots=True)
class PredictionInput:
    """An image or a text to predict.

    Args:
        path: names it in the answers: a file, `SHARD/MEMBER`, `ARRAYS[INDEX]` or `FILE:LINE`.
        open: returns an upright RGB image, a text, or the fields of one; ValueError or OSError for a broken input.
        is_file: whether `path` is the file that is opened, whose change can be seen.
    """

    path: str
    open: Callable[[], Any]
    is_file: bool = False

    @property
    def digest(self) -> bytes:
        """16 bytes that stand for the path where many paths are stored."""
        return digest_path(self.path)


def digest_path(path: str) -> bytes:
    """Return 16 bytes that stand for a path."""
    return hashlib.blake2b(os.fsencode(path), digest_size=16).digest()


def build_broken_input(path: str, message: str) -> PredictionInput:
    """Build an input that can't be opened, so that its error stands among the answers."""
    return PredictionInput(path, partial(_raise_error, message))


def _raise_error(message: str) -> None:
    raise ValueError(message)


def build_file_input(path: str) -> PredictionInput:
    """Build the input of an image file."""
    return PredictionInput(path, partial(_open_file, path), is_file=True)


def describe_stamp(path: str) -> str | None:
    """Return 16 hex digits of a file's size, times and inode; None where it can't be read."""
    try:
        return hashlib.blake2b(repr(read_stamp(path)).encode(), digest_size=8).hexdigest()
    except (OSError, ValueError):
        return None


def _open_file(path: str) -> Any:
    return open_image(Path(path))
