"""A frozen transformer block as named maps, the walk through blocks with a Prompt, and what a tower is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlprompt.core.compute_options import Step
from vlprompt.core.prompt import KV, NOTHING, Prompt
from vlprompt.layers.attention import attend, heads, join, take
from vlprompt.layers.frozen_maps import Map, same

Attend = Callable[[Tensor, Tensor, Tensor, KV | None, Tensor | None], Tensor]
# where new rows begin; or rows (r,) that are there and which token each holds; or rows (B, P), their own for each of B
Slot = int | tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Block:
    """The frozen maps of a pre-norm block; widths (D) and (hidden) are those of q and up.

    gate: the hidden rows are act(gate) * up instead of act(up) (SwiGLU). inner and mid: norms before out and down.
    """

    heads: int
    dim: int
    hidden: int
    norm1: Map
    q: Map
    k: Map
    v: Map
    out: Map
    norm2: Map
    up: Map
    act: Map
    down: Map
    scale1: Map = same
    scale2: Map = same
    qkv: Map | None = None  # q, k and v in one product, side by side; used where no part stands beside them
    gate: Map | None = None
    inner: Map = same
    mid: Map = same

    def sites(self, i: int) -> dict[str, tuple[int, int]]:
        """Where a part may stand in this block, with the widths of what it is given and of what was made."""
        d, wide = self.dim, self.hidden
        fans = dict.fromkeys(("norm1", "q", "k", "v", "out", "norm2", "attn", "mlp", "attn+", "mlp+"), (d, d))
        fans |= {"up": (d, wide), "down": (wide, d)} | ({} if self.gate is None else {"gate": (d, wide)})
        return {f"{i}/{name}": fan for name, fan in fans.items()}


def everyone(causal: bool, seen: Tensor | None = None) -> Attend:
    """Attention of rows (B, N, D) that belong to one sequence each; seen (B, N): the rows that may be seen."""

    def full(q: Tensor, k: Tensor, v: Tensor, first: KV | None, rows: Tensor | None) -> Tensor:
        return attend(q, k, v, first, causal, rows, seen)

    return full


def insert(x: Tensor, slot: Slot, tokens: Tensor) -> Tensor:
    """x (B, N, D) with tokens (1 or B, P, D) at `slot`: new rows for an int, else in rows that are there."""
    t = tokens.to(x.dtype).expand(len(x), -1, -1)
    if isinstance(slot, int):
        return torch.cat([x[:, :slot], t, x[:, slot:]], 1)
    rows, which = slot
    if rows.ndim == 2:
        return x.scatter(1, rows[..., None].expand_as(t), t)
    return x.index_copy(1, rows, t[:, which])


def seen_only(block: Block, i: int, tokens: Tensor, prompt: Prompt) -> KV:
    """Keys and values (R, H, P, Dh) of tokens (R, P, D) that attention sees in this block and nothing else reads."""
    y, first = prompt.part(f"{i}/norm1", tokens, block.norm1(tokens)), prompt.prefix.get(i)
    k, v = (prompt.part(f"{i}/{site}", y, f(y)) for site, f in (("k", block.k), ("v", block.v)))
    r = max(len(y), len(first[0]) if first else 1)
    return join(first, *(heads(t.expand(r, -1, -1), block.heads) for t in (k, v)))


def step(block: Block, i: int, x: Tensor, prompt: Prompt, attention: Attend, rows: Tensor | None,
         first: KV | None, qkv: Tensor | None = None) -> Tensor:  # fmt: skip
    """One block on x (B, N, D) for the rows asked for (None: all) -> (B, r, D).

    Every row gives keys and values, after those of `first`. qkv (B, N, 3 D): what the rows' queries, keys and values
    are, where they are made already.
    """

    def made(site: str, given: Tensor, result: Tensor) -> Tensor:
        return prompt.part(f"{i}/{site}", given, result)

    y, alone = made("norm1", x, block.norm1(x)), not any(f"{i}/{site}" in prompt.beside for site in "qkv")
    if qkv is None and rows is None and block.qkv is not None and alone:
        qkv = block.qkv(y)
    if qkv is not None:
        q, k, v = (heads(t, block.heads) for t in qkv.chunk(3, -1))
    else:
        k, v = (heads(made(site, y, f(y)), block.heads) for site, f in (("k", block.k), ("v", block.v)))
        x, y = take(x, rows), take(y, rows)
        q = heads(made("q", y, block.q(y)), block.heads)
    a = block.inner(attention(q, k, v, first, rows).transpose(1, 2).flatten(2))
    x = x + block.scale1(made("attn+", x, made("attn", y, made("out", a, block.out(a)))))
    y = made("norm2", x, block.norm2(x))
    h = made("up", y, block.up(y))
    h = block.mid(block.act(h) if block.gate is None else block.act(made("gate", y, block.gate(y))) * h)
    return x + block.scale2(made("mlp+", x, made("mlp", y, made("down", h, block.down(h)))))


def walk(
    blocks: Sequence[Block],
    x: Tensor,
    prompt: Prompt = NOTHING,
    *,
    attention: Attend,
    slot: Slot = 1,
    rows: Tensor | None = None,
    prompts: bool = False,
    qkv: Tensor | None = None,
    by: Step = step,
) -> Tensor:
    """x (B, N, D) through the blocks -> its rows asked for (None: all), or the prompt's (prompts); (B, r, D).

    slot: an int where tokens get rows of their own, seen by every row; otherwise x holds tokens[0] already. Rows that
    nobody will read are not computed: the last block makes those that are read, and tokens that the next layer
    replaces, or nobody reads after the last, are keys and values only. A part that mixes rows turns this off. qkv: as
    `step` takes it, of the first block. by: how a block is computed, `step` or `step` in another way (how.py).
    """
    p, skip, last = prompt.length, not prompt.mixes_rows, len(blocks) - 1
    apart, inside = isinstance(slot, int), False  # inside: rows of tokens stand among x's own

    def at(rows: Tensor | None) -> Tensor | None:
        """Where these of x's own rows stand now."""
        if not (inside and isinstance(slot, int)):
            return rows
        own = torch.arange(x.shape[1] - p, device=x.device) if rows is None else rows
        return torch.where(own < slot, own, own + p)

    def read() -> Tensor | None:
        return torch.arange(slot, slot + p, device=x.device) if prompts and isinstance(slot, int) else at(rows)

    for i, block in enumerate(blocks):
        first, tokens, want = prompt.prefix.get(i), prompt.tokens.get(i), None
        leave = apart and skip and (i + 1 in prompt.tokens or (i == last and not prompts))
        if tokens is not None and apart:
            x, inside = x if not inside else take(x, at(None)), False
            if leave:
                first = seen_only(block, i, tokens.to(x.dtype), prompt)
            else:
                x, inside = insert(x, slot, tokens), True
        elif tokens is not None and i:
            x = insert(x, slot, tokens)
        if skip and i == last:
            want = read()
        elif leave:
            want = at(None)
        x = by(block, i, x, prompt, attention, want, first, qkv if i == 0 and want is None else None)
        inside = inside and not leave
    return x if skip else take(x, read())


def check(prompt: Prompt, depth: int) -> None:
    """ValueError when a prompt names a layer that a tower of this depth has not."""
    layers = [*prompt.tokens, *prompt.prefix, *(site.split("/")[0] for site in prompt.beside if "/" in site)]
    if beyond := [i for i in layers if not 0 <= int(i) < depth]:
        raise ValueError(f"the prompt has something for layer {beyond[0]}, but this tower's layers are 0..{depth - 1}")


def find_sites(
    blocks: Sequence[Block], names: tuple[str, ...], extra: dict[str, tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    """{"0/q": (fan_in, fan_out), ...} for the kinds of site asked for; ValueError for one that there is none of."""
    every = dict(extra)
    for i, block in enumerate(blocks):
        every |= block.sites(i)
    kinds = list(dict.fromkeys(site.split("/")[-1] for site in every))
    if unknown := [name for name in names if name not in kinds]:
        raise ValueError(f"this tower has no site {unknown[0]!r}; it has {', '.join(kinds)}")
    return {site: fan for site, fan in every.items() if site.split("/")[-1] in names}
