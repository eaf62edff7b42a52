"""Where the sweeps of a folder stand, from what their processes wrote."""

from dataclasses import dataclass
from pathlib import Path

from vlprompt.experiments.events import RunProgress
from vlprompt.experiments.sweeps.claims import Claims
from vlprompt.experiments.sweeps.owner import Owner
from vlprompt.experiments.sweeps.run_names import format_run_name, get_run_folder
from vlprompt.experiments.sweeps.supervisor import parse_progress
from vlprompt.experiments.sweeps.sweep_folder import SweepFolder


@dataclass(frozen=True)
class SweepStatus:
    """Where sweeps stand.

    Args:
        n_runs: of the latest sweep of the folder and of those that a process watches, each once.
        n_done: finished.
        running: those that a process has claimed.
        failed: name of the run's folder -> why, of the latest call that ended it.
        n_waiting: the others.
        seconds_left: by the runs of the latest call; None where not known.
    """

    n_runs: int
    n_done: int
    running: tuple[RunProgress, ...]
    failed: dict[str, str]
    n_waiting: int
    seconds_left: float | None


def read_status(runs_folder: Path) -> SweepStatus:
    """Read where the sweeps of a folder stand.

    Raises:
        ValueError: for a folder without a sweep.
    """
    folder = SweepFolder(runs_folder)
    names = folder.list_names()
    if not names:
        raise ValueError(
            f"status: expected a folder of a sweep, got {str(runs_folder)!r}, which has none. "
            "Name the one that `vlprompt sweep --out` had."
        )
    calls = folder.list_calls()
    watched = [call for call in calls[:-1] if not call.has_ended()] + calls[-1:]
    current = {call.read_list_name() for call in watched} & set(names) or set(names[-1:])
    configs = {config.hash: config for name in sorted(current) for config in folder.read_list(name)}
    done = folder.list_done(configs.values())
    claims: Claims = folder.open_claims(Owner.create(), patience=0.0)
    running = {
        key: parse_progress(claims.read_progress(key), format_run_name(configs[key]), claims.read_owner(key))
        for key in claims.list_keys()
        if key in configs and not _is_dead(claims, key)
    }
    errors, seconds = dict[str, str](), list[float]()
    for call in calls:
        outcomes = call.read_outcomes()
        errors |= {key: outcome.error for key, outcome in outcomes.items()}
        seconds = [outcome.seconds for outcome in outcomes.values() if not outcome.error] or seconds
    left_out = {*done, *running}
    failed = {
        get_run_folder(runs_folder, configs[k]).path.name: e
        for k, e in errors.items()
        if e and k in configs and k not in left_out
    }
    n_left = len(configs) - len(done) - len(failed)
    mean = sum(seconds) / len(seconds) if seconds else None
    left = None if mean is None or not running else mean * n_left / len(running)
    return SweepStatus(
        len(configs), len(done), tuple(running.values()), failed, n_left - len(set(running) - done), left
    )


def _is_dead(claims: Claims, key: str) -> bool:
    owner = claims.read_owner(key)
    return owner is None or owner.has_ended()
