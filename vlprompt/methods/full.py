"""Full fine-tuning: every weight of the image tower is trained, with a head.

The baseline of VPT (Jia et al., ECCV 2022, arXiv:2203.12119), and the one method whose state is as large as the tower.
Sites: none; it trains `tower.copy()`.

Differs from the authors' code in: weight decay is what train.weight_decay says, on matrices (there AdamW's is 0.01
whatever was searched, on norms too, and 0 turns the optimizer into SGD); no dropout in the backbone (0.1 there); on
other towers than theirs, attention pools (SigLIP, CoCa) stay frozen.

Expected (VTAB-1k, ViT-B/16 of IN-21k, natural, specialised, structured): 75.88, 83.36, 47.64; FGVC 88.54 (Table 1 of
VPT).
"""

from typing import Any

import torch
from torch import Tensor

from vlprompt.core.head import Reader
from vlprompt.core.method import OnTower
from vlprompt.core.towers import AnyTower, LanguageTower
from vlprompt.layers.verbalizers import Response, Words


class Full(OnTower):
    """A trainable copy of an image tower or a language model, and any reader."""

    def __init__(self, tower: AnyTower, reader: Reader):
        super().__init__()
        self.tower, self.reader = tower, reader

    def build(self, generator: torch.Generator) -> None:
        self.copy = self.tower.copy()
        if isinstance(self.reader, Words | Response):  # the words of a model that is trained are its own
            self.reader.lm = self.copy.tower

    def features(self, inputs: Any, tower: AnyTower) -> Tensor:
        if isinstance(tower, LanguageTower):
            return self.copy(self.shown(inputs), read=self.reader.read)
        return self.copy(inputs.pixels(tower.look).to(tower.device))

    def write(self, inputs: Any, **settings: Any) -> list[str]:
        """What the trained copy writes."""
        return self.copy.tower.generate(self.shown(inputs), **settings)
