"""Texts as users have them in Python: strings, or mappings of named fields; each becomes an item."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from vlprompt.core.templates import PromptTemplate
from vlprompt.core.texts import TextItem, parse_template

TextInput = str | Mapping[str, str]  # a text, or its fields by name


def build_text_items(
    text_inputs: Sequence[TextInput],
    template: str,
    plain_template: str,
    truncation_side: Literal["end", "start"] = "end",
    names: Sequence[str] | None = None,
) -> tuple[TextItem, ...]:
    """Build the items of texts, by the templates that a prompt was learned with.

    Args:
        text_inputs: a text or its fields each.
        template: shows the fields with {mask}, the place of the answer.
        plain_template: shows them without it.
        truncation_side: the end at which a text that is too long is truncated.
        names: what errors call each text; default: "text 1" ...

    Raises:
        ValueError: for a field that is missing or blank, or a text without fields where several are needed.
    """
    if isinstance(text_inputs, str | Mapping):
        raise ValueError("texts: expected a sequence of texts, got one text. Put it into a list: [text].")
    pieces = [piece for form in (template, plain_template) for piece in parse_template(form)]
    field_names = list(dict.fromkeys(piece.text for piece in pieces if piece.kind == "field"))
    names = [f"text {k}" for k in range(1, len(text_inputs) + 1)] if names is None else names
    fields_by_text = [_read_fields(name, text, field_names) for name, text in zip(names, text_inputs, strict=True)]
    return tuple(
        TextItem(
            json.dumps(fields, sort_keys=True),
            fields,
            template,
            plain_template,
            name=name,
            truncation_side=truncation_side,
        )
        for name, fields in zip(names, fields_by_text, strict=True)
    )


def make_class_template(fields: Iterable[str]) -> str:
    """Return the template of texts with classes where none is set."""
    return " ".join(f"{{{field}}}" for field in fields) + " It is {mask}."


def require_field_names(fields: Iterable[object]) -> None:
    """Raise ValueError unless a template can show fields of these names."""
    names = list(fields)
    wrong = [
        name for name in names if not isinstance(name, str) or PromptTemplate.parse(f"{{{name}}}").fields != (name,)
    ]
    if wrong or not names:
        got = repr(wrong[0]) if wrong else "none"
        raise ValueError(f"texts: expected fields whose names a template can show, got {got}. Rename them.")


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
    for name, text in fields.items():
        _require_text(where, name, text)
    if missing := [name for name in names if not fields.get(name, "").strip()]:
        present = ", ".join(name for name, text in fields.items() if text.strip()) or "nothing"
        raise ValueError(f"{where}: expected the fields {', '.join(names)}, got {present}. Add {missing[0]!r}.")
    return fields


def _require_text(where: str, name: str, text: object) -> None:
    """Raise ValueError for a field that is no text, or that no tokenizer can read."""
    if not isinstance(text, str):
        raise ValueError(f"{where}: expected a text in the field {name!r}, got {text!r}. Convert it to a string.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: expected a text in Unicode, got half of a character pair at place {error.start + 1}. Remove or "
            "replace it."
        ) from error
