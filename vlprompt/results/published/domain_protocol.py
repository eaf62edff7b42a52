"""Protocols of the published numbers of domains, and how ours differ from them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlprompt.results.published.entries import make_protocol_error, validate_protocol

if TYPE_CHECKING:
    from vlprompt.results.published.aggregate import AggregatedResult
    from vlprompt.results.published.entries import PublishedResult


DOMAIN_CHOICES: dict[str, tuple[Any, ...]] = {
    "setting": ("adapt", "source_free", "generalise"),
    "sources": ("one", "several"),
    "transductive": (False, True, None),
}
DOMAIN_FIELDS = (*DOMAIN_CHOICES, "pairs", "val_fraction", "defects")
DOMAIN_PROTOCOL_KEYS = {"setting", "source", "target", "transductive", "val_fraction", "epoch_metrics"}  # of the task


def validate_domain_protocol(protocol: Mapping[str, Any], location: str) -> dict[str, Any]:
    """Check the protocol of a published number; every field is required, None if not known.

    Fields: setting; sources: one or several; pairs: how many the mean is over; transductive: whether the target's
    training images are those of the test; val_fraction: the fraction of the source that is held out; defects:
    sentences.
    """
    fields = validate_protocol(protocol, DOMAIN_FIELDS, DOMAIN_CHOICES, location)
    pairs, fraction = fields["pairs"], fields["val_fraction"]
    if type(pairs) is not int or pairs < 1:
        raise make_protocol_error("pairs", "a whole number from 1", pairs, location)
    if fraction is not None and (type(fraction) not in (int, float) or not 0 <= fraction < 1):
        raise make_protocol_error("val_fraction", "a fraction from 0 to below 1, or null", fraction, location)
    return fields


def match_domain_entries(ours: "AggregatedResult", entries: "Sequence[PublishedResult]") -> "list[PublishedResult]":
    """Find entries of the same setting, and of one or several sources as ours."""
    setting = ours.config["task"]["setting"], _classify_sources(ours)
    return [e for e in entries if (e.protocol["setting"], e.protocol["sources"]) == setting]


def explain_domain_differences(ours: "AggregatedResult", theirs: "PublishedResult") -> "Iterator[str]":
    """List how the two protocols differ; what is unknown of theirs counts as a difference."""
    protocol, task = theirs.protocol, ours.config["task"]
    required = ("transductive", "val_fraction") if ours.trained_parameters else ("transductive",)
    unknown = [k for k in required if protocol[k] is None]
    unknown += ["selection"] if ours.trained_parameters and theirs.selection is None else []
    if unknown:
        yield f"not told of theirs: {', '.join(unknown)}"
    n_pairs = len({(tuple(p["sources"]), p["target"]) for p in ours.protocols})
    if n_pairs != protocol["pairs"]:
        yield f"mean over {n_pairs} pair{'s' * (n_pairs != 1)}, theirs over {protocol['pairs']}"
    for transductive in sorted({p["transductive"] for p in ours.protocols} - {protocol["transductive"]}):
        if protocol["transductive"] is not None:
            published = _describe_transductive(protocol["transductive"])
            yield f"{_describe_transductive(transductive)}, theirs {published}"
    if ours.trained_parameters and protocol["val_fraction"] not in (None, task.get("val_fraction")):
        yield f"{task.get('val_fraction'):g} of the source images held out, theirs {protocol['val_fraction']:g}"
    yield from (f"theirs: {defect}" for defect in protocol["defects"])


def _classify_sources(ours: "AggregatedResult") -> str:
    return "several" if any(len(p["sources"]) > 1 for p in ours.protocols) else "one"


def _describe_transductive(transductive: bool) -> str:
    return "tested on the images it adapts to" if transductive else "tested on other images than it adapts to"
