"""QLoRA: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", NeurIPS 2023, arXiv:2305.14314.

The frozen weights are held in 4 bits (NF4, their scales quantised again) and low-rank updates in float32 stand beside
all linear maps of every layer; what a step passes back goes through the weights, dequantised map by map. Sites: q k v
out up gate down of every layer, those that a model has.

Differs from the paper in: dropout is off unless it is asked for (0.1 for the paper's 7B and 13B models, 0.05 above),
and the optimizer is what train.optimizer says (there paged AdamW in 32 bits: paged_adamw, where there is CUDA); 8 bits
are taken too. Where there is no CUDA the maps reckon in float32.

Expected (MMLU, 5-shot, mean over LLaMA 7B to 65B trained on Alpaca and FLAN v2; Table 4): bfloat16 53.0, 4-bit floats
52.2, NF4 with double quantisation 53.1.
"""

import torch
from torch import nn

from vlprompt.core.head import Reader
from vlprompt.core.method import OnTower
from vlprompt.core.prompt import Prompt
from vlprompt.core.towers import LanguageTower
from vlprompt.layers.adapters import LowRank

MAPS = ("q", "k", "v", "out", "up", "gate", "down")


class QLoRA(OnTower):
    """Low-rank updates beside all linear maps of a quantised language model.

    rank: of an update; alpha: an update is alpha / rank times up down x; dropout: on its input.
    """

    def __init__(self, lm: LanguageTower, reader: Reader, rank: int = 64, alpha: float = 16.0, dropout: float = 0.0):
        super().__init__()
        self.lm = self.tower = lm
        self.reader, self.rank, self.alpha, self.dropout = reader, rank, alpha, dropout

    def build(self, generator: torch.Generator) -> None:
        self.at_least(rank=1, dropout=0)
        if self.lm.base not in ("nf4", "int8"):
            raise ValueError(
                f"QLoRA stands on a quantised model, and {self.lm.spec} is held in {self.lm.base}: take --backbone "
                f"hf-nf4:{self.lm.spec.partition(':')[2]}, or method lora"
            )
        there = {site.split("/")[-1] for site in self.lm.sites()}
        found = self.lm.sites(*(kind for kind in MAPS if kind in there))
        make = lambda fans: LowRank(  # noqa: E731
            fans, self.rank, self.alpha / self.rank, self.dropout, generator, self.lm.device
        )
        self.parts = nn.ModuleDict({site: make(fans) for site, fans in found.items()})

    def prompt(self, images: int) -> Prompt:
        return Prompt(beside=self.parts)
