"""Partial-k: fine-tuning the last k blocks: Yosinski et al., "How transferable are features", NeurIPS 2014.

arXiv:1411.1792. A baseline of VPT (arXiv:2203.12119): the last k blocks of the tower and its last norm are trained,
with a head. Sites: none; what the blocks below give is kept (605 kB an
image for a ViT-B/16), so up to 3500 images it is computed once.

Differs from the authors' code in: the last norm is trained on every tower (there a wrong name keeps it frozen on MAE
and MoCo-v3); weight decay is what train.weight_decay says, on matrices (there AdamW's is 0.01 whatever was searched,
on norms too).

Expected (VTAB-1k, ViT-B/16 of IN-21k, natural, specialised, structured): 69.44, 78.53, 34.17; FGVC 82.63 (Table 1 of
VPT, Partial-1).
"""

import torch
from torch import Tensor

from vlprompt.core.head import Reader
from vlprompt.core.images import Images
from vlprompt.core.method import OnTower
from vlprompt.core.towers import VisionTower


class Partial(OnTower):
    """The last `blocks` blocks of an image tower, trained."""

    def __init__(self, tower: VisionTower, reader: Reader, blocks: int = 1):
        super().__init__()
        self.tower, self.reader, self.blocks = tower, reader, blocks

    def build(self, generator: torch.Generator) -> None:
        self.at_least(blocks=1)
        if self.blocks > self.tower.depth > 0:
            raise ValueError(f"method.blocks is {self.blocks}, but the tower has {self.tower.depth} blocks")
        self.below, self.upper = self.tower.cut(self.blocks)

    def features(self, inputs: Images, tower: VisionTower) -> Tensor:
        return self.upper(self.below(inputs))
