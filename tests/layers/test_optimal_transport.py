"""Sinkhorn's rounds against loops over single pairs in float64."""

import pytest
import torch

from vlprompt.layers.optimal_transport import compute_transport_plan, compute_transport_scores

B, C, M, N, E = 3, 4, 5, 2, 6


@pytest.fixture
def sets():
    draw = torch.Generator().manual_seed(0)
    image = 1 + torch.randn(B, M, E, dtype=torch.float64, generator=draw)
    return image.requires_grad_(), torch.randn(N, C, E, dtype=torch.float64, generator=draw).requires_grad_()


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def one_pair(cosines, epsilon, max_rounds, threshold):
    """The plan of one image and one class, and its rounds, with matrices."""
    kernel = torch.exp((cosines - 1) / epsilon)
    r, c = torch.ones(M).double(), torch.ones(N).double()
    count, change = 0, float("inf")
    while count < max_rounds and change >= threshold:
        before, r = r, (torch.full_like(r, 1 / M) / (kernel @ c))
        c = torch.full_like(c, 1 / N) / (kernel.T @ r)
        count, change = count + 1, (r - before).abs().mean()
    return torch.diag(r) @ kernel @ torch.diag(c), count


def scores_written_out(image, text, epsilon, max_rounds, threshold):
    rows, counts = [], set()
    for x in unit(image):
        for k in range(C):
            cosines = x @ unit(text)[:, k].T
            plan, count = one_pair(cosines.detach(), epsilon, max_rounds, threshold)
            counts.add(count)
            rows.append((plan * cosines).sum())
    return torch.stack(rows).view(B, C), counts


@pytest.mark.parametrize("settings", [(0.1, 100, 0.01), (0.3, 100, 1e-6), (0.05, 3, 0.0)])
def test_scores_and_gradients(sets, settings):
    found = compute_transport_scores(*sets, *settings)
    expected, counts = scores_written_out(*sets, *settings)
    assert (len(counts) > 1) == (settings[1] > 3)  # pairs stop at different rounds
    assert (found - expected).abs().max() < 1e-12
    weights = torch.randn(B, C, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for a, b in zip(*(torch.autograd.grad((x * weights).sum(), sets) for x in (found, expected)), strict=True):
        assert (a - b).abs().max() < 1e-11


def test_marginals():
    cosines = 2 * torch.rand(M, N, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) - 1
    plan = compute_transport_plan(cosines, 0.1, 2000, 1e-14)
    assert plan.min() > 0
    assert torch.allclose(plan.sum(0), torch.full((N, 7), 1 / N, dtype=torch.float64), atol=1e-13)
    assert torch.allclose(plan.sum(1), torch.full((M, 7), 1 / M, dtype=torch.float64), atol=1e-9)
    first = compute_transport_plan(cosines, 0.1, 1, 0.0)
    assert torch.allclose(first.sum(0), torch.full((N, 7), 1 / N, dtype=torch.float64), atol=1e-13)  # of every round
    assert (first.sum(1) - 1 / M).abs().max() > 1e-3


def test_the_plan_is_the_cheapest_as_the_entropy_goes():
    """Two places and two texts: each place to the text that is its own."""
    cosines = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).double()[..., None]
    sharp = compute_transport_plan(cosines, 0.025, 100, 0.0)
    assert torch.allclose(sharp[..., 0], torch.eye(2).double() / 2, atol=1e-6)
    flat = compute_transport_plan(cosines, 1e6, 100, 0.0)
    assert torch.allclose(flat[..., 0], torch.full((2, 2), 0.25).double(), atol=1e-6)


def test_a_pair_does_not_depend_on_the_others(sets):
    image, text = (x.detach() for x in sets)
    together = compute_transport_scores(image, text, 0.1, 100, 0.01)
    for b in range(B):
        for k in range(C):
            alone = compute_transport_scores(image[b : b + 1], text[:, k : k + 1], 0.1, 100, 0.01)
            assert (alone - together[b, k]).abs() < 1e-14
    # with another image that takes many rounds
    slow = torch.cat([image, -image[:1]])
    assert (compute_transport_scores(slow, text, 0.1, 100, 0.01)[:B] - together).abs().max() < 1e-14


def test_opposite_vectors_and_half_precision():
    x = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    found = compute_transport_scores(x, x.transpose(0, 1), 0.025, 100, 0.01)
    assert found.isfinite().all()
    cosines = (2 * torch.rand(M, N, 7, generator=torch.Generator().manual_seed(3)) - 1).bfloat16()
    half = compute_transport_plan(cosines, 0.1, 100, 0.01)
    assert half.dtype == torch.float32
    assert torch.allclose(half, compute_transport_plan(cosines.float(), 0.1, 100, 0.01))
