"""Metrics of prediction files, and comparisons of two files of one test."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from vlprompt.metrics.catalogue import METRICS, Metric, Row
from vlprompt.metrics.comparison import LEVEL, N_RESAMPLES, Interval, McNemar, mcnemar, paired_bootstrap
from vlprompt.metrics.predictions import Predictions
from vlprompt.metrics.tables import TABLES
from vlprompt.results.prediction_files import PredictionFile
from vlprompt.runtime.errors import suggest_nearest

DEFAULT_METRICS = ("accuracy", "class_mean", "macro_f1", "ece15", "nll", "brier")
DEFAULT_LABEL_METRICS = ("mAP", "CF1", "OF1")
ALL_METRICS: Mapping[str, Metric] = {name: metric for group in METRICS.values() for name, metric in group.items()}


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
        if name not in ALL_METRICS and name not in TABLES:
            nearest = suggest_nearest(name, (*ALL_METRICS, *TABLES))
            raise ValueError(f"--metric: expected the name of a metric, got {name!r}; {nearest}")
    return names


def score_predictions(
    file: PredictionFile, names: Sequence[str] | None = None, other: PredictionFile | None = None
) -> PredictionScores:
    """Compute metrics of a file of predictions, and compare it with another of the same test.

    Args:
        file: the predictions.
        names: of `METRICS` and `TABLES`; None for the usual ones.
        other: predictions to compare with.

    Raises:
        PredictionFileError: when the other is of other test items.
        ValueError: for a metric that these predictions do not have; it names the metric.
    """
    chosen = names or (DEFAULT_LABEL_METRICS if file.has_several_labels else DEFAULT_METRICS)
    second = None if other is None else other.in_order_of(file).as_predictions()
    first = file.as_predictions()
    metrics = {name: ALL_METRICS[name] for name in chosen if name in ALL_METRICS}
    values = {name: _compute(name, metric, first) for name, metric in metrics.items()}
    tables = {name: TABLES[name].compute(first) for name in chosen if name in TABLES}
    notes = _list_notes(first, metrics)
    if second is None:
        return PredictionScores(values, tables, notes=tuple(notes))
    other_values = {name: _compute(name, metric, second) for name, metric in metrics.items()}
    intervals = {name: _compare(metric, first, second) for name, metric in metrics.items()}
    for name, interval in intervals.items():
        if interval.n_undefined:
            notes.append(f"{name}: undefined on {interval.n_undefined} of {N_RESAMPLES} draws, which are left out")
    test = None
    if file.has_several_labels:
        notes.append("no McNemar's test: an item with several labels is not right or wrong")
    else:
        labels = first.one_label
        test = mcnemar(first.predicted == labels, second.predicted == labels)
    notes.append(f"intervals: {100 * LEVEL:g} %, of {N_RESAMPLES} draws of the {len(first)} test items, paired")
    return PredictionScores(values, tables, other_values, intervals, test, tuple(notes))


def _compute(name: str, metric: Metric, predictions: Predictions) -> float:
    try:
        return metric.compute(predictions)
    except ValueError as error:
        raise ValueError(f"--metric {name}: {error}") from error


def _compare(metric: Metric, first: Predictions, second: Predictions) -> Interval:
    if metric.per_item is not None:
        differences = (metric.per_item(first) - metric.per_item(second)).double()
        return paired_bootstrap(lambda places: differences[places].mean().item(), len(first))

    def find_difference(places: Tensor) -> float:
        try:
            return metric.compute(first.select(places)) - metric.compute(second.select(places))
        except ValueError:  # a draw may lack the items of a class or of a side
            return math.nan

    return paired_bootstrap(find_difference, len(first))


def _list_notes(predictions: Predictions, metrics: Mapping[str, Metric]) -> list[str]:
    """Return what was left out: classes that are never positive, and items without an answer."""
    notes = list[str]()
    absent = predictions.find_absent_classes()
    if absent and (averaged := [name for name in metrics if name.startswith("mAP") and name != "mAP_absent_zero"]):
        names = ", ".join(absent[:10]) + " ..." * (len(absent) > 10)
        notes.append(f"{', '.join(averaged)}: left out {len(absent)} classes that are never positive: {names}")
    if n_silent := int((predictions.predicted >= len(predictions.names)).sum()):
        notes.append(f"{n_silent} items have no answer, which counts as wrong")
    if predictions.targets is not None and (n_empty := int(((predictions.targets == 1).sum(1) == 0).sum())):
        notes.append(f"{n_empty} items have no label that is known to be present")
    return notes
