"""Read the rows of a table in a file, .jsonl, .csv or .tsv, each with the number of its line."""

import csv
import io
import json
from pathlib import Path
from typing import Any

TABLE_SUFFIXES = (".jsonl", ".csv", ".tsv")
NumberedRows = list[tuple[int, dict[str, Any]]]


def read_table_rows(path: Path) -> NumberedRows:
    """Return (line, row) for each row of a UTF-8 table: JSON lines, or a header line that names the columns.

    A comma, semicolon or tab stands between columns; quotes mean what they mean in CSV.

    Raises:
        ValueError: for what is not UTF-8, not JSON or no table; it names the file and the line.
    """
    return _read_jsonl(path) if path.suffix.lower() == ".jsonl" else _read_csv(path)


def _read_utf8(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, row {line}: expected UTF-8, got another encoding ({error.reason}). Save the file as UTF-8."
        ) from error


def _read_csv(path: Path) -> NumberedRows:
    text, rows = _read_utf8(path), []
    header = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count), strict=True)
    try:
        _require_different([column.strip() for column in reader.fieldnames or ()], path)
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"{path}, row {reader.line_num}: expected as many values as columns, got more or fewer. Quote "
                    "texts with commas."
                )
            rows.append((reader.line_num, {str(key).strip(): value for key, value in row.items()}))
    except csv.Error as error:
        raise ValueError(
            f"{path}, row {reader.line_num}: expected a CSV row, got another format ({error}). Quote texts with commas."
        ) from error
    return rows


def _require_different(columns: list[str], path: Path) -> None:
    """Raise ValueError for two columns of one name; columns without a name are left to those who read the rows."""
    if repeated := [column for column in columns if column and columns.count(column) > 1]:
        raise ValueError(f"{path}: expected one column {repeated[0]!r}, got two or more. Rename or remove the others.")


def _read_jsonl(path: Path) -> NumberedRows:
    rows = []
    for number, line in enumerate(_read_utf8(path).split("\n"), 1):  # a text may hold other ends of lines
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(
                f"{path}, row {number}: expected JSON, got another format ({error}). Write one JSON object in each "
                "line."
            ) from error
        if not isinstance(row, dict):
            raise ValueError(
                f'{path}, row {number}: expected {{"path": ..., "label": ...}} or {{"text": ..., ...}}, got a '
                f"{type(row).__name__}. Write one JSON object in each line."
            )
        rows.append((number, row))
    return rows
