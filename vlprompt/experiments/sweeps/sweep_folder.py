"""What processes that share the runs of a sweep know of each other, in RUNS/.sweep.

lists/NAME.json   the configurations of a sweep
calls/NAME/       one call of the command: call.json, outcomes/RUN.json of runs that it ended, attempts/RUN.* of begins,
                  notices/HASH.json of what its workers have to tell
claims/RUN/       who makes a run, and how far it is
"""

import json
import os
import shutil
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from secrets import token_hex
from types import MappingProxyType
from typing import Any

from vlprompt.config.run_config import RunConfig, hash_config
from vlprompt.experiments.events import DatasetOpened, Event, Notice, RunFinished
from vlprompt.experiments.sweeps.claims import Claims
from vlprompt.experiments.sweeps.owner import Owner
from vlprompt.experiments.sweeps.run_names import get_run_folder
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

    def open_claims(self, owner: Owner, patience: float, silent: Mapping[str, str] = MappingProxyType({})) -> Claims:
        """Return the claims of runs as this process sees them."""
        return Claims(self.path / "claims", owner, patience, silent)

    def begin_call(self, name: str, owner: Owner, configs: Sequence[RunConfig], finished: Sequence[str]) -> "SweepCall":
        """Write a call, and the list of its runs where no other call wrote it.

        Args:
            name: of the call.
            owner: the process that watches it.
            configs: of its runs.
            finished: those of them that are done already.
        """
        content = {"runs": [config.to_dict() for config in configs]}
        list_name, call = hash_config(content), self.get_call(name)
        call.create(owner, list_name, finished)  # before the list, which then has a use
        path = self.path / "lists" / f"{list_name}.json"
        if not path.exists():
            with explain_write_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, content)
        return call

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

    def list_done(self, configs: Iterable[RunConfig]) -> set[str]:
        """Return the hashes of the runs that have a result, on these inputs or others."""
        names = {path.parent.name for path in self.runs_folder.glob("*/result.json")}
        names |= {name.rpartition("-")[0] for name in names}
        return {config.hash for config in configs if get_run_folder(self.runs_folder, config).path.name in names}

    def tidy(self) -> None:
        """Remove the calls that nobody uses, but the latest, and the lists that no call names.

        A call that came to its end has no workers any more. Where its command was killed, workers of a cluster go on,
        and others may still be queued: such a call stays until each of its runs has a result or failed for good. A
        worker that finds its call gone ends. Calls that were killed on another machine stay, as nobody here knows it.
        """
        for call in self.list_calls()[:-MAX_ENDED_CALLS]:
            if call.is_closed() or (call.has_ended() and not self._has_open_runs(call)):
                shutil.rmtree(call.path, ignore_errors=True)
        for name in set(self.list_names()) - self._list_used():
            path = self.path / "lists" / f"{name}.json"
            away = path.with_name(f".{path.name}.{token_hex(4)}")
            with suppress(OSError):
                path.rename(away)
                # a command writes its call before its list: one that saw the list before it went is seen here
                if name in self._list_used():
                    away.rename(path)
                away.unlink(missing_ok=True)

    def _list_used(self) -> set[str]:
        return {call.read_list_name() for call in self.list_calls()}

    def _has_open_runs(self, call: "SweepCall") -> bool:
        try:
            configs = self.read_list(call.read_list_name())
        except ValueError:  # without its list no worker can begin
            return False
        ended = call.list_ended() | call.read_finished()
        left = [config for config in configs if config.hash not in ended]
        return len(self.list_done(left)) < len(left)


class SweepCall:
    """The files of one call of the command, which its workers share."""

    def __init__(self, path: Path) -> None:
        self.path, self.outcomes_path, self.attempts_path = path, path / "outcomes", path / "attempts"
        self.notices_path = path / "notices"

    def create(self, owner: Owner, list_name: str, finished: Sequence[str]) -> None:
        """Begin a call.

        Args:
            owner: the process that watches it.
            list_name: of the configurations of its runs.
            finished: runs of its list that are done already.
        """
        with explain_write_errors(self.path):
            for folder in (self.outcomes_path, self.attempts_path, self.notices_path):
                folder.mkdir(parents=True, exist_ok=True)
        write_json(self.path / "call.json", {"owner": owner.to_dict(), "list": list_name, "finished": list(finished)})

    def read_list_name(self) -> str:
        """Return the name of the list of its runs; "" where it is not known."""
        return str(self._read_call().get("list", ""))

    def read_finished(self) -> set[str]:
        """Return the runs that were done when the call began."""
        return set(self._read_call().get("finished", ()))

    def exists(self) -> bool:
        """Whether its files are there; `SweepFolder.tidy` removes them."""
        return self.path.exists()

    def is_closed(self) -> bool:
        """Whether it has come to its end, with its workers."""
        return (self.path / "ended").exists()

    def has_ended(self) -> bool:
        """Whether it has come to its end, or the process that watches it is seen to have ended."""
        if self.is_closed():
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

    def add_notice(self, event: Event) -> None:
        """Write what a user should know, for the command to show; each text once, and no events of other kinds."""
        if isinstance(event, RunFinished) and event.change:
            event = Notice(event.name, event.change)
        if not isinstance(event, Notice | DatasetOpened):
            return
        text = event.text if isinstance(event, Notice) else event.summary
        path = self.notices_path / f"{hash_config({'text': text})}.json"
        if not path.exists():
            with suppress(OSError):  # a run is not to fail by it
                write_json(path, asdict(event))

    def read_notices(self, known: set[str]) -> list[Notice | DatasetOpened]:
        """Return what workers wrote, the oldest first, but what is `known`; what is returned is added to that."""
        paths = [path for path in self.notices_path.glob("[!.]*.json") if path.name not in known]
        notices = list[Notice | DatasetOpened]()
        for path in sorted(paths, key=_get_age):
            known.add(path.name)
            with suppress(OSError, ValueError, TypeError, KeyError):
                content: dict[str, Any] = json.loads(path.read_text("utf-8"))
                if "text" in content:
                    notices.append(Notice(**content))
                else:
                    notices.append(DatasetOpened(content["summary"], tuple(content["remarks"])))
        return notices

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
