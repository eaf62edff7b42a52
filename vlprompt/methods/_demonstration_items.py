"""Sample, write by hand and serialise the texts that are shown as demonstrations."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Literal

import torch
from torch import Generator, Tensor

from vlprompt.core.texts import TextItem


def sample_demonstrations(
    labels: Sequence[int], shots: int, strategy: Literal["random", "balanced"], generator: Generator
) -> list[int]:
    """Sample the indices of `shots` items in random order.

    Args:
        labels: of all items.
        shots: number of items.
        strategy: "balanced" takes one item of each class in turn, as long as a class has any.
        generator: source of randomness.

    Raises:
        ValueError: if there are fewer items than `shots`.
    """
    if shots > len(labels):
        raise ValueError(
            f"method.shots: expected at most {len(labels)}, the number of training texts, got {shots}. "
            "Set a lower method.shots, or a higher task.shots."
        )
    order = torch.randperm(len(labels), generator=generator).tolist()
    if strategy == "random":
        return order[:shots]
    rounds, rounds_of_class = dict[int, int](), dict[int, int]()
    for index in order:  # an item's round: how many of its class come before it
        rounds[index] = rounds_of_class[labels[index]] = rounds_of_class.get(labels[index], -1) + 1
    chosen = sorted(order, key=lambda index: rounds[index])[:shots]  # stable, so the order within a round is random
    return [chosen[k] for k in torch.randperm(shots, generator=generator).tolist()]


def encode_items(items: Sequence[TextItem]) -> Tensor:
    """Serialise texts as a tensor of bytes (uint8) for the state of a method."""
    return torch.frombuffer(bytearray(json.dumps([asdict(item) for item in items]).encode()), dtype=torch.uint8)


def decode_items(encoded: Tensor) -> tuple[TextItem, ...]:
    """Restore the texts that `encode_items` serialised."""
    return tuple(TextItem(**fields) for fields in json.loads(bytes(encoded.tolist())))


def build_examples(records: Sequence[Mapping[str, str]], answer_template: str) -> list[TextItem]:
    """Build demonstrations from the hand-written records of `method.examples`.

    Args:
        records: each {question, rationale, answer}.
        answer_template: the part of the template after the question.

    Raises:
        ValueError: if a record has other keys.
    """
    items = list[TextItem]()
    for k, record in enumerate(records):
        if set(record) != {"question", "rationale", "answer"}:
            raise ValueError(
                f"method.examples[{k}]: expected the keys question, rationale and answer, got "
                f"{', '.join(record) or 'none'}. Give question, rationale and answer."
            )
        template = f"Q: {{question}}\nA:{answer_template}"
        items.append(TextItem(f"example/{k}", dict(record), template, "{question}", record["answer"]))
    return items
