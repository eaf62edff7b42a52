"""Rows as tables: flat columns for CSV and Parquet, and the files of all formats."""

import csv
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

from vlprompt.data.readers.label_table import LABEL_SEPARATOR
from vlprompt.experiments.predict.prompts import Ensemble
from vlprompt.experiments.predict.rows import Row, RowLayout
from vlprompt.runtime.installation import require_package

FILE_FORMATS = ("jsonl", "json", "csv", "parquet")
ROWS_PER_GROUP = 10_000
NUMBER_COLUMNS = ("probability", "score")


def list_columns(ensemble: Ensemble, layout: RowLayout) -> list[str]:
    """Return the columns of a table of what prompts answer."""
    head = ["path", "text"] if ensemble.text_protocol else ["path"]
    if ensemble.writes_responses:
        return [*head, "response", "error"]
    n_ranks = layout.count_ranks(len(ensemble.names))
    ranks = [f"{name}_{rank}" for rank in range(1, n_ranks + 1) for name in ("class", "probability")]
    if ensemble.has_several_labels:
        each = [f"labels:{prompt}" for prompt in ensemble.prompts] if layout.has_each else []
        return [*head, "labels", *ranks, *each, "error"]
    has_threshold = ensemble.has_threshold
    score = ["score"] if list(has_threshold.values()) == [True] else []
    each = [
        f"{name}:{prompt}"
        for prompt, has_score in has_threshold.items()
        for name in ("prediction", "probability", *(["score"] if has_score else []))
    ]
    return [*head, "prediction", "probability", *score, *ranks, *(each if layout.has_each else []), "error"]


def flatten_row(row: Row) -> dict[str, Any]:
    """Return a row without lists: `class_1` and `probability_1` for the first class, `prediction:NAME` for a prompt.

    Several labels are one text, as a table of images has them.
    """
    flat = {key: value for key, value in row.items() if key not in ("top", "each")}
    if isinstance(flat.get("text"), Mapping):
        flat["text"] = json.dumps(flat["text"], ensure_ascii=False)
    for rank, one in enumerate(row.get("top", ()), 1):
        flat |= {f"class_{rank}": one["class"], f"probability_{rank}": one["probability"]}
    for prompt, own in row.get("each", {}).items():
        flat |= {f"{key}:{prompt}": value for key, value in own.items()}
    return {key: LABEL_SEPARATOR.join(value) if isinstance(value, list) else value for key, value in flat.items()}


class RowWriter(Protocol):
    """Writes rows one batch after the other."""

    def write(self, rows: Iterable[Row]) -> None: ...
    def close(self) -> None: ...


class CsvWriter:
    """Write rows as CSV, the header first.

    Args:
        file: where to.
        columns: of the table.
    """

    def __init__(self, file: TextIO, columns: Sequence[str]):
        self._writer = csv.DictWriter(file, columns, lineterminator="\n")
        self._writer.writeheader()

    def write(self, rows: Iterable[Row]) -> None:
        self._writer.writerows(map(flatten_row, rows))

    def close(self) -> None:
        """Do nothing: a table has no end."""


class JsonWriter:
    """Write rows as one JSON list.

    Args:
        file: where to.
    """

    def __init__(self, file: TextIO):
        self._file, self._separator = file, "["

    def write(self, rows: Iterable[Row]) -> None:
        for row in rows:
            text = json.dumps(row, indent=1).replace("\n", "\n ")
            self._file.write(f"{self._separator}\n {text}")
            self._separator = ","

    def close(self) -> None:
        """Write the end of the list."""
        self._file.write("[]\n" if self._separator == "[" else "\n]\n")


def write_rows(rows: Iterator[Row], path: Path, output_format: str, columns: Sequence[str]) -> None:
    """Write rows into a file, some thousand of them in memory.

    Args:
        rows: are read once.
        path: of the file.
        output_format: "json", "csv" or "parquet".
        columns: of a table.
    """
    if output_format == "parquet":
        _write_parquet(rows, path, columns)
        return
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = CsvWriter(file, columns) if output_format == "csv" else JsonWriter(file)
        writer.write(rows)
        writer.close()


def require_writer(output_format: str) -> None:
    """OSError where a format needs a package that is not installed."""
    if output_format == "parquet":
        require_package("pyarrow.parquet", "parquet", "--format parquet")


def _write_parquet(rows: Iterator[Row], path: Path, columns: Sequence[str]) -> None:
    parquet = require_package("pyarrow.parquet", "parquet", "--format parquet")
    arrow = require_package("pyarrow", "parquet", "--format parquet")
    types = [arrow.float64() if name.startswith(NUMBER_COLUMNS) else arrow.string() for name in columns]
    schema = arrow.schema(list(zip(columns, types, strict=True)))
    with parquet.ParquetWriter(path, schema) as writer:
        while group := list(itertools.islice(rows, ROWS_PER_GROUP)):
            flat = [flatten_row(row) for row in group]
            data = {name: [_make_valid(row.get(name)) for row in flat] for name in columns}
            writer.write_table(arrow.table(data, schema=schema))


def _make_valid(value: Any) -> Any:
    """Return a value that UTF-8 can hold: bytes of file names that it can't hold are written as \\xNN."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return value
