"""CLIP-SVD: Koleilat, Rivaz and Xiao, "Singular Value Few-shot Adaptation of Vision-Language Models", 2025.

arXiv:2509.03740. The frozen maps of both towers are factored, W = U diag(S) V', and the singular values S alone are
trained: 92,160 numbers of ViT-B/16, which merge into the weights exactly. Sites: q, k, v, out, up, down of the layers
of both towers.

Differs from the authors' code in: the factors are computed in float64 (theirs in float32, where the vectors of near
equal singular values turn); they come from the backbone and are not saved; the scale of the logits is the CLIP's own
(100 for OpenAI's, which theirs writes in); all layers are trained (theirs a literal 0 to 11, half of a ViT-L/14);
float32. Weight decay pulls S towards zero, not towards its start, as there. From the paper in: nothing.

Expected (ViT-B/16, mean of 11 sets): few-shot 73.20 76.06 78.18 80.55 82.97 at 1 2 4 8 16 shots; base-to-new, 16
shots: base 84.38, new 76.29, harmonic mean 80.13.
"""

import torch
from torch import Generator, Tensor, nn

from vlprompt.core.towers import Clip, TextTower, WeightedMap
from vlprompt.layers.class_texts import TemplateChoice
from vlprompt.layers.weight_merging import replace_weights
from vlprompt.methods._clip_adapters import ClipAdapterMethod, TowerName
from vlprompt.methods._low_rank import require_linear_sites


class _SingularValues(nn.Module):
    """A frozen linear map with other singular values, (min(fan_in, fan_out),), the largest first."""

    u: Tensor
    start: Tensor
    vh: Tensor

    def __init__(self, frozen: WeightedMap):
        super().__init__()
        factors = torch.linalg.svd(frozen.weight.detach().double(), full_matrices=False)
        for name, factor in zip(("u", "start", "vh"), factors, strict=True):
            self.register_buffer(name, factor.to(frozen.weight.dtype), persistent=False)
        self.frozen, self.values = (frozen,), nn.Parameter(self.start.clone())

    def forward(self, given: Tensor, made: Tensor) -> Tensor:
        [frozen] = self.frozen
        return replace_weights(frozen, *self.merge(frozen.weight, frozen.bias))(given)

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + (self.u * (self.values - self.start)) @ self.vh, bias


class CLIPSVD(ClipAdapterMethod):
    """Trained singular values of the frozen maps of a CLIP.

    Args:
        clip: frozen CLIP.
        towers: "image", "text" or both.
        sites: kinds of linear maps (q k v out up down ...).
        layers: indices of layers; default all.
        logit_scale: of the logits; default the CLIP's own.
        template: of the class texts; default the dataset's own.
    """

    def __init__(
        self,
        clip: Clip,
        towers: tuple[TowerName, ...] = ("image", "text"),
        sites: tuple[str, ...] = ("q", "k", "v", "out", "up", "down"),
        layers: tuple[int, ...] | None = None,
        logit_scale: float | None = None,
        template: TemplateChoice = None,
    ):
        super().__init__(clip, towers, sites, layers, logit_scale, template)

    def validate(self) -> None:
        require_linear_sites(self.sites)

    def build_adapter(self, tower: TextTower, site: str, fans: tuple[int, int], generator: Generator) -> nn.Module:
        return _SingularValues(tower.frozen_map(site))
