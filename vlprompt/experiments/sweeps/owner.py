"""Who works on a run: a process, distinguished from all others on any machine."""

import os
import socket
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from secrets import token_hex
from typing import Any


@dataclass(frozen=True)
class Owner:
    """A process that works on runs.

    Args:
        token: random, so that no two are alike.
        host: the name of its machine.
        system: of the machine since its start and of the process's name space; "" where the system does not say.
        pid: of the process.
        process_start: when the process began, in the system's own ticks; a later process may have the same pid.
    """

    token: str
    host: str
    system: str
    pid: int
    process_start: str

    @classmethod
    def create(cls) -> "Owner":
        """Describe this process."""
        return cls(token_hex(8), socket.gethostname(), _identify_system(), os.getpid(), _read_start(os.getpid()) or "")

    @classmethod
    def parse(cls, content: dict[str, Any]) -> "Owner":
        return cls(**content)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def has_ended(self) -> bool:
        """Whether the process is seen to have ended; False where this machine can't know."""
        if not self.system or (self.host, self.system) != (socket.gethostname(), _identify_system()):
            return False
        return _read_start(self.pid) != self.process_start


@cache
def _identify_system() -> str:
    """Return what tells this start of this machine and its name space of processes; "" without /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _read_start(pid: int) -> str | None:
    """Return when a process began, in ticks since the start of the machine; None for no process, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
