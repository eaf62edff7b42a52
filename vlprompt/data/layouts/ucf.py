"""UCF101: ucfTrainTestlist/trainlist01.txt and testlist01.txt ("ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi").

The images are the middle frames, UCF-101-midframes/Apply_Eye_Makeup/v_ApplyEyeMakeup_g01_c01.jpg.
"""

import re
from pathlib import Path

from vlprompt.data.dataset import ImageRecord
from vlprompt.data.layouts import SplitRecords, read_lines
from vlprompt.data.splits.sampling import add_validation_split


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int]) -> tuple[SplitRecords, str]:
    def read_records(file: str) -> list[ImageRecord]:
        records = list[ImageRecord]()
        for line in read_lines(folder / "ucfTrainTestlist" / file):
            action, video = line.split()[0].split("/")
            key = "_".join(re.findall("[A-Z][^A-Z]*", action))
            records.append(ImageRecord(f"{key}/{Path(video).stem}.jpg", key))
        return records

    return add_validation_split({"train": read_records("trainlist01.txt"), "test": read_records("testlist01.txt")})
