"""Food-101: meta/train.json and test.json ({class: ["class/1005649", ...]}), or the same as lines of .txt."""

import json
from pathlib import Path

from vlprompt.data.dataset import ImageRecord
from vlprompt.data.layouts import SplitRecords, read_lines, read_required_text
from vlprompt.data.splits.sampling import add_validation_split


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int]) -> tuple[SplitRecords, str]:
    def read_records(part: str) -> list[ImageRecord]:
        path = folder / "meta" / f"{part}.json"
        if path.is_file():
            names = [name for class_names in json.loads(read_required_text(path)).values() for name in class_names]
        else:
            names = read_lines(path.with_suffix(".txt"))
        return [ImageRecord(f"{name}.jpg", name.split("/")[0]) for name in names]

    return add_validation_split({"train": read_records("train"), "test": read_records("test")})
