"""Rows of text as passages: what the columns of a text dataset mean, and every way a row can be wrong."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from vlprompt.core.class_names import Names, ids
from vlprompt.core.texts import Passage, pieces
from vlprompt.data.images.decoding import SUFFIXES
from vlprompt.data.text_schema import Meaning, Told
from vlprompt.runtime.errors import nearest

LEAVE = "or leave such rows out by --skip-broken"


def passage_of(told: Told, meaning: Meaning) -> tuple[Passage, str]:
    """A row as a passage, and the id of its class ("" where there is none)."""
    response, tags, key = None, None, ""
    if meaning.answer == "messages":
        fields, response = _conversation(told, meaning.column)
    elif meaning.answer == "tags":
        fields, tags = _tagged(told, meaning)
    else:
        fields = {ours: text_of(told, column) for ours, column in meaning.fields.items()}
        if meaning.answer == "class":
            key = _class(told.where, "label", value_of(told, meaning.column), meaning.names)
        else:
            response = text_of(told, meaning.column)
            if not response.strip():
                raise ValueError(f"{told.where}: {meaning.column} is blank; give it a text, {LEAVE}")
    if not any(text.strip() for text in fields.values()):
        raise ValueError(f"{told.where}: {' and '.join(meaning.fields.values())} blank; give a text, {LEAVE}")
    full = {ours for ours, text in fields.items() if text.strip()}
    shown = [{piece.text for piece in pieces(template) if piece.kind == "field"} for template in meaning.templates]
    template = next((t for t, needs in zip(meaning.templates, shown, strict=True) if needs <= full), "")
    template = template or meaning.templates[-1]
    joined = "{sep}".join(f"{{{ours}}}" for ours in fields if ours in full)
    plain = meaning.plain or (template if meaning.answer == "response" else joined)
    number = hashlib.sha256(repr((sorted(fields.items()), response, tags)).encode()).hexdigest()[:32]
    # the name holds what tells another text at the same place, so that the hash of a split does too
    passage = Passage(number, fields, template, plain, response, tags,
                      f"{told.name}-{number[:8]}")  # fmt: skip
    return passage, key


def value_of(told: Told, column: str) -> Any:
    """What stands in a column; ValueError where there is none."""
    if column not in told.row:
        raise ValueError(f"{told.where}: there is no column {column!r}; there are {', '.join(told.row) or 'none'}")
    return told.row[column]


def text_of(told: Told, column: str) -> str:
    """The text in a column, or a number as text."""
    value = value_of(told, column)
    if not isinstance(value, str | int | float):
        raise ValueError(f"{told.where}: {column} is {_short(value)}; a text is wanted, {LEAVE}")
    return str(value)


def _short(value: Any) -> str:
    told = json.dumps(value, ensure_ascii=False, default=str)
    return told if len(told) <= 60 else f"{told[:57]}..."


def label_of(value: Any) -> str:
    """A label as it may be compared: 1, 1.0 and "1" are one."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _class(where: str, what: str, value: Any, names: Names) -> str:
    """The id of a class that a row calls by its id or its name."""
    text, keys = label_of(value), ids(names)
    if text in keys:
        return text
    if text in names:
        return keys[names.index(text)]
    told = [key if key == name else f"{key} ({name})" for key, name in zip(keys, names, strict=True)]
    raise ValueError(f"{where}: the {what} {text!r} is none of the classes; {nearest(text, told)}, {LEAVE}")


def list_of(told: Told, column: str) -> list[Any]:
    """A list, as JSON or as words with spaces between them."""
    value = value_of(told, column)
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.lstrip().startswith("[") else value.split()
        except ValueError as error:
            raise ValueError(f"{told.where}: {column} begins as a list, but is not JSON ({error})") from error
    if not isinstance(value, list):
        raise ValueError(f"{told.where}: {column} is {_short(value)}; a list is wanted, {LEAVE}")
    return value


def _tagged(told: Told, meaning: Meaning) -> tuple[dict[str, str], tuple[int, ...]]:
    words, tags = list_of(told, meaning.fields["words"]), list_of(told, meaning.column)
    if len(words) != len(tags):
        raise ValueError(
            f"{told.where}: {len(words)} words have {len(tags)} tags; each word has one, so give as many, {LEAVE}"
        )
    if strange := [word for word in words if not isinstance(word, str) or word.split() != [word]]:
        raise ValueError(
            f"{told.where}: {_short(strange[0])} is no word; a word has letters and no spaces in it, {LEAVE}"
        )
    keys = ids(meaning.names)
    return {"words": " ".join(words)}, tuple(keys.index(_class(told.where, "tag", tag, meaning.names)) for tag in tags)


def _conversation(told: Told, column: str) -> tuple[dict[str, str], str]:
    messages = list_of(told, column)
    for message in messages:
        right = isinstance(message, dict) and set(message) == {"role", "content"}
        if not right or not isinstance(message["content"], str) or not message["content"].strip():
            raise ValueError(
                f'{told.where}: a message is {{"role": ..., "content": a text}}, not {_short(message)}, {LEAVE}'
            )
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        raise ValueError(
            f"{told.where}: the roles are {', '.join(map(str, roles)) or 'none'}; wanted are user and assistant in "
            f"turn, perhaps a system before them, and an assistant at the end, {LEAVE}"
        )
    return {"messages": json.dumps(messages[:-1], ensure_ascii=False)}, messages[-1]["content"]


def no_pictures(told: Sequence[Told], columns: Sequence[str]) -> None:
    """ValueError where a column of texts names images in every row."""
    for column in columns:
        if told and all(str(one.row.get(column, "")).lower().endswith(SUFFIXES) for one in told):
            raise ValueError(f"{told[0].where}: {column!r} names images; the column of a list of images is called path")
