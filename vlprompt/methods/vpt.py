"""VPT: Jia et al., "Visual Prompt Tuning", ECCV 2022, arXiv:2203.12119.

Learned tokens among the patches of a frozen image tower, at its first layer (shallow) or at every layer (deep, where
each layer's replace those of the layer before); a reader makes answers of the feature: a linear head as in the paper,
or the class texts of a CLIP. Sites: soft tokens of the image tower at layer 0 or at all layers; with bias=True also the
biases of BitFit, the paper's "VPT + bias".

Differs from the authors' code in: a tower that pools a mean (MAE) pools the patches and never the prompts; the dropout
of the backbone is off, as it is there; no weight decay on norms, none of which are trained. Their runs test the whole
test set after every epoch; here it is tested once. From the paper in: nothing.

Expected (VTAB-1k, ViT-B/16 of IN-21k, groups natural, specialised, structured): shallow 76.81, 79.66, 46.98; deep
78.48, 82.43, 54.98; FGVC 84.62 and 89.11 (Table 1 of the paper).
Base-to-new with class texts, ViT-B/16 CLIP, 16 shots, mean of 11 sets: base 80.24, new 73.43, harmonic mean 76.68 (the
MaPLe paper's ablation, deep image prompts).
"""

import math

import torch
from torch import Tensor, nn

from vlprompt.core.head import Reader
from vlprompt.core.method import OnTower
from vlprompt.core.prompt import Prompt
from vlprompt.core.towers import VisionTower
from vlprompt.layers.adapters import MAPS, dense, shifts, uniform


class VPT(OnTower):
    """Tokens in an image tower, and any reader.

    tower: a ViT; reader: Linear, Cosine or Texts (a CLIP's class texts); n_tokens: a layer; deep: at every layer;
    dropout: on the tokens, another mask for each image; project: the tokens are this wide and one linear map, shared by
    all layers, brings them to the tower's width (None: they are as wide); bias: also a shift beside every map.
    """

    side_by_side = 128  # measured: twice as quick at batches of 4, half as quick at 64, where one setting fills the CPU

    def __init__(self, tower: VisionTower, reader: Reader, n_tokens: int = 10, deep: bool = True, dropout: float = 0.1,
                 project: int | None = None, bias: bool = False):  # fmt: skip
        super().__init__()
        self.tower, self.reader, self.n_tokens, self.deep = tower, reader, n_tokens, deep
        self.dropout, self.drop, self.project, self.bias = dropout, nn.Dropout(dropout), project, bias
        self.dormant = tuple(f"shifts.{i}/k.bias" for i in range(tower.depth))

    def build(self, generator: torch.Generator) -> None:
        self.at_least(n_tokens=1)
        if self.project is not None:
            self.at_least(project=1)
        sites, dim = self.tower.sites("patch"), self.project or self.tower.dim
        bound = math.sqrt(6 / (sites["patch"][0] + dim))  # Xavier's, of the patch map
        shape = (self.tower.depth if self.deep else 1, 1, self.n_tokens, dim)
        self.tokens = nn.Parameter(uniform(shape, -bound, bound, generator).to(self.tower.device))
        if self.project is not None:
            self.map = dense(dim, self.tower.dim, generator, self.tower.device)
            self.map.weight.data.copy_(torch.randn(self.map.weight.shape, generator=generator))
            self.map.weight.data *= math.sqrt(2 / self.tower.dim)  # Kaiming's, of the fan-out
        if self.bias:
            self.shifts = shifts(self.tower, MAPS)

    def each(self) -> Tensor:
        """The tokens of each layer as the tower takes them, (layers, 1, P, D)."""
        return self.tokens if self.project is None else self.map(self.tokens)

    def prompt(self, images: int) -> Prompt:
        tokens = self.each()
        if self.training and self.dropout:
            tokens = self.drop(tokens.expand(-1, images, -1, -1))
        return Prompt(tokens=dict(enumerate(tokens)), beside=self.shifts if self.bias else {})
