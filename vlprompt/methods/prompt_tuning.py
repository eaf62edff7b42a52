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
from einops import repeat
from torch import Tensor, nn

from vlprompt.core.head import Head
from vlprompt.core.method import TowerMethod
from vlprompt.core.prompt import Prompt
from vlprompt.core.towers import LanguageTower


class PromptTuning(TowerMethod[LanguageTower]):
    """Soft tokens in front of a text.

    Args:
        lm: frozen language model.
        head: maps features to class logits.
        n_tokens: number of soft tokens (P).
        init: "random" (standard normal), "vocabulary" (embeddings of random words) or "text" (those of `init_text`).
        init_text: words to start from, repeated or cut to n_tokens; their own tokens alone, where PEFT's start from a
            text also takes the special tokens around it ([CLS] and [SEP], or BOS and EOS).
    """

    def __init__(
        self,
        lm: LanguageTower,
        head: Head,
        n_tokens: int = 20,
        init: Literal["random", "vocabulary", "text"] = "vocabulary",
        init_text: str | None = None,
    ):
        super().__init__()
        self.lm = self.tower = lm
        self.head, self.n_tokens, self.init, self.init_text = head, n_tokens, init, init_text

    def build(self, generator: torch.Generator) -> None:
        self.require_at_least(n_tokens=1)
        self.tokens = nn.Parameter(self._initial_tokens(generator).to(self.lm.device))  # (P, D)

    def _initial_tokens(self, generator: torch.Generator) -> Tensor:
        n = self.n_tokens
        if (self.init == "text") != (self.init_text is not None):
            raise ValueError(
                "method.init_text: expected a text exactly with method.init=text, got "
                f"method.init_text={self.init_text!r} with method.init={self.init}. Set both, or neither."
            )
        if self.init_text is not None:
            words = self.lm.embed_text(self.init_text)
            if not len(words):
                raise ValueError(
                    f"method.init_text: expected a text with at least one token, got {self.init_text!r}. Give words."
                )
            return repeat(words, "p d -> (copies p) d", copies=-(-n // len(words)))[:n]
        if self.init == "vocabulary":
            return self.lm.sample_token_embeddings(n, generator)
        return torch.randn(n, self.lm.dim, generator=generator)

    def prompt(self, n: int) -> Prompt:
        return Prompt(tokens={0: self.tokens[None]})
