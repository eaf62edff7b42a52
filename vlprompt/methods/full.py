"""Full fine-tuning: every weight of an image tower or a language model is trained, with a head.

The baseline of VPT (Jia et al., ECCV 2022, arXiv:2203.12119), and the one method whose state is as large as the tower.
Sites: none; it trains `tower.trainable_copy()`.

Differs from the authors' code in: weight decay is train.weight_decay, on matrices (there AdamW's is 0.01 whatever was
searched, on norms too, and 0 turns the optimizer into SGD); no dropout in the backbone (0.1 there); on other towers
than theirs, attention pools (SigLIP, CoCa) stay frozen.

Expected (VTAB-1k, ViT-B/16 of IN-21k, natural, specialised, structured): 75.88, 83.36, 47.64; FGVC 88.54 (Table 1 of
VPT).
"""

from typing import Protocol, cast

import torch
from torch import Tensor

from vlprompt.core.batch import Inputs
from vlprompt.core.head import Head
from vlprompt.core.method import TowerMethod
from vlprompt.core.prompt import NOTHING
from vlprompt.core.towers import AnyTower, LanguageTower, VisionTower
from vlprompt.layers.verbalizers import ResponseHead, Verbalizer


class _TrainedTower(Protocol):
    def as_whole_tower(self) -> VisionTower: ...


class Full(TowerMethod[AnyTower]):
    """A trainable copy of an image tower or a language model.

    Args:
        tower: image tower or language model; only its copy is trained.
        head: maps features to class logits.
    """

    def __init__(self, tower: AnyTower, head: Head):
        super().__init__()
        self.tower, self.head = tower, head

    def build(self, generator: torch.Generator) -> None:
        self.trained_tower = self.tower.trainable_copy()
        if isinstance(self.head, Verbalizer | ResponseHead):  # it reads the vocabulary of the trained copy
            self.head.lm = self.trained_lm

    @property
    def trained_lm(self) -> LanguageTower:
        """The trained copy of a language model."""
        return cast(LanguageTower, self.trained_tower.tower)

    def compute_features(self, inputs: Inputs, tower: AnyTower) -> Tensor:
        if isinstance(tower, LanguageTower):
            return self.trained_tower(self.prepare_inputs(inputs), output=self.head.output)
        return self.trained_tower(inputs.pixels(tower.preprocessing).to(tower.device))

    def merge_backbone(self) -> AnyTower:
        return (
            self.trained_lm
            if isinstance(self.tower, LanguageTower)
            else cast(_TrainedTower, self.trained_tower).as_whole_tower()
        )

    def generate(self, inputs: Inputs, **settings: object) -> list[str]:
        """Generate with the trained copy."""
        return self.trained_lm.generate(self.prepare_inputs(inputs), NOTHING, **settings)
