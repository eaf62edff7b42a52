"""Which methods are significantly worse than the best one: paired tests over datasets, shots and seeds."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vlprompt.results.tables.summary import (
    ResultRow,
    find_usual_backbone,
    format_label,
    group_by_table,
    mark_protocols,
)

TEST_NAME, CORRECTION_NAME = "two-sided Wilcoxon signed-rank test on pairs", "Holm's correction"
MAX_EXACT_PAIRS = 50  # above, the normal approximation, whose error is then below .001
MIN_PAIRS = 6  # with five pairs the smallest two-sided p is 2/32 = .0625
PairKey = tuple[object, ...]  # table, pair of domains, shots and seed of a value
Values = dict[PairKey, float]


@dataclass(frozen=True)
class Comparison:
    """One method against the best.

    Args:
        label: of the method.
        n_pairs: pairs of (dataset, shots, seed) that both have.
        difference: mean over the pairs of the best method's metric less this one's, in points.
        p: of the test; None with fewer than `MIN_PAIRS` pairs.
        p_corrected: corrected for the number of comparisons of the group.
        is_worse: whether `p_corrected` is below alpha; None where there is no test.
        note: why there is no test; "" where there is one.
    """

    label: str
    n_pairs: int
    difference: float | None
    p: float | None
    p_corrected: float | None
    is_worse: bool | None
    note: str = ""


@dataclass(frozen=True)
class GroupComparison:
    """All methods of a group of rows against the best.

    Args:
        metric: name of the metric.
        best: label of the method with the highest mean; None without two methods to compare.
        mean: its mean over the pairs that all compared methods have.
        comparisons: of the others, in the order of the rows.
        notes: what was left out and what limits the test.
    """

    metric: str
    best: str | None
    mean: float | None
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]
    alpha: float = 0.05
    test: str = TEST_NAME
    correction: str = CORRECTION_NAME


def wilcoxon_p(differences: Sequence[float]) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test.

    Zero differences are left out; equal ones share their mean rank. Up to 50 others p is exact, as the distribution is
    summed over all signs of the ranks at hand, ties included; above, by the normal approximation with the variance of
    those ranks.
    """
    values = [round(d, 9) for d in differences if round(d, 9)]
    if not values:
        return 1.0
    ranks = _rank_doubled([abs(v) for v in values])
    total, positive = sum(ranks), sum(r for r, v in zip(ranks, values, strict=True) if v > 0)
    smaller = min(positive, total - positive)
    if len(values) > MAX_EXACT_PAIRS:
        deviation = math.sqrt(sum(r * r for r in ranks)) / 2
        return min(1.0, math.erfc((total / 2 - smaller) / deviation / math.sqrt(2)))
    counts = [1] + [0] * total  # of the choices of signs by the sum of the doubled ranks
    for rank in ranks:
        for i in range(total, rank - 1, -1):
            counts[i] += counts[i - rank]
    return min(1.0, 2 * sum(counts[: smaller + 1]) / 2 ** len(ranks))


def _rank_doubled(values: Sequence[float]) -> list[int]:
    """Return twice the ranks, so that the mean rank of equal values is a whole number."""
    return [sum(v < value for v in values) * 2 + sum(v == value for v in values) + 1 for value in values]


def correct_holm(p_values: Sequence[float]) -> list[float]:
    """Return p corrected by Holm's step-down procedure, in the order given (Scand. J. Statist. 6, 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, highest = [0.0] * len(p_values), 0.0
    for step, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - step) * p_values[i]))
        corrected[i] = highest
    return corrected


def compare_methods(rows: Sequence[ResultRow], metric: str | None = None, alpha: float = 0.05) -> GroupComparison:
    """Compare every method with the best of them, on the (dataset, shots, seed) that both have.

    Wilcoxon's signed-rank test, as accuracies of few datasets and seeds are no sample of a normal distribution and one
    odd dataset would carry a t-test (Demsar, JMLR 7, 2006). Two-sided, as the best is chosen by the same numbers, and
    with Holm's correction, which holds under any dependence of the comparisons. Seeds of one dataset and shots of one
    seed are not independent, so that p is a lower bound where there are few datasets.

    Args:
        rows: of one table, or of all datasets of one task.
        metric: of the summary; by default the main one of the task.
        alpha: level of significance.
    """
    metric = metric or (rows[0].main_metric if rows else "accuracy")
    values, notes = _collect_values(rows, metric)
    if len(values) < 2:
        return GroupComparison(metric, next(iter(values), None), None, (), (*notes, "fewer than two methods"), alpha)
    best, shared = _choose_best(values)
    if len(shared) < max(map(len, values.values())):
        pairs = f"{len(shared)} pairs" if len(shared) != 1 else "one pair"
        notes.append(f"the best is that of the {pairs} (dataset, shots, seed) that all methods have")
    if best is None:
        return GroupComparison(metric, None, None, (), (*notes, "no pair that all methods have, so no best"), alpha)
    comparisons = _compare_with_best(values, best, alpha)
    tested = [c for c in comparisons if c.p is not None]
    if tested and len(tested) * 2.0 ** (1 - max(c.n_pairs for c in tested)) >= alpha:
        pairs = max(c.n_pairs for c in tested)
        notes.append(f"{len(tested)} comparisons of {pairs} pairs can't reach p < {alpha:g} after the correction")
    mean = statistics.fmean(values[best][key] for key in shared)
    return GroupComparison(metric, best, mean, tuple(comparisons), tuple(notes), alpha)


def _collect_values(rows: Sequence[ResultRow], metric: str) -> tuple[dict[str, Values], list[str]]:
    """Return the metric of each method by pair, of rows that are comparable; and what was left out."""
    from vlprompt.results.comparability import DOMAIN, get_domain_pair

    values, notes = dict[str, Values](), list[str]()
    settings: dict[str, dict[str, set[str]]] = {}
    for table in group_by_table(rows):
        letters, texts = mark_protocols(table)
        backbone = find_usual_backbone(rows)
        for row in table:
            label = format_label(row, backbone)
            if letters[id(row)]:
                text = dict(t.split(": ", 1) for t in texts)[letters[id(row)]]
                notes.append(f"{label} on {row.dataset} is left out, its protocol differs: {text}")
            elif row.is_oracle:
                notes.append(f"{label} on {row.dataset} is left out, it is an oracle")
            else:
                pair = get_domain_pair(row.runs[0]) if row.task == DOMAIN else None
                for run in (r for r in row.runs if metric in r.summary):
                    key = (row.table_key, pair, row.shots, run.config["seed"])
                    values.setdefault(label, {})[key] = run.summary[metric]
                _add_settings(settings.setdefault(label, {}), row)
    for label, keys in settings.items():
        if differing := [key for key, found in keys.items() if len(found) > 1]:
            notes.append(f"{label} has other {', '.join(differing)} on other datasets or shots")
    return values, list(dict.fromkeys(notes))


def _add_settings(settings: dict[str, set[str]], row: ResultRow) -> None:
    for section in ("method", "train"):
        for key, value in row.runs[0].config[section].items():
            settings.setdefault(key, set()).add(json.dumps(value))


def _choose_best(values: Mapping[str, Values]) -> tuple[str | None, set[PairKey]]:
    """Return the method of the highest mean over the pairs that all have, and these pairs."""
    shared = set.intersection(*(set(v) for v in values.values()))
    if not shared:
        return None, shared
    return max(values, key=lambda label: statistics.fmean(values[label][key] for key in shared)), shared


def _compare_with_best(values: Mapping[str, Values], best: str, alpha: float) -> list[Comparison]:
    differences = {
        label: [values[best][key] - value for key, value in one.items() if key in values[best]]
        for label, one in values.items()
        if label != best
    }
    p_values = {label: wilcoxon_p(d) for label, d in differences.items() if len(d) >= MIN_PAIRS}
    corrected = dict(zip(p_values, correct_holm([*p_values.values()]), strict=True))
    return [
        Comparison(
            label,
            len(d),
            statistics.fmean(d) if d else None,
            p_values.get(label),
            corrected.get(label),
            corrected[label] < alpha if label in corrected else None,
            "" if label in corrected else f"{len(d)} pairs, of which the test needs {MIN_PAIRS} to reach p < .05",
        )
        for label, d in differences.items()
    ]
