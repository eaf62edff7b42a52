"""Segments: immutable files of rows by digest, each row with a checksum, memory-mapped for reading.

A header (magic, number of rows, shape, a checksum of itself and the index), then the index (digests in order, as two
arrays of 8 bytes, and checksums), then the rows.
"""

import hashlib
import json
import math
import mmap
import os
import platform
import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

MAGIC, MOST_DIMS = b"vlprows1", 6
HEADER = struct.Struct(f"<8s{3 + MOST_DIMS}Q")  # magic, rows, dimensions, the shape of a row, checksum
EACH, NUMBER = 24, 4  # bytes of an entry besides its row, and of a number (float32)
SUFFIX, NODE = ".rows", hashlib.blake2b(platform.node().encode(), digest_size=4).hexdigest()  # NODE: this machine


class Broken(Exception):
    """A file that is no whole segment, or a row that is not what was written."""


def digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=16).digest()


def checksum(name: bytes, *parts: bytes | memoryview) -> int:
    """Of a row under its digest, so that no row stands for another either."""
    made = hashlib.blake2b(digest_size=8, key=name)
    for part in parts:
        made.update(part)
    return int.from_bytes(made.digest(), "little")


def halves(name: bytes) -> tuple[int, int]:
    return int.from_bytes(name[:8], "little"), int.from_bytes(name[8:], "little")


class Segment:
    """A segment that is open. Raises Broken for a file that is not whole, OSError for one that can't be read."""

    def __init__(self, path: Path):
        self.path, self.touched = path, 0.0
        with path.open("rb") as file:
            head = file.read(HEADER.size)
            if len(head) < HEADER.size or head[:8] != MAGIC:
                raise Broken("it is no segment")
            self.rows, dims, *sides, check = HEADER.unpack(head)[1:]
            self.shape = tuple(sides[:dims])
            self.each = NUMBER * math.prod(self.shape)
            self.begin = HEADER.size + EACH * self.rows
            self.size = self.begin + self.each * self.rows
            if dims > MOST_DIMS or not self.rows or os.fstat(file.fileno()).st_size != self.size:
                raise Broken("it is truncated")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if checksum(b"", head[:-8], self._map[HEADER.size : self.begin]) != check:
            raise Broken("its index is not what was written")
        numbers = memoryview(self._map)[HEADER.size : self.begin].cast("Q")
        self._first, self._second, self._checks = (numbers[k * self.rows : (k + 1) * self.rows] for k in range(3))

    def get(self, name: bytes) -> bytearray | None:
        """A copy of a row, or None; Broken where its checksum is another."""
        if self._map.size() != self.size:  # someone cut it since: reading would end the process
            raise Broken("it is truncated")
        first, second = halves(name)
        place = bisect_left(self._first, first)
        while place < self.rows and self._first[place] == first:
            if self._second[place] == second:
                return bytearray(self._checked(name, place))
            place += 1
        return None

    def _checked(self, name: bytes, place: int) -> bytes:
        begin = self.begin + self.each * place
        row = self._map[begin : begin + self.each]
        if checksum(name, row) != self._checks[place]:
            raise Broken("a row is not what was written")
        return row

    def entries(self) -> Iterator[tuple[bytes, int]]:
        """Digests and places, in order."""
        for place in range(self.rows):
            yield self._first[place].to_bytes(8, "little") + self._second[place].to_bytes(8, "little"), place

    def row(self, name: bytes, place: int) -> bytes:
        if self._map.size() != self.size:
            raise Broken("it is truncated")
        return self._checked(name, place)

    def use(self, now: float) -> None:
        """Say, once a minute at most, that it was used: what was not for longest goes first."""
        if now - self.touched > 60:
            self.touched = now
            with suppress(OSError):
                os.utime(self.path)


def write(folder: Path, shape: Sequence[int], names: Sequence[bytes], rows: Iterable[bytes | memoryview]) -> Path:
    """A new segment of rows in the order of their digests (as `in_order` has it), whole or not at all.

    Nothing waits for the disk: what a power cut leaves half is known by its size or its checksums.
    """
    token = uuid4().hex[:16]
    part, path = folder / f".{NODE}-{os.getpid()}-{token}.part", folder / f"{token}{SUFFIX}"
    try:
        with part.open("wb") as file:
            head = MAGIC, len(names), len(shape), *shape, *[0] * (MOST_DIMS - len(shape))
            index = np.empty((3, len(names)), "<u8")
            index[:2] = np.array([halves(name) for name in names], "<u8").T
            file.seek(HEADER.size + index.nbytes)
            for place, row in enumerate(rows):
                file.write(row)
                index[2, place] = checksum(names[place], row)
            file.seek(0)
            file.write(HEADER.pack(*head, checksum(b"", HEADER.pack(*head, 0)[:-8], index.tobytes())))
            file.write(index.tobytes())
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    return path


def in_order(names: Iterable[bytes]) -> list[bytes]:
    return sorted(names, key=halves)


def merge(folder: Path, segments: Sequence[Segment]) -> tuple[Path | None, dict[Path, Broken]]:
    """One segment of the good rows of several of one shape, each once (None: there are none), and what was broken."""
    homes, broken = dict[bytes, tuple[Segment, int]](), dict[Path, Broken]()
    for segment in segments:
        for name, place in segment.entries():
            try:
                segment.row(name, place)
                homes[name] = segment, place
            except Broken as error:
                broken[segment.path] = error
    names = in_order(homes)
    rows = (segment.row(name, place) for name in names for segment, place in [homes[name]])
    return write(folder, segments[0].shape, names, rows) if names else None, broken


def leftovers(folder: Path, now: float) -> Iterator[Path]:
    """Parts that nobody will finish: of processes of this machine that are gone, and of others after a day."""
    for part in folder.glob(".*.part"):
        node, _, rest = part.name[1:].partition("-")
        number = rest.partition("-")[0]
        if node == NODE and number.isdigit() and os.name == "posix":
            if not _alive(int(number)):
                yield part
        else:
            with suppress(OSError):
                if now - part.stat().st_mtime > 86400:
                    yield part


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def alone(root: Path) -> Iterator[bool]:
    """Whether no other process is tidying this store; where the system has no locks, always."""
    try:
        import fcntl
    except ImportError:
        yield True
        return
    held = os.open(root / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(held)


def every_segment(root: Path) -> Iterator[tuple[os.stat_result, Path]]:
    """All segments of a store, each with what the system says of it."""
    for path in root.glob(f"*-*/*{SUFFIX}"):
        with suppress(FileNotFoundError):  # made one with others meanwhile
            yield path.stat(), path


def read_about(path: Path) -> dict[str, Any]:
    """What made a shelf's features; {} where the file is broken."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_about(folder: Path, about: dict[str, Any]) -> None:
    """Where there is none yet."""
    path, part = folder / "about.json", folder / f".{NODE}-{os.getpid()}-about.part"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(about, indent=1) + "\n", "utf-8")
        part.replace(path)
