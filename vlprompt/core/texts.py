"""Texts as values: items with named fields, and batches of them with the template by which a model reads them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

from vlprompt.core.templates import PromptTemplate, TemplatePiece


@lru_cache(maxsize=1000)
def parse_template(template: str, n_soft_tokens: int = 0) -> PromptTemplate:
    """Parse the template of a text for a language model, such as "{text} It was {mask}.".

    Args:
        template: the string to parse; see PromptTemplate.
        n_soft_tokens: tokens that all {ctx} share.

    Raises:
        ValueError: if it has no field, or two {mask}.
    """
    parsed = PromptTemplate.parse(template, n_soft_tokens)
    if not parsed.fields:
        raise ValueError(
            f"template: expected a field of the text, got {template!r}, which shows no field. "
            "Write for example '{text} It is {mask}.'"
        )
    if parsed.n_masks > 1:
        raise ValueError(f"template: expected at most one {{mask}}, got {template!r} with {parsed.n_masks}. Leave one.")
    return parsed


@dataclass(frozen=True, slots=True)
class TextItem:
    """A text with named fields.

    Args:
        key: identifies the text.
        fields: field name -> text.
        template: shows the fields with {mask}, the place of the answer.
        plain_template: shows them without it, for heads on pooled features.
        response: the answer, of a text with a free-form answer.
        tags: classes of the words of the field "words" (separated by spaces), of a text classified word by word.
        name: its place in the dataset, the same on every machine; by default the key.
        truncation_side: end of the longest field at which a text is truncated if it is too long for a model.
    """

    key: str
    fields: Mapping[str, str] = field(hash=False)
    template: str
    plain_template: str
    response: str | None = None
    tags: tuple[int, ...] | None = None
    name: str = ""
    truncation_side: Literal["end", "start"] = "end"

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.key)

    @property
    def n_characters(self) -> int:
        """Characters of fields and response, by which texts of similar length are batched."""
        return sum(map(len, self.fields.values())) + len(self.response or "")

    def content_hash(self) -> str:
        """Return a hash of all that a model sees of the text and its answer."""
        content = [dict(self.fields), self.template, self.plain_template, self.response, self.tags]
        return hashlib.sha256(repr(content).encode(errors="surrogatepass")).hexdigest()[:32]


@dataclass(frozen=True)
class TextBatch:
    """B texts, and how they are shown to a model.

    Args:
        items: the texts.
        template: shows all of them, instead of their own templates.
        is_plain: whether their own plain templates are used if there is no template.
        n_soft_tokens: tokens that all {ctx} of a template share.
        responses: one per text, instead of their own; choices to be scored, without an end token.
        follows_prefix: whether they follow a text that was encoded before, so that no begin token is added.
        allows_packing: whether a causal model may put several in one row, with the same results.
    """

    items: tuple[TextItem, ...]
    template: str | None = None
    is_plain: bool = True
    n_soft_tokens: int = 0
    responses: tuple[str, ...] | None = None
    follows_prefix: bool = False
    allows_packing: bool = False

    def __len__(self) -> int:
        return len(self.items)

    @property
    def n_items(self) -> int:
        return len(self.items)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(item.key for item in self.items)

    @property
    def tags(self) -> tuple[tuple[int, ...], ...]:
        """The classes of each text's words; ValueError for texts without tags."""
        if any(item.tags is None for item in self.items):
            name = next(item.name for item in self.items if item.tags is None)
            raise ValueError(
                f"dataset: expected texts with tags, got {name!r}, whose words have no classes. "
                "Take a dataset whose rows have words and tags."
            )
        return tuple(item.tags or () for item in self.items)

    def slice(self, begin: int, end: int) -> "TextBatch":
        return self.select(range(begin, min(end, len(self))))

    def select(self, indices: Sequence[int]) -> "TextBatch":
        """Return the texts at these indices."""
        responses = None if self.responses is None else tuple(self.responses[i] for i in indices)
        return replace(self, items=tuple(self.items[i] for i in indices), responses=responses)

    def with_template(self, template: str | None = None, n_soft_tokens: int = 0, is_plain: bool = False) -> "TextBatch":
        """Return the same texts with another template; None for their own ones, plain or with {mask}."""
        return replace(self, template=template, n_soft_tokens=n_soft_tokens, is_plain=is_plain)

    def with_responses(self, responses: Sequence[str]) -> "TextBatch":
        """Return the same texts with these responses."""
        return replace(self, responses=tuple(responses))

    def template_pieces(self, index: int) -> tuple[TemplatePiece, ...]:
        """Return the pieces of the template of the text at this index."""
        item = self.items[index]
        template = self.template or (item.plain_template if self.is_plain else item.template)
        return parse_template(template, self.n_soft_tokens).pieces

    def response_at(self, index: int) -> str | None:
        return self.items[index].response if self.responses is None else self.responses[index]


def render_template(item: TextItem, template: str) -> str:
    """Render an item with its response at {mask}, or at the end if there is no {mask}; soft tokens are left out.

    Raises:
        ValueError: if the template names a field that the item lacks, or the item is a conversation.
    """
    text, pieces = "", parse_template(template)
    for piece in pieces:
        if piece.kind == "field" and piece.text not in item.fields:
            raise ValueError(
                f"template: expected a field of the text {item.name!r} ({', '.join(item.fields)}), got "
                f"{{{piece.text}}}. Use one of its fields."
            )
        if piece.kind == "field" and piece.text == "messages":
            raise ValueError(
                "demonstrations: expected a prompt and a response, got a conversation. Use rows with a prompt and a "
                "response."
            )
        if piece.kind == "sep":
            text = text.rstrip() + "\n"
        else:
            values = {"field": item.fields.get(piece.text, ""), "mask": item.response or "", "words": piece.text}
            text += values.get(piece.kind, "")
    return text if any(piece.kind == "mask" for piece in pieces) else f"{text} {item.response or ''}"


def find_answer_kind(items: Sequence[object]) -> Literal["class", "response", "tags"]:
    """Return how items are answered."""
    first = items[0] if items else None
    if not isinstance(first, TextItem):
        return "class"
    return "tags" if first.tags is not None else "response" if first.response is not None else "class"


def head_mismatch_message(kind: str) -> str:
    """Return the error message for a head that can't read texts with this kind of answer."""
    if kind == "class":
        return (
            "method.head: expected a head with classes for a dataset with classes, got response. "
            "Set method.head=verbalizer or linear."
        )
    answers = "tags of words" if kind == "tags" else "free-form answers"
    return (
        f"method.head: expected {kind!r} for a dataset with {answers}, got a head that reads one class of a text. "
        f"Set method.head={kind}."
    )
