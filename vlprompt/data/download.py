"""Getting the files of a dataset: only when asked, what is there already is kept, and nothing is ever half there."""

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
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

Watch = Callable[[str, int, int], None]  # what, bytes done, bytes in all (0: not known)
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
KEYS = {"url", "file", "md5", "strip", "into", "gives"}


@dataclass(frozen=True)
class Step:
    """One file: where it is fetched (None: an earlier archive holds it), what it is called, and what it gives.

    strip: how many folders are taken off the paths in an archive; into: where it is unpacked; both under the dataset's
    folder, as is `gives`, whose presence means that the step is done.
    """

    gives: str
    file: str
    url: str | None = None
    md5: str | None = None
    strip: int = 0
    into: str = "."

    @property
    def archive(self) -> bool:
        return self.file.endswith(ARCHIVES)


def steps(card: dict[str, Any], base: str | None = None) -> list[Step]:
    """What a card says to download; base: a folder or address that holds files of the same names."""
    found = []
    for told in card.get("downloads", ()):
        if strange := set(told) - KEYS:
            raise ValueError(f"a download on the card has the unknown key {min(strange)!r}; it has {', '.join(KEYS)}")
        url = told.get("url")
        file = told.get("file") or PurePosixPath(url).name
        if base is not None and url is not None:
            whole = base if "://" in base else Path(base).expanduser().resolve().as_uri()
            url = f"{whole.rstrip('/')}/{file}"
        found.append(Step(**{**told, "url": url, "file": file}))
    return found


def prepare(card: dict[str, Any], folder: Path, download: bool, base: str | None, watch: Watch) -> list[Step]:
    """Unpacks what is there and, when it may, downloads the rest; gives the steps that could not be done.

    OSError for what can't be had, with the place where the file goes when it is fetched by hand; ValueError for a file
    with another checksum and for an archive that is broken or would write outside its folder.
    """
    left, every = [], steps(card, base)
    for step in every:
        after = [later.gives for later in every if later.file == step.gives]  # what an archive in an archive gives
        if any((folder / path).exists() for path in (step.gives, *after)):
            continue
        path = folder / step.file
        if not path.is_file():
            if step.url is None or not download:
                left.append(step)
                continue
            folder.mkdir(parents=True, exist_ok=True)
            fetch(step.url, path, watch, card.get("by_hand", ""))
        if step.md5 is not None and (came := md5_of(path, watch)) != step.md5:
            raise ValueError(
                f"{str(path)!r} has the md5 {came}, not {step.md5}: it is broken or another version; "
                "remove it and give the same command again"
            )
        if step.archive:
            watch(f"unpacking {step.file}", 0, 0)
            unpack(path, folder, step)
        if not (folder / step.gives).exists():
            raise ValueError(f"{str(path)!r} does not hold {step.gives}; it is not the file that the card means")
    return left


def fetch(url: str, path: Path, watch: Watch, advice: str = "") -> None:
    """A file from an address; it bears its name only when it is whole, and a part that came before is continued.

    advice: what the error says besides, of how to come by the file.
    """
    part = path.with_name(f"{path.name}.part")
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "vlprompt"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            if answer.headers.get("Content-Type", "").startswith("text/html") and not path.name.endswith(".html"):
                raise OSError("a web page came instead of the file")
            have = have if getattr(answer, "status", None) == 206 else 0
            total = have + int(answer.headers.get("Content-Length") or 0)
            with part.open("ab" if have else "wb") as file:
                while block := answer.read(1 << 20):
                    file.write(block)
                    have += len(block)
                    watch(f"fetching {path.name}", have, total)
            if have < total:
                raise OSError(f"only {have} of {total} bytes came")
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError) and error.code == 416:
            part.unlink(missing_ok=True)  # more than the whole file: begin again next time
        raise OSError(
            f"could not get {url} ({error}); what has come is kept, the same command goes on from there. "
            f"Or fetch it another way, put it at {str(path)!r} and give the same command again"
            + (f" ({advice})" if advice else "")
        ) from error
    part.replace(path)


def md5_of(path: Path, watch: Watch) -> str:
    found, total, done = hashlib.md5(usedforsecurity=False), path.stat().st_size, 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            found.update(block)
            done += len(block)
            watch(f"checking {path.name}", done, total)
    return found.hexdigest()


def unpack(path: Path, folder: Path, step: Step) -> None:
    """An archive beside its place first, then moved there, what the step gives last."""
    beside = folder / f".{path.name}.unpacking"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        if path.name.endswith(".zip"):
            _unzip(path, beside, step.strip)
        else:
            with tarfile.open(path) as archive:
                archive.extractall(beside, members=_stripped(archive, step.strip), filter="data")
        into = folder / step.into
        if not into.exists():
            beside.replace(into)
            return
        first = PurePosixPath(step.gives).parts[0]
        for made in sorted(beside.iterdir(), key=lambda p: p.name == first):
            if not (into / made.name).exists():
                made.replace(into / made.name)
    except tarfile.FilterError as error:
        raise ValueError(f"{str(path)!r} would write outside its folder ({error}); it is not unpacked") from error
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{str(path)!r} is broken or no archive ({error}); remove it and give the same command again"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _stripped(archive: tarfile.TarFile, strip: int) -> Iterator[tarfile.TarInfo]:
    for member in archive:
        parts = PurePosixPath(member.name).parts
        if len(parts) > strip:
            name = str(PurePosixPath(*parts[strip:]))
            changed = member.replace(name=name, deep=False)
            if member.islnk():
                changed.linkname = str(PurePosixPath(*PurePosixPath(member.linkname).parts[strip:]))
            yield changed


def _unzip(path: Path, folder: Path, strip: int) -> None:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            parts = PurePosixPath(info.filename).parts
            unsafe = ".." in parts or info.filename.startswith(("/", "\\")) or ":" in info.filename
            if unsafe or "\\" in info.filename or stat.S_ISLNK(info.external_attr >> 16):
                raise ValueError(f"{str(path)!r} would write outside its folder ({info.filename}); it is not unpacked")
            if len(parts) <= strip or info.is_dir():
                continue
            place = folder.joinpath(*parts[strip:])
            os.makedirs(place.parent, exist_ok=True)
            with archive.open(info) as source, place.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
