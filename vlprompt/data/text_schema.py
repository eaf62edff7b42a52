"""Rows of text as passages: what the columns of a text dataset mean, and every way a row can be wrong."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from vlprompt.core.class_names import Name, Names
from vlprompt.core.texts import pieces
from vlprompt.runtime.errors import nearest

ANSWERS = {"class": "label", "response": "response", "tags": "tags", "messages": "messages"}  # and its column's key


class Told(NamedTuple):
    """One row: where it stands, for errors; what its passage is called; its columns."""

    where: str
    name: str
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Meaning:
    """What the columns of a text dataset mean.

    answer: "class" (a label for the text), "response" (a text to be written), "tags" (a label for each word of the
    field words) or "messages" (a conversation, whose last message is the response). fields: {ours: column}. column:
    that of the answer. templates: a row takes the first whose fields it has all. plain: default the template where a
    text is to be written, else all fields that are not blank with {sep} between them. names: the classes of texts or
    words. ValueError for templates that can't be.
    """

    answer: str
    fields: Mapping[str, str]
    column: str
    templates: tuple[str, ...]
    plain: str | None = None
    names: Names = (Name("response"),)

    def __post_init__(self) -> None:
        for field in self.fields:
            if field in ("mask", "sep", "ctx") or field.isdecimal() or set(field) & set("{}"):
                raise ValueError(f"a field can't be called {field!r}, which templates use otherwise; rename it")
        for template in self.templates:
            if self._has_mask(template) != (self.answer == "class"):
                what = (
                    "no {mask}, where the word for the class stands"
                    if self.answer == "class"
                    else "{mask}, but no class is asked"
                )
                raise ValueError(f"the template {template!r} has {what}; for example {self._example()!r}")
        if self.plain is not None and self._has_mask(self.plain):
            raise ValueError(f"plain is a text without the answer's place, but {self.plain!r} has {{mask}}")

    def _has_mask(self, template: str) -> bool:
        """Whether it asks for a class; ValueError for a field that there is not."""
        shown = pieces(template)
        for piece in shown:
            if piece.kind == "field" and piece.text not in self.fields:
                raise ValueError(f"the template {template!r} has {{{piece.text}}}; {nearest(piece.text, self.fields)}")
        return any(piece.kind == "mask" for piece in shown)

    def _example(self) -> str:
        return " ".join(f"{{{field}}}" for field in self.fields) + (" It is {mask}." if self.answer == "class" else "")
