"""ImageNet-R as a stream: a folder per class, and perhaps train.txt and test.txt with a path in each line.

A class is the folder that an image lies in; what stands in a path before that folder and behind the path is not read.
"""

from pathlib import Path, PurePosixPath

from vlprompt.data.dataset import ImageRecord, join_notes
from vlprompt.data.layouts import SplitRecords, read_lines, validation_fraction
from vlprompt.data.layouts.folders import list_class_records
from vlprompt.data.splits.sampling import add_validation_split, split_per_class

LIST_FILES = {"train": "train.txt", "test": "test.txt"}


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int]) -> tuple[SplitRecords, str]:
    if not any((folder / file).is_file() for file in LIST_FILES.values()):
        records, ignored = list_class_records(images, ids)
        halves = split_per_class(records, (0.8, 0.2))
        splits, note = add_validation_split(
            {"train": halves["train"], "test": halves["val"]}, validation_fraction(sizes)
        )
        origin = "each class cut 80:20 into train and test, not the literature's split, whose lists differ"
        return splits, join_notes(origin, note.partition("; ")[2], ignored)
    listed = {part: _read_path_list(folder / file) for part, file in LIST_FILES.items()}
    if both := {record.path for record in listed["train"]} & {record.path for record in listed["test"]}:
        raise ValueError(
            f"{folder}: expected each image in one list, got {min(both)!r} in train.txt and in test.txt. Take lists "
            "that belong together."
        )
    splits, note = add_validation_split(listed, validation_fraction(sizes))
    return splits, join_notes("the lists train.txt and test.txt", note.partition("; ")[2])


def _read_path_list(path: Path) -> list[ImageRecord]:
    records = list[ImageRecord]()
    for line in read_lines(path):
        class_and_file = PurePosixPath(line.split()[0]).parts[-2:]
        if len(class_and_file) < 2:
            raise ValueError(
                f"{path}: expected lines CLASS/FILE such as n01443537/art_0.jpg, got {line!r}. Correct the line."
            )
        records.append(ImageRecord("/".join(class_and_file), class_and_file[0]))
    return records
