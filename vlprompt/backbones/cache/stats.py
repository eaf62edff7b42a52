"""Cache hits and misses of a run: its seconds mean little without them."""

from collections.abc import Sequence

from vlprompt.core.towers import FeatureStore


class CacheStats:
    """Cache hits and misses of a run, one per image and augmentation, across resumes.

    Args:
        feature_cache: the feature cache of the run's tower, or None.
        previous: misses and hits from before the run was interrupted.
    """

    def __init__(self, feature_cache: FeatureStore | None, previous: Sequence[int]):
        self.feature_cache, self.offsets = feature_cache, [0, 0]
        self.offsets = [before - now for before, now in zip(previous, self.counts(), strict=True)]

    def counts(self) -> list[int]:
        """Return [misses, hits]."""
        counts = None if self.feature_cache is None else self.feature_cache.counts
        current = [0, 0] if counts is None else [counts.misses, counts.hits]
        return [offset + count for offset, count in zip(self.offsets, current, strict=True)]

    def cost(self) -> dict[str, int]:
        """Return the counts under their keys in a result's cost."""
        return dict(zip(("feature_cache_misses", "feature_cache_hits"), self.counts(), strict=True))

    def flush(self) -> None:
        """Write pending features to the disk cache, if there is one."""
        if self.feature_cache is not None:
            self.feature_cache.flush()
