"""Download and unpack the files of a dataset: only when asked, never twice, and nothing is ever half there."""

import hashlib
import http.client
import os
import shutil
import stat
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlprompt.data.card_schema import Download, LayoutCard

ProgressCallback = Callable[[str, int, int], None]  # activity, bytes done, bytes in all (0: unknown)


def read_download_steps(card: "LayoutCard", mirror: str | None = None) -> "list[Download]":
    """Return what a card says to download; `mirror` is a folder or address with files of the same names."""
    if mirror is None:
        return card.downloads
    base = mirror if "://" in mirror else Path(mirror).expanduser().resolve().as_uri()
    return [
        step if step.url is None else step.model_copy(update={"url": f"{base.rstrip('/')}/{step.file}"})
        for step in card.downloads
    ]


def prepare_files(
    card: "LayoutCard", folder: Path, download: bool, mirror: str | None, on_progress: ProgressCallback
) -> "list[Download]":
    """Unpack what is there and download the rest where that is allowed.

    Args:
        card: the card whose files are prepared.
        folder: the folder of the dataset.
        download: whether missing files are downloaded.
        mirror: a folder or address with files of the same names.
        on_progress: called while files are downloaded, checked and unpacked.

    Returns:
        The steps that could not be done.

    Raises:
        OSError: for a failed download, with the place where the file goes when it is fetched by hand.
        ValueError: for a wrong checksum and for an archive that is broken or would write outside its folder.
    """
    undone, steps = [], read_download_steps(card, mirror)
    for step in steps:
        contents = [later.produces for later in steps if later.file == step.produces]  # of an archive in an archive
        if any((folder / path).exists() for path in (step.produces, *contents)):
            continue
        path = folder / step.file
        if not path.is_file():
            if step.url is None or not download:
                undone.append(step)
                continue
            folder.mkdir(parents=True, exist_ok=True)
            download_file(step.url, path, on_progress, card.manual_download or "")
        if step.md5 is not None and (md5 := compute_md5(path, on_progress)) != step.md5:
            raise ValueError(
                f"{str(path)!r}: expected the md5 {step.md5}, got {md5}; the file is broken or another version. "
                "Remove it and run the same command again."
            )
        if step.is_archive:
            on_progress(f"unpacking {step.file}", 0, 0)
            unpack(path, folder, step)
        if not (folder / step.produces).exists():
            raise ValueError(
                f"{str(path)!r}: expected an archive with {step.produces}, got one without it. Remove it and get the "
                "file that the card names."
            )
    return undone


def download_file(url: str, path: Path, on_progress: ProgressCallback, manual_hint: str = "") -> None:
    """Download a file; it gets its name only when it is complete, and an earlier part is continued.

    Args:
        url: the address.
        path: where the file goes.
        on_progress: called after each block.
        manual_hint: how else the file can be had, for the error.

    Raises:
        OSError: for a failed download.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        try:
            _download_part(url, part, path.name, on_progress)
        except urllib.error.HTTPError as error:
            if error.code != 416 or not part.exists():
                raise
            part.unlink()  # all of the file or more, of a process that was killed before the end: begin again
            _download_part(url, part, path.name, on_progress)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise OSError(
            f"{url}: download failed ({error}). Run the same command to continue it, or download the file another way "
            f"to {str(path)!r} and run the command again" + (f" ({manual_hint})." if manual_hint else ".")
        ) from error
    part.replace(path)


def _download_part(url: str, part: Path, name: str, on_progress: ProgressCallback) -> None:
    """Download into a part file, from where it ends; OSError where not all has come."""
    n_bytes = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "vlprompt"})
    if n_bytes:
        request.add_header("Range", f"bytes={n_bytes}-")
    with urllib.request.urlopen(request, timeout=60) as response:
        if response.headers.get("Content-Type", "").startswith("text/html") and not name.endswith(".html"):
            raise OSError("expected the file, got a web page")
        n_bytes = n_bytes if getattr(response, "status", None) == 206 else 0
        total = n_bytes + int(response.headers.get("Content-Length") or 0)
        with part.open("ab" if n_bytes else "wb") as file:
            while block := response.read(1 << 20):
                file.write(block)
                n_bytes += len(block)
                on_progress(f"fetching {name}", n_bytes, total)
        if n_bytes < total:
            raise OSError(f"expected {total} bytes, got {n_bytes}")


def compute_md5(path: Path, on_progress: ProgressCallback) -> str:
    """Return the md5 of a file."""
    digest, total, n_bytes = hashlib.md5(usedforsecurity=False), path.stat().st_size, 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            n_bytes += len(block)
            on_progress(f"checking {path.name}", n_bytes, total)
    return digest.hexdigest()


def unpack(path: Path, folder: Path, step: "Download") -> None:
    """Unpack an archive into a temporary folder and move it into place, what the step produces last.

    Raises:
        ValueError: for an archive that is broken or would write outside its folder.
    """
    temporary = folder / f".{path.name}.unpacking"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        if path.name.endswith(".zip"):
            _unzip(path, temporary, step.strip_components)
        else:
            with tarfile.open(path) as archive:
                archive.extractall(temporary, members=_strip_members(archive, step.strip_components), filter="data")
        target = folder / step.extract_to
        if not target.exists():
            temporary.replace(target)
            return
        last = PurePosixPath(step.produces).parts[0]
        for path_inside in sorted(temporary.iterdir(), key=lambda p: p.name == last):
            if not (target / path_inside.name).exists():
                path_inside.replace(target / path_inside.name)
    except tarfile.FilterError as error:
        raise ValueError(
            f"{str(path)!r}: expected paths inside its folder, got one outside ({error}). It is not unpacked; get the "
            "archive from its source."
        ) from error
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{str(path)!r}: expected an archive, got a broken file or another format ({error}). Remove it and run "
            "the same command again."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _strip_members(archive: tarfile.TarFile, strip_components: int) -> Iterator[tarfile.TarInfo]:
    for member in archive:
        parts = PurePosixPath(member.name).parts
        if len(parts) > strip_components:
            name = str(PurePosixPath(*parts[strip_components:]))
            stripped = member.replace(name=name, deep=False)
            if member.islnk():
                stripped.linkname = str(PurePosixPath(*PurePosixPath(member.linkname).parts[strip_components:]))
            yield stripped


def _unzip(path: Path, folder: Path, strip_components: int) -> None:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            parts = PurePosixPath(info.filename).parts
            unsafe = ".." in parts or info.filename.startswith(("/", "\\")) or ":" in info.filename
            if unsafe or "\\" in info.filename or stat.S_ISLNK(info.external_attr >> 16):
                raise ValueError(
                    f"{str(path)!r}: expected paths inside its folder, got one outside ({info.filename}). It is not "
                    "unpacked; get the archive from its source."
                )
            if len(parts) <= strip_components or info.is_dir():
                continue
            path_inside = folder.joinpath(*parts[strip_components:])
            os.makedirs(path_inside.parent, exist_ok=True)
            with archive.open(info) as source, path_inside.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
