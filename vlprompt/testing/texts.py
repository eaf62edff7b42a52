"""Texts that are good or bad, answered by a class, word by word or by a response."""

import json
import random
from pathlib import Path
from typing import Literal

from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.texts import TextItem
from vlprompt.data.dataset import Data

AnswerKind = Literal["class", "tags", "response"]
GOOD_WORDS = ["good", "great", "warm", "funny", "well", "clean", "won", "final"]
BAD_WORDS = ["bad", "terrible", "boring", "long", "slow", "fell", "lost", "oil"]
NEUTRAL_WORDS = ["the", "module", "file"]
SPLIT_SIZES_AND_SEEDS = {"train": (48, 1), "val": (16, 2), "test": (24, 3)}
TEMPLATE = "{text} It was {mask}"
CLASS_NAMES = {
    "class": (ClassName("negative", words=("terrible", "bad")), ClassName("positive", words=("great", "good"))),
    "tags": (ClassName("other"), ClassName("good"), ClassName("bad")),
    "response": (ClassName("response"),),
}


def draw_texts(n: int, seed: int, kind: AnswerKind = "class") -> Split:
    """Draw n texts, bad and good in turn.

    Args:
        n: number of texts.
        seed: the same seed gives the same texts.
        kind: how they are answered.
    """
    draw, items, labels = random.Random(seed), list[TextItem](), list[int]()
    for i in range(n):
        choices = [*(BAD_WORDS, GOOD_WORDS)[i % 2], *NEUTRAL_WORDS * 2]
        words = [draw.choice(choices) for _ in range(draw.randint(4, 12))]
        text, key = " ".join(words), f"{kind} {seed} {i}"
        if kind == "tags":
            tags = tuple(int(w in GOOD_WORDS) + 2 * int(w in BAD_WORDS) for w in words)
            items.append(TextItem(key, {"words": text}, "{words} {mask}", "{words}", tags=tags))
        else:
            response = ("terrible", "great")[i % 2] if kind == "response" else None
            items.append(TextItem(key, {"text": text}, TEMPLATE, "{text}", response=response))
        labels.append(i % 2 if kind == "class" else 0)
    return Split(tuple(items), tuple(labels), CLASS_NAMES[kind])


def draw_text_data(kind: AnswerKind = "class") -> Data:
    """Draw a dataset of such texts."""
    train, val, test = (draw_texts(n, seed, kind) for n, seed in SPLIT_SIZES_AND_SEEDS.values())
    return Data(f"toy {kind}", train, val, test, TEMPLATE, "")


def write_texts(folder: Path, kind: AnswerKind = "class") -> Path:
    """Write such a dataset as one table for each split, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (n, seed) in SPLIT_SIZES_AND_SEEDS.items():
        split = draw_texts(n, seed, kind)
        rows = [_build_row(item, split.names[label]) for item, label in zip(split.items, split.labels, strict=True)]
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    return folder


def _build_row(item: TextItem, label: str) -> dict[str, object]:
    if item.tags is not None:
        names = [str(CLASS_NAMES["tags"][tag]) for tag in item.tags]
        return {"words": item.fields["words"].split(), "tags": names}
    text = item.fields["text"]
    return {"text": text, "label": label} if item.response is None else {"prompt": text, "response": item.response}
