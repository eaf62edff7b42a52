"""DTD: labels/train1.txt, val1.txt and test1.txt with lines "banded/banded_0002.jpg"; the first of its ten splits."""

from pathlib import Path

from vlprompt.data.dataset import ImageRecord
from vlprompt.data.layouts import SplitRecords, read_lines
from vlprompt.data.splits.names import SPLIT_NAMES


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int]) -> tuple[SplitRecords, str]:
    records = {
        part: [ImageRecord(line, line.split("/")[0]) for line in read_lines(folder / "labels" / f"{part}1.txt")]
        for part in SPLIT_NAMES
    }
    return records, "the first of the authors' ten splits (labels/*1.txt)"
