"""Feature cache on the disk, shared by runs and processes and bounded by bytes.

The cache is a folder of namespaces. A namespace has the features of one tower, preprocessing and device type;
its metadata.json has these and the feature of a fixed probe input, so that towers of one name that compute different
features get different namespaces. The cache is optional: files that are corrupt, full or not permitted cost a warning,
and their features are recomputed.
"""

import atexit
import json
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlprompt.backbones.cache.segment_file import (
    ENTRY_BYTES,
    SUFFIX,
    CorruptSegmentError,
    Segment,
    find_stale_parts,
    hash_key,
    iter_segments,
    merge_segments,
    read_metadata,
    sort_digests,
    try_lock,
    write_metadata,
    write_segment,
)
from vlprompt.backbones.cache.segment_index import SegmentIndex
from vlprompt.runtime.settings import DEFAULT_CACHE_BYTES

FORMAT_VERSION = 2  # to be raised whenever decoding or a tower changes the features of an item
FLUSH_BYTES, FLUSH_SECONDS = 64 * 2**20, 30.0  # pending bytes and seconds after which new features are written
SCAN_SECONDS = 1.0  # between two looks for segments of other processes
MAX_SMALL_SEGMENTS = 16  # more segments of one shape are merged into one
LARGE_SEGMENT_BYTES = 256 * 2**20  # bytes from which a segment is not merged any more
EVICTION_MIN_AGE = 3600.0  # seconds since its last use before a segment may be evicted
PROBE_TOLERANCE = 1e-5  # relative difference of two probes of one tower: sums in another order on other threads


class DiskCache:
    """Feature cache in a folder, bounded by `max_bytes`. Evicts the least recently used segments.

    Args:
        root: the folder; it need not exist.
        max_bytes: the bound on all segments together, those of other processes included.
    """

    def __init__(self, root: Path, max_bytes: int = DEFAULT_CACHE_BYTES):
        self.root, self.max_bytes, self.is_writable = root, max_bytes, True
        self._namespaces = list[CacheNamespace]()
        atexit.register(_flush_at_exit, weakref.ref(self))

    def __del__(self) -> None:
        self.flush()

    def flush(self) -> None:
        """Write pending features of all namespaces."""
        for namespace in self._namespaces:
            namespace.flush()

    def register(self, namespace: "CacheNamespace") -> None:
        self._namespaces.append(namespace)

    def stop_writing(self, error: Exception) -> None:
        """Stop writing after an error, with one warning."""
        if self.is_writable:
            self.is_writable = False
            _warn(
                f"feature cache {str(self.root)!r}: writing failed ({error}), so new features are not cached. "
                "Make room, permit writing, or name another folder or 'none' with --feature-cache."
            )

    def make_room(self, n_bytes: int) -> bool:
        """Evict the least recently used segments to fit n_bytes more; return whether they fit."""
        segments = sorted(iter_segments(self.root), key=lambda entry: entry[0].st_mtime)
        total, now = n_bytes + sum(stat.st_size for stat, _ in segments), time.time()
        for stat, path in segments:
            if total <= self.max_bytes or now - stat.st_mtime < EVICTION_MIN_AGE:
                break
            path.unlink(missing_ok=True)
            total -= stat.st_size
        return total <= self.max_bytes

    def mark_full(self) -> None:
        """Stop writing to a full cache, with one warning."""
        if self.is_writable:
            self.is_writable = False
            _warn(
                f"feature cache {str(self.root)!r}: its {self.max_bytes / 1e9:g} GB are full of features used in the "
                "last hour, so new features are not cached. Set VLPROMPT_FEATURE_CACHE_GB to more."
            )


class CacheNamespace:
    """The features of one tower, preprocessing and device type in a disk cache.

    Args:
        disk_cache: the cache that the namespace belongs to.
        metadata: all that the features depend on; JSON values.
        probe: computes the feature of a fixed input, which identifies the computation. Called at the first access.
        device: the device of the features returned.
    """

    def __init__(
        self, disk_cache: DiskCache, metadata: dict[str, Any], probe: Callable[[], Tensor], device: torch.device
    ):
        self.disk_cache, self.metadata, self.device = disk_cache, metadata, device
        self.folder: Path | None = None
        self._probe: Callable[[], Tensor] | None = probe
        self._segments, self._pending = dict[Path, Segment](), dict[bytes, Tensor]()
        self._index: SegmentIndex | None = None
        self._ignored_paths = set[Path]()
        self._pending_bytes, self._pending_since, self._last_scan, self._folder_mtime = 0, 0.0, 0.0, -1

    def get(self, key: str) -> Tensor | None:
        """Return the feature of a key, or None; never one with a wrong checksum."""
        return self.get_many([key]).get(key)

    def get_many(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """Return the features that are there, by key; never one with a wrong checksum."""
        self._locate_folder()
        digests = {key: hash_key(key) for key in keys}
        pending = {key: row for key, digest in digests.items() if (row := self._pending.get(digest)) is not None}
        found = pending | self._read(digests, pending)
        if len(found) < len(digests) and self._load_new_segments():
            found |= self._read(digests, found)
        return found

    def _read(self, digests: Mapping[str, bytes], known: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Read the features that are not known yet from the segments; replace segments that turn out to be corrupt.

        Args:
            digests: of all keys.
            known: features by key.
        """
        keys = [key for key in digests if key not in known] if known else list(digests)
        if not keys or not self._segments:
            return {}
        segments = tuple(self._segments.values())
        if self._index is None or self._index.segments != segments:
            self._index = SegmentIndex(segments)
        found, used, corrupt = dict[str, Tensor](), set[Segment](), dict[Segment, CorruptSegmentError]()
        for k, segment, index in self._index.find([digests[key] for key in keys]):
            if (key := keys[k]) in found:
                continue
            try:
                row = segment.read_row(digests[key], index)
            except CorruptSegmentError as error:
                if segment.has(digests[key], index):  # else the digests only begin alike
                    corrupt.setdefault(segment, error)
                continue
            found[key] = self._to_tensor(row, segment.shape)
            used.add(segment)
        for segment in used:
            segment.touch(time.time())
        for segment, error in corrupt.items():
            self._replace_segments([segment], error)
        return found

    def _to_tensor(self, row: bytearray, shape: tuple[int, ...]) -> Tensor:
        feature = torch.frombuffer(row, dtype=torch.float32)
        feature = feature if len(shape) == 1 else feature.reshape(shape)
        return feature if self.device.type == "cpu" else feature.to(self.device)

    def add(self, key: str, row: Tensor) -> None:
        """Add a float32 feature; it is written later, together with others."""
        self._locate_folder()
        if not self.disk_cache.is_writable or row.dtype != torch.float32:
            return
        self._pending[hash_key(key)], now = row.detach(), time.monotonic()
        self._pending_since = self._pending_since if self._pending_bytes else now
        self._pending_bytes += row.nbytes + ENTRY_BYTES
        if self._pending_bytes >= FLUSH_BYTES or now - self._pending_since >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write pending features, one segment per shape."""
        pending, self._pending, self._pending_bytes = self._pending, {}, 0
        if not pending or not self.disk_cache.is_writable or self.folder is None:
            return
        try:
            if not self.disk_cache.make_room(sum(row.nbytes + ENTRY_BYTES for row in pending.values())):
                self.disk_cache.mark_full()
                return
            write_metadata(self.folder, self.metadata)
            for shape in {row.shape for row in pending.values()}:
                digests = sort_digests(digest for digest, row in pending.items() if row.shape == shape)
                rows = (pending[d].cpu().contiguous().numpy().reshape(-1).view(np.uint8).data for d in digests)
                path = write_segment(self.folder, shape, digests, rows)
                self._segments[path] = Segment(path)
            self._clean_up(self.folder)
        except (OSError, CorruptSegmentError) as error:
            self.disk_cache.stop_writing(error)

    def _locate_folder(self) -> None:
        """Find the folder with this metadata and probe, or name a new one."""
        if self._probe is None:
            return
        probe, self._probe = self._probe().detach().flatten()[:64].tolist(), None
        base = json.dumps(self.metadata, sort_keys=True)
        self.metadata = self.metadata | {"probe": probe}
        self.disk_cache.register(self)
        start = hash_key(base).hex()[:16]
        candidates = sorted(self.disk_cache.root.glob(f"{start}-*/metadata.json"))
        matching = (p.parent for p in candidates if _is_same_probe(probe, read_metadata(p).get("probe", [])))
        new = self.disk_cache.root / f"{start}-{hash_key(repr(probe)).hex()[:8]}"
        self.folder = next(matching, new)
        self._load_new_segments()

    def _load_new_segments(self) -> list[Segment]:
        """Open segments written by other processes since the last call; scans the folder every SCAN_SECONDS at most."""
        now = time.monotonic()
        if self.folder is None or now - self._last_scan < SCAN_SECONDS:
            return []
        self._last_scan = now
        try:
            mtime = self.folder.stat().st_mtime_ns
            if mtime == self._folder_mtime:
                return []
            self._folder_mtime, paths = mtime, set(self.folder.glob(f"*{SUFFIX}"))
        except OSError:  # the folder does not exist yet
            return []
        self._segments = {path: segment for path, segment in self._segments.items() if path in paths}
        new_paths = sorted(paths - self._segments.keys() - self._ignored_paths)
        segments = {path: segment for path in new_paths if (segment := self._open_segment(path)) is not None}
        self._segments |= segments
        return list(segments.values())

    def _open_segment(self, path: Path) -> Segment | None:
        try:
            return Segment(path)
        except FileNotFoundError:  # merged by another process meanwhile
            return None
        except (CorruptSegmentError, OSError) as error:
            self._discard_segment(path, error)
            return None

    def _discard_segment(self, path: Path, error: Exception | None = None) -> None:
        """Forget a segment and remove its file, unless the system refused to read it; warn if there was an error."""
        self._segments.pop(path, None)
        self._ignored_paths.add(path)
        if not isinstance(error, OSError):
            with suppress(OSError):
                path.unlink(missing_ok=True)
        if error is not None:
            _warn(
                f"feature cache: {str(path)!r} is broken ({error}), so its lost features are recomputed. Nothing is "
                "to do."
            )

    def _replace_segments(self, segments: list[Segment], error: CorruptSegmentError | None = None) -> None:
        """Merge the intact rows of segments into one new segment; `error` is a known defect of the first."""
        corrupt, merged = dict[Path, CorruptSegmentError](), None
        try:
            if self.disk_cache.is_writable:
                merged, corrupt = merge_segments(segments[0].path.parent, segments)
        except (OSError, CorruptSegmentError) as write_error:
            self.disk_cache.stop_writing(write_error)
            segments = [] if error is None else segments
        corrupt |= {} if error is None else {segments[0].path: error}
        for segment in segments:
            self._discard_segment(segment.path, corrupt.get(segment.path))
        self._segments |= {} if merged is None else {merged: Segment(merged)}

    def _clean_up(self, folder: Path) -> None:
        """Remove part files of dead processes and merge small segments, unless another process is at it."""
        with try_lock(self.disk_cache.root) as is_locked:
            if not is_locked:
                return
            for part in find_stale_parts(folder, time.time()):
                part.unlink(missing_ok=True)
            self._last_scan = 0.0
            self._load_new_segments()
            for shape in {segment.shape for segment in self._segments.values()}:
                small = [s for s in self._segments.values() if s.shape == shape and s.size < LARGE_SEGMENT_BYTES]
                if len(small) > MAX_SMALL_SEGMENTS:
                    self._replace_segments(small)


def _is_same_probe(probe: list[float], other_probe: list[float]) -> bool:
    a, b = np.array(probe), np.array(other_probe)
    return a.shape == b.shape and bool(np.abs(b - a).max() <= PROBE_TOLERANCE * np.abs(a).max())


def _flush_at_exit(cache_ref: weakref.ref[DiskCache]) -> None:
    if (cache := cache_ref()) is not None:
        cache.flush()


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=2)
