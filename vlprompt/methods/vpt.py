"""VPT: Jia et al., "Visual Prompt Tuning", ECCV 2022, arXiv:2203.12119.

Learned tokens among the patches of a frozen image tower, at its first layer (shallow) or at every layer (deep, where
each layer's replace those of the layer before); a head classifies the feature: a linear head as in the paper, or the
class texts of a CLIP. Sites: soft tokens of the image tower at layer 0 or at all layers; with bias=True also the
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
from einops import repeat
from torch import Tensor, nn

from vlprompt.core.head import Head
from vlprompt.core.method import TowerMethod
from vlprompt.core.prompt import Prompt
from vlprompt.core.towers import VisionTower
from vlprompt.layers.adapters import VIT_MAP_SITES, build_bias_adapters
from vlprompt.layers.initial_values import draw_uniform, make_linear


class VPT(TowerMethod[VisionTower]):
    """Soft tokens in an image tower.

    Args:
        tower: frozen ViT.
        head: maps features to class logits: a linear head, a cosine head or a CLIP's class texts.
        n_tokens: tokens at each layer (P).
        deep: whether every layer has tokens, or the first one alone.
        dropout: on the tokens, with another mask for each image.
        token_dim: width of the tokens, which one linear map, shared by all layers, projects to the tower's width; None:
            the tower's width, without projection.
        bias: whether the frozen maps get the shifts of BitFit too.
    """

    max_vmap_images = (
        128  # measured: twice as fast at batches of 4, half as fast at 64, where one setting fills the CPU
    )

    def __init__(
        self,
        tower: VisionTower,
        head: Head,
        n_tokens: int = 10,
        deep: bool = True,
        dropout: float = 0.1,
        token_dim: int | None = None,
        bias: bool = False,
    ):
        super().__init__()
        self.tower, self.head, self.n_tokens, self.deep = tower, head, n_tokens, deep
        self.dropout, self.dropout_layer, self.token_dim, self.bias = dropout, nn.Dropout(dropout), token_dim, bias
        self.parameters_without_grad = tuple(f"shifts.{i}/k.bias" for i in range(tower.depth))

    def build(self, generator: torch.Generator) -> None:
        self.require_at_least(n_tokens=1)
        if self.token_dim is not None:
            self.require_at_least(token_dim=1)
        patch_dim, dim = self.tower.sites("patch")["patch"][0], self.token_dim or self.tower.dim
        bound = math.sqrt(6 / (patch_dim + dim))  # Xavier's, of the patch map
        shape = (self.tower.depth if self.deep else 1, 1, self.n_tokens, dim)
        self.tokens = nn.Parameter(draw_uniform(shape, -bound, bound, generator).to(self.tower.device))
        if self.token_dim is not None:
            self.projection = make_linear(dim, self.tower.dim, generator, self.tower.device)
            self.projection.weight.data.copy_(torch.randn(self.projection.weight.shape, generator=generator))
            self.projection.weight.data *= math.sqrt(2 / self.tower.dim)  # Kaiming's, of the fan-out
        if self.bias:
            self.shifts = build_bias_adapters(self.tower, VIT_MAP_SITES)

    def project_tokens(self) -> Tensor:
        """Return the tokens of each layer in the tower's width, (layers, 1, P, D)."""
        return self.tokens if self.token_dim is None else self.projection(self.tokens)

    def prompt(self, n: int) -> Prompt:
        tokens = self.project_tokens()
        if self.training and self.dropout:
            tokens = self.dropout_layer(repeat(tokens, "layers 1 p d -> layers b p d", b=n))
        return Prompt(tokens=dict(enumerate(tokens)), adapters=self.shifts if self.bias else {})
