"""The trials of a search, which several processes share: a journal that Optuna writes, and a lock for each trial.

A process that dies releases the lock of its trial, and another goes on with it where its state was saved.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlprompt.experiments.searches.space import Axis, Range
from vlprompt.experiments.searches.study import Study
from vlprompt.results.atomic_files import explain_write_errors, write_atomically
from vlprompt.results.search_folder import SearchFolder
from vlprompt.runtime.installation import require_package
from vlprompt.runtime.seeding import derive_seed

if TYPE_CHECKING:
    from filelock import BaseFileLock
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial

N_STARTUP_TRIALS = 5  # that no trial is pruned before
TRIALS_FOLDER = ".trials"  # hidden: the runs of trials are no results


@dataclass(frozen=True)
class ClaimedTrial:
    """A trial that this process works on.

    Args:
        trial: of Optuna.
        values: by the key of their setting.
        folder: of its run.
        lock: that this process holds.
    """

    trial: "Trial"
    values: dict[str, Any]
    folder: Path
    lock: "BaseFileLock"


class TrialStore:
    """The trials of a search in its folder.

    Args:
        study: what is searched.
        folder: of the search.

    Raises:
        ValueError: for a folder with a search of another space.
        OSError: for a folder that can't be written, or without Optuna.
    """

    def __init__(self, study: Study, folder: SearchFolder) -> None:
        self.optuna: Any = require_package("optuna", "search", "--sampler optuna")
        self.optuna.logging.set_verbosity(self.optuna.logging.WARNING)
        self.study, self.folder = study, folder
        self.trials_path = folder.path / TRIALS_FOLDER
        with explain_write_errors(folder.path):
            self.trials_path.mkdir(parents=True, exist_ok=True)
        self.distributions = {key: _build_distribution(self.optuna, axis) for key, axis in study.axes.items()}
        with self._lock("search"):
            self._write_config()
            self._open_journal()

    def _write_config(self) -> None:
        import yaml

        config = {**self.study.config, "inputs": self.study.inputs}
        present = self.folder.read_config()
        if present is None:
            content = yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False, allow_unicode=True)
            write_atomically(self.folder.config_path, content.encode())
        elif present.get("search") != json.loads(json.dumps(self.study.search_space)):
            raise ValueError(
                f"{str(self.folder.path)!r}: expected a search of {self.study.search_space}, got one of "
                f"{present.get('search')}. Name another folder by --out."
            )

    def _open_journal(self) -> None:
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        path = self.folder.path / "study.journal"
        pruner = self.optuna.pruners.MedianPruner(
            n_startup_trials=N_STARTUP_TRIALS, n_warmup_steps=self._find_first_compared_epoch()
        )
        with explain_write_errors(path):
            storage = JournalStorage(JournalFileBackend(str(path)))
            self.trials = self.optuna.create_study(
                storage=storage, study_name="search", direction="maximize", pruner=pruner, load_if_exists=True
            )

    def _find_first_compared_epoch(self) -> int:
        """Return from which epoch on trials may be pruned: earlier ones train with the rates of the warm-up."""
        train = self.study.settings[0].config.train_config
        return 1 + (train.warmup if train.schedule_unit == "epoch" else 0)

    def _lock(self, name: str) -> "BaseFileLock":
        from filelock import FileLock

        return FileLock(self.trials_path / f"{name}.lock")

    def read_trials(self) -> "list[FrozenTrial]":
        return self.trials.get_trials(deepcopy=False)

    def count_done(self) -> int:
        """Return how many trials were trained to the end, pruned or not finite."""
        return sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in self.read_trials())

    def claim(self, n_trials: int) -> ClaimedTrial | None:
        """Claim a trial whose process has died, else a new one; None where all n_trials are done or under way."""
        with self._lock("search"):
            trials = [trial for trial in self.read_trials() if trial.state.name != "FAIL"]
            for frozen in trials:
                if frozen.state.name == "RUNNING" and (claimed := self._take_over(frozen)) is not None:
                    return claimed
            trials = [trial for trial in self.read_trials() if trial.state.name != "FAIL"]
            return None if len(trials) >= n_trials else self._ask()

    def _take_over(self, frozen: "FrozenTrial") -> ClaimedTrial | None:
        """Claim a trial that has begun; None where a process is at it, or it has died before it had its values."""
        from filelock import Timeout

        lock = self._lock(f"{frozen.number:05d}")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        if frozen.params.keys() != self.distributions.keys():
            self.trials.tell(frozen.number, state=self.optuna.trial.TrialState.FAIL)
            lock.release()
            return None
        trial = self.optuna.trial.Trial(self.trials, frozen._trial_id)  # Optuna has no public name for it
        return self._build_claim(trial, frozen.params, lock)

    def _ask(self) -> ClaimedTrial:
        number = len(self.read_trials())
        lock = self._lock(f"{number:05d}")
        lock.acquire()
        # a sampler of its own for each trial: what it proposes depends on the finished trials and the number alone
        self.trials.sampler = self.optuna.samplers.TPESampler(
            seed=derive_seed(self.study.builder.seed, "trial", number) % 2**32, constant_liar=True
        )
        trial = self.trials.ask(fixed_distributions=self.distributions)
        return self._build_claim(trial, trial.params, lock)

    def _build_claim(self, trial: "Trial", params: dict[str, Any], lock: "BaseFileLock") -> ClaimedTrial:
        values = parse_values(self.study, params)
        return ClaimedTrial(trial, values, self.trials_path / f"{trial.number:05d}", lock)

    def tell(self, claimed: ClaimedTrial, state: str, accuracy: float | None = None, **attributes: Any) -> None:
        """Write the outcome of a trial: COMPLETE with its accuracy, PRUNED or FAIL."""
        for name, value in attributes.items():
            claimed.trial.set_user_attr(name, value)
        self.trials.tell(claimed.trial, accuracy, state=self.optuna.trial.TrialState[state])

    @contextmanager
    def claim_final_runs(self) -> Iterator[None]:
        """Wait until no other process makes the final runs."""
        with self._lock("final"):
            yield

    def release(self, claimed: ClaimedTrial) -> None:
        with suppress(OSError):
            Path(claimed.lock.lock_file).unlink()
        claimed.lock.release()


def _build_distribution(optuna: Any, axis: Axis) -> "BaseDistribution":
    """Return the distribution of an axis; values of lists are JSON texts, as Optuna stores only plain ones."""
    kinds = optuna.distributions
    if not isinstance(axis, Range):
        return kinds.CategoricalDistribution(list(dict.fromkeys(json.dumps(value) for value in axis)))
    if axis.is_integer:
        return kinds.IntDistribution(int(axis.low), int(axis.high), log=axis.log, step=int(axis.step or 1))
    return kinds.FloatDistribution(axis.low, axis.high, log=axis.log, step=axis.step)


def parse_values(study: Study, params: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a trial by the key of their setting, as configurations hold them."""
    ordered = {key: params[key] for key in study.axes}
    return {k: v if isinstance(study.axes[k], Range) else json.loads(v) for k, v in ordered.items()}
