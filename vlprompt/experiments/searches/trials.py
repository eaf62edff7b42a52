"""Search by Optuna: each trial trains with the values that a sampler proposes; hopeless ones are pruned."""

import shutil
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vlprompt.config.run_config import RunConfig
from vlprompt.core.method import Method
from vlprompt.core.stage import Stage
from vlprompt.core.towers import Backbone
from vlprompt.engine.evaluate import evaluate
from vlprompt.experiments.events import EpochDone, Event, Listener, Notice, SearchStarted, StepDone, ignore_event
from vlprompt.experiments.learned.prompt import build_run_method
from vlprompt.experiments.runner import run
from vlprompt.experiments.searches.study import Study
from vlprompt.experiments.searches.trial_store import ClaimedTrial, TrialStore, parse_values
from vlprompt.experiments.trackers.tracker import TrackedRun
from vlprompt.experiments.trackers.tracking import follow_run
from vlprompt.runtime.errors import NonFiniteError, RunStoppedError

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

SECONDS_BETWEEN_LOOKS = 0.5  # at the trials of other processes
DEFAULT_TRIALS = 50
TRACKED_FOLDER = "tracked"  # in that of the search: files of trackers, a folder for each trial


class TrialPrunedError(RunStoppedError):
    """A trial is worse than the others were at its epoch."""


def run_trials(
    study: Study,
    store: TrialStore,
    backbone: Backbone,
    n_trials: int = DEFAULT_TRIALS,
    save_every: float = 5.0,
    on_event: Listener = ignore_event,
    trackers: Sequence[str] = (),
) -> dict[str, Any]:
    """Train trials until there are n_trials in all, and choose the one whose last epoch is best on validation images.

    Processes that search in one folder share its trials. A larger number later adds trials.

    Args:
        study: the space.
        store: where its trials are written.
        backbone: of the method.
        n_trials: how many trials there are to be, those of other processes and earlier calls included.
        save_every: seconds between two saved states.
        on_event: hears of each step and each trial.
        trackers: names of those that each trial is copied to, as a run in the group of the search.

    Returns:
        As `run_search`.

    Raises:
        NonFiniteError: when the loss of every trial is not a number.
    """
    folder = store.folder
    if store.count_done() < n_trials:
        on_event(SearchStarted(study.dataset, n_trials))
    worker = _Worker(study, store, backbone, save_every, on_event, study.stage, trackers)
    while store.count_done() < n_trials:
        claimed = store.claim(n_trials)
        if claimed is None:
            time.sleep(SECONDS_BETWEEN_LOOKS)  # until the other processes are done with theirs, or one of them dies
            continue
        try:
            worker.run_trial(claimed)
        finally:
            store.release(claimed)
    chosen = _choose(study, store.read_trials())
    if chosen != folder.read_chosen():
        folder.finish(chosen)
    return chosen


@dataclass(frozen=True)
class _Outcome:
    state: str  # COMPLETE or PRUNED
    accuracy: float | None  # the last one; None where the loss is not finite
    epoch: int  # after which it was pruned
    seconds: float


@dataclass
class _Worker:
    study: Study
    store: TrialStore
    backbone: Backbone
    save_every: float
    on_event: Listener
    stage: Stage
    trackers: Sequence[str]

    def run_trial(self, claimed: ClaimedTrial) -> None:
        """Train one trial and write its outcome."""
        name = f"trial {claimed.trial.number}"
        texts = ", ".join(f"{key.partition('.')[2]} {_format_value(value)}" for key, value in claimed.values.items())
        try:
            outcome = self._train(claimed)
        except ValueError as error:
            self.store.tell(claimed, "FAIL")
            raise ValueError(f"{name} ({texts}): {error}") from error
        accuracy, is_complete = outcome.accuracy, outcome.state == "COMPLETE"
        facts = {"seconds": outcome.seconds, "is_finite": accuracy is not None}
        self.store.tell(claimed, outcome.state, accuracy if is_complete else None, **facts)
        shutil.rmtree(claimed.folder, ignore_errors=True)
        value = "the loss is not finite" if accuracy is None else f"validation {accuracy:.1f}"
        pruned = f", pruned after epoch {outcome.epoch}" if accuracy is not None and not is_complete else ""
        self.on_event(Notice(name, f"{texts}: {value}{pruned}", is_warning=accuracy is None))

    def _train(self, claimed: ClaimedTrial) -> _Outcome:
        """Train a trial to the end, or to the epoch at which it is pruned or its loss is not finite."""
        start, trial = time.monotonic(), claimed.trial
        config = self.study.builder.build(claimed.values).config
        method = build_run_method(config.method, self.backbone)
        reports = dict(self.store.read_trials()[trial.number].intermediate_values)

        is_hopeless = False

        def hear(event: Event) -> None:
            nonlocal is_hopeless
            if isinstance(event, EpochDone):
                reports[event.epoch] = self._measure_accuracy(method, config.train_config.micro_batch_size)
                event = replace(event, scores={**event.scores, "val": reports[event.epoch]})
            tracked.hear(event)
            self.on_event(event)
            if isinstance(event, EpochDone):
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message=".*is already reported")  # an epoch whose end comes again
                    trial.report(reports[event.epoch], event.epoch)
                is_hopeless = trial.should_prune()
            elif is_hopeless and isinstance(event, StepDone):  # the last step of the epoch, which trackers have now
                raise TrialPrunedError(f"epoch {max(reports)}: {reports[max(reports)]:.1f}")

        try:
            with follow_run(self.trackers, self._describe_tracked(claimed, config)) as tracked:
                if reports and trial.should_prune():  # by a process that died before it wrote so
                    raise TrialPrunedError(f"epoch {max(reports)}")
                result = run(method, self.study.task, config, claimed.folder, save_every=self.save_every, on_event=hear)
                tracked.finish(result)
        except TrialPrunedError:
            return _Outcome("PRUNED", reports[max(reports)], max(reports), time.monotonic() - start)
        except NonFiniteError:
            return _Outcome("PRUNED", None, 0, time.monotonic() - start)
        return _Outcome("COMPLETE", result.scores[-1]["val"]["accuracy"], 0, result.cost["seconds"])

    def _describe_tracked(self, claimed: ClaimedTrial, config: RunConfig) -> TrackedRun:
        folder, number = self.store.folder.path, claimed.trial.number
        return TrackedRun(
            f"{folder.name}-trial-{number:05d}",
            config.to_dict(),
            claimed.folder,
            folder / TRACKED_FOLDER / f"{number:05d}",
            folder.parent,
            group=folder.name,
        )

    def _measure_accuracy(self, method: Method, micro_batch_size: int | None) -> float:
        return evaluate(method, self.stage.tests["val"], micro_batch_size=micro_batch_size).metrics["accuracy"]


def _format_value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _choose(study: Study, trials: "list[FrozenTrial]") -> dict[str, Any]:
    """Return the best trial that was trained to the end; of equally good ones that with the smaller rates."""
    done = [trial for trial in trials if trial.state.name in ("COMPLETE", "PRUNED")]
    complete = [trial for trial in done if trial.state.name == "COMPLETE"]
    if not complete:
        raise NonFiniteError(
            f"search: expected a finite loss of at least one of {len(done)} trials on {study.dataset}, got none. Set "
            "smaller learning rates in search.train.lr."
        )
    best_accuracy = max(trial.value or 0.0 for trial in complete)
    points = {
        trial.number: study.builder.build(parse_values(study, trial.params))
        for trial in complete
        if (trial.value or 0.0) == best_accuracy
    }

    def rank(number: int) -> tuple[float, float, int]:
        train = points[number].config.train
        return train["lr"], train["weight_decay"], number

    number = min(points, key=rank)
    non_finite = sum(not trial.user_attrs["is_finite"] for trial in done)
    return {
        "key": points[number].key,
        "values": points[number].values,
        "config": points[number].config.to_dict(),
        "trial": number,
        "n_settings": len(done),
        "accuracy": best_accuracy,
        "non_finite": non_finite,
        "pruned": len(done) - len(complete) - non_finite,
        "tied": len(points) - 1,
        "seconds": sum(trial.user_attrs["seconds"] for trial in done),
    }
