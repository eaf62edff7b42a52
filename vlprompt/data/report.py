"""The report of a dataset's inspection, and the splits that it counts."""

from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from vlprompt.core.batch import Label, Split
from vlprompt.data.dataset import Data, shorten_list
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


def summarize_dataset(data: Data, max_names: int = 5) -> str:
    """Say in one line what was taken for a dataset: its classes, the sizes of its splits, its layout and the rule."""
    names, sizes = data.test.names, ", ".join(f"{part} {len(split):,}" for part, split in nonempty_splits(data).items())
    classes = f"{len(names)} classes ({shorten_list(names, max_names)})" if len(names) > 1 else "no classes"
    origin = data.origin if data.name in data.origin else f"{data.name} {data.origin}".strip()
    domains = data.test.info.get("domains")
    parts = [
        classes,
        f"{len(domains)} domains ({shorten_list(domains, max_names)})" if isinstance(domains, list) else "",
        sizes,
        f"layout {data.layout} ({data.rule})" if data.layout else "",
        shorten_list(data.note.split("; "), 3, "; "),
    ]
    return f"{origin}: {'; '.join(filter(None, parts))}"


def nonempty_splits(data: Data) -> dict[str, Split]:
    """Return the splits that have items."""
    return {part: split for part in SPLIT_NAMES if (split := getattr(data, part)) is not None and len(split)}


def describe_label(split: Split, label: Label) -> str:
    """Return the name of a label's class, or the names of several."""
    if not split.has_several_labels:
        return str(split.names[label])
    present = [str(name) for name, value in zip(split.names, label, strict=True) if value == 1]
    return shorten_list(present, 3, " + ") or "no label"


def find_duplicates(
    splits: dict[str, Split], get_content: Callable[[Any], Hashable], what: str
) -> tuple[list[str], list[str]]:
    """Find items of equal content.

    Args:
        splits: items by split.
        get_content: an item's content, or a hash of it; items for which it raises OSError are left out.
        what: what the lines call the items.

    Returns:
        Lines on items in two splits or in two classes, and lines on repeats within a class of a split.
    """
    places: dict[Hashable, list[tuple[str, str, str]]] = {}  # content -> split, class and name of each image
    for part, split in splits.items():
        for item, label in zip(split.items, split.labels, strict=True):
            with suppress(OSError):  # broken files are found elsewhere
                places.setdefault(get_content(item), []).append((part, describe_label(split, label), item.name))
    groups = [group for group in places.values() if len(group) > 1]
    in_splits = [group for group in groups if len({part for part, _, _ in group}) > 1]
    in_classes = [group for group in groups if len({name for _, name, _ in group}) > 1]
    repeats = [group for group in groups if len({place[:2] for place in group}) == 1]
    clashes = [("in several splits", in_splits), ("in several classes", in_classes)]
    return (
        [_format_duplicates(what, where, found) for where, found in clashes if found],
        [_format_duplicates(what, "repeated within a class of a split", repeats)] if repeats else [],
    )


def _format_duplicates(what: str, where: str, groups: list[list[tuple[str, str, str]]]) -> str:
    examples = (" = ".join(f"{name} ({part}, {label})" for part, label, name in group[:3]) for group in groups)
    return f"{len(groups)} {what} of equal content are {where}: {shorten_list(examples, 3, '; ')}"
