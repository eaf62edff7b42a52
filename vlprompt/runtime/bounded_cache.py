"""In-memory cache bounded by bytes, with random eviction."""

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Generic, Protocol, TypeVar

ENTRY_OVERHEAD_BYTES = 700  # bytes of a key and of an array's or a tensor's own objects, as measured


class HasBytes(Protocol):
    @property
    def nbytes(self) -> int: ...


Key = TypeVar("Key")
Entry = TypeVar("Entry", bound=HasBytes)


class BoundedCache(Generic[Key, Entry]):
    """In-memory cache bounded by `max_bytes`.

    Evicts at random: LRU would evict exactly what the next epoch reads first.

    Args:
        max_bytes: the bound on `used_bytes`, the size of all entries with their overhead.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes, self.used_bytes = max_bytes, 0
        self._entries, self._keys, self._random = dict[Key, Entry](), list[Key](), Random(0)
        self._used: dict[Key, int] | None = None  # bytes of the entries in use, while that is recorded

    def __len__(self) -> int:
        return len(self._entries)

    def lookup(self, key: Key) -> Entry | None:
        entry = self._entries.get(key)
        if entry is not None and self._used is not None:
            self._used[key] = entry.nbytes + ENTRY_OVERHEAD_BYTES
        return entry

    def insert(self, key: Key, entry: Entry) -> None:
        """Add an entry, unless the key is there, and evict others; the newest entry stays, however large it is."""
        if key in self._entries:
            return
        self._entries[key] = entry
        self._keys.append(key)
        self.used_bytes += entry.nbytes + ENTRY_OVERHEAD_BYTES
        if self._used is not None:
            self._used[key] = entry.nbytes + ENTRY_OVERHEAD_BYTES
        self._evict(min_entries=1)

    @contextmanager
    def record_use(self) -> Iterator[dict[Key, int]]:
        """Record the entries that are looked up or added in the with-block: key -> bytes with their overhead."""
        previous, self._used = self._used, {}
        try:
            yield self._used
        finally:
            self._used = previous

    def set_max_bytes(self, max_bytes: int) -> None:
        """Change the bound and evict down to it; 0 empties the cache."""
        self.max_bytes = max_bytes
        self._evict()

    def _evict(self, min_entries: int = 0) -> None:
        while self.used_bytes > self.max_bytes and len(self._keys) > min_entries:
            i = self._random.randrange(max(1, len(self._keys) - 1))  # never the newest while there are others
            self._keys[i], self._keys[-1] = self._keys[-1], self._keys[i]
            self.used_bytes -= self._entries.pop(self._keys.pop()).nbytes + ENTRY_OVERHEAD_BYTES
