"""EASE: Zhou et al., CVPR 2024, arXiv:2403.12030.

The paper is "Expandable Subspace Ensemble for Pre-Trained Model-Based Class-Incremental Learning". Each lesson trains
adapters of its own, whose features are another subspace. A class is answered by the cosines to its mean in all of them,
that of its own lesson first; the means of old classes in later subspaces are composed of new classes' means, weighted
by how similar the two are in the old subspace. Sites: mlp+. Use: streams.

It stores 4 (2 D r + D + r) bytes a layer of each lesson (ViT-B/16, r = 64: 4.8 MB), and 4 E t of each class of lesson t
for its means, which thus grow with the square of the lessons. An answer takes a pass for each lesson.

Differs from the authors' code in: a class of several lessons has the means of all its images and counts as one of the
last; a class that never had an image can't win; before its lesson ends, the lesson's own head answers for its classes.
As there, old classes are composed anew after each lesson, and the cosines of an answer have no scale. Their alpha and
beta are others for each set, and there are no validation images on which they can have been chosen; the defaults are
those of CIFAR-100. From the paper in: nothing.

Expected (class-incremental, average and last accuracy, ViT-B/16 of IN-21k; of IN-1k; the authors' logs): CIFAR-100 of
20 91.51 85.80; 90.62 84.21. CUB 92.22 86.81; 91.13 85.67. ImageNet-R of 10 81.74 76.17; 82.60 77.33. ImageNet-A of 10
65.34 55.04; 68.89 58.53.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from vlprompt.core.class_names import Names
from vlprompt.core.head import Prepared
from vlprompt.core.images import Images
from vlprompt.core.method import Method, Output
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip, VisionTower
from vlprompt.layers.heads import UniformCosineHead
from vlprompt.methods._adapter_bank import AdapterBank, validate_stream
from vlprompt.methods._alignment import compute_features
from vlprompt.methods._class_means import ClassMeans


class _Prototypes(NamedTuple):
    """Unit means (S, C, E) times the weights of the subspaces, and which classes (C,) have images."""

    weighted: Tensor
    has_images: Tensor


class EASE(Method):
    """Class means in the subspaces of all lessons' adapters.

    Args:
        tower: frozen image tower.
        bottleneck_dim: width of the bottlenecks.
        scale: factor of what they add.
        dropout: inside the bottlenecks.
        alpha: weight of the subspaces of other lessons, together.
        beta: weight of the frozen feature (0: none).
        n_adapters: lessons that train adapters; later ones are read with those. None: all.
    """

    needs_single_labels = True

    def __init__(
        self,
        tower: VisionTower,
        bottleneck_dim: int = 64,
        scale: float = 0.1,
        dropout: float = 0.1,
        alpha: float = 0.1,
        beta: float = 0.0,
        n_adapters: int | None = None,
    ):
        super().__init__()
        self.tower, self.bottleneck_dim, self.scale, self.dropout = tower, bottleneck_dim, scale, dropout
        self.alpha, self.beta, self.n_adapters = alpha, beta, n_adapters

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.require_at_least(bottleneck_dim=1, dropout=0, alpha=0, beta=0)
        if self.n_adapters is not None:
            self.require_at_least(n_adapters=1)
        validate_stream("ease", self.tower, lesson)
        if not lesson.index:
            self.bank = AdapterBank(self.tower, self.bottleneck_dim, self.scale, self.dropout)
            self.means = ClassMeans(int(self.beta > 0))
        shape = self.tower.feature_dim, self.tower.device
        self.head = UniformCosineHead(1.0)  # of this lesson's classes, for its training
        self.head.begin_lesson(Lesson(lesson.train), generator, *shape)
        if self.n_adapters is None or len(self.bank) < self.n_adapters:
            self.bank.add_set(generator)
        else:
            self.requires_grad_(False)
        self.means.begin_lesson(lesson.train.names, len(self.bank) + self.means.n_common, *shape)

    def encode(self, inputs: Images) -> Tensor:
        """Compute the features (B, S, E) in all subspaces, the frozen one first if it is read."""
        frozen = [self.tower(inputs)] if self.beta else []
        return torch.stack([*frozen, *(self.tower(inputs, self.bank.get_prompt(k)) for k in range(len(self.bank)))], 1)

    @torch.no_grad()
    def end_lesson(self, lesson: Lesson) -> None:
        """Compute the means of the lesson's classes."""
        if len(lesson.train):
            self.eval()
            self.means.add(*compute_features(self.encode, lesson.train))

    def precompute(self, names: Names) -> _Prototypes | Tensor | slice:
        """Return the prototypes; before a lesson ends, the rows of its head."""
        if not self.means.has_newest:
            return self.head.precompute(names)
        (means, lessons), last = self.means.select(names), len(self.bank) - 1
        weights = torch.full_like(means[..., 0], self.alpha / max(last, 1))
        weights[:, : self.means.n_common] = self.beta
        weights.scatter_(1, self.means.n_common + lessons.clamp(0, last)[:, None], 1.0)
        weighted = (Clip.unit(means) * weights[..., None]).movedim(1, 0)
        return _Prototypes(weighted.float(), lessons >= 0)

    def prepare(self, names: Names, fixed: _Prototypes | Tensor | slice) -> Prepared:
        return fixed if isinstance(fixed, _Prototypes) else self.head.prepare(names, fixed)

    def forward(self, inputs: Images, prepared: Prepared) -> Output:
        if not isinstance(prepared, _Prototypes):
            image = self.tower(inputs, self.bank.get_prompt(-1))  # (B, E)
            return Output(self.head(image, prepared), image_features=image)
        features = self.encode(inputs).movedim(1, 0)  # (S, B, E)
        logits = (Clip.unit(features) @ prepared.weighted.mT).sum(0)
        return Output(logits.masked_fill(~prepared.has_images, -torch.inf), image_features=features[-1])
