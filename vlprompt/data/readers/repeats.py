"""Find images that a list names more than once."""

import os
import posixpath
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from vlprompt.data.dataset import ImageRecord, shorten_list


class ListedImage(NamedTuple):
    """One entry of a list: where it stands, its split ("all" for none) and what it says."""

    place: str
    split: str
    record: ImageRecord

    def describe(self) -> str:
        """Return its place with its class, split and domain."""
        split = "" if self.split == "all" else self.split
        return f"{self.place} ({', '.join(filter(None, (self.record.class_id, split, self.record.domain)))})"


class Repeats(NamedTuple):
    """Images that are listed more than once.

    Args:
        clashes: pairs of entries of one image that differ in class, split or domain.
        copies: entries that say the same as an earlier one.
    """

    clashes: list[tuple[ListedImage, ListedImage]]
    copies: list[ListedImage]


def find_repeats(entries: Iterable[ListedImage], folder: Path | None = None) -> Repeats:
    """Find repeats by the path, however it is written (a/b.png, a/./b.png).

    Args:
        entries: of the list.
        folder: where the paths begin, to follow links and compare absolute paths; None to compare the texts alone.
    """

    def normalize(path: str) -> str:
        return posixpath.normpath(path) if folder is None else os.path.realpath(folder / path)

    first: dict[str, ListedImage] = {}
    repeats = Repeats([], [])
    for entry in entries:
        other = first.setdefault(normalize(entry.record.path), entry)
        if other is entry:
            continue
        if (other.split, *other.record[1:]) == (entry.split, *entry.record[1:]):
            repeats.copies.append(entry)
        else:
            repeats.clashes.append((other, entry))
    return repeats


def require_no_clash(repeats: Repeats, where: object) -> None:
    """Raise ValueError for an image that is listed in two classes, splits or domains."""
    if repeats.clashes:
        (one, other), *more = repeats.clashes
        others = f" ({len(more)} more such images)" if more else ""
        raise ValueError(
            f"{where}: expected each image in one class and one split, got {one.record.path!r} in {one.describe()} and "
            f"in {other.describe()}{others}. Remove one of them."
        )


def describe_copies(copies: list[ListedImage], where: object, consequence: str) -> tuple[str, ...]:
    """Return a remark on entries that repeat others; nothing where there are none."""
    if not copies:
        return ()
    examples = shorten_list((f"{entry.place}: {entry.record.path}" for entry in copies), 3)
    return (f"{len(copies)} entries of {where} repeat others and are {consequence} ({examples})",)
