"""The report of a dataset's inspection, and the splits that it counts."""

from dataclasses import dataclass, field

from vlprompt.core.batch import Split
from vlprompt.data.dataset import Data
from vlprompt.data.splits.names import SPLIT_NAMES


@dataclass(frozen=True)
class DatasetReport:
    """What an inspection found.

    Args:
        data: the opened dataset.
        counts: items of each split.
        expected_counts: what the card says.
        missing_classes: names of classes without items.
        broken_files: images that cannot be decoded.
        problems: what keeps the data from being the dataset of the card.
        remarks: what a user should know.
    """

    data: Data
    counts: dict[str, int]
    expected_counts: dict[str, int]
    missing_classes: tuple[str, ...] = ()
    broken_files: tuple[str, ...] = ()
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def nonempty_splits(data: Data) -> dict[str, Split]:
    """Return the splits that have items."""
    return {part: split for part in SPLIT_NAMES if (split := getattr(data, part)) is not None and len(split)}
