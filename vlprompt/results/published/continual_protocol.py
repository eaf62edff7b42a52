"""Published numbers of streams: what is said of their protocols, and in what ours differ from them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlprompt.results.published.aggregate import Ours
    from vlprompt.results.published.entries import Published

from vlprompt.results.published.entries import held

KINDS = ("class_incremental", "domain_incremental", "task_incremental", "task_free")
OURS = {  # a published number -> {how it is defined: the number of ours that is defined so}
    "accuracy": {"lessons": "accuracy", "images": "overall", "stages": "incremental"},
    "forgetting": {"largest": "forgetting", "step": "forgetting_step"},
}
CHOICES: dict[str, tuple[Any, ...]] = {"kind": KINDS, "joint": (False, True), "buffer": (False, True)}
CHOICES |= {k: (*of, None) for k, of in OURS.items()} | {"mask": (False, True, "any", None)}
FIELDS = (*CHOICES, "stages", "order", "normalisation", "defects")
SETTINGS = {"kind", "stages", "order", "joint", "mask", "buffer"}  # of the task, which the protocol speaks of


def checked(protocol: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The protocol of a published number, every field there; ValueError for one that lacks, is not known or is wrong.

    kind; joint, buffer: whether so; mask: whether, or "any"; accuracy, forgetting: a key of `OURS`; stages: how many;
    order: natural, seeded or in words; normalisation: [mean, std]; defects: sentences. None: not known.
    """
    found = held(protocol, FIELDS, CHOICES, where)
    stages, scale = found["stages"], found["normalisation"]
    if stages is not None and (type(stages) is not int or stages < 1):
        raise ValueError(f"{where}: protocol.stages is {stages!r}; it is a whole number from 1, or null")
    if found["order"] is not None and not isinstance(found["order"], str):
        raise ValueError(f"{where}: protocol.order is {found['order']!r}; it is natural, seeded, words or null")
    if scale is not None and (not isinstance(scale, list) or [type(v) in (int, float) for v in scale] != [True, True]):
        raise ValueError(f"{where}: protocol.normalisation is {scale!r}; it is [mean, std] or null")
    return found


def renamed(numbers: Mapping[str, float], protocol: Mapping[str, Any]) -> dict[str, float]:
    """Numbers under the name that ours of the same definition bear; under their own where it is not known."""
    return {OURS.get(k, {}).get(str(protocol.get(k)), k): v for k, v in numbers.items()}


def counterparts(ours: "Ours", entries: Sequence["Published"]) -> "list[Published]":
    """Entries of the same kind, with or without a buffer and joint training as ours; of as many stages if there are."""
    task = ours.config["task"]
    mine = {"kind": task.get("kind"), "joint": bool(task.get("joint")), "buffer": bool(task.get("buffer"))}
    found = [e for e in entries if {k: e.protocol[k] for k in mine} == mine]
    return [e for e in found if e.protocol["stages"] in _stages(ours)] or found


def _stages(ours: "Ours") -> set[int | None]:
    """How many, of all seeds; of joint training what its setting says."""
    task = ours.config["task"]
    if task.get("joint"):
        told = task.get("stages")
        return {len(told) if isinstance(told, list) else told}
    return {p.get("stages") for p in ours.protocols}


def different(ours: "Ours", theirs: "Published") -> Iterator[str]:
    """Why the two protocols are not the same; what is not known of theirs is a reason too."""
    task, told = ours.config["task"], theirs.protocol
    defined = [k for k in OURS if told[k] is None and k in theirs.numbers]
    unknown = [k for k in ("stages", "order", "normalisation", "mask") if told[k] is None]
    if unknown := unknown + [f"which {k}" for k in defined]:
        yield f"not told of theirs: {', '.join(unknown)}"
    stages = _stages(ours)
    if told["stages"] is not None and stages != {told["stages"]} and not (task.get("joint") and None in stages):
        yield f"{' and '.join(map(str, sorted(stages, key=str)))} stages, theirs {told['stages']}"
    order = task.get("order")
    order = ", ".join(map(str, order)) if isinstance(order, list) else str(order)
    if told["order"] not in (None, order) and not task.get("joint"):
        yield f"order {order}, theirs {told['order']}"
    if told["mask"] not in (None, "any", task.get("mask")):
        yield f"answers in training are {_classes(task.get('mask'))}, theirs {_classes(told['mask'])}"
    if told["normalisation"] is not None:
        said = dict.fromkeys(_scale(p.get("transform") or {}, told["normalisation"]) for p in ours.protocols)
        yield from (text for text in said if text)
    yield from (f"theirs: {defect}" for defect in told["defects"])


def _classes(mask: Any) -> str:
    return "the lesson's classes" if mask else "all classes seen"


def _scale(look: Mapping[str, Any], theirs: Sequence[float]) -> str:
    """In what our normalisation is another than theirs; empty where it is the same."""
    mine = [sorted({float(v) for v in look.get(k, [])}) for k in ("mean", "std")]
    if mine == [[float(v)] for v in theirs]:
        return ""
    said = ", ".join(f"{k} {' '.join(f'{v:g}' for v in look.get(k, []))}" for k in ("mean", "std"))
    return f"pixels normalised with {said}; theirs with mean {theirs[0]:g}, std {theirs[1]:g}"
