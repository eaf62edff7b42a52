"""Write rows into a file that a killed command continues: into FILE.partial row by row, and into FILE at the end."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from vlprompt.experiments.predict.prediction import PredictionCounts, SeenPaths
from vlprompt.experiments.predict.prediction_input import digest_path
from vlprompt.experiments.predict.read_ahead import OpenedInput
from vlprompt.experiments.predict.rows import Row
from vlprompt.experiments.predict.tables import FILE_FORMATS, write_rows
from vlprompt.results.atomic_files import explain_write_errors, write_json

STAMP = "stamp"  # of the file that a row was made of, while the rows are partial


def find_file_format(path: Path, output_format: str | None) -> str:
    """Return the format of a file, by its suffix where none is named; ValueError for another suffix."""
    if str(path) == "-":
        raise ValueError("--out: expected a file, got '-'. Leave --out out: rows are then printed.")
    suffix = path.suffix.lower().removeprefix(".")
    if output_format is None and suffix not in FILE_FORMATS:
        raise ValueError(
            f"--out: expected a file {', '.join(f'.{name}' for name in FILE_FORMATS)}, got {str(path)!r}. Name one, or "
            "set --format."
        )
    if output_format is not None and output_format not in FILE_FORMATS:
        raise ValueError(
            f"--format: expected {', '.join(FILE_FORMATS)} for a file, got {output_format!r}. Set one of these, or "
            "leave --out out."
        )
    return output_format or suffix


class RowFile:
    """Rows on their way into a file, each stored as soon as its batch is done.

    `FILE.partial` has a row as JSON in each line, with the stamp of the file that it was made of; `FILE.partial.json`
    has the settings that made them. Both go when the file is whole.

    Args:
        path: of the file.
        settings: what the rows depend on, by name; a continued file must have the same.
        is_fresh: begin anew, whatever is there.

    Raises:
        ValueError: where the file is there, or its partial rows are of other settings or damaged.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], is_fresh: bool):
        if path.is_dir():
            raise ValueError(f"--out: expected a file, got the folder {str(path)!r}. Name a file in it.")
        self.path, self.settings = path, json.loads(json.dumps(settings))
        self.partial = path.with_name(f"{path.name}.partial")
        self.sidecar = path.with_name(f"{path.name}.partial.json")
        if is_fresh:
            self.discard()
        elif path.exists() and not self.partial.exists():
            raise ValueError(
                f"--out: expected a new file, got {str(path)!r}, which is there. Name another one, or write it anew by "
                "--fresh."
            )
        if self.partial.exists():
            self._require_settings()
        else:
            with explain_write_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.sidecar, self.settings)
            self.partial.touch()  # from here on a file of an earlier command is being replaced

    def _require_settings(self) -> None:
        try:
            before = json.loads(self.sidecar.read_text("utf-8"))
        except (OSError, ValueError):
            before = {}
        names = [name for name in {**before, **self.settings} if before.get(name) != self.settings.get(name)]
        if names:
            differences = "; ".join(
                f"{n} was {_shorten(before.get(n))}, is {_shorten(self.settings.get(n))}" for n in names
            )
            raise ValueError(
                f"{str(self.partial)!r}: expected rows of the same command, got others: {differences}. Give the "
                "command as before, or begin anew by --fresh."
            )

    @contextmanager
    def open(self) -> Iterator["PartialFile"]:
        """Open the file for this process alone; what was cut off in the last line is removed.

        Raises:
            ValueError: when another process writes it, or a line is damaged.
        """
        from filelock import FileLock, Timeout

        lock_path = self.path.with_name(f".{self.path.name}.lock")
        lock = FileLock(lock_path, timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise ValueError(
                f"--out: expected a file that no process writes, got {str(self.path)!r}, which another one writes. "
                "Wait for it, or name another file."
            ) from error
        try:
            with self.partial.open("ab+") as file:
                yield PartialFile(file, self.partial)
        finally:
            with suppress(OSError):
                lock_path.unlink()
            lock.release()

    def finish(self, output_format: str, columns: Sequence[str]) -> None:
        """Write all rows into the file in its format, and remove what it was made of."""
        with explain_write_errors(self.path):
            temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
            try:
                if output_format == "jsonl":
                    with temporary.open("wb") as file:
                        file.writelines(map(serialize_row, iter_rows(self.partial)))
                else:
                    write_rows(iter_rows(self.partial), temporary, output_format, columns)
                temporary.replace(self.path)
            finally:
                temporary.unlink(missing_ok=True)
        self.discard()

    def discard(self) -> None:
        """Remove the partial rows."""
        self.partial.unlink(missing_ok=True)
        self.sidecar.unlink(missing_ok=True)


class PartialFile:
    """Append rows to an open file.

    Args:
        file: at its end after `read_before`.
        path: of it, for errors.
    """

    def __init__(self, file: BinaryIO | Any, path: Path):
        self.file, self.path = file, path

    def read_before(self) -> tuple[SeenPaths, PredictionCounts]:
        """Return which paths were done before, and how; a last line without an end is removed."""
        seen, counts = SeenPaths(), PredictionCounts()
        self.file.seek(0)
        end = 0
        for line in self.file:
            if not line.endswith(b"\n"):
                break
            row = _parse_row(line, self.path)
            seen.before[digest_path(row["path"])] = row.get(STAMP)
            counts.add_row(row, is_new=False)
            end += len(line)
        self.file.truncate(end)
        return seen, counts

    def append(self, batch: Sequence[OpenedInput], rows: Sequence[Row]) -> None:
        """Append the rows of a batch; when this returns, a kill of the process loses none of them."""
        stamped = (
            row if opened.stamp is None else row | {STAMP: opened.stamp}
            for opened, row in zip(batch, rows, strict=True)
        )
        with explain_write_errors(self.path):
            self.file.write(b"".join(map(serialize_row, stamped)))
            self.file.flush()


def serialize_row(row: Row) -> bytes:
    """Return a row as a line of JSON; a file name that is not UTF-8 is escaped."""
    try:
        return f"{json.dumps(row, ensure_ascii=False)}\n".encode()
    except UnicodeEncodeError:
        return f"{json.dumps(row)}\n".encode()


def iter_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a partial file, one by one, without the stamps of their files."""
    with path.open("rb") as file:
        for line in file:
            row = _parse_row(line, path)
            row.pop(STAMP, None)
            yield row


def _parse_row(line: bytes, path: Path) -> Row:
    try:
        row = json.loads(line)
        if isinstance(row["path"], str):
            return row
    except (ValueError, TypeError, KeyError):
        pass
    raise ValueError(f"{str(path)!r}: expected rows as JSON, got {line[:40]!r}. Begin anew by --fresh.")


def _shorten(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
