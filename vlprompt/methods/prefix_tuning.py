"""Prefix tuning: Li and Liang, "Optimizing Continuous Prompts for Generation", ACL 2021, arXiv:2101.00190.

Keys and values that every layer sees before its own. In training a small network makes them of embeddings; without it
(hidden=null) they are learned as they are, deep prompt tuning: P-Tuning v2, Liu et al., ACL 2022, arXiv:2110.07602.
Sites: prefixes of all layers; of an encoder-decoder those of encoder, decoder and cross-attention.

Differs from the papers in: the embeddings come from one generator, as torch draws them, and P-Tuning v2 reads classes
by any reader; words of the text count their positions behind the prefix, as in PEFT and in the authors' code.

Expected (P-Tuning v2's README, best epoch on the development set): RoBERTa-large BoolQ 84.0, COPA 92.0, RTE 86.6, WiC
73.7, WSC 64.4; BERT-large BoolQ 74.3, RTE 80.1. OpenPrompt's prefix tuning, T5-base on WebNLG: BLEU 55.8 to 57.4.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vlprompt.core.head import Reader
from vlprompt.core.method import OnTower
from vlprompt.core.prompt import KV, Prompt
from vlprompt.core.towers import LanguageTower
from vlprompt.layers.adapters import dense


class PrefixTuning(OnTower):
    """Trained keys and values before those of a text.

    n_tokens: the length of the prefix; hidden: width of the network that makes it, of the model's width, null for none
    (P-Tuning v2); dropout: on the keys and values, in training; places: of an encoder-decoder, which attentions see it
    ("enc", "dec", "cross"; default all).
    """

    def __init__(self, lm: LanguageTower, reader: Reader, n_tokens: int = 10, hidden: int | None = 512,
                 dropout: float = 0.0, places: tuple[str, ...] | None = None):  # fmt: skip
        super().__init__()
        self.lm = self.tower = lm
        self.reader, self.n_tokens, self.hidden, self.dropout = reader, n_tokens, hidden, dropout
        self.drop, self.places = nn.Dropout(dropout), None if places is None else tuple(places)

    def layers(self) -> list[int | str]:
        """Where the prefix stands."""
        stacks = list(dict.fromkeys(str(layer).split("/")[0] for layer in self.lm.layers if isinstance(layer, str)))
        if self.places is None or not stacks:
            if self.places is not None:
                raise ValueError(f"method.places is for encoder-decoders; {self.lm.spec} has one stack: leave it out")
            return list(self.lm.layers)
        if strange := [place for place in self.places if place not in stacks]:
            raise ValueError(f"method.places has {strange[0]!r}; this model's are {', '.join(stacks)}")
        return [layer for layer in self.lm.layers if str(layer).split("/")[0] in self.places]

    def build(self, generator: torch.Generator) -> None:
        self.at_least(n_tokens=1, dropout=0)
        wide, device = len(self.layers()) * 2 * self.lm.heads * self.lm.head_dim, self.lm.device
        first = wide if self.hidden is None else self.lm.dim
        self.seed = nn.Parameter(torch.randn(self.n_tokens, first, generator=generator).to(device))
        if self.hidden is not None:
            self.at_least(hidden=1)
            maps = dense(first, self.hidden, generator, device), dense(self.hidden, wide, generator, device)
            self.net = nn.Sequential(maps[0], nn.Tanh(), maps[1])

    def flat(self) -> Tensor:
        """Keys and values of all layers, (P, layers * 2 * H * Dh), as PEFT orders them."""
        return self.seed if self.hidden is None else self.net(self.seed)

    def prefix(self) -> Mapping[int | str, KV]:
        """layer -> keys and values (1, H, P, Dh)."""
        layers = self.layers()
        each = self.flat().view(1, self.n_tokens, len(layers) * 2, self.lm.heads, self.lm.head_dim)
        k_and_v = self.drop(each).permute(2, 0, 3, 1, 4).split(2)  # a layer's (2, 1, H, P, Dh)
        return {layer: (kv[0], kv[1]) for layer, kv in zip(layers, k_and_v, strict=True)}

    def prompt(self, images: int) -> Prompt:
        return Prompt(prefix=self.prefix())
