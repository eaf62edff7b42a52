"""Captions with the labels that they name: from a file, or written from the labels of images."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from vlprompt.core.batch import Split
from vlprompt.core.class_names import Names, class_ids, normalize_name

Rows = list[tuple[str, tuple[int, ...]]]  # captions, each with 1, 0 or UNKNOWN of each class


@dataclass(frozen=True)
class CaptionFile:
    """The captions of a file that name a class.

    Args:
        rows: the captions with their labels.
        n_dropped: captions that name none.
    """

    rows: Rows
    n_dropped: int


def read_captions(path: Path, names: Names) -> CaptionFile:
    """Read a file of captions, one a line; in .jsonl {"caption": text}, perhaps with "labels": [class names].

    Without labels a class is present where its name stands in the caption as a word, or with an s behind it. Long names
    are looked for first, and each is taken out before the next.

    Raises:
        ValueError: for a file that is missing or has other content, a label that is no class, and no caption with a
            label.
    """
    if not path.is_file():
        raise ValueError(
            f"method.captions: expected a file of captions, got {str(path)!r}, which does not exist. Write one caption "
            "a line, or leave it out."
        )
    find_labels, rows, n = _build_finder(names), Rows(), 0
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        n += 1
        where = f"{str(path)!r}, line {number}"
        caption, labels = _parse_line(line, where, path.suffix.lower() == ".jsonl")
        present = find_labels(caption) if labels is None else _find_classes(labels, names, where)
        if any(present):
            rows.append((caption, present))
    if not rows:
        raise ValueError(
            f"{str(path)!r}: expected captions that name a class, such as {str(names[0])!r}, got {n} that name none. "
            "Write the class names into them, or give their labels in a .jsonl file."
        )
    return CaptionFile(rows, n - len(rows))


def _parse_line(line: str, where: str, is_json: bool) -> tuple[str, list[str] | None]:
    """Return the caption of a line, and its labels where it has any."""
    if not is_json:
        return line.strip(), None
    try:
        row: Any = json.loads(line)
        caption, labels = row["caption"], row.get("labels")
        if not isinstance(caption, str) or not (labels is None or all(isinstance(name, str) for name in labels)):
            raise TypeError("other values")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{where}: expected {{"caption": text}}, perhaps with "labels": [class names], got {line.strip()[:60]!r}. '
            "Correct the line."
        ) from error
    return caption.strip(), labels


def _find_classes(labels: Sequence[str], names: Names, where: str) -> tuple[int, ...]:
    keys = [{normalize_name(str(name)), normalize_name(key)} for name, key in zip(names, class_ids(names), strict=True)]
    for label in labels:
        if not any(normalize_name(label) in own for own in keys):
            raise ValueError(f"{where}: labels: expected classes of the lesson, got {label!r}. Correct the line.")
    present = {normalize_name(label) for label in labels}
    return tuple(int(bool(own & present)) for own in keys)


def _build_finder(names: Names) -> Callable[[str], tuple[int, ...]]:
    """Return a function that finds the classes (C,) that a caption names."""
    words = {k: normalize_name(str(name)) for k, name in enumerate(names)}
    patterns = {k: re.compile(rf"(?<!\w){re.escape(words[k])}(?:e?s)?(?!\w)") for k in words}
    order = sorted(words, key=lambda k: -len(words[k]))

    def find(caption: str) -> tuple[int, ...]:
        rest, present = normalize_name(caption), [0] * len(words)
        for k in order:
            rest, n_found = patterns[k].subn(" ", rest)
            present[k] = int(n_found > 0)
        return tuple(present)

    return find


def write_captions(train: Split, template: str, name_template: str) -> Rows:
    """Write a caption for each item that has a label, from its labels: "a photo of a dog and a cat.".

    Names stand in an order that the item's place in the dataset draws.

    Args:
        train: items with one label each, or several.
        template: of a caption, with {names}.
        name_template: of each name, with {name}.
    """
    for setting, text, field in (("caption", template, "{names}"), ("name", name_template, "{name}")):
        if field not in text:
            raise ValueError(f"method.{setting}_template: expected a place {field}, got {text!r}. Write it in.")
    words = [name_template.replace("{name}", str(name).replace("_", " ")) for name in train.names]
    rows, n = Rows(), len(words)
    for item, label in zip(train.items, train.labels, strict=True):
        row = label if train.has_several_labels else tuple(int(k == label) for k in range(n))
        if present := [k for k in range(n) if row[k] == 1]:
            Random(item.name).shuffle(present)
            rows.append((template.replace("{names}", join_words([words[k] for k in present])), row))
    return rows


def join_words(words: Sequence[str]) -> str:
    """Join words as English does: "a", "a and b", "a, b and c"."""
    return " and ".join([*([", ".join(words[:-1])] if len(words) > 1 else []), words[-1]])
