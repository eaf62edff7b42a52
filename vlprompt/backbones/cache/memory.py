"""In-memory feature cache of a frozen tower, backed by the disk cache where there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from vlprompt.core.images import is_persistent, persistent_key
from vlprompt.core.prompt import NOTHING, Prompt
from vlprompt.runtime.bounded_cache import BoundedCache

if TYPE_CHECKING:
    from vlprompt.backbones.cache.disk import CacheNamespace

DEFAULT_MAX_BYTES = 2**31  # bytes


@dataclass
class CacheCounts:
    """Cache hits and misses of a tower and of all towers derived from it."""

    hits: int = 0
    misses: int = 0


class FeatureCache(BoundedCache[str, Tensor]):
    """In-memory feature cache bounded by `max_bytes`, with an optional namespace of the disk cache behind it.

    Only features whose keys are persistent go to the disk.

    Args:
        max_bytes: the bound on the bytes of all features in memory.
        counts: the hits and misses to continue; default: from 0.
    """

    def __init__(self, max_bytes: int = DEFAULT_MAX_BYTES, counts: CacheCounts | None = None):
        super().__init__(max_bytes)
        self.counts = counts or CacheCounts()
        self.disk_namespace: CacheNamespace | None = None
        self._open_namespace: Callable[[Any], CacheNamespace] | None = None
        self.unshared: dict[str, Tensor] | None = None  # computed since the last exchange with other processes, if any

    def new_with_namespace(self, open_namespace: Callable[[Any], CacheNamespace] | None, tower: Any) -> FeatureCache:
        """Return an empty cache for a tower, with the same counts and the disk namespace `open_namespace(tower)`."""
        cache = FeatureCache(self.max_bytes, self.counts)
        cache._open_namespace = open_namespace
        cache.disk_namespace = None if open_namespace is None else open_namespace(tower)
        return cache

    def new_for(self, tower: Any) -> FeatureCache:
        """Return an empty cache for a tower derived from this cache's tower, with the same weights."""
        return self.new_with_namespace(self._open_namespace, tower)

    def get_many(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """Return the features that are in memory or on the disk, by key, and count a hit for each key that has one."""
        keys = list(keys)
        features = {key: feature for key in keys if (feature := self.lookup(key)) is not None}
        missing = [key for key in keys if key not in features and is_persistent(key)]
        if self.disk_namespace is not None and missing:
            for key, feature in self.disk_namespace.get_many(missing).items():
                self.insert(key, feature)
                features[key] = feature
        self.counts.hits += sum(key in features for key in keys)
        return features

    def add_computed(self, key: str, tensor: Tensor) -> None:
        """Add a feature computed after a miss, for other processes and the disk too, and count the miss."""
        self.counts.misses += 1
        self.add(key, tensor)
        if self.unshared is not None:
            self.unshared[key] = tensor
        if self.disk_namespace is not None and is_persistent(key):
            self.disk_namespace.add(key, tensor)

    def add(self, key: str, tensor: Tensor) -> None:
        """Add a feature that was computed elsewhere, to memory only."""
        self.insert(key, tensor)

    def flush(self) -> None:
        """Write pending features of all towers that share the disk cache."""
        if self.disk_namespace is not None:
            self.disk_namespace.disk_cache.flush()


class CachedTextTower(Protocol):
    """A text tower whose `__call__` is wrapped by `cache_fixed_texts`."""

    key: str
    device: torch.device
    disk_namespace: CacheNamespace | None


def cache_fixed_texts(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wrap the `__call__` of a text tower to look up fixed texts in the disk cache, one entry per list of texts.

    An entry is a whole list, so its bits are those of this very list. Calls under autocast or with gradients are
    passed through, as their numbers may differ.
    """

    @wraps(call)
    def cached_call(self: Any, texts: Sequence[str], prompt: Prompt = NOTHING, output: str = "pooled") -> Tensor:
        namespace: CacheNamespace | None = getattr(self, "disk_namespace", None)
        if namespace is None or prompt or torch.is_grad_enabled() or torch.is_autocast_enabled(self.device.type):
            return call(self, texts, prompt, output)
        key = persistent_key(output, repr([str(text) for text in texts]))
        if (cached := namespace.get(key)) is not None:
            return cached.clone()
        features = call(self, texts, prompt, output)
        namespace.add(key, features.clone())
        return features

    return cached_call
