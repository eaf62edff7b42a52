"""Texts and tiny language models that several test files read."""

import small_models
import torch
from torch import nn

from vlprompt.core.texts import Passage, Passages
from vlprompt.runtime.seeding import generator

SHOWN = "{text} It was {mask}"
TEXTS = [*small_models.TEXTS[:5], "A", "The team won. " * 5 + "Fine"]


def passages(texts=TEXTS, **more):
    items = [Passage(f"text {t}", {"text": t}, SHOWN, "{text}", response="great fun", **more) for t in texts]
    return Passages(tuple(items))


def prefix(tower, n=5, key="prefix"):
    draw = generator(key)
    kv = lambda: torch.randn(1, tower.heads, n, tower.head_dim, generator=draw)  # noqa: E731
    return {layer: (kv(), kv()) for layer in tower.layers}


class Add(nn.Module):
    """made + given W', and how it goes into weights."""

    def __init__(self, fan_in, fan_out, draw):
        super().__init__()
        self.weight = torch.randn(fan_out, fan_in, generator=draw) * 0.05

    def forward(self, given, made):
        return made + given @ self.weight.T

    def merge(self, weight, bias):
        return weight + self.weight, bias


def parts(tower, *kinds):
    draw = generator("parts")
    return {site: Add(a, b, draw) for site, (a, b) in tower.sites(*kinds).items()}
