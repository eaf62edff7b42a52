"""Full fine-tuning: every weight of the image tower is trained, with a head.

The baseline of VPT (Jia et al., ECCV 2022, arXiv:2203.12119), and the one method whose state is as large as the tower.
Sites: none; it trains `tower.copy()`.

Differs from the authors' code in: weight decay is what train.weight_decay says, on matrices (there AdamW's is 0.01
whatever was searched, on norms too, and 0 turns the optimizer into SGD); no dropout in the backbone (0.1 there); on
other towers than theirs, attention pools (SigLIP, CoCa) stay frozen.

Expected (VTAB-1k, ViT-B/16 of IN-21k, natural, specialised, structured): 75.88, 83.36, 47.64; FGVC 88.54 (Table 1 of
VPT).
"""

import torch
from torch import Tensor

from vlprompt.method import OnTower
from vlprompt.readers import Reader
from vlprompt.stage import Images
from vlprompt.vision import VisionTower


class Full(OnTower):
    """A trainable copy of an image tower, and any reader."""

    def __init__(self, tower: VisionTower, reader: Reader):
        super().__init__()
        self.tower, self.reader = tower, reader

    def build(self, generator: torch.Generator) -> None:
        self.copy = self.tower.copy()

    def features(self, inputs: Images, tower: VisionTower) -> Tensor:
        return self.copy(inputs.pixels(tower.look).to(tower.device))
