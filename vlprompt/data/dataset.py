"""What every reader of a dataset gives: classes in label order and rows; and the data that is made of them."""

import re
import unicodedata
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from vlprompt.core.batch import Split
from vlprompt.core.class_names import Name, Names, ids
from vlprompt.core.images import Item, Look
from vlprompt.data.images.decoding import file_item


def class_names(classes: dict[str, str], where: str, hand: str | None = None) -> tuple[Name, ...]:
    """Names from {id: name}; ValueError for an empty one, a warning for two alike."""
    names = []
    for key, name in classes.items():
        text = unicodedata.normalize("NFC", str(name)).strip()
        if not text.replace("_", " ").strip():
            raise ValueError(f"{where}: the class {key!r} has an empty name; give it a name that a caption can hold")
        names.append(Name(text, str(key), hand))
    told_alike(names, where)
    return tuple(names)


def told_alike(names: Sequence[str], where: str) -> None:
    """A warning for names that are alike."""
    if alike := sorted({str(n) for n in names if names.count(n) > 1}):
        warnings.warn(
            f"{where}: several classes are called {', '.join(map(repr, alike))}; their texts are the same", stacklevel=4
        )


def plain(name: str) -> str:
    """What stays of a name when case, spaces, _ and - say nothing: "Real World", real_world and RealWorld are alike."""
    folded = unicodedata.normalize("NFC", name).strip().casefold()
    return re.sub(r"[\s_-]", "", folded) or folded


LEAST = Look((8, 8))  # enough to know that an image can be decoded


class Row(NamedTuple):
    """One image: its path inside the dataset (what its item is found by), the id of its class, perhaps a domain."""

    path: str
    id: str
    domain: str | None = None


@dataclass(frozen=True)
class Found:
    """names in label order (Name.id is what rows call a class by), rows of each part, how an item is made of a path.

    sparse: a class may lack images in a part, since published lists leave it so; it needs some in any part. domains: in
    the order in which they are met (default: sorted). stages: in how many a stream meets the classes, or which in each.
    """

    names: Names
    parts: Mapping[str, Sequence[Row]]
    item: Callable[[str], Item]
    note: str = ""
    info: dict[str, object] = field(default_factory=dict)
    sparse: bool = False
    domains: Sequence[str] = ()
    stages: int | list[list[str]] | None = None


@dataclass(frozen=True)
class Data:
    """A dataset that was opened: its splits, its template, and what a result must say of it.

    val may be missing, and train may be empty (a set that is only for tests).
    """

    name: str
    train: Split
    val: Split | None
    test: Split
    template: str
    note: str

    def hash(self) -> str:
        """Tells it from other data: the hashes of its splits."""
        return "-".join(split.hash()[:6] for split in (self.train, self.val, self.test) if split is not None)


def item_of(images: Path, path: str) -> Item:
    return file_item(images / path, path)


def under(images: Path) -> Callable[[str], Item]:
    """Items of files below a folder."""
    return partial(item_of, images)


def made(name: str, found: Found, template: str, augment: str, where: str, hint: str, *,
         skip_broken: bool = False, only_there: bool = False) -> Data:  # fmt: skip
    """The splits of what was found.

    where and hint: how errors begin and end. skip_broken: leave out files that are missing or can't be decoded.
    only_there: leave out classes without images instead of a ValueError.
    """

    places = {key: i for i, key in enumerate(ids(found.names))}
    if "test" not in found.parts:
        raise ValueError(f"{where} has no test images; {hint}")
    strange = sorted({row.id for of_part in found.parts.values() for row in of_part} - set(places))
    if strange:
        raise ValueError(
            f"{where}: the data name the class {strange[0]!r}, which is not among its {len(places)} classes"
        )
    rows, items, left = _items(found, where, hint, skip_broken)
    names, note = found.names, found.note
    if left:
        some = ", ".join(Path(p).name for p in left[:5]) + " ..." * (len(left) > 5)
        note = joined(note, f"{len(left)} broken files left out ({some})")
    lacking: dict[str, str] = {}  # id -> the first part that has none
    every = {row.id for of_part in rows.values() for row in of_part}
    for part in ("train", "test"):
        if part in found.parts:
            has = every if found.sparse else {row.id for row in rows[part]}
            for key in places:
                if key not in has:
                    lacking.setdefault(key, part)
    if lacking and not only_there:
        part = "train" if "train" in lacking.values() else "test"
        short = [str(n) for n, key in zip(names, places, strict=True) if lacking.get(key) == part]
        told = ", ".join(map(repr, short[:8])) + " ..." * (len(short) > 8)
        raise ValueError(f"{where} has too few images for {part}: none in {len(short)} of {len(names)} classes "
                         f"({told}); {hint}")  # fmt: skip
    if lacking:
        kept = [i for key, i in places.items() if key not in lacking]
        names = tuple(names[i] for i in kept)
        note = joined(note, f"only the {len(kept)} of {len(places)} classes that have images")
        if len(kept) < 2:
            raise ValueError(
                f"{where} has images of {len(kept)} class{'es' * (len(kept) != 1)} only; two classes are the least"
            )
        places = {key: i for i, key in enumerate(ids(names))}
    there = {row.domain for of_part in rows.values() for row in of_part if row.domain is not None}
    domains = [domain for domain in found.domains or sorted(there, key=_counted) if domain in there]
    stages = found.stages
    if isinstance(stages, list):
        stages = [kept for stage in stages if (kept := [key for key in stage if key in places])]
    info = found.info | ({"domains": domains} if domains else {}) | ({"stages": stages} if stages is not None else {})
    splits = {}
    for part, of_part in rows.items():
        kept = [(row, item) for row, item in zip(of_part, items[part], strict=True) if row.id in places]
        which = tuple(domains.index(row.domain) for row, _ in kept if row.domain is not None) if domains else None
        splits[part] = Split(tuple(item for _, item in kept), tuple(places[row.id] for row, _ in kept), names, which,
                             augment, info)  # fmt: skip
    train = splits.get("train", Split((), (), names, augment=augment, info=info))
    return Data(name, train, splits.get("val"), splits["test"], template, note)


def _items(
    found: Found, where: str, hint: str, skip_broken: bool
) -> tuple[dict[str, list[Row]], dict[str, list[Item]], list[str]]:
    """Rows and items of each part, and the paths that were left out; ValueError for files that are not there."""
    rows: dict[str, list[Row]] = {part: [] for part in found.parts}
    items: dict[str, list[Item]] = {part: [] for part in found.parts}
    missing, broken = list[str](), list[str]()
    for part, of_part in found.parts.items():
        for row in of_part:
            try:
                item = found.item(row.path)
                if skip_broken:
                    item.once(LEAST, None)
            except (FileNotFoundError, NotADirectoryError):
                missing.append(row.path)
            except ValueError:
                broken.append(row.path)
            else:
                rows[part].append(row)
                items[part].append(item)
    if missing and not skip_broken:
        told = ", ".join(missing[:3]) + " ..." * (len(missing) > 3)
        are = "1 image that is" if len(missing) == 1 else f"{len(missing)} images that are"
        rest = hint if "prepare" in hint else "put them back or take them off its list"
        raise ValueError(f"{where} names {are} not there ({told}); {rest}, or run without such files by --skip-broken")
    return rows, items, sorted(missing + broken)


def _counted(domain: str) -> list[object]:
    """What sorts s2 before s10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", domain)]


def joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)
