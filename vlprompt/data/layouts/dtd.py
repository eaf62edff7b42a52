"""DTD: labels/train1.txt, val1.txt and test1.txt with lines "banded/banded_0002.jpg"; the first of its ten splits."""

from pathlib import Path

from vlprompt.data.dataset import Row
from vlprompt.data.layouts import Parts, lines_of


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int]) -> tuple[Parts, str]:
    parts = {
        part: [Row(line, line.split("/")[0]) for line in lines_of(folder / "labels" / f"{part}1.txt")]
        for part in ("train", "val", "test")
    }
    return parts, "the first of the authors' ten splits (labels/*1.txt)"
