"""List image files and folders: links are followed, hidden entries and leftovers of systems are never data."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
UNREAD_SUFFIXES = (".heic", ".heif", ".avif", ".jfif", ".jp2", ".tga", ".svg", ".psd", ".dng", ".cr2", ".nef", ".arw")
# leftovers of macOS, Windows, Synology, Linux and Python; all other leftovers begin with a dot
SYSTEM_NAMES = {
    "__macosx",
    "thumbs.db",
    "desktop.ini",
    "$recycle.bin",
    "system volume information",
    "@eadir",
    "lost+found",
    "__pycache__",
}


def is_hidden(name: str) -> bool:
    """Whether the name of a file or folder is hidden or a leftover of a system: .git, ._x.png, __MACOSX, Thumbs.db."""
    return name.startswith(".") or name.casefold() in SYSTEM_NAMES


def list_folders(path: Path) -> list[Path]:
    """Return the sub-folders that are not hidden, also those behind links, sorted."""
    with os.scandir(path) as entries:  # tells folders from files without a stat of each
        names = sorted(entry.name for entry in entries if not is_hidden(entry.name) and entry.is_dir())
    return [path / name for name in names]


def is_image_name(name: str) -> bool:
    """Whether a name is that of an image file that is not hidden."""
    return not is_hidden(name) and name.lower().endswith(IMAGE_SUFFIXES)


def has_images(path: Path) -> bool:
    """Whether an image lies directly in a folder."""
    with os.scandir(path) as entries:
        return any(is_image_name(entry.name) and not entry.is_dir() for entry in entries)


def list_image_files(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[Path]:
    """Return the image files in a folder and its sub-folders, or those of other suffixes, sorted.

    Links to folders are followed, but not back into a folder that they lie in. A link to a file that is gone is
    listed, so that whoever opens it says so.
    """
    return sorted(Path(path) for path in _walk(str(folder), suffixes, ()))


def iter_image_files(folder: Path, on_error: Callable[[OSError], None] | None = None) -> Iterator[str]:
    """Yield the paths that `list_image_files` returns, in the same order, with one folder's names in memory.

    Args:
        folder: where to look.
        on_error: receives the error of a folder that can't be read, and the others go on; default: it is raised.
    """
    return _walk(str(folder), IMAGE_SUFFIXES, (), is_sorted=True, on_error=on_error)


def contains_images(folder: Path) -> bool:
    """Whether an image lies in a folder or its sub-folders."""
    return next(_walk(str(folder), IMAGE_SUFFIXES, ()), None) is not None


def _walk(
    path: str,
    suffixes: tuple[str, ...],
    parents: tuple[str, ...],
    is_sorted: bool = False,
    on_error: Callable[[OSError], None] | None = None,
) -> Iterator[str]:
    """Yield the files below a folder; `parents` are the real paths of the folders that it lies in."""
    if (real := os.path.realpath(path)) in parents:
        return
    try:
        with os.scandir(path) as entries:
            names = sorted(entries, key=lambda one: one.name) if is_sorted else list(entries)
    except OSError as error:
        if on_error is None:
            raise
        on_error(error)
        return
    for entry in names:
        if is_hidden(entry.name):
            continue
        if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():  # a link to itself is no folder
            yield from _walk(entry.path, suffixes, (*parents, real), is_sorted, on_error)
        elif entry.name.lower().endswith(suffixes) and (entry.is_symlink() or entry.is_file()):
            yield entry.path
