"""Texts of a batch in one row of a frozen decoder: what they begin with is computed once, and nothing is padded."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlprompt.backbones.hf.decoder.walk import walk_layers
from vlprompt.backbones.hf.forward import FrozenTransformer
from vlprompt.backbones.hf.tokenization import TokenizedText
from vlprompt.core.prompt import KV, Prompt
from vlprompt.layers.blocks.attention import prepend_prefix
from vlprompt.layers.blocks.block import insert_tokens
from vlprompt.layers.blocks.packed_attention import attend_packed
from vlprompt.layers.blocks.shared_prefix import PackedLayout, TokensAndSlots, pack_texts


def compute_packed_states(
    tower: FrozenTransformer, rows: Sequence[TokenizedText], prompt: Prompt, positions: Sequence[Sequence[int]]
) -> list[Tensor]:
    """Compute the states of tokens of texts, exactly as in rows of their own.

    Args:
        tower: a model that `is_walkable`.
        rows: the texts.
        prompt: tokens, prefixes and adapters that all texts share.
        positions: of each text, the indices of the tokens that are read, ascending.

    Returns:
        Of each text (r, D).
    """
    lengths = [max(read, default=row.answer_start - 1) + 1 for read, row in zip(positions, rows, strict=True)]
    layout = lay_out(rows, prompt, lengths, tower.device, not _draws(tower, prompt))
    x = embed_layout(tower, layout, prompt)
    read_rows = [layout.row_of(c, k) for c, read in enumerate(positions) for k in read]
    states = walk_layers(
        tower,
        x,
        layout.positions + tower.position_shift(prompt),
        prompt,
        PackedTextAttention(layout, prompt),
        torch.tensor(read_rows, dtype=torch.long, device=tower.device),
    )
    return list(states.split([len(read) for read in positions]))


def lay_out(
    rows: Sequence[TokenizedText], prompt: Prompt, lengths: Sequence[int], device: torch.device, shares: bool = True
) -> PackedLayout:
    """Lay out the first tokens of each text; those that all texts begin with once, if `shares`."""
    texts = list[TokensAndSlots]()
    for row, length in zip(rows, lengths, strict=True):
        ids, slots = list(row.ids), [-1] * len(row.ids)
        for token, position in enumerate(row.soft_positions):
            ids[position], slots[position] = 0, token  # any id will do where a soft token stands
        texts.append((ids[:length], slots[:length]))
    return pack_texts(texts, prompt.length, False, device, shares_beginning=shares)


def _draws(tower: FrozenTransformer, prompt: Prompt) -> bool:
    """Whether an adapter has dropout, which each text draws for itself."""
    adapters = [adapter for site in prompt.adapters if isinstance(adapter := prompt.adapters[site], nn.Module)]
    modules = (m for module in (*adapters, tower.net) for m in module.modules())
    return any(isinstance(m, nn.Dropout) and m.training and m.p for m in modules)


def embed_layout(tower: FrozenTransformer, layout: PackedLayout, prompt: Prompt) -> Tensor:
    """Embed the tokens of a layout, with the prompt's soft tokens, (1, T, D)."""
    x = tower.net.get_input_embeddings()(layout.token_ids)[None]
    return insert_tokens(x, layout.prompt_slots, prompt.tokens[0]) if prompt.length else x


class PackedTextAttention:
    """Attention of packed texts: a text sees the prefix, the rows that all texts share and its own.

    Args:
        layout: of the texts.
        prompt: whose prefixes are seen.
    """

    def __init__(self, layout: PackedLayout, prompt: Prompt):
        self.layout, self.prompt = layout, prompt

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        n_shared = self.layout.n_shared
        sizes = [n_shared, q.shape[2] - n_shared]
        prefix: KV | None = self.prompt.prefix.get(layer)
        (q1, q), (k1, k), (v1, v) = (t.split(sizes, 2) for t in (q, k, v))
        if not n_shared:
            return attend_packed(q, k, v, prefix, self.layout.groups, scale)
        first = attend_packed(q1, k1, v1, prefix, ((1, n_shared),), scale)
        rest = attend_packed(q, k, v, prepend_prefix(prefix, k1, v1), self.layout.groups, scale)
        return torch.cat([first, rest], 2)
