"""How many features a run had to compute, and how many were there: its seconds mean little without."""

from collections.abc import Sequence
from typing import Any


class Counted:
    """How often a run had to compute a feature of its frozen tower, and how often one was there; of views each.

    kept: what the tower keeps, None where it keeps nothing; before: both numbers from before the run was stopped.
    """

    def __init__(self, kept: Any, before: Sequence[int]):
        self.kept, self.before = kept, [0, 0]
        self.before = [told - now for told, now in zip(before, self.counts(), strict=True)]

    def counts(self) -> list[int]:
        now = [0, 0] if self.kept is None else [self.kept.counts.computed, self.kept.counts.found]
        return [was + more for was, more in zip(self.before, now, strict=True)]

    def cost(self) -> dict[str, int]:
        return dict(zip(("features_computed", "features_found"), self.counts(), strict=True))

    def flush(self) -> None:
        """Write new features to the disk, where they are kept there."""
        if self.kept is not None:
            self.kept.flush()
