"""Greedy generation after texts that share a prefix, whose keys and values are never copied for each text."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlprompt.backbones.hf.decoder.packed import PackedTextAttention, embed_layout, lay_out
from vlprompt.backbones.hf.decoder.walk import walk_layers
from vlprompt.backbones.hf.forward import FrozenTransformer
from vlprompt.backbones.hf.tokenization import TokenizedText
from vlprompt.core.prompt import KV, Prompt
from vlprompt.layers.blocks.attention import prepend_prefix
from vlprompt.layers.blocks.shared_prefix import PackedLayout

SETTINGS = {"max_new_tokens", "min_new_tokens", "do_sample", "num_beams", "pad_token_id", "eos_token_id"}
# what a model's own settings of generation may say without changing greedy texts
NEUTRAL_SETTINGS = {
    "transformers_version", "_from_model_config", "bos_token_id", "eos_token_id", "pad_token_id", "do_sample",
    "temperature", "top_k", "top_p", "min_p", "typical_p", "max_length", "use_cache",
}  # fmt: skip


def is_greedy(tower: FrozenTransformer, settings: Mapping[str, Any]) -> bool:
    """Whether settings of transformers' `generate`, with the model's own, ask for the likeliest token and no more."""
    own = {name for name, value in tower.net.generation_config.to_diff_dict().items() if value}
    asks_more = settings.keys() - SETTINGS or own - NEUTRAL_SETTINGS or settings["max_new_tokens"] < 1
    return not (asks_more or settings.get("do_sample") or (settings.get("num_beams") or 1) > 1)


@torch.no_grad()
def generate_greedily(
    tower: FrozenTransformer, rows: Sequence[TokenizedText], prompt: Prompt, settings: Mapping[str, Any]
) -> list[list[int]]:
    """Generate after texts, each up to its end.

    Args:
        tower: a model that `is_walkable`.
        rows: the texts.
        prompt: tokens, prefixes and adapters that all texts share.
        settings: max_new_tokens, min_new_tokens and eos_token_id of transformers' `generate`.

    Returns:
        The new tokens of each text, with the one that ends it.
    """
    layout = lay_out(rows, prompt, [len(row.ids) for row in rows], tower.device)
    n_new, shift = settings["max_new_tokens"], tower.position_shift(prompt)
    memory = _Memory(layout, prompt, [len(row.ids) for row in rows], n_new)
    last_rows = torch.tensor([layout.row_of(c, len(row.ids) - 1) for c, row in enumerate(rows)], device=tower.device)
    x, positions = embed_layout(tower, layout, prompt), layout.positions + shift
    states = walk_layers(tower, x, positions, prompt, memory.attend_and_store, last_rows)
    found, active = [list[int]() for _ in rows], list(range(len(rows)))
    end_ids = _list_end_ids(settings.get("eos_token_id"))
    positions = torch.tensor([shift + len(row.ids) for row in rows], device=tower.device)
    for step in range(n_new):
        logits = tower.net.get_output_embeddings()(states).float()
        if step < (settings.get("min_new_tokens") or 0):
            logits[:, [i for i in end_ids if 0 <= i < logits.shape[1]]] = -torch.inf
        tokens = logits.argmax(1)
        for i, token in zip(active, tokens.tolist(), strict=True):
            found[i].append(token)
        going_on = [k for k, i in enumerate(active) if found[i][-1] not in end_ids]
        if not going_on or step == n_new - 1:
            break
        if len(going_on) < len(active):  # what has ended leaves the batch
            active, kept = [active[k] for k in going_on], torch.tensor(going_on, device=tower.device)
            tokens, positions = tokens[kept], positions[kept]
            memory.keep(kept)
        x = tower.net.get_input_embeddings()(tokens)[None]
        every_row = torch.arange(len(active), device=tower.device)
        states = walk_layers(tower, x, positions + step, prompt, memory.attend, every_row)
        memory.n_columns += 1
    return found


def _list_end_ids(ids: int | Sequence[int] | None) -> Sequence[int]:
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


class _Memory:
    """Keys and values of each layer: what all texts share (K, S, Dh), and what each has, (B, K, N, Dh).

    A text's own stand at the end of its columns, so that all texts go on in the same one.

    Args:
        layout: of the texts.
        prompt: its prefixes are shared.
        lengths: of the texts.
        n_new: columns for new tokens.
    """

    def __init__(self, layout: PackedLayout, prompt: Prompt, lengths: Sequence[int], n_new: int):
        self.layout, self.prompt, self.attend_packed = layout, prompt, PackedTextAttention(layout, prompt)
        self.own_lengths = [n - layout.n_shared for n in lengths]
        self.n_columns = max(self.own_lengths)
        n_all = self.n_columns + n_new
        starts = torch.tensor([self.n_columns - n for n in self.own_lengths], device=layout.positions.device)
        self.is_hidden = torch.arange(n_all, device=starts.device) < starts[:, None]  # (B, N)
        self.shared, self.own = dict[int, KV](), dict[int, KV]()

    def attend_and_store(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Attention of the texts themselves; their keys and values are stored."""
        s = self.layout.n_shared
        keys, values = prepend_prefix(self.prompt.prefix.get(layer), k[:, :, :s], v[:, :, :s])
        self.shared[layer] = keys[0], values[0]
        own = tuple(t.new_zeros(len(self.own_lengths), t.shape[1], self.is_hidden.shape[1], t.shape[3]) for t in (k, v))
        for c, (n, first) in enumerate(zip(self.own_lengths, self.layout.first_rows, strict=True)):
            for to, t in zip(own, (k, v), strict=True):
                to[c, :, self.n_columns - n : self.n_columns] = t[0, :, first : first + n]
        self.own[layer] = own[0], own[1]
        return self.attend_packed(layer, q, k, v, scale)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Attention of one new token of each text, q (1, H, B, Dh), k and v (1, K, B, Dh)."""
        (ks, vs), own, n = self.shared[layer], self.own[layer], self.n_columns + 1
        for to, t in zip(own, (k, v), strict=True):
            to[:, :, n - 1] = t[0].transpose(0, 1)
        keys, values = (t[:, :, :n] for t in own)
        n_heads, s = len(ks), ks.shape[1]
        q = q[0].unflatten(0, (n_heads, -1))  # (K, H / K, B, Dh)
        shared_scores = (q.flatten(1, 2) @ ks.mT).unflatten(1, q.shape[1:3]).permute(2, 0, 1, 3)
        scores = q.permute(2, 0, 1, 3) @ keys.mT  # (B, K, H / K, N)
        scores = scores.masked_fill_(self.is_hidden[:, None, None, :n], -torch.inf)
        p = torch.cat([shared_scores, scores], -1).mul_(scale).softmax(-1, torch.float32).to(q.dtype)
        of_shared = p[..., :s].permute(1, 2, 0, 3).flatten(1, 2) @ vs  # one product of all texts
        of_own = (p[..., s:] @ values).permute(1, 2, 0, 3)
        return (of_shared.unflatten(1, q.shape[1:3]) + of_own).flatten(0, 1)[None]

    def keep(self, rows: Tensor) -> None:
        """Keep these texts (B,) of those that are there."""
        self.is_hidden = self.is_hidden[rows]
        self.own = {layer: (k[rows], v[rows]) for layer, (k, v) in self.own.items()}
