"""Claims of runs: who makes a run, so that nobody else does.

A claim is a folder with its owner and a beat that its owner counts up. It holds on shared file systems, where renaming
is the only atomic act and clocks differ: a claim appears by renaming a filled folder (which fails where there is one),
goes by renaming it away, and beats by renaming a file. Nobody compares times of two machines: an owner counts as dead
when its beat has not changed for a while of the observer's own clock, or when its process is seen to have ended.
"""

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vlprompt.experiments.sweeps.owner import Owner
from vlprompt.results.atomic_files import explain_write_errors, write_atomically
from vlprompt.runtime.errors import RunLostError

OWNER_FILE, PROGRESS_FILE, BEAT_PREFIX = "owner.json", "progress.json", "beat-"
BEATS_PER_PATIENCE = 12  # an owner beats this often before others may take it for dead


class Claims:
    """The claims in a folder, seen by one process.

    Args:
        folder: where they are.
        owner: this process.
        patience: seconds without a beat after which another owner counts as dead; above the time for which a
            network file system may show old names.
        silent: run -> the last sign of its owner, which another process has found dead by `find_last_sign`.
    """

    def __init__(
        self, folder: Path, owner: Owner, patience: float = 120.0, silent: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.folder, self.owner, self.patience, self.silent = folder, owner, patience, silent
        self._beats: dict[str, tuple[str, float]] = {}  # run -> (token and beat, when they were first seen)

    def take(self, key: str) -> bool:
        """Claim a run; False where another process has it."""
        filled = self.folder / f".{key}.{self.owner.token}"
        with explain_write_errors(self.folder):
            shutil.rmtree(filled, ignore_errors=True)
            filled.mkdir(parents=True)
            (filled / OWNER_FILE).write_text(json.dumps(self.owner.to_dict()), "utf-8")
            (filled / f"{BEAT_PREFIX}0").touch()
        try:
            os.rename(filled, self.folder / key)
        except OSError:  # there is one; or the file system lost its reply
            shutil.rmtree(filled, ignore_errors=True)
            return self.is_mine(key)
        return True

    def is_mine(self, key: str) -> bool:
        owner = self.read_owner(key)
        return owner is not None and owner.token == self.owner.token

    def read_owner(self, key: str) -> Owner | None:
        """Return who has a run; None for nobody."""
        return _read_owner(self.folder / key)

    def list_keys(self) -> list[str]:
        """List the runs that are claimed."""
        with suppress(OSError):
            return sorted(name for name in os.listdir(self.folder) if not name.startswith("."))
        return []

    def is_abandoned(self, key: str) -> bool:
        """Whether the owner of a run is dead, as far as this process knows."""
        return self.find_last_sign(key) is not None

    def find_last_sign(self, key: str) -> str | None:
        """Return the token and the last beat of the owner of a run that is dead; None for no owner, or a living one."""
        owner = self.read_owner(key)
        if owner is None and not (self.folder / key).exists():
            return None
        if owner is not None and owner.token == self.owner.token:
            return None
        token = "" if owner is None else owner.token  # whose file is broken is dead after the patience
        sign, now = f"{token} {_read_beat(self.folder / key)}", time.monotonic()
        if self._beats.get(key, ("", 0.0))[0] != sign:
            self._beats[key] = sign, now
        is_silent = self.silent.get(key) == sign or now - self._beats[key][1] > self.patience
        return sign if is_silent or (owner is not None and owner.has_ended()) else None

    def take_over(self, key: str) -> bool:
        """Take the run of an owner that `is_abandoned`; False where another process was first."""
        owner = self.read_owner(key)
        if not self.is_abandoned(key):
            return False
        token = "" if owner is None else owner.token
        away = self.folder / f".{key}.{token}.{self.owner.token}"
        try:
            os.rename(self.folder / key, away)
        except OSError:
            return False
        moved = _read_owner(away)
        if moved is not None and moved.token != token:  # another process had taken it over meanwhile
            with suppress(OSError):
                os.rename(away, self.folder / key)
            return False
        shutil.rmtree(away, ignore_errors=True)
        return self.take(key)

    def release(self, key: str) -> None:
        """Release a run of this process."""
        away = self.folder / f".{key}.{self.owner.token}.released"
        with suppress(OSError):
            if self.is_mine(key):
                os.rename(self.folder / key, away)
                shutil.rmtree(away, ignore_errors=True)

    @contextmanager
    def keep(self, key: str) -> "Iterator[Heartbeat]":
        """Beat for a run that was taken, until the with-block ends and the run is released."""
        heartbeat = Heartbeat(self, key)
        try:
            with heartbeat:
                yield heartbeat
        finally:
            self.release(key)

    def write_progress(self, key: str, progress: dict[str, Any]) -> None:
        """Write how far a run of this process is, for `read_progress` of others."""
        with suppress(OSError):
            write_atomically(self.folder / key / PROGRESS_FILE, json.dumps(progress).encode())

    def read_progress(self, key: str) -> dict[str, Any]:
        """Return how far a run is; {} where nobody says."""
        with suppress(OSError, ValueError):
            return json.loads((self.folder / key / PROGRESS_FILE).read_text("utf-8"))
        return {}


class Heartbeat:
    """Counts up the beat of a claim in a thread, and notices when the claim is lost."""

    def __init__(self, claims: Claims, key: str) -> None:
        self.claims, self.key, self.n_beats = claims, key, 0
        self._confirmed, self._ended = time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name=f"heartbeat {key}", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def is_lost(self) -> bool:
        """Whether another process has taken the run, as may be after this one slept for long."""
        if time.monotonic() - self._confirmed > self.claims.patience / 2:
            if not self.claims.is_mine(self.key):
                return True
            self._confirmed = time.monotonic()
        return False

    def require(self) -> None:
        """Raise RunLostError where another process has taken the run, so that this one writes nothing more."""
        if not self.claims.is_mine(self.key):
            raise RunLostError("another process took the run, as this one did not beat")

    def _beat_on(self) -> None:
        while not self._ended.wait(self.claims.patience / BEATS_PER_PATIENCE):
            folder = self.claims.folder / self.key
            if not self.claims.is_mine(self.key):
                self._confirmed = float("-inf")
                return
            with suppress(OSError):
                os.rename(folder / f"{BEAT_PREFIX}{self.n_beats}", folder / f"{BEAT_PREFIX}{self.n_beats + 1}")
                self.n_beats += 1
                self._confirmed = time.monotonic()


def _read_owner(folder: Path) -> Owner | None:
    with suppress(OSError, ValueError, TypeError):
        return Owner.parse(json.loads((folder / OWNER_FILE).read_text("utf-8")))
    return None


def _read_beat(folder: Path) -> str:
    with suppress(OSError):
        return next((name for name in os.listdir(folder) if name.startswith(BEAT_PREFIX)), "")
    return ""
