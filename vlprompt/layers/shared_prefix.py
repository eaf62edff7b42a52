"""The pass of many texts behind one prefix: what all texts begin with runs once, then each text's own rows, packed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlprompt.core.compute_options import Step
from vlprompt.core.prompt import KV, NOTHING, Prompt
from vlprompt.layers.attention import attend, attend_shared, join
from vlprompt.layers.block import Block, step, walk

Row = tuple[list[int], list[int]]  # token ids of a text, and which prompt token stands in each place (-1: none)


@dataclass(frozen=True)
class Layout:
    """C texts as T rows: the shared ones, then each text's own, ordered by length so that little or nothing is padded.

    ids, places (T,): token and position of a row. slot: rows that hold prompt tokens, and which ones. ends (C,): the
    rows that are read, in packed order. order (C,): where a text's result stands in it. groups: (texts, rows a
    text), in packed order. seen: of a group with padding, behind the ends, which rows (texts, rows a text) are none.
    """

    shared: int
    ids: Tensor
    places: Tensor
    slot: tuple[Tensor, Tensor]
    ends: Tensor
    order: Tensor
    groups: tuple[tuple[int, int], ...]
    seen: tuple[Tensor | None, ...]

    def attention(self, q: Tensor, k: Tensor, v: Tensor, first: KV | None, rows: Tensor | None) -> Tensor:
        """q (R, H, T or C, Dh), k, v (R, H, T, Dh): a text sees the prefix, the shared rows and its own. -> as q."""
        (ks, k), (vs, v) = (t.split([self.shared, t.shape[2] - self.shared], 2) for t in (k, v))
        before = self.shared if rows is None else 0
        qs, q = q.split([before, q.shape[2] - before], 2)
        parts = [attend(qs, ks, vs, first, causal=True)] if rows is None and self.shared else []
        seen = None if rows is None else self.seen  # causally no row sees what stands behind it
        return torch.cat([*parts, attend_shared(q, k, v, join(first, ks, vs), self.groups, seen)], 2)


def common(rows: Sequence[Row], own: bool) -> int:
    """How many first places all texts share.

    `own`: prompt tokens differ per text, so a place that holds one is not shared.
    """
    n = min(len(ids) for ids, _ in rows) - 1  # the end of a text is always its own
    for i in range(n):
        ids, where = rows[0][0][i], rows[0][1][i]
        if (own and where >= 0) or any(r[0][i] != ids or r[1][i] != where for r in rows):
            return i
    return n


def padded(lengths: Sequence[int], worth: int) -> list[int]:
    """Lengths, ascending, as long as the groups that they fall into: another group where it saves `worth` rows."""
    found, most = list(lengths), lengths[-1]
    for i in reversed(range(len(found))):
        if found[i] < most and (most - found[i]) * (i + 1) > worth:
            most = found[i]
        found[i] = most
    return found


def lay_out(rows: Sequence[Row], tokens: int, own: bool, device: torch.device, worth: int = 0) -> Layout:
    """The layout of texts with `tokens` prompt tokens, which each text has of its `own` or all have in common.

    worth: how many rows a group of texts must save; 0 pads none. On a GPU few groups are quicker than few rows.
    """
    s, order = common(rows, own), sorted(range(len(rows)), key=lambda c: len(rows[c][0]))
    ids, where, places = list(rows[0][0][:s]), list(rows[0][1][:s]), list(range(s))
    ends, groups, lengths = [], list[tuple[int, int]](), [len(rows[c][0]) - s for c in order]
    for c, length, l in zip(order, lengths, padded(lengths, worth), strict=True):
        mine, slots = rows[c]
        if groups and groups[-1][1] == l:
            groups[-1] = (groups[-1][0] + 1, l)
        else:
            groups.append((1, l))
        ends.append(len(ids) + length - 1)
        more = l - length
        ids += [*mine[s:], *[0] * more]
        where += [*(w if w < 0 or not own else w + c * tokens for w in slots[s:]), *[-1] * more]
        places += [*range(s, len(mine)), *[len(mine) - 1] * more]
    at = [i for i, w in enumerate(where) if w >= 0]
    as_tensor = lambda x: torch.tensor(x, dtype=torch.long, device=device)  # noqa: E731
    back = torch.empty(len(rows), dtype=torch.long)
    back[torch.tensor(order)] = torch.arange(len(rows))
    slot = as_tensor(at), as_tensor([where[i] for i in at])
    seen, k = list[Tensor | None](), 0
    for n, l in groups:
        full = as_tensor(lengths[k : k + n])[:, None] > torch.arange(l, device=device)
        seen.append(None if min(lengths[k : k + n]) == l else full)
        k += n
    return Layout(
        s, as_tensor(ids), as_tensor(places), slot, as_tensor(ends), back.to(device), tuple(groups), tuple(seen)
    )


def encode(blocks: Sequence[Block], x: Tensor, layout: Layout, prompt: Prompt = NOTHING, qkv: Tensor | None = None,
           by: Step = step) -> Tensor:  # fmt: skip
    """x (R, T, D), in the layout's order with tokens[0] in it -> the last row of each text, in text order (R, C, D).

    qkv (1, T, 3 D): queries, keys and values of the first block, right in the rows that hold no prompt token: those of
    words are always the same. by: as `walk` takes it.
    """
    flat = {i: t.flatten(1, 2) if t.ndim == 4 else t for i, t in prompt.tokens.items()}
    prompt, (rows, _), first = Prompt(flat, prompt.prefix, prompt.beside), layout.slot, blocks[0]
    if any(f"0/{site}" in prompt.beside for site in ("norm1", "q", "k", "v")):
        qkv = None
    if qkv is not None and first.qkv is not None and len(rows):
        mine = first.qkv(first.norm1(x[:, rows]))
        qkv = qkv.to(mine.dtype).expand(len(x), -1, -1).index_copy(1, rows, mine)
    read = walk(blocks, x, prompt, attention=layout.attention, slot=layout.slot, rows=layout.ends, qkv=qkv, by=by)
    return read[:, layout.order]
