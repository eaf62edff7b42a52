"""MethodWrapper: a Method around any other Method, with loss terms of its own."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlprompt.core.batch import Batch, Inputs
from vlprompt.core.class_names import Names
from vlprompt.core.head import Fixed, Prepared
from vlprompt.core.method import LossTerms, Method, Output, ParamGroup
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Backbone, Clip


class MethodWrapper(Method):
    """A Method that delegates everything to an inner method; `extra_terms` adds loss terms from the same Output."""

    method: Method

    @property
    def clip(self) -> Clip:
        """The Clip of the inner method; ValueError if it has none."""
        backbone = self.method.backbone
        if not isinstance(backbone, Clip):
            raise ValueError(
                f"{type(self).__name__}: expected a method on a CLIP, got {type(self.method).__name__}. "
                "Pass one that has a frozen CLIP to compare with, such as coop."
            )
        return backbone

    def require_text_features(self, out: Output) -> Tensor:
        """Return the text features of an answer, (C, E) or (B, C, E); ValueError if it has none."""
        if out.text_features is None:
            raise ValueError(
                f"{type(self).__name__}: expected a method with text features of the classes, got "
                f"{type(self.method).__name__}. Pass one whose classes are texts, such as coop."
            )
        return out.text_features

    def require_image_features(self, out: Output) -> Tensor:
        """Return the image features (B, E) of an answer; ValueError if it has none."""
        if out.image_features is None:
            raise ValueError(
                f"{type(self).__name__}: expected a method with image features, got {type(self.method).__name__}. "
                "Pass one whose answers have them, such as coop."
            )
        return out.image_features

    @property
    def needs_unlabelled(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.method.needs_unlabelled

    @property
    def is_online(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.method.is_online

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.method.begin_lesson(lesson, generator)

    def training_lesson(self, lesson: Lesson) -> Lesson:
        return self.method.training_lesson(lesson)

    def pseudo_labels(self, inputs: Inputs, fixed: Fixed) -> tuple[Tensor, Tensor] | None:
        return self.method.pseudo_labels(inputs, fixed[0])

    def reference_texts(self, names: Names) -> Fixed:
        """Compute the frozen texts that `extra_terms` compares with."""

    def extra_terms(self, batch: Batch, out: Output, reference: Fixed) -> dict[str, Tensor]:
        """Return loss terms to add, means over the images that `out` is about.

        Args:
            batch: those images.
            out: the answer of the inner method.
            reference: what `reference_texts` returned.
        """
        return {}

    def precompute(self, names: Names) -> Fixed:
        return self.method.precompute(names), self.reference_texts(names)

    def prepare(self, names: Names, fixed: Fixed) -> Prepared:
        return self.method.prepare(names, fixed[0])

    def forward(self, inputs: Inputs, prepared: Prepared) -> Output:
        return self.method(inputs, prepared)

    def loss_terms(self, batch: Batch, fixed: Fixed) -> tuple[LossTerms, Output]:
        terms, out = self.method.loss_terms(batch, fixed[0])
        answered = batch if len(batch.inputs) or batch.unlabelled is None else batch.unlabelled
        n_rows = float(batch.n_items)
        extra_terms = self.extra_terms(answered, out, fixed[1])
        if clashes := terms.keys() & extra_terms.keys():
            raise ValueError(
                f"{type(self).__name__}: expected a method without a loss term {min(clashes)!r}, which is its own, got "
                f"{type(self.method).__name__}. Wrap another method, or rename the term in one of your own."
            )
        return terms | {name: (value, n_rows) for name, value in extra_terms.items()}, out

    def merge_gradients(self, grads: dict[str, list[Tensor]]) -> list[Tensor]:
        return self.method.merge_gradients(grads)

    def idle_parameters(self) -> Sequence[nn.Parameter]:
        return self.method.idle_parameters()

    def schedule_starts(self, steps: int) -> Sequence[int]:
        return self.method.schedule_starts(steps)

    def param_groups(self) -> list[ParamGroup]:
        return self.method.param_groups()

    def merge_backbone(self) -> Backbone:
        return self.method.merge_backbone()

    def end_step(self, step: int, steps: int) -> None:
        self.method.end_step(step, steps)

    def end_epoch(self, epoch: int, epochs: int) -> None:
        self.method.end_epoch(epoch, epochs)

    def end_lesson(self, lesson: Lesson) -> None:
        self.method.end_lesson(lesson)
