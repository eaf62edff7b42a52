r"""NUS-WIDE: ImageList/TrainImagelist.txt and TestImagelist.txt, lines "actor\0001_2124494179.jpg".

Groundtruth/TrainTestLabels/Labels_CONCEPT_Train.txt and _Test.txt have a line 1 or 0 for each of these images. Images
without any of the 81 concepts count.
"""

from pathlib import Path

from vlprompt.data.dataset import ImageRecord, LabelSet
from vlprompt.data.layouts import SplitRecords, read_lines
from vlprompt.data.splits.sampling import add_validation_split


def read_label_sets(folder: Path, images: Path, ids: list[str]) -> tuple[SplitRecords, dict[str, LabelSet], str]:
    records, labels = dict[str, list[ImageRecord]](), dict[str, set[str]]()
    for part, name in (("train", "Train"), ("test", "Test")):
        paths = [line.replace("\\", "/") for line in read_lines(folder / "ImageList" / f"{name}Imagelist.txt")]
        records[part] = [ImageRecord(path, "") for path in paths]
        labels |= {path: set() for path in paths}
        for key in ids:
            file = folder / "Groundtruth" / "TrainTestLabels" / f"Labels_{key}_{name}.txt"
            for path, value in zip(paths, _read_column(file, len(paths)), strict=True):
                if value == "1":
                    labels[path].add(key)
    complete, note = add_validation_split(records)
    label_sets = {path: LabelSet(frozenset(one)) for path, one in labels.items()}
    n_empty = sum(not label_set.present for label_set in label_sets.values())
    return complete, label_sets, f"{note}; {n_empty} images without a concept are in it"


def _read_column(file: Path, n_images: int) -> list[str]:
    values = read_lines(file)
    if len(values) != n_images or not {*values} <= {"0", "1"}:
        raise ValueError(
            f"{file}: expected 0 or 1 for each of {n_images} images, got {len(values)} lines with "
            f"{sorted({*values})[:3]}. Get it again."
        )
    return values
