"""VTAB-1k as NOAH, SSF and Convpass hold it: lists train800.txt, val200.txt and test.txt with lines "path label".

train800val200.txt, which their final training takes, must be the first two together where it is there.
"""

from collections import Counter
from pathlib import Path

from vlprompt.data.dataset import Row, joined
from vlprompt.data.layouts import Parts, labels_of

LISTS = {"train": "train800.txt", "val": "val200.txt", "test": "test.txt"}
BOTH = "train800val200.txt"


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int]) -> tuple[Parts, str]:
    for file in LISTS.values():
        if not (folder / file).is_file():
            raise FileNotFoundError(
                f"there is no {file} in {str(folder)!r}; put the task's {', '.join(LISTS.values())} there, with a line "
                '"path label" for each image and paths that begin in that folder'
            )
    found = {part: labels_of(folder / file, len(ids)) for part, file in LISTS.items()}
    seen: dict[str, str] = {}
    for part, labels in found.items():
        for path in labels:
            if path in seen:
                raise ValueError(
                    f"{folder}: the image {path!r} stands in {LISTS[seen[path]]} and in {LISTS[part]}; an image to "
                    "learn from must not be one to test on"
                )
            seen[path] = part
    strange = ""
    if (folder / BOTH).is_file():
        strange = _same(folder, labels_of(folder / BOTH, len(ids)), found["train"] | found["val"])
    parts = {part: [Row(path, ids[label]) for path, label in labels.items()] for part, labels in found.items()}
    note, counts = "the lists of VTAB-1k", {part: len(rows) for part, rows in parts.items()}
    if sizes and counts != sizes:
        whole, here = ("/".join(f"{n:,}" for n in each.values()) for each in (sizes, counts))
        note = f"lists of {here} images in train/val/test, where VTAB-1k has {whole}"
    return parts, joined(note, strange)


def _same(folder: Path, both: dict[str, int], wanted: dict[str, int]) -> str:
    """Compares the long list with the two short ones; a note where copies differ in size.

    The long list names the same files, or copies of them in a folder of its own, as NOAH writes them. ValueError for
    other images or labels.
    """
    lists = f"{LISTS['train']} and {LISTS['val']}"
    if not both.keys() & wanted.keys():
        if Counter(both.values()) != Counter(wanted.values()):
            raise ValueError(
                f"{folder}: {BOTH} has other labels than {lists} together; take lists that belong together"
            )
        same = _sizes(folder, both) == _sizes(folder, wanted)
        return "" if same else f"the files of {BOTH} are no copies of those of {lists}"
    for path in sorted(both.keys() ^ wanted.keys()):
        has, lacks = (BOTH, lists) if path in both else (lists, BOTH)
        raise ValueError(f"{folder}: {path!r} is in {has} but not in {lacks}; take lists that belong together")
    for path, label in both.items():
        if label != wanted[path]:
            raise ValueError(f"{folder}: {path!r} has the label {label} in {BOTH} and {wanted[path]} in {lists}")
    return ""


def _sizes(folder: Path, labels: dict[str, int]) -> Counter[tuple[int, int]]:
    """How often each label and size of a file comes; a file that is not there has no size."""
    files = ((folder / path, label) for path, label in labels.items())
    return Counter((label, file.stat().st_size if file.is_file() else -1) for file, label in files)
