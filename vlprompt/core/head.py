"""Readers: what comes out. They turn features into logits over the names that are asked for."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vlprompt.core.class_names import Names
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson


class Reader(nn.Module):
    """Features (B, E) -> logits (B, C); the same life as a Method: begin, fixed, prepare, forward.

    The constructor only stores its arguments, under their own names. read: what it wants of the tower.
    """

    read: str = "pooled"
    reads_class_texts: bool = False  # whether what it prepares are the texts of the classes (C, E)

    def asked(self, inputs: Any) -> Any:
        """The inputs as the tower shall see them: of passages, by which template."""
        return inputs

    def target(self, inputs: Any, prompt: Callable[[], Prompt]) -> Tensor | None:
        """What the rows of its logits should be (R,), where the labels of a batch don't say it.

        inputs: as the tower saw them; prompt: makes what went in with them, which takes room from a response.
        """
        return None

    def anew(self) -> "Reader":
        """Another with the same settings, which has met nothing yet."""
        return type(self)(**{name: getattr(self, name) for name in inspect.signature(type(self)).parameters})

    def begin(self, lesson: Lesson, generator: torch.Generator, width: int, device: torch.device) -> None:
        """Called for every lesson: create at the first, grow later."""

    def fixed(self, names: Names) -> Any:
        """What needs no gradient and no image, once per list of names."""
        return None

    def prepare(self, names: Names, fixed: Any) -> Any:
        return fixed

    def forward(self, features: Tensor, prepared: Any) -> Tensor:
        raise NotImplementedError("a Reader says how features become logits")
