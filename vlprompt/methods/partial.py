"""Partial-k: fine-tuning the last k blocks: Yosinski et al., "How transferable are features", NeurIPS 2014.

arXiv:1411.1792. A baseline of VPT (arXiv:2203.12119): the last k blocks of the tower and its last norm are trained,
with a head. Sites: none; the output of the blocks below is cached (605 kB an image for a ViT-B/16), so up to 3500
images it is computed once.

Differs from the authors' code in: the last norm is trained on every tower (there a wrong name leaves it frozen on MAE
and MoCo-v3); weight decay is train.weight_decay, on matrices (there AdamW's is 0.01 whatever was searched, on norms
too).

Expected (VTAB-1k, ViT-B/16 of IN-21k, natural, specialised, structured): 69.44, 78.53, 34.17; FGVC 82.63 (Table 1 of
VPT, Partial-1).
"""

from typing import Protocol, cast

import torch
from torch import Tensor

from vlprompt.core.head import Head
from vlprompt.core.images import Images
from vlprompt.core.method import TowerMethod
from vlprompt.core.towers import VisionTower


class _TrainedBlocks(Protocol):
    def as_whole_tower(self) -> VisionTower: ...


class Partial(TowerMethod[VisionTower]):
    """The last blocks of an image tower, trained.

    Args:
        tower: image tower; only a copy of its last blocks is trained.
        head: maps features to class logits.
        n_blocks: number of trained blocks (k).
    """

    def __init__(self, tower: VisionTower, head: Head, n_blocks: int = 1):
        super().__init__()
        self.tower, self.head, self.n_blocks = tower, head, n_blocks

    def build(self, generator: torch.Generator) -> None:
        self.require_at_least(n_blocks=1)
        if self.n_blocks > self.tower.depth > 0:
            raise ValueError(
                f"method.n_blocks: expected at most {self.tower.depth}, the blocks of the tower, got {self.n_blocks}. "
                "Lower method.n_blocks."
            )
        self.lower, self.upper = self.tower.split_at(self.n_blocks)

    def merge_backbone(self) -> VisionTower:
        return cast(_TrainedBlocks, self.upper).as_whole_tower()

    def compute_features(self, inputs: Images, tower: VisionTower) -> Tensor:
        return self.upper(self.lower(inputs))
