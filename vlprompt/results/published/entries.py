"""Published numbers: configs/reference/*.yaml read into entries, each with its source."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlprompt.runtime.errors import nearest


@dataclass(frozen=True)
class Origin:
    """Where a number was found, how it was read there, and whether that can be relied on (memory and plots can't)."""

    text: str
    how: str
    verified: bool


@dataclass(frozen=True)
class Published:
    """What one source says of one method on one dataset ("average": over the eleven), in percent.

    shots: images per class, "any" where nothing is trained, "all" for every training image. precision, selection: how
    it was run (None: not known). arguments: those of the method that tell its variants apart. spread: standard
    deviations by number, where known. targets: what "average" of a transfer is over. tolerance: of numbers that were
    read off a plot. harmonic_differs: the harmonic mean is printed so, but is not that of base and new. protocol: of a
    stream or of domains, as their `checked` has it; numbers of streams bear the names of ours.
    """

    task: str
    method: str
    title: str
    dataset: str
    shots: int | str
    backbone: str
    numbers: dict[str, float]
    origin: Origin
    spread: dict[str, float]
    precision: str | None = None
    selection: str | None = None
    seeds: int | None = None
    note: str = ""
    tolerance: float = 0.0
    targets: tuple[str, ...] = ()
    harmonic_differs: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """All entries, and by task the datasets that an average is over."""

    entries: tuple[Published, ...]
    eleven: dict[str, tuple[str, ...]]


def held(
    protocol: Mapping[str, Any], fields: Sequence[str], choices: Mapping[str, Sequence[Any]], where: str
) -> dict[str, Any]:
    """A protocol that has all fields and no other, each one of its choices where it has any; else a ValueError.

    defects: sentences.
    """
    if strange := set(protocol) - set(fields):
        raise ValueError(f"{where}: a protocol has no {min(strange)!r}; {nearest(min(strange), fields)}")
    if missing := set(fields) - set(protocol):
        raise ValueError(f"{where}: the protocol does not say {min(missing)!r}; write null where it is not known")
    for key, some in choices.items():
        if not any(protocol[key] is c or (isinstance(c, str) and protocol[key] == c) for c in some):
            told = ", ".join(json.dumps(c) for c in some)
            raise ValueError(f"{where}: protocol.{key} is {protocol[key]!r}; the choices are {told}")
    defects = protocol["defects"]
    if not isinstance(defects, list) or not all(isinstance(d, str) and d for d in defects):
        raise ValueError(f"{where}: protocol.defects is {defects!r}; it is a list of sentences")
    return dict(protocol)
