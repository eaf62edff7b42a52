"""SSF: Lian et al., "Scaling & Shifting Your Features", NeurIPS 2022, arXiv:2210.08823.

What every frozen map gave is scaled and shifted, y = scale * x + shift, per channel; for serving both go into the
weights, exactly. Sites: patch, norm and, per layer, norm1 q k v out norm2 up down.

Differs from the authors' code in: nothing that is computed on their ViT (scales and shifts have no weight decay, as
there); q, k and v have vectors of their own, which there are one of three times the width; the gates of gated MLPs and
CLIP's first norm are left as they are. Their scripts choose the epoch that is best on the test images; the last one is
tested here.

Expected (FGVC, ViT-B/16 augreg of IN-21k): 90.72 (V-PETL's table). CIFAR-100, all training images: 93.99, the best
epoch on the test images (the authors' log).
"""

import torch
from torch import Tensor, nn

from vlprompt.core.head import Reader
from vlprompt.core.method import OnTower
from vlprompt.core.prompt import Prompt
from vlprompt.core.towers import AnyTower
from vlprompt.layers.adapters import maps_of


class _ScaleShift(nn.Module):
    """made * scale + shift, each (fan_out,); drawn around 1 and 0."""

    def __init__(self, width: int, generator: torch.Generator, device: torch.device):
        super().__init__()
        self.scale, self.shift = (
            nn.Parameter((centre + 0.02 * torch.randn(width, generator=generator)).to(device)) for centre in (1, 0)
        )

    def forward(self, given: Tensor, made: Tensor) -> Tensor:
        return torch.addcmul(self.shift, made, self.scale)

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        scaled = weight * (self.scale[:, None] if weight.ndim == 2 else self.scale)
        return scaled, self.shift if bias is None else torch.addcmul(self.shift, bias, self.scale)


class SSF(OnTower):
    """Scales and shifts beside the maps of an image tower or a language model; `sites`: kinds of them, default all."""

    merges = True

    def __init__(self, tower: AnyTower, reader: Reader, sites: tuple[str, ...] | None = None):
        super().__init__()
        self.tower, self.reader, self.sites = tower, reader, None if sites is None else tuple(sites)
        self.dormant = tuple(f"parts.{i}/k.shift" for i in getattr(tower, "layers", range(tower.depth)))

    def build(self, generator: torch.Generator) -> None:
        found, device = maps_of(self.tower, self.sites), self.tower.device
        self.parts = nn.ModuleDict({site: _ScaleShift(out, generator, device) for site, (_, out) in found.items()})

    def prompt(self, images: int) -> Prompt:
        return Prompt(beside=self.parts)
