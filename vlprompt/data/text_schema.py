"""What the columns of a text dataset mean: fields, answers and templates."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from vlprompt.core.class_names import ClassName, Names
from vlprompt.core.texts import parse_template
from vlprompt.runtime.errors import suggest_nearest


class TextRow(NamedTuple):
    """One row of a table: where it stands, for errors; the name of its item; its columns."""

    location: str
    item_name: str
    columns: Mapping[str, Any]


@dataclass(frozen=True)
class TextSchema:
    """What the columns of a text dataset mean.

    Args:
        answer: "class" (a label for the text), "response" (a text to be written), "tags" (a label for each word of the
            field words) or "messages" (a conversation, whose last message is the response).
        fields: {our name: column}.
        answer_column: the column of the answer.
        templates: a row takes the first whose fields it has all.
        plain_template: the text without the answer's place (default: the template where a text is to be written, else
            all fields that are not blank with {sep} between them).
        names: the classes of texts or words.

    Raises:
        ValueError: for templates that do not fit the fields and the answer.
    """

    answer: str
    fields: Mapping[str, str]
    answer_column: str
    templates: tuple[str, ...]
    plain_template: str | None = None
    names: Names = (ClassName("response"),)

    def __post_init__(self) -> None:
        for field in self.fields:
            if field in ("mask", "sep", "ctx") or field.isdecimal() or set(field) & set("{}"):
                raise ValueError(
                    "fields: expected names other than mask, sep, ctx and numbers, which templates use, got "
                    f"{field!r}. Rename it."
                )
        for template in self.templates:
            if self._has_mask(template) != (self.answer == "class"):
                needed = (
                    "{mask} where the word for the class stands"
                    if self.answer == "class"
                    else "no {mask}, as the answer is no class"
                )
                raise ValueError(
                    f"template: expected {needed}, got {template!r}. Write for example {self._example_template()!r}."
                )
        if self.plain_template is not None and self._has_mask(self.plain_template):
            raise ValueError(
                f"plain_template: expected a template without {{mask}}, got {self.plain_template!r}. Leave {{mask}} "
                "out."
            )

    def _has_mask(self, template: str) -> bool:
        """Whether a template asks for a class; ValueError for an unknown field."""
        pieces = parse_template(template)
        for piece in pieces:
            if piece.kind == "field" and piece.text not in self.fields:
                raise ValueError(
                    f"template: expected a field of the dataset, got {{{piece.text}}} in {template!r}; "
                    f"{suggest_nearest(piece.text, self.fields)}"
                )
        return any(piece.kind == "mask" for piece in pieces)

    def _example_template(self) -> str:
        return " ".join(f"{{{field}}}" for field in self.fields) + (" It is {mask}." if self.answer == "class" else "")
