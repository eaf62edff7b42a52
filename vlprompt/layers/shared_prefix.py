"""Passes of many texts behind a shared prefix: shared positions run once, then each text's own rows, packed."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

import torch
from einops import rearrange
from torch import Tensor

from vlprompt.core.compute_options import BlockFn
from vlprompt.core.prompt import KV, NOTHING, Prompt
from vlprompt.layers.attention import TextGroups, attend, attend_shared, prepend_prefix
from vlprompt.layers.block import Block, run_block, walk

# token ids of a text, and the index of the soft token at each position (-1: none)
TokensAndSlots: TypeAlias = tuple[list[int], list[int]]


@dataclass(frozen=True)
class PackedLayout:
    """C texts as T rows: the shared ones, then each text's own, ordered by length so that little is padded.

    Args:
        n_shared: shared rows.
        token_ids: (T,).
        positions: (T,), the position of each row in its text.
        prompt_slots: rows that hold soft tokens, and the index of the token in each.
        end_rows: (C,), the rows that are read, in packed order.
        order: (C,), the packed index of each text.
        groups: (texts, rows per text), in packed order.
        visible: the rows (texts, rows) of a group that are not padding; None for a group without padding.
    """

    n_shared: int
    token_ids: Tensor
    positions: Tensor
    prompt_slots: tuple[Tensor, Tensor]
    end_rows: Tensor
    order: Tensor
    groups: TextGroups
    visible: tuple[Tensor | None, ...]

    def attention(self, q: Tensor, k: Tensor, v: Tensor, prefix: KV | None, positions: Tensor | None) -> Tensor:
        """Attention of packed rows: a text sees the prefix, the shared rows and its own.

        Args:
            q: (R, H, T or C, Dh): all rows, or the end rows.
            k: (R, H, T, Dh).
            v: (R, H, T, Dh).
            prefix: keys and values in front.
            positions: None if q has all rows.
        """
        (ks, k), (vs, v) = (t.split([self.n_shared, t.shape[2] - self.n_shared], 2) for t in (k, v))
        n_shared_queries = self.n_shared if positions is None else 0
        qs, q = q.split([n_shared_queries, q.shape[2] - n_shared_queries], 2)
        outputs = [attend(qs, ks, vs, prefix, causal=True)] if positions is None and self.n_shared else []
        visible = None if positions is None else self.visible  # padding stands behind all that a causal row sees
        return torch.cat([*outputs, attend_shared(q, k, v, prepend_prefix(prefix, ks, vs), self.groups, visible)], 2)


def count_shared_tokens(texts: Sequence[TokensAndSlots], is_class_specific: bool) -> int:
    """Count the first positions that all texts share.

    Args:
        texts: token ids and slots.
        is_class_specific: whether soft tokens differ per text, so that positions with one are not shared.
    """
    n = min(len(ids) for ids, _ in texts) - 1  # the end of a text is never shared
    for i in range(n):
        token_id, slot = texts[0][0][i], texts[0][1][i]
        if (is_class_specific and slot >= 0) or any(t[0][i] != token_id or t[1][i] != slot for t in texts):
            return i
    return n


def pad_lengths(lengths: Sequence[int], min_saved_rows: int) -> list[int]:
    """Pad ascending lengths to those of their groups: another group where it saves more than min_saved_rows rows."""
    padded, group_length = list(lengths), lengths[-1]
    for i in reversed(range(len(padded))):
        if padded[i] < group_length and (group_length - padded[i]) * (i + 1) > min_saved_rows:
            group_length = padded[i]
        padded[i] = group_length
    return padded


def pack_texts(
    texts: Sequence[TokensAndSlots],
    n_tokens: int,
    is_class_specific: bool,
    device: torch.device,
    min_saved_rows: int = 0,
) -> PackedLayout:
    """Lay out texts with n_tokens soft tokens each.

    Args:
        texts: token ids and slots.
        n_tokens: soft tokens per text.
        is_class_specific: whether each text has soft tokens of its own.
        device: of the layout.
        min_saved_rows: rows that another group must save; 0 pads nothing. On a GPU few groups are faster than few rows.
    """
    order = sorted(range(len(texts)), key=lambda c: len(texts[c][0]))
    s = count_shared_tokens(texts, is_class_specific)
    ids, slots, positions = list(texts[0][0][:s]), list(texts[0][1][:s]), list(range(s))
    lengths = [len(texts[c][0]) - s for c in order]
    padded = pad_lengths(lengths, min_saved_rows)
    end_rows = list[int]()
    for c, length, padded_length in zip(order, lengths, padded, strict=True):
        text_ids, text_slots = texts[c]
        first_token = c * n_tokens if is_class_specific else 0
        n_padding = padded_length - length
        end_rows.append(len(ids) + length - 1)
        ids += [*text_ids[s:], *[0] * n_padding]
        slots += [*(w if w < 0 else w + first_token for w in text_slots[s:]), *[-1] * n_padding]
        positions += [*range(s, len(text_ids)), *[len(text_ids) - 1] * n_padding]

    def as_tensor(indices: Sequence[int]) -> Tensor:
        return torch.tensor(indices, dtype=torch.long, device=device)

    packed_index = torch.empty(len(texts), dtype=torch.long)
    packed_index[torch.tensor(order)] = torch.arange(len(texts))
    slot_rows = [row for row, w in enumerate(slots) if w >= 0]
    groups = _group_equal(padded)
    return PackedLayout(
        n_shared=s,
        token_ids=as_tensor(ids),
        positions=as_tensor(positions),
        prompt_slots=(as_tensor(slot_rows), as_tensor([slots[row] for row in slot_rows])),
        end_rows=as_tensor(end_rows),
        order=packed_index.to(device),
        groups=groups,
        visible=_find_visible_rows(lengths, groups, device),
    )


def _group_equal(lengths: Sequence[int]) -> TextGroups:
    """(texts, rows per text) of runs of equal lengths."""
    return tuple((len(list(run)), length) for length, run in groupby(lengths))


def _find_visible_rows(lengths: Sequence[int], groups: TextGroups, device: torch.device) -> tuple[Tensor | None, ...]:
    visible, first = list[Tensor | None](), 0
    for n, padded_length in groups:
        group = lengths[first : first + n]
        is_text = torch.tensor(group, device=device)[:, None] > torch.arange(padded_length, device=device)
        visible.append(None if min(group) == padded_length else is_text)
        first += n
    return tuple(visible)


def encode_packed(
    blocks: Sequence[Block],
    x: Tensor,
    layout: PackedLayout,
    prompt: Prompt = NOTHING,
    qkv: Tensor | None = None,
    block_fn: BlockFn = run_block,
) -> Tensor:
    """Encode packed texts.

    Args:
        blocks: the blocks.
        x: (R, T, D), in the layout's order, with tokens[0] in it.
        layout: of the texts.
        prompt: tokens, prefix and adapters.
        qkv: (1, T, 3 D), queries, keys and values of the first block, right in rows without soft tokens: those of words
            never change.
        block_fn: runs one block, as in `walk`.

    Returns:
        The last row of each text, in text order, (R, C, D).
    """
    flat = {i: rearrange(t, "r c p d -> r (c p) d") if t.ndim == 4 else t for i, t in prompt.tokens.items()}
    prompt, (slot_rows, _), first = Prompt(flat, prompt.prefix, prompt.adapters), layout.prompt_slots, blocks[0]
    if any(f"0/{site}" in prompt.adapters for site in ("norm1", "q", "k", "v")):
        qkv = None
    if qkv is not None and first.qkv is not None and len(slot_rows):
        prompt_qkv = first.qkv(first.norm1(x[:, slot_rows]))
        qkv = qkv.to(prompt_qkv.dtype).expand(x.shape[0], -1, -1).index_copy(1, slot_rows, prompt_qkv)
    ends = walk(
        blocks,
        x,
        prompt,
        attention=layout.attention,
        slot=layout.prompt_slots,
        positions=layout.end_rows,
        qkv=qkv,
        block_fn=block_fn,
    )
    return ends[:, layout.order]
