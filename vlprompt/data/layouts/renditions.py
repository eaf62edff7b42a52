"""ImageNet-R as a stream: a folder per class, and perhaps train.txt and test.txt with a path in each line.

A class is the folder that an image lies in; what stands in a path before that folder and behind the path is not read.
"""

from pathlib import Path, PurePosixPath

from vlprompt.data.dataset import Row, joined
from vlprompt.data.layouts import Parts, held, lines_of
from vlprompt.data.layouts.folders import rows_of
from vlprompt.data.splits.sampling import cut, with_val

LISTS = {"train": "train.txt", "test": "test.txt"}


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int]) -> tuple[Parts, str]:
    if not any((folder / file).is_file() for file in LISTS.values()):
        rows, strange = rows_of(images, ids)
        halves = cut(rows, (0.8, 0.2))
        parts, note = with_val({"train": halves["train"], "test": halves["val"]}, held(sizes))
        told = "each class cut 80:20 into train and test, not the literature's split, whose lists differ"
        return parts, joined(told, note.partition("; ")[2], strange)
    listed = {part: _listed(folder / file) for part, file in LISTS.items()}
    if both := {row.path for row in listed["train"]} & {row.path for row in listed["test"]}:
        raise ValueError(
            f"{folder}: {min(both)!r} stands in train.txt and in test.txt; take lists that belong together"
        )
    parts, note = with_val(listed, held(sizes))
    return parts, joined("the lists train.txt and test.txt", note.partition("; ")[2])


def _listed(path: Path) -> list[Row]:
    rows = list[Row]()
    for line in lines_of(path):
        last = PurePosixPath(line.split()[0]).parts[-2:]
        if len(last) < 2:
            raise ValueError(f"{path} has the line {line!r}; a line is CLASS/FILE, such as n01443537/art_0.jpg")
        rows.append(Row("/".join(last), last[0]))
    return rows
