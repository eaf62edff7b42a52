"""Attention of images over rows that they share, against every sequence written out."""

import torch
import torch.nn.functional as F

from vlprompt.layers.blocks.attention import SharedRowAttention
from vlprompt.runtime.seeding import make_generator


def build(dropout=0.0):
    part = SharedRowAttention(12, dropout, make_generator("shared rows"), torch.device("cpu")).double()
    for p in part.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=make_generator(str(p.shape)), dtype=torch.float64)
    return part


def written_out(part, image, rows):
    """The whole sequence of one image (12,) through all of its attention."""
    x = torch.cat([image[None], rows])
    scores = part.query(x) @ part.key(x).T / 12**0.5
    return part.norm(x + part.out(scores.softmax(1) @ part.value(x)))


def test_it_is_the_attention_of_each_whole_sequence():
    part, draw = build(), make_generator("inputs")
    image, rows = (torch.randn(n, 12, generator=draw, dtype=torch.float64).requires_grad_() for n in (5, 9))
    weights = [torch.randn(5, n, 12, generator=draw, dtype=torch.float64) for n in (1, 6)]
    fused, read = part(image, rows, 6)
    assert (fused.shape, read.shape) == ((5, 12), (5, 6, 12))
    whole = torch.stack([written_out(part, one, rows) for one in image])
    assert (fused - whole[:, 0]).abs().max() < 1e-12
    assert (read - whole[:, 1:7]).abs().max() < 1e-12
    leaves = [image, rows, *part.parameters()]
    ours = torch.autograd.grad((fused[:, None] * weights[0]).sum() + (read * weights[1]).sum(), leaves)
    theirs = torch.autograd.grad((whole[:, :1] * weights[0]).sum() + (whole[:, 1:7] * weights[1]).sum(), leaves)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() < 1e-11


def test_dropout_is_of_training_alone_and_keeps_the_mean():
    part, draw = build(0.5), make_generator("inputs")
    image, rows = (torch.randn(n, 12, generator=draw, dtype=torch.float64) for n in (2, 4))
    part.norm = torch.nn.Identity()  # what stands before it is linear in what was dropped
    with torch.no_grad():
        fused, read = part.eval()(image, rows, 4)
        torch.manual_seed(0)
        drawn = [part.train()(image, rows, 4) for _ in range(500)]
    for plain, place in ((fused, 0), (read, 1)):
        values = torch.stack([both[place] for both in drawn])
        assert not torch.equal(values[0], values[1])
        assert (values.mean(0) - plain).abs().max() < 6 * float(values.std(0).max()) / 500**0.5


def test_equal_rows_share_the_attention_equally():
    """With no query every weight is the same: an image is one of n + 1 rows."""
    part, draw = build(), make_generator("equal")
    part.query.weight.data.zero_()
    image, rows = (torch.randn(n, 12, generator=draw, dtype=torch.float64) for n in (3, 7))
    _, read = part(image, rows, 1)
    mean = part.out((part.value(image)[:, None] + part.value(rows).sum(0)) / 8)[:, 0]
    assert torch.allclose(read[:, 0], F.layer_norm(rows[0] + mean, (12,), part.norm.weight, part.norm.bias))
