"""Show predictions on standard output as lines, JSON, JSON lines or CSV, and describe what went wrong."""

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from vlprompt.experiments.predict.tables import CsvWriter, JsonWriter, RowWriter

if TYPE_CHECKING:
    from vlprompt.experiments.predict.prediction import PredictionCounts

Row = dict[str, Any]
CONTROL_CHARACTERS = {n: f"\\x{n:02x}" for n in (*range(32), *range(127, 160))}  # as a line shows them
NO_LABEL = "no label"
MAX_TEXT_LENGTH = 60  # characters of a text in a line


class LineWriter:
    """Write a line for each row that has an answer.

    Args:
        file: where to.
    """

    def __init__(self, file: TextIO):
        self._file = file

    def write(self, rows: Iterable[Row]) -> None:
        self._file.writelines(map(format_line, rows))

    def close(self) -> None:
        """Do nothing: lines have no end."""


class JsonLineWriter(LineWriter):
    """Write each row as JSON in a line."""

    def write(self, rows: Iterable[Row]) -> None:
        self._file.writelines(f"{json.dumps(row)}\n" for row in rows)


PRINTED_FORMATS = {"lines": LineWriter, "json": JsonWriter, "jsonl": JsonLineWriter, "csv": CsvWriter}


def require_printed_format(output_format: str) -> None:
    """ValueError for an unknown format, or one that only files have."""
    if output_format not in PRINTED_FORMATS:
        remedy = "Name a file by --out." if output_format == "parquet" else "Set one of these."
        raise ValueError(f"--format: expected {', '.join(PRINTED_FORMATS)}, got {output_format!r}. {remedy}")


def open_writer(output_format: str, file: TextIO, columns: Sequence[str]) -> RowWriter:
    """Open a writer of rows.

    Args:
        output_format: one of PRINTED_FORMATS.
        file: where to.
        columns: of a table.
    """
    if output_format == "csv":
        return CsvWriter(file, columns)
    return PRINTED_FORMATS[output_format](file)


def format_line(row: Row) -> str:
    """Format a row as `path: class probability, ...` or `text: response`; "" for a broken input.

    One that may have several labels is `path: label, label (class probability, ...)`.
    """
    if "error" in row:
        return ""
    if "response" in row:
        return f"{_format_name(row)}: {row['response']}\n"  # may have lines
    classes = ", ".join(f"{one['class']} {one['probability']:.3f}" for one in row["top"])
    if "labels" in row:
        each = "".join(f"; {name}: {_join_labels(own['labels'])}" for name, own in row.get("each", {}).items())
        line = f"{_format_name(row)}: {_join_labels(row['labels'])} ({classes}){each}"
        return line.translate(CONTROL_CHARACTERS) + "\n"
    rejection = "" if row["prediction"] == row["top"][0]["class"] else f"{row['prediction']}; "
    each = "".join(
        f"; {name}: {own['prediction']} {own['probability']:.3f}" for name, own in row.get("each", {}).items()
    )
    return f"{_format_name(row)}: {rejection}{classes}{each}".translate(CONTROL_CHARACTERS) + "\n"


def _join_labels(labels: Sequence[str]) -> str:
    return ", ".join(labels) or NO_LABEL


def _format_name(row: Row) -> str:
    if "text" not in row:
        return row["path"]
    text = row["text"] if isinstance(row["text"], str) else json.dumps(row["text"], ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= MAX_TEXT_LENGTH else f"{text[: MAX_TEXT_LENGTH - 3]}..."


def describe_failures(counts: "PredictionCounts") -> list[str]:
    """Return lines on inputs that were named twice or could not be read, with the first few errors."""
    lines = [f"left out: {error}" for error in counts.first_errors]
    if counts.n_repeated:
        lines.append(f"{counts.n_repeated:,} inputs were named more than once, and predicted once")
    if counts.n_failed:
        further = counts.n_failed - len(counts.first_errors)
        rest = f"; {further:,} further errors stand in their rows" if further else ""
        lines.append(f"{counts.n_failed:,} of {counts.n_inputs:,} inputs could not be read{rest}")
    return lines
