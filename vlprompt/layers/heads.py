"""Heads of images and texts: linear, cosine, and the class texts of a CLIP."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.core.class_names import Names, class_ids, extend_ids
from vlprompt.core.head import Head
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.class_texts import TemplateChoice, encode_class_texts
from vlprompt.layers.initial_values import draw_uniform
from vlprompt.runtime.errors import UnknownClassError


class ClassWeightHead(Head):
    """A head with one row of weights (C, E) per known class, selected by class name; new classes add rows."""

    weight: Tensor
    class_ids: Names = ()

    def init_parameters(self, shape: tuple[int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """Return initial values of the parameters by name, for (new classes, width)."""
        raise NotImplementedError(f"{type(self).__name__}: expected a method init_parameters. Define initial values.")

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator, feature_dim: int, device: torch.device) -> None:
        known = self.class_ids if lesson.index else ()
        self.class_ids = extend_ids(known, lesson.train.names)
        n_added = len(self.class_ids) - len(known)
        for name, value in self.init_parameters((n_added, feature_dim), generator).items():
            rows = [getattr(self, name).detach()] if known else []
            setattr(self, name, nn.Parameter(torch.cat([*rows, value.to(device)])))

    def class_indices(self, names: Names) -> Tensor:
        """Return the rows (C,) of these names; UnknownClassError for an unknown class."""
        owner = f"{type(self).__name__.removesuffix('Head').lower()} head"
        return find_class_indices(self.class_ids, names, owner).to(self.weight.device)

    def precompute(self, names: Names) -> Tensor | slice:
        """Return the rows of these names; a slice for all rows in order, which copies none at each step."""
        indices = self.class_indices(names)
        return slice(None) if indices.tolist() == list(range(len(self.class_ids))) else indices


class LinearHead(ClassWeightHead):
    """A linear head; its bias has no weight decay.

    Args:
        std: of the initial weights, or "kaiming" for sqrt(2 / C), the fan-out of VPT's head (arXiv:2203.12119).
        bias_init: initial value of the biases, -4.595 = -log(99) in VPT.
    """

    bias: Tensor

    def __init__(self, std: float | Literal["kaiming"] = 0.01, bias_init: float = 0.0):
        super().__init__()
        self.std, self.bias_init = std, bias_init

    def init_parameters(self, shape: tuple[int, int], generator: torch.Generator) -> dict[str, Tensor]:
        std = self.std if isinstance(self.std, float | int) else math.sqrt(2 / max(shape[0], 1))
        return {"weight": torch.randn(shape, generator=generator) * std, "bias": torch.full(shape[:1], self.bias_init)}

    def forward(self, features: Tensor, prepared: Tensor | slice) -> Tensor:
        return F.linear(features, self.weight[prepared], self.bias[prepared])


class CosineHead(ClassWeightHead):
    """Cosines to one vector per class, times a learned scale; no bias.

    Gidaris and Komodakis, CVPR 2018, arXiv:1804.09458.

    Args:
        scale: its initial value, 10 in the paper.
    """

    def __init__(self, scale: float = 10.0):
        super().__init__()
        self.scale = scale

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator, feature_dim: int, device: torch.device) -> None:
        super().begin_lesson(lesson, generator, feature_dim, device)
        if not lesson.index:
            self.gain = nn.Parameter(torch.tensor(self.scale, device=device))

    def init_parameters(self, shape: tuple[int, int], generator: torch.Generator) -> dict[str, Tensor]:
        return {"weight": torch.randn(shape, generator=generator) * (2 / shape[1]) ** 0.5}

    def forward(self, features: Tensor, prepared: Tensor | slice) -> Tensor:
        return self.gain * Clip.unit(features) @ Clip.unit(self.weight[prepared]).T


class UniformCosineHead(CosineHead):
    """A cosine head whose rows begin uniformly within 1 / sqrt(E), as in PILOT (arXiv:2309.07117)."""

    def init_parameters(self, shape: tuple[int, int], generator: torch.Generator) -> dict[str, Tensor]:
        return {"weight": draw_uniform(shape, -(shape[1] ** -0.5), shape[1] ** -0.5, generator)}


class TextHead(Head):
    """Scaled cosines to the class texts of a frozen CLIP.

    Args:
        clip: the CLIP.
        template: as in ZeroShot; None for that of the dataset.
    """

    reads_class_texts = True

    def __init__(self, clip: Clip, template: TemplateChoice = None):
        super().__init__()
        self.clip, self.template = clip, template

    def precompute(self, names: Names) -> Tensor:
        return encode_class_texts(self.clip, names, self.template, normalize=True)  # (C, E)

    def forward(self, features: Tensor, prepared: Tensor) -> Tensor:
        return self.clip.logits(features, prepared)


def find_class_indices(known_ids: Sequence[str], names: Names, owner: str) -> Tensor:
    """Return the indices (C,) of names among known classes.

    Args:
        known_ids: ids of the known classes.
        names: the classes to find.
        owner: whose classes they are, for the error.

    Raises:
        UnknownClassError: if a class is unknown.
    """
    index_of_id, ids = {i: index for index, i in enumerate(known_ids)}, class_ids(names)
    if unknown := [i for i in ids if i not in index_of_id]:
        raise UnknownClassError(
            f"{owner}: no weights for class {_quote(unknown)} (trained on {_quote(known_ids)}). Evaluate on the "
            "training classes, or use a method with class texts, such as coop."
        )
    return torch.tensor([index_of_id[i] for i in ids])


def find_known_classes(known_ids: Sequence[str], names: Names) -> Tensor:
    """Return which of the names (C,) are known classes, for methods that answer in another way for new ones."""
    known = set(known_ids)
    return torch.tensor([i in known for i in class_ids(names)])


def _quote(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + " ..." * (len(names) > 5)
