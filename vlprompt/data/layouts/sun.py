"""SUN397: ClassName.txt ("/a/abbey"), Training_01.txt and Testing_01.txt ("/a/abbey/sun_aaa.jpg").

A class's id is its path without the letter; its name has the words of the path reversed, as CoOp's authors write it.
"""

from pathlib import Path

from vlprompt.data.dataset import ImageRecord
from vlprompt.data.layouts import SplitRecords, read_lines
from vlprompt.data.splits.sampling import add_validation_split


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int]) -> tuple[SplitRecords, str]:
    def read_list(file: str) -> list[str]:
        return read_lines(folder / file if (folder / file).is_file() else images / file)

    classes = [line.strip("/").split("/", 1)[1] for line in read_list("ClassName.txt")]
    if unknown := [key for key in classes if key not in ids]:
        raise ValueError(
            f"ClassName.txt: expected the classes of the card, got {unknown[0]!r}. Get it again, or correct the card."
        )
    if classes != [key for key in ids if key in classes]:
        raise ValueError(
            f"ClassName.txt in {str(folder)!r}: expected the classes in the order of the card, got another order. Get "
            "it again, or correct the card."
        )

    def read_records(file: str) -> list[ImageRecord]:
        return [
            ImageRecord(line.strip("/"), line.strip("/").split("/", 1)[1].rsplit("/", 1)[0]) for line in read_list(file)
        ]

    splits, note = add_validation_split(
        {"train": read_records("Training_01.txt"), "test": read_records("Testing_01.txt")}
    )
    return splits, f"{note} (Training_01, Testing_01)"
