"""BitFit: Ben Zaken et al., "BitFit: Simple Parameter-efficient Fine-tuning", ACL 2022, arXiv:2106.10199.

Only biases are trained: a shift stands beside every frozen map, which is the same as training the map's bias. It is
the row "Bias" of VPT's tables (arXiv:2203.12119), where the code calls it TinyTL. Sites: patch, norm and, per layer,
norm1 q k v out norm2 up down.

Differs from the paper in: a map that has no bias gets one; the gates of gated MLPs and CLIP's first norm get none;
there is no weight decay on shifts (VPT's code has none on biases either). A shift of k changes no answer (the softmax
takes it away), so it gets no gradient.

Expected (VTAB-1k, ViT-B/16 of IN-21k, natural, specialised, structured): 73.30, 78.25, 44.09; FGVC 88.41 (Table 1 of
VPT).
"""

import torch

from vlprompt.core.head import Reader
from vlprompt.core.method import OnTower
from vlprompt.core.prompt import Prompt
from vlprompt.core.towers import AnyTower
from vlprompt.layers.adapters import shifts


class BitFit(OnTower):
    """A trained shift beside the maps of an image tower or a language model; `sites`: kinds of them, default all."""

    merges = True

    def __init__(self, tower: AnyTower, reader: Reader, sites: tuple[str, ...] | None = None):
        super().__init__()
        self.tower, self.reader, self.sites = tower, reader, None if sites is None else tuple(sites)
        self.dormant = tuple(f"shifts.{i}/k.bias" for i in getattr(tower, "layers", range(tower.depth)))

    def build(self, generator: torch.Generator) -> None:
        self.shifts = shifts(self.tower, self.sites)

    def prompt(self, images: int) -> Prompt:
        return Prompt(beside=self.shifts)
