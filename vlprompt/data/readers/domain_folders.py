"""Folders of domains, domain/[images/]class/image: which they are, their classes matched by name, and their parts."""

import os
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from vlprompt.data.dataset import Row, plain
from vlprompt.data.images.decoding import SUFFIXES, files_under
from vlprompt.data.splits.sampling import cut


def folders_in(path: Path) -> dict[str, list[Path]]:
    """The sub-folders by their plain names, sorted."""
    found: dict[str, list[Path]] = {}
    with os.scandir(path) as entries:  # says what is a folder without looking at each of its files
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    for name in names:
        found.setdefault(plain(name), []).append(path / name)
    return found


def holds_images(path: Path) -> bool:
    """Whether an image lies straight in it."""
    with os.scandir(path) as entries:
        return any(entry.name.lower().endswith(SUFFIXES) and entry.is_file() for entry in entries)


def inside(domain: Path) -> Path:
    """Where the class folders of a domain are: in it, or in its images/, as Office-31 has them."""
    images = domain / "images"
    return images if images.is_dir() and not holds_images(images) and folders_in(images) else domain


def homes_in(root: Path) -> dict[str, Path]:
    """{name: folder} of the sub-folders, where they are domains; else nothing.

    They are where there are two or more, none holds an image itself, and a folder in them is called alike in two of
    them and in at least half.
    """
    homes: dict[str, Path] = {}
    often = Counter[str]()
    for folder in (one for alike in folders_in(root).values() for one in alike):
        home = inside(folder)
        if holds_images(home) or not (classes := folders_in(home)):
            return {}
        homes[unicodedata.normalize("NFC", folder.name).strip()] = home
        often.update(set(classes))
    shared = max(often.values(), default=0) >= max(2, len(homes) / 2)
    return dict(sorted(homes.items())) if shared and len(often) > 1 else {}


def class_keys(homes: Mapping[str, Path]) -> list[str]:
    """The ids of the classes: the names of their folders in the first domain that has them."""
    keys: dict[str, str] = {}
    for home in homes.values():
        for key, folders in folders_in(home).items():
            keys.setdefault(key, unicodedata.normalize("NFC", folders[0].name).strip())
    return sorted(keys.values())


def rows_of(root: Path, homes: Mapping[str, Path], ids: Sequence[str], hint: str = "") -> tuple[list[Row], list[str]]:
    """Rows of all domains, in their order and class by class, and the names of folders that are none of the classes.

    Paths begin at root. A class is in the folder that is called as its id but for case, spaces, _ and -. ValueError
    that names the domain for one without classes, and also the class for a class that lies in two folders, that has no
    images, or that only other domains have; it ends with the hint.
    """
    found = {domain: folders_in(home) for domain, home in homes.items()}
    known = {plain(key): key for key in ids}
    if len(known) < len(ids):
        alike = next(key for key in ids if known[plain(key)] != key)
        raise ValueError(f"the classes {alike!r} and {known[plain(alike)]!r} could not be told apart by their folders")
    every, rows = {key for folders in found.values() for key in folders}, list[Row]()
    for domain, folders in found.items():
        where = f"the domain {domain!r} ({str(homes[domain])!r})"
        if not folders.keys() & known.keys():
            raise ValueError(f"{where} has no folder of a class; it needs one for each, such as {ids[0]!r}{hint}")
        for name, key in ((name, key) for name, key in known.items() if name in every):
            if len(folders.get(name, [])) > 1:
                raise ValueError(f"{where} has the class {key!r} in {folders[name][0].name!r} and "
                                 f"{folders[name][1].name!r}; put them together")  # fmt: skip
            files = sorted(f.relative_to(root).as_posix() for one in folders.get(name, []) for f in files_under(one))
            if not files:
                what = "images" if name in folders else "folder"
                raise ValueError(f"{where} has no {what} of the class {key!r}; every domain needs every class: add its "
                                 f"images, or remove the class from all domains{hint}")  # fmt: skip
            rows += [Row(file, key, domain) for file in files]
    return rows, sorted({folders[0].name for one in found.values() for k, folders in one.items() if k not in known})


def cut_each(rows: Sequence[Row]) -> tuple[dict[str, list[Row]], str]:
    """Each class of each domain cut as `cut` does, domain after domain; and the note that says so."""
    domains: dict[str | None, list[Row]] = {}
    for row in rows:
        domains.setdefault(row.domain, []).append(row)
    parts: dict[str, list[Row]] = {"train": [], "val": [], "test": []}
    for of_domain in domains.values():
        for part, some in cut(of_domain).items():
            parts[part] += some
    return parts, "each class of each domain cut 50:20:30 into train, val and test"
