"""MLP-k: a perceptron of k layers on the frozen feature, a baseline of Jia et al., ECCV 2022, arXiv:2203.12119.

k - 1 times a linear map as wide as the feature, ReLU, batch norm and dropout, then a linear head; k = 3 in the paper's
tables. Sites: none; the frozen features are computed once.

Differs from the authors' code in: the hidden maps start with torch's usual bounds.

Expected (VTAB-1k, ViT-B/16 of IN-21k, natural, specialised, structured): 67.80, 72.83, 30.62; FGVC 79.80 (Table 1 of
the paper, MLP-3).
"""

import torch
from torch import Tensor, nn

from vlprompt.core.batch import Inputs
from vlprompt.core.head import Head
from vlprompt.core.method import TowerMethod
from vlprompt.core.towers import AnyTower
from vlprompt.layers.initial_values import make_linear


class MLP(TowerMethod[AnyTower]):
    """A perceptron on the frozen feature.

    Args:
        tower: frozen image tower or language model.
        head: the last layer.
        n_layers: number of layers (k), the head included.
        dropout: after each hidden layer.
    """

    needs_whole_batch, max_vmap_images = True, 10**6

    def __init__(self, tower: AnyTower, head: Head, n_layers: int = 3, dropout: float = 0.1):
        super().__init__()
        self.tower, self.head, self.n_layers, self.dropout = tower, head, n_layers, dropout

    def build(self, generator: torch.Generator) -> None:
        self.require_at_least(n_layers=1, dropout=0)
        e, device = self.tower.feature_dim, self.tower.device
        self.hidden_layers = nn.Sequential()
        for _ in range(self.n_layers - 1):
            linear, norm = make_linear(e, e, generator, device), nn.BatchNorm1d(e, device=device)
            self.hidden_layers.extend([linear, nn.ReLU(), norm, nn.Dropout(self.dropout)])

    def compute_features(self, inputs: Inputs, tower: AnyTower) -> Tensor:
        if self.training and len(inputs) == 1 and self.n_layers > 1:
            raise ValueError(
                "train.batch_size: expected batches of at least 2 images, because batch norm normalises over a batch, "
                "got a batch of 1. Set another train.batch_size, or train.drop_last=true."
            )
        return self.hidden_layers(tower(self.prepare_inputs(inputs), output=self.head.output))
