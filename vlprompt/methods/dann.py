"""DANN: Ganin et al., "Domain-Adversarial Training of Neural Networks", JMLR 2016, arXiv:1505.07818.

A discriminator learns to classify the domain of a feature, and its gradient reaches the feature with reversed sign, so
that what is learned for the labels is invariant to the domain. Here the feature is that of a frozen tower plus a
residual bottleneck, so that it can be compared with prompts. Sites: none; it changes the feature.

Differs from the paper in: the tower is frozen, only a bottleneck with a residual, the head and the discriminator are
trained; the discriminator has one hidden layer and an output per domain, so there may be several sources; the learning
rate is a matter of the recipe. As there, the reversed gradient has weight 2 / (1 + exp(-10 p)) - 1, p the progress.

Expected: no number on a frozen CLIP that was checked.
"""

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.core.batch import Batch
from vlprompt.core.head import Fixed, Head
from vlprompt.core.images import Images
from vlprompt.core.method import LossTerms, Output, TowerMethod
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import VisionTower
from vlprompt.layers.adapters import Bottleneck
from vlprompt.layers.initial_values import make_linear
from vlprompt.methods._adaptation import require_target


class _ReversalContext(Protocol):
    weight: float


class _GradientReversal(torch.autograd.Function):
    """The identity, whose gradient is multiplied by -weight."""

    @staticmethod
    def forward(ctx: _ReversalContext, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: _ReversalContext, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return -ctx.weight * grad, None


class DANN(TowerMethod[VisionTower]):
    """A bottleneck on the image feature, trained against a domain discriminator, and any head.

    Args:
        tower: frozen image tower.
        head: maps features to class logits.
        bottleneck_dim: hidden units of the bottleneck.
        discriminator_dim: hidden units of the discriminator.
        weight: largest weight of the reversed gradient.
    """

    needs_unlabelled = True

    def __init__(
        self,
        tower: VisionTower,
        head: Head,
        bottleneck_dim: int = 256,
        discriminator_dim: int = 1024,
        weight: float = 1.0,
    ):
        super().__init__()
        self.tower, self.head, self.bottleneck_dim = tower, head, bottleneck_dim
        self.discriminator_dim, self.weight = discriminator_dim, weight

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.require_at_least(bottleneck_dim=1, discriminator_dim=1, weight=0)
        require_target(self, lesson, min_domains=2)
        if bool(lesson.unlabelled) != bool(len(lesson.train)):
            raise ValueError(
                "dann: expected labelled images of the sources and unlabelled images of the target in one lesson, got "
                "only one kind. Set task.setting=adapt, or use entropy, which needs no source."
            )
        super().begin_lesson(lesson, generator)
        dim, device, self.n_domains = self.tower.feature_dim, self.tower.device, len(lesson.domains)
        self.discriminator = nn.Sequential(  # of this lesson's domains; logits never depend on it
            make_linear(dim, self.discriminator_dim, generator, device),
            nn.ReLU(),
            make_linear(self.discriminator_dim, self.n_domains, generator, device),
        )

    def build(self, generator: torch.Generator) -> None:
        dim, device = self.tower.feature_dim, self.tower.device
        self.adapter = Bottleneck(dim, self.bottleneck_dim, nn.ReLU(), None, 0.0, generator, device)

    def compute_features(self, inputs: Images, tower: VisionTower) -> Tensor:
        image = tower(inputs)  # (B, E)
        return image + self.adapter(image)

    def loss_terms(self, batch: Batch, fixed: Fixed) -> tuple[LossTerms, Output]:
        prepared, unlabelled = self.prepare(batch.names, fixed), batch.unlabelled
        terms, outputs, domains = LossTerms(), list[Output](), list[Tensor]()
        if len(batch.inputs):
            out = self(batch.inputs, prepared)
            terms["ce"] = batch.label_loss(out.logits.float(), batch.labels.to(out.logits.device)), len(batch.labels)
            outputs.append(out)
            domains.append(torch.zeros(len(batch.inputs)).long() if batch.domains is None else batch.domains)
        if unlabelled is not None:
            outputs.append(self(unlabelled.inputs, prepared))
            domains.append(torch.full((len(unlabelled.inputs),), self.n_domains - 1))
        features = torch.cat([out.image_features for out in outputs])  # type: ignore[misc]  # every head's output has
        reversal_weight = self.weight * (2 / (1 + math.exp(-10 * batch.progress)) - 1)
        logits = self.discriminator(_GradientReversal.apply(features, reversal_weight))
        labels = torch.cat(domains).to(logits.device)
        terms["domain"] = F.cross_entropy(logits.float(), labels), len(labels)
        return terms, outputs[0]
