"""Published numbers of domains: what is said of their protocols, and in what ours differ from them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlprompt.results.published.entries import held

if TYPE_CHECKING:
    from vlprompt.results.published.aggregate import Ours
    from vlprompt.results.published.entries import Published


CHOICES: dict[str, tuple[Any, ...]] = {"setting": ("adapt", "source_free", "generalise"), "sources": ("one", "several")}
CHOICES |= {"transductive": (False, True, None)}
FIELDS = (*CHOICES, "pairs", "val", "defects")
SETTINGS = {"setting", "source", "target", "transductive", "val", "track"}  # of the task, which the protocol speaks of


def checked(protocol: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The protocol of a published number, every field there; ValueError for one that lacks, is not known or is wrong.

    setting; sources: one or several; pairs: how many the mean is over; transductive: whether the target's images to
    learn from are those of the test; val: the share of the source that is held out; defects: sentences. None: not
    known.
    """
    found = held(protocol, FIELDS, CHOICES, where)
    if type(found["pairs"]) is not int or found["pairs"] < 1:
        raise ValueError(f"{where}: protocol.pairs is {found['pairs']!r}; it is a whole number from 1")
    if found["val"] is not None and (type(found["val"]) not in (int, float) or not 0 <= found["val"] < 1):
        raise ValueError(f"{where}: protocol.val is {found['val']!r}; it is a share from 0 to below 1, or null")
    return found


def counterparts(ours: "Ours", entries: "Sequence[Published]") -> "list[Published]":
    """Entries of the same setting, from one source or from several as ours."""
    mine = ours.config["task"]["setting"], _sources(ours)
    return [e for e in entries if (e.protocol["setting"], e.protocol["sources"]) == mine]


def different(ours: "Ours", theirs: "Published") -> "Iterator[str]":
    """Why the two protocols are not the same; what is not known of theirs is a reason too."""
    told, task = theirs.protocol, ours.config["task"]
    unknown = [k for k in ("transductive", *(("val",) if ours.trained else ())) if told[k] is None]
    if unknown := unknown + (["selection"] if ours.trained and theirs.selection is None else []):
        yield f"not told of theirs: {', '.join(unknown)}"
    count = len({(tuple(p["sources"]), p["target"]) for p in ours.protocols})
    if count != told["pairs"]:
        yield f"mean over {count} pair{'s' * (count != 1)}, theirs over {told['pairs']}"
    for mine in sorted({p["transductive"] for p in ours.protocols} - {told["transductive"]}):
        if told["transductive"] is not None:
            yield f"{_seen(mine)}, theirs {_seen(told['transductive'])}"
    if ours.trained and told["val"] not in (None, task.get("val")):
        yield f"{task.get('val'):g} of the source images held out, theirs {told['val']:g}"
    yield from (f"theirs: {defect}" for defect in told["defects"])


def _sources(ours: "Ours") -> str:
    return "several" if any(len(p["sources"]) > 1 for p in ours.protocols) else "one"


def _seen(transductive: bool) -> str:
    return "tested on the images it adapts to" if transductive else "tested on other images than it adapts to"
