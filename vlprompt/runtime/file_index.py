"""Content hashes of files, and an index that remembers them by what the file system says of a file."""

import hashlib
import os
import sqlite3
import time
from contextlib import closing, suppress
from functools import cache
from pathlib import Path

from vlprompt.runtime.settings import SETTINGS

INDEX_NAME = "files.sqlite"
SETTLE_NS = 2 * 10**9  # a file that changed less than this ago may change again within the same time stamp
BUSY_SECONDS = 30.0  # how long to wait for another process that writes the index
READ_BYTES = 2**20
Stamp = tuple[int, int, int, int]


def read_stamp(path: str | Path) -> Stamp:
    """Return size, modification time, change time and inode of a file.

    Tools that copy times (rsync -t, tar, touch -r) set the modification time, but none can set the change time.
    """
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def hash_file(path: str | Path) -> str:
    """Return the content hash of a file, or of all files below a folder with their relative paths."""
    if Path(path).is_dir():
        files = sorted(file for file in Path(path).rglob("*") if file.is_file())
        lines = (f"{file.relative_to(path).as_posix()} {get_content_hash(file)}\n" for file in files)
        return hashlib.blake2b("".join(lines).encode(errors="surrogateescape"), digest_size=16).hexdigest()
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while chunk := file.read(READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


class FileIndex:
    """Content hashes by path and stamp, in memory and in a file that processes share.

    A file is read once; it is read again when its stamp changes. An index that can't be read or written costs time
    only: the files are read again.

    Args:
        path: the SQLite file; None for memory only.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self._hashes = dict[tuple[str, Stamp], str]()
        self._new = dict[str, tuple[Stamp, str]]()
        self._is_loaded = False

    def get_content_hash(self, path: str | Path) -> str:
        """Return the content hash of a file or folder; OSError where it can't be read."""
        name = os.path.abspath(path)
        if os.path.isdir(name):
            return hash_file(name)
        key = name, read_stamp(name)
        if (known := self._hashes.get(key) or self._find(key)) is None:
            known = hash_file(name)
            if read_stamp(name) == key[1] and time.time_ns() - max(key[1][1:3]) > SETTLE_NS:
                self._hashes[key] = known
                self._new[name] = key[1], known
        return known

    def _find(self, key: tuple[str, Stamp]) -> str | None:
        """Look into what other processes left; all of it is read at the first look."""
        if not self._is_loaded and self.path is not None and not SETTINGS.verify_data:
            self._is_loaded = True
            if self.path.exists():
                with suppress(sqlite3.Error), closing(sqlite3.connect(self.path, timeout=BUSY_SECONDS)) as database:
                    rows = database.execute("SELECT path, size, mtime, ctime, inode, hash FROM files")
                    self._hashes = {(row[0], tuple(row[1:5])): row[5] for row in rows} | self._hashes
        return self._hashes.get(key)

    def flush(self) -> None:
        """Write what was read since the last call."""
        new, self._new = self._new, {}
        if not new or self.path is None:
            return
        with suppress(sqlite3.Error, OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=BUSY_SECONDS)) as database, database:
                database.execute(
                    "CREATE TABLE IF NOT EXISTS files "
                    "(path TEXT PRIMARY KEY, size INT, mtime INT, ctime INT, inode INT, hash TEXT)"
                )
                rows = [(name, *stamp, content) for name, (stamp, content) in new.items()]
                database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)", rows)


_open_index = cache(FileIndex)  # one for each path


def get_file_index() -> FileIndex:
    """Return the index beside the cached features of this process, in memory only where nothing is cached."""
    folder = SETTINGS.get_cache_folder()
    return _open_index(None if folder is None else folder / INDEX_NAME)


def get_content_hash(path: str | Path) -> str:
    """Return the content hash of a file or folder, by the index of this process; OSError where it can't be read."""
    return get_file_index().get_content_hash(path)
