"""LoRA: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv:2106.09685.

Frozen linear maps get a low-rank update: y = W x + scale * up(down(x)), up starting at zero; for serving it is merged
into the weights, exactly. On image towers it is a common rival of VPT. Sites: q and v as in the paper, or any
others. (CLIP-LoRA, on both towers of a CLIP, is clip_lora.)

Differs from the paper in: the first factor starts within torch's uniform bounds, as in the authors' code, and not from
a normal distribution.

Expected (VTAB-1k, ViT-B/16 of IN-21k, natural, specialised, structured): 78.26, 83.78, 56.20; FGVC 89.46 (VAPT's
table).
"""

from typing import Literal

from vlprompt.core.head import Head
from vlprompt.core.towers import AnyTower
from vlprompt.methods._low_rank import LowRankMethod


class LoRA(LowRankMethod):
    """Low-rank updates of the linear maps of an image tower or a language model.

    Args:
        tower: frozen image tower or language model.
        head: maps features to class logits.
        rank: of an update.
        alpha: an update is alpha / rank times up down x, or alpha / sqrt(rank) (`scaling`).
        sites: kinds of linear maps (q k v out up down gate patch).
        layers: indices of layers; default all.
        scaling: "alpha/r" or "alpha/sqrt(r)".
        dropout: on the input of an update.
    """

    is_mergeable = True

    def __init__(
        self,
        tower: AnyTower,
        head: Head,
        rank: int = 8,
        alpha: float = 8.0,
        sites: tuple[str, ...] = ("q", "v"),
        layers: tuple[int, ...] | None = None,
        scaling: Literal["alpha/r", "alpha/sqrt(r)"] = "alpha/r",
        dropout: float = 0.0,
    ):
        super().__init__(tower, head, rank, alpha, sites, dropout)
        self.layers, self.scaling = layers, scaling

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank if self.scaling == "alpha/r" else self.rank**0.5)

    def find_sites(self) -> dict[str, tuple[int, int]]:
        sites = {site: fans for site, fans in super().find_sites().items() if self._is_selected(site)}
        if beyond := [i for i in self.layers or () if not 0 <= i < self.tower.depth]:
            raise ValueError(
                f"method.layers: expected layers 0 to {self.tower.depth - 1} of the tower, got {beyond[0]}. Set "
                "method.layers to some of these."
            )
        return sites

    def _is_selected(self, site: str) -> bool:
        return self.layers is None or "/" not in site or int(site.split("/")[-2]) in self.layers
