"""Passes of many texts behind a shared prefix: shared positions run once, then each text's own rows, packed.

Blocks run in phases. Below the layer at which tokens come in, texts are their words alone; below the one at which each
text has tokens of its own, texts share those that they share. Blocks below the first that a prompt changes run once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vlprompt.core.compute_options import BlockFn
from vlprompt.core.prompt import KV, NOTHING, Prompt
from vlprompt.layers.blocks.attention import Rows, TextGroups, attend, attend_shared, prepend_prefix
from vlprompt.layers.blocks.block import Block, insert_tokens, run_block, walk

# token ids of a text, and the index of the soft token at each position (-1: none)
TokensAndSlots: TypeAlias = tuple[list[int], list[int]]


class PackingRule(NamedTuple):
    """What of packing texts pays on a device: where launching an operation costs more than rows, few of them.

    Args:
        min_saved_rows: rows that another group must save; 0 pads nothing.
        max_masked_rows: rows up to which all of them attend to each other under one mask, instead of a group at a time.
    """

    min_saved_rows: int = 0
    max_masked_rows: int = 0


FEWEST_ROWS = PackingRule()


@dataclass(frozen=True)
class PackedLayout:
    """C texts as T rows: the shared ones, then each text's own, ordered by length so that little is padded.

    Args:
        n_shared: shared rows.
        token_ids: (T,).
        positions: (T,), the position of each row in its text.
        prompt_slots: rows that hold soft tokens, and the index of the token in each; None if all have one, in order.
        end_rows: (C,), the rows that are read, in packed order.
        order: (C,), the packed index of each text.
        groups: (texts, rows per text), in packed order.
        visible: the rows (texts, rows) of a group that are not padding; None for a group without padding.
        places: of each row, a text that has it and its index there.
        first_rows: of each text, the first row that is its own.
        mask: (T, T), added to the scores: minus infinity where a row does not see another one; None: groups attend.
    """

    n_shared: int
    token_ids: Tensor
    positions: Tensor
    prompt_slots: tuple[Tensor, Tensor | None]
    end_rows: Tensor
    order: Tensor
    groups: TextGroups
    visible: tuple[Tensor | None, ...]
    places: tuple[tuple[int, int], ...]
    first_rows: tuple[int, ...]
    mask: Tensor | None = None

    def row_of(self, text: int, index: int) -> int:
        """Return the row of a text's token."""
        return index if index < self.n_shared else self.first_rows[text] + index - self.n_shared

    def attention(self, q: Tensor, k: Tensor, v: Tensor, prefix: KV | None, positions: Rows) -> Tensor:
        """Attention of packed rows: a text sees the prefix, the shared rows and its own.

        Args:
            q: (R, H, T or C, Dh): all rows, or the end rows.
            k: (R, H, T, Dh).
            v: (R, H, T, Dh).
            prefix: keys and values in front.
            positions: None if q has all rows.
        """
        if self.mask is not None:
            mask, (k, v) = self.mask if positions is None else self.mask[positions], prepend_prefix(prefix, k, v)
            mask = mask if prefix is None else F.pad(mask, (k.shape[2] - mask.shape[1], 0))
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype))
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
    rule: PackingRule = FEWEST_ROWS,
    has_positions: bool = True,
    shares_beginning: bool = True,
) -> PackedLayout:
    """Lay out texts with n_tokens soft tokens each.

    Args:
        texts: token ids and slots.
        n_tokens: soft tokens per text.
        is_class_specific: whether each text has soft tokens of its own.
        device: of the layout.
        rule: what pays on the device.
        has_positions: whether soft tokens have positions; else the words have those of the text without them.
        shares_beginning: whether what all texts begin with is one row, if that is the same for all of them.
    """
    order = sorted(range(len(texts)), key=lambda c: len(texts[c][0]))
    s = count_shared_tokens(texts, is_class_specific) if shares_beginning else 0
    ids, slots, places = list(texts[0][0][:s]), list(texts[0][1][:s]), [(0, j) for j in range(s)]
    lengths = [len(texts[c][0]) - s for c in order]
    is_masked = s + sum(lengths) <= rule.max_masked_rows
    padded = lengths if is_masked else pad_lengths(lengths, rule.min_saved_rows)
    end_rows, first_rows = list[int](), dict[int, int]()
    for c, length, padded_length in zip(order, lengths, padded, strict=True):
        text_ids, text_slots = texts[c]
        first_token = c * n_tokens if is_class_specific else 0
        n_padding = padded_length - length
        end_rows.append(len(ids) + length - 1)
        first_rows[c] = len(ids)
        ids += [*text_ids[s:], *[0] * n_padding]
        slots += [*(w if w < 0 else w + first_token for w in text_slots[s:]), *[-1] * n_padding]
        places += [(c, j) for j in (*range(s, len(text_ids)), *[len(text_ids) - 1] * n_padding)]

    def as_tensor(indices: Sequence[int]) -> Tensor:
        return torch.tensor(indices, dtype=torch.long, device=device)

    packed_index = torch.empty(len(texts), dtype=torch.long)
    packed_index[torch.tensor(order)] = torch.arange(len(texts))
    slot_rows = [row for row, w in enumerate(slots) if w >= 0]
    token_indices = [slots[row] for row in slot_rows]
    is_in_order = not is_class_specific and token_indices == list(range(n_tokens))
    groups, places = _group_equal(padded), tuple(places)
    positions = [j if has_positions else _index_of_word(texts[c][1], j) for c, j in places]
    return PackedLayout(
        n_shared=s,
        token_ids=as_tensor(ids),
        positions=as_tensor(positions),
        prompt_slots=(as_tensor(slot_rows), None if is_in_order else as_tensor(token_indices)),
        end_rows=as_tensor(end_rows),
        order=packed_index.to(device),
        groups=groups,
        visible=_find_visible_rows(lengths, groups, device),
        places=places,
        first_rows=tuple(first_rows[c] for c in range(len(texts))),
        mask=_build_mask(s, lengths, device) if is_masked else None,
    )


def _index_of_word(slots: Sequence[int], index: int) -> int:
    """The index of a token in its text without soft tokens; of a soft token, that of the word before it."""
    n_words = sum(w < 0 for w in slots[: index + 1])
    return max(n_words - 1, 0)


def _group_equal(lengths: Sequence[int]) -> TextGroups:
    """(texts, rows per text) of runs of equal lengths."""
    return tuple((len(list(run)), length) for length, run in groupby(lengths))


def _build_mask(n_shared: int, lengths: Sequence[int], device: torch.device) -> Tensor:
    """(T, T) added to scores: 0 where a row sees a shared one or one of its own text, itself or before it."""
    texts = torch.tensor(
        [-1] * n_shared + [c for c, length in enumerate(lengths) for _ in range(length)], device=device
    )
    seen = (texts == -1) | (texts == texts[:, None])
    return torch.zeros(seen.shape, device=device).masked_fill_(~seen.tril(), -torch.inf)


def _find_visible_rows(lengths: Sequence[int], groups: TextGroups, device: torch.device) -> tuple[Tensor | None, ...]:
    visible, first = list[Tensor | None](), 0
    for n, padded_length in groups:
        group = lengths[first : first + n]
        is_text = torch.tensor(group, device=device)[:, None] > torch.arange(padded_length, device=device)
        visible.append(None if min(group) == padded_length else is_text)
        first += n
    return tuple(visible)


class TokenPlan(NamedTuple):
    """What of a prompt decides how texts are laid out.

    Args:
        n_tokens: soft tokens of a text.
        first_layer: below it nothing is changed, so that blocks run once.
        entry_layer: the layer at which soft tokens come in as new rows, without positions; None: they are embedded.
        specific_layer: the first layer at which each text has tokens of its own; None: there is none.
    """

    n_tokens: int = 0
    first_layer: int = 0
    entry_layer: int | None = None
    specific_layer: int | None = None


@dataclass(frozen=True)
class PackedPhase:
    """Blocks that run on one layout.

    Args:
        first_block: the block that it begins with; it ends where the next one begins.
        layout: of the texts.
        source_rows: (T,), the row of the phase before that each row goes on from; rows of new tokens have any. None for
            the first phase.
    """

    first_block: int
    layout: PackedLayout
    source_rows: Tensor | None = None


class EmbeddedLayout(NamedTuple):
    """Texts that a prompt enters.

    Args:
        phases: of the blocks that it changes, and those above.
        x: (1, T, D), the rows of the first phase before its first block.
        qkv: (1, T, 3 D), their queries, keys and values, if those are constant.
        slot_positions: (P, D), the positions of their soft tokens.
    """

    phases: tuple[PackedPhase, ...]
    x: Tensor
    qkv: Tensor | None
    slot_positions: Tensor


def plan_phases(
    texts: Sequence[TokensAndSlots], plan: TokenPlan, device: torch.device, rule: PackingRule = FEWEST_ROWS
) -> tuple[PackedPhase, ...]:
    """Lay out the phases of texts with soft tokens, from block 0 on."""
    entry, specific, is_embedded = plan.entry_layer, plan.specific_layer, plan.entry_layer is None
    pack = partial(pack_texts, device=device, rule=rule)
    if entry is None:
        phases = [PackedPhase(0, pack(texts, plan.n_tokens, specific == 0))]
    else:
        words = [([i for i, w in zip(*text, strict=True) if w < 0], [-1] * text[1].count(-1)) for text in texts]
        below, layout = pack(words, 0, False), pack(texts, plan.n_tokens, specific == entry, has_positions=False)
        sources = [below.row_of(c, _index_of_word(texts[c][1], j)) for c, j in layout.places]
        phases = [PackedPhase(0, below), PackedPhase(entry, layout, torch.tensor(sources, device=device))]
    if specific is not None and specific > (entry or 0):
        below, layout = phases[-1].layout, pack(texts, plan.n_tokens, True, has_positions=is_embedded)
        sources = [below.row_of(c, j) for c, j in layout.places]
        phases.append(PackedPhase(specific, layout, torch.tensor(sources, device=device)))
    return tuple(phases)


def run_unchanged_blocks(
    blocks: Sequence[Block], x: Tensor, phases: Sequence[PackedPhase], first_layer: int
) -> tuple[Tensor, tuple[PackedPhase, ...]]:
    """Run the blocks below the first layer that a prompt changes.

    Args:
        blocks: the blocks.
        x: (1, T, D), the rows of the first phase before block 0.
        phases: from block 0 on.
        first_layer: the layer.

    Returns:
        The rows before that layer, and the phases from there on.
    """
    phase, *rest = phases
    while True:
        end = min([first_layer, *(later.first_block for later in rest[:1])])
        layout = phase.layout
        x = walk(blocks[:end], x, attention=layout.attention, slot=layout.prompt_slots, first_block=phase.first_block)
        if not rest or rest[0].first_block > first_layer:
            return x, (replace(phase, first_block=end), *rest)
        phase, *rest = rest
        x = x[:, phase.source_rows]


def encode_packed(
    blocks: Sequence[Block],
    x: Tensor,
    phases: Sequence[PackedPhase],
    prompt: Prompt = NOTHING,
    qkv: Tensor | None = None,
    block_fn: BlockFn = run_block,
) -> Tensor:
    """Encode packed texts.

    Args:
        blocks: the blocks.
        x: (R, T, D), the rows of the first phase before its first block, with embedded tokens in them.
        phases: of the blocks that the prompt changes, and those above.
        prompt: tokens, prefix and adapters.
        qkv: (1, T, 3 D), queries, keys and values of the first block, right in rows without soft tokens: those of words
            never change.
        block_fn: runs one block, as in `walk`.

    Returns:
        The last row of each text, in text order, (R, C, D).
    """
    flat = {i: rearrange(t, "r c p d -> r (c p) d") if t.ndim == 4 else t for i, t in prompt.tokens.items()}
    prompt, begin, last = replace(prompt, tokens=flat), phases[0].first_block, phases[-1]
    if any(f"{begin}/{site}" in prompt.adapters for site in ("norm1", "q", "k", "v")):
        qkv = None
    for phase, end in zip(phases, [*(later.first_block for later in phases[1:]), len(blocks)], strict=True):
        begin, layout, is_later = phase.first_block, phase.layout, phase is not phases[0]
        x = x[:, phase.source_rows] if is_later else x
        if begin in flat and (begin or not prompt.is_embedded):
            x = insert_tokens(x, layout.prompt_slots, flat[begin], prompt.carry.get(begin))
        x = walk(
            blocks[:end],
            x,
            prompt,
            attention=layout.attention,
            slot=layout.prompt_slots,
            positions=layout.end_rows if phase is last else None,
            qkv=None if is_later or qkv is None else _update_qkv(blocks[begin], x, qkv, layout),
            block_fn=block_fn,
            first_block=begin,
        )
    return x[:, last.layout.order]


def _update_qkv(block: Block, x: Tensor, qkv: Tensor, layout: PackedLayout) -> Tensor:
    """Queries, keys and values (R, T, 3 D) of words, with those of the soft tokens in x."""
    slot_rows, _ = layout.prompt_slots
    if block.qkv is None or not len(slot_rows):
        return qkv.expand(x.shape[0], -1, -1)
    prompt_qkv = block.qkv(block.norm1(x[:, slot_rows]))
    return qkv.to(prompt_qkv.dtype).expand(x.shape[0], -1, -1).index_copy(1, slot_rows, prompt_qkv)
