"""P-Tuning: Liu et al., "GPT Understands, Too", AI Open 2023, arXiv:2103.10385.

Soft tokens stand at chosen places of the text, and a small network makes them: an LSTM in both directions and two
linear maps, or linear maps alone, over trainable embeddings. It is left behind when the prompt is kept. Sites: tokens
at the first layer, where the template has {ctx}.

Differs from the authors' code in: the model stays frozen (their SuperGLUE runs tuned it too); embeddings start as
torch's do, and all values come from one generator. The state holds the network, so that training can go on; what PEFT
saves are the tokens that it makes.

Expected (authors, BERT-large on SuperGLUE, model tuned too): BoolQ 77.8, RTE 76.5, WiC 69.5, WSC 73.1 (Table 2).
"""

from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlprompt.core.head import Reader
from vlprompt.core.method import OnTower
from vlprompt.core.prompt import Prompt
from vlprompt.core.towers import LanguageTower
from vlprompt.layers.adapters import dense


class PTuning(OnTower):
    """Soft tokens from a prompt encoder, at places of the text.

    text: the template that says where, such as "{ctx} {text} {ctx} It was {mask}." (default: all before the text, which
    the reader shows); n_tokens: of all {ctx} together, the first ones a like share each; encoder: "lstm" or "mlp";
    hidden: its width (default: the model's); layers: of the LSTM, or linear maps of the MLP; dropout: in the LSTM.
    """

    def __init__(self, lm: LanguageTower, reader: Reader, n_tokens: int = 20, text: str | None = None,
                 encoder: Literal["lstm", "mlp"] = "lstm", hidden: int | None = None, layers: int = 2,
                 dropout: float = 0.0):  # fmt: skip
        super().__init__()
        self.lm = self.tower = lm
        self.reader, self.n_tokens, self.text, self.encoder = reader, n_tokens, text, encoder
        self.hidden, self.layers, self.dropout = hidden, layers, dropout

    def build(self, generator: torch.Generator) -> None:
        self.at_least(n_tokens=1, layers=1, dropout=0)
        if self.text is not None and "{ctx}" not in self.text:
            raise ValueError(f"method.text={self.text!r} has no {{ctx}}, where the soft tokens stand")
        d, h, device = self.lm.dim, self.hidden or self.lm.dim, self.lm.device
        self.seed = nn.Parameter(torch.randn(self.n_tokens, d, generator=generator).to(device))  # (P, D)
        if self.encoder == "lstm":
            self.lstm = nn.LSTM(d, h, self.layers, bidirectional=True, batch_first=True, dropout=self.dropout)
            for p in self.lstm.parameters():  # torch's usual bounds, drawn from the generator
                p.data.copy_((torch.rand(p.shape, generator=generator) * 2 - 1) * h**-0.5)
            self.lstm.to(device)
            sizes = [2 * h, 2 * h, d]
        else:
            sizes = [d, *[h] * self.layers, d]
        maps = [dense(a, b, generator, device) for a, b in pairwise(sizes)]
        self.mlp = nn.Sequential(*[part for m in maps for part in (m, nn.ReLU())][:-1])

    def tokens(self) -> Tensor:
        """The soft tokens (P, D) that the encoder makes."""
        x = self.seed[None]
        return self.mlp(self.lstm(x)[0] if self.encoder == "lstm" else x)[0]

    def prompt(self, images: int) -> Prompt:
        return Prompt(tokens={0: self.tokens()[None]})

    def shown(self, inputs: Any) -> Any:
        asked = self.reader.asked(inputs)
        if self.text is None:
            return asked
        if self.reader.read == "mask" and "{mask}" not in self.text:
            raise ValueError(
                f"method.text={self.text!r} has no {{mask}}, the place of the answer that the reader reads"
            )
        return asked.form(self.text, self.n_tokens)
