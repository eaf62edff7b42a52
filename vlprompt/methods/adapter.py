"""Adapters: Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", ICML 2019, arXiv:1902.00751.

A bottleneck with a residual connection changes what a sub-layer gives, before it joins the stream: after attention and
after the MLP of every block (Houlsby), or after the MLP only (Pfeiffer et al., AdapterFusion, EACL 2021,
arXiv:2005.00247). It starts as the identity: zero up-projection, normal down-projection. Sites: attn and mlp, or mlp.

Differs from the papers in: norms are not trained; in towers with layer scale the bottleneck joins before it. In VPT's
code, the row "Adapter", both projections start at zero, so that every gradient but that of the last bias stays zero for
ever; that fault is not copied, and its numbers are no reference.

Expected (VTAB-1k, ViT-B/16 of IN-21k, natural, specialised, structured): 70.39, 77.11, 33.43; FGVC 85.66 (Table 1 of
VPT, arXiv:2203.12119, by the code above).
"""

from typing import Literal

import torch
from torch import Tensor, nn

from vlprompt.core.head import Reader
from vlprompt.core.method import OnTower
from vlprompt.core.prompt import Prompt
from vlprompt.core.towers import AnyTower
from vlprompt.layers.adapters import Bottleneck


class _Behind(Bottleneck):
    """made + bottleneck(made)."""

    def forward(self, given: Tensor, made: Tensor) -> Tensor:  # type: ignore[override]
        return made + super().forward(made)


class Adapter(OnTower):
    """Bottlenecks behind the sub-layers of an image tower or a language model.

    design: "houlsby" (attention and MLP) or "pfeiffer" (MLP); reduction: the tower's width over the bottleneck's;
    std: of the initial down-projection.
    """

    def __init__(self, tower: AnyTower, reader: Reader, design: Literal["houlsby", "pfeiffer"] = "pfeiffer",
                 reduction: int = 8, std: float = 0.01):  # fmt: skip
        super().__init__()
        self.tower, self.reader, self.design, self.reduction, self.std = tower, reader, design, reduction, std

    def build(self, generator: torch.Generator) -> None:
        self.at_least(reduction=1, std=0)
        found = self.tower.sites(*(("attn", "mlp") if self.design == "houlsby" else ("mlp",)))
        wide, device = max(1, self.tower.dim // self.reduction), self.tower.device
        make = lambda d: _Behind(d, wide, nn.GELU(), self.std, 0.0, generator, device)  # noqa: E731
        self.parts = nn.ModuleDict({site: make(out) for site, (_, out) in found.items()})

    def prompt(self, images: int) -> Prompt:
        return Prompt(beside=self.parts)
