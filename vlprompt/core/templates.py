"""Prompt templates: strings parsed once into pieces, and the texts that come of them when a class name is filled in."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
PieceKind = Literal["words", "field", "tokens", "mask", "sep"]


class TemplatePiece(NamedTuple):
    """A piece of a template: words, a field by its name, soft tokens, the place of the answer, or a separator."""

    kind: PieceKind
    text: str = ""
    n_soft_tokens: int = 0


class TemplatedText(str):
    """A text whose soft tokens have places, as pieces of kind "words" and "tokens".

    As a string it is its own template, with braces escaped, such as "{4} dog.": that names it in cache keys.
    """

    __slots__ = ("pieces",)
    pieces: tuple[TemplatePiece, ...]

    def __new__(cls, pieces: Iterable[TemplatePiece]) -> "TemplatedText":
        joined = _join_words(pieces)
        text = super().__new__(
            cls, "".join(escape_braces(p.text) if p.kind == "words" else f"{{{p.n_soft_tokens}}}" for p in joined)
        )
        text.pieces = joined
        return text

    # pickle gives these to __new__, which takes another argument than str's does
    def __getnewargs__(self) -> tuple[tuple[TemplatePiece, ...]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return (self.pieces,)

    @property
    def words(self) -> str:
        """The text without its soft tokens, nor the spaces before them."""
        words = ""
        for piece in self.pieces:
            words = words + piece.text if piece.kind == "words" else words.rstrip()
        return words


@dataclass(frozen=True)
class PromptTemplate:
    """A parsed template: "{4} {text} It was {mask}." has soft tokens, a field, words and the place of the answer.

    {4} stands for four soft tokens, {ctx} for a part of those that the method brings, {mask} for the answer, {sep} for
    the separator of two texts, and any other name for a field: of a class text {name}, the class name.
    """

    pieces: tuple[TemplatePiece, ...]

    @staticmethod
    def parse(template: str, n_soft_tokens: int = 0) -> "PromptTemplate":
        """Parse a template; braces that are text are doubled.

        Args:
            template: the string to parse.
            n_soft_tokens: tokens that all k {ctx} share: n // k each, and the rest for the last one.
        """
        return _parse(template, n_soft_tokens)

    def __iter__(self) -> Iterator[TemplatePiece]:
        return iter(self.pieces)

    def __getitem__(self, index: int) -> TemplatePiece:
        return self.pieces[index]

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the fields, in order, with repetitions."""
        return tuple(piece.text for piece in self.pieces if piece.kind == "field")

    @property
    def n_masks(self) -> int:
        return sum(piece.kind == "mask" for piece in self.pieces)

    def require_fields(self, setting: str, fields: Sequence[str], n_soft_tokens: int | None = None) -> None:
        """Refuse placeholders that would stand in the text as they are written.

        Args:
            setting: the setting or object that holds the template, for the error.
            fields: the fields that are filled in.
            n_soft_tokens: that all {ctx} share; None where there is no place for soft tokens.

        Raises:
            ValueError: for another placeholder, with the known ones.
        """
        known = [f"{{{field}}}" for field in fields] + (["{ctx}"] if n_soft_tokens else [])
        for piece in self.pieces:
            is_soft = piece.kind == "tokens" and not n_soft_tokens
            if is_soft or piece.kind in ("mask", "sep") or (piece.kind == "field" and piece.text not in fields):
                name = piece.text if piece.kind != "tokens" else str(piece.n_soft_tokens or "ctx")
                raise ValueError(
                    f"{setting}: expected the placeholders {', '.join(known)}, got {{{name}}}. "
                    f"Write one of those, or {{{{{name}}}}} for a text in braces."
                )

    def fill(self, fields: Mapping[str, str]) -> TemplatedText:
        """Replace fields by their values; any other placeholder stays as it is written, as words."""
        return TemplatedText(
            piece
            if piece.kind in ("words", "tokens")
            else TemplatePiece("words", fields.get(piece.text, f"{{{piece.text}}}"))
            for piece in self.pieces
        )


def as_templated_text(text: str, n_soft_tokens: int = 0) -> TemplatedText:
    """A plain string as a TemplatedText: "{4} dog." has a place for four soft tokens."""
    return text if isinstance(text, TemplatedText) else PromptTemplate.parse(text, n_soft_tokens).fill({})


def escape_braces(text: str) -> str:
    """Return the template that shows exactly this text."""
    return text.replace("{", "{{").replace("}", "}}")


@lru_cache(maxsize=1000)
def _parse(template: str, n_soft_tokens: int) -> PromptTemplate:
    pieces, end = list[TemplatePiece](), 0
    context_lengths = iter(_divide(n_soft_tokens, template.count("{ctx}")))
    for match in PLACEHOLDER.finditer(template):
        pieces.append(TemplatePiece("words", template[end : match.start()]))
        pieces.append(_parse_placeholder(match, context_lengths))
        end = match.end()
    pieces.append(TemplatePiece("words", template[end:]))
    return PromptTemplate(tuple(piece for piece in pieces if piece.kind != "words" or piece.text))


def _parse_placeholder(match: re.Match[str], context_lengths: Iterator[int]) -> TemplatePiece:
    name = match[1]
    if name is None:
        return TemplatePiece("words", match[0][0])
    if name == "ctx":
        return TemplatePiece("tokens", n_soft_tokens=next(context_lengths))
    if name.isdecimal():
        return TemplatePiece("tokens", n_soft_tokens=int(name))
    if name == "mask" or name == "sep":
        return TemplatePiece(name, name)
    return TemplatePiece("field", name)


def _divide(n_soft_tokens: int, n_contexts: int) -> list[int]:
    """Lengths of the contexts: n // k each, the last one takes the rest."""
    if not n_contexts:
        return []
    length = n_soft_tokens // n_contexts
    return [length] * (n_contexts - 1) + [n_soft_tokens - length * (n_contexts - 1)]


def _join_words(pieces: Iterable[TemplatePiece]) -> tuple[TemplatePiece, ...]:
    """The pieces with neighbouring words in one, so that equal texts have equal pieces."""
    joined = list[TemplatePiece]()
    for piece in pieces:
        if piece.kind == "words" and joined and joined[-1].kind == "words":
            joined[-1] = TemplatePiece("words", joined[-1].text + piece.text)
        elif piece.kind != "words" or piece.text:
            joined.append(piece)
    return tuple(joined)
