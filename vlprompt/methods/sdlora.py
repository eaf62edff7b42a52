"""SD-LoRA: Wu et al., ICLR 2025, arXiv:2501.13198.

The paper is "SD-LoRA: Scalable Decoupled Low-Rank Adaptation for Class Incremental Learning". Each lesson adds a
low-rank direction to the weights; directions of earlier lessons are frozen at unit length, and only their magnitudes,
one for each lesson in all layers, are trained on. No image is stored, and no lesson is chosen at test. Sites: q and v
of every layer of the image tower, or any other linear maps; merged into the weights for tests. Use: streams.

Differs from the authors' code in: magnitudes that were learned go on, as in the paper (there all of them begin
anew at 0.8 in each lesson: keep_magnitudes=False); any number of lessons (there 20 at most); a direction that was
never trained (a lesson of one class) stays zero (there 0 / 0). As there, the newest direction has its own length, in
tests too, so that a lesson's function changes where the next one begins, and the term for orthogonality that the code
computes is not in the loss.

Its state grows by 4 rank (fan_in + fan_out) bytes for each map and lesson: 1.5 MB a lesson on a ViT-B/16.

Expected (class-incremental, ViT-B/16 of IN-1k, final and average accuracy, with magnitudes anew): ImageNet-R of 5, 10,
20 79.15/83.01, 77.34/82.04, 75.26/80.22; ImageNet-A 55.96/64.95; DomainNet 72.82/78.89 (the paper); CIFAR-100
87.26/92.05 (the authors' log).
"""

from typing import cast

import torch
from torch import Generator, Tensor, nn

from vlprompt.core.head import Head
from vlprompt.core.method import TowerMethod
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import VisionTower
from vlprompt.layers.initial_values import draw_uniform
from vlprompt.methods._low_rank import LowRankUpdate, require_linear_sites


class _Directions(nn.Module):
    """The low-rank directions of a map, one of each lesson, of which the last is trained."""

    def __init__(self, fans: tuple[int, int]):
        super().__init__()
        self.fans, self.downs, self.ups = fans, nn.ParameterList(), nn.ParameterList()

    def add(self, rank: int, generator: Generator, device: torch.device) -> None:
        """Freeze what was learned, and add a direction, which starts at zero."""
        (fan_in, fan_out), bound = self.fans, self.fans[0] ** -0.5
        self.requires_grad_(False)
        self.downs.append(nn.Parameter(draw_uniform((rank, fan_in), -bound, bound, generator).to(device)))
        self.ups.append(nn.Parameter(torch.zeros(fan_out, rank, device=device)))

    def scale(self, magnitudes: Tensor) -> LowRankUpdate:
        """Return the update of the map with a magnitude (T,) for each direction, all but the last of unit length."""
        lengths = [down.norm() * up.norm() for down, up in zip(self.downs[:-1], self.ups[:-1], strict=True)]
        factors = magnitudes / torch.stack([*lengths, magnitudes.new_ones(())]).clamp(min=1e-12)
        ups = torch.cat([factor * up for factor, up in zip(factors, self.ups, strict=True)], 1)
        return LowRankUpdate(torch.cat(list(self.downs)), ups)


class SDLoRA(TowerMethod[VisionTower]):
    """Low-rank directions of each lesson and their magnitudes.

    Args:
        tower: frozen image tower.
        head: maps features to class logits.
        rank: of a direction.
        magnitude: of a direction at first.
        keep_magnitudes: whether a lesson begins with what earlier ones learned of magnitudes.
        sites: kinds of linear maps (q k v out up down).
    """

    is_mergeable = True

    def __init__(
        self,
        tower: VisionTower,
        head: Head,
        rank: int = 10,
        magnitude: float = 0.8,
        keep_magnitudes: bool = True,
        sites: tuple[str, ...] = ("q", "v"),
    ):
        super().__init__()
        self.tower, self.head, self.rank, self.magnitude = tower, head, rank, magnitude
        self.keep_magnitudes, self.sites = keep_magnitudes, tuple(sites)

    def begin_lesson(self, lesson: Lesson, generator: Generator) -> None:
        self.require_at_least(rank=1)
        require_linear_sites(self.sites)
        super().begin_lesson(lesson, generator)
        if lesson.index:
            self.add_direction(generator)

    def build(self, generator: Generator) -> None:
        self.directions = nn.ModuleDict({site: _Directions(f) for site, f in self.tower.sites(*self.sites).items()})
        self.magnitudes = nn.ParameterList()
        self.add_direction(generator)

    def add_direction(self, generator: Generator) -> None:
        """Add a direction to every map, and its magnitude."""
        for directions in self.directions.values():
            cast(_Directions, directions).add(self.rank, generator, self.tower.device)
        if not self.keep_magnitudes:
            for magnitude in self.magnitudes:
                magnitude.data.fill_(self.magnitude)
        self.magnitudes.append(nn.Parameter(torch.tensor(self.magnitude, device=self.tower.device)))

    def prompt(self, n: int) -> Prompt:
        magnitudes = torch.stack(list(self.magnitudes))  # (T,)
        return Prompt(adapters={s: cast(_Directions, d).scale(magnitudes) for s, d in self.directions.items()})
