"""MLP-k: a perceptron of k layers on the frozen feature, a baseline of Jia et al., ECCV 2022, arXiv:2203.12119.

k - 1 times a linear map as wide as the feature, ReLU, batch norm and dropout, then a linear head; k = 3 in the paper's
tables. Sites: none; the frozen features are computed once.

Differs from the authors' code in: the hidden maps start with torch's usual bounds.

Expected (VTAB-1k, ViT-B/16 of IN-21k, natural, specialised, structured): 67.80, 72.83, 30.62; FGVC 79.80 (Table 1 of
the paper, MLP-3).
"""

from typing import Any

import torch
from torch import Tensor, nn

from vlprompt.core.head import Reader
from vlprompt.core.method import OnTower
from vlprompt.core.towers import AnyTower
from vlprompt.layers.adapters import dense


class MLP(OnTower):
    """A perceptron on the image feature; layers: k, the head included; dropout: after each hidden layer."""

    whole_batch, side_by_side = True, 10**6

    def __init__(self, tower: AnyTower, reader: Reader, layers: int = 3, dropout: float = 0.1):
        super().__init__()
        self.tower, self.reader, self.layers, self.dropout = tower, reader, layers, dropout

    def build(self, generator: torch.Generator) -> None:
        self.at_least(layers=1, dropout=0)
        e, device = self.tower.width, self.tower.device
        self.hidden = nn.Sequential()
        for _ in range(self.layers - 1):
            self.hidden.extend([dense(e, e, generator, device), nn.ReLU(), nn.BatchNorm1d(e, device=device)])
            self.hidden.append(nn.Dropout(self.dropout))

    def features(self, inputs: Any, tower: AnyTower) -> Tensor:
        if self.training and len(inputs) == 1 and self.layers > 1:
            raise ValueError(
                "a batch of one image has nothing to normalise over: set another train.batch, or train.drop_last=true"
            )
        return self.hidden(tower(self.shown(inputs), read=self.reader.read))
