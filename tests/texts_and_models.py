"""Texts and tiny language models that several test files read."""

import small_models
import torch
from torch import nn

from vlprompt.core.texts import TextBatch, TextItem
from vlprompt.runtime.seeding import make_generator

SHOWN = "{text} It was {mask}"
TEXTS = [*small_models.TEXTS[:5], "A", "The team won. " * 5 + "Fine"]


def passages(texts=TEXTS, **more):
    items = [TextItem(f"text {t}", {"text": t}, SHOWN, "{text}", response="great fun", **more) for t in texts]
    return TextBatch(tuple(items))


def prefix(tower, n=5, key="prefix"):
    draw = make_generator(key)
    kv = lambda: torch.randn(1, tower.n_heads, n, tower.head_dim, generator=draw)  # noqa: E731
    return {layer: (kv(), kv()) for layer in tower.prefix_layers}


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
    draw = make_generator("parts")
    return {site: Add(a, b, draw) for site, (a, b) in tower.sites(*kinds).items()}
