"""Texts as values: passages with named fields, batches of them, and the templates by which a model reads them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal, NamedTuple

HOLE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
Kind = Literal["words", "field", "tokens", "mask", "sep"]


class Piece(NamedTuple):
    """A part of a template: words, the name of a field, how many soft tokens, the answer's place, a seam."""

    kind: Kind
    text: str = ""
    n: int = 0


@lru_cache(maxsize=1000)
def pieces(template: str, n: int = 0) -> tuple[Piece, ...]:
    """ "{4} {text} It was {mask}." in parts: {4} stands for four soft tokens, {mask} for the answer, {sep} for the
    seam between two texts, and any other name for a field of the passage.

    n: the soft tokens that all {ctx} share, n // k each and the last one the rest. Braces that are text are doubled.
    ValueError for a template without a field, or with two {mask}.
    """
    found, end, shared = list[Piece](), 0, template.count("{ctx}")
    met = 0
    for hole in HOLE.finditer(template):
        found.append(Piece("words", template[end : hole.start()]))
        end, name = hole.end(), hole[1]
        if name is None:
            found.append(Piece("words", hole[0][0]))
        elif name == "ctx":
            met += 1
            found.append(Piece("tokens", n=n // shared if met < shared else n - n // shared * (shared - 1)))
        elif name.isdecimal():
            found.append(Piece("tokens", n=int(name)))
        else:
            found.append(Piece(name if name in ("mask", "sep") else "field", name))  # type: ignore[arg-type]
    found.append(Piece("words", template[end:]))
    if not any(piece.kind == "field" for piece in found):
        raise ValueError(
            f"the template {template!r} shows no field of a text: write for example '{{text}} It is {{mask}}.'"
        )
    if sum(piece.kind == "mask" for piece in found) > 1:
        raise ValueError(f"the template {template!r} has two places for the answer; one {{mask}} is the most")
    return tuple(piece for piece in found if piece.kind != "words" or piece.text)


@dataclass(frozen=True, slots=True)
class Passage:
    """A text to be read, by named fields; `key` tells it from any other.

    template: how it is shown with the answer's place in it; plain: without one, for a head on a feature. response: what
    is to be said, of a text that is answered by text; tags: the classes of its words, of a text whose field "words" is
    classified word by word (separated by spaces). name: where it stands in its dataset, the same on every machine;
    cut: the end of its longest field at which it is shortened where it is too long for a model.
    """

    key: str
    fields: Mapping[str, str] = field(hash=False)
    template: str
    plain: str
    response: str | None = None
    tags: tuple[int, ...] | None = None
    name: str = ""
    cut: Literal["end", "start"] = "end"

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.key)

    @property
    def size(self) -> int:
        """Characters, by which batches of texts of like length are made."""
        return sum(map(len, self.fields.values())) + len(self.response or "")


@dataclass(frozen=True)
class Passages:
    """B passages and how they are read: by one template for all, or each by its own.

    template: instead of their own; plain: their own without an answer's place. n: the soft tokens of {ctx}; responses:
    instead of their own, one for each (choices that are scored: nothing ends them); after: they follow a text that was
    read before (`past`), so nothing begins them;
    packed: several may stand in one row of a causal model, which changes nothing but the time.
    """

    items: tuple[Passage, ...]
    template: str | None = None
    plain: bool = True
    n: int = 0
    responses: tuple[str, ...] | None = None
    after: bool = False
    packed: bool = False

    def __len__(self) -> int:
        return len(self.items)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(item.key for item in self.items)

    @property
    def tags(self) -> tuple[tuple[int, ...], ...]:
        """The class of each word, of texts that are classified word by word; ValueError for others."""
        if any(item.tags is None for item in self.items):
            raise ValueError("these texts have no classes of words: take a dataset whose rows have words and tags")
        return tuple(item.tags or () for item in self.items)

    def part(self, begin: int, end: int) -> "Passages":
        """Those from `begin` to before `end`."""
        return self.some(range(begin, min(end, len(self))))

    def some(self, places: Sequence[int]) -> "Passages":
        """Those at these places."""
        responses = None if self.responses is None else tuple(self.responses[i] for i in places)
        return replace(self, items=tuple(self.items[i] for i in places), responses=responses)

    def form(self, template: str | None = None, n: int = 0, plain: bool = False) -> "Passages":
        """The same passages by another template, or each by its own (None): with an answer's place, or plain."""
        return replace(self, template=template, n=n, plain=plain)

    def answered(self, responses: Sequence[str]) -> "Passages":
        """The same passages with these responses."""
        return replace(self, responses=tuple(responses))

    def shown(self, i: int) -> tuple[Piece, ...]:
        """The i-th by its template, in parts."""
        item = self.items[i]
        return pieces(self.template or (item.plain if self.plain else item.template), self.n)

    def response(self, i: int) -> str | None:
        return self.items[i].response if self.responses is None else self.responses[i]


def answered(items: Sequence[object]) -> str:
    """How items are answered: "class", "response" or "tags"."""
    first = items[0] if items else None
    if not isinstance(first, Passage):
        return "class"
    return "tags" if first.tags is not None else "response" if first.response is not None else "class"


def other_reader(kind: str) -> str:
    """What to say where a reader can't read texts that are answered so."""
    if kind == "class":
        return "these texts have classes, and the method's reader writes a response: set method.reader=words or linear"
    return (
        f"these texts are answered {'word by word' if kind == 'tags' else 'by text'}, and the method reads one class "
        f"of a text: set method.reader={kind}"
    )
