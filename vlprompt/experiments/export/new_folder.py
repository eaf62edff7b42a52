"""Fill a folder completely or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree


@contextmanager
def fill_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes a new or empty one after the with-block; on an error nothing is left."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if folder.exists():
            folder.rmdir()
        temporary.replace(folder)
    finally:
        rmtree(temporary, ignore_errors=True)
