"""The one primitive: attention over keys that begin before the queries do, and the same with keys that many share."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from vlprompt.core.prompt import KV

Groups = tuple[tuple[int, int], ...]  # (texts, rows a text)
Seen = tuple[Tensor | None, ...] | None  # of each group: its rows (texts, rows) that may be seen (None: all)


def heads(x: Tensor, h: int) -> Tensor:
    """(B, N, H * Dh) -> (B, H, N, Dh)."""
    return x.unflatten(-1, (h, -1)).transpose(1, 2)


def join(first: KV | None, k: Tensor, v: Tensor) -> KV:
    """Keys and values (B, H, N, Dh) with a prefix (1 or B, H, P, Dh) in front."""
    if first is None:
        return k, v
    k1, v1 = (p.to(t.dtype).expand(len(t), -1, -1, -1) for p, t in zip(first, (k, v), strict=True))
    return torch.cat([k1, k], 2), torch.cat([v1, v], 2)


def take(x: Tensor, rows: Tensor | None) -> Tensor:
    """Rows of x (B, N, D): all (None), the same for everyone (r,), or each its own (B, r)."""
    if rows is None:
        return x
    return x[:, rows] if rows.ndim == 1 else torch.take_along_dim(x, rows[..., None], 1)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    first: KV | None = None,
    causal: bool = False,
    rows: Tensor | None = None,
    seen: Tensor | None = None,
) -> Tensor:
    """q (B, H, r, Dh) are the rows `rows` of N queries; k and v (B, H, N, Dh); everyone sees all of `first`.

    seen (B, N): the keys that anyone may see (None: all). -> (B, H, r, Dh).
    """
    n, mask = k.shape[2], None
    k, v = join(first, k, v)
    if causal:
        mask = torch.ones(n, k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - n)
        mask = mask if rows is None else mask[rows] if rows.ndim == 1 else mask[rows][:, None]
    if seen is not None:
        keys = F.pad(seen, (k.shape[2] - n, 0), value=True)[:, None, None]
        mask = keys if mask is None else mask & keys
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class _Shared(torch.autograd.Function):
    """What `attend_shared` is, with its derivative: nothing is kept but the probabilities."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, ks: Tensor, vs: Tensor, groups: Groups, seen: Seen):
        scale, s, causal = q.shape[-1] ** -0.5, ks.shape[2], seen is None
        before, found, kept = (q @ ks.mT).split(_rows(groups, causal), 2), [], []
        cuts = zip(before, seen or [None] * len(groups), *_cut(q, k, v, groups, causal), strict=True)
        for mine, there, mq, mk, mv in cuts:
            own = mq @ mk.mT  # (R, H, n, r, l)
            if causal and own.shape[-1] > 1:
                own.masked_fill_(torch.ones(own.shape[-2:], dtype=torch.bool, device=q.device).triu(1), -math.inf)
            elif there is not None:
                own.masked_fill_(~there[:, None], -math.inf)
            scores = torch.cat([mine.unflatten(2, own.shape[2:4]), own], -1).mul_(scale)
            p = scores.softmax(-1, torch.promote_types(q.dtype, torch.float32)).to(q.dtype)
            found.append(((p[..., :s].flatten(2, 3) @ vs).unflatten(2, own.shape[2:4]) + p[..., s:] @ mv).flatten(2, 3))
            kept.append(p)
        ctx.save_for_backward(q, k, v, ks, vs, *kept)
        ctx.groups, ctx.causal = groups, causal
        return torch.cat(found, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, ks, vs, *kept = ctx.saved_tensors
        groups, causal, scale, s = ctx.groups, ctx.causal, q.shape[-1] ** -0.5, ks.shape[2]
        before, (gs, _, _) = (g @ vs.mT).split(_rows(groups, causal), 2), _cut(g, k, v, groups, causal)
        dq, dk, dv, shared = list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()
        for mine, mg, p, mq, mk, mv in zip(before, gs, kept, *_cut(q, k, v, groups, causal), strict=True):
            dp = torch.cat([mine.unflatten(2, p.shape[2:4]), mg @ mv.mT], -1)
            ds = torch.ops.aten._softmax_backward_data(dp, p, -1, p.dtype).mul_(scale)
            own = ds[..., s:]
            dq.append((own @ mk).flatten(2, 3))
            dk.append((own.mT @ mq).flatten(2, 3))
            dv.append((p[..., s:].mT @ mg).flatten(2, 3))
            shared.append(ds[..., :s].flatten(2, 3))
        ds, p = torch.cat(shared, 2), torch.cat([p[..., :s].flatten(2, 3) for p in kept], 2)
        return torch.cat(dq, 2) + ds @ ks, torch.cat(dk, 2), torch.cat(dv, 2), ds.mT @ q, p.mT @ g, None, None


def _rows(groups: Groups, causal: bool) -> list[int]:
    """How many queries each group has: one for each of its rows, or one for each text."""
    return [n * (l if causal else 1) for n, l in groups]


def _cut(q: Tensor, k: Tensor, v: Tensor, groups: Groups, causal: bool) -> tuple[list[Tensor], ...]:
    """Each as groups of texts of one length, (R, H, n, r or l, Dh)."""
    own = [n * l for n, l in groups]
    cuts = (q, _rows(groups, causal)), (k, own), (v, own)
    return tuple([t.unflatten(2, (n, -1)) for t, (n, _) in zip(x.split(sizes, 2), groups, strict=True)]
                 for x, sizes in cuts)  # fmt: skip


def attend_shared(q: Tensor, k: Tensor, v: Tensor, shared: KV, groups: Groups, seen: Seen = None) -> Tensor:
    """Texts in groups (n texts of l rows) that see the same `shared` keys, then their own; nothing is copied for one.

    q (R, H, T, Dh) sees what stands before it (seen None), or has one row a text that sees all of its own that are
    `seen`; k, v (R, H, T, Dh); shared (R, H, P, Dh) each. -> as q. It can be differentiated once.
    """
    with torch.autocast(q.device.type, enabled=False):
        return _Shared.apply(q, k, v, *(t.to(q.dtype) for t in shared), groups, seen)  # pyright: ignore[reportReturnType]
