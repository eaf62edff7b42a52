"""What a walk through a frozen decoder is made of, in double precision against the formulas: values and gradients."""

import pytest
import torch
import torch.nn.functional as F

from vlprompt.layers.blocks.frozen_decoder import gate_silu, normalize_rms, rotate
from vlprompt.layers.blocks.packed_attention import attend_packed

GROUPS = ((1, 3), (2, 4), (1, 1))  # (texts, rows of each): 12 rows


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def compare(ours, expected, inputs):
    """Values to 1e-12, gradients of a random sum to 1e-11."""
    assert torch.allclose(ours, expected, rtol=0, atol=1e-12)
    weights = torch.randn_like(expected)
    found = [torch.autograd.grad((x * weights).sum(), inputs, retain_graph=True) for x in (ours, expected)]
    assert all(torch.allclose(a, b, rtol=0, atol=1e-11) for a, b in zip(*found, strict=True))


def rotate_as_written(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


@pytest.mark.parametrize(
    ("ours", "as_written"),
    [
        (
            lambda x, y: normalize_rms(x, y[0, 0].detach(), 1e-3),
            lambda x, y: x * (x.square().mean(-1, keepdim=True) + 1e-3).rsqrt() * y[0, 0].detach(),
        ),
        (gate_silu, lambda x, y: F.silu(x) * y),
        (
            lambda x, y: rotate(x, y.detach().cos(), y.detach().sin()),
            lambda x, y: rotate_as_written(x, y.detach().cos(), y.detach().sin()),
        ),
    ],
    ids=["norm", "gate", "rotation"],
)
def test_functions_between_the_maps(ours, as_written):
    torch.manual_seed(0)
    x, y = draw(2, 5, 8), draw(2, 5, 8)
    expected = as_written(x, y)
    inputs = [
        t for t in (x, y) if torch.autograd.grad(expected.sum(), t, retain_graph=True, allow_unused=True)[0] is not None
    ]
    compare(ours(x, y), expected, inputs)


@pytest.mark.parametrize("n_shared", [0, 5])
@pytest.mark.parametrize("n_key_heads", [1, 2, 4])
def test_attention_of_texts_behind_shared_keys(n_shared, n_key_heads):
    """Against one text at a time, with the shared keys copied in front of its own and a mask."""
    torch.manual_seed(0)
    q, k, v = draw(1, 4, 12, 6), draw(1, n_key_heads, 12, 6), draw(1, n_key_heads, 12, 6)
    shared = (draw(1, n_key_heads, n_shared, 6), draw(1, n_key_heads, n_shared, 6))
    expected, begin = [], 0
    for length in (n for texts, n in GROUPS for _ in range(texts)):
        text = slice(begin, begin + length)
        keys, values = (
            torch.cat([s, t[:, :, text]], 2).repeat_interleave(4 // n_key_heads, 1)
            for s, t in zip(shared, (k, v), strict=True)
        )
        scores = q[:, :, text] @ keys.mT * 0.3
        is_future = torch.ones(length, length, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(F.pad(is_future, (n_shared, 0)), -torch.inf)
        expected.append(scores.softmax(-1) @ values)
        begin += length
    ours = attend_packed(q, k, v, shared if n_shared else None, GROUPS, 0.3)
    compare(ours, torch.cat(expected, 2), [q, k, v, *(shared if n_shared else ())])
