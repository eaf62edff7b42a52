"""Split files: {"train", "val", "test"} lists of [path, label, class name], as CoOp's authors published.

Those that we write also hold the classes as [id, name] in label order and a hash, so that a changed file is noticed.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from vlprompt.core.class_names import Name, ids
from vlprompt.data.dataset import Data, Found, Row, class_names, under

OWN = "split_vlprompt.json"
PARTS = ("train", "val", "test")


def read_split(path: Path, images: Path, names: tuple[Name, ...] | None = None) -> Found:
    """Rows as the file has them, in its order; labels are places among its classes.

    images: the folder that its paths begin in; names: the classes of a card, which the file must agree with. ValueError
    for a file that is no split, that was changed since we wrote it, that leaves a label without a name or gives it two,
    or that numbers the classes in another order than the card.
    """
    told = _read(path)
    rows = {
        part: [_checked(row, path, part, i) for i, row in enumerate(told[part])] for part in PARTS if told.get(part)
    }
    called: dict[int, str] = {}
    for of_part in rows.values():
        for file, label, name in of_part:
            if called.setdefault(label, name) != name:
                raise ValueError(
                    f"{path}: the label {label} is called {called[label]!r} and {name!r} (at {file}); "
                    "a label has one name"
                )
    ours = "hash" in told
    if ours:
        classes = {str(key): str(name) for key, name in told["classes"]}
        if told["hash"] != content_hash(told):
            raise ValueError(f"{path} was changed since it was written: its hash is not {told['hash']}; write it anew")
    else:
        classes = _classes(called, path) if names is None else {}
    keys = list(classes) if ours or names is None else list(ids(names))
    known = list(classes.values()) if ours or names is None else [str(name) for name in names or ()]
    for label, name in sorted(called.items()):
        if not 0 <= label < len(known):
            raise ValueError(
                f"{path}: the label {label} ({name!r}) has no class: labels are places 0 to {len(known) - 1} in the "
                "list of classes, without gaps"
            )
        if _plain(known[label]) != _plain(name):
            raise ValueError(
                f"{path} calls the label {label} {name!r}, but {'the file' if ours else 'the card'} lists "
                f"{known[label]!r} in that place: the order of the classes is mixed up; take the split file that "
                "belongs to this dataset"
            )
    if names is not None and (strange := [key for key in keys if key not in ids(names)]):
        raise ValueError(f"{path} has the class {strange[0]!r}, which is not on the card")
    parts = {part: [Row(file, keys[label]) for file, label, _ in of_part] for part, of_part in rows.items()}
    note = str(told.get("note", "")) if ours else f"the split of {path.name}"
    return Found(class_names(classes, str(path)) if names is None else names, parts, under(images), note)


def _read(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text("utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a split file ({error}); get it again") from error
    if not isinstance(told, dict) or not isinstance(told.get("test"), list) or not told["test"]:
        raise ValueError(f'{path} is not a split file: it must hold {{"train", "val", "test"}} lists of [path, label, '
                         "class name]")  # fmt: skip
    return told


def _checked(row: Any, path: Path, part: str, place: int) -> tuple[str, int, str]:
    where = f"{path}: number {place} of {part}"
    if not isinstance(row, list) or len(row) != 3:
        raise ValueError(f"{where} is {row!r}; each entry is [path, label, class name]")
    file, label, name = row
    if not isinstance(label, int) or isinstance(label, bool) or label < 0:
        raise ValueError(f"{where} ({file}) has the label {label!r}; labels are whole numbers from 0")
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{where} ({file}): the label {label} has no class name")
    if not isinstance(file, str) or Path(file).is_absolute() or ".." in Path(file).parts:
        raise ValueError(f"{where}: {file!r} must be a path inside the folder of images")
    return file, label, name


def _classes(called: dict[int, str], path: Path) -> dict[str, str]:
    """{id: name} of a file without a card; the id is the name where no other class has it."""
    if gaps := set(range(max(called) + 1)) - set(called):
        raise ValueError(
            f"{path}: the label {min(gaps)} has no image and so no class name; labels go from 0 without gaps"
        )
    every = list(called.values())
    return {called[i] if every.count(called[i]) == 1 else f"{called[i]}#{i}": called[i] for i in range(len(called))}


def _plain(name: str) -> str:
    return name.replace("_", " ").strip()


def content_hash(told: dict[str, Any]) -> str:
    """Of the classes and the lists alone, however the file is laid out."""
    body = [[list(c) for c in told["classes"]], *([list(row) for row in told.get(part) or []] for part in PARTS)]
    return hashlib.sha256(json.dumps(body, ensure_ascii=False).encode()).hexdigest()[:16]


def write_split(data: Data, path: Path) -> str:
    """Writes the split of data whose items are files of one folder; gives its hash. Whole or not at all.

    ValueError for files that lie elsewhere, which no other machine would find, and for images that have domains.
    """
    if data.test.domains is not None:
        raise ValueError(f"the images of {data.name} have domains, which a split file can't hold; keep its own lists")
    told: dict[str, Any] = {"dataset": data.name, "note": data.note}
    told["classes"] = [[key, str(name)] for name, key in zip(data.test.names, ids(data.test.names), strict=True)]
    for part in PARTS:
        if (split := getattr(data, part)) is not None:
            rows = zip(split.items, split.labels, strict=True)
            told[part] = [[item.name, label, str(split.names[label])] for item, label in rows]
            for place, row in enumerate(told[part]):
                _checked(row, path, part, place)
    told = {"hash": content_hash(told), **told}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(told, ensure_ascii=False) + "\n", "utf-8")
    temporary.replace(path)
    return told["hash"]
