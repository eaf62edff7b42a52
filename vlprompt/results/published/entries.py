"""Published numbers and their sources."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlprompt.runtime.errors import suggest_nearest

USES = {  # what a published number used beyond the labelled images of its shots -> why another does not compare with it
    "teacher": "theirs had a larger teacher",
    "unlabelled_images": "theirs had unlabelled images of all classes",
    "llm_texts": "theirs had class texts of a language model",
    "settings_by_dataset": "theirs had settings for each dataset that no validation images chose",
}


@dataclass(frozen=True)
class NumberSource:
    """Where a number was published.

    Args:
        text: the publication.
        extraction: how the number was read (a table, a plot, from memory).
        is_verified: whether it can be relied on; numbers from memory and plots can't.
    """

    text: str
    extraction: str
    is_verified: bool


@dataclass(frozen=True)
class PublishedResult:
    """The numbers of one source for one method on one dataset, in percent.

    Args:
        dataset: "average" for the average over the datasets of the task.
        shots: images per class, "any" where nothing is trained, "all" for every training image.
        std: standard deviations by metric, where known.
        precision: None if not known, as selection.
        targets: what the average of a transfer is over.
        tolerance: of numbers that were read off a plot.
        has_other_harmonic: the printed harmonic mean is not that of base and new.
        arguments: settings of the method that tell its variants apart.
        uses: keys of `USES`.
        run_by: who ran the method, if not its authors.
        protocol: of a stream or of domains; the metrics of streams have the names of ours.
    """

    task: str
    method: str
    title: str
    dataset: str
    shots: int | str
    backbone: str
    metrics: dict[str, float]
    source: NumberSource
    std: dict[str, float]
    precision: str | None = None
    selection: str | None = None
    seeds: int | None = None
    note: str = ""
    tolerance: float = 0.0
    targets: tuple[str, ...] = ()
    has_other_harmonic: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    uses: tuple[str, ...] = ()
    run_by: str = ""


@dataclass(frozen=True)
class Reference:
    """All published results, and by task the datasets that an average is over."""

    entries: tuple[PublishedResult, ...]
    averaged_datasets: dict[str, tuple[str, ...]]


def validate_protocol(
    protocol: Mapping[str, Any], fields: Sequence[str], choices: Mapping[str, Sequence[Any]], location: str
) -> dict[str, Any]:
    """Check that a protocol has all fields and no other, each with one of its choices if it has any.

    Args:
        protocol: of a published number.
        fields: its keys; `defects` is a list of sentences.
        choices: the values that a field may have.
        location: where the protocol is, for errors.
    """
    if unknown := set(protocol) - set(fields):
        nearest = suggest_nearest(min(unknown), fields)
        raise ValueError(f"{location}: protocol: unknown key {min(unknown)!r}; {nearest}")
    if missing := set(fields) - set(protocol):
        raise ValueError(f"{location}: protocol: the key {min(missing)!r} is missing. Write null if it is not known.")
    for key, values in choices.items():
        if not any(protocol[key] is value or (isinstance(value, str) and protocol[key] == value) for value in values):
            raise make_protocol_error(key, f"one of {', '.join(map(json.dumps, values))}", protocol[key], location)
    defects = protocol["defects"]
    if not isinstance(defects, list) or not all(isinstance(d, str) and d for d in defects):
        raise make_protocol_error("defects", "a list of sentences", defects, location)
    return dict(protocol)


def make_protocol_error(key: str, expected: str, value: Any, location: str) -> ValueError:
    return ValueError(f"{location}: protocol.{key}: expected {expected}, got {value!r}. Correct it.")
