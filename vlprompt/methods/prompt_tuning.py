"""Prompt tuning: Lester et al., EMNLP 2021, arXiv:2104.08691.

The paper is "The Power of Scale for Parameter-Efficient Prompt Tuning". Soft tokens stand before the embedded text of a
frozen language model, and nothing else is learned. They start from random values, from words of the vocabulary, or from
the words of a text. Sites: tokens at the first layer; in an encoder-decoder before the text that the encoder reads.

Differs from the paper in: a random start is normal, as torch's embeddings and PEFT have it, where the paper draws
uniformly from -0.5 to 0.5; words are drawn from the whole vocabulary, not from its 5000 most frequent; classes may also
be read by a head on the feature, which never is that of a soft token.

Expected (T5 XXL on SuperGLUE): on a par with full fine-tuning, far below it at small models (Figure 1 of the paper).
OpenPrompt, T5-large-lm-adapt: BoolQ 83.3, RTE 82.0, WiC 70.1 (validation accuracy).
"""

from typing import Literal

import torch
from torch import nn

from vlprompt.core.head import Reader
from vlprompt.core.method import OnTower
from vlprompt.core.prompt import Prompt
from vlprompt.core.towers import LanguageTower


class PromptTuning(OnTower):
    """Soft tokens before a text.

    n_tokens: how many; init: "random" (standard normal), "vocabulary" (the embeddings of words that are drawn), or
    "text": those of the words of `text`, repeated or cut to n_tokens.
    """

    def __init__(self, lm: LanguageTower, reader: Reader, n_tokens: int = 20,
                 init: Literal["random", "vocabulary", "text"] = "vocabulary", text: str | None = None):  # fmt: skip
        super().__init__()
        self.lm = self.tower = lm
        self.reader, self.n_tokens, self.init, self.text = reader, n_tokens, init, text

    def build(self, generator: torch.Generator) -> None:
        self.at_least(n_tokens=1)
        if (self.init == "text") != (self.text is not None):
            raise ValueError("method.init=text and method.text belong together: give both, or neither")
        n = self.n_tokens
        if self.text is not None:
            words = self.lm.embedded(self.text)
            if not len(words):
                raise ValueError(f"method.text={self.text!r} has no tokens to start from")
            start = words.repeat(-(-n // len(words)), 1)[:n]
        elif self.init == "vocabulary":
            start = self.lm.drawn(n, generator)
        else:
            start = torch.randn(n, self.lm.dim, generator=generator)
        self.tokens = nn.Parameter(start.to(self.lm.device))  # (P, D)

    def prompt(self, images: int) -> Prompt:
        return Prompt(tokens={0: self.tokens[None]})
