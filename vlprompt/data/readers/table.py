"""A file as a dataset: .csv, .tsv and .jsonl name images, .npz holds them, .json is a split file beside its images."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlprompt.core.images import Item, lasting
from vlprompt.data.dataset import Found, Row, class_names, under
from vlprompt.data.images.decoding import picture_item
from vlprompt.data.readers.split_file import read_split
from vlprompt.data.splits.sampling import PARTS, cut, with_val
from vlprompt.data.table_rows import read_rows
from vlprompt.runtime.errors import nearest

COLUMNS = ("path", "label", "class", "name", "domain", "split")
WANTED = (
    "it needs path and label or class (one of class and name), and may have domain and split; a file of texts has text "
    "and label, prompt and response, words and tags, or messages"
)


def read_file(path: Path) -> Found:
    """What a file of one of these forms holds; ValueError that names the file, the row and what was wanted there."""
    form = path.suffix.lower()
    if form == ".json":
        return read_split(path, path.parent)
    return read_npz(path) if form == ".npz" else read_table(path)


def read_table(path: Path) -> Found:
    """A table with the columns path, label or class (or name), and perhaps domain and split.

    Paths begin at the file's folder. A label is a whole number when there is a class column too, which names it;
    alone it may be either. split: train, val or test; without it each class is cut 50 : 20 : 30.
    """
    lines = read_rows(path)
    if path.suffix.lower() != ".jsonl":
        lines = [(number, {column.lower(): value for column, value in row.items()}) for number, row in lines]
    if not lines:
        raise ValueError(f"{path} has no rows")
    columns = set(lines[0][1])
    if "path" not in columns:
        raise ValueError(f"{path} has the columns {', '.join(sorted(columns))}; {WANTED}")
    for number, row in lines:
        if strange := sorted(set(row) - set(COLUMNS)):
            raise ValueError(f"{path}, row {number}: unknown column {strange[0]!r}; {nearest(strange[0], COLUMNS)}")
        if set(row) != columns:
            lacks = sorted(columns ^ set(row))[0]
            raise ValueError(f"{path}, row {number}: the column {lacks!r} is not in every row")
    texts = [column for column in ("class", "name") if column in columns]
    if not (texts or "label" in columns) or len(texts) > 1:
        raise ValueError(f"{path} has the columns {', '.join(sorted(columns))}; {WANTED}")
    called: dict[str, str] = {}
    rows: dict[str, list[Row]] = {}
    for number, row in lines:
        where = f"{path}, row {number}"
        for column in columns:
            if not str(row[column]).strip():
                raise ValueError(f"{where}: {column} is empty")
        text = str(row[texts[0] if texts else "label"]).strip()
        key = _whole(row["label"], where) if texts and "label" in columns else text
        if called.setdefault(key, text) != text:
            raise ValueError(f"{where}: the label {key} is called {called[key]!r} and {text!r}; a label has one name")
        part = str(row.get("split", "all")).strip().lower()
        if part not in PARTS and part != "all":
            raise ValueError(f"{where}: the split {row['split']!r} is not train, val or test")
        domain = str(row["domain"]).strip() if "domain" in columns else None
        rows.setdefault(PARTS.get(part, part), []).append(Row(str(row["path"]).strip(), key, domain))
    keys = sorted(called, key=int) if all(key.isdecimal() for key in called) else sorted(called)
    if texts and "label" in columns and keys != [str(i) for i in range(len(keys))]:
        gap = next(i for i in range(len(keys)) if str(i) not in called)
        raise ValueError(f"{path}: the label {gap} has no class name; labels go from 0 to {len(keys) - 1} without gaps")
    if len(keys) < 2:
        raise ValueError(f"{path} has only the class {called[keys[0]]!r}; two classes are the least")
    parts, note = _parts(rows, path)
    return Found(class_names({key: called[key] for key in keys}, str(path)), parts, under(path.parent), note)


def _parts(rows: dict[str, list[Row]], path: Path) -> tuple[dict[str, list[Row]], str]:
    if "all" in rows:
        return cut(rows["all"]), "each class cut 50:20:30 into train, val and test"
    if "test" not in rows or "train" not in rows:
        raise ValueError(f"{path}: the column split has {', '.join(sorted(rows))}; both train and test are needed")
    return with_val(rows)


def _whole(value: Any, where: str) -> str:
    text = str(value).strip()
    if isinstance(value, bool) or not text.isdecimal():
        raise ValueError(f"{where}: the label {value!r} is not a whole number from 0; the class column holds the names")
    return str(int(text))


def read_npz(path: Path) -> Found:
    """Arrays: images uint8 (N, H, W) or (N, H, W, 3), labels (N,), and perhaps names (C,) and split (N,)."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is not a NumPy archive that can be read: {error}") from error
    known = ("images", "labels", "names", "split")
    if strange := sorted(set(arrays) - set(known)):
        raise ValueError(f"{path}: unknown array {strange[0]!r}; {nearest(strange[0], known)}")
    if not {"images", "labels"} <= set(arrays):
        raise ValueError(f"{path} has the arrays {', '.join(sorted(arrays))}; it needs images and labels")
    images, labels = arrays["images"], arrays["labels"]
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] != 3):
        raise ValueError(
            f"{path}: images are {images.dtype} {images.shape}; they must be uint8 (N, H, W) or (N, H, W, 3)"
        )
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise ValueError(f"{path}: labels are {labels.dtype} {labels.shape}; {len(images)} whole numbers are needed")
    classes = (
        [str(name) for name in arrays["names"]] if "names" in arrays else [str(i) for i in range(labels.max() + 1)]
    )
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
        bad = int(labels.min() if labels.min() < 0 else labels.max())
        raise ValueError(f"{path}: the label {bad} has no class name; there are {len(classes)}, for labels from 0")
    stat = path.stat()
    key = lasting(path.absolute(), stat.st_size, stat.st_mtime_ns)
    parts = arrays.get("split", np.full(len(images), "all"))
    rows: dict[str, list[Row]] = {}
    for i, (label, part) in enumerate(zip(labels.tolist(), parts.tolist(), strict=True)):
        if part != "all" and str(part).lower() not in PARTS:
            raise ValueError(f"{path}: split has {part!r} at {i}; it is train, val or test")
        rows.setdefault(PARTS.get(str(part).lower(), "all"), []).append(Row(str(i), str(label)))
    made, note = _parts(rows, path)
    names = class_names({str(i): name for i, name in enumerate(classes)}, str(path))
    return Found(names, made, partial(_array_item, images, key), note)


def _array_item(images: np.ndarray, key: str, place: str) -> Item:
    """It holds a copy of its own image, so that nothing leads to the others."""
    return picture_item(f"{key}|{place}", partial(_array_picture, images[int(place)].copy()), place)


def _array_picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image).convert("RGB")
