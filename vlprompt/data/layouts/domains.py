"""A folder per domain and in it one per class, or images/ with them: Office-31, Office-Home, VisDA-2017, PACS, VLCS.

The domains may lie one folder deeper (PACS's kfold/). Names may differ in case, spaces, _ and -: "Real World",
real_world. Other folders, such as VisDA's test/, are left out.
"""

from pathlib import Path

from vlprompt.data.dataset import joined, plain
from vlprompt.data.layouts import Parts
from vlprompt.data.readers.domain_folders import cut_each, folders_in, inside, rows_of


def read(
    folder: Path, images: Path, ids: list[str], sizes: dict[str, int], domains: dict[str, str]
) -> tuple[Parts, str]:
    rows, strange = rows_of(images, _homes(images, domains), ids)
    parts, note = cut_each(rows)
    some = ", ".join(strange[:4]) + " ..." * (len(strange) > 4)
    return parts, joined(note, f"folders that are not on the card are left out: {some}" if strange else "")


def _homes(images: Path, domains: dict[str, str]) -> dict[str, Path]:
    """{word: folder of its classes}; OSError that names the domains that are not there."""
    wanted = {plain(name) for name in domains}
    there = folders_in(images)
    if wanted - there.keys():  # perhaps all of them are in one that lies here
        deeper = [folders_in(one) for alike in there.values() for one in alike]
        there = max([there, *deeper], key=lambda found: len(wanted & found.keys()))
    if missing := [name for name in domains if plain(name) not in there]:
        raise FileNotFoundError(
            f"{str(images)!r} has no folder {', '.join(map(repr, missing))}; it needs one for each of the domains "
            f"{', '.join(domains)}, with a folder for each class in it"
        )
    for name in domains:
        if len(alike := there[plain(name)]) > 1:
            raise ValueError(f"{str(images)!r} has the domain {name!r} in {alike[0].name!r} and {alike[1].name!r}; "
                             "keep one of them")  # fmt: skip
    return {word: inside(there[plain(name)][0]) for name, word in domains.items()}
