"""PASCAL VOC: ImageSets/Main/trainval.txt and test.txt name images, Annotations/NAME.xml their objects.

An object that is marked as difficult does not count: where a class has no other one, it is absent.
"""

from pathlib import Path
from xml.etree import ElementTree

from vlprompt.data.dataset import ImageRecord, LabelSet
from vlprompt.data.layouts import SplitRecords, read_lines, read_required_text
from vlprompt.data.splits.sampling import add_validation_split


def read_label_sets(folder: Path, images: Path, ids: list[str]) -> tuple[SplitRecords, dict[str, LabelSet], str]:
    records, label_sets = dict[str, list[ImageRecord]](), dict[str, LabelSet]()
    for part, file in (("train", "trainval.txt"), ("test", "test.txt")):
        names = [line.split()[0] for line in read_lines(images.parent / "ImageSets" / "Main" / file)]
        records[part] = [ImageRecord(f"{name}.jpg", "") for name in names]
        for name in names:
            label_sets[f"{name}.jpg"] = _read_objects(images.parent / "Annotations" / f"{name}.xml")
    complete, note = add_validation_split(records)
    return complete, label_sets, f"{note}; difficult objects do not count"


def _read_objects(path: Path) -> LabelSet:
    try:
        root = ElementTree.fromstring(read_required_text(path))
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: expected XML, got another format ({error}). Get it again.") from error
    objects = [
        (part.findtext("name", "").strip(), part.findtext("difficult", "0").strip()) for part in root.iter("object")
    ]
    return LabelSet(frozenset(name for name, difficult in objects if difficult != "1"))
