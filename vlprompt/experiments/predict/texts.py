"""Read the texts of a prediction, and show them as the task of a prompt does."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from vlprompt.data.text.text_inputs import TextInput
from vlprompt.experiments.predict.prediction_input import PredictionInput, build_broken_input

STANDARD_INPUT = "-"
TEXT_SUFFIXES = (".txt", ".jsonl", ".csv", ".tsv")


def iter_text_inputs(texts: Sequence[str], words: Sequence[str], stdin: BinaryIO | None) -> Iterator[PredictionInput]:
    """Yield texts, then those of files line by line; a line that can't be read is a broken input.

    Args:
        texts: the texts themselves.
        words: files of texts, or "-".
        stdin: where "-" reads texts, one in each line.
    """
    for number, text in enumerate(texts, 1):
        yield _build_text_input(f"text {number}", text)
    for word in words:
        try:
            if word == STANDARD_INPUT:
                lines = () if stdin is None else (line.decode("utf-8") for line in stdin)
                yield from _iter_lines(lines, word, is_json=False)
            else:
                yield from _iter_file(word)
        except UnicodeDecodeError as error:
            message = f"{word!r}: expected UTF-8, got an {error.reason} at byte {error.start}. Convert it to UTF-8."
            yield build_broken_input(word, message)
        except (OSError, csv.Error) as error:
            yield build_broken_input(word, f"{word!r}: expected a file of texts, got an error ({error}).")


def require_texts(texts: Sequence[str], words: Sequence[str], source: str) -> None:
    """ValueError for no texts, or for files of another kind, such as images.

    Args:
        texts: the texts themselves.
        words: files of texts, or "-".
        source: of the prompt.
    """
    if not texts and not words:
        raise ValueError(
            "predict: expected image files or texts, got none. Name images, or texts by --text or in a .txt or .jsonl."
        )
    for word in words:
        if word != STANDARD_INPUT and Path(word).suffix.lower() not in TEXT_SUFFIXES:
            raise ValueError(
                f"{source!r}: expected texts for a run on texts, got {word!r}. Give texts by --text, or in a file "
                f"({', '.join(TEXT_SUFFIXES)})."
            )


def _iter_file(path: str) -> Iterator[PredictionInput]:
    suffix = Path(path).suffix.lower()
    with open(path, encoding="utf-8-sig", newline="" if suffix in (".csv", ".tsv") else None) as file:
        if suffix in (".csv", ".tsv"):
            reader = csv.DictReader(file, delimiter="\t" if suffix == ".tsv" else ",", strict=True)
            for row in reader:
                yield _build_row_input(f"{path}:{reader.line_num}", row)
        else:
            yield from _iter_lines(file, path, is_json=suffix == ".jsonl")


def _iter_lines(lines: Any, path: str, is_json: bool) -> Iterator[PredictionInput]:
    for number, line in enumerate(lines, 1):
        parse = partial(_parse_line, line.rstrip("\r\n"), f"line {number} of {path!r}", is_json)
        yield PredictionInput(f"{path}:{number}", parse)


def _build_text_input(path: str, text: TextInput) -> PredictionInput:
    return PredictionInput(path, partial(_return_text, text))


def _return_text(text: TextInput) -> TextInput:
    return text


def _build_row_input(path: str, row: Mapping[Any, Any]) -> PredictionInput:
    if None in row or None in row.values():
        return build_broken_input(path, f"{path!r}: expected as many values as columns, got more or fewer.")
    return _build_text_input(path, {str(name): str(value) for name, value in row.items()})


def _parse_line(line: str, location: str, is_json: bool) -> TextInput:
    if not line.strip():
        raise ValueError(f"{location}: expected a text, got a blank line. Remove the line, or write a text.")
    try:
        value: Any = json.loads(line) if is_json else line
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{location}: expected JSON, got an error: {error}. Correct the line.") from error
    if not isinstance(value, str | dict):
        raise ValueError(
            f"{location}: expected a JSON string or an object of fields, got {line[:50]}. Write one of these."
        )
    return value if isinstance(value, str) else {str(name): str(text) for name, text in value.items()}
