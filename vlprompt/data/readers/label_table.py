"""Read a table of images that may have several labels: a column of label sets, or a column for each class."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlprompt.data.dataset import ImageRecord, LabelSet, RawDataset, build_class_names, make_item_builder
from vlprompt.data.readers.repeats import ListedImage, describe_copies, find_repeats, require_no_clash
from vlprompt.data.splits.table_splits import complete_splits, parse_part
from vlprompt.data.table_rows import NumberedRows

SINGLE_LABEL_COLUMNS = {"label", "class", "name"}
LABELS_COLUMN = "labels"  # of the names of the labels of an image
LABEL_SEPARATOR, OTHER_SEPARATORS = "|", ",;"  # between the names of a cell; what others write there
FIXED_COLUMNS = ("path", "split", "domain")
STATES = {"1": 1, "0": 0, "-1": -1, "?": -1, "": -1, "true": 1, "false": 0}  # of a cell of a class, -1 unknown


def has_label_sets(rows: NumberedRows) -> bool:
    """Whether a table says for each image which of several labels it has."""
    if not rows or "path" not in (columns := set(rows[0][1])) or columns & SINGLE_LABEL_COLUMNS:
        return False
    if LABELS_COLUMN in columns:
        return True
    others = columns - set(FIXED_COLUMNS)
    return len(others) > 1 and all(_parse_state(row.get(column)) is not None for _, row in rows for column in others)


def require_states(rows: NumberedRows, path: Path) -> None:
    """Raise ValueError for a cell that is no state, in a table that can only have a column for each class."""
    columns = set(rows[0][1]) if rows else set[str]()
    if "path" not in columns or columns & {*SINGLE_LABEL_COLUMNS, LABELS_COLUMN}:
        return
    classes = [column for column in rows[0][1] if column not in FIXED_COLUMNS]
    n_states = sum(_parse_state(row.get(column)) is not None for _, row in rows for column in classes)
    if len(classes) < 2 or 2 * n_states < len(rows) * len(classes):  # most are something else
        return
    for number, row in rows:
        for column in classes:
            if column in row and _parse_state(row[column]) is None:
                raise ValueError(
                    f"{path}, row {number}: {column}: expected 1 (present), 0 (absent), or -1, ? or nothing (unknown), "
                    f"got {row[column]!r}. Correct it, or remove the column if it is no class."
                )


def _parse_state(value: Any) -> int | None:
    text = "" if value is None else str(value).strip().casefold().removesuffix(".0")
    return STATES.get(text)


def read_label_table(rows: NumberedRows, path: Path) -> RawDataset:
    """Read the rows of a table for which `has_label_sets` is true.

    `labels` is a list of class names (.jsonl), or their names with | between them; an empty one is an image without
    labels. A column for each class has 1 (present), 0 (absent) or -1, ? or nothing (unknown).

    Raises:
        ValueError: for irregular columns, a label that is no text, an image that is listed twice, a table in which
            no image has a label, and fewer than two classes.
    """
    columns, has_lists = set(rows[0][1]), LABELS_COLUMN in rows[0][1]
    classes = [] if has_lists else [column for column in rows[0][1] if column not in FIXED_COLUMNS]
    entries, label_sets = list[ListedImage](), dict[str, LabelSet]()
    for number, row in rows:
        where = f"{path}, row {number}"
        if irregular := sorted(columns ^ set(row)):
            raise ValueError(
                f"{where}: expected the column {irregular[0]!r} in every row or in none, got some without it. Fill it "
                "in."
            )
        if has_lists and (unknown := sorted(columns - {LABELS_COLUMN, *FIXED_COLUMNS})):
            raise ValueError(f"{where}: expected no column beside labels, path, split and domain, got {unknown[0]!r}.")
        if not (image := str(row["path"]).strip()):
            raise ValueError(f"{where}: expected a path, got an empty one. Fill it in.")
        label_set = (
            _parse_list(row[LABELS_COLUMN], where, path.suffix.lower() == ".jsonl")
            if has_lists
            else _parse_cells(row, classes)
        )
        if label_sets.setdefault(image, label_set) != label_set:
            raise ValueError(f"{where}: expected one set of labels for {image!r}, got another before. Remove one row.")
        domain = str(row["domain"]).strip() if "domain" in columns else None
        entries.append(ListedImage(f"row {number}", parse_part(row.get("split", "all"), where), _record(image, domain)))
    _require_labels(label_sets, has_lists, path)
    if has_lists:
        classes = sorted({name for label_set in label_sets.values() for name in label_set.present})
        _require_separate_names(classes, path)
    if len(classes) < 2:
        raise ValueError(f"{path}: expected at least 2 classes, got {classes}. Add images of another class.")
    return _build(entries, label_sets, classes, path, "the column labels" if has_lists else "a column for each class")


def _require_labels(label_sets: Mapping[str, LabelSet], has_lists: bool, path: Path) -> None:
    """Raise ValueError for a table in which no image has a label."""
    if any(label_set.present for label_set in label_sets.values()):
        return
    example = '["cat", "dog"]' if path.suffix.lower() == ".jsonl" else f"cat{LABEL_SEPARATOR}dog"
    remedy = f"Fill in the column labels, such as {example}" if has_lists else "Write 1 in the column of a class"
    raise ValueError(
        f"{path}: expected images with labels, got {len(label_sets)} of which none has one. {remedy} where an image "
        "shows it."
    )


def _record(image: str, domain: str | None) -> ImageRecord:
    return ImageRecord(image, "", domain)


def _parse_list(value: Any, where: str, is_json: bool) -> LabelSet:
    if is_json and not isinstance(value, list):
        raise ValueError(
            f'{where}: labels: expected a list of class names, got {json.dumps(value)}. Write one such as ["cat", '
            '"dog"], and [] for an image without labels.'
        )
    names = value if isinstance(value, list) else str(value).split(LABEL_SEPARATOR)
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise ValueError(f"{where}: labels: expected class names, got {wrong[0]!r}. Write names, in quotes.")
    return LabelSet(frozenset(name.strip() for name in names if name.strip()))


def _require_separate_names(classes: list[str], path: Path) -> None:
    """Raise ValueError for a class whose name is those of others, joined by another separator than that of a cell."""
    for name in classes:
        for separator in OTHER_SEPARATORS:
            parts = [part.strip() for part in name.split(separator)]
            if len(parts) > 1 and set(parts) <= set(classes):
                raise ValueError(
                    f"{path}: labels: expected one class name or several with {LABEL_SEPARATOR} between them, got "
                    f"{name!r}, whose parts are classes too. Write {LABEL_SEPARATOR.join(parts)}."
                )


def _parse_cells(row: dict[str, Any], classes: list[str]) -> LabelSet:
    by_state: dict[int | None, set[str]] = {1: set(), 0: set(), -1: set()}
    for name in classes:
        by_state[_parse_state(row[name])].add(name)
    return LabelSet(frozenset(by_state[1]), frozenset(by_state[-1]))


def _build(
    entries: list[ListedImage], label_sets: dict[str, LabelSet], classes: list[str], path: Path, rule: str
) -> RawDataset:
    repeats = find_repeats(entries, path.parent)
    require_no_clash(repeats, path)
    copies, records = {entry.place for entry in repeats.copies}, dict[str, list[ImageRecord]]()
    for entry in entries:
        if entry.place not in copies:
            records.setdefault(entry.split, []).append(entry.record)
    complete, note = complete_splits(records, path)
    note = "cut 50:20:30 into train, val and test" if "all" in records else note
    remarks = [*describe_copies(repeats.copies, path.name, "counted once")]
    if n_empty := sum(not label_set.present for label_set in label_sets.values()):
        remarks.append(f"{n_empty} images have no label")
    names = build_class_names({name: name for name in classes}, str(path))
    return RawDataset(
        names,
        complete,
        make_item_builder(path.parent),
        note,
        layout="table",
        rule=rule,
        remarks=tuple(remarks),
        label_sets=label_sets,
    )
