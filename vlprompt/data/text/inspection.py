"""Looking at a dataset of texts: what is there against what its card says, its answers, lengths and a few examples."""

import json
from collections import Counter
from typing import Any

from vlprompt.core.class_names import ids
from vlprompt.core.texts import Passage
from vlprompt.data.cards import card_classes, is_card, read_card
from vlprompt.data.dataset import Data
from vlprompt.data.report import Report, splits


def is_text(data: Data) -> bool:
    """Whether its splits hold texts."""
    return "answer" in data.test.info


def refuse_texts(data: Data, what: str) -> None:
    """ValueError for texts, where something is done with images."""
    if is_text(data):
        raise ValueError(f"{data.name!r} has texts, and {what} is for images: look at texts by `vlprompt data check`")


def compare(dataset: str, data: Data, only_there: bool) -> Report:
    """What was found against the card; texts were all read when they were opened."""
    card: dict[str, Any] = read_card(dataset) if is_card(dataset) else {}
    counts = {part: len(split) for part, split in splits(data).items()}
    expected, wrong, told = card.get("sizes", {}), list[str](), list[str]()
    classes = card_classes(card) if card else {}
    missing = tuple(name for key, name in classes.items() if key not in ids(data.test.names))
    if missing:
        line = f"{len(missing)} of {len(classes)} classes have no texts: {', '.join(missing[:20])}"
        (told if only_there else wrong).append(line)
    same = dict(counts)
    if "val" not in expected and "val" in counts:  # our val is a share of the train that it counts
        same = {"train": counts["train"] + counts["val"], "test": counts["test"]}
    if expected and same != expected:
        line = [", ".join(f"{part} {n:,}" for part, n in sizes.items()) for sizes in (expected, same)]
        wrong.append(f"the card has {line[0]} texts, here are {line[1]}")
    return Report(data, counts, expected, missing, (), wrong, told + described(data))


def described(data: Data) -> list[str]:
    """Answers with their counts, lengths in characters, and the first three texts of train, a line each."""
    every = [item for split in splits(data).values() for item in split.items]
    answer = data.test.info["answer"]
    lines = [f"answer: {answer}"]
    if answer == "class":
        lines += [f"{part}: {_counts(data, split.count())}" for part, split in splits(data).items()]
    elif answer == "tags":
        for part, split in splits(data).items():
            tags = Counter(tag for item in split.items for tag in item.tags)
            lines.append(f"{part}: {_counts(data, [tags[i] for i in range(len(data.test.names))])} words")
    else:
        lines.append(f"characters of a response: {_lengths([len(item.response) for item in every])}")
    lines.append(f"characters of a text: {_lengths([sum(map(len, item.fields.values())) for item in every])}")
    split = data.train if len(data.train) else data.test
    names = [str(split.names[label]) for label in split.labels[:3]] if answer == "class" else [""] * 3
    return lines + [f"example: {_example(item, name, data)}" for item, name in zip(split.items, names, strict=False)]


def _counts(data: Data, counts: list[int]) -> str:
    told = [f"{name} {n:,}" for name, n in zip(data.test.names, counts, strict=True)]
    return ", ".join(told[:20]) + " ..." * (len(told) > 20)


def _lengths(lengths: list[int]) -> str:
    """The least, the middle, nine of ten, the most."""
    found = sorted(lengths)
    at = [found[min(len(found) - 1, int(q * len(found)))] for q in (0, 0.5, 0.9, 1)]
    return f"least {at[0]:,}, half below {at[1]:,}, nine in ten below {at[2]:,}, most {at[3]:,}"


def _example(item: Passage, name: str, data: Data) -> str:
    if item.tags is not None:
        pairs = zip(item.fields["words"].split(" "), item.tags, strict=True)
        return _short(" ".join(f"{word}/{data.test.names[tag]}" for word, tag in pairs))
    answer = name if item.response is None else item.response
    fields = item.fields
    if "messages" in fields:
        fields = {f"{i} {one['role']}": one["content"] for i, one in enumerate(json.loads(fields["messages"]))}
    told = " | ".join(_short(text) if len(fields) == 1 else f"{key}: {_short(text)}" for key, text in fields.items())
    return f"{told} -> {_short(answer)}"


def _short(text: str, most: int = 100) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."
