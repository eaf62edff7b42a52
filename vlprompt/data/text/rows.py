"""Parse and validate table rows of a text dataset into text items."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from vlprompt.core.class_names import Names, class_ids
from vlprompt.core.texts import TextItem, parse_template
from vlprompt.data.images.files import IMAGE_SUFFIXES
from vlprompt.data.text.text_inputs import make_plain_template
from vlprompt.data.text_schema import TextRow, TextSchema
from vlprompt.runtime.errors import suggest_nearest

SKIP_HINT = "or leave such rows out with --skip-broken"


def build_text_item(row: TextRow, schema: TextSchema) -> tuple[TextItem, str]:
    """Return the text item of a row and the id of its class ("" if it has none).

    Raises:
        ValueError: naming the file and line, if a column is missing, blank or of a wrong type.
    """
    response, tags, class_id = None, None, ""
    if schema.answer == "messages":
        fields, response = _parse_conversation(row, schema.answer_column)
    elif schema.answer == "tags":
        fields, tags = _parse_tagged_row(row, schema)
    else:
        fields = {field: get_text(row, column) for field, column in schema.fields.items()}
        if schema.answer == "class":
            class_id = _find_class_id(row.location, "label", get_value(row, schema.answer_column), schema.names)
        else:
            response = get_text(row, schema.answer_column)
            if not response.strip():
                raise ValueError(
                    f"{row.location}: {schema.answer_column}: expected a text, got a blank one. Write a text, "
                    f"{SKIP_HINT}."
                )
    if not any(text.strip() for text in fields.values()):
        raise ValueError(
            f"{row.location}: {' and '.join(schema.fields.values())}: expected a text, got only blanks. Write a text, "
            f"{SKIP_HINT}."
        )
    nonblank = {field for field, text in fields.items() if text.strip()}
    template = _choose_template(schema.templates, nonblank)
    joined = make_plain_template(field for field in fields if field in nonblank)
    plain_template = schema.plain_template or (template if schema.answer == "response" else joined)
    key = hashlib.sha256(repr((sorted(fields.items()), response, tags)).encode()).hexdigest()[:32]
    # the name includes the content hash, so that the hash of a split changes with the texts
    name = f"{row.item_name}-{key[:8]}"
    return TextItem(key, fields, template, plain_template, response, tags, name), class_id


def _choose_template(templates: Sequence[str], nonblank: set[str]) -> str:
    """Return the first template whose fields are all filled, else the last one."""
    for template in templates:
        if {piece.text for piece in parse_template(template) if piece.kind == "field"} <= nonblank:
            return template
    return templates[-1]


def get_value(row: TextRow, column: str) -> Any:
    """Return the value of a column; ValueError if the row has no such column."""
    if column not in row.columns:
        raise ValueError(
            f"{row.location}: expected a column {column!r}, got {', '.join(row.columns) or 'none'}. Add it."
        )
    return row.columns[column]


def get_text(row: TextRow, column: str) -> str:
    """Return the text of a column, or its number as text."""
    value = get_value(row, column)
    if not isinstance(value, str | int | float):
        raise ValueError(
            f"{row.location}: {column}: expected a text, got {_format_value(value)}. Write a text, {SKIP_HINT}."
        )
    return str(value)


def _format_value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def normalize_label(value: Any) -> str:
    """Return the comparable form of a label: 1, 1.0 and "1" are equal."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _find_class_id(where: str, what: str, value: Any, names: Names) -> str:
    """Return the id of the class that a row names by id or name."""
    text, ids = normalize_label(value), class_ids(names)
    if text in ids:
        return text
    if text in names:
        return ids[names.index(text)]
    choices = [
        class_id if class_id == name else f"{class_id} ({name})" for class_id, name in zip(ids, names, strict=True)
    ]
    raise ValueError(
        f"{where}: {what}: expected one of the classes, got {text!r} ({suggest_nearest(text, choices)}). Correct it, "
        f"{SKIP_HINT}."
    )


def get_list(row: TextRow, column: str) -> list[Any]:
    """Return the list in a column, written as JSON or as words separated by spaces."""
    value = get_value(row, column)
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.lstrip().startswith("[") else value.split()
        except ValueError as error:
            raise ValueError(
                f"{row.location}: {column}: expected a JSON list, got another format ({error}). Write a list, "
                f"{SKIP_HINT}."
            ) from error
    if not isinstance(value, list):
        raise ValueError(
            f"{row.location}: {column}: expected a list, got {_format_value(value)}. Write a list, {SKIP_HINT}."
        )
    return value


def _parse_tagged_row(row: TextRow, schema: TextSchema) -> tuple[dict[str, str], tuple[int, ...]]:
    words, tags = get_list(row, schema.fields["words"]), get_list(row, schema.answer_column)
    if len(words) != len(tags):
        raise ValueError(
            f"{row.location}: expected one tag for each word, got {len(words)} words and {len(tags)} tags. Give as "
            f"many, {SKIP_HINT}."
        )
    if invalid := [word for word in words if not isinstance(word, str) or word.split() != [word]]:
        raise ValueError(
            f"{row.location}: expected words without spaces, got {_format_value(invalid[0])}. Write words of letters, "
            f"{SKIP_HINT}."
        )
    ids = class_ids(schema.names)
    return {"words": " ".join(words)}, tuple(
        ids.index(_find_class_id(row.location, "tag", tag, schema.names)) for tag in tags
    )


def _parse_conversation(row: TextRow, column: str) -> tuple[dict[str, str], str]:
    messages = get_list(row, column)
    for message in messages:
        is_message = isinstance(message, dict) and set(message) == {"role", "content"}
        if not is_message or not isinstance(message["content"], str) or not message["content"].strip():
            raise ValueError(
                f'{row.location}: expected messages {{"role": ..., "content": a text}}, got {_format_value(message)}. '
                f"Correct them, {SKIP_HINT}."
            )
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        raise ValueError(
            f"{row.location}: expected the roles user and assistant in turn, perhaps after a system, with an "
            f"assistant at the end, got {', '.join(map(str, roles)) or 'none'}. Correct the messages, {SKIP_HINT}."
        )
    return {"messages": json.dumps(messages[:-1], ensure_ascii=False)}, messages[-1]["content"]


def refuse_image_columns(rows: Sequence[TextRow], columns: Sequence[str]) -> None:
    """Raise ValueError if a text column names an image file in every row."""
    for column in columns:
        if rows and all(str(row.columns.get(column, "")).lower().endswith(IMAGE_SUFFIXES) for row in rows):
            raise ValueError(
                f"{rows[0].location}: expected texts, got names of images in {column!r}. Name the column path for a "
                "list of images."
            )
