"""UCF101: ucfTrainTestlist/trainlist01.txt and testlist01.txt ("ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi").

The images are the middle frames, UCF-101-midframes/Apply_Eye_Makeup/v_ApplyEyeMakeup_g01_c01.jpg.
"""

import re
from pathlib import Path

from vlprompt.data.dataset import Row
from vlprompt.data.layouts import Parts, lines_of
from vlprompt.data.splits.sampling import with_val


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int]) -> tuple[Parts, str]:
    def rows(file: str) -> list[Row]:
        made = list[Row]()
        for line in lines_of(folder / "ucfTrainTestlist" / file):
            action, video = line.split()[0].split("/")
            key = "_".join(re.findall("[A-Z][^A-Z]*", action))
            made.append(Row(f"{key}/{Path(video).stem}.jpg", key))
        return made

    return with_val({"train": rows("trainlist01.txt"), "test": rows("testlist01.txt")})
