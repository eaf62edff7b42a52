"""LAE: Gao et al., ICCV 2023, arXiv:2303.10070.

The paper is "A Unified Continual Learning Framework with General Parameter-Efficient Tuning". An online module learns
every lesson, after the head has learned alone for a while; an offline module is its moving average. An answer is the
larger one, class by class, of the two softmaxes. Sites: mlp+ of the first layers of the image tower. Use: streams.

Modules may be keys and values instead of adapters (method.tuning=prefix). They keep their weight beside the attention
that was there: attention to them alone is added to the attention to all, of which they have no value.

Differs from the authors' code in: adapters are those of AdaptFormer with a learned scale; the logarithm of the answer
stands for logits, so that probabilities add up to 1; prefixes are for towers without rotary positions and norms inside
of attention, and start between -1 and 1 over the root of the width. As there, the average is taken in the steps in
which the online module rests too. From the paper in: nothing.

Its state does not grow but for the head: two modules, 169 kB each on a ViT-B/16 (prefixes: 307 kB).

Expected: no published number that was checked.
"""

import copy
from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Generator, Tensor, nn

from vlprompt.core.batch import Batch
from vlprompt.core.head import Fixed, Head, Prepared
from vlprompt.core.images import Images
from vlprompt.core.method import LossTerms, Output, TowerMethod
from vlprompt.core.prompt import AdapterFn, Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import VisionTower
from vlprompt.layers.adapters import Bottleneck
from vlprompt.methods._compensated_prefix import CompensatedPrefix, insert_prefixes


class _Adapter(nn.Module):
    """outputs + scale * bottleneck(inputs)."""

    def __init__(self, width: int, hidden: int, generator: Generator, device: torch.device):
        super().__init__()
        self.bottleneck = Bottleneck(width, hidden, nn.ReLU(), None, 0.0, generator, device)
        self.scale = nn.Parameter(torch.ones((), device=device))

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        return outputs + self.scale * self.bottleneck(inputs)


class LAE(TowerMethod[VisionTower]):
    """An online module and its moving average, and the larger softmax of both.

    Args:
        tower: frozen image tower.
        head: maps features to class logits.
        tuning: what the modules are: adapters or prefixes.
        bottleneck_dim: of adapters.
        prompt_length: of prefixes.
        n_layers: number of first layers with modules, clipped to the tower's depth.
        decay: of the average, at each step.
        frozen_fraction: of a lesson's steps, at first, in which the head learns alone.
    """

    is_frozen: bool = False
    depends_on_class_set = True

    def __init__(self, tower: VisionTower, head: Head, tuning: Literal["adapter", "prefix"] = "adapter",
                 bottleneck_dim: int = 5, prompt_length: int = 10, n_layers: int = 5, decay: float = 0.9999,
                 frozen_fraction: float = 0.6):  # fmt: skip
        super().__init__()
        self.tower, self.head, self.tuning, self.bottleneck_dim = tower, head, tuning, bottleneck_dim
        self.prompt_length, self.n_layers, self.decay = prompt_length, n_layers, decay
        self.frozen_fraction = frozen_fraction

    def begin_lesson(self, lesson: Lesson, generator: Generator) -> None:
        self.tower.require_blocks()
        self.require_at_least(bottleneck_dim=1, prompt_length=1, decay=0, frozen_fraction=0)
        self.require_at_most(decay=1, frozen_fraction=1)
        super().begin_lesson(lesson, generator)

    def build(self, generator: Generator) -> None:
        depth, make = self.clip_to_depth("n_layers", self.tower.depth), CompensatedPrefix
        size = self.prompt_length
        if self.tuning == "adapter":
            make, size = _Adapter, self.bottleneck_dim
        self.online = nn.ModuleList(make(self.tower.dim, size, generator, self.tower.device) for _ in range(depth))
        self.offline = copy.deepcopy(self.online).requires_grad_(False)
        names = (f"online.{name}" for name, _ in self.online.named_parameters())
        self.parameters_without_grad = tuple(names) if self.frozen_fraction else ()

    def build_prompt(self, modules: nn.ModuleList) -> Prompt:
        """Return the prompt of the online or the offline modules."""
        if self.tuning == "adapter":
            return Prompt(adapters={f"{i}/mlp+": cast(AdapterFn, module) for i, module in enumerate(modules)})
        return insert_prefixes(self.tower, cast(Sequence[CompensatedPrefix], modules))

    def idle_parameters(self) -> Sequence[nn.Parameter]:
        return [*self.online.parameters()] if self.is_frozen else []

    @torch.no_grad()
    def end_step(self, step: int, steps: int) -> None:
        for average, p in zip(self.offline.parameters(), self.online.parameters(), strict=True):
            average.lerp_(p, 1 - self.decay)

    def loss_terms(self, batch: Batch, fixed: Fixed) -> tuple[LossTerms, Output]:
        self.is_frozen = batch.progress < self.frozen_fraction
        return super().loss_terms(batch, fixed)

    def forward(self, inputs: Images, prepared: tuple[VisionTower, Prepared]) -> Output:
        learns = torch.is_grad_enabled() and not (self.training and self.is_frozen)
        with torch.set_grad_enabled(learns):
            image = self.tower(inputs, self.build_prompt(self.online))  # (B, E)
        logits = self.head(image, prepared[1])
        if not self.training:
            offline = self.head(self.tower(inputs, self.build_prompt(self.offline)), prepared[1])
            logits = torch.maximum(logits.float().log_softmax(-1), offline.float().log_softmax(-1))
        return Output(logits, image_features=image)
