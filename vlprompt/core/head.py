"""Contract of heads, which turn features into logits over class names."""

import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from vlprompt.core.batch import Inputs
from vlprompt.core.class_names import Names
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson

# opaque to all but the head or method that makes them; it may write their types
Fixed: TypeAlias = Any  # what `precompute` returns, for `prepare` and `loss_terms`
Prepared: TypeAlias = Any  # what `prepare` returns, for `forward`


class Head(nn.Module):
    """Features (B, E) -> logits (B, C), in the phases of a Method: begin_lesson, precompute, prepare, forward.

    The constructor only stores its arguments, under their own names.

    Attributes:
        output: what it needs of the tower: "pooled", "tokens", "mask" ...
        reads_class_texts: whether `prepare` returns text features of the classes (C, E).
    """

    output: str = "pooled"
    reads_class_texts: bool = False

    def prepare_inputs(self, inputs: Inputs) -> Inputs:
        """Return the inputs as the tower should see them: texts with the head's template."""
        return inputs

    def compute_targets(self, inputs: Inputs, make_prompt: Callable[[], Prompt]) -> Tensor | None:
        """Return the targets (R,) of its logits' rows if they are not the labels of the batch.

        Args:
            inputs: as the tower saw them.
            make_prompt: makes the prompt of that pass, whose tokens leave less room for a response.
        """
        return None

    def clone_untrained(self) -> "Head":
        """Return an untrained head with the same settings."""
        return type(self)(**{name: getattr(self, name) for name in inspect.signature(type(self)).parameters})

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator, feature_dim: int, device: torch.device) -> None:
        """Create parameters at the first lesson, grow later."""

    def precompute(self, names: Names) -> Fixed:
        """Compute what needs neither gradient nor inputs. Called once per list of class names."""
        return None

    def prepare(self, names: Names, fixed: Fixed) -> Prepared:
        """Compute the input-independent part, with gradients, from what `precompute` returned."""
        return fixed

    def forward(self, features: Tensor, prepared: Prepared) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__}: expected forward(features, prepared). Define it.")
