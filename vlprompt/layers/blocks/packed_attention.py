"""Causal attention of many texts in one row, each behind keys that all of them share, on a CPU."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vlprompt.core.prompt import KV
from vlprompt.layers.blocks.attention import TextGroups

_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attend_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _SavedAttention(Protocol):
    """What attention saves for its backward pass: no probabilities, which come again from the logarithms of sums."""

    saved_tensors: tuple[Tensor, ...]
    groups: TextGroups
    scale: float

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _PackedAttention(torch.autograd.Function):
    """`attend_packed` with its derivative."""

    @staticmethod
    def forward(
        ctx: _SavedAttention,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        ks: Tensor,
        vs: Tensor,
        groups: TextGroups,
        scale: float,
    ):
        n_copies, sum_dtype = q.shape[1] // k.shape[1], torch.promote_types(q.dtype, torch.float32)
        output, sums = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=sum_dtype)
        for (text_output, text_sums), (text_q, *kv) in zip(
            _iter_texts((output, sums), groups), _iter_texts((q, k, v), groups), strict=True
        ):
            text_output[:], text_sums[:] = _attend(text_q, *repeat_heads(kv, n_copies), 0.0, True, scale=scale)
        if ks.shape[2]:
            shared_output, shared_sums = _attend(q, *repeat_heads((ks, vs), n_copies), 0.0, False, scale=scale)
            share = torch.sigmoid(shared_sums - sums)[..., None].to(q.dtype)  # of the shared keys in what a row sees
            output.lerp_(shared_output, share)
            sums = torch.logaddexp(sums, shared_sums)
        ctx.save_for_backward(q, k, v, ks, vs, output, sums)
        ctx.groups, ctx.scale = groups, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: _SavedAttention, g: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, ks, vs, output, sums = ctx.saved_tensors
        dq, dk, dv = (torch.empty_like(t) for t in (q, k, v))

        def derive(g: Tensor, q: Tensor, kv: Sequence[Tensor], output: Tensor, sums: Tensor, causal: bool):
            # with the sums over all keys, the probabilities that come again are those among all keys
            repeated = repeat_heads(kv, q.shape[1] // kv[0].shape[1])
            dq, *dkv = _attend_backward(g, q, *repeated, output, sums, 0.0, causal, scale=ctx.scale)
            return dq, *(_sum_heads(grad, one.shape[1]) for grad, one in zip(dkv, kv, strict=True))

        rows = _iter_texts((g, q, k, v, output, sums), ctx.groups)
        for grads, (text_g, text_q, text_k, text_v, text_output, text_sums) in zip(
            _iter_texts((dq, dk, dv), ctx.groups), rows, strict=True
        ):
            found = derive(text_g, text_q, (text_k, text_v), text_output, text_sums, True)
            for grad, one in zip(grads, found, strict=True):
                grad[:] = one
        dks = dvs = None
        if ks.shape[2]:
            shared_dq, dks, dvs = derive(g, q, (ks, vs), output, sums, False)
            dq += shared_dq
        return dq, dk, dv, dks, dvs, None, None


def _iter_texts(tensors: Sequence[Tensor], groups: TextGroups) -> Iterator[list[Tensor]]:
    """Yield the rows of each group of texts, (texts, H, rows, ...), of tensors (1, H, T, ...)."""
    begin = 0
    for n, length in groups:
        end = begin + n * length
        yield [t[0, :, begin:end].unflatten(1, (n, length)).transpose(0, 1) for t in tensors]
        begin = end


def repeat_heads(kv: Sequence[Tensor], n_copies: int) -> Sequence[Tensor]:
    """Repeat each head of keys and values (B, H, N, Dh) for the queries that share it."""
    return kv if n_copies == 1 else [t.repeat_interleave(n_copies, 1) for t in kv]


def _sum_heads(grad: Tensor, n_heads: int) -> Tensor:
    return grad if grad.shape[1] == n_heads else grad.unflatten(1, (n_heads, -1)).sum(2)


def attend_packed(q: Tensor, k: Tensor, v: Tensor, shared: KV | None, groups: TextGroups, scale: float) -> Tensor:
    """Compute attention of texts that see the same shared keys, then their own rows up to each one.

    Nothing is copied or masked, and no probabilities are stored. It can be differentiated once.

    Args:
        q: (1, H, T, Dh), the rows of all texts, one text after the other.
        k: (1, K, T, Dh), each head for H / K heads of q.
        v: (1, K, T, Dh).
        shared: keys and values (1, K, P, Dh); None: none.
        groups: (texts, rows per text) of consecutive texts of one length.
        scale: of the scores.

    Returns:
        A tensor of q's shape.
    """
    ks, vs = (k[:, :, :0], v[:, :, :0]) if shared is None else (t.to(q.dtype) for t in shared)
    return _PackedAttention.apply(q, k, v, ks, vs, groups, scale)  # pyright: ignore[reportReturnType]
