"""Inspect a text dataset: compare it with its card, and describe its answers, lengths and first examples."""

import json
from collections import Counter
from typing import TYPE_CHECKING

from vlprompt.core.class_names import class_ids
from vlprompt.core.texts import TextItem
from vlprompt.data.dataset import Data
from vlprompt.data.report import DatasetReport, find_duplicates, nonempty_splits

if TYPE_CHECKING:
    from vlprompt.data.text_card_schema import TextCard


def is_text_dataset(data: Data) -> bool:
    """Whether a dataset has texts instead of images."""
    return "answer" in data.test.info


def refuse_texts(data: Data, what: str) -> None:
    """Raise ValueError if a dataset has texts; `what` is the operation that needs images."""
    if is_text_dataset(data):
        raise ValueError(
            f"{what}: expected a dataset of images, got {data.name!r} with texts. Check texts by `vlprompt data check`."
        )


def inspect_texts(card: "TextCard | None", data: Data, allow_missing_classes: bool) -> DatasetReport:
    """Compare a dataset with its card. Opening it has already read every text.

    Args:
        card: the card, None for a user's own tables.
        data: the opened dataset.
        allow_missing_classes: report classes without texts as a note instead of a fault.
    """
    counts = {split_name: len(split) for split_name, split in nonempty_splits(data).items()}
    expected, faults, notes = {} if card is None else card.sizes, list[str](), list[str]()
    classes = {} if card is None else card.listed_classes()
    missing = tuple(name for key, name in classes.items() if key not in class_ids(data.test.names))
    if missing:
        line = f"{len(missing)} of {len(classes)} classes have no texts: {', '.join(missing[:20])}"
        (notes if allow_missing_classes else faults).append(line)
    comparable = dict(counts)
    if "val" not in expected and "val" in counts:  # val was held out of the train that the card counts
        comparable = {"train": counts["train"] + counts["val"], "test": counts["test"]}
    if expected and comparable != expected:
        listed, actual = (
            ", ".join(f"{split_name} {n:,}" for split_name, n in sizes.items()) for sizes in (expected, comparable)
        )
        faults.append(f"the card has {listed} texts, here are {actual}")
    if data.test.info["answer"] == "class":
        clashes, repeats = find_duplicates(nonempty_splits(data), lambda item: tuple(item.fields.items()), "texts")
        notes += [*clashes, *repeats]
    notes = [*data.remarks, *notes]
    return DatasetReport(data, counts, expected, missing, (), faults, notes + describe_texts(data))


def describe_texts(data: Data) -> list[str]:
    """Return lines with the answers and their counts, lengths in characters, and the first three texts of train."""
    items = [item for split in nonempty_splits(data).values() for item in split.items]
    answer = data.test.info["answer"]
    lines = [f"answer: {answer}"]
    if answer == "class":
        lines += [
            f"{split_name}: {_format_counts(data, split.count_per_class())}"
            for split_name, split in nonempty_splits(data).items()
        ]
    elif answer == "tags":
        for split_name, split in nonempty_splits(data).items():
            tags = Counter(tag for item in split.items for tag in item.tags)
            lines.append(f"{split_name}: {_format_counts(data, [tags[i] for i in range(len(data.test.names))])} words")
    else:
        lines.append(f"characters of a response: {_format_lengths([len(item.response) for item in items])}")
    lines.append(f"characters of a text: {_format_lengths([sum(map(len, item.fields.values())) for item in items])}")
    split = data.train if len(data.train) else data.test
    names = [str(split.names[label]) for label in split.labels[:3]] if answer == "class" else [""] * 3
    return lines + [
        f"example: {_format_example(item, name, data)}" for item, name in zip(split.items, names, strict=False)
    ]


def _format_counts(data: Data, counts: list[int]) -> str:
    labels = [f"{name} {n:,}" for name, n in zip(data.test.names, counts, strict=True)]
    return ", ".join(labels[:20]) + " ..." * (len(labels) > 20)


def _format_lengths(lengths: list[int]) -> str:
    """Format the minimum, median, 90th percentile and maximum."""
    ordered = sorted(lengths)
    quantiles = [ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in (0, 0.5, 0.9, 1)]
    return (
        f"least {quantiles[0]:,}, half below {quantiles[1]:,}, nine in ten below {quantiles[2]:,}, "
        f"most {quantiles[3]:,}"
    )


def _format_example(item: TextItem, name: str, data: Data) -> str:
    if item.tags is not None:
        pairs = zip(item.fields["words"].split(" "), item.tags, strict=True)
        return _truncate(" ".join(f"{word}/{data.test.names[tag]}" for word, tag in pairs))
    answer = name if item.response is None else item.response
    fields = item.fields
    if "messages" in fields:
        fields = {
            f"{i} {message['role']}": message["content"] for i, message in enumerate(json.loads(fields["messages"]))
        }
    text = " | ".join(
        _truncate(value) if len(fields) == 1 else f"{key}: {_truncate(value)}" for key, value in fields.items()
    )
    return f"{text} -> {_truncate(answer)}"


def _truncate(text: str, max_chars: int = 100) -> str:
    line = " ".join(text.split())
    return line if len(line) <= max_chars else f"{line[: max_chars - 3]}..."
