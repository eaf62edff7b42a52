"""What processes that share the runs of a sweep know of each other, in RUNS/.sweep.

lists/NAME.json   the configurations of a sweep
calls/NAME/       one call of the command: call.json, outcomes/RUN.json of runs that it ended, attempts/RUN.* of begins
claims/RUN/       who makes a run, and how far it is
"""

import json
import os
import shutil
from collections.abc import Container, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlprompt.config.run_config import RunConfig, hash_config
from vlprompt.experiments.sweeps.claims import Claims
from vlprompt.experiments.sweeps.owner import Owner
from vlprompt.results.atomic_files import explain_write_errors, write_atomically, write_json

SWEEP_FOLDER = ".sweep"
MAX_ENDED_CALLS = 3  # that stay, for `vlprompt status`


@dataclass(frozen=True)
class Outcome:
    """How a run ended in one call of the command.

    Args:
        run: the hash of its configuration.
        error: why it failed; "" for a run that is done.
        folder: of the run.
        seconds: since it began in this call.
    """

    run: str
    error: str = ""
    folder: str = ""
    seconds: float = 0.0


class SweepFolder:
    """The files of the sweeps of one folder of runs.

    Args:
        runs_folder: where the folder of each run is.
    """

    def __init__(self, runs_folder: Path) -> None:
        self.runs_folder, self.path = runs_folder, runs_folder / SWEEP_FOLDER

    def open_claims(self, owner: Owner, patience: float) -> Claims:
        """Return the claims of runs as this process sees them."""
        return Claims(self.path / "claims", owner, patience)

    def write_list(self, configs: Sequence[RunConfig]) -> str:
        """Write the configurations of a sweep; return the name of the list."""
        content = {"runs": [config.to_dict() for config in configs]}
        name = hash_config(content)
        path = self.path / "lists" / f"{name}.json"
        if not path.exists():
            with explain_write_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, content)
        return name

    def read_list(self, name: str) -> list[RunConfig]:
        """Return the configurations of a list; ValueError for a broken file."""
        path = self.path / "lists" / f"{name}.json"
        try:
            return [RunConfig(**config) for config in json.loads(path.read_text("utf-8"))["runs"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{str(path)!r}: expected the runs of a sweep, got a broken file ({error}). Remove it, and give the "
                "command of the sweep again."
            ) from error

    def list_names(self) -> list[str]:
        """Return the names of all lists, the latest last."""
        with suppress(OSError):
            paths = sorted((self.path / "lists").glob("[!.]*.json"), key=lambda path: path.stat().st_mtime)
            return [path.stem for path in paths]
        return []

    def get_call(self, name: str) -> "SweepCall":
        return SweepCall(self.path / "calls" / name)

    def list_calls(self) -> "list[SweepCall]":
        """Return all calls, the latest last."""
        with suppress(OSError):
            return [SweepCall(path) for path in sorted((self.path / "calls").iterdir(), key=_get_age)]
        return []

    def remove_old_calls(self) -> None:
        """Remove what calls of this machine left that have ended, but the latest."""
        for call in self.list_calls()[:-MAX_ENDED_CALLS]:
            if call.has_ended():
                shutil.rmtree(call.path, ignore_errors=True)


class SweepCall:
    """The files of one call of the command, which its workers share."""

    def __init__(self, path: Path) -> None:
        self.path, self.outcomes_path, self.attempts_path = path, path / "outcomes", path / "attempts"

    def create(self, owner: Owner, list_name: str, finished: Sequence[str]) -> None:
        """Begin a call.

        Args:
            owner: the process that watches it.
            list_name: of the configurations of its runs.
            finished: runs of its list that are done already.
        """
        with explain_write_errors(self.path):
            self.outcomes_path.mkdir(parents=True, exist_ok=True)
            self.attempts_path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / "call.json", {"owner": owner.to_dict(), "list": list_name, "finished": list(finished)})

    def read_list_name(self) -> str:
        """Return the name of the list of its runs; "" where it is not known."""
        return str(self._read_call().get("list", ""))

    def read_finished(self) -> set[str]:
        """Return the runs that were done when the call began."""
        return set(self._read_call().get("finished", ()))

    def has_ended(self) -> bool:
        """Whether it has come to its end, or the process that watches it is seen to have ended."""
        if (self.path / "ended").exists():
            return True
        with suppress(TypeError, KeyError):
            return Owner.parse(self._read_call()["owner"]).has_ended()
        return False

    def end(self) -> None:
        """Mark that nobody watches it any more, and that its workers have ended."""
        with suppress(OSError):
            (self.path / "ended").touch()

    def _read_call(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            return json.loads((self.path / "call.json").read_text("utf-8"))
        return {}

    def write_outcome(self, outcome: Outcome) -> None:
        write_json(self.outcomes_path / f"{outcome.run}.json", asdict(outcome))

    def read_outcome(self, run: str) -> Outcome | None:
        """Return how a run ended; None for one that has not."""
        with suppress(OSError, ValueError, TypeError):
            content: dict[str, Any] = json.loads((self.outcomes_path / f"{run}.json").read_text("utf-8"))
            return Outcome(**content)
        return None

    def list_ended(self) -> set[str]:
        """Return the runs that have ended."""
        with suppress(OSError):
            return {name.removesuffix(".json") for name in os.listdir(self.outcomes_path) if not name.startswith(".")}
        return set()

    def read_outcomes(self, known: Container[str] = ()) -> dict[str, Outcome]:
        """Return how runs ended, by run, but those that are known."""
        outcomes = {run: self.read_outcome(run) for run in self.list_ended() if run not in known}
        return {run: outcome for run, outcome in outcomes.items() if outcome is not None}

    def add_attempt(self, run: str, owner: Owner) -> int:
        """Write that a process begins a run; return how often it was begun, this time included."""
        write_atomically(self.attempts_path / f"{run}.{len(self._list_attempts(run))}.{owner.token}", b"")
        return len(self._list_attempts(run))

    def count_attempts(self, run: str) -> int:
        """Return how often a run was begun."""
        return len(self._list_attempts(run))

    def has_attempt(self, run: str, owner: Owner) -> bool:
        """Whether this process has begun a run in this call."""
        return any(path.suffix == f".{owner.token}" for path in self._list_attempts(run))

    def remove_attempts(self, run: str, owner: Owner) -> None:
        """Forget that this process began a run, which it did not end by its fault."""
        for path in self._list_attempts(run):
            if path.suffix == f".{owner.token}":
                path.unlink(missing_ok=True)

    def count_open_attempts(self) -> int:
        """Return how often runs that have not ended were begun."""
        ended = self.list_ended()
        return sum(path.name.partition(".")[0] not in ended for path in self.attempts_path.glob("[!.]*"))

    def _list_attempts(self, run: str) -> list[Path]:
        return list(self.attempts_path.glob(f"{run}.*"))


def _get_age(path: Path) -> float:
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0
