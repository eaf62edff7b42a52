"""The splits of a table: what its cells name, and what is cut where it names none."""

from pathlib import Path

from vlprompt.data.dataset import ImageRecord, decode_text
from vlprompt.data.splits.names import SPLIT_CHOICES, parse_split_name
from vlprompt.data.splits.sampling import add_validation_split, split_per_class


def parse_part(value: object, where: str) -> str:
    """Return the split that a cell names; "all" where there is no column of splits."""
    value = decode_text(value)
    if value.strip().lower() == "all":
        return "all"
    if (part := parse_split_name(value)) is None:
        raise ValueError(f"{where}: split: expected {SPLIT_CHOICES}, got {value!r}. Correct the row.")
    return part


def complete_splits(records: dict[str, list[ImageRecord]], path: Path) -> tuple[dict[str, list[ImageRecord]], str]:
    """Split what has no splits, add val where it is missing; return the records and a note."""
    if "all" in records:
        return split_per_class(records["all"]), "each class cut 50:20:30 into train, val and test"
    if "test" not in records or "train" not in records:
        raise ValueError(
            f"{path}: split: expected both train and test, got {', '.join(sorted(records))}. Add rows of the other "
            "split."
        )
    return add_validation_split(records)
