"""Watch, by Python's audit events, what a command writes and unpickles; count them, to be killed at one."""

import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

PATH_ARGUMENTS = {  # audit event -> positions of the paths that it changes, each with that of its folder's descriptor
    "os.mkdir": ((0, 2),),
    "os.rename": ((0, 2), (1, 3)),
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.symlink": ((1, 2),),
    "os.link": ((1, 3),),
    "os.truncate": ((0, None),),
}
WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
DANGEROUS_MODULES = ("os", "posix", "nt", "subprocess", "builtins", "pathlib", "shutil", "runpy")


@dataclass
class Guard:
    """What is allowed while a command runs, and what happened that was not.

    Args:
        allowed: folders in which files may be written.
        offences: one line for each event outside of them.
        is_active: whether a command runs.
        n_changes: changes of files.
        n_events: audit events of any kind.
        kill_at: the number of the change before which the process kills itself; None for never.
        counts_all: whether `kill_at` counts events of any kind.
    """

    allowed: list[str] = field(default_factory=list)
    offences: list[str] = field(default_factory=list)
    is_active: bool = False
    n_changes: int = 0
    n_events: int = 0
    kill_at: int | None = None
    counts_all: bool = False

    def hear(self, event: str, arguments: tuple[object, ...]) -> None:
        """Take one audit event."""
        if not self.is_active:
            return
        if event == "pickle.find_class" and str(arguments[0]) in DANGEROUS_MODULES:
            self.offences.append(f"unpickles {arguments[0]}.{arguments[1]}")
        self.n_events += 1
        paths = _changed_paths(event, arguments)
        self.n_changes += bool(paths)
        if self.kill_at is not None and (self.n_events if self.counts_all else self.n_changes) > self.kill_at:
            self.is_active = False  # the call below is an event too
            os.kill(os.getpid(), signal.SIGKILL)
        for path in paths:
            self._judge(event, path)

    def _judge(self, event: str, path: str) -> None:
        absolute = os.path.abspath(path)
        places = (absolute, os.path.join(os.path.realpath(os.path.dirname(absolute)), os.path.basename(absolute)))
        inside = [any(place == root or place.startswith(f"{root}/") for root in self.allowed) for place in places]
        if not all(inside) and "__pycache__" not in absolute and not absolute.startswith(("/dev/", "/proc/")):
            self.offences.append(f"{event} {absolute}")


def _changed_paths(event: str, arguments: tuple[object, ...]) -> list[str]:
    if event == "open":
        flags = arguments[2] if isinstance(arguments[2], int) else 0
        positions = ((0, None),) if flags & WRITE_FLAGS else ()
    else:
        positions = PATH_ARGUMENTS.get(event, ())
    paths = list[str]()
    for position, folder in positions:
        path, descriptor = arguments[position], -1 if folder is None else arguments[folder]
        if isinstance(path, str | bytes | Path):
            below = os.readlink(f"/proc/self/fd/{descriptor}") if descriptor not in (-1, None) else ""
            paths.append(os.path.join(below, os.fsdecode(path)))
    return paths


GUARD = Guard()
_installed: list[bool] = []


def install() -> Guard:
    """Return the guard of this process, whose hook stays for as long as the process lives."""
    if not _installed:
        _installed.append(True)
        sys.addaudithook(GUARD.hear)
    return GUARD
