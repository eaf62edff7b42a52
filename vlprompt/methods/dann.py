"""DANN: Ganin et al., "Domain-Adversarial Training of Neural Networks", JMLR 2016, arXiv:1505.07818.

A discriminator learns to tell the domains apart by the feature, and its gradient comes to the feature with the sign
turned, so that what is learned for the labels tells nothing of the domain. Here the feature is that of a frozen tower
and a bottleneck beside it, so that it can be compared with prompts. Sites: none; it stands on the feature.

Differs from the paper in: the tower is frozen, only a bottleneck with a residual, the reader and the discriminator are
trained; the discriminator has one hidden layer and an output per domain, so there may be several sources; the learning
rate is a matter of the recipe. As there, the turned gradient has weight 2 / (1 + exp(-10 p)) - 1, p the progress.

Expected: no number on a frozen CLIP that was checked.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.core.batch import Batch
from vlprompt.core.head import Reader
from vlprompt.core.images import Images
from vlprompt.core.method import OnTower, Output, Terms
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import VisionTower
from vlprompt.layers.adapters import Bottleneck, dense
from vlprompt.methods._adaptation import needs_target


class _Turned(torch.autograd.Function):
    """x as it is; its gradient comes back times -weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return -ctx.weight * grad, None


class DANN(OnTower):
    """A bottleneck on the image feature that no discriminator can tell the domain by, and any reader.

    hidden: units of the bottleneck; units: of the discriminator; weight: of the turned gradient, at its most.
    """

    adapts = True

    def __init__(self, tower: VisionTower, reader: Reader, hidden: int = 256, units: int = 1024, weight: float = 1.0):
        super().__init__()
        self.tower, self.reader, self.hidden, self.units, self.weight = tower, reader, hidden, units, weight

    def begin(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.at_least(hidden=1, units=1, weight=0)
        needs_target(self, lesson, domains=2)
        if bool(lesson.unlabelled) != bool(len(lesson.train)):
            raise ValueError(
                "DANN compares images of the sources with those of the target, and this lesson has only one kind: "
                "adapt to both at once (setting=adapt), or take entropy, which needs no source"
            )
        super().begin(lesson, generator)
        wide, device, self.domains = self.tower.width, self.tower.device, len(lesson.domains)
        self.critic = nn.Sequential(  # of this lesson's domains; no answer needs it
            dense(wide, self.units, generator, device),
            nn.ReLU(),
            dense(self.units, self.domains, generator, device),
        )

    def build(self, generator: torch.Generator) -> None:
        wide, device = self.tower.width, self.tower.device
        self.adapter = Bottleneck(wide, self.hidden, nn.ReLU(), None, 0.0, generator, device)

    def features(self, inputs: Images, tower: VisionTower) -> Tensor:
        image = tower(inputs)  # (B, E)
        return image + self.adapter(image)

    def terms(self, batch: Batch, fixed: Any) -> tuple[Terms, Output]:
        prepared, beside = self.prepare(batch.names, fixed), batch.unlabelled
        found, out, seen, domain = Terms(), None, list[Tensor](), list[Tensor]()
        if len(batch.inputs):
            out = self(batch.inputs, prepared)
            found["ce"] = F.cross_entropy(out.logits.float(), batch.labels.to(out.logits.device)), len(batch.labels)
            seen.append(out.image)
            domain.append(torch.zeros(len(batch.inputs)).long() if batch.domains is None else batch.domains)
        if beside is not None:
            answer = self(beside.inputs, prepared)
            seen.append(answer.image)
            domain.append(torch.full((len(beside.inputs),), self.domains - 1))
            out = out or answer
        turn = self.weight * (2 / (1 + math.exp(-10 * batch.progress)) - 1)
        told = self.critic(_Turned.apply(torch.cat(seen), turn))
        labels = torch.cat(domain).to(told.device)
        found["domain"] = F.cross_entropy(told.float(), labels), len(labels)
        assert out is not None, "a batch has images"
        return found, out
