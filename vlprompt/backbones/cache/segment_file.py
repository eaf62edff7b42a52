"""Segments: immutable files of float32 rows by digest, each row with a checksum.

Layout: header (magic, number of rows, shape, checksum of header and index), index (sorted digests as two arrays of
8 bytes each, then checksums), rows.
"""

import hashlib
import json
import math
import os
import platform
import struct
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

MAGIC, MAX_DIMS = b"vlprows1", 6
HEADER = struct.Struct(f"<8s{3 + MAX_DIMS}Q")  # magic, number of rows, dimensions, shape of a row, checksum
ENTRY_BYTES, FLOAT_BYTES = 24, 4  # bytes of an index entry (digest and checksum), and of a float32
SUFFIX, NODE = ".rows", hashlib.blake2b(platform.node().encode(), digest_size=4).hexdigest()  # NODE: this machine


class CorruptSegmentError(Exception):
    """A truncated or foreign file, or a wrong checksum."""


def hash_key(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=16).digest()


def checksum(key_digest: bytes, *parts: bytes | bytearray | memoryview) -> int:
    """Return the checksum of a row, keyed by its digest so that rows can't be swapped either."""
    row_hash = hashlib.blake2b(parts[0], digest_size=8, key=key_digest)
    for part in parts[1:]:
        row_hash.update(part)
    return int.from_bytes(row_hash.digest(), "little")


def split_digest(key_digest: bytes) -> tuple[int, int]:
    return int.from_bytes(key_digest[:8], "little"), int.from_bytes(key_digest[8:], "little")


class Segment:
    """An open segment.

    Raises:
        CorruptSegmentError: if the file is truncated or is no segment.
        OSError: if the file can't be read.
    """

    def __init__(self, path: Path):
        self.path, self.last_touched = path, 0.0
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        header = os.pread(self._file, HEADER.size, 0)
        if len(header) < HEADER.size or header[:8] != MAGIC:
            raise CorruptSegmentError("not a segment")
        self.n_rows, n_dims, *sizes, index_checksum = HEADER.unpack(header)[1:]
        self.shape = tuple(sizes[:n_dims])
        self.row_bytes = FLOAT_BYTES * math.prod(self.shape)
        self.rows_offset = HEADER.size + ENTRY_BYTES * self.n_rows
        self.size = self.rows_offset + self.row_bytes * self.n_rows
        if n_dims > MAX_DIMS or not self.n_rows or os.fstat(self._file).st_size != self.size:
            raise CorruptSegmentError("truncated")
        index = os.pread(self._file, ENTRY_BYTES * self.n_rows, HEADER.size)
        if checksum(b"", header[:-8], index) != index_checksum:
            raise CorruptSegmentError("wrong checksum of its index")
        halves = memoryview(index).cast("Q")
        self._first_halves, self._second_halves, self._checksums = (
            halves[k * self.n_rows : (k + 1) * self.n_rows] for k in range(3)
        )

    @property
    def first_halves(self) -> np.ndarray:
        """The first 8 bytes of each row's digest as integers, sorted."""
        return np.asarray(self._first_halves)

    def has(self, key_digest: bytes, index: int) -> bool:
        """Whether this is the digest of the row at an index."""
        return (self._first_halves[index], self._second_halves[index]) == split_digest(key_digest)

    def read_row(self, key_digest: bytes, index: int) -> bytearray:
        """Return a copy of the row at an index.

        Raises:
            CorruptSegmentError: if its checksum is wrong, as it also is if the row `has` another digest, or if the file
                can't be read there any more.
        """
        try:
            row = bytearray(os.pread(self._file, self.row_bytes, self.rows_offset + self.row_bytes * index))
        except OSError as error:
            raise CorruptSegmentError(str(error)) from error
        if len(row) < self.row_bytes:
            raise CorruptSegmentError("truncated")
        if checksum(key_digest, row) != self._checksums[index]:
            raise CorruptSegmentError("wrong checksum of a row")
        return row

    def iter_entries(self) -> Iterator[tuple[bytes, int]]:
        """Yield (digest, row index) in the order of digests."""
        for index in range(self.n_rows):
            halves = self._first_halves[index], self._second_halves[index]
            yield b"".join(half.to_bytes(8, "little") for half in halves), index

    def touch(self, now: float) -> None:
        """Record the last use, which decides on eviction, in the file's mtime; once a minute at most."""
        if now - self.last_touched > 60:
            self.last_touched = now
            with suppress(OSError):
                os.utime(self.path)


def write_segment(
    folder: Path, shape: Sequence[int], digests: Sequence[bytes], rows: Iterable[bytearray | memoryview]
) -> Path:
    """Write a new segment atomically (temporary file + rename) and return its path.

    There is no fsync: what a power cut leaves incomplete shows by its size or its checksums.

    Args:
        folder: the namespace's folder.
        shape: the shape of each row.
        digests: the rows' digests, in the order of `sort_digests`.
        rows: the rows' bytes, in the same order.
    """
    token = uuid4().hex[:16]
    part, path = folder / f".{NODE}-{os.getpid()}-{token}.part", folder / f"{token}{SUFFIX}"
    try:
        with part.open("wb") as file:
            fields = MAGIC, len(digests), len(shape), *shape, *[0] * (MAX_DIMS - len(shape))
            index = np.empty((3, len(digests)), "<u8")
            index[:2] = np.array([split_digest(digest) for digest in digests], "<u8").T
            file.seek(HEADER.size + index.nbytes)
            for i, row in enumerate(rows):
                file.write(row)
                index[2, i] = checksum(digests[i], row)
            file.seek(0)
            file.write(HEADER.pack(*fields, checksum(b"", HEADER.pack(*fields, 0)[:-8], index.tobytes())))
            file.write(index.tobytes())
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    return path


def sort_digests(digests: Iterable[bytes]) -> list[bytes]:
    return sorted(digests, key=split_digest)


def merge_segments(folder: Path, segments: Sequence[Segment]) -> tuple[Path | None, dict[Path, CorruptSegmentError]]:
    """Merge the intact rows of segments of one shape into a new segment.

    Returns:
        The new segment's path (None if no row is intact), and the error of each corrupt segment by its path.
    """
    locations, corrupt = dict[bytes, tuple[Segment, int]](), dict[Path, CorruptSegmentError]()
    for segment in segments:
        for digest, index in segment.iter_entries():
            try:
                segment.read_row(digest, index)
                locations[digest] = segment, index
            except CorruptSegmentError as error:
                corrupt[segment.path] = error
    digests = sort_digests(locations)
    rows = (segment.read_row(digest, index) for digest in digests for segment, index in [locations[digest]])
    return write_segment(folder, segments[0].shape, digests, rows) if digests else None, corrupt


def find_stale_parts(folder: Path, now: float) -> Iterator[Path]:
    """Yield part files that nobody will finish: of this machine's dead processes, and of other machines after a day."""
    for part in folder.glob(".*.part"):
        node, _, rest = part.name[1:].partition("-")
        process_id = rest.partition("-")[0]
        if node == NODE and process_id.isdigit() and os.name == "posix":
            if not is_process_alive(int(process_id)):
                yield part
        else:
            with suppress(OSError):
                if now - part.stat().st_mtime > 86400:
                    yield part


def is_process_alive(process_id: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def try_lock(root: Path) -> Iterator[bool]:
    """Tell whether this process is the only one to tidy the store."""
    from filelock import FileLock, Timeout

    lock = FileLock(root / ".lock", timeout=0, mode=0o666)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def iter_segments(root: Path) -> Iterator[tuple[os.stat_result, Path]]:
    """Yield the stat and path of each segment in a disk cache."""
    for path in root.glob(f"*-*/*{SUFFIX}"):
        with suppress(FileNotFoundError):  # merged by another process meanwhile
            yield path.stat(), path


def read_metadata(path: Path) -> dict[str, Any]:
    """Return a namespace's metadata; {} if the file is broken."""
    try:
        metadata = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def write_metadata(folder: Path, metadata: dict[str, Any]) -> None:
    """Write a namespace's metadata atomically, unless it is there."""
    path, part = folder / "metadata.json", folder / f".{NODE}-{os.getpid()}-metadata.part"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(metadata, indent=1) + "\n", "utf-8")
        part.replace(path)
