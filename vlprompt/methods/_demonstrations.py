"""Demonstrations: texts with their answers, chosen, kept as bytes, and read once before the texts to be answered."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from vlprompt.core.prompt import NOTHING, Prompt
from vlprompt.core.texts import Passage, Passages, pieces
from vlprompt.core.towers import LanguageTower


def drawn(labels: Sequence[int], shots: int, how: Literal["random", "balanced"], generator: Generator) -> list[int]:
    """Places of `shots` items in a random order; balanced: class by class in turn, as long as each has some.

    ValueError where there are fewer.
    """
    if shots > len(labels):
        raise ValueError(
            f"method.shots={shots} demonstrations are asked for, and there are {len(labels)} training texts: take "
            "fewer, or more texts by task.shots"
        )
    order = torch.randperm(len(labels), generator=generator).tolist()
    if how == "random":
        return order[:shots]
    turn, met = dict[int, int](), dict[int, int]()
    for place in order:  # its turn: how many of its class come before it
        turn[place] = met[labels[place]] = met.get(labels[place], -1) + 1
    chosen = sorted(order, key=lambda place: turn[place])[:shots]  # stable, so the order within a turn is random
    return [chosen[k] for k in torch.randperm(shots, generator=generator).tolist()]


def as_bytes(items: Sequence[Passage]) -> Tensor:
    """Passages as a tensor of bytes (uint8), to be kept in a state."""
    return torch.frombuffer(bytearray(json.dumps([asdict(item) for item in items]).encode()), dtype=torch.uint8)


def from_bytes(kept: Tensor) -> tuple[Passage, ...]:
    """The passages that `as_bytes` has kept."""
    return tuple(Passage(**told) for told in json.loads(bytes(kept.tolist())))


def examples(given: Sequence[Mapping[str, str]], answer: str) -> list[Passage]:
    """Demonstrations that were written by hand, each {question, rationale, answer}; ValueError for others.

    answer: the part of their template behind the question.
    """
    found = list[Passage]()
    for k, one in enumerate(given):
        if set(one) != {"question", "rationale", "answer"}:
            raise ValueError(
                f"method.examples[{k}] has {', '.join(one) or 'nothing'}; give question, rationale and answer"
            )
        found.append(Passage(f"example/{k}", dict(one), f"Q: {{question}}\nA:{answer}", "{question}", one["answer"]))
    return found


def escaped(text: str) -> str:
    """A text as a template that shows just it."""
    return text.replace("{", "{{").replace("}", "}}")


def filled(item: Passage, template: str) -> str:
    """A passage written out by a template, with its response at {mask}, or behind it all; soft tokens are left out.

    ValueError for a field that it has not.
    """
    text, said = "", item.response or ""
    for piece in pieces(template):
        if piece.kind == "field" and piece.text not in item.fields:
            raise ValueError(
                f"the template has {{{piece.text}}}, but the text {item.name!r} has the fields {', '.join(item.fields)}"
            )
        if piece.kind == "field" and piece.text == "messages":
            raise ValueError("conversations can't be shown as demonstrations: take rows with a prompt and a response")
        if piece.kind == "sep":
            text = text.rstrip() + "\n"
        else:
            text += {"field": item.fields.get(piece.text, ""), "mask": said, "words": piece.text}.get(piece.kind, "")
    return text if any(piece.kind == "mask" for piece in pieces(template)) else f"{text} {said}"


@dataclass(frozen=True)
class Before:
    """What stands before texts: read already, as the prefix of a causal model, or written in front of each.

    text: what is written in front; after: it follows what was read.
    """

    prompt: Prompt = NOTHING
    text: str = ""
    after: bool = False

    def shown(self, inputs: Passages, template: str | None = None) -> Passages:
        """The passages behind it, by one template or each by its own."""
        items = [replace(item, template=escaped(self.text) + (template or item.template)) for item in inputs.items]
        return replace(inputs, items=tuple(items), template=None, plain=False, n=0, after=self.after)


class Demonstrations:
    """Demonstrations before texts.

    items: with their responses; template: how they are shown (default: each by its own); instruction: before them all;
    separator: between all parts; near: how many of them are shown, the nearest to each text by the model's own feature
    and the nearest last (0: all of them, which a causal model reads here, once for all texts). ValueError where they
    leave no room for a text as long as the longest of them, saying how many do.
    """

    def __init__(self, lm: LanguageTower, items: Sequence[Passage], template: str | None = None, instruction: str = "",
                 separator: str = "\n\n", near: int = 0):  # fmt: skip
        self.lm, self.items, self.template = lm, items, template
        self.instruction, self.separator, self.near = instruction, separator, near
        self.features = _unit(lm(Passages(tuple(items)))) if near else None  # (N, E)
        self.base = self._before(() if near else items, NOTHING)

    def groups(self, inputs: Passages) -> Iterator[tuple[Before, list[int]]]:
        """What stands before texts, and the places of those that share it and are shown by one template."""
        found, near = dict[tuple[str, tuple[int, ...]], list[int]](), list[tuple[int, ...]]([()] * len(inputs))
        if self.features is not None:
            like = _unit(self.lm(inputs.form(plain=True))) @ self.features.T  # (B, N)
            near = [tuple(row) for row in like.topk(self.near).indices.flip(1).tolist()]
        for i, item in enumerate(inputs.items):
            found.setdefault((self.template or item.template, near[i]), []).append(i)
        for (_, some), places in found.items():  # one after the other, for what was read takes memory
            yield self._before([self.items[k] for k in some], self.base.prompt) if some else self.base, places

    def _before(self, items: Sequence[Passage], first: Prompt) -> Before:
        """first: the instruction, where it was read already."""
        lm, between = self.lm, self.separator
        shown = [filled(item, self.template or item.template) for item in items]
        whole = between.join([*([self.instruction] if self.instruction else []), *shown])
        if not whole:
            return Before()
        if lm.room is not None and shown:
            sizes = [len(lm.embedded(between + text)) for text in shown]
            room = lm.room - len(lm.embedded(self.instruction)) - max(sizes) - 2  # special tokens at either end
            if sum(sizes) > room:
                fit = sum(sum(sizes[: k + 1]) <= room for k in range(len(sizes)))
                raise ValueError(
                    f"{lm.spec} has {lm.room} positions, too few for {len(shown)} demonstrations of {sum(sizes)} "
                    f"tokens and a text as long as the longest: {fit} fit; set method.shots={fit}, or shorten them"
                )
        if lm.kind != "causal":
            return Before(text=whole + between)
        if first:
            return Before(lm.past("".join(between + text for text in shown), first, after=True), between, True)
        return Before(lm.past(whole), between, True)


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=-1)
