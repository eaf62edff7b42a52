"""List the images of a prediction: files, folders, patterns, lists, standard input, arrays and tar shards."""

import csv
import glob
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from vlprompt.data.images.files import is_image_name, iter_image_files
from vlprompt.experiments.predict.packed import iter_arrays, iter_shard
from vlprompt.experiments.predict.prediction_input import PredictionInput, build_broken_input, build_file_input

STANDARD_INPUT = "-"
LIST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".txt")
ARRAY_SUFFIX = ".npz"
SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")
STREAM_SUFFIXES = (ARRAY_SUFFIX, *SHARD_SUFFIXES)  # their images are counted only by reading them
PATH_COLUMNS = ("path", "image", "file")
READ_BYTES = 2**16
BRACE_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MAX_RANGE = 1_000_000  # names of a brace range
MAX_NAMED_COLUMNS = 10  # in an error


def iter_image_inputs(
    words: Sequence[str], stdin: BinaryIO | None, notify: Callable[[str], None]
) -> Iterator[PredictionInput]:
    """Yield the images that words name, in their order, one by one; what can't be opened is a broken input.

    Args:
        words: files, folders, patterns, lists (.csv, .tsv, .jsonl, .txt), arrays (.npz), shards (.tar, .tar.gz) and
            brace ranges of them, or "-".
        stdin: where "-" reads paths.
        notify: receives what a user should know of an input.
    """
    for word in words:
        for path in _expand_word(word):
            yield from _iter_path(path, stdin, notify)


def _expand_word(word: str) -> Iterable[str]:
    """Return what a word stands for: itself, the numbers of a brace range, or the files of a pattern."""
    if word == STANDARD_INPUT or os.path.lexists(word):
        return [word]
    if match := BRACE_RANGE.search(word):
        first, last = match.groups()
        numbers = range(int(first), int(last) + 1)
        texts = (f"{word[: match.start()]}{n:0{len(first)}d}{word[match.end() :]}" for n in numbers)
        return (path for text in texts for path in _expand_word(text))
    if glob.has_magic(word):
        return sorted(glob.glob(word, recursive=True)) or [word]
    return [word]


def _iter_path(path: str, stdin: BinaryIO | None, notify: Callable[[str], None]) -> Iterator[PredictionInput]:
    suffix = path.lower()
    if path == STANDARD_INPUT:
        yield from map(build_file_input, iter_stream_paths(stdin))
    elif os.path.isdir(path):
        yield from _iter_folder(path)
    elif suffix.endswith(SHARD_SUFFIXES):
        yield from iter_shard(path)
    elif suffix.endswith(ARRAY_SUFFIX):
        yield from iter_arrays(path, notify)
    elif suffix.endswith(LIST_SUFFIXES):
        yield from iter_listed_paths(path)
    else:
        yield build_file_input(path)


def _iter_folder(path: str) -> Iterator[PredictionInput]:
    """Yield the images of a folder, then its sub-folders that can't be read, as broken inputs."""
    errors = list[OSError]()
    yield from map(build_file_input, iter_image_files(Path(path), errors.append))
    for error in errors:
        name = str(error.filename or path)
        yield build_broken_input(
            name, f"{name!r}: expected a folder that can be read, got an error ({error.strerror})."
        )


def count_image_inputs(words: Sequence[str]) -> int | None:
    """Count the images that words name, each once; None where only reading the images would tell."""
    paths = [path for word in words for path in _expand_word(word)]
    if STANDARD_INPUT in paths or any(path.lower().endswith(STREAM_SUFFIXES) for path in paths):
        return None
    return len({one.digest for path in paths for one in _iter_path(path, None, lambda note: None)})


def list_packed_files(words: Sequence[str]) -> list[str]:
    """Return the lists, arrays and shards that words name."""
    paths = (path for word in words for path in _expand_word(word))
    return [
        path for path in paths if path.lower().endswith((*LIST_SUFFIXES, *STREAM_SUFFIXES)) and os.path.isfile(path)
    ]


def is_single_file(word: str) -> bool:
    """Whether a word names one image file, rather than many images."""
    is_pattern = not os.path.lexists(word) and (glob.has_magic(word) or BRACE_RANGE.search(word) is not None)
    is_list = word == STANDARD_INPUT or word.lower().endswith((*LIST_SUFFIXES, *STREAM_SUFFIXES))
    return not (is_pattern or is_list or os.path.isdir(word))


def require_images(words: Sequence[str]) -> None:
    """ValueError for no words, an address, "-" twice, or a range without an end."""
    if not words:
        raise ValueError(
            "predict: expected image files or texts, got none. Name images, or texts by --text or in a .txt or .jsonl."
        )
    if addresses := [word for word in words if re.match(r"[a-z][a-z0-9+]*://", word)]:
        raise ValueError(f"predict: expected files and folders, got {addresses[0]!r}. Download it first.")
    if words.count(STANDARD_INPUT) > 1:
        raise ValueError("predict: expected - once, got it twice. Name standard input once.")
    for word in words:
        for first, last in [] if os.path.lexists(word) else BRACE_RANGE.findall(word):
            if not 0 <= int(last) - int(first) < MAX_RANGE:
                raise ValueError(
                    f"predict: expected a range of at most {MAX_RANGE:,} numbers, the smaller first, got "
                    f"{{{first}..{last}}}. Correct it."
                )


def iter_stream_paths(stream: BinaryIO | None) -> Iterator[str]:
    """Yield paths from a stream: separated by NUL where its first bytes have one, else one in each line."""
    if stream is None:
        return
    read = getattr(stream, "read1", stream.read)  # does not wait for more than a pipe has
    rest = read(READ_BYTES)
    separator = b"\0" if b"\0" in rest else b"\n"
    while chunk := read(READ_BYTES):
        *parts, rest = (rest + chunk).split(separator)
        yield from (os.fsdecode(part) for part in map(_strip_line, parts) if part)
    yield from (os.fsdecode(part) for part in map(_strip_line, rest.split(separator)) if part)


def _strip_line(line: bytes) -> bytes:
    return line.removesuffix(b"\r")


def iter_listed_paths(path: str) -> Iterator[PredictionInput]:
    """Yield the images of a list; their paths begin at its folder.

    A table has a column `path`, `image` or `file`, or only one column. A row or a list that can't be read is a broken
    input, and the rest goes on.
    """
    folder = os.path.dirname(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            for value in _iter_values(file, path):
                is_broken = isinstance(value, PredictionInput)
                yield value if is_broken else build_file_input(os.path.join(folder, os.path.expanduser(value)))
    except (OSError, ValueError, csv.Error) as error:
        yield build_broken_input(path, f"{path!r}: expected a list of images in UTF-8, got an error ({error}).")


def _iter_values(file: TextIO, path: str) -> Iterator[str | PredictionInput]:
    suffix = Path(path).suffix.lower()
    if suffix == ".jsonl":
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _parse_json_line(line, f"{path}:{number}")
    elif suffix == ".txt":
        yield from (line.rstrip("\r\n") for line in file if line.strip())
    else:
        yield from _iter_table(file, path)


def _parse_json_line(line: str, place: str) -> str | PredictionInput:
    try:
        row: Any = json.loads(line)
        return row if isinstance(row, str) else _select_path(row)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        return build_broken_input(place, f"{place!r}: expected a path, or an object with one, got an error ({error}).")


def _select_path(row: dict[str, Any]) -> str:
    column = find_path_column(list(row))
    if not isinstance(row[column], str) or not row[column]:
        raise ValueError(f"expected a path in {column!r}, got {row[column]!r}")
    return row[column]


def find_path_column(columns: Sequence[str]) -> str:
    """Return the column of paths; ValueError where several columns have none of the known names."""
    known = [column for name in PATH_COLUMNS for column in columns if column.strip().lower() == name]
    if known:
        return known[0]
    if len(columns) == 1:
        return columns[0]
    names = ", ".join(columns[:MAX_NAMED_COLUMNS]) + " ..." * (len(columns) > MAX_NAMED_COLUMNS)
    raise ValueError(f"expected a column {', '.join(PATH_COLUMNS)}, or only one column, got {names}")


def _iter_table(file: TextIO, path: str) -> Iterator[str | PredictionInput]:
    header = file.readline()
    delimiter = max(",;\t", key=header.count)
    columns = next(csv.reader([header], delimiter=delimiter), [])
    if len(columns) == 1 and is_image_name(columns[0]):  # no header, but the first path
        yield columns[0]
        columns = [PATH_COLUMNS[0]]
    position = columns.index(find_path_column(columns)) if columns else 0
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    for row in _iter_csv_rows(reader):
        place = f"{path}:{reader.line_num + 1}"
        if isinstance(row, csv.Error):
            yield build_broken_input(place, f"{place!r}: expected a row of a table, got an error ({row}).")
        elif len(row) == len(columns) and row[position].strip():
            yield row[position].strip()
        elif row:
            got = "an empty path" if len(row) == len(columns) else f"{len(row)} values"
            yield build_broken_input(place, f"{place!r}: expected a path and {len(columns)} columns, got {got}.")


def _iter_csv_rows(reader: Any) -> Iterator[list[str] | csv.Error]:
    """Yield rows, and the error of a row that can't be read; the others go on."""
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            yield error
            continue
        if row is None:
            return
        yield row
