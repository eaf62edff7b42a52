"""P-Tuning: Liu et al., "GPT Understands, Too", AI Open 2023, arXiv:2103.10385.

Soft tokens stand at chosen places of the text, computed by a small network: an LSTM in both directions and two linear
maps, or linear maps alone, over trainable embeddings. It is not needed once the tokens are computed. Sites: tokens at
the first layer, where the template has {ctx}.

Differs from the authors' code in: the model stays frozen (their SuperGLUE runs tuned it too); embeddings start as
torch's do, and all values come from one generator. The state holds the network, so that training can go on; what PEFT
saves are the tokens that it computes.

Expected (authors, BERT-large on SuperGLUE, model tuned too): BoolQ 77.8, RTE 76.5, WiC 69.5, WSC 73.1 (Table 2).
"""

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from vlprompt.core.head import Head
from vlprompt.core.method import TowerMethod
from vlprompt.core.prompt import Prompt
from vlprompt.core.texts import TextBatch
from vlprompt.core.towers import LanguageTower
from vlprompt.layers.initial_values import make_linear


class PTuning(TowerMethod[LanguageTower]):
    """Soft tokens from a prompt encoder, at places of the text.

    Args:
        lm: frozen language model.
        head: maps features to class logits.
        n_tokens: of all {ctx} of the template together; the first ones get equal numbers, the last one the rest.
        template: where they stand, such as "{ctx} {text} {ctx} It was {mask}."; default in front of the text.
        encoder: "lstm" or "mlp".
        hidden_dim: width of the encoder; default the model's.
        n_layers: of the LSTM, or hidden layers of the MLP.
        dropout: in the LSTM.
    """

    def __init__(
        self,
        lm: LanguageTower,
        head: Head,
        n_tokens: int = 20,
        template: str | None = None,
        encoder: Literal["lstm", "mlp"] = "lstm",
        hidden_dim: int | None = None,
        n_layers: int = 2,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.lm = self.tower = lm
        self.head, self.n_tokens, self.template, self.encoder = head, n_tokens, template, encoder
        self.hidden_dim, self.n_layers, self.dropout = hidden_dim, n_layers, dropout

    def build(self, generator: torch.Generator) -> None:
        self.require_at_least(n_tokens=1, n_layers=1, dropout=0)
        if self.template is not None and "{ctx}" not in self.template:
            raise ValueError(
                f"method.template: expected {{ctx}} where the soft tokens stand, got {self.template!r}. Add {{ctx}}."
            )
        d, h, device = self.lm.dim, self.hidden_dim or self.lm.dim, self.lm.device
        self.embeddings = nn.Parameter(torch.randn(self.n_tokens, d, generator=generator).to(device))  # (P, D)
        if self.encoder == "lstm":
            self.lstm = nn.LSTM(d, h, self.n_layers, bidirectional=True, batch_first=True, dropout=self.dropout)
            for p in self.lstm.parameters():  # torch's usual bounds, drawn from the generator
                p.data.copy_((torch.rand(p.shape, generator=generator) * 2 - 1) * h**-0.5)
            self.lstm.to(device)
            sizes = [2 * h, 2 * h, d]
        else:
            sizes = [d, *[h] * self.n_layers, d]
        maps = [make_linear(a, b, generator, device) for a, b in pairwise(sizes)]
        self.mlp = nn.Sequential(*[layer for linear in maps for layer in (linear, nn.ReLU())][:-1])

    def encode_tokens(self) -> Tensor:
        """Compute the soft tokens (P, D)."""
        x = self.embeddings[None]
        return self.mlp(self.lstm(x)[0] if self.encoder == "lstm" else x)[0]

    def prompt(self, n: int) -> Prompt:
        return Prompt(tokens={0: self.encode_tokens()[None]})

    def prepare_inputs(self, inputs: TextBatch) -> TextBatch:
        texts = self.head.prepare_inputs(inputs)
        if self.template is None:
            return texts
        if self.head.output == "mask" and "{mask}" not in self.template:
            raise ValueError(
                f"method.template: expected {{mask}} at the answer that the head reads, got {self.template!r}. Add "
                "{mask}."
            )
        return texts.with_template(self.template, self.n_tokens)
