"""Files that are written completely or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Add the file and the remedy to an OSError of the with-block (a full disk, no permission)."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{str(path)!r}: expected a file that can be written, got an error ({error.strerror}). Free space or "
            "permit "
            "writing, and give the same command again: it goes on where the last file was written."
        ) from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file completely or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with explain_write_errors(path):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())
