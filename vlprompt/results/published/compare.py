"""Our results beside the published ones: every pair of numbers, their difference, and why they can't be compared.

Two numbers are comparable when the backbone, the split, the shots, the precision, the choice of the model and the
recipe are the same; each that is not is a reason. The published fp16 is half precision throughout for the CoOp family
and autocast for others; a run with train.precision=fp16, which is autocast, counts as the same as both.
"""

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vlprompt.results.comparability import DOMAIN, STREAM
from vlprompt.results.published import domain_protocol
from vlprompt.results.published.aggregate import Ours, cells, gathered
from vlprompt.results.published.continual_protocol import SETTINGS, counterparts, different
from vlprompt.results.published.entries import Published, Reference
from vlprompt.results.run_folder import Result
from vlprompt.results.tables.summary import Cell

Recipe = Callable[[Ours, Published], dict[str, Any] | str]  # the paper's configuration, or why there is none
FREE = {"name", "dataset", "targets", "shots", "seed", "skip_broken"}  # of a task
SAME = {"micro_batch", "precision", "select"}  # of training: changes nothing, or a reason of its own


@dataclass(frozen=True)
class Pair:
    """One number of ours beside one of theirs, in percent; `reasons` is empty where they can be compared."""

    ours: Ours
    theirs: Published
    number: str
    mine: Cell
    published: float
    reasons: tuple[str, ...]

    @property
    def difference(self) -> float:
        return self.mine.mean - self.published

    def flat(self) -> dict[str, Any]:
        """One level, for CSV and JSON."""
        task, method, shots, backbone = self.ours.key
        return {
            "task": task,
            "dataset": self.ours.dataset,
            "method": method,
            "backbone": backbone,
            "shots": shots,
            "number": self.number,
            "ours": self.mine.mean,
            "ours_sd": self.mine.spread,
            "n": self.mine.n,
            "oracle": self.ours.oracle,
            "published": self.published,
            "published_sd": self.theirs.spread.get(self.number),
            "tolerance": self.theirs.tolerance,
            "difference": self.difference,
            "published_backbone": self.theirs.backbone,
            "published_shots": self.theirs.shots,
            "title": self.theirs.title,
            "source": self.theirs.origin.text,
            "how": self.theirs.origin.how,
            "verified": self.theirs.origin.verified,
            "note": self.theirs.note,
            "comparable": not self.reasons,
            "reasons": list(self.reasons),
        }


def compare(results: Sequence[Result], reference: Reference, recipe: Recipe) -> tuple[list[Pair], list[Ours]]:
    """Pairs of all our numbers that have a published counterpart, and ours that have none.

    recipe: gives the configuration that the paper's recipe comes to, or says why there is none.
    """
    every = gathered(results, reference.eleven)
    order = {dataset: i for eleven in reference.eleven.values() for i, dataset in enumerate((*eleven, "average"))}
    every.sort(key=lambda o: (o.key[0], order.get(o.dataset, -1), o.dataset, o.key[1] != "zero_shot", *map(str, o.key)))
    beside, alone = list[Pair](), list[Ours]()
    for ours in every:
        found = [pair for theirs in _counterparts(ours, reference.entries) for pair in _pairs(ours, theirs, recipe)]
        beside += found
        if not found and ours.dataset != "average":
            alone.append(ours)
    return beside, alone


def _counterparts(ours: Ours, entries: Sequence[Published]) -> list[Published]:
    """Entries of the same task, dataset and method: with our shots where there are any, then with our backbone."""
    task, method, shots, backbone = ours.key
    found = [e for e in entries if (e.task, e.dataset, e.method) == (task, ours.dataset, method)]
    found = [e for e in found if all(ours.config["method"].get(k) == v for k, v in e.arguments.items())]
    found = [e for e in found if _shots_agree(shots, e)] or found
    found = counterparts(ours, found) if task == STREAM else found
    found = domain_protocol.counterparts(ours, found) if task == DOMAIN else found
    return [e for e in found if _family(backbone) == _family(e.backbone)] or found


def _shots_agree(shots: int | None, theirs: Published) -> bool:
    return theirs.shots == "any" or theirs.shots == ("all" if shots is None else shots)


def _family(backbone: str) -> tuple[str, str]:
    """("ViT-B-16", "openai") of open_clip:ViT-B-16-quickgelu/openai; OpenAI's weights always run with QuickGELU."""
    name, _, tag = backbone.removeprefix("open_clip:").rpartition("/")
    return (name.removesuffix("-quickgelu"), tag) if name else (backbone, "")


def _pairs(ours: Ours, theirs: Published, recipe: Recipe) -> Iterator[Pair]:
    why = tuple(dict.fromkeys(_reasons(ours, theirs, recipe)))
    numbers = ours.numbers
    if theirs.targets and "average" in theirs.numbers:
        some = {s: [n.get(t) for t in theirs.targets] for s, n in ours.by_seed.items()}
        whole = {s: [v for v in values if v is not None] for s, values in some.items()}
        numbers = {k: v for k, v in numbers.items() if k != "average"}
        if all(len(values) == len(theirs.targets) for values in whole.values()):
            numbers |= cells({s: {"average": statistics.fmean(values)} for s, values in whole.items()})
    for name, value in theirs.numbers.items():
        if name in numbers:
            yield Pair(ours, theirs, name, numbers[name], value, why)


def _reasons(ours: Ours, theirs: Published, recipe: Recipe) -> Iterator[str]:
    """Why the two can't be compared; of an average, those of all that it is made of."""
    if not theirs.origin.verified:
        yield f"the published number: {theirs.origin.how}"
    if ours.remark:
        yield ours.remark
    if theirs.task == DOMAIN:
        yield from domain_protocol.different(ours, theirs)
    for part in ours.parts or (ours,):
        yield from _of_protocol(part, theirs)
        paper = recipe(part, theirs)
        if isinstance(paper, str):
            yield paper
        elif differs := _differences(part, paper):
            yield f"other settings than the paper's: {', '.join(differs)}"


def _of_protocol(ours: Ours, theirs: Published) -> Iterator[str]:
    _, _, shots, backbone = ours.key
    if _family(backbone) != _family(theirs.backbone):
        yield f"backbone {backbone or 'none'}, theirs {theirs.backbone}"
    others = [t for p in ours.protocols for t in p.get("targets", {}).values() if "split" in t]
    if any(p.get("split") != "literature" for p in (*ours.protocols, *others)):
        yield "split not the literature's"
    if len({json.dumps(p.get("test"), sort_keys=True) for p in ours.protocols}) > 1:
        yield f"not all seeds were tested on the same images of {ours.dataset}"
    if not _shots_agree(shots, theirs):
        yield f"{'all' if shots is None else shots} shots, theirs {theirs.shots}"
    precision = ours.config["train"]["precision"]
    if theirs.precision is not None and precision != theirs.precision:
        yield f"precision {precision}, theirs {theirs.precision}"
    chosen = {str(p.get("selection", "not known")) for p in ours.protocols}
    if theirs.selection is not None and chosen != {theirs.selection}:
        yield f"model chosen by {' and '.join(sorted(chosen))}, theirs by {theirs.selection}"
    if theirs.task == STREAM:
        yield from different(ours, theirs)


def _differences(ours: Ours, paper: dict[str, Any]) -> list[str]:
    """Settings of the method, the task and, where something is trained, of training that are not the paper's."""
    spoken_of = {STREAM: SETTINGS, DOMAIN: domain_protocol.SETTINGS}.get(ours.key[0], set())
    free = {"task": FREE | spoken_of, "train": SAME, "method": set[str]()}
    found = []
    for section in ("method", "task", "train") if ours.trained else ("method", "task"):
        mine, other = (_flat(c[section]) for c in (ours.config, paper))
        for key in dict.fromkeys((*mine, *other)):
            a, b = mine.get(key), other.get(key)
            if key.partition(".")[0] not in free[section] and json.dumps(a) != json.dumps(b):
                found.append(f"{section}.{key}={_short(a)} (theirs {_short(b)})")
    return found


def _flat(settings: dict[str, Any], above: str = "") -> dict[str, Any]:
    found = {}
    for key, value in settings.items():
        found |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return found


def _short(value: Any) -> str:
    return "null" if value is None else str(value)
