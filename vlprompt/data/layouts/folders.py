"""A folder per class, called by its id, and no lists: Caltech-101, EuroSAT, ImageNet's Sketch, A and R.

Sets without a split are cut; sets that are a test only (the card's sizes say so) are all test.
"""

from pathlib import Path

from vlprompt.data.dataset import ImageRecord, join_notes
from vlprompt.data.images.files import list_image_files
from vlprompt.data.layouts import SplitRecords, list_folder_names, note_ignored_folders
from vlprompt.data.splits.sampling import split_per_class


def list_class_records(images: Path, ids: list[str], subfolder: str = "") -> tuple[list[ImageRecord], str]:
    """List the records of images/subfolder/id/, files sorted; return them and a note on folders that are no class."""
    folders = list_folder_names(images / subfolder)
    records = [
        ImageRecord(file.relative_to(images).as_posix(), key)
        for key in ids
        if key in folders
        for file in list_image_files(images / subfolder / key)
    ]
    return records, note_ignored_folders(set(folders) - set(ids))


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int]) -> tuple[SplitRecords, str]:
    records, note = list_class_records(images, ids)
    if set(sizes) == {"test"}:
        return {"test": records}, note
    return split_per_class(records), join_notes("each class cut 50:20:30 into train, val and test", note)
