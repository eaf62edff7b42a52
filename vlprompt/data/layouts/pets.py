"""Oxford-IIIT Pets: annotations/trainval.txt and test.txt with lines "Abyssinian_100 1 1 1": name, class from 1."""

from pathlib import Path

from vlprompt.data.dataset import ImageRecord
from vlprompt.data.layouts import SplitRecords, class_id_at, read_lines
from vlprompt.data.splits.sampling import add_validation_split


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int]) -> tuple[SplitRecords, str]:
    def read_records(file: str) -> list[ImageRecord]:
        path = folder / "annotations" / file
        rows = [line.split() for line in read_lines(path) if not line.startswith("#")]
        return [ImageRecord(f"{row[0]}.jpg", class_id_at(ids, row[1], path)) for row in rows]

    return add_validation_split({"train": read_records("trainval.txt"), "test": read_records("test.txt")})
