"""The folder of a report: what it wrote is replaced, files of others are neither replaced nor removed."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from vlprompt.results.atomic_files import explain_write_errors, write_atomically

LIST_NAME = "report_files.json"


def require_single_path(path: Path) -> None:
    """Make the folder of a page; ValueError where it would be no file .html, OSError where it can't be written."""
    if path.is_dir() or path.suffix.lower() not in (".html", ".htm"):
        what = "a folder" if path.is_dir() else repr(str(path))
        raise ValueError(f"--single: expected a file .html, got {what}. Name one, or give --out {path} for a folder.")
    _require_folder(path.parent, "--single")
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)


def require_report_folder(folder: Path) -> None:
    """Make the folder of a report; ValueError where it can't be one, OSError where it can't be written."""
    _require_folder(folder, "--out")
    _require_own(folder, ["index.html"])
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)


def _require_own(folder: Path, paths: Iterable[str]) -> set[str]:
    """Return the files of an earlier report; ValueError where a file of another origin has one of the names."""
    own = _read_own_paths(folder)
    if foreign := [path for path in paths if path not in own and (folder / path).exists()]:
        raise ValueError(
            f"--out: expected a folder without {foreign[0]!r} of another origin, got {str(folder)!r}. "
            "Name another folder, or move the file."
        )
    return own


def _require_folder(folder: Path, option: str) -> None:
    existing = next((path for path in (folder, *folder.absolute().parents) if path.exists()), folder)
    if not existing.is_dir():
        raise ValueError(f"{option}: expected a folder, got {str(existing)!r}, which is a file. Name another.")


def write_report_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write the files of a report and remove those of an earlier one that are no longer part of it.

    Returns:
        The path of the page.

    Raises:
        ValueError: where a file of another origin has one of their names.
        OSError: where the folder can't be written.
    """
    own = _require_own(folder, files)
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        listed = sorted({*files, *own})  # so that a killed command leaves nothing that the next one doesn't know
        write_atomically(folder / LIST_NAME, json.dumps(listed, indent=1).encode())
        for path, data in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / path, data)
        for path in own - files.keys():
            (folder / path).unlink(missing_ok=True)
        write_atomically(folder / LIST_NAME, json.dumps(sorted(files), indent=1).encode())
    return folder / "index.html"


def _read_own_paths(folder: Path) -> set[str]:
    """Return the paths of the files that an earlier report wrote; ValueError for a list that is none."""
    path = folder / LIST_NAME
    try:
        paths = json.loads(path.read_text("utf-8")) if path.exists() else []
        if not isinstance(paths, list) or not all(map(_is_inside, paths)):
            raise ValueError("it lists other things than files of this folder")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{str(path)!r}: expected the list of a report's files, got a broken one ({error}). Name another folder, "
            "or remove this file."
        ) from error
    return set(paths)


def _is_inside(path: object) -> bool:
    pure = PurePosixPath(path) if isinstance(path, str) else None
    return pure is not None and bool(pure.parts) and not pure.is_absolute() and ".." not in pure.parts
