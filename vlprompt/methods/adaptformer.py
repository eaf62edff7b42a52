"""AdaptFormer: Chen et al., NeurIPS 2022, arXiv:2205.13535.

The paper is "AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition". A scaled bottleneck runs
beside the MLP of every block, on the residual stream as it comes in, without a norm. Sites: mlp+.

Differs from the authors' code in: the head has no batch norm in front (take any reader); the last epoch is
tested, where their scripts report the best epoch on the test images. In towers with layer scale the bottleneck joins
before it, as every part here does.

Expected (FGVC, ViT-B/16 of IN-21k): 88.48 (V-PETL's table).
"""

import torch
from torch import Tensor, nn

from vlprompt.core.head import Reader
from vlprompt.core.method import OnTower
from vlprompt.core.prompt import Prompt
from vlprompt.core.towers import AnyTower
from vlprompt.layers.adapters import Bottleneck


class _Parallel(Bottleneck):
    """made + scale * bottleneck(given)."""

    scale: float

    def forward(self, given: Tensor, made: Tensor) -> Tensor:  # type: ignore[override]
        return made + self.scale * super().forward(given)


class AdaptFormer(OnTower):
    """Bottlenecks beside the MLPs of a tower; hidden: their width, scale: of what they add, dropout: inside."""

    def __init__(self, tower: AnyTower, reader: Reader, hidden: int = 64, scale: float = 0.1, dropout: float = 0.1):
        super().__init__()
        self.tower, self.reader, self.hidden, self.scale, self.dropout = tower, reader, hidden, scale, dropout

    def build(self, generator: torch.Generator) -> None:
        self.at_least(hidden=1, dropout=0)
        self.parts = nn.ModuleDict()
        for site, (_, out) in self.tower.sites("mlp+").items():
            part = _Parallel(out, self.hidden, nn.ReLU(), None, self.dropout, generator, self.tower.device)
            part.scale, self.parts[site] = self.scale, part

    def prompt(self, images: int) -> Prompt:
        return Prompt(beside=self.parts)
