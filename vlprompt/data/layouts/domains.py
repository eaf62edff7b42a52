"""A folder per domain and in it one per class, or images/ with them: Office-31, Office-Home, VisDA-2017, PACS, VLCS.

The domains may lie one folder deeper (PACS's kfold/). Names may differ in case, spaces, _ and -: "Real World",
real_world. Other folders, such as VisDA's test/, are left out.
"""

from pathlib import Path

from vlprompt.data.dataset import join_notes, normalize_name
from vlprompt.data.layouts import SplitRecords, note_ignored_folders
from vlprompt.data.readers.domain_folders import (
    find_class_root,
    group_folders_by_name,
    list_domain_records,
    split_each_domain,
)


def read(
    folder: Path, images: Path, ids: list[str], sizes: dict[str, int], domains: dict[str, str]
) -> tuple[SplitRecords, str]:
    records, ignored = list_domain_records(images, _find_domain_folders(images, domains), ids)
    splits, note = split_each_domain(records)
    return splits, join_notes(note, note_ignored_folders(ignored))


def _find_domain_folders(images: Path, domains: dict[str, str]) -> dict[str, Path]:
    """Return {word: folder of its classes}; OSError that names the domains that are not there."""
    names = {normalize_name(name) for name in domains}
    folders = group_folders_by_name(images)
    if names - folders.keys():  # perhaps all of them are one folder deeper
        deeper = [group_folders_by_name(one) for same_name in folders.values() for one in same_name]
        folders = max([folders, *deeper], key=lambda candidate: len(names & candidate.keys()))
    if missing := [name for name in domains if normalize_name(name) not in folders]:
        raise FileNotFoundError(
            f"{str(images)!r}: expected a folder with class folders for each of the domains {', '.join(domains)}, got "
            f"no folder {', '.join(map(repr, missing))}. Add it."
        )
    for name in domains:
        if len(same_name := folders[normalize_name(name)]) > 1:
            raise ValueError(
                f"{str(images)!r}: expected the domain {name!r} once, got the folders {same_name[0].name!r} and "
                f"{same_name[1].name!r}. Keep one of them."
            )
    return {word: find_class_root(folders[normalize_name(name)][0]) for name, word in domains.items()}
