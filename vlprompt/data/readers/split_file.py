"""Read and write split files: {"train", "val", "test"} lists of [path, label, class name], as CoOp's authors published.

Those that we write also hold the classes as [id, name] in label order and a hash, so that a changed file is noticed.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from vlprompt.core.class_names import ClassName, class_ids
from vlprompt.data.dataset import Data, ImageRecord, RawDataset, build_class_names, make_item_builder, shorten_list
from vlprompt.data.images.files import list_image_files
from vlprompt.data.readers.repeats import ListedImage, describe_copies, find_repeats, require_no_clash
from vlprompt.data.splits.names import SPLIT_NAMES

SAVED_SPLIT_FILE = "split_vlprompt.json"


class SplitEntry(NamedTuple):
    """One image of a split file."""

    path: str
    label: int
    name: str


def read_split_file(path: Path, images: Path, names: tuple[ClassName, ...] | None = None) -> RawDataset:
    """Read records as the file has them, in its order; labels are places among its classes.

    Args:
        path: the split file.
        images: the folder that its paths begin in.
        names: the classes of a card, with which the file must agree.

    Raises:
        ValueError: for a file that is no split, that was changed since we wrote it, that leaves a label without a name
            or gives it two, or that numbers the classes in another order than the card.
    """
    content = _load_split_json(path)
    entries = {
        part: [_parse_entry(entry, path, part, i) for i, entry in enumerate(content[part])]
        for part in SPLIT_NAMES
        if content.get(part)
    }
    names_by_label = _collect_names(entries, path)
    is_ours = "hash" in content
    if is_ours:
        classes = {str(key): str(name) for key, name in content["classes"]}
        if content["hash"] != hash_content(content):
            raise ValueError(
                f"{path}: expected the hash {content['hash']}, got another: the file was changed since it was "
                "written. Write it again."
            )
    elif names is None:
        classes = _classes_from_labels(names_by_label, path)
    else:
        classes = dict(zip(class_ids(names), map(str, names), strict=True))
    _require_order(names_by_label, list(classes.values()), path, "the file" if is_ours else "the card")
    if names is not None and (unknown := [key for key in classes if key not in class_ids(names)]):
        raise ValueError(f"{path}: expected the classes of the card, got {unknown[0]!r}. Correct the file or the card.")
    keys = list(classes)
    records = {
        part: [ImageRecord(e.path, keys[e.label]) for e in part_entries] for part, part_entries in entries.items()
    }
    note = str(content.get("note", "")) if is_ours else f"the split of {path.name}"
    remarks = _check_repeats(records, path, is_published=names is not None and not is_ours)
    names = build_class_names(classes, str(path)) if names is None else names
    rule = f"the split file {path.name}"
    return RawDataset(names, records, make_item_builder(images), note, layout="split file", rule=rule, remarks=remarks)


def read_saved_split(folder: Path, images: Path, names: tuple[ClassName, ...] | None = None) -> RawDataset:
    """Read the split that `vlprompt data split` saved in a folder, with a remark on images that it doesn't list."""
    raw = read_split_file(folder / SAVED_SPLIT_FILE, images, names)
    listed = {record.path for records in raw.records.values() for record in records}
    paths = (file.relative_to(images).as_posix() for file in list_image_files(images))
    if not (unlisted := [path for path in paths if path not in listed]):
        return raw
    remark = (
        f"{len(unlisted)} images are not in the saved split {SAVED_SPLIT_FILE} and are left out "
        f"({shorten_list(unlisted, 3)}); remove that file, or save the split again without it, to take them"
    )
    return replace(raw, remarks=(*raw.remarks, remark))


def _check_repeats(records: Mapping[str, list[ImageRecord]], path: Path, is_published: bool) -> tuple[str, ...]:
    """Return remarks on images that are listed twice; ValueError for two classes or splits, unless it is published."""
    repeats = find_repeats(
        ListedImage(f"number {i} of {part}", part, record)
        for part, part_records in records.items()
        for i, record in enumerate(part_records)
    )
    copies = describe_copies(repeats.copies, path.name, "counted as often")
    if not repeats.clashes or not is_published:
        require_no_clash(repeats, path)
        return copies
    one, other = repeats.clashes[0]
    clash = f"{one.record.path} in {one.describe()} and in {other.describe()}"
    return (*copies, f"{len(repeats.clashes)} images of {path.name} are in several classes or splits ({clash} ...)")


def _load_split_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a split file, got no valid JSON ({error}). Get it again.") from error
    parts = [content.get(part) or [] for part in SPLIT_NAMES] if isinstance(content, dict) else []
    if not isinstance(content, dict) or not all(isinstance(part, list) for part in parts) or not content.get("test"):
        raise ValueError(
            f'{path}: expected {{"train", "val", "test"}} lists of [path, label, class name], got another format. '
            "Get the split file again."
        )
    return content


def _parse_entry(entry: Any, path: Path, part: str, index: int) -> SplitEntry:
    where = f"{path}: number {index} of {part}"
    if not isinstance(entry, list) or len(entry) != 3:
        raise ValueError(f"{where}: expected [path, label, class name], got {entry!r}. Correct the entry.")
    file, label, name = entry
    if not isinstance(label, int) or isinstance(label, bool) or label < 0:
        raise ValueError(
            f"{where} ({file}): expected a label that is a whole number from 0, got {label!r}. Correct the entry."
        )
    if not isinstance(name, str) or not name.strip():
        raise ValueError(
            f"{where} ({file}): expected a class name of the label {label}, got {name!r}. Correct the entry."
        )
    if not isinstance(file, str) or Path(file).is_absolute() or ".." in Path(file).parts:
        raise ValueError(f"{where}: expected a path inside the folder of images, got {file!r}. Correct the entry.")
    return SplitEntry(file, label, name)


def _collect_names(entries: Mapping[str, list[SplitEntry]], path: Path) -> dict[int, str]:
    """Return {label: name}; ValueError for a label with two names."""
    names_by_label: dict[int, str] = {}
    for file, label, name in (entry for part_entries in entries.values() for entry in part_entries):
        if names_by_label.setdefault(label, name) != name:
            raise ValueError(
                f"{path}: expected one name for the label {label}, got {names_by_label[label]!r} and {name!r} (at "
                f"{file}). Correct one of them."
            )
    return names_by_label


def _require_order(names_by_label: Mapping[int, str], classes: list[str], path: Path, origin: str) -> None:
    """Raise ValueError for a label without a class and for one that the list of classes calls otherwise."""
    for label, name in sorted(names_by_label.items()):
        if not 0 <= label < len(classes):
            raise ValueError(
                f"{path}: expected labels 0 to {len(classes) - 1}, the places in the list of classes, got {label} "
                f"({name!r}). Correct the labels."
            )
        if _strip_underscores(classes[label]) != _strip_underscores(name):
            raise ValueError(
                f"{path}: expected label {label} to be {classes[label]!r} as {origin} lists it, got {name!r}: the "
                "order of the classes is mixed up. Take the split file that belongs to this dataset."
            )


def _classes_from_labels(names_by_label: dict[int, str], path: Path) -> dict[str, str]:
    """Return {id: name} of a file without a card; the id is the name where no other class has it."""
    if gaps := set(range(max(names_by_label) + 1)) - set(names_by_label):
        raise ValueError(
            f"{path}: expected labels from 0 without gaps, got no image and so no class name of the label "
            f"{min(gaps)}. Correct the labels."
        )
    names = list(names_by_label.values())
    return {
        names_by_label[i] if names.count(names_by_label[i]) == 1 else f"{names_by_label[i]}#{i}": names_by_label[i]
        for i in range(len(names_by_label))
    }


def _strip_underscores(name: str) -> str:
    return name.replace("_", " ").strip()


def hash_content(content: dict[str, Any]) -> str:
    """Hash the classes and the lists alone, however the file is laid out."""
    body = [
        [list(c) for c in content["classes"]],
        *([list(row) for row in content.get(part) or []] for part in SPLIT_NAMES),
    ]
    return hashlib.sha256(json.dumps(body, ensure_ascii=False).encode()).hexdigest()[:16]


def write_split_file(data: Data, path: Path) -> str:
    """Write the split of data whose items are files of one folder, whole or not at all; return its hash.

    Raises:
        ValueError: for files that lie elsewhere, which no other machine would find, and for images with domains or
            several labels.
    """
    if data.test.domains is not None:
        raise ValueError(
            f"split file: expected images without domains, got those of {data.name} with domains. Keep its own lists."
        )
    if data.test.has_several_labels:
        raise ValueError(
            f"split file: expected images with one label each, got {data.name!r}, where an image may have several. "
            "Keep its own table or lists."
        )
    classes = [[key, str(name)] for name, key in zip(data.test.names, class_ids(data.test.names), strict=True)]
    content: dict[str, Any] = {"dataset": data.name, "note": data.note, "classes": classes}
    for part in SPLIT_NAMES:
        if (split := getattr(data, part)) is not None:
            pairs = zip(split.items, split.labels, strict=True)
            content[part] = [[item.name, label, str(split.names[label])] for item, label in pairs]
            for index, entry in enumerate(content[part]):
                _parse_entry(entry, path, part, index)
    content = {"hash": hash_content(content), **content}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, ensure_ascii=False) + "\n", "utf-8")
    temporary.replace(path)
    return content["hash"]
