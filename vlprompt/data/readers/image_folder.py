"""A folder of images as a dataset: a sub-folder per class, with or without train/, val/, test/ or domains above."""

import unicodedata
from pathlib import Path

from vlprompt.data.dataset import Found, Row, class_names, joined, under
from vlprompt.data.images.decoding import SUFFIXES, files_under
from vlprompt.data.readers.domain_folders import class_keys, cut_each, homes_in, rows_of
from vlprompt.data.readers.split_file import OWN, read_split
from vlprompt.data.splits.sampling import PARTS, cut, with_val


def read_folder(root: Path) -> Found:
    """Classes and rows of train, val and test, with a note on how the parts were made.

    A split that `vlprompt data split` saved in it is taken as it is. With train/ and test/ above the classes these are
    taken as they are, and a fifth of train becomes val unless there is one. Otherwise each class is cut 50 : 20 : 30
    (CoOp's rule for sets without a split), always the same way. Where the sub-folders are domains (domains.homes_in),
    each class of each domain is cut so. ValueError for a folder without classes, an empty class, classes that differ
    between parts or domains, or two folders of one id.
    """
    if (root / OWN).is_file():
        return read_split(root / OWN, root)
    found = {PARTS[p.name.lower()]: p for p in sorted(root.iterdir()) if p.is_dir() and p.name.lower() in PARTS}
    if found and not {"train", "test"} <= set(found):
        raise ValueError(
            f"{str(root)!r} has {', '.join(sorted(found))}/ but not both train/ and test/: "
            "add the other, or put the class folders at the top"
        )
    if not found and (homes := homes_in(root)):
        return _of_domains(root, homes)
    parts = {part: _classes(path) for part, path in (found or {"all": root}).items()}
    keys = list(next(iter(parts.values())) if not found else parts["train"])
    for part, classes in parts.items():
        if strange := set(classes) ^ set(keys):
            one = min(strange)
            has, lacks = (part, "train") if one in classes else ("train", part)
            raise ValueError(
                f"the class {one!r} is in {has}/ but not in {lacks}/ of {str(root)!r}; every part needs every class"
            )
    rows = {
        part: [Row(f.relative_to(root).as_posix(), key) for key in keys for f in classes[key]]
        for part, classes in parts.items()
    }
    made, note = with_val(rows) if found else (cut(rows["all"]), "each class cut 50:20:30 into train, val and test")
    names = class_names({key: key for key in keys}, f"the folder {str(root)!r}")
    return Found(names, made, under(root), note)


def _of_domains(root: Path, homes: dict[str, Path]) -> Found:
    where, keys = f"the folder {str(root)!r}", class_keys(homes)
    hint = " (its sub-folders share names, so they are taken for domains; images of a class lie straight in its folder)"
    parts, note = cut_each(rows_of(root, homes, keys, hint)[0])
    names, note = class_names({key: key for key in keys}, where), joined("its folders are domains", note)
    return Found(names, parts, under(root), note, {"transductive": True}, domains=tuple(homes))


def _classes(path: Path) -> dict[str, list[Path]]:
    """{id: files} of the sub-folders, in the order of their names."""
    classes: dict[str, list[Path]] = {}
    for folder in sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")):
        key = unicodedata.normalize("NFC", folder.name).strip()
        if key in classes:
            raise ValueError(
                f"two folders of {str(path)!r} are the class {key!r} "
                "once spaces around the name are left out; rename one"
            )
        files = files_under(folder)
        if not files:
            raise ValueError(
                f"the class folder {str(folder)!r} has no images ({', '.join(SUFFIXES[:4])} ...); add some or remove it"
            )
        classes[key] = files
    if not classes:
        raise ValueError(f"{str(path)!r} has no sub-folders; a dataset folder has one sub-folder of images per class")
    if len(classes) < 2:
        raise ValueError(f"{str(path)!r} has only the class {next(iter(classes))!r}; two classes are the least")
    return classes
