"""Compare our results with the published ones: pairs of numbers, their difference, and why they are not comparable.

Two numbers are comparable when backbone, split, shots, precision, model selection and recipe are the same; each
difference is a reason. The published fp16 is half precision throughout for the CoOp family and autocast for others; a
run with train.precision=fp16, which is autocast, counts as the same as both.
"""

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vlprompt.results.comparability import CONTINUAL, DOMAIN
from vlprompt.results.published import domain_protocol
from vlprompt.results.published.aggregate import AggregatedResult, aggregate_results, summarize_seeds
from vlprompt.results.published.continual_protocol import (
    CONTINUAL_PROTOCOL_KEYS,
    explain_continual_differences,
    match_continual_entries,
)
from vlprompt.results.published.entries import USES, PublishedResult, Reference
from vlprompt.results.run_folder import Result
from vlprompt.results.tables.summary import MeanStd

RecipeLookup = Callable[
    [AggregatedResult, PublishedResult], dict[str, Any] | str
]  # configuration, or why there is none
UNCOMPARED_TASK_KEYS = {"name", "dataset", "targets", "shots", "seed", "skip_broken"}
# micro-batches change rounding and what dropout draws, as a seed does; the others have a reason of their own
UNCOMPARED_TRAIN_KEYS = {"micro_batch_size", "precision", "model_selection"}


@dataclass(frozen=True)
class Comparison:
    """One number of ours and the published one, in percent.

    Args:
        reasons: why they are not comparable; empty if they are.
    """

    ours: AggregatedResult
    theirs: PublishedResult
    metric: str
    our_value: MeanStd
    published_value: float
    reasons: tuple[str, ...]

    @property
    def difference(self) -> float:
        return self.our_value.mean - self.published_value

    def to_flat_dict(self) -> dict[str, Any]:
        """Flatten to one level, for CSV and JSON."""
        task, method, shots, backbone = self.ours.key
        return {
            "task": task,
            "dataset": self.ours.dataset,
            "method": method,
            "backbone": backbone,
            "shots": shots,
            "metric": self.metric,
            "ours": self.our_value.mean,
            "ours_std": self.our_value.std,
            "n": self.our_value.n,
            "is_oracle": self.ours.is_oracle,
            "published": self.published_value,
            "published_std": self.theirs.std.get(self.metric),
            "tolerance": self.theirs.tolerance,
            "difference": self.difference,
            "published_backbone": self.theirs.backbone,
            "published_shots": self.theirs.shots,
            "title": self.theirs.title,
            "source": self.theirs.source.text,
            "extraction": self.theirs.source.extraction,
            "is_verified": self.theirs.source.is_verified,
            "run_by": self.theirs.run_by,
            "note": self.theirs.note,
            "comparable": not self.reasons,
            "reasons": list(self.reasons),
        }


def compare_results(
    results: Sequence[Result], reference: Reference, find_recipe: RecipeLookup
) -> tuple[list[Comparison], list[AggregatedResult]]:
    """Compare each of our numbers that has a published counterpart.

    Args:
        results: finished runs.
        reference: the published numbers.
        find_recipe: returns the configuration of the paper's recipe, or why there is none.

    Returns:
        The comparisons, and our results without a published counterpart.
    """
    aggregated = aggregate_results(results, reference.averaged_datasets)
    aggregated.sort(key=_make_sort_key(reference))
    comparisons, unmatched = list[Comparison](), list[AggregatedResult]()
    for ours in aggregated:
        pairs = [
            comparison
            for theirs in _match_entries(ours, reference.entries)
            for comparison in _compare_entry(ours, theirs, find_recipe)
        ]
        comparisons += pairs
        if not pairs and ours.dataset != "average":
            unmatched.append(ours)
    return comparisons, unmatched


def _make_sort_key(reference: Reference) -> Callable[[AggregatedResult], tuple[Any, ...]]:
    """Sort by task, by dataset in the order of the literature with the average last, then zero-shot first."""
    ranks = {
        dataset: i
        for datasets in reference.averaged_datasets.values()
        for i, dataset in enumerate((*datasets, "average"))
    }
    return lambda ours: (
        ours.key[0],
        ranks.get(ours.dataset, -1),
        ours.dataset,
        ours.key[1] != "zero_shot",
        *map(str, ours.key),
    )


def _match_entries(ours: AggregatedResult, entries: Sequence[PublishedResult]) -> list[PublishedResult]:
    """Find entries of the same task, dataset and method; prefer those with our shots and our backbone."""
    task, method, shots, backbone = ours.key
    matches = [e for e in entries if (e.task, e.dataset, e.method) == (task, ours.dataset, method)]
    settings = ours.config["method"]
    matches = [e for e in matches if all(_has_argument(settings.get(k), v) for k, v in e.arguments.items())]
    matches = [e for e in matches if _has_same_shots(shots, e)] or matches
    matches = match_continual_entries(ours, matches) if task == CONTINUAL else matches
    matches = domain_protocol.match_domain_entries(ours, matches) if task == DOMAIN else matches
    return [e for e in matches if _parse_backbone(backbone) == _parse_backbone(e.backbone)] or matches


def _has_argument(setting: Any, value: Any) -> bool:
    """Whether a setting of ours is the published one; a wrapped method or a head is published by its name."""
    return (setting.get("name") if isinstance(setting, dict) and isinstance(value, str) else setting) == value


def _has_same_shots(shots: int | None, theirs: PublishedResult) -> bool:
    return theirs.shots == "any" or theirs.shots == ("all" if shots is None else shots)


def _parse_backbone(backbone: str) -> tuple[str, str]:
    """Parse open_clip:ViT-B-16-quickgelu/openai to ("ViT-B-16", "openai"): OpenAI's weights always use QuickGELU."""
    name, _, tag = backbone.removeprefix("open_clip:").rpartition("/")
    return (name.removesuffix("-quickgelu"), tag) if name else (backbone, "")


def _compare_entry(ours: AggregatedResult, theirs: PublishedResult, find_recipe: RecipeLookup) -> Iterator[Comparison]:
    reasons = tuple(dict.fromkeys(_explain_differences(ours, theirs, find_recipe)))
    metrics = ours.metrics
    if theirs.targets and "average" in theirs.metrics:
        metrics = {name: value for name, value in metrics.items() if name != "average"} | _average_targets(ours, theirs)
    for name, value in theirs.metrics.items():
        if name in metrics:
            yield Comparison(ours, theirs, name, metrics[name], value, reasons)


def _average_targets(ours: AggregatedResult, theirs: PublishedResult) -> dict[str, MeanStd]:
    """Average over the targets of the published transfer; empty if a seed lacks one of them."""
    by_seed = {}
    for seed, numbers in ours.by_seed.items():
        values = [numbers[target] for target in theirs.targets if numbers.get(target) is not None]
        if len(values) < len(theirs.targets):
            return {}
        by_seed[seed] = {"average": statistics.fmean(values)}
    return summarize_seeds(by_seed)


def _explain_differences(ours: AggregatedResult, theirs: PublishedResult, find_recipe: RecipeLookup) -> Iterator[str]:
    """List why the two are not comparable; of an average, the reasons of all its members."""
    if not theirs.source.is_verified:
        yield f"the published number: {theirs.source.extraction}"
    if ours.remark:
        yield ours.remark
    if theirs.task == DOMAIN:
        yield from domain_protocol.explain_domain_differences(ours, theirs)
    for part in ours.members or (ours,):
        yield from _explain_protocol_differences(part, theirs)
        paper = find_recipe(part, theirs)
        if isinstance(paper, str):
            yield paper
        elif differences := _list_setting_differences(part, paper):
            yield f"other settings than the paper's: {', '.join(differences)}"


def _explain_protocol_differences(ours: AggregatedResult, theirs: PublishedResult) -> Iterator[str]:
    _, _, shots, backbone = ours.key
    if _parse_backbone(backbone) != _parse_backbone(theirs.backbone):
        yield f"backbone {backbone or 'none'}, theirs {theirs.backbone}"
    others = [t for p in ours.protocols for t in p.get("targets", {}).values() if "split" in t]
    if any(p.get("split") != "literature" for p in (*ours.protocols, *others)):
        yield "split not the literature's"
    if len({json.dumps(p.get("test"), sort_keys=True) for p in ours.protocols}) > 1:
        yield f"not all seeds were tested on the same images of {ours.dataset}"
    if not _has_same_shots(shots, theirs):
        yield f"{'all' if shots is None else shots} shots, theirs {theirs.shots}"
    precision = ours.config["train"]["precision"]
    if theirs.precision is not None and precision != theirs.precision:
        yield f"precision {precision}, theirs {theirs.precision}"
    chosen = {str(p.get("selection", "not known")) for p in ours.protocols}
    if theirs.selection is not None and chosen != {theirs.selection}:
        yield f"model chosen by {' and '.join(sorted(chosen))}, theirs by {theirs.selection}"
    ours_uses = {use for p in ours.protocols for use in p.get("uses", ())}
    yield from (reason for use, reason in USES.items() if use in theirs.uses and use not in ours_uses)
    if theirs.task == CONTINUAL:
        yield from explain_continual_differences(ours, theirs)


def _list_setting_differences(ours: AggregatedResult, paper_config: dict[str, Any]) -> list[str]:
    """List settings that differ from the paper's; those of training only if something is trained."""
    task_keys = {CONTINUAL: CONTINUAL_PROTOCOL_KEYS, DOMAIN: domain_protocol.DOMAIN_PROTOCOL_KEYS}.get(
        ours.key[0], set()
    )
    ignored = {"task": UNCOMPARED_TASK_KEYS | task_keys, "train": UNCOMPARED_TRAIN_KEYS, "method": set[str]()}
    differences = []
    for section in ("method", "task", "train") if ours.trained_parameters else ("method", "task"):
        our_settings, their_settings = (_flatten_settings(c[section]) for c in (ours.config, paper_config))
        for key in dict.fromkeys((*our_settings, *their_settings)):
            a, b = our_settings.get(key), their_settings.get(key)
            if key.partition(".")[0] not in ignored[section] and json.dumps(a) != json.dumps(b):
                differences.append(f"{section}.{key}={_format_setting_value(a)} (theirs {_format_setting_value(b)})")
    return differences


def _flatten_settings(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in settings.items():
        flat |= _flatten_settings(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _format_setting_value(value: Any) -> str:
    return "null" if value is None else str(value)
