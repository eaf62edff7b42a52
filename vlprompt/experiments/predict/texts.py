"""Predict the classes of texts, or generate responses, with the learned state of a run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlprompt.core.method import Method
from vlprompt.core.texts import TextBatch, TextItem
from vlprompt.data.text.text_inputs import TextInput
from vlprompt.engine.evaluate_text import generate_texts
from vlprompt.experiments.learned.prompt import restore_prompt
from vlprompt.experiments.learned.state import read_learned_state
from vlprompt.experiments.predict.images import rank_classes

GENERATION_BATCH_SIZE = 100


@dataclass(frozen=True)
class TextPrediction:
    """The classes of a text with their probabilities, best first, or a response."""

    text_input: TextInput
    ranked_classes: tuple[tuple[str, float], ...] = ()
    response: str | None = None


def read_texts(path: Path) -> list[TextInput]:
    """Read a file of texts: one on each line (.txt), or a JSON string or object of named fields on each (.jsonl).

    Raises:
        ValueError: with the line that is blank or no such JSON.
    """
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError(
            f"predict: expected a file of texts (.txt, .jsonl), got {str(path)!r}. Give a .txt with a text on each "
            "line, "
            "or a .jsonl."
        )
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{str(path)!r}: expected UTF-8, got an {error.reason} at byte {error.start}. Convert it to UTF-8."
        ) from error
    return [_parse_line(line, f"line {k} of {str(path)!r}", path.suffix == ".jsonl") for k, line in enumerate(lines, 1)]


def _parse_line(line: str, location: str, is_json: bool) -> TextInput:
    if not line.strip():
        raise ValueError(f"{location}: expected a text, got a blank line. Remove the line, or write a text.")
    try:
        value: Any = json.loads(line) if is_json else line
    except json.JSONDecodeError as error:
        raise ValueError(f"{location}: expected JSON, got an error: {error}. Correct the line.") from error
    if not isinstance(value, str | dict):
        raise ValueError(
            f"{location}: expected a JSON string or an object of fields, got {line[:50]}. Write one of these."
        )
    return value if isinstance(value, str) else {str(name): str(text) for name, text in value.items()}


def predict_texts(
    folder: Path, text_inputs: Sequence[TextInput], backbone: str | None = None, device: str | None = None
) -> list[TextPrediction]:
    """Predict the classes of texts, or generate their responses.

    Args:
        folder: of the run.
        text_inputs: texts, or their fields by name.
        backbone: where the run's backbone is now; default where it was.
        device: as `load` takes it.

    Raises:
        ValueError: for texts without the fields of the run's template, or a run that can't answer single texts.
    """
    state = read_learned_state(folder)
    protocol = state.text_protocol
    if not protocol:
        raise ValueError(f"{str(folder)!r}: expected image files for a run on images, got texts. Give it image files.")
    if protocol["answer"] == "tags":
        raise ValueError(
            f"{str(folder)!r}: expected a run that classifies or answers whole texts, got one that classifies words. "
            "Test it by `vlprompt eval` on a dataset."
        )
    items = state.build_text_items(text_inputs)
    prompt = restore_prompt(state, backbone, device)
    if protocol["answer"] == "class":
        ranked = [rank_classes(row, prompt.names) for row in prompt.answer(items).probabilities]
        return [TextPrediction(text, classes) for text, classes in zip(text_inputs, ranked, strict=True)]
    responses = _generate(prompt.method, items, folder, state.config["task"].get("max_new_tokens"))
    return [TextPrediction(text, response=response) for text, response in zip(text_inputs, responses, strict=True)]


def _generate(method: Method, items: tuple[TextItem, ...], folder: Path, max_new_tokens: int | None) -> list[str]:
    options = {"max_new_tokens": max_new_tokens} if max_new_tokens else {}
    batches = (items[k : k + GENERATION_BATCH_SIZE] for k in range(0, len(items), GENERATION_BATCH_SIZE))
    return [
        text for batch in batches for text in generate_texts(method, TextBatch(batch), repr(str(folder)), **options)
    ]
