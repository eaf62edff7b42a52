"""CORe50: core50_128x128/s1/o1/C_01_01_000.png, a folder per session and in it one per object; domain = session.

Its authors train on eight of the eleven sessions and test on the other three.
"""

from pathlib import Path

from vlprompt.data.dataset import join_notes
from vlprompt.data.layouts import SplitRecords, combine_domains, list_folder_names, validation_fraction
from vlprompt.data.layouts.folders import list_class_records

TRAIN_SESSIONS, TEST_SESSIONS = (1, 2, 4, 5, 6, 8, 9, 11), (3, 7, 10)


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int]) -> tuple[SplitRecords, str]:
    sessions = [f"s{n}" for n in sorted(TRAIN_SESSIONS + TEST_SESSIONS)]
    if missing := [session for session in sessions if not (images / session).is_dir()]:
        raise FileNotFoundError(
            f"{str(images)!r}: expected the sessions s1 to s11 with a folder o1 to o50 in each, got no "
            f"{', '.join(missing)}. Unpack the archive again."
        )
    all_objects = {key for session in sessions for key in list_folder_names(images / session)}
    domains: dict[str, SplitRecords] = {}
    ignored = ""
    for session in sessions:
        if missing := sorted(all_objects - set(list_folder_names(images / session))):
            raise ValueError(
                f"{str(images / session)!r}: expected the files that other sessions have, got no {missing[0]}. Get it "
                "again."
            )
        records, ignored = list_class_records(images, ids, session)
        is_train = int(session[1:]) in TRAIN_SESSIONS
        domains[session] = {"train": records if is_train else [], "test": [] if is_train else records}
    splits, note = combine_domains(domains, validation_fraction(sizes))
    return splits, join_notes(note, ignored)
