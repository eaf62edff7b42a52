"""Texts as users have them in Python: strings, or mappings of named fields; each becomes an item."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from vlprompt.core.texts import TextItem, parse_template

TextInput = str | Mapping[str, str]  # a text, or its fields by name


def build_text_items(
    text_inputs: Sequence[TextInput],
    template: str,
    plain_template: str,
    truncation_side: Literal["end", "start"] = "end",
) -> tuple[TextItem, ...]:
    """Build the items of texts, by the templates that a prompt was learned with.

    Args:
        text_inputs: a text or its fields each.
        template: shows the fields with {mask}, the place of the answer.
        plain_template: shows them without it.
        truncation_side: the end at which a text that is too long is truncated.

    Raises:
        ValueError: for a field that is missing or blank, or a text without fields where several are needed.
    """
    if isinstance(text_inputs, str | Mapping):
        raise ValueError("texts: expected a sequence of texts, got one text. Put it into a list: [text].")
    pieces = [piece for form in (template, plain_template) for piece in parse_template(form)]
    names = list(dict.fromkeys(piece.text for piece in pieces if piece.kind == "field"))
    fields_by_text = [_read_fields(f"text {k}", text, names) for k, text in enumerate(text_inputs, 1)]
    return tuple(
        TextItem(
            json.dumps(fields, sort_keys=True),
            fields,
            template,
            plain_template,
            name=f"text {k}",
            truncation_side=truncation_side,
        )
        for k, fields in enumerate(fields_by_text, 1)
    )


def make_class_template(fields: Iterable[str]) -> str:
    """Return the template of texts with classes where none is set."""
    return " ".join(f"{{{field}}}" for field in fields) + " It is {mask}."


def make_plain_template(fields: Iterable[str]) -> str:
    """Return the template without the place of the answer where none is set."""
    return "{sep}".join(f"{{{field}}}" for field in fields)


def _read_fields(where: str, text_input: TextInput, names: Sequence[str]) -> dict[str, str]:
    if not isinstance(text_input, str | Mapping):
        raise ValueError(
            f"{where}: expected a text, or a mapping of fields, got a {type(text_input).__name__}. Pass one of these."
        )
    if isinstance(text_input, str) and len(names) > 1:
        raise ValueError(
            f"{where}: expected the fields {', '.join(names)}, got a text without fields. Give a .jsonl file "
            "with an object of them on each line, or in Python a mapping."
        )
    fields = {names[0]: text_input} if isinstance(text_input, str) else dict(text_input)
    if missing := [name for name in names if not fields.get(name, "").strip()]:
        present = ", ".join(name for name, text in fields.items() if text.strip()) or "nothing"
        raise ValueError(f"{where}: expected the fields {', '.join(names)}, got {present}. Add {missing[0]!r}.")
    return fields
