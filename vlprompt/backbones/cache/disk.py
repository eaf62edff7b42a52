"""Frozen features on the disk: computed once, shared by runs and processes, never more than a bound.

A store is a folder of shelves. A shelf holds what one tower makes of one look on one kind of device; its about.json
says so, with the feature of a fixed input, so that towers that are called alike but compute another thing have shelves
of their own. Nothing here is needed: what is broken, full or not permitted costs a warning and is computed anew.
"""

import atexit
import json
import time
import warnings
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlprompt.backbones.cache.segment_file import (
    EACH,
    SUFFIX,
    Broken,
    Segment,
    alone,
    digest,
    every_segment,
    in_order,
    leftovers,
    merge,
    read_about,
    write,
    write_about,
)

FORMAT = 1  # goes up whenever pixels or towers change what they make of an item
MOST = 10 * 10**9  # bytes
PART, WAIT = 64 * 2**20, 30.0  # bytes, seconds: when what is new is written, if nobody asks before
MANY, LARGE = 16, 256 * 2**20  # so many segments are made one; those of so many bytes are left alone
FRESH = 3600.0  # seconds: what was used since is not put out
NEAR = 1e-5  # relative: how far the fixed input's feature may be off, by the order of sums on other threads


class Store:
    """A folder of shelves of at most `most` bytes; what was used longest ago goes first."""

    def __init__(self, root: Path, most: int = MOST):
        self.root, self.most, self.writes = root, most, True
        self._open = list[Shelf]()
        atexit.register(_at_exit, weakref.ref(self))

    def __del__(self) -> None:
        self.flush()

    def flush(self) -> None:
        """Write what is new."""
        for shelf in self._open:
            shelf.flush()

    def opened(self, shelf: "Shelf") -> None:
        self._open.append(shelf)

    def stop(self, error: Exception) -> None:
        """Go on without writing; said once."""
        if self.writes:
            self.writes = False
            _warn(
                f"features can't be kept in {str(self.root)!r} ({error}): the run goes on and "
                "computes them; make room, permit writing, or name another folder or none by --features"
            )

    def room(self, wanted: int) -> bool:
        """Whether so many bytes more fit, after what was not used for longest is gone."""
        every = sorted(every_segment(self.root), key=lambda one: one[0].st_mtime)
        total, now = wanted + sum(stat.st_size for stat, _ in every), time.time()
        for stat, path in every:
            if total <= self.most or now - stat.st_mtime < FRESH:
                break
            path.unlink(missing_ok=True)
            total -= stat.st_size
        return total <= self.most

    def full(self) -> None:
        if self.writes:
            self.writes = False
            _warn(
                f"the features of this run don't fit into the {self.most / 1e9:g} GB of {str(self.root)!r}, which were "
                "all used in the last hour: new ones are not kept; set VLPROMPT_FEATURES_GB to more"
            )


class Shelf:
    """Features of one tower; `about` is what they depend on, `probe` makes that of a fixed input."""

    def __init__(self, store: Store, about: dict[str, Any], probe: Callable[[], Tensor], device: torch.device):
        self.store, self.about, self.device = store, about, device
        self.folder: Path | None = None
        self._probe: Callable[[], Tensor] | None = probe
        self._segments, self._new = dict[Path, Segment](), dict[bytes, Tensor]()
        self._left = set[Path]()
        self._bytes, self._since, self._looked, self._changed = 0, 0.0, 0.0, -1

    def get(self, key: str) -> Tensor | None:
        """The row of a key, or None; never one whose checksum is wrong."""
        self._find()
        name = digest(key)
        if (new := self._new.get(name)) is not None:
            return new
        found = self._among(list(self._segments.values()), name)
        return self._among(self._arrived(), name) if found is None else found

    def _among(self, segments: list[Segment], name: bytes) -> Tensor | None:
        for segment in segments:
            try:
                row = segment.get(name)
            except Broken as error:
                self._replace([segment], error)
                continue
            if row is not None:
                segment.use(time.time())
                return torch.frombuffer(row, dtype=torch.float32).reshape(segment.shape).to(self.device)
        return None

    def add(self, key: str, row: Tensor) -> None:
        """Keep a row; it is written later, with others."""
        self._find()
        if not self.store.writes or row.dtype != torch.float32:
            return
        self._new[digest(key)], now = row.detach(), time.monotonic()
        self._since = self._since if self._bytes else now
        self._bytes += row.nbytes + EACH
        if self._bytes >= PART or now - self._since >= WAIT:
            self.flush()

    def flush(self) -> None:
        """Write what is new, one segment for each shape."""
        new, self._new, self._bytes = self._new, {}, 0
        if not new or not self.store.writes or self.folder is None:
            return
        try:
            if not self.store.room(sum(row.nbytes + EACH for row in new.values())):
                self.store.full()
                return
            write_about(self.folder, self.about)
            for shape in {row.shape for row in new.values()}:
                names = in_order(name for name, row in new.items() if row.shape == shape)
                rows = (new[name].cpu().contiguous().numpy().reshape(-1).view(np.uint8).data for name in names)
                path = write(self.folder, shape, names, rows)
                self._segments[path] = Segment(path)
            self._tidy(self.folder)
        except (OSError, Broken) as error:
            self.store.stop(error)

    def _find(self) -> None:
        """The folder of a tower that makes the same of the fixed input; a new one where there is none."""
        if self._probe is None:
            return
        made, self._probe = self._probe().detach().flatten()[:64].tolist(), None
        self.about = self.about | {"probe": made}
        base, mine = json.dumps({k: v for k, v in self.about.items() if k != "probe"}, sort_keys=True), np.array(made)
        self.store.opened(self)
        start = digest(base).hex()[:16]
        for path in sorted(self.store.root.glob(f"{start}-*/about.json")):
            other = np.array(read_about(path).get("probe", []))
            if other.shape == mine.shape and np.abs(other - mine).max() <= NEAR * np.abs(mine).max():
                self.folder = path.parent
                break
        else:
            self.folder = self.store.root / f"{start}-{digest(repr(made)).hex()[:8]}"
        self._arrived()

    def _arrived(self) -> list[Segment]:
        """Segments that others have written since; looked for once a second at most."""
        now = time.monotonic()
        if self.folder is None or now - self._looked < 1:
            return []
        self._looked = now
        try:
            changed = self.folder.stat().st_mtime_ns
            if changed == self._changed:
                return []
            self._changed, here = changed, set(self.folder.glob(f"*{SUFFIX}"))
        except OSError:  # there is no such folder yet
            return []
        self._segments = {path: segment for path, segment in self._segments.items() if path in here}
        opened = {path: self._opened(path) for path in sorted(here - self._segments.keys() - self._left)}
        found = {path: segment for path, segment in opened.items() if segment is not None}
        self._segments |= found
        return list(found.values())

    def _opened(self, path: Path) -> Segment | None:
        try:
            return Segment(path)
        except FileNotFoundError:  # made one with others meanwhile
            return None
        except (Broken, OSError) as error:
            self._leave(path, error)
            return None

    def _leave(self, path: Path, error: Exception | None = None) -> None:
        """A file is not read any more, and goes, but for one that is not ours to read; error: what is wrong with it."""
        self._segments.pop(path, None)
        self._left.add(path)
        if not isinstance(error, OSError):
            with suppress(OSError):
                path.unlink(missing_ok=True)
        if error is not None:
            _warn(f"the file of features {str(path)!r} is broken ({error}): what it can't give is computed again")

    def _replace(self, old: list[Segment], error: Broken | None = None) -> None:
        """One segment of the good rows of several; error: what is known to be wrong with the first."""
        broken, made = dict[Path, Broken](), None
        try:
            made, broken = merge(old[0].path.parent, old) if self.store.writes else (None, broken)
        except (OSError, Broken) as problem:
            self.store.stop(problem)
            old = [] if error is None else old
        broken |= {} if error is None else {old[0].path: error}
        for segment in old:
            self._leave(segment.path, broken.get(segment.path))
        self._segments |= {} if made is None else {made: Segment(made)}

    def _tidy(self, folder: Path) -> None:
        """What dead processes left goes, and many small segments become one."""
        with alone(self.store.root) as mine:
            if not mine:
                return
            for part in leftovers(folder, time.time()):
                part.unlink(missing_ok=True)
            self._looked = 0.0
            self._arrived()
            for shape in {segment.shape for segment in self._segments.values()}:
                some = [s for s in self._segments.values() if s.shape == shape and s.size < LARGE]
                if len(some) > MANY:
                    self._replace(some)


def _at_exit(store: weakref.ref[Store]) -> None:
    if (alive := store()) is not None:
        alive.flush()


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=2)
