"""The one primitive: attention over keys that begin before the queries do, and the same with keys that many share."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.prompt import KV


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


def attend_shared(q: Tensor, k: Tensor, v: Tensor, shared: KV, causal: bool) -> Tensor:
    """n groups of queries that see the same `shared` keys, then their own; nothing is copied for a group.

    q (R, H, n, r, Dh); k, v (R, H, n, l, Dh); shared (R, H, P, Dh) each. causal: r == l, otherwise the queries see all
    l. -> as q.
    """
    (ks, vs), r, l = shared, q.shape[3], k.shape[3]
    q = q / math.sqrt(q.shape[-1])
    before = (q.flatten(2, 3) @ ks.mT).unflatten(2, q.shape[2:4])  # (R, H, n, r, P)
    own = q @ k.mT  # (R, H, n, r, l)
    if causal and l > 1:
        own = own.masked_fill(torch.ones(r, l, dtype=torch.bool, device=q.device).triu(1), -math.inf)
    p = torch.cat([before, own], -1).softmax(-1)
    p = p.to(v.dtype)  # under autocast the softmax is float32
    s = ks.shape[2]
    return (p[..., :s].flatten(2, 3) @ vs).unflatten(2, q.shape[2:4]) + p[..., s:] @ v
