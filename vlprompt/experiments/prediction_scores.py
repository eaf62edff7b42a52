"""Metrics of prediction files, and comparisons of two files of one test."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self, TypeVar

from torch import Tensor

from vlprompt.engine.unknown_scores import SCORES
from vlprompt.metrics.catalogue import METRICS, Metric, Row
from vlprompt.metrics.comparison import LEVEL, N_RESAMPLES, Interval, McNemar, mcnemar, paired_bootstrap
from vlprompt.metrics.synonyms import find_synonyms
from vlprompt.metrics.tables import TABLES
from vlprompt.metrics.unknown_sets import SCORE_METRICS
from vlprompt.results.prediction_files import PredictionFile
from vlprompt.runtime.errors import suggest_nearest

DEFAULT_METRICS = ("accuracy", "class_mean", "macro_f1", "ece15", "nll", "brier")
DEFAULT_LABEL_METRICS = ("mAP", "CF1", "OF1")
ALL_METRICS: Mapping[str, Metric] = {name: metric for group in METRICS.values() for name, metric in group.items()}
UNKNOWN_TABLE = "unknown"  # every metric of each set of unknown items and score
ALL_SCORE_METRICS: Mapping[str, tuple[str, str]] = {  # name as in a result -> metric and score
    f"{metric}_{score}": (metric, score) for metric in SCORE_METRICS for score in SCORES
}


@dataclass(frozen=True)
class PredictionScores:
    """What a file of predictions came to.

    Args:
        values: metrics by name.
        tables: rows by the name of a table.
        other_values: of the file to compare with.
        intervals: of each metric the difference, first less second, with its paired bootstrap interval.
        test: McNemar's of both; None without a comparison, or with several labels.
        notes: what a reader should know.
    """

    values: dict[str, float]
    tables: dict[str, list[Row]] = field(default_factory=dict)
    other_values: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, Interval] = field(default_factory=dict)
    test: McNemar | None = None
    notes: tuple[str, ...] = ()


def parse_metrics(text: str | None) -> tuple[str, ...] | None:
    """Parse "accuracy,ece15" to names of metrics and tables, None to None; ValueError for one that there is not."""
    names = None if text is None else tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names or ():
        known_names = (*ALL_METRICS, *TABLES, UNKNOWN_TABLE, *ALL_SCORE_METRICS)
        if name not in known_names:
            synonyms = " or ".join(map(repr, find_synonyms(name, known_names)))
            nearest = f"did you mean {synonyms}?" if synonyms else suggest_nearest(name, known_names)
            raise ValueError(f"--metric: expected the name of a metric, got {name!r}; {nearest}")
    return names


def score_predictions(
    file: PredictionFile, names: Sequence[str] | None = None, other: PredictionFile | None = None
) -> PredictionScores:
    """Compute metrics of a file of predictions, and compare it with another of the same test.

    Args:
        file: the predictions.
        names: of `METRICS`, `TABLES` and `ALL_SCORE_METRICS`, and `UNKNOWN_TABLE`; None for the usual ones. A metric of
            a score of unknown items is the mean over their sets; without a score it stands for all of the file.
        other: predictions to compare with.

    Raises:
        PredictionFileError: when the other is of other test items.
        ValueError: for a metric that these predictions do not have; it names the metric.
    """
    chosen = _choose_names(file, names)
    if other is not None:
        other.require_same_test(file)
    metrics = [name for name in chosen if name not in (*TABLES, UNKNOWN_TABLE)]
    first = file if other is None else file.sort_items()  # so that swapped files have the same items in each draw
    values = {name: _compute(name, first) for name in metrics}
    tables = {name: _build_table(name, file) for name in chosen if name not in metrics}
    notes = _list_notes(file, metrics)
    if other is None:
        return PredictionScores(values, tables, notes=tuple(notes))
    second = other.sort_items()
    other_values = {name: _compute(name, second) for name in metrics}
    intervals = {name: _compare(name, first, second) for name in metrics}
    for name, interval in intervals.items():
        if interval.n_undefined:
            notes.append(f"{name}: undefined on {interval.n_undefined} of {N_RESAMPLES} draws, which are left out")
    test = None
    if file.has_several_labels:
        notes.append("no McNemar's test: an item with several labels is not right or wrong")
    else:
        test = mcnemar(first.predicted == first.labels, second.predicted == second.labels)
    drawn = f"the {len(file)} test items"
    if file.unknown is not None and any(name in ALL_SCORE_METRICS for name in metrics):
        drawn += f", for metrics of a score of these and the {len(file.unknown.items)} unknown ones"
    notes.append(f"intervals: {100 * LEVEL:g} %, of {N_RESAMPLES} draws of {drawn}, paired")
    return PredictionScores(values, tables, other_values, intervals, test, tuple(notes))


def _choose_names(file: PredictionFile, names: Sequence[str] | None) -> list[str]:
    """Return the names asked for, or the usual ones; a metric of a score without one is meant for all of the file."""
    if file.unknown is None:
        return list(names or (DEFAULT_LABEL_METRICS if file.has_several_labels else DEFAULT_METRICS))
    scores, chosen = file.unknown.score_names, list[str]()
    for name in names or (*DEFAULT_METRICS, UNKNOWN_TABLE):
        chosen += [f"{name}_{score}" for score in scores] if name in SCORE_METRICS else [name]
    return list(dict.fromkeys(chosen))


def _compute(name: str, file: PredictionFile) -> float:
    try:
        if name in ALL_METRICS:
            return ALL_METRICS[name].compute(file.as_predictions())
        return file.as_unknown_sets().average(*ALL_SCORE_METRICS[name])
    except ValueError as error:
        raise ValueError(f"--metric {name}: {error}") from error


def _build_table(name: str, file: PredictionFile) -> list[Row]:
    try:
        return TABLES[name].compute(file.as_predictions()) if name in TABLES else file.as_unknown_sets().build_rows()
    except ValueError as error:
        raise ValueError(f"--metric {name}: {error}") from error


class _Items(Protocol):
    """What can be drawn again."""

    def __len__(self) -> int: ...
    def select(self, indices: Tensor) -> Self: ...


ItemsT = TypeVar("ItemsT", bound=_Items)


def _compare(name: str, first: PredictionFile, second: PredictionFile) -> Interval:
    if name not in ALL_METRICS:
        sets = first.as_unknown_sets(), second.as_unknown_sets()
        return _resample(lambda one: one.average(*ALL_SCORE_METRICS[name]), *sets)
    metric, sides = ALL_METRICS[name], (first.as_predictions(), second.as_predictions())
    if metric.per_item is None:
        return _resample(metric.compute, *sides)
    differences = (metric.per_item(sides[0]) - metric.per_item(sides[1])).double()
    return paired_bootstrap(lambda places: differences[places].mean().item(), len(first))


def _resample(compute: Callable[[ItemsT], float], first: ItemsT, second: ItemsT) -> Interval:
    def find_difference(places: Tensor) -> float:
        try:
            return compute(first.select(places)) - compute(second.select(places))
        except ValueError:  # a draw may lack the items of a class or of a side
            return math.nan

    return paired_bootstrap(find_difference, len(first))


def _list_notes(file: PredictionFile, metrics: Sequence[str]) -> list[str]:
    """Return what was left out, classes that are never positive and items without an answer, and what is a mean."""
    notes, predictions = list[str](), file.as_predictions()
    has_means = any(name in ALL_SCORE_METRICS for name in metrics)
    if has_means and file.unknown is not None and len(sets := list(dict.fromkeys(file.unknown.sets))) > 1:
        notes.append(f"metrics of a score: the mean over the unknown sets {', '.join(sets)}")
    absent = predictions.find_absent_classes()
    if absent and (averaged := [name for name in metrics if name.startswith("mAP") and name != "mAP_absent_zero"]):
        names = ", ".join(absent[:10]) + " ..." * (len(absent) > 10)
        notes.append(f"{', '.join(averaged)}: left out {len(absent)} classes that are never positive: {names}")
    if n_silent := int((predictions.predicted >= len(predictions.names)).sum()):
        notes.append(f"{n_silent} items have no answer, which counts as wrong")
    if predictions.targets is not None and (n_empty := int(((predictions.targets == 1).sum(1) == 0).sum())):
        notes.append(f"{n_empty} items have no label that is known to be present")
    return notes
