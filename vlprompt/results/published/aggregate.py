"""Aggregate our results as the literature does: over seeds, and averages over datasets or pairs of domains."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlprompt.metrics import harmonic_mean
from vlprompt.results.comparability import DOMAIN, make_group_key
from vlprompt.results.run_folder import Result
from vlprompt.results.tables.summary import MeanStd, compute_mean_std


@dataclass(frozen=True)
class AggregatedResult:
    """One configuration over its seeds on one dataset, or an average over datasets or pairs of domains.

    Args:
        protocols: one per run.
        dataset: what it was trained on; "average" for an average over datasets.
        by_seed: the summary of each seed, in percent.
        members: what an average is over, one for each dataset or pair.
        remark: why an average is not comparable; empty if it is.
    """

    config: dict[str, Any]
    protocols: tuple[dict[str, Any], ...]
    trained_parameters: int
    dataset: str
    by_seed: dict[int, dict[str, float]]
    members: "tuple[AggregatedResult, ...]" = ()
    remark: str = ""

    @property
    def is_oracle(self) -> bool:
        """Whether test labels of the target chose the epoch."""
        return self.config["train"].get("model_selection") == "oracle"

    @property
    def key(self) -> tuple[str, str, int | None, str]:
        task = self.config["task"]
        return task["name"], self.config["method"]["name"], task.get("shots"), self.config["backbone"]

    @property
    def wrapped_methods(self) -> tuple[str, ...]:
        """The names of the methods that its method is around, the outermost first."""
        names, inner = list[str](), self.config["method"].get("method")
        while isinstance(inner, dict):
            names.append(str(inner.get("name")))
            inner = inner.get("method")
        return tuple(names)

    @property
    def metrics(self) -> dict[str, MeanStd]:
        return summarize_seeds(self.by_seed)


def aggregate_results(
    results: Sequence[Result], averaged_datasets: dict[str, tuple[str, ...]]
) -> list[AggregatedResult]:
    """Aggregate runs over seeds, then average over datasets or pairs.

    Args:
        results: finished runs.
        averaged_datasets: by task the datasets that its average is over; there is an average if all of them have runs.

    Returns:
        One result for each configuration and dataset, then the averages. Of the task domain only the averages over
        pairs, separately for one and for several sources.
    """
    grouped = _group_by_config(results)
    aggregated = [o for o in grouped if o.key[0] != DOMAIN]
    aggregated += _average_over_pairs([o for o in grouped if o.key[0] == DOMAIN])
    averages = [
        average
        for task, datasets in averaged_datasets.items()
        for average in _average_over_datasets(aggregated, task, datasets)
    ]
    return aggregated + averages


def summarize_seeds(by_seed: dict[int, dict[str, float]]) -> dict[str, MeanStd]:
    """Return mean and deviation over seeds; the harmonic mean is that of the mean base and the mean new accuracy."""
    metrics = {}
    for name in next(iter(by_seed.values())):
        metrics[name] = compute_mean_std([numbers[name] for numbers in by_seed.values() if name in numbers])
    if {"base", "new", "harmonic"} <= set(metrics):
        harmonic = harmonic_mean(metrics["base"].mean, metrics["new"].mean)
        metrics["harmonic"] = replace(metrics["harmonic"], mean=harmonic)
    return metrics


def _group_by_config(results: Sequence[Result]) -> list[AggregatedResult]:
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(make_group_key(result.config), []).append(result)
    aggregated = []
    for runs in groups.values():
        first, by_seed = runs[0], {r.config["seed"]: r.summary for r in runs}
        task, n_trained = first.config["task"], int(first.cost["trained_parameters"])
        dataset = Path(str((first.protocol if task["name"] == DOMAIN else task).get("dataset"))).name
        protocols = tuple(r.protocol for r in runs)
        aggregated.append(AggregatedResult(first.config, protocols, n_trained, dataset, by_seed))
    return aggregated


def _average_over_pairs(results: Sequence[AggregatedResult]) -> list[AggregatedResult]:
    families: dict[tuple[Any, ...], list[AggregatedResult]] = {}
    for ours in results:
        has_several_sources = any(len(p["sources"]) > 1 for p in ours.protocols)
        key = ours.dataset, has_several_sources, make_group_key(ours.config, ("task.source", "task.target"))
        families.setdefault(key, []).append(ours)
    return [replace(_average_members(members, "pairs"), dataset=members[0].dataset) for members in families.values()]


def _average_over_datasets(
    results: Sequence[AggregatedResult], task: str, datasets: Sequence[str]
) -> Iterator[AggregatedResult]:
    """Average over all datasets of a task.

    With one configuration per dataset there is one average, even if a recipe differs by dataset; with several, there
    is one for each configuration that every dataset has.
    """
    families: dict[tuple[Any, ...], list[AggregatedResult]] = {}
    for ours in results:
        if ours.key[0] == task and ours.dataset in datasets:
            families.setdefault((*ours.key, *ours.wrapped_methods), []).append(ours)
    for family in families.values():
        groups = {"": family}
        if len(family) > len({o.dataset for o in family}):
            groups = {}
            for ours in family:
                groups.setdefault(make_group_key(ours.config, ("task.dataset",)), []).append(ours)
        for members in groups.values():
            if {o.dataset for o in members} == set(datasets) and len(members) == len(datasets):
                yield _average_members(members)


def _average_members(members: Sequence[AggregatedResult], member_noun: str = "datasets") -> AggregatedResult:
    """Average over the datasets or pairs for each seed that all of them have."""
    seeds = sorted(set.intersection(*(set(o.by_seed) for o in members)))
    names = [k for k in members[0].metrics if all(k in o.metrics for o in members)]
    remark = (
        "" if all(set(o.by_seed) == set(seeds) for o in members) else f"the {member_noun} were run with different seeds"
    )
    if seeds:
        by_seed = {s: {k: statistics.fmean(o.by_seed[s][k] for o in members) for k in names} for s in seeds}
    else:  # without a common seed there is a mean, but no deviation over seeds
        by_seed = {0: {k: statistics.fmean(o.metrics[k].mean for o in members) for k in names}}
    for numbers in by_seed.values():
        if {"base", "new", "harmonic"} <= set(numbers):
            numbers["harmonic"] = harmonic_mean(numbers["base"], numbers["new"])
    n_trained, protocols = max(o.trained_parameters for o in members), tuple(p for o in members for p in o.protocols)
    return AggregatedResult(members[0].config, protocols, n_trained, "average", by_seed, tuple(members), remark)
