"""VTAB-1k as NOAH, SSF and Convpass hold it: lists train800.txt, val200.txt and test.txt with lines "path label".

train800val200.txt, which their final training takes, must be the first two together where it is there.
"""

from collections import Counter
from pathlib import Path

from vlprompt.data.dataset import ImageRecord, join_notes
from vlprompt.data.layouts import SplitRecords, read_label_list

LIST_FILES = {"train": "train800.txt", "val": "val200.txt", "test": "test.txt"}
TRAIN_VAL_LIST = "train800val200.txt"


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int]) -> tuple[SplitRecords, str]:
    for file in LIST_FILES.values():
        if not (folder / file).is_file():
            raise FileNotFoundError(
                f"{str(folder)!r}: expected {', '.join(LIST_FILES.values())}, got no {file}. Put them there, with "
                'a line "path label" for each image and paths that begin in that folder.'
            )
    labels_by_split = {part: read_label_list(folder / file, len(ids)) for part, file in LIST_FILES.items()}
    file_of: dict[str, str] = {}
    for part, labels in labels_by_split.items():
        for path in labels:
            if path in file_of:
                raise ValueError(
                    f"{folder}: expected each image in one list, got {path!r} in {file_of[path]} and in "
                    f"{LIST_FILES[part]}. Images to train on must not be in the test list; remove one line."
                )
            file_of[path] = LIST_FILES[part]
    difference = ""
    if (folder / TRAIN_VAL_LIST).is_file():
        combined = read_label_list(folder / TRAIN_VAL_LIST, len(ids))
        difference = _compare_lists(folder, combined, labels_by_split["train"] | labels_by_split["val"])
    records = {
        part: [ImageRecord(path, ids[label]) for path, label in labels.items()]
        for part, labels in labels_by_split.items()
    }
    note, counts = "the lists of VTAB-1k", {part: len(part_records) for part, part_records in records.items()}
    if sizes and counts != sizes:
        expected, actual = ("/".join(f"{n:,}" for n in numbers.values()) for numbers in (sizes, counts))
        note = f"lists of {actual} images in train/val/test, where VTAB-1k has {expected}"
    return records, join_notes(note, difference)


def _compare_lists(folder: Path, combined: dict[str, int], expected: dict[str, int]) -> str:
    """Compare the long list with the two short ones; return a note where copies differ in size.

    The long list names the same files, or copies of them in another folder, as NOAH writes them.

    Raises:
        ValueError: for other images or labels.
    """
    lists = f"{LIST_FILES['train']} and {LIST_FILES['val']}"
    if not combined.keys() & expected.keys():
        if Counter(combined.values()) != Counter(expected.values()):
            raise ValueError(
                f"{folder}: expected the labels of {lists} together, got others in {TRAIN_VAL_LIST}. Take lists that "
                "belong together."
            )
        is_copy = _count_labels_and_sizes(folder, combined) == _count_labels_and_sizes(folder, expected)
        return "" if is_copy else f"the files of {TRAIN_VAL_LIST} are no copies of those of {lists}"
    for path in sorted(combined.keys() ^ expected.keys()):
        has, lacks = (TRAIN_VAL_LIST, lists) if path in combined else (lists, TRAIN_VAL_LIST)
        raise ValueError(
            f"{folder}: expected the same images in both, got {path!r} in {has} but not in {lacks}. Take lists that "
            "belong together."
        )
    for path, label in combined.items():
        if label != expected[path]:
            raise ValueError(
                f"{folder}: expected the label {expected[path]} of {path!r} as in {lists}, got {label} in "
                f"{TRAIN_VAL_LIST}. Take lists that belong together."
            )
    return ""


def _count_labels_and_sizes(folder: Path, labels: dict[str, int]) -> Counter[tuple[int, int]]:
    """Count each pair of label and file size; a file that is not there has the size -1."""
    files = ((folder / path, label) for path, label in labels.items())
    return Counter((label, file.stat().st_size if file.is_file() else -1) for file, label in files)
