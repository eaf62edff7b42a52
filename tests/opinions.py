"""Texts that are good or bad, answered by a class, word by word or by a response."""

import random

from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.texts import TextItem
from vlprompt.data.dataset import Data

GOOD = ["good", "great", "warm", "funny", "well", "clean", "won", "final"]
BAD = ["bad", "terrible", "boring", "long", "slow", "fell", "lost", "oil"]
SHOWN = "{text} It was {mask}"


def texts(n, seed, kind="class"):
    draw, items, labels = random.Random(seed), [], []
    for i in range(n):
        words = [draw.choice([*(BAD, GOOD)[i % 2], *["the", "module", "file"] * 2]) for _ in range(draw.randint(4, 12))]
        text, key = " ".join(words), f"{kind} {seed} {i}"
        if kind == "tags":
            tags = tuple(int(w in GOOD) + 2 * int(w in BAD) for w in words)
            items.append(TextItem(key, {"words": text}, "{words} {mask}", "{words}", tags=tags))
        else:
            said = {"response": ("terrible", "great")[i % 2]} if kind == "response" else {}
            items.append(TextItem(key, {"text": text}, SHOWN, "{text}", **said))
        labels.append(i % 2 if kind == "class" else 0)
    names = {
        "class": (ClassName("negative", words=("terrible", "bad")), ClassName("positive", words=("great", "good"))),
        "tags": (ClassName("other"), ClassName("good"), ClassName("bad")),
        "response": (ClassName("response"),),
    }[kind]
    return Split(tuple(items), tuple(labels), names)


def data(kind="class"):
    return Data(f"toy {kind}", texts(48, 1, kind), texts(16, 2, kind), texts(24, 3, kind), SHOWN, "")
