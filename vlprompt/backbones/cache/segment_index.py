"""One sorted index over the rows of many segments, so that a lookup takes as long in a hundred files as in one."""

from collections.abc import Iterator, Sequence

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
        self.segments = tuple(segments)
        *starts, n_rows = np.cumsum([0, *(segment.n_rows for segment in segments)]).tolist()
        row_bits = n_rows.bit_length()
        self._starts, self._row_mask = np.array(starts, np.uint64), np.uint64(2**row_bits - 1)
        entries = np.arange(n_rows, dtype=np.uint64)
        for segment, start in zip(segments, starts, strict=True):
            entries[start : start + segment.n_rows] |= segment.first_halves & ~self._row_mask
        entries.sort()
        n_buckets = 2 ** max(1, (n_rows // ROWS_PER_BUCKET).bit_length())
        self._bucket_shift = np.uint64(65 - n_buckets.bit_length())
        begins = entries.searchsorted(np.arange(n_buckets, dtype=np.uint64) << self._bucket_shift)
        self._entries, self._begins = entries, begins.astype(np.uint32)
        self._bucket = np.arange(np.diff(begins, append=n_rows).max())  # places in the largest one

    def find(self, digests: Sequence[bytes]) -> Iterator[tuple[int, Segment, int]]:
        """Yield (number of the digest, segment, index of the row) of all rows whose digests begin like one of these.

        A place may come twice.
        """
        firsts = np.frombuffer(b"".join(digests), "<u8")[::2]
        begins = self._begins[firsts >> self._bucket_shift]
        entries = self._entries.take(begins[:, None] + self._bucket, mode="clip")  # more than a bucket does no harm
        digest_numbers, columns = ((entries ^ firsts[:, None]) <= self._row_mask).nonzero()
        rows = entries[digest_numbers, columns] & self._row_mask
        numbers = self._starts.searchsorted(rows, "right") - 1
        indices = rows - self._starts[numbers]
        for digest_number, k, index in zip(digest_numbers.tolist(), numbers.tolist(), indices.tolist(), strict=True):
            yield digest_number, self.segments[k], index
