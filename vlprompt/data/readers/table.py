"""Read a file of images: .csv, .tsv and .jsonl name them, .npz holds them, .json is a split file beside them."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlprompt.core.images import ImageItem, persistent_key
from vlprompt.data.dataset import ImageRecord, RawDataset, build_class_names, decode_text, make_item_builder
from vlprompt.data.images.decoding import build_image_item, hash_array
from vlprompt.data.readers.label_table import LABELS_COLUMN, has_label_sets, read_label_table, require_states
from vlprompt.data.readers.repeats import ListedImage, describe_copies, find_repeats, require_no_clash
from vlprompt.data.readers.split_file import read_split_file
from vlprompt.data.splits.table_splits import complete_splits, parse_part
from vlprompt.data.table_rows import NumberedRows, read_table_rows
from vlprompt.runtime.errors import suggest_nearest

TABLE_COLUMNS = ("path", "label", "class", "name", "domain", "split")
COLUMNS_HELP = (
    "the columns path and label or class (one of class and name), perhaps domain and split, for several labels in an "
    "image path and labels or a column of 1 and 0 for each class, or for texts text and "
    "label, prompt and response, words and tags, or messages"
)
ARRAY_NAMES = ("images", "labels", "names", "split")


def read_dataset_file(path: Path) -> RawDataset:
    """Read a file by its suffix; ValueError that names the file, the row and what was expected there."""
    suffix = path.suffix.lower()
    if suffix == ".json":
        return read_split_file(path, path.parent)
    return read_npz(path) if suffix == ".npz" else read_table(path)


def read_table(path: Path) -> RawDataset:
    """Read a table with the columns path, label or class (or name), and perhaps domain and split.

    Paths begin at the file's folder. Of a .csv these columns may have capitals. A label is a whole number when there
    is a class column too, which names it; alone it may be either. split is train, val or test; without it each class
    is cut 50:20:30. Where images may have several labels there is a column labels, or one for each class.
    """
    rows = read_table_rows(path)
    if path.suffix.lower() != ".jsonl":
        rows = _lower_fixed_columns(rows, path)
    if has_label_sets(rows):
        return read_label_table(rows, path)
    require_states(rows, path)
    columns = _check_columns(rows, path)
    name_column = next((column for column in ("class", "name") if column in columns), None)
    is_numbered = name_column is not None and "label" in columns
    names_by_id: dict[str, str] = {}
    entries = list[ListedImage]()
    for number, row in rows:
        where = f"{path}, row {number}"
        for column in columns:
            if not str(row[column]).strip():
                raise ValueError(f"{where}: expected a {column}, got an empty one. Fill it in.")
        name = str(row[name_column or "label"]).strip()
        key = _parse_label(row["label"], where) if is_numbered else name
        if names_by_id.setdefault(key, name) != name:
            raise ValueError(
                f"{where}: expected one name for the label {key}, got {names_by_id[key]!r} and {name!r}. Correct one "
                "of them."
            )
        part = parse_part(row.get("split", "all"), where)
        domain = str(row["domain"]).strip() if "domain" in columns else None
        entries.append(ListedImage(f"row {number}", part, ImageRecord(str(row["path"]).strip(), key, domain)))
    names = build_class_names(_sort_classes(names_by_id, is_numbered, path), str(path))
    records, remarks = _group_by_split(entries, path)
    records, note = complete_splits(records, path)
    rule = f"the columns {', '.join(column for column in TABLE_COLUMNS if column in columns)}"
    builder = make_item_builder(path.parent)
    return RawDataset(names, records, builder, note, layout="table", rule=rule, remarks=remarks)


def _lower_fixed_columns(rows: NumberedRows, path: Path) -> NumberedRows:
    """Return the rows with the fixed columns in lower case; other columns are classes, whose names stay as they are.

    Raises:
        ValueError: for two columns that are one fixed column.
    """
    fixed, columns = (*TABLE_COLUMNS, LABELS_COLUMN), dict[str, str]()
    for column in rows[0][1] if rows else []:
        lower = column.lower()
        if lower in fixed and lower in columns.values():
            raise ValueError(f"{path}: expected one column {lower!r}, got two. Rename or remove one.")
        columns[column] = lower if lower in fixed else column
    return [(number, {columns[column]: value for column, value in row.items()}) for number, row in rows]


def _group_by_split(entries: list[ListedImage], path: Path) -> tuple[dict[str, list[ImageRecord]], tuple[str, ...]]:
    """Return the records of each split, each image once, and a remark on repeats.

    Raises:
        ValueError: for an image that stands in two classes, splits or domains.
    """
    repeats = find_repeats(entries, path.parent)
    require_no_clash(repeats, path)
    copies = {entry.place for entry in repeats.copies}
    records: dict[str, list[ImageRecord]] = {}
    for entry in entries:
        if entry.place not in copies:
            records.setdefault(entry.split, []).append(entry.record)
    return records, describe_copies(repeats.copies, path.name, "counted once")


def _check_columns(rows: NumberedRows, path: Path) -> set[str]:
    """Return the columns of a table; ValueError for an unknown, a missing or an irregular one."""
    if not rows:
        raise ValueError(f"{path}: expected a row for each image, got no rows. Add some.")
    columns = set(rows[0][1])
    for number, row in rows if "path" in columns else []:
        if unknown := sorted(set(row) - set(TABLE_COLUMNS)):
            raise ValueError(
                f"{path}, row {number}: expected known columns, got {unknown[0]!r}; "
                f"{suggest_nearest(unknown[0], TABLE_COLUMNS)} A column of a class has 1, 0 or -1 in every row."
            )
        if irregular := sorted(columns ^ set(row)):
            raise ValueError(
                f"{path}, row {number}: expected the column {irregular[0]!r} in every row or in none, got some "
                "without it. Fill it in."
            )
    if "path" not in columns or not columns & {"class", "name", "label"} or {"class", "name"} <= columns:
        raise ValueError(
            f"{path}: expected {COLUMNS_HELP}, got the columns {', '.join(sorted(columns))}. Rename or add columns."
        )
    return columns


def _sort_classes(names_by_id: Mapping[str, str], is_numbered: bool, path: Path) -> dict[str, str]:
    """Return {id: name} in label order: whole numbers by their size, texts by the alphabet.

    Raises:
        ValueError: for labels with gaps and for fewer than two classes.
    """
    keys = sorted(names_by_id, key=int) if all(key.isdecimal() for key in names_by_id) else sorted(names_by_id)
    if is_numbered and keys != [str(i) for i in range(len(keys))]:
        gap = next(i for i in range(len(keys)) if str(i) not in names_by_id)
        raise ValueError(
            f"{path}: expected labels 0 to {len(keys) - 1} without gaps, got no class name of the label {gap}. "
            "Correct the labels."
        )
    if len(keys) < 2:
        raise ValueError(
            f"{path}: expected at least 2 classes, got only the class {names_by_id[keys[0]]!r}. Add rows of another "
            "class."
        )
    return {key: names_by_id[key] for key in keys}


def _parse_label(value: Any, where: str) -> str:
    text = str(value).strip()
    if isinstance(value, bool) or not text.isdecimal():
        raise ValueError(
            f"{where}: label: expected a whole number from 0, got {value!r}. Put names into the class column."
        )
    return str(int(text))


def read_npz(path: Path) -> RawDataset:
    """Read arrays: images uint8 (N, H, W) or (N, H, W, 3), labels (N,), and perhaps names (C,) and split (N,)."""
    arrays = _load_arrays(path)
    images, labels = arrays["images"], arrays["labels"]
    if "names" in arrays:
        classes = [decode_text(name) for name in arrays["names"].tolist()]
    else:
        classes = [str(i) for i in range(labels.max() + 1)]
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
        label = int(labels.min() if labels.min() < 0 else labels.max())
        raise ValueError(
            f"{path}: expected labels 0 to {len(classes) - 1}, as there are {len(classes)} class names, got {label}. "
            "Correct the label or add the name."
        )
    parts = arrays.get("split", np.full(len(images), "all"))
    records: dict[str, list[ImageRecord]] = {}
    for i, (label, value) in enumerate(zip(labels.tolist(), parts.tolist(), strict=True)):
        part = parse_part(value, f"{path}, array split at {i}")
        records.setdefault(part, []).append(ImageRecord(str(i), str(label)))
    records, note = complete_splits(records, path)
    names = build_class_names({str(i): name for i, name in enumerate(classes)}, str(path))
    rule = f"the arrays {', '.join(name for name in ARRAY_NAMES if name in arrays)}"
    return RawDataset(names, records, partial(_build_array_item, images), note, layout="arrays", rule=rule)


def _load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Load the arrays of an archive; ValueError for unknown names, missing arrays, wrong types and shapes."""
    arrays = _read_archive(path)
    if unknown := sorted(set(arrays) - set(ARRAY_NAMES)):
        raise ValueError(
            f"{path}: expected known arrays, got {unknown[0]!r}; {suggest_nearest(unknown[0], ARRAY_NAMES)}"
        )
    if not {"images", "labels"} <= set(arrays):
        raise ValueError(
            f"{path}: expected the arrays images and labels, got {', '.join(sorted(arrays))}. Add the missing ones."
        )
    images, labels = arrays["images"], arrays["labels"]
    if not len(np.atleast_1d(labels)):
        raise ValueError(f"{path}: labels: expected one for each image, got none. Add images and labels.")
    is_image_shape = images.ndim in (3, 4) and 0 not in images.shape[1:3] and images.shape[3:] in ((), (3,))
    if images.dtype != np.uint8 or not is_image_shape:
        raise ValueError(
            f"{path}: images: expected uint8 (N, H, W) or (N, H, W, 3), got {images.dtype} {images.shape}. Convert "
            "the array."
        )
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{path}: labels: expected {len(images)} whole numbers, got {labels.dtype} {labels.shape}. Convert the "
            "array."
        )
    for name, what in (("names", "class"), ("split", "image")):
        if name in arrays and (arrays[name].ndim != 1 or (name == "split" and len(arrays[name]) != len(images))):
            raise ValueError(
                f"{path}: {name}: expected one text for each {what}, got an array of shape {arrays[name].shape}. "
                "Correct the array."
            )
    return arrays


def _read_archive(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of an .npz; ValueError for a damaged file, or one of another kind."""
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError(f"a single array of shape {file.shape}, as numpy.save writes it")
        with file:
            arrays = {key: file[key] for key in file.files}
        if strange := [key for key, array in arrays.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f"{strange[0]!r} in it is no array")
    except Exception as error:  # NumPy, zipfile and zlib each have their own for damaged files
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        raise ValueError(
            f"{path}: expected a NumPy archive, got one that can't be read ({error}). Write it by numpy.savez."
        ) from error
    return arrays


def _build_array_item(images: np.ndarray, index: str) -> ImageItem:
    """Build an item that holds a copy of its own image, so that nothing leads to the others; its key is the content."""
    array = images[int(index)].copy()
    return build_image_item(persistent_key("array", hash_array(array)), partial(_array_to_image, array), index)


def _array_to_image(array: np.ndarray) -> Image.Image:
    return Image.fromarray(array).convert("RGB")
