"""Rows of a table in a file, .jsonl, .csv or .tsv, each with the number of its line."""

import csv
import io
import json
from pathlib import Path
from typing import Any

TABLES = (".jsonl", ".csv", ".tsv")
Rows = list[tuple[int, dict[str, Any]]]


def read_rows(path: Path) -> Rows:
    """(line, row) for each row of a table in UTF-8, of JSON line by line or with a head that names the columns.

    A comma, semicolon or tab stands between columns; quotes mean what they mean in CSV. ValueError that names the file
    and the line for what is not UTF-8, not JSON or no table.
    """
    return _jsonl(path) if path.suffix.lower() == ".jsonl" else _csv(path)


def _text(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, row {line}: not UTF-8 ({error.reason}); save the file as UTF-8") from error


def _csv(path: Path) -> Rows:
    text, found = _text(path), []
    head = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"{path}, row {reader.line_num}: there are not as many values as columns")
            found.append((reader.line_num, {str(key).strip(): value for key, value in row.items()}))
    except csv.Error as error:
        raise ValueError(f"{path}, row {reader.line_num}: not a CSV table ({error})") from error
    return found


def _jsonl(path: Path) -> Rows:
    found = []
    for number, line in enumerate(_text(path).split("\n"), 1):  # a text may hold other ends of lines
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, row {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f'{path}, row {number}: a row is {{"path": ..., "label": ...}} or {{"text": ..., ...}}')
        found.append((number, row))
    return found
