"""What readers return, class names with records of each split, and the data that are built from it."""

import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from vlprompt.core.batch import UNKNOWN, Label, Split
from vlprompt.core.class_names import DEFAULT_TEMPLATE, ClassName, Names, class_ids
from vlprompt.core.images import ImageItem, Preprocessing
from vlprompt.data.images.decoding import build_file_item

PROBE_PREPROCESSING = Preprocessing((8, 8))  # enough to know that an image can be decoded
FOLDER_HINT = "A class needs at least 3 images, 10 or more are better."


class ImageRecord(NamedTuple):
    """One image: its path in the dataset, from which its item is built, its class id and perhaps its domain.

    Where images may have several labels, the class id is "" and they stand in `RawDataset.label_sets`.
    """

    path: str
    class_id: str
    domain: str | None = None


class LabelSet(NamedTuple):
    """The ids of the classes that are in an image, and of those of which that is unknown; the others are not in it."""

    present: frozenset[str]
    unknown: frozenset[str] = frozenset()


@dataclass(frozen=True)
class RawDataset:
    """What a reader returns.

    Args:
        names: class names in label order; records name a class by its id.
        records: records of each split.
        build_item: builds the item of a path.
        note: how the splits were made, for results.
        info: facts that go into `Split.info`.
        incomplete_splits: a class may lack images in a split, as published lists leave it; it needs some in any split.
        domains: the order of the domains (default: sorted).
        stages: the number of stages of a stream, or the class ids of each stage.
        name: the name of the dataset.
        template: the prompt template of the dataset.
        augment: the augmentation of training images.
        where: how errors name the dataset (default: its name).
        hint: the remedy that errors end with.
        layout: how the data lie: classes, groups, domains or splits of a folder, a card's layout, a table ...
        rule: by which rule that was recognised.
        remarks: what a user should know of the data before a run.
        label_sets: {path: labels of the image}, where an image may have several labels or none.
    """

    names: Names
    records: Mapping[str, Sequence[ImageRecord]]
    build_item: Callable[[str], ImageItem]
    note: str = ""
    info: dict[str, object] = field(default_factory=dict)
    incomplete_splits: bool = False
    domains: Sequence[str] = ()
    stages: int | list[list[str]] | None = None
    name: str = ""
    template: str = DEFAULT_TEMPLATE
    augment: str = "crop-flip"
    where: str = ""
    hint: str = FOLDER_HINT
    layout: str = ""
    rule: str = ""
    remarks: tuple[str, ...] = ()
    label_sets: Mapping[str, LabelSet] | None = None


@dataclass(frozen=True)
class Data:
    """An opened dataset: its splits, its template, and the note for results.

    val may be None, and train may be empty (a dataset that is only for tests). `origin` is what was taken for the
    dataset (a card, a folder, a file ...); layout, rule and remarks are those of `RawDataset`.
    """

    name: str
    train: Split
    val: Split | None
    test: Split
    template: str
    note: str
    origin: str = ""
    layout: str = ""
    rule: str = ""
    remarks: tuple[str, ...] = ()

    def hash(self) -> str:
        """Return the joined hashes of the splits, which tell the data from any other."""
        return "-".join(split.hash()[:6] for split in (self.train, self.val, self.test) if split is not None)


def build_class_names(classes: Mapping[str, str], where: str, template: str | None = None) -> tuple[ClassName, ...]:
    """Build class names in label order.

    Args:
        classes: {id: name}.
        where: the dataset, for errors and warnings.
        template: the prompt template of the dataset.

    Raises:
        ValueError: for an empty name. Equal names are only warned about.
    """
    names = []
    for key, name in classes.items():
        text = unicodedata.normalize("NFC", decode_text(name)).strip()
        if not text.replace("_", " ").strip():
            raise ValueError(
                f"{where}: expected a name of the class {key!r}, got an empty one. Name it as a prompt should show it."
            )
        names.append(ClassName(text, str(key), template))
    warn_duplicate_names(names, where)
    return tuple(names)


def decode_text(value: object) -> str:
    """Return a value as text; bytes, as arrays and archives have them, are UTF-8."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def warn_duplicate_names(names: Sequence[str], where: str) -> None:
    """Warn of classes that share a name, or differ in case and the form of a number only (Red, red; 0, 0.0)."""
    if repeated := sorted({str(name) for name in names if names.count(name) > 1}):
        warnings.warn(
            f"{where}: several classes are called {', '.join(map(repr, repeated))}, so their texts are the same. "
            "Rename one to silence this.",
            stacklevel=4,
        )
    similar: dict[str, str] = {}
    for name in dict.fromkeys(map(str, names)):
        if (other := similar.setdefault(_fold_name(name), name)) != name:
            warnings.warn(
                f"{where}: the classes {other!r} and {name!r} differ in their spelling only. Give both one name if "
                "they are one class.",
                stacklevel=4,
            )
            return


def _fold_name(name: str) -> str:
    try:
        return str(float(name))
    except ValueError:
        return name.casefold()


def normalize_name(name: str) -> str:
    """Drop case, spaces, _ and - of a name: "Real World", real_world and RealWorld become equal."""
    folded = unicodedata.normalize("NFC", name).strip().casefold()
    return re.sub(r"[\s_-]", "", folded) or folded


def build_folder_item(images: Path, path: str) -> ImageItem:
    """Build the item of a file below a folder."""
    return build_file_item(images / path, path)


def make_item_builder(images: Path) -> Callable[[str], ImageItem]:
    """Return a function that builds items of files below a folder."""
    return partial(build_folder_item, images)


def join_notes(*notes: str) -> str:
    """Join the notes that are not empty."""
    return "; ".join(note for note in notes if note)


def shorten_list(texts: Iterable[object], max_items: int, separator: str = ", ") -> str:
    """Join the first texts, with "..." where there are more."""
    shown = list(map(str, texts))
    return separator.join(shown[:max_items]) + " ..." * (len(shown) > max_items)


def build_dataset(raw: RawDataset, *, skip_broken: bool = False, allow_missing_classes: bool = False) -> Data:
    """Build the splits of what a reader returned.

    Args:
        raw: names and records.
        skip_broken: leave out files that are missing or cannot be decoded.
        allow_missing_classes: leave out classes without images.

    Raises:
        ValueError: for data without test images, unknown classes, missing files and classes without images.
    """
    where = raw.where or raw.name
    _require_known_classes(raw, where)
    records, items, broken = _collect_items(raw, where, skip_broken)
    note = raw.note
    if broken:
        broken_names = shorten_list((Path(path).name for path in broken), 5)
        note = join_notes(note, f"{len(broken)} broken files left out ({broken_names})")
    names = raw.names if raw.label_sets is not None else _select_classes(raw, records, where, allow_missing_classes)
    if len(names) < len(raw.names):
        note = join_notes(note, f"only the {len(names)} of {len(raw.names)} classes that have images")
    labels = {key: label for label, key in enumerate(class_ids(names))}
    domains = _order_domains(raw, records)
    info = raw.info | ({"domains": domains} if domains else {}) | _select_stages(raw.stages, labels)
    splits = {}
    for part, part_records in records.items():
        pairs = [*zip(part_records, items[part], strict=True)]
        if raw.label_sets is None:
            pairs = [pair for pair in pairs if pair[0].class_id in labels]
        splits[part] = Split(
            items=tuple(item for _, item in pairs),
            labels=tuple(_label_record(record, raw, labels) for record, _ in pairs),
            names=names,
            domains=tuple(domains.index(r.domain) for r, _ in pairs if r.domain is not None) if domains else None,
            augment=raw.augment,
            info=info,
        )
    train = splits.get("train", Split((), (), names, augment=raw.augment, info=info))
    described = {"origin": where, "layout": raw.layout, "rule": raw.rule, "remarks": raw.remarks}
    return Data(raw.name, train, splits.get("val"), splits["test"], raw.template, note, **described)


def _label_record(record: ImageRecord, raw: RawDataset, labels: Mapping[str, int]) -> Label:
    """Return the label of a record, or its row of 1 and 0 where images may have several."""
    if raw.label_sets is None:
        return labels[record.class_id]
    present, unknown = raw.label_sets[record.path]
    return tuple(1 if key in present else UNKNOWN if key in unknown else 0 for key in labels)


def _require_known_classes(raw: RawDataset, where: str) -> None:
    """Raise ValueError for data without a test split and for records of a class that there is not."""
    if "test" not in raw.records:
        raise ValueError(f"{where}: expected test images, got none. {raw.hint}")
    known = set(class_ids(raw.names))
    if raw.label_sets is None:
        present = {record.class_id for records in raw.records.values() for record in records}
    else:
        present = {key for label_set in raw.label_sets.values() for part in label_set for key in part}
    unknown = sorted(present - known)
    if unknown:
        raise ValueError(
            f"{where}: expected the {len(known)} classes of the dataset, got the class {unknown[0]!r} in its lists. "
            "Correct the lists."
        )


def _collect_items(
    raw: RawDataset, where: str, skip_broken: bool
) -> tuple[dict[str, list[ImageRecord]], dict[str, list[ImageItem]], list[str]]:
    """Return records and items of each split, and the paths that were left out; ValueError for missing files."""
    records: dict[str, list[ImageRecord]] = {part: [] for part in raw.records}
    items: dict[str, list[ImageItem]] = {part: [] for part in raw.records}
    missing, broken = list[str](), list[str]()
    for part, part_records in raw.records.items():
        for record in part_records:
            try:
                item = raw.build_item(record.path)
                if skip_broken:
                    item.decode_once(PROBE_PREPROCESSING, None)
            except (FileNotFoundError, NotADirectoryError):
                missing.append(record.path)
            except ValueError:
                broken.append(record.path)
            else:
                records[part].append(record)
                items[part].append(item)
    if missing and not skip_broken:
        count = "1 image that is" if len(missing) == 1 else f"{len(missing)} images that are"
        remedy = raw.hint if "prepare" in raw.hint else "Put them back or remove them from the list."
        raise ValueError(
            f"{where}: expected all listed images, got {count} not there ({shorten_list(missing, 3)}). {remedy} Or "
            "run without such files with --skip-broken."
        )
    return records, items, sorted(missing + broken)


def _select_classes(
    raw: RawDataset, records: Mapping[str, Sequence[ImageRecord]], where: str, allow_missing_classes: bool
) -> Names:
    """Return the names of the classes that have images in train and in test.

    Raises:
        ValueError: where some have none and that is not allowed, and where fewer than two classes are left.
    """
    all_ids = {record.class_id for part_records in records.values() for record in part_records}
    lacking: dict[str, str] = {}  # class id -> the first split without images of it
    for part in ("train", "test"):
        if part in raw.records:
            ids = all_ids if raw.incomplete_splits else {record.class_id for record in records[part]}
            for key in class_ids(raw.names):
                if key not in ids:
                    lacking.setdefault(key, part)
    if not lacking:
        return raw.names
    if not allow_missing_classes:
        part = "train" if "train" in lacking.values() else "test"
        empty = [str(n) for n, key in zip(raw.names, class_ids(raw.names), strict=True) if lacking.get(key) == part]
        raise ValueError(
            f"{where}: expected {part} images of all {len(raw.names)} classes, got none of {len(empty)} "
            f"({shorten_list(map(repr, empty), 8)}). {raw.hint}"
        )
    names = tuple(n for n, key in zip(raw.names, class_ids(raw.names), strict=True) if key not in lacking)
    if len(names) < 2:
        plural = "es" * (len(names) != 1)
        raise ValueError(
            f"{where}: expected images of at least 2 classes, got images of {len(names)} class{plural}. Add images of "
            "another class."
        )
    return names


def _order_domains(raw: RawDataset, records: Mapping[str, Sequence[ImageRecord]]) -> list[str]:
    present = {record.domain for part_records in records.values() for record in part_records}
    names = {domain for domain in present if domain is not None}
    return [domain for domain in raw.domains or sorted(names, key=_natural_sort_key) if domain in names]


def _select_stages(stages: int | list[list[str]] | None, labels: Mapping[str, int]) -> dict[str, object]:
    """Return the stages without the classes that were left out."""
    if isinstance(stages, list):
        return {"stages": [ids for stage in stages if (ids := [key for key in stage if key in labels])]}
    return {} if stages is None else {"stages": stages}


def _natural_sort_key(domain: str) -> list[object]:
    """Sort s2 before s10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", domain)]
