"""Our results as the literature counts them: a configuration over its seeds, and averages over datasets or pairs."""

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlprompt.metrics import harmonic_mean
from vlprompt.results.comparability import DOMAIN
from vlprompt.results.run_folder import Result
from vlprompt.results.tables.summary import Cell


@dataclass(frozen=True)
class Ours:
    """One configuration over its seeds on one dataset, or an average over `parts`, one of each dataset or pair.

    dataset: trained on, "average" for an average. by_seed: {seed: summary}, in percent.
    """

    config: dict[str, Any]
    protocols: tuple[dict[str, Any], ...]
    trained: int
    dataset: str
    by_seed: dict[int, dict[str, float]]
    parts: "tuple[Ours, ...]" = ()
    remark: str = ""

    @property
    def oracle(self) -> bool:
        """Whether test labels of the target chose the epoch."""
        return self.config["train"].get("select") == "oracle"

    @property
    def key(self) -> tuple[str, str, int | None, str]:
        task = self.config["task"]
        return task["name"], self.config["method"]["name"], task.get("shots"), self.config["backbone"]

    @property
    def numbers(self) -> dict[str, Cell]:
        return cells(self.by_seed)


def gathered(results: Sequence[Result], eleven: dict[str, tuple[str, ...]]) -> list[Ours]:
    """Every configuration over its seeds, and by task the averages over the eleven where all of them are there.

    Of domains the averages over all pairs that there are, from one source or from several.
    """
    grouped = _grouped(results)
    every = [o for o in grouped if o.key[0] != DOMAIN] + _over_pairs([o for o in grouped if o.key[0] == DOMAIN])
    return every + [mean for task, datasets in eleven.items() for mean in _averages(every, task, datasets)]


def _same(config: dict[str, Any], *but: str) -> str:
    task = {k: v for k, v in config["task"].items() if k not in ("seed", *but)}
    return json.dumps({k: v for k, v in config.items() if k != "seed"} | {"task": task}, sort_keys=True)


def cells(by_seed: dict[int, dict[str, float]]) -> dict[str, Cell]:
    """Mean and spread over seeds; the harmonic mean is that of the mean base and the mean new."""
    found = {}
    for name in next(iter(by_seed.values())):
        values = [numbers[name] for numbers in by_seed.values() if name in numbers]
        found[name] = Cell(statistics.fmean(values), statistics.pstdev(values), len(values))
    if {"base", "new", "harmonic"} <= set(found):
        found["harmonic"] = replace(found["harmonic"], mean=harmonic_mean(found["base"].mean, found["new"].mean))
    return found


def _grouped(results: Sequence[Result]) -> list[Ours]:
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(_same(result.config), []).append(result)
    found = []
    for members in groups.values():
        first, by_seed = members[0], {r.config["seed"]: r.summary for r in members}
        task, trained = first.config["task"], int(first.cost["trained_parameters"])
        dataset = Path(str((first.protocol if task["name"] == DOMAIN else task).get("dataset"))).name
        protocols = tuple(r.protocol for r in members)
        found.append(Ours(first.config, protocols, trained, dataset, by_seed))
    return found


def _over_pairs(every: Sequence[Ours]) -> list[Ours]:
    families: dict[tuple[Any, ...], list[Ours]] = {}
    for ours in every:
        several = any(len(p["sources"]) > 1 for p in ours.protocols)
        families.setdefault((ours.dataset, several, _same(ours.config, "source", "target")), []).append(ours)
    return [replace(_average(members, "pairs"), dataset=members[0].dataset) for members in families.values()]


def _averages(every: Sequence[Ours], task: str, eleven: Sequence[str]) -> Iterator[Ours]:
    """Averages over the eleven datasets, where all are there.

    One configuration per dataset makes one average, even where a recipe differs by dataset; of several on one dataset,
    those that agree in everything else.
    """
    families: dict[tuple[Any, ...], list[Ours]] = {}
    for ours in every:
        if ours.key[0] == task and ours.dataset in eleven:
            families.setdefault(ours.key, []).append(ours)
    for family in families.values():
        groups = {"": family}
        if len(family) > len({o.dataset for o in family}):
            groups = {}
            for ours in family:
                groups.setdefault(_same(ours.config, "dataset"), []).append(ours)
        for members in groups.values():
            if {o.dataset for o in members} == set(eleven) and len(members) == len(eleven):
                yield _average(members)


def _average(members: Sequence[Ours], what: str = "datasets") -> Ours:
    """Per seed over the datasets or pairs, then over seeds; only seeds that all of them have are counted."""
    seeds = sorted(set.intersection(*(set(o.by_seed) for o in members)))
    names = [k for k in members[0].numbers if all(k in o.numbers for o in members)]
    remark = "" if all(set(o.by_seed) == set(seeds) for o in members) else f"the {what} were run with different seeds"
    if seeds:
        by_seed = {s: {k: statistics.fmean(o.by_seed[s][k] for o in members) for k in names} for s in seeds}
    else:  # a mean is still a mean, but there is no spread over seeds
        by_seed = {0: {k: statistics.fmean(o.numbers[k].mean for o in members) for k in names}}
    for numbers in by_seed.values():
        if {"base", "new", "harmonic"} <= set(numbers):
            numbers["harmonic"] = harmonic_mean(numbers["base"], numbers["new"])
    trained, protocols = max(o.trained for o in members), tuple(p for o in members for p in o.protocols)
    return Ours(members[0].config, protocols, trained, "average", by_seed, tuple(members), remark)
