"""Attention with a prefix of keys and values, of many texts behind shared keys, and of images over shared rows."""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vlprompt.core.prompt import KV
from vlprompt.layers.initial_values import make_linear

TextGroups: TypeAlias = tuple[tuple[int, int], ...]  # (texts, rows per text)
GroupVisibility: TypeAlias = tuple[Tensor | None, ...] | None  # visible rows (texts, rows) of each group (None: all)


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """(B, N, H * Dh) -> (B, H, N, Dh)."""
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, N, Dh) -> (B, N, H * Dh)."""
    return x.transpose(1, 2).flatten(2)


def expand_rows(t: Tensor, n: int) -> Tensor:
    """Expand t (R, ..), R a divisor of n, to (n, ..): each of its rows is for n / R rows that follow one another."""
    if t.shape[0] == 1 or t.shape[0] == n:
        return t.expand(n, *t.shape[1:])
    return t.repeat_interleave(n // t.shape[0], 0)


def prepend_prefix(prefix: KV | None, k: Tensor, v: Tensor) -> KV:
    """Put a prefix (R, H, P, Dh), R a divisor of B, in front of keys and values (B, H, N, Dh)."""
    if prefix is None:
        return k, v
    k1, v1 = (expand_rows(p.to(t.dtype), t.shape[0]) for p, t in zip(prefix, (k, v), strict=True))
    return torch.cat([k1, k], 2), torch.cat([v1, v], 2)


def select_positions(x: Tensor, positions: Tensor | None) -> Tensor:
    """Select rows of x (B, N, D): all (None), the same ones of each sequence (r,), or different ones (B, r)."""
    if positions is None:
        return x
    return x[:, positions] if positions.ndim == 1 else torch.take_along_dim(x, positions[..., None], 1)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix: KV | None = None,
    causal: bool = False,
    positions: Tensor | None = None,
    visible: Tensor | None = None,
) -> Tensor:
    """Compute attention; every query sees the whole prefix.

    Args:
        q: (B, H, r, Dh), the queries of the rows `positions` of N.
        k: (B, H, N, Dh).
        v: (B, H, N, Dh).
        prefix: keys and values (1 or B, H, P, Dh) in front of k and v.
        causal: whether a row sees only itself and the rows before it.
        positions: (r,) or (B, r), None for all N rows.
        visible: (B, N), the keys that may be seen (None: all).

    Returns:
        (B, H, r, Dh).
    """
    n, mask = k.shape[2], None
    k, v = prepend_prefix(prefix, k, v)
    if causal:
        mask = torch.ones(n, k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - n)
        mask = mask if positions is None else mask[positions] if positions.ndim == 1 else mask[positions][:, None]
    if visible is not None:
        visible_keys = F.pad(visible, (k.shape[2] - n, 0), value=True)[:, None, None]
        mask = visible_keys if mask is None else mask & visible_keys
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class _TextGroup(NamedTuple):
    """The rows of a group of n texts of one length l: q (R, H, n, r, Dh) with r = l or 1, k and v (R, H, n, l, Dh)."""

    q: Tensor
    k: Tensor
    v: Tensor


class _SavedAttention(Protocol):
    """What attention saves for its backward pass."""

    saved_tensors: tuple[Tensor, ...]
    groups: TextGroups
    causal: bool

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _SharedPrefixAttention(torch.autograd.Function):
    """`attend_shared` with its derivative; only the probabilities are saved for the backward pass."""

    @staticmethod
    def forward(
        ctx: _SavedAttention,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        ks: Tensor,
        vs: Tensor,
        groups: TextGroups,
        visible: GroupVisibility,
    ):
        scale, s, causal = q.shape[-1] ** -0.5, ks.shape[2], visible is None
        shared_scores = (q @ ks.mT).split(_queries_per_group(groups, causal), 2)
        outputs, probabilities = list[Tensor](), list[Tensor]()
        for shared, text_visible, group in zip(
            shared_scores, visible or [None] * len(groups), _split_by_group(q, k, v, groups, causal), strict=True
        ):
            text = _masked_scores(group, causal, text_visible)  # (R, H, n, r, l)
            scores = torch.cat([shared.unflatten(2, text.shape[2:4]), text], -1).mul_(scale)
            p = scores.softmax(-1, torch.promote_types(q.dtype, torch.float32)).to(q.dtype)
            shared_output = (p[..., :s].flatten(2, 3) @ vs).unflatten(2, text.shape[2:4])
            outputs.append((shared_output + p[..., s:] @ group.v).flatten(2, 3))
            probabilities.append(p)
        ctx.save_for_backward(q, k, v, ks, vs, *probabilities)
        ctx.groups, ctx.causal = groups, causal
        return torch.cat(outputs, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: _SavedAttention, g: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, ks, vs, *probabilities = ctx.saved_tensors
        groups, causal, scale, s = ctx.groups, ctx.causal, q.shape[-1] ** -0.5, ks.shape[2]
        shared_grads = (g @ vs.mT).split(_queries_per_group(groups, causal), 2)
        dq, dk, dv, ds_shared = list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()
        for dp_shared, output_grad, p, group in zip(
            shared_grads,
            _split_by_group(g, k, v, groups, causal),
            probabilities,
            _split_by_group(q, k, v, groups, causal),
            strict=True,
        ):
            dp = torch.cat([dp_shared.unflatten(2, p.shape[2:4]), output_grad.q @ group.v.mT], -1)
            ds = torch.ops.aten._softmax_backward_data(dp, p, -1, p.dtype).mul_(scale)
            ds_text = ds[..., s:]
            dq.append((ds_text @ group.k).flatten(2, 3))
            dk.append((ds_text.mT @ group.q).flatten(2, 3))
            dv.append((p[..., s:].mT @ output_grad.q).flatten(2, 3))
            ds_shared.append(ds[..., :s].flatten(2, 3))
        ds, p = torch.cat(ds_shared, 2), torch.cat([p[..., :s].flatten(2, 3) for p in probabilities], 2)
        return torch.cat(dq, 2) + ds @ ks, torch.cat(dk, 2), torch.cat(dv, 2), ds.mT @ q, p.mT @ g, None, None


def _masked_scores(group: _TextGroup, causal: bool, visible: Tensor | None) -> Tensor:
    """Scores (R, H, n, r, l) of a group's queries and its texts' keys."""
    scores = group.q @ group.k.mT
    if causal and scores.shape[-1] > 1:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores.masked_fill_(future, -math.inf)
    elif visible is not None:
        scores.masked_fill_(~visible[:, None], -math.inf)
    return scores


def _queries_per_group(groups: TextGroups, causal: bool) -> list[int]:
    """Count the queries of each group: one per row, or one per text."""
    return [n * (l if causal else 1) for n, l in groups]


def _split_by_group(q: Tensor, k: Tensor, v: Tensor, groups: TextGroups, causal: bool) -> list[_TextGroup]:
    def split(x: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        parts = x.split(list(sizes), 2)
        return [part.unflatten(2, (n, -1)) for part, (n, _) in zip(parts, groups, strict=True)]

    rows = [n * l for n, l in groups]
    parts = zip(split(q, _queries_per_group(groups, causal)), split(k, rows), split(v, rows), strict=True)
    return [_TextGroup(*part) for part in parts]


def attend_shared(
    q: Tensor, k: Tensor, v: Tensor, shared: KV, groups: TextGroups, visible: GroupVisibility = None
) -> Tensor:
    """Compute attention of many texts that see the same shared keys, then their own; nothing is copied per text.

    It can be differentiated once.

    Args:
        q: (R, H, T, Dh): all rows, each of which sees the rows before it (visible None), or one row per text.
        k: (R, H, T, Dh).
        v: (R, H, T, Dh).
        shared: keys and values (R, H, P, Dh).
        groups: (texts, rows per text) of consecutive texts of one length.
        visible: of one row per text, the rows (texts, rows) of each group that it sees (None: all).

    Returns:
        A tensor of q's shape.
    """
    with torch.autocast(q.device.type, enabled=False):
        return _SharedPrefixAttention.apply(q, k, v, *(t.to(q.dtype) for t in shared), groups, visible)  # pyright: ignore[reportReturnType]


class SharedRowAttention(nn.Module):
    """One head over a row of each image and rows that all images share, with a residual and a norm behind it.

    What a shared row sees of the others is the same with every image, so it is computed once: in all, n images cost
    n (R + S) products of rows instead of n (1 + R) (1 + S). In training one dropout of it is for all images.

    Args:
        dim: width of the rows.
        dropout: of the weights and of the output.
        generator: of the initial values.
        device: of the weights.
    """

    def __init__(self, dim: int, dropout: float, generator: torch.Generator, device: torch.device):
        super().__init__()
        self.query, self.key, self.value = (make_linear(dim, dim, generator, device, bias=False) for _ in range(3))
        self.out, self.norm = make_linear(dim, dim, generator, device), nn.LayerNorm(dim, device=device)
        self.scale, self.dropout = dim**-0.5, nn.Dropout(dropout)

    def forward(self, image: Tensor, rows: Tensor, n_read: int) -> tuple[Tensor, Tensor]:
        """Attend from each image (B, D), and from the first n_read (R) of the shared rows (S, D), to all.

        Returns:
            (B, D), and (B, R, D).
        """
        query, key, value = self.query(rows[:n_read]) * self.scale, self.key(rows), self.value(rows)
        image_query, image_key, image_value = self.query(image) * self.scale, self.key(image), self.value(image)
        scores = torch.cat([(image_query * image_key).sum(1, keepdim=True), image_query @ key.T], 1)
        weights = self.dropout(scores.softmax(1))
        seen = self.out(weights[:, :1] * image_value + weights[:, 1:] @ value)
        scores = query @ key.T
        share = (image_key @ query.T - scores.logsumexp(1)).sigmoid()[..., None]  # of the image in what a row sees
        others = F.linear(self.dropout(scores.softmax(1)) @ value, self.out.weight)
        of_image = F.linear(image_value, self.out.weight)[:, None]
        seen_by_rows = self.dropout(share) * of_image + (1 - share) * others + self.out.bias
        return self.norm(image + self.dropout(seen)), self.norm(rows[:n_read] + self.dropout(seen_by_rows))
