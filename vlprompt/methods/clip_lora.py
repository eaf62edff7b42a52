"""CLIP-LoRA: Zanella and Ben Ayed, "Low-Rank Few-Shot Adaptation of Vision-Language Models", CVPR workshops 2024.

arXiv:2405.18541. Low-rank updates of the frozen maps of attention, in both towers, with the same hyper-parameters
for every dataset; class texts are hand-written. Sites: q, k, v (or any others) of the layers of both towers.

Differs from the authors' code in: the gradients of its path without dropout, which are wrong there, are right here; the
scale of the logits is the CLIP's own (100 for published ones); float32. From the paper in: nothing.

Expected (few-shot, ViT-B/16, 16 shots, mean of 11 sets): about 83.0, read off the authors' plot.
"""

import math

from torch import Generator, nn

from vlprompt.core.class_names import DEFAULT_TEMPLATE
from vlprompt.core.towers import Clip, TextTower
from vlprompt.layers.adapters import LowRankAdapter
from vlprompt.layers.class_texts import TemplateChoice
from vlprompt.methods._clip_adapters import ClipAdapterMethod, TowerName
from vlprompt.methods._low_rank import require_linear_sites


class CLIPLoRA(ClipAdapterMethod):
    """Low-rank updates in the towers of a CLIP.

    Args:
        clip: frozen CLIP.
        towers: "image", "text" or both.
        sites: kinds of linear maps (q k v out up down ...).
        layers: indices of layers; default all.
        rank: of an update.
        alpha: an update is alpha / sqrt(rank) times up down x.
        dropout: on the input of an update.
        logit_scale: of the logits; default the CLIP's own.
        template: of the class texts; default one for every dataset, as in the paper; None: the dataset's own.
    """

    def __init__(
        self,
        clip: Clip,
        towers: tuple[TowerName, ...] = ("image", "text"),
        sites: tuple[str, ...] = ("q", "k", "v"),
        layers: tuple[int, ...] | None = None,
        rank: int = 2,
        alpha: float = 1.0,
        dropout: float = 0.25,
        logit_scale: float | None = None,
        template: TemplateChoice = DEFAULT_TEMPLATE,
    ):
        super().__init__(clip, towers, sites, layers, logit_scale, template)
        self.rank, self.alpha, self.dropout = rank, alpha, dropout

    def validate(self) -> None:
        self.require_at_least(rank=1, dropout=0)
        require_linear_sites(self.sites)

    def build_adapter(self, tower: TextTower, site: str, fans: tuple[int, int], generator: Generator) -> nn.Module:
        scale = self.alpha / math.sqrt(self.rank)
        return LowRankAdapter(fans, self.rank, scale, self.dropout, generator, self.clip.device)
