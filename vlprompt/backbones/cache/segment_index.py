"""One sorted index over the rows of many segments, so that a lookup takes as long in a hundred files as in one."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np

from vlprompt.backbones.cache.segment_file import Segment

ROWS_PER_BUCKET = 8  # on average; a cache line


class SegmentIndex:
    """Where the rows with a digest are, in any of some segments.

    An entry is one integer of 64 bits: the first bits of a digest, and in the low bits the number of its row among the
    rows of all segments. So a sort of plain integers builds the index, and it has 8 bytes per row. Digests are uniform,
    so that their first bits tell a bucket of few entries.

    Args:
        segments: open segments; a digest may be in several.
    """

    def __init__(self, segments: Sequence[Segment]):
        self.segments, self._starts, n_rows = tuple(segments), list[int](), 0
        for segment in segments:
            self._starts.append(n_rows)
            n_rows += segment.n_rows
        self._row_mask = 2 ** n_rows.bit_length() - 1
        entries, digest_mask = np.arange(n_rows, dtype=np.uint64), np.uint64(2**64 - 1 - self._row_mask)
        for segment, start in zip(segments, self._starts, strict=True):
            entries[start : start + segment.n_rows] |= segment.first_halves & digest_mask
        entries.sort()
        n_bits = max(1, (n_rows // ROWS_PER_BUCKET).bit_length())
        self._bucket_shift = 64 - n_bits
        bounds = entries.searchsorted(np.arange(2**n_bits, dtype=np.uint64) << np.uint64(self._bucket_shift))
        self._entries, self._bounds = entries.data, np.append(bounds, n_rows).astype(np.uint32).data

    def find(self, key_digest: bytes) -> list[tuple[Segment, int]]:
        """Return (segment, index of the row) of all rows whose digests begin like this one."""
        first, places = int.from_bytes(key_digest[:8], "little"), list[tuple[Segment, int]]()
        bucket, last = first >> self._bucket_shift, first | self._row_mask
        entry = bisect_left(self._entries, last - self._row_mask, self._bounds[bucket], self._bounds[bucket + 1])
        while entry < len(self._entries) and self._entries[entry] <= last:
            row = self._entries[entry] & self._row_mask
            segment = bisect_right(self._starts, row) - 1
            places.append((self.segments[segment], row - self._starts[segment]))
            entry += 1
        return places
