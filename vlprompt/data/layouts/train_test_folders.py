"""A folder per class in train/ and in test/, as the archives of LAMDA-PILOT have them: ImageNet-R and A, CUB, VTAB ...

The name of a class stands behind the dot of its folder ("001.Black_footed_Albatross"), or is the folder's name.
"""

from pathlib import Path

from vlprompt.data.dataset import ImageRecord, join_notes
from vlprompt.data.layouts import SplitRecords, list_folder_names, validation_fraction
from vlprompt.data.layouts.folders import list_class_records
from vlprompt.data.splits.sampling import add_validation_split


def list_classes(folder: Path, images: Path) -> dict[str, str]:
    """Return {folder: name} of the classes that are there, folders that are numbers by their value."""
    keys = {key for part in ("train", "test") if (images / part).is_dir() for key in list_folder_names(images / part)}
    ordered = sorted(keys, key=lambda key: (int(key) if key.isdecimal() else 0, key))
    return {key: key.rpartition(".")[2].replace("_", " ") for key in ordered}


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int]) -> tuple[SplitRecords, str]:
    if lacking := [part for part in ("train", "test") if not (images / part).is_dir()]:
        raise FileNotFoundError(
            f"{str(images)!r}: expected the folders train and test, got no {lacking[0]}. Unpack the archive again."
        )
    splits, notes = dict[str, list[ImageRecord]](), list[str]()
    for part in ("train", "test"):
        splits[part], note = list_class_records(images, ids, part)
        notes.append(note)
    complete, note = add_validation_split(splits, validation_fraction(sizes))
    return complete, join_notes("the folders train and test", note.partition("; ")[2], *dict.fromkeys(notes))
