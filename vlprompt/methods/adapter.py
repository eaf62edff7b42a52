"""Adapters: Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", ICML 2019, arXiv:1902.00751.

A bottleneck with a residual connection changes the output of a sub-layer before it joins the stream: after attention
and after the MLP of every block (Houlsby), or after the MLP only (Pfeiffer et al., AdapterFusion, EACL 2021,
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

from vlprompt.core.head import Head
from vlprompt.core.method import TowerMethod
from vlprompt.core.prompt import Prompt
from vlprompt.core.towers import AnyTower
from vlprompt.layers.adapters import Bottleneck


class _SequentialAdapter(Bottleneck):
    """outputs + bottleneck(outputs)."""

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:  # type: ignore[override]
        return outputs + super().forward(outputs)


class Adapter(TowerMethod[AnyTower]):
    """Bottlenecks after the sub-layers of an image tower or a language model.

    Args:
        tower: frozen image tower or language model.
        head: maps features to class logits.
        design: "houlsby" (after attention and MLP) or "pfeiffer" (after MLP).
        reduction: the tower's width over the bottleneck's.
        init_std: of the initial down-projection.
    """

    def __init__(
        self,
        tower: AnyTower,
        head: Head,
        design: Literal["houlsby", "pfeiffer"] = "pfeiffer",
        reduction: int = 8,
        init_std: float = 0.01,
    ):
        super().__init__()
        self.tower, self.head, self.design, self.reduction, self.init_std = tower, head, design, reduction, init_std

    def build(self, generator: torch.Generator) -> None:
        self.require_at_least(reduction=1, init_std=0)
        sites = self.tower.sites(*(("attn", "mlp") if self.design == "houlsby" else ("mlp",)))
        bottleneck_dim = max(1, self.tower.dim // self.reduction)
        options = (bottleneck_dim, nn.GELU(), self.init_std, 0.0, generator, self.tower.device)
        self.adapters = nn.ModuleDict({site: _SequentialAdapter(d, *options) for site, (_, d) in sites.items()})

    def prompt(self, n: int) -> Prompt:
        return Prompt(adapters=self.adapters)
