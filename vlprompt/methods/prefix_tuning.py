"""Prefix tuning: Li and Liang, "Optimizing Continuous Prompts for Generation", ACL 2021, arXiv:2101.00190.

Keys and values that every layer attends to before its own. In training a small network computes them from embeddings;
without it (hidden_dim=null) they are learned directly, deep prompt tuning: P-Tuning v2, Liu et al., ACL 2022,
arXiv:2110.07602. Sites: prefixes of all layers; of an encoder-decoder those of encoder, decoder and cross-attention.

Differs from the papers in: the embeddings come from one generator, as torch draws them, and P-Tuning v2 takes any head;
words of the text count their positions behind the prefix, as in PEFT and in the authors' code.

Expected (P-Tuning v2's README, best epoch on the development set): RoBERTa-large BoolQ 84.0, COPA 92.0, RTE 86.6, WiC
73.7, WSC 64.4; BERT-large BoolQ 74.3, RTE 80.1. OpenPrompt's prefix tuning, T5-base on WebNLG: BLEU 55.8 to 57.4.
"""

from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor, nn

from vlprompt.core.head import Head
from vlprompt.core.method import TowerMethod
from vlprompt.core.prompt import KV, Prompt
from vlprompt.core.towers import LanguageTower
from vlprompt.layers.initial_values import make_linear


class PrefixTuning(TowerMethod[LanguageTower]):
    """Trained keys and values in front of those of a text.

    Args:
        lm: frozen language model.
        head: maps features to class logits.
        n_tokens: length of the prefix (P).
        hidden_dim: width of the network that computes it from embeddings of the model's width; None: no network, as in
            P-Tuning v2.
        dropout: on the keys and values, in training.
        attentions: of an encoder-decoder, those that get a prefix ("enc", "dec", "cross"); default all.
    """

    def __init__(
        self,
        lm: LanguageTower,
        head: Head,
        n_tokens: int = 10,
        hidden_dim: int | None = 512,
        dropout: float = 0.0,
        attentions: tuple[str, ...] | None = None,
    ):
        super().__init__()
        self.lm = self.tower = lm
        self.head, self.n_tokens, self.hidden_dim, self.dropout = head, n_tokens, hidden_dim, dropout
        self.dropout_layer, self.attentions = nn.Dropout(dropout), None if attentions is None else tuple(attentions)

    def prefix_layers(self) -> list[int | str]:
        """Return the layers that get a prefix; ValueError if `method.attentions` does not fit the model."""
        layers = list(self.lm.prefix_layers)
        if self.attentions is None:
            return layers
        stacks = list(dict.fromkeys(str(layer).split("/")[0] for layer in layers if isinstance(layer, str)))
        if not stacks:
            raise ValueError(
                f"method.attentions: expected no value for {self.lm.spec}, which has one stack, got "
                f"{list(self.attentions)}. Leave method.attentions out."
            )
        if unknown := [name for name in self.attentions if name not in stacks]:
            raise ValueError(
                f"method.attentions: expected some of {', '.join(stacks)}, got {unknown[0]!r}. Take some of these."
            )
        return [layer for layer in layers if str(layer).split("/")[0] in self.attentions]

    def build(self, generator: torch.Generator) -> None:
        self.require_at_least(n_tokens=1, dropout=0)
        flat_dim, device = len(self.prefix_layers()) * 2 * self.lm.n_heads * self.lm.head_dim, self.lm.device
        embedding_dim = flat_dim if self.hidden_dim is None else self.lm.dim
        self.embeddings = nn.Parameter(torch.randn(self.n_tokens, embedding_dim, generator=generator).to(device))
        if self.hidden_dim is not None:
            self.require_at_least(hidden_dim=1)
            down = make_linear(embedding_dim, self.hidden_dim, generator, device)
            up = make_linear(self.hidden_dim, flat_dim, generator, device)
            self.net = nn.Sequential(down, nn.Tanh(), up)

    def flat_prefix(self) -> Tensor:
        """Compute the keys and values of all layers, (P, layers * 2 * H * Dh), in PEFT's order."""
        return self.embeddings if self.hidden_dim is None else self.net(self.embeddings)

    def build_prefix(self) -> Mapping[int | str, KV]:
        """Map each layer to its keys and values (1, H, P, Dh)."""
        layers = self.prefix_layers()
        flat = self.dropout_layer(self.flat_prefix())
        pairs = rearrange(flat, "p (layers kv h d) -> layers kv 1 h p d", kv=2, h=self.lm.n_heads, d=self.lm.head_dim)
        return {layer: (k, v) for layer, (k, v) in zip(layers, pairs, strict=True)}

    def prompt(self, n: int) -> Prompt:
        return Prompt(prefix=self.build_prefix())
