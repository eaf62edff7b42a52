"""BitFit: Ben Zaken et al., "BitFit: Simple Parameter-efficient Fine-tuning", ACL 2022, arXiv:2106.10199.

Only biases are trained: the output of every frozen map gets a shift, which is the same as training its bias. It is the
row "Bias" of VPT's tables (arXiv:2203.12119), where the code calls it TinyTL. Sites: patch, norm and, per layer, norm1
q k v out norm2 up down.

Differs from the paper in: in image towers a map that has no bias gets one, and the gates of gated MLPs and CLIP's first
norm get none (in language models, just the maps that have a bias get a shift, gates too); there is no weight decay on
shifts (VPT's code has none on biases either). A shift of k changes no answer (the softmax cancels it), so it gets no
gradient.

Expected (VTAB-1k, ViT-B/16 of IN-21k, natural, specialised, structured): 73.30, 78.25, 44.09; FGVC 88.41 (Table 1 of
VPT).
"""

import torch

from vlprompt.core.head import Head
from vlprompt.core.method import TowerMethod
from vlprompt.core.prompt import Prompt
from vlprompt.core.towers import AnyTower
from vlprompt.layers.adapters import build_bias_adapters


class BitFit(TowerMethod[AnyTower]):
    """A trained shift of the outputs of frozen linear maps and norms.

    Args:
        tower: frozen image tower or language model.
        head: maps features to class logits.
        sites: kinds of sites that get a shift; default all.
    """

    is_mergeable = True

    def __init__(self, tower: AnyTower, head: Head, sites: tuple[str, ...] | None = None):
        super().__init__()
        self.tower, self.head, self.sites = tower, head, None if sites is None else tuple(sites)
        layers = getattr(tower, "prefix_layers", range(tower.depth))
        self.parameters_without_grad = tuple(f"shifts.{i}/k.bias" for i in layers)

    def build(self, generator: torch.Generator) -> None:
        self.shifts = build_bias_adapters(self.tower, self.sites)

    def prompt(self, n: int) -> Prompt:
        return Prompt(adapters=self.shifts)
