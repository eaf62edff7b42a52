"""Domains: the images of one, and which classes of two datasets are the same."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any

from vlprompt.core.batch import Split
from vlprompt.core.class_names import Names, named
from vlprompt.data.dataset import Data, plain
from vlprompt.data.splits.sampling import few_shot, held_out
from vlprompt.runtime.errors import nearest


@dataclass(frozen=True)
class Place:
    """The images of one domain; val may be missing.

    name: of the domain, or of a dataset that is one as a whole; word: what texts call it. whole: the three parts are
    only a cut of ours.
    """

    name: str
    word: str
    train: Split
    val: Split | None
    test: Split
    whole: bool

    def taking(self, places: Mapping[int, int], names: Names) -> "Place":
        """Only these classes: the place of each among the names."""

        def of(split: Split) -> Split:
            kept = split.of([i for i, label in enumerate(split.labels) if label in places])
            return replace(kept, labels=tuple(places[label] for label in kept.labels), names=names)

        return replace(self, train=of(self.train), val=None if self.val is None else of(self.val), test=of(self.test))

    @cached_property
    def every(self) -> Split:
        """All of its images."""
        return reduce(Split.plus, [part for part in (self.train, self.val, self.test) if part is not None])

    @cached_property
    def seen(self) -> Split:
        """What there is to learn from: all of them, but the test where the set has one of its own."""
        return self.every if self.whole else replace(self, test=self.test.of([])).every

    def teaching(self, share: float, shots: int | None, seed: int) -> tuple[Split, Split | None, Split | None]:
        """As a source: what is trained on, for validation, and what tells how well the source is kept.

        Where the parts are ours all images are trained on but a share of each class for both; a set with parts of its
        own keeps them, and gives a share of train where it has no val. Without a share there is no val.
        """
        train, val, test = (self.every, None, None) if self.whole else (self.train, self.val or None, self.test)
        if not share and val is not None:
            train, val = train.plus(val), None
        elif share and val is None:
            train, val = held_out(train, share)
        if shots is not None:
            there = [i for i, images in enumerate(train.count()) if images]  # others may have what one source lacks
            some = few_shot(train.classes(there), None, shots, seed)[0]
            train = replace(some, labels=tuple(there[label] for label in some.labels), names=train.names)
        return train, val, val if test is None else test


def domains_in(data: Data) -> list[str]:
    """The names of the domains of a dataset, in its own order; none where it does not tell any."""
    names = data.test.info.get("domains")
    return [str(name) for name in names] if isinstance(names, list | tuple) else []


def pairs_in(data: Data) -> list[tuple[str, str]]:
    """(source, target) of each pair that a benchmark is made of: those its card names, else all ordered ones."""
    told, every = data.test.info.get("pairs"), domains_in(data)
    if isinstance(told, list):
        return [(source, target) for source, target in told]
    return [(source, target) for target in every for source in every if source != target]


def place_of(data: Data, name: str) -> Place:
    """One domain of a dataset; ValueError for one that it has not."""
    known = domains_in(data)
    if name not in known:
        told = (
            nearest(name, known) if known else "it tells no domains, so it can be a source or a target as a whole only"
        )
        raise ValueError(f"{data.name} has no domain {name!r}; {told}")
    k = known.index(name)

    return _place(data, name, name, lambda split: split.of([i for i, d in enumerate(split.domains or ()) if d == k]))


def whole_of(data: Data) -> Place:
    """A dataset as one domain."""
    return _place(data, data.name, str(data.test.info.get("domain", data.name)), lambda split: split)


def _place(data: Data, name: str, word: str, some: Callable[[Split], Split]) -> Place:
    train, val, test = (None if split is None else replace(some(split), domains=None, info={})
                        for split in (data.train, data.val, data.test))  # fmt: skip
    assert train is not None, "Data has one"
    assert test is not None, "Data has one"
    return Place(name, word, train, val, test, bool(data.test.info.get("transductive", False)))


def _caption(name: str) -> str:
    hand = named(name).hand
    return plain((hand or "{name}").replace("{name}", name))


def same_classes(theirs: Names, ours: Names) -> tuple[list[int | None], str]:
    """For each of our classes its place among theirs (None: they have none of it), and how they were matched.

    By their names, else by the whole of their hand-written captions: "digit zero" in "a photo of the {name}." is "zero"
    in "a photo of the digit {name}.". ValueError where two classes of one side could be meant.
    """
    best: tuple[list[int | None], str] = [None] * len(ours), "by name"
    for how, key in (("by name", plain), ("by their captions", _caption)):
        places = _places([key(name) for name in theirs], theirs)
        found = [places.get(k) for k in _places([key(name) for name in ours], ours)]
        if sum(place is not None for place in found) > sum(place is not None for place in best[0]):
            best = found, how
    return best


def _places(keys: Sequence[str], names: Names) -> dict[str, int]:
    if twice := [i for i, key in enumerate(keys) if key in keys[:i]]:
        first = keys.index(keys[twice[0]])
        raise ValueError(
            f"the classes {str(names[first])!r} and {str(names[twice[0]])!r} of one dataset can't be told apart by "
            "their names, so they can't be matched with another's; rename one"
        )
    return {key: i for i, key in enumerate(keys)}


def merged(splits: Sequence[Split]) -> Split:
    """Several sources as one split, the domain of each image its place among them; one has no domains."""
    whole = reduce(Split.plus, splits)
    domains = None if len(splits) == 1 else tuple(k for k, split in enumerate(splits) for _ in range(len(split)))
    told: list[Any] = [split.info.get("short", []) for split in splits]
    short = list(dict.fromkeys(name for names in told for name in names))
    return replace(whole, domains=domains, info=whole.info | ({"short": short} if short else {}))
