"""SSF: Lian et al., "Scaling & Shifting Your Features", NeurIPS 2022, arXiv:2210.08823.

The output of every frozen map is scaled and shifted, y = scale * x + shift, per channel; for serving both are merged
into the weights, exactly. Sites: patch, norm and, per layer, norm1 q k v out norm2 up down.

Differs from the authors' code in: nothing that is computed on their ViT (scales and shifts have no weight decay, as
there); q, k and v have separate vectors, which there are one of three times the width; in image towers the gates of
gated MLPs and CLIP's first norm are left unchanged (a language model's gates are scaled too). Their scripts choose the
epoch that is best on the test images; the last one is tested here.

Expected (FGVC, ViT-B/16 augreg of IN-21k): 90.72 (V-PETL's table). CIFAR-100, all training images: 93.99, the best
epoch on the test images (the authors' log).
"""

import torch
from torch import Tensor, nn

from vlprompt.core.head import Head
from vlprompt.core.method import TowerMethod
from vlprompt.core.prompt import Prompt
from vlprompt.core.towers import AnyTower
from vlprompt.layers.adapters import find_map_sites


class _ScaleShift(nn.Module):
    """outputs * scale + shift, each (fan_out,), initialised around 1 and 0."""

    def __init__(self, width: int, generator: torch.Generator, device: torch.device):
        super().__init__()
        self.scale, self.shift = (
            nn.Parameter((centre + 0.02 * torch.randn(width, generator=generator)).to(device)) for centre in (1, 0)
        )

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        return torch.addcmul(self.shift, outputs, self.scale)

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        scaled = weight * (self.scale[:, None] if weight.ndim == 2 else self.scale)
        return scaled, self.shift if bias is None else torch.addcmul(self.shift, bias, self.scale)


class SSF(TowerMethod[AnyTower]):
    """Scales and shifts of the outputs of frozen linear maps and norms.

    Args:
        tower: frozen image tower or language model.
        head: maps features to class logits.
        sites: kinds of sites that are scaled and shifted; default all.
    """

    is_mergeable = True

    def __init__(self, tower: AnyTower, head: Head, sites: tuple[str, ...] | None = None):
        super().__init__()
        self.tower, self.head, self.sites = tower, head, None if sites is None else tuple(sites)
        layers = getattr(tower, "prefix_layers", range(tower.depth))
        self.parameters_without_grad = tuple(f"adapters.{i}/k.shift" for i in layers)

    def build(self, generator: torch.Generator) -> None:
        sites, device = find_map_sites(self.tower, self.sites), self.tower.device
        self.adapters = nn.ModuleDict({site: _ScaleShift(d, generator, device) for site, (_, d) in sites.items()})

    def prompt(self, n: int) -> Prompt:
        return Prompt(adapters=self.adapters)
