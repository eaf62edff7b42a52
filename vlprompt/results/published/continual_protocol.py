"""Protocols of the published numbers of streams, and how ours differ from them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlprompt.results.published.aggregate import AggregatedResult
    from vlprompt.results.published.entries import PublishedResult

from vlprompt.results.published.entries import make_protocol_error, validate_protocol

CONTINUAL_KINDS = ("class_incremental", "domain_incremental", "task_incremental", "task_free")
METRIC_DEFINITIONS = {  # published metric -> {its definition: our metric of that definition}
    "accuracy": {"lessons": "accuracy", "images": "overall", "stages": "incremental"},
    "forgetting": {"largest": "forgetting", "step": "forgetting_step"},
}
CONTINUAL_CHOICES: dict[str, tuple[Any, ...]] = {
    "kind": CONTINUAL_KINDS,
    "joint": (False, True),
    "buffer": (False, True),
}
CONTINUAL_CHOICES |= {k: (*of, None) for k, of in METRIC_DEFINITIONS.items()} | {"mask": (False, True, "any", None)}
CONTINUAL_FIELDS = (*CONTINUAL_CHOICES, "stages", "order", "normalisation", "defects")
CONTINUAL_PROTOCOL_KEYS = {"kind", "stages", "order", "joint", "mask", "buffer"}  # settings of the task in the protocol


def validate_continual_protocol(protocol: Mapping[str, Any], location: str) -> dict[str, Any]:
    """Check the protocol of a published number; every field is required, None if not known.

    Fields: kind; joint and buffer: whether there is one; mask: whether, or "any"; accuracy and forgetting: a definition
    of `METRIC_DEFINITIONS`; stages: their number; order: natural, seeded or in words; normalisation: [mean, std];
    defects: sentences.
    """
    fields = validate_protocol(protocol, CONTINUAL_FIELDS, CONTINUAL_CHOICES, location)
    stages, order, scale = fields["stages"], fields["order"], fields["normalisation"]
    if stages is not None and (type(stages) is not int or stages < 1):
        raise make_protocol_error("stages", "a whole number from 1, or null", stages, location)
    if order is not None and not isinstance(order, str):
        raise make_protocol_error("order", "natural, seeded, words or null", order, location)
    if scale is not None and (not isinstance(scale, list) or [type(v) in (int, float) for v in scale] != [True, True]):
        raise make_protocol_error("normalisation", "[mean, std] or null", scale, location)
    return fields


def rename_metrics(metrics: Mapping[str, float], protocol: Mapping[str, Any]) -> dict[str, float]:
    """Rename metrics to those of ours with the same definition, where the definition is known."""
    return {METRIC_DEFINITIONS.get(k, {}).get(str(protocol.get(k)), k): v for k, v in metrics.items()}


def match_continual_entries(ours: "AggregatedResult", entries: Sequence["PublishedResult"]) -> "list[PublishedResult]":
    """Find entries of the same kind, buffer and joint training as ours; prefer those with as many stages."""
    task = ours.config["task"]
    setting = {"kind": task.get("kind"), "joint": bool(task.get("joint")), "buffer": bool(task.get("buffer"))}
    matches = [e for e in entries if {k: e.protocol[k] for k in setting} == setting]
    return [e for e in matches if e.protocol["stages"] in _collect_stage_counts(ours)] or matches


def _collect_stage_counts(ours: "AggregatedResult") -> set[int | None]:
    """Return the numbers of stages of all seeds; of joint training that of the setting."""
    task = ours.config["task"]
    if task.get("joint"):
        stages = task.get("stages")
        if not isinstance(stages, str):  # sizes such as B50-10, whose number only the protocol has
            return {len(stages) if isinstance(stages, list) else stages}
    return {p.get("stages") for p in ours.protocols}


def explain_continual_differences(ours: "AggregatedResult", theirs: "PublishedResult") -> Iterator[str]:
    """List how the two protocols differ; what is unknown of theirs counts as a difference."""
    task, protocol = ours.config["task"], theirs.protocol
    unknown = [k for k in ("stages", "order", "normalisation", "mask") if protocol[k] is None]
    unknown += [f"which {k}" for k in METRIC_DEFINITIONS if protocol[k] is None and k in theirs.metrics]
    if unknown:
        yield f"not told of theirs: {', '.join(unknown)}"
    stages, is_joint = _collect_stage_counts(ours), bool(task.get("joint"))
    if protocol["stages"] is not None and stages != {protocol["stages"]} and not (is_joint and None in stages):
        yield f"{' and '.join(map(str, sorted(stages, key=str)))} stages, theirs {protocol['stages']}"
    order = task.get("order")
    order = ", ".join(map(str, order)) if isinstance(order, list) else str(order)
    if protocol["order"] not in (None, order) and not is_joint:
        yield f"order {order}, theirs {protocol['order']}"
    if protocol["mask"] not in (None, "any", task.get("mask")):
        yield f"answers in training are {_describe_mask(task.get('mask'))}, theirs {_describe_mask(protocol['mask'])}"
    if (scale := protocol["normalisation"]) is not None:
        texts = dict.fromkeys(_describe_normalisation(p.get("preprocess") or {}, scale) for p in ours.protocols)
        yield from (text for text in texts if text)
    yield from (f"theirs: {defect}" for defect in protocol["defects"])


def _describe_mask(mask: Any) -> str:
    return "the lesson's classes" if mask else "all classes seen"


def _describe_normalisation(preprocess: Mapping[str, Any], theirs: Sequence[float]) -> str:
    """Describe how our normalisation differs from theirs; empty if it is the same."""
    values = [sorted({float(v) for v in preprocess.get(k, [])}) for k in ("mean", "std")]
    if values == [[float(v)] for v in theirs]:
        return ""
    ours = ", ".join(f"{k} {' '.join(f'{v:g}' for v in preprocess.get(k, []))}" for k in ("mean", "std"))
    return f"pixels normalised with {ours}; theirs with mean {theirs[0]:g}, std {theirs[1]:g}"
