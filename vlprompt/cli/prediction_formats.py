"""Using what a run has learned: predictions on image files, tests on other datasets."""

import csv
import io
import json
from collections.abc import Mapping, Sequence

from vlprompt.experiments.predict_images import Prediction
from vlprompt.experiments.predict_texts import Answer

Given = str | Mapping[str, str]  # a text, or its fields by name


def as_lines(found: Sequence[Prediction], top: int) -> str:
    return "".join(f"{p.path}: {', '.join(f'{name} {value:.3f}' for name, value in p.ranked[:top])}\n" for p in found)


def as_json(found: Sequence[Prediction]) -> str:
    return (
        json.dumps(
            [{"image": str(p.path), "classes": [{"name": n, "probability": v} for n, v in p.ranked]} for p in found],
            indent=1,
        )
        + "\n"
    )


def as_csv(found: Sequence[Prediction]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["image", "rank", "class", "probability"])
    for p in found:
        writer.writerows([p.path, i + 1, name, f"{value:.6f}"] for i, (name, value) in enumerate(p.ranked))
    return text.getvalue()


def texts_as_lines(found: Sequence[Answer], top: int) -> str:
    said = [one.response if one.response is not None else
            ", ".join(f"{name} {value:.3f}" for name, value in one.ranked[:top]) for one in found]  # fmt: skip
    texts = [" ".join(_named(one.given).split()) for one in found]
    return "".join(f"{text if len(text) <= 60 else text[:57] + '...'}: {answer}\n"
                   for text, answer in zip(texts, said, strict=True))  # fmt: skip


def texts_as_json(found: Sequence[Answer]) -> str:
    told = [{"text": one.given, "response": one.response} if one.response is not None else
            {"text": one.given, "classes": [{"name": n, "probability": v} for n, v in one.ranked]}
            for one in found]  # fmt: skip
    return json.dumps(told, indent=1, ensure_ascii=False) + "\n"


def texts_as_csv(found: Sequence[Answer]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writes = any(one.response is not None for one in found)
    writer.writerow(["text", "response"] if writes else ["text", "rank", "class", "probability"])
    for one in found:
        if writes:
            writer.writerow([_named(one.given), one.response])
        writer.writerows([_named(one.given), i + 1, n, f"{v:.6f}"] for i, (n, v) in enumerate(one.ranked))
    return text.getvalue()


def _named(given: Given) -> str:
    return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
