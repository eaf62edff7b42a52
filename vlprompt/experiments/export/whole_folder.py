"""Write a folder completely or not at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def write_whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder, whose files are those of the folder unless an error ends the block.

    Args:
        folder: new or empty.

    Raises:
        OSError: where it can't be written, or another command has written into it meanwhile.
    """
    folder = folder.resolve()
    missing = [parent for parent in folder.parents if not parent.exists()]
    is_new = not folder.exists()  # an empty one stays: it may be a mount, or where a user's shell is
    home = folder.parent if is_new else folder
    try:
        with explain_folder_errors(folder):
            home.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(prefix=".export-", dir=home) as name:
                temporary = Path(name) / "files"
                temporary.mkdir()
                yield temporary
                _move(temporary, folder, is_new)
    except BaseException:
        for parent in missing:
            with suppress(OSError):  # another command has written there
                parent.rmdir()
        raise


def _move(temporary: Path, folder: Path, is_new: bool) -> None:
    try:
        if is_new:
            temporary.rename(folder)
            return
        if {file.name for file in folder.iterdir()} != {temporary.parent.name}:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        for file in temporary.iterdir():
            file.rename(folder / file.name)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise OSError(
            f"export: expected a new or empty folder, got {str(folder)!r}, into which another command has written "
            "meanwhile. Name another folder."
        ) from error


@contextmanager
def explain_folder_errors(folder: Path) -> Iterator[None]:
    """Name the folder and the remedy in an error of the system."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # an error with a remedy of its own
            raise
        raise OSError(
            f"export: expected a folder that can be written, got {str(folder)!r} ({error.strerror}). Free space, "
            "permit writing, or name another folder."
        ) from error
