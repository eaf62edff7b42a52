"""Around: a Method that takes a Method, whatever it is, and adds to what it learns from."""

from typing import Any

import torch
from torch import Tensor

from vlprompt.core.batch import Batch
from vlprompt.core.class_names import Names
from vlprompt.core.introspection import clip_of
from vlprompt.core.method import Method, Output, Terms
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip


class Around(Method):
    """A Method that takes a Method: everything goes on to it, and `extra` adds terms from the same Output."""

    method: Method

    @property
    def clip(self) -> Clip:
        """The CLIP of the method inside; ValueError when it has none."""
        found = clip_of(self.method)
        if found is None:
            raise ValueError(
                f"{type(self).__name__} compares with a frozen CLIP, but {type(self.method).__name__} holds none; "
                "give it a method on a CLIP, such as coop"
            )
        return found

    def text(self, out: Output) -> Tensor:
        """The text features of the method inside, (C, E) or (B, C, E); ValueError when its answer has none."""
        if out.text is None:
            raise ValueError(
                f"{type(self).__name__} keeps text features near the frozen ones, but the answer of "
                f"{type(self.method).__name__} has none; give it a method whose classes are texts, such as coop"
            )
        return out.text

    @property
    def adapts(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.method.adapts

    def begin(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.method.begin(lesson, generator)

    def taught(self, lesson: Lesson) -> Lesson:
        return self.method.taught(lesson)

    def guess(self, inputs: Any, fixed: Any) -> tuple[Tensor, Tensor] | None:
        return self.method.guess(inputs, fixed[0])

    def own(self, names: Names) -> Any:
        """Its own frozen texts."""

    def extra(self, batch: Batch, out: Output, own: Any) -> dict[str, Tensor]:
        """Terms to add, means over the images of the batch that `out` is about."""
        return {}

    def fixed(self, names: Names) -> Any:
        return self.method.fixed(names), self.own(names)

    def prepare(self, names: Names, fixed: Any) -> Any:
        return self.method.prepare(names, fixed[0])

    def forward(self, inputs: Any, prepared: Any) -> Output:
        return self.method(inputs, prepared)

    def terms(self, batch: Batch, fixed: Any) -> tuple[Terms, Output]:
        found, out = self.method.terms(batch, fixed[0])
        about = batch if len(batch.inputs) or batch.unlabelled is None else batch.unlabelled
        rows = float(batch.rows)
        return found | {name: (value, rows) for name, value in self.extra(about, out, fixed[1]).items()}, out

    def merge(self, grads: dict[str, list[Tensor]]) -> list[Tensor]:
        return self.method.merge(grads)

    def groups(self) -> list[dict[str, Any]]:
        return self.method.groups()

    def end_step(self, step: int, steps: int) -> None:
        self.method.end_step(step, steps)

    def end_epoch(self, epoch: int, epochs: int) -> None:
        self.method.end_epoch(epoch, epochs)

    def end(self, lesson: Lesson) -> None:
        self.method.end(lesson)
