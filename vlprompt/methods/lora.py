"""LoRA: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv:2106.09685.

A low-rank update stands beside frozen linear maps: y = W x + scale * up(down(x)), up starting at zero; for serving it
goes into the weights, exactly. On image towers it is a common rival of VPT. Sites: q and v as in the paper, or any
others. (CLIP-LoRA, on both towers of a CLIP, is clip_lora.)

Differs from the paper in: the first factor starts within torch's uniform bounds, as in the authors' code, and not from
a normal distribution.

Expected (VTAB-1k, ViT-B/16 of IN-21k, natural, specialised, structured): 78.26, 83.78, 56.20; FGVC 89.46 (VAPT's
table).
"""

from typing import Literal

import torch
from torch import nn

from vlprompt.core.head import Reader
from vlprompt.core.method import OnTower
from vlprompt.core.prompt import Prompt
from vlprompt.core.towers import AnyTower
from vlprompt.layers.adapters import LowRank


class LoRA(OnTower):
    """Low-rank updates beside the linear maps of an image tower or a language model.

    sites: kinds of maps (q k v out up down gate patch); layers: which, None for all; rank: of an update; alpha: an
    update is alpha / rank times up down x, or alpha / sqrt(rank) (scaling); dropout: on its input.
    """

    merges = True

    def __init__(
        self,
        tower: AnyTower,
        reader: Reader,
        rank: int = 8,
        alpha: float = 8.0,
        sites: tuple[str, ...] = ("q", "v"),
        layers: tuple[int, ...] | None = None,
        scaling: Literal["alpha/r", "alpha/sqrt(r)"] = "alpha/r",
        dropout: float = 0.0,
    ):
        super().__init__()
        self.tower, self.reader, self.rank, self.alpha, self.sites = tower, reader, rank, alpha, tuple(sites)
        self.layers, self.scaling, self.dropout = layers, scaling, dropout

    def build(self, generator: torch.Generator) -> None:
        self.at_least(rank=1, dropout=0)
        if norms := [site for site in self.sites if not site.isalpha() or site in ("attn", "mlp", "norm")]:
            raise ValueError(
                f"method.sites names {norms[0]!r}, which is no linear map: take q k v out up down or patch"
            )
        scale = self.alpha / (self.rank if self.scaling == "alpha/r" else self.rank**0.5)
        found = {site: fans for site, fans in self.tower.sites(*self.sites).items() if self._wanted(site)}
        if beyond := [i for i in self.layers or () if not 0 <= i < self.tower.depth]:
            raise ValueError(f"method.layers has {beyond[0]}, but the tower has layers 0 to {self.tower.depth - 1}")
        make = lambda fans: LowRank(fans, self.rank, scale, self.dropout, generator, self.tower.device)  # noqa: E731
        self.parts = nn.ModuleDict({site: make(fans) for site, fans in found.items()})

    def _wanted(self, site: str) -> bool:
        return self.layers is None or "/" not in site or int(site.split("/")[-2]) in self.layers

    def prompt(self, images: int) -> Prompt:
        return Prompt(beside=self.parts)
