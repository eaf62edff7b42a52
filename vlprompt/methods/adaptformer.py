"""AdaptFormer: Chen et al., NeurIPS 2022, arXiv:2205.13535.

The paper is "AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition". A scaled bottleneck runs
in parallel to the MLP of every block, on the residual stream as it comes in, without a norm. Sites: mlp+.

Differs from the authors' code in: the head has no batch norm in front (choose any head); the last epoch is
tested, where their scripts report the best epoch on the test images. In towers with layer scale the bottleneck joins
before it, as every adapter here does.

Expected (FGVC, ViT-B/16 of IN-21k): 88.48 (V-PETL's table).
"""

import torch
from torch import nn

from vlprompt.core.head import Head
from vlprompt.core.method import TowerMethod
from vlprompt.core.prompt import Prompt
from vlprompt.core.towers import AnyTower
from vlprompt.layers.adapters import ParallelBottleneck


class AdaptFormer(TowerMethod[AnyTower]):
    """Bottlenecks parallel to the MLPs of a tower.

    Args:
        tower: frozen image tower or language model.
        head: maps features to class logits.
        bottleneck_dim: width of the bottlenecks.
        scale: factor of what they add.
        dropout: inside the bottlenecks.
    """

    def __init__(self, tower: AnyTower, head: Head, bottleneck_dim: int = 64, scale: float = 0.1, dropout: float = 0.1):
        super().__init__()
        self.tower, self.head, self.bottleneck_dim = tower, head, bottleneck_dim
        self.scale, self.dropout = scale, dropout

    def build(self, generator: torch.Generator) -> None:
        self.require_at_least(bottleneck_dim=1, dropout=0)
        options = (self.bottleneck_dim, nn.ReLU(), None, self.dropout, generator, self.tower.device)
        sites = self.tower.sites("mlp+")
        self.adapters = nn.ModuleDict(
            {site: ParallelBottleneck(self.scale, d, *options) for site, (_, d) in sites.items()}
        )

    def prompt(self, n: int) -> Prompt:
        return Prompt(adapters=self.adapters)
