"""CORe50: core50_128x128/s1/o1/C_01_01_000.png, a folder per session and in it one per object; domain = session.

Its authors train on eight of the eleven sessions and test on the other three.
"""

from pathlib import Path

from vlprompt.data.dataset import joined
from vlprompt.data.layouts import Parts, folders_in, held, put_together
from vlprompt.data.layouts.folders import rows_of

TRAIN, TEST = (1, 2, 4, 5, 6, 8, 9, 11), (3, 7, 10)


def read(folder: Path, images: Path, ids: list[str], sizes: dict[str, int]) -> tuple[Parts, str]:
    sessions = [f"s{n}" for n in sorted(TRAIN + TEST)]
    if missing := [session for session in sessions if not (images / session).is_dir()]:
        raise FileNotFoundError(
            f"{str(images)!r} has no {', '.join(missing)}; it needs the sessions s1 to s11, with a folder o1 to o50 in "
            "each; unpack the archive again"
        )
    every = {key for session in sessions for key in folders_in(images / session)}
    domains: dict[str, Parts] = {}
    strange = ""
    for session in sessions:
        if lacks := sorted(every - set(folders_in(images / session))):
            raise ValueError(f"{str(images / session)!r} has no {lacks[0]}, which other sessions have; get it again")
        rows, strange = rows_of(images, ids, session)
        learnt = int(session[1:]) in TRAIN
        domains[session] = {"train": rows if learnt else [], "test": [] if learnt else rows}
    parts, note = put_together(domains, held(sizes))
    return parts, joined(note, strange)
