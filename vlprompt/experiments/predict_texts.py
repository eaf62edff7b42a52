"""Using what a run on texts has learned: answers to new texts, as classes or in words."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlprompt.core.batch import Split
from vlprompt.core.class_names import Names
from vlprompt.core.texts import Passage, Passages, pieces
from vlprompt.engine.evaluate import answers
from vlprompt.experiments.restore import restored
from vlprompt.results.run_folder import Folder

Given = str | Mapping[str, str]  # a text, or its fields by name


@dataclass(frozen=True)
class Answer:
    """What a run says of a text: the classes with their probabilities, best first, or a response."""

    given: Given
    ranked: tuple[tuple[str, float], ...] = ()
    response: str | None = None


def told_of(folder: Path) -> dict[str, Any]:
    """How a run showed its texts: template, plain and answer; {} of a run on images."""
    result = Folder(folder).done()
    known = {} if result is None else result.protocol
    return {key: known[key] for key in ("template", "plain", "answer")} if "answer" in known else {}


def texts_in(path: Path) -> list[Given]:
    """The texts of a file: a line each (.txt), or on each line a JSON string or an object of named fields (.jsonl).

    ValueError that names the line for one that is blank or no such JSON.
    """
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError(f"{str(path)!r} is no file of texts: give a .txt with a text on each line, or a .jsonl")
    found = list[Given]()
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is not UTF-8 ({error.reason} at byte {error.start}); convert it") from error
    for k, line in enumerate(lines, 1):
        if not line.strip():
            raise ValueError(f"line {k} of {str(path)!r} is blank: take it out, or give a text")
        try:
            given: Any = line if path.suffix == ".txt" else json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {k} of {str(path)!r} is no JSON: {error}") from error
        if not isinstance(given, str | dict):
            raise ValueError(f"line {k} of {str(path)!r} must be a string or an object of fields, not {line[:50]}")
        found.append(given if isinstance(given, str) else {str(name): str(text) for name, text in given.items()})
    return found


def predict_texts(
    folder: Path, given: Sequence[Given], backbone: str | None = None, device: str | None = None
) -> list[Answer]:
    """Probabilities of the classes, or what is written; ValueError for texts without the fields that the run showed."""
    told = told_of(folder)
    Folder(folder).prompt()  # says it where the run is not finished
    if not told:
        raise ValueError(f"the run in {str(folder)!r} is about images: give it image files, not texts")
    if told["answer"] == "tags":
        raise ValueError(f"the run in {str(folder)!r} classifies words: test it by `vlprompt eval` on a dataset")
    items = tuple(_passage(k, one, told) for k, one in enumerate(given))
    method, names = restored(folder, backbone, device)
    if told["answer"] == "class":
        return _classes(given, torch.cat(list(answers(method, Split(items, (0,) * len(items), names)))), names)
    if (write := getattr(method, "write", None)) is None:
        raise ValueError(f"the method of {str(folder)!r}, {type(method).__name__}, writes nothing")
    most = Folder(folder).prompt()[1]["config"]["task"].get("write")
    how = {"max_new_tokens": most} if most else {}
    said = [text for k in range(0, len(items), 100) for text in write(Passages(items[k : k + 100]), **how)]
    return [Answer(one, response=text) for one, text in zip(given, said, strict=True)]


def _passage(k: int, given: Given, told: dict[str, Any]) -> Passage:
    shown = [piece.text for form in ("template", "plain") for piece in pieces(told[form]) if piece.kind == "field"]
    names = list(dict.fromkeys(shown))
    if isinstance(given, str) and len(names) > 1:
        raise ValueError(
            f"this run reads texts with the fields {', '.join(names)}: give a .jsonl file with an object of them on "
            "each line"
        )
    fields = {names[0]: given} if isinstance(given, str) else dict(given)
    if lacking := [name for name in names if not fields.get(name, "").strip()]:
        came = ", ".join(name for name, text in fields.items() if text.strip()) or "nothing"
        raise ValueError(f"text {k + 1} has no {lacking[0]!r}: it has {came}, and the run shows {', '.join(names)}")
    key = json.dumps(fields, sort_keys=True)
    return Passage(key, fields, told["template"], told["plain"], name=f"text {k + 1}")


def _classes(given: Sequence[Given], logits: torch.Tensor, names: Names) -> list[Answer]:
    found = []
    for one, row in zip(given, logits.softmax(1), strict=True):
        order = row.argsort(descending=True).tolist()
        found.append(Answer(one, tuple((str(names[i]), float(row[i])) for i in order)))
    return found
