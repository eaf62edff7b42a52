"""A frozen transformer block as named maps, and the walk through blocks with a Prompt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.core.compute_options import BlockFn
from vlprompt.core.prompt import KV, NOTHING, Prompt
from vlprompt.layers.blocks.attention import (
    Rows,
    attend,
    expand_rows,
    merge_heads,
    prepend_prefix,
    select_positions,
    split_heads,
)
from vlprompt.layers.blocks.quick_gelu import build_quick_mlp, quick_gelu
from vlprompt.layers.frozen_maps import FrozenLinear, FrozenMap, identity

# (q, k, v, prefix, positions of the queries) -> output, all (B, H, rows, Dh)
AttentionFn: TypeAlias = Callable[[Tensor, Tensor, Tensor, KV | None, Rows], Tensor]
# an int: tokens become new rows from there on; else existing rows and the index of the token in each (None: all tokens
# in their order), (r,) for all sequences, or (B, P) with different rows per sequence
TokenSlot: TypeAlias = int | tuple[Tensor, Tensor | None]
Carry: TypeAlias = float | Tensor  # fraction of a row that goes on where a token enters: a number, or (P,)


@dataclass(frozen=True)
class Block:
    """The frozen maps of a pre-norm block.

    Args:
        n_heads: H.
        dim: D, the width of q.
        hidden_dim: the width of up.
        norm1: the norm before attention.
        q: queries.
        k: keys.
        v: values.
        out: the projection of attention's output.
        norm2: the norm before the MLP.
        up: the first layer of the MLP.
        act: its activation.
        down: its last layer.
        layer_scale1: applied to attention's branch.
        layer_scale2: applied to the MLP's branch.
        qkv: q, k and v in one product, used where none of them has an adapter.
        gate: makes hidden rows act(gate) * up instead of act(up) (SwiGLU).
        attn_inner_norm: the norm before out.
        mlp_inner_norm: the norm before down.
    """

    n_heads: int
    dim: int
    hidden_dim: int
    norm1: FrozenMap
    q: FrozenMap
    k: FrozenMap
    v: FrozenMap
    out: FrozenMap
    norm2: FrozenMap
    up: FrozenMap
    act: FrozenMap
    down: FrozenMap
    layer_scale1: FrozenMap = identity
    layer_scale2: FrozenMap = identity
    qkv: FrozenMap | None = None
    gate: FrozenMap | None = None
    attn_inner_norm: FrozenMap = identity
    mlp_inner_norm: FrozenMap = identity

    @cached_property
    def mlp(self) -> FrozenMap | None:
        """up, act and down at once, used where neither map has an adapter; None if they are computed one by one."""
        is_plain = self.act is quick_gelu and self.gate is None and self.mlp_inner_norm is identity
        return build_quick_mlp(self.up, self.down) if is_plain else None

    @cached_property
    def kv(self) -> FrozenLinear | None:
        """k and v in one product (2 D, D); None unless they are packed with q and do not train."""
        if not isinstance(self.qkv, FrozenLinear):
            return None
        bias = None if self.qkv.bias is None else self.qkv.bias[self.dim :]
        return FrozenLinear(self.qkv.weight[self.dim :], bias)

    def sites(self, i: int) -> dict[str, tuple[int, int]]:
        """Return the sites of this block, the i-th, with the widths of their inputs and outputs."""
        d, hidden = self.dim, self.hidden_dim
        fans = dict.fromkeys(("norm1", "q", "k", "v", "out", "norm2", "attn", "mlp", "attn+", "mlp+", "block"), (d, d))
        fans |= {"up": (d, hidden), "down": (hidden, d)} | ({} if self.gate is None else {"gate": (d, hidden)})
        return {f"{i}/{name}": fan for name, fan in fans.items()}


def make_attention(causal: bool, visible: Tensor | None = None) -> AttentionFn:
    """Return attention between the rows of each sequence; visible (B, N): rows that may be seen (None: all)."""

    def attention(q: Tensor, k: Tensor, v: Tensor, prefix: KV | None, positions: Rows) -> Tensor:
        return attend(q, k, v, prefix, causal, positions, visible)

    return attention


def attend_to_self(q: Tensor, k: Tensor, v: Tensor, prefix: KV | None, positions: Rows) -> Tensor:
    """Return each row's own value: attention in which no row sees another one."""
    if isinstance(positions, Tensor) and positions.ndim > 1:
        return torch.take_along_dim(v, positions[:, None, :, None], 2)
    return v if positions is None else v[:, :, positions]


def isolate_rows(block_fn: BlockFn, layer: int) -> BlockFn:
    """Run blocks as `block_fn`, but in this layer no row sees another one."""

    def run_isolated(block: Block, i: int, x: Tensor, prompt: Prompt, attention: AttentionFn, *rest: object) -> Tensor:
        return block_fn(block, i, x, prompt, attend_to_self if i == layer else attention, *rest)

    return run_isolated


def insert_tokens(x: Tensor, slot: TokenSlot, tokens: Tensor, carry: Carry | None = None) -> Tensor:
    """Put tokens (R, P, D), R a divisor of B, into x (B, N, D): as new rows at an int slot, else into existing rows.

    A text of its own tokens has them one after the other, (1 or B, C * P, D). carry: fraction of an existing row that
    goes on, of all tokens or of each (P,).
    """
    t = expand_rows(tokens.to(x.dtype), x.shape[0])
    if isinstance(slot, int):
        return torch.cat([x[:, :slot], t, x[:, slot:]], 1)
    rows, token_indices = slot
    if rows.ndim == 2:
        if carry is not None:
            t = mix_tokens(select_positions(x, rows), t, carry)
        return x.scatter(1, rows[..., None].expand_as(t), t)
    t = t if token_indices is None else t[:, token_indices]
    if carry is not None:
        if token_indices is not None and isinstance(carry, Tensor) and carry.ndim:
            carry = carry[token_indices % len(carry)]
        t = mix_tokens(x[:, rows], t, carry)
    return x.index_copy(1, rows, t)


def mix_tokens(rows: Tensor, tokens: Tensor, carry: Carry) -> Tensor:
    """Return carry * rows + (1 - carry) * tokens, (B, P, D), for a number or one of each token (P,)."""
    weight = carry.to(rows.dtype)[..., None] if isinstance(carry, Tensor) else carry
    return weight * rows + (1 - weight) * expand_rows(tokens.to(rows.dtype), rows.shape[0])


def compute_prompt_kv(block: Block, i: int, tokens: Tensor, prompt: Prompt) -> KV:
    """Compute keys and values (R, H, P, Dh) of tokens (R, P, D) that only the attention of this block reads."""
    y, prefix = prompt.apply_adapter(f"{i}/norm1", tokens, block.norm1(tokens)), prompt.prefix.get(i)
    kv = (block.k(y), block.v(y)) if block.kv is None else block.kv(y).chunk(2, -1)
    k, v = (prompt.apply_adapter(f"{i}/{site}", y, made) for site, made in zip("kv", kv, strict=True))
    n_contexts = max(y.shape[0], prefix[0].shape[0] if prefix else 1)
    return prepend_prefix(prefix, *(split_heads(t.expand(n_contexts, -1, -1), block.n_heads) for t in (k, v)))


def compute_prompt_kvs(
    blocks: Sequence[Block], layers: Sequence[int], prompt: Prompt, dtype: torch.dtype, n_sequences: int
) -> dict[int, KV]:
    """Compute what `compute_prompt_kv` does for the tokens (1, P, D) of several layers, by one product each.

    They are expanded to all sequences at once, so that their gradients are added up at once.

    Args:
        blocks: the blocks.
        layers: those whose tokens are keys and values only.
        prompt: its tokens and adapters.
        dtype: of the rows.
        n_sequences: B.

    Returns:
        layer -> keys and values (B, H, P, Dh), without those of the prompt's prefixes; nothing where norms or adapters
        differ from layer to layer, or where each sequence has tokens of its own, which take memory for all layers.
    """
    norms = [norm for i in layers if isinstance(norm := blocks[i].norm1, nn.LayerNorm) and norm.bias is not None]
    maps = [kv for i in layers if (kv := blocks[i].kv) is not None and kv.bias is not None]
    has_adapters = any(f"{i}/{site}" in prompt.adapters for i in layers for site in ("norm1", "k", "v"))
    kinds = {(norm.eps, prompt.tokens[i].shape[1:]) for i, norm in zip(layers, norms, strict=False)}
    is_alike = len(maps) == len(norms) == len(layers) and len(kinds) == 1
    if len(layers) < 2 or has_adapters or not is_alike or any(prompt.tokens[i].shape[0] > 1 for i in layers):
        return {}
    tokens = torch.cat([prompt.tokens[i] for i in layers]).to(dtype)  # (L, P, D)
    gains, shifts = (torch.stack([getattr(norm, name) for norm in norms])[:, None] for name in ("weight", "bias"))
    y = torch.addcmul(shifts, F.layer_norm(tokens, tokens.shape[-1:], eps=norms[0].eps), gains)
    y = y[:, None].expand(-1, 2, -1, -1).unbind()  # (2, P, D), for k and v
    made = torch.stack([x @ kv.weight.unflatten(0, (2, -1)).mT for x, kv in zip(y, maps, strict=True)])
    biases = torch.stack([cast(Tensor, kv.bias) for kv in maps]).unflatten(1, (2, 1, -1))
    kv = (made + biases.to(made.dtype))[:, :, None].expand(-1, -1, n_sequences, -1, -1)  # (L, 2, B, P, D)
    kv = kv.flatten(0, 1).unbind()
    heads = [split_heads(x, blocks[0].n_heads) for x in kv]
    return dict(zip(layers, zip(heads[::2], heads[1::2], strict=True), strict=True))


def run_block(
    block: Block,
    i: int,
    x: Tensor,
    prompt: Prompt,
    attention: AttentionFn,
    positions: Rows,
    prefix: KV | None,
    qkv: Tensor | None = None,
) -> Tensor:
    """Run one block and return only some positions.

    Args:
        block: the block.
        i: its number, for the sites of adapters.
        x: (B, N, D); all rows give keys and values.
        prompt: its adapters are applied.
        attention: computes attention.
        positions: (r,) or (B, r) or a slice, the rows to return; None for all.
        prefix: keys and values in front of those of x.
        qkv: (B, N, 3 D), queries, keys and values of x if they were computed before.

    Returns:
        (B, r, D).
    """

    def adapt(site: str, given: Tensor, made: Tensor) -> Tensor:
        return prompt.apply_adapter(f"{i}/{site}", given, made)

    y = adapt("norm1", x, block.norm1(x))
    is_plain = not any(f"{i}/{site}" in prompt.adapters for site in "qkv")
    if qkv is None and positions is None and block.qkv is not None and is_plain:
        qkv = block.qkv(y)
    if qkv is not None:
        q, k, v = (split_heads(t, block.n_heads) for t in qkv.chunk(3, -1))
    else:
        kv = (block.k(y), block.v(y)) if block.kv is None else block.kv(y).chunk(2, -1)
        k, v = (split_heads(adapt(site, y, made), block.n_heads) for site, made in zip("kv", kv, strict=True))
        x, y = select_positions(x, positions), select_positions(y, positions)
        q = split_heads(adapt("q", y, block.q(y)), block.n_heads)
    normed = y
    a = block.attn_inner_norm(merge_heads(attention(q, k, v, prefix, positions)))
    x = x + block.layer_scale1(adapt("attn+", x, adapt("attn", y, adapt("out", a, block.out(a)))))
    y = adapt("norm2", x, block.norm2(x))
    if block.mlp is not None and f"{i}/up" not in prompt.adapters and f"{i}/down" not in prompt.adapters:
        made = block.mlp(y)
    else:
        h = adapt("up", y, block.up(y))
        h = block.mlp_inner_norm(block.act(h) if block.gate is None else block.act(adapt("gate", y, block.gate(y))) * h)
        made = adapt("down", h, block.down(h))
    x = x + block.layer_scale2(adapt("mlp+", x, adapt("mlp", y, made)))
    return adapt("block", normed, x)


def _find_dropping_layers(prompt: Prompt, last: int, return_prompt: bool) -> set[int]:
    """The layers behind which rows of tokens are not read: replaced by the next layer's, or behind the last one."""
    replaced = {i - 1 for i in prompt.tokens if i not in prompt.carry}
    return replaced if return_prompt else replaced | {last}


def _shift_rows(rows: Rows, n_rows: int, slot: int, p: int, device: torch.device) -> Rows:
    """Where rows of n_rows are when p rows of tokens stand among them from a slot on."""
    if isinstance(rows, slice) and rows.stop <= slot:
        return rows
    if not isinstance(rows, Tensor):
        rows = torch.arange(n_rows, device=device)[rows or slice(None)]
    return torch.where(rows < slot, rows, rows + p)


def _append_token_rows(rows: Rows, n_rows: int, slot: int, p: int, device: torch.device) -> Rows:
    """Those rows of n_rows and, behind them, the p rows of tokens from a slot on."""
    if isinstance(rows, slice) and rows == slice(slot):  # such as the class token, behind which tokens stand
        return slice(slot + p)
    rows = torch.arange(n_rows, device=device)[rows] if isinstance(rows, slice) else rows
    token_rows = torch.arange(slot, slot + p, device=device)
    return token_rows if rows is None else torch.cat([rows, token_rows])


def walk(
    blocks: Sequence[Block],
    x: Tensor,
    prompt: Prompt = NOTHING,
    *,
    attention: AttentionFn,
    slot: TokenSlot = 1,
    positions: Rows = None,
    return_prompt: bool = False,
    qkv: Tensor | None = None,
    block_fn: BlockFn = run_block,
    first_block: int = 0,
) -> Tensor:
    """Run frozen blocks with a prompt and return only the positions that are read.

    Positions nobody reads are never computed: the last block computes only those that are read, and tokens that the
    next layer replaces, or nobody reads after the last one, are keys and values only. An adapter that mixes rows turns
    this off.

    Args:
        blocks: the blocks.
        x: rows before the first block (B, N, D).
        prompt: tokens, prefix and adapters.
        attention: computes attention.
        slot: an int where tokens become rows of their own, seen by every row; otherwise x has those of the first block
            in it already.
        positions: (r,) or (B, r) or a slice, indices of x's rows to return; None for all.
        return_prompt: return the rows of tokens at an int slot too, behind the others.
        qkv: (B, N, 3 D), queries, keys and values of the first block if they were computed before.
        block_fn: `run_block`, or the same with compute options.
        first_block: the block to begin with.

    Returns:
        (B, r, D), or (B, r + P, D).
    """
    inserts, has_token_rows = isinstance(slot, int), False  # has_token_rows: x has rows of tokens now
    p, skips, last = prompt.length if inserts else 0, not prompt.mixes_rows, len(blocks) - 1

    def current_positions(rows: Rows) -> Rows:
        """Where these rows of the given x are now."""
        if not has_token_rows or not isinstance(slot, int):
            return rows
        return _shift_rows(rows, x.shape[1] - p, slot, p, x.device)

    def output_positions() -> Rows:
        rows = current_positions(positions)
        if not return_prompt or not isinstance(slot, int):
            return rows
        return _append_token_rows(rows, x.shape[1], slot, p, x.device)

    dropping = _find_dropping_layers(prompt, last, return_prompt) if inserts and skips else set[int]()
    kv_layers = [i for i in prompt.tokens if i in dropping and i not in prompt.carry and i >= first_block]
    prompt_kvs = compute_prompt_kvs(blocks, kv_layers, prompt, x.dtype, x.shape[0])  # a trace makes len() a constant
    for i, block in enumerate(blocks[first_block:], first_block):
        prefix, tokens = prompt.prefix.get(i), prompt.tokens.get(i)
        if tokens is not None and inserts:
            if has_token_rows and isinstance(slot, int):
                if i in prompt.carry:
                    tokens = mix_tokens(x[:, slot : slot + p], tokens, prompt.carry[i])
                x, has_token_rows = select_positions(x, current_positions(None)), False
            if i in prompt_kvs:
                prefix = prepend_prefix(prefix, *prompt_kvs[i])
            elif i in dropping:
                prefix = compute_prompt_kv(block, i, tokens.to(x.dtype), prompt)
            else:
                x, has_token_rows = insert_tokens(x, slot, tokens), True
        elif tokens is not None and i > first_block:
            x = insert_tokens(x, slot, tokens, prompt.carry.get(i))
        is_last = skips and i == last
        needed = output_positions() if is_last else current_positions(None) if i in dropping else None
        known_qkv = qkv if i == first_block and needed is None else None
        x = block_fn(block, i, x, prompt, attention, needed, prefix, known_qkv)
        has_token_rows = has_token_rows and i not in dropping
    return x if skips else select_positions(x, output_positions())


def validate_prompt_layers(prompt: Prompt, depth: int) -> None:
    """Raise ValueError if a prompt names a layer that a tower of this depth does not have."""
    layers = [*prompt.tokens, *prompt.prefix, *(site.split("/")[0] for site in prompt.adapters if "/" in site)]
    if beyond := [i for i in layers if not 0 <= int(i) < depth]:
        raise ValueError(f"Prompt: expected layers 0..{depth - 1} of this tower, got layer {beyond[0]}. Leave it out.")
    if alone := [i for i in prompt.carry if i not in prompt.tokens or i == min(prompt.tokens)]:
        raise ValueError(
            f"Prompt.carry: expected layers with tokens above the first one, got layer {alone[0]} with tokens at "
            f"{sorted(prompt.tokens)}. Leave it out: nothing stands there yet that could go on."
        )
    for i, carry in prompt.carry.items():
        if isinstance(carry, Tensor) and carry.shape not in ((), (prompt.length,)):
            raise ValueError(
                f"Prompt.carry: expected a number or ({prompt.length},) of the tokens at layer {i}, got "
                f"{tuple(carry.shape)}. Give each token one."
            )


def find_sites(
    blocks: Sequence[Block], kinds: tuple[str, ...], extra_sites: dict[str, tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    """Return {"0/q": (fan_in, fan_out), ...} for these kinds of site, or for all; ValueError for an unknown kind."""
    sites = dict(extra_sites)
    for i, block in enumerate(blocks):
        sites |= block.sites(i)
    known_kinds = list(dict.fromkeys(site.split("/")[-1] for site in sites))
    if unknown := [kind for kind in kinds if kind not in known_kinds]:
        raise ValueError(f"site: expected one of {', '.join(known_kinds)}, got {unknown[0]!r}. Take one that there is.")
    return {site: fan for site, fan in sites.items() if not kinds or site.split("/")[-1] in kinds}
