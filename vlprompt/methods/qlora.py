"""QLoRA: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", NeurIPS 2023, arXiv:2305.14314.

The frozen weights are stored in 4 bits (NF4, their scales quantised again) and all linear maps of every layer get
low-rank updates in float32; the backward pass goes through the weights, dequantised map by map. Sites: q k v out up
gate down of every layer, those that a model has.

Differs from the paper in: dropout is off by default (0.1 for the paper's 7B and 13B models, 0.05 above), and the
optimizer is train.optimizer (there paged AdamW in 32 bits: paged_adamw, with CUDA only); 8 bits work too. Without CUDA
the maps compute in float32.

Expected (MMLU, 5-shot, mean over LLaMA 7B to 65B trained on Alpaca and FLAN v2; Table 4): bfloat16 53.0, 4-bit floats
52.2, NF4 with double quantisation 53.1.
"""

from vlprompt.core.head import Head
from vlprompt.core.towers import LanguageTower
from vlprompt.methods._low_rank import LowRankMethod

LINEAR_SITES = ("q", "k", "v", "out", "up", "gate", "down")


class QLoRA(LowRankMethod):
    """Low-rank updates of all linear maps of a quantised language model.

    Args:
        lm: frozen language model in 4 or 8 bits.
        head: maps features to class logits.
        rank: of an update.
        alpha: an update is alpha / rank times up down x.
        dropout: on the input of an update.
    """

    def __init__(self, lm: LanguageTower, head: Head, rank: int = 64, alpha: float = 16.0, dropout: float = 0.0):
        super().__init__(lm, head, rank, alpha, LINEAR_SITES, dropout)
        self.lm = lm

    def find_sites(self) -> dict[str, tuple[int, int]]:
        if self.lm.weight_precision not in ("nf4", "int8"):
            raise ValueError(
                f"qlora: expected a quantised model, got {self.lm.spec} in {self.lm.weight_precision}. Take "
                f"--backbone hf-nf4:{self.lm.spec.partition(':')[2]}, or the method lora."
            )
        kinds = {site.split("/")[-1] for site in self.lm.sites()}
        return self.lm.sites(*(kind for kind in self.sites if kind in kinds))
