"""Looking at a dataset: what is there against what its card says, and a few of its images."""

from dataclasses import dataclass, field

from vlprompt.core.batch import Split
from vlprompt.data.dataset import Data

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Report:
    """What was found. wrong: what keeps it from being the dataset of the card; told: what one should know."""

    data: Data
    counts: dict[str, int]
    expected: dict[str, int]
    missing: tuple[str, ...] = ()  # names of classes without images
    broken: tuple[str, ...] = ()
    wrong: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)


def splits(data: Data) -> dict[str, Split]:
    """Those parts that have images."""
    return {part: split for part in PARTS if (split := getattr(data, part)) is not None and len(split)}
