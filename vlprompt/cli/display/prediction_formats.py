"""Predictions as lines, JSON or CSV."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vlprompt.experiments.predict.images import ImagePrediction
from vlprompt.experiments.predict.texts import TextPrediction
from vlprompt.results.tables.formats import render_csv, render_json

RankedClasses = Sequence[tuple[str, float]]  # names and probabilities, the most probable first
MAX_TEXT_LENGTH = 60  # characters of a text in a line
CLASS_COLUMNS = ["rank", "class", "probability"]


def format_image_predictions(predictions: Sequence[ImagePrediction], output_format: str, n_classes: int) -> str:
    """Write predictions as "json", "csv" (all classes) or "lines" (the first n_classes).

    An image that can't be read has its error in JSON, a row with it in CSV, and no line.
    """
    if output_format == "json":
        return render_json([_build_image_record(p) for p in predictions])
    if output_format == "csv":
        rows = [{"image": p.path, **row} for p in predictions for row in _build_image_rows(p)]
        return render_csv(rows, ["image", *CLASS_COLUMNS, "error"])
    answered = [p for p in predictions if p.error is None]
    return "".join(f"{p.path}: {_format_classes(p.ranked_classes[:n_classes])}\n" for p in answered)


def _build_image_record(prediction: ImagePrediction) -> dict[str, Any]:
    if prediction.error is not None:
        return {"image": str(prediction.path), "error": prediction.error}
    return {"image": str(prediction.path), "classes": _list_classes(prediction.ranked_classes)}


def _build_image_rows(prediction: ImagePrediction) -> list[dict[str, Any]]:
    if prediction.error is not None:
        return [{**dict.fromkeys(CLASS_COLUMNS, ""), "error": prediction.error}]
    return [row | {"error": ""} for row in _build_class_rows(prediction.ranked_classes)]


def format_text_predictions(predictions: Sequence[TextPrediction], output_format: str, n_classes: int) -> str:
    """Write responses or classes as "json", "csv" (all classes) or "lines" (the first n_classes)."""
    if output_format == "json":
        return render_json([_build_text_record(p) for p in predictions], ascii_only=False)
    if output_format == "csv":
        return _format_text_csv(predictions)
    lines = []
    for p in predictions:
        text = " ".join(_format_text_input(p.text_input).split())
        text = text if len(text) <= MAX_TEXT_LENGTH else f"{text[: MAX_TEXT_LENGTH - 3]}..."
        answer = _format_classes(p.ranked_classes[:n_classes]) if p.response is None else p.response
        lines.append(f"{text}: {answer}\n")
    return "".join(lines)


def _build_text_record(prediction: TextPrediction) -> dict[str, Any]:
    if prediction.response is not None:
        return {"text": prediction.text_input, "response": prediction.response}
    return {"text": prediction.text_input, "classes": _list_classes(prediction.ranked_classes)}


def _format_text_csv(predictions: Sequence[TextPrediction]) -> str:
    if any(p.response is not None for p in predictions):
        rows = [{"text": _format_text_input(p.text_input), "response": p.response} for p in predictions]
        return render_csv(rows, ["text", "response"])
    rows = [
        {"text": _format_text_input(p.text_input), **row}
        for p in predictions
        for row in _build_class_rows(p.ranked_classes)
    ]
    return render_csv(rows, ["text", *CLASS_COLUMNS])


def _list_classes(classes: RankedClasses) -> list[dict[str, Any]]:
    return [{"name": name, "probability": probability} for name, probability in classes]


def _build_class_rows(classes: RankedClasses) -> list[dict[str, Any]]:
    return [
        {"rank": rank, "class": name, "probability": f"{probability:.6f}"}
        for rank, (name, probability) in enumerate(classes, 1)
    ]


def _format_classes(classes: RankedClasses) -> str:
    return ", ".join(f"{name} {probability:.3f}" for name, probability in classes)


def _format_text_input(text_input: str | Mapping[str, str]) -> str:
    return text_input if isinstance(text_input, str) else json.dumps(text_input, ensure_ascii=False)
