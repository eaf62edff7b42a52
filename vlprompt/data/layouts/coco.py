"""MS COCO 2014: annotations/instances_train2014.json and instances_val2014.json; the test is val2014, as in the field.

Class ids are the categories' names. All listed images count, those without an object too.
"""

import json
from pathlib import Path

from vlprompt.data.dataset import ImageRecord, LabelSet
from vlprompt.data.layouts import SplitRecords, read_required_text
from vlprompt.data.splits.sampling import add_validation_split


def read_label_sets(folder: Path, images: Path, ids: list[str]) -> tuple[SplitRecords, dict[str, LabelSet], str]:
    records, label_sets = dict[str, list[ImageRecord]](), dict[str, LabelSet]()
    for part, name in (("train", "train2014"), ("test", "val2014")):
        by_image = _read_instances(folder / "annotations" / f"instances_{name}.json")
        records[part] = [ImageRecord(f"{name}/{file}", "") for file in by_image]
        label_sets |= {f"{name}/{file}": LabelSet(frozenset(labels)) for file, labels in by_image.items()}
    complete, note = add_validation_split(records)
    n_empty = sum(not label_set.present for label_set in label_sets.values())
    return complete, label_sets, f"{note}; {n_empty} images without an object are in it"


def _read_instances(path: Path) -> dict[str, set[str]]:
    """Return the names of the categories in each image file, in the file's order."""
    try:
        content = json.loads(read_required_text(path))
        names = {category["id"]: category["name"] for category in content["categories"]}
        files = {image["id"]: image["file_name"] for image in content["images"]}
        labels: dict[str, set[str]] = {file: set() for file in files.values()}
        for annotation in content["annotations"]:
            labels[files[annotation["image_id"]]].add(names[annotation["category_id"]])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected COCO's categories, images and annotations, got other content ({error!r}). Get it again."
        ) from error
    return labels
