"""Alignment of a head on drawn features: torch's own SGD and cosine, step by step."""

import pytest
import torch
from torch.nn import functional as F

from vlprompt.methods._alignment import AlignmentSettings, align


@pytest.mark.parametrize(("period", "max_steps"), [(None, None), (2, 3)])
def test_it_is_torchs_sgd_with_a_cosine_by_epoch(period, max_steps):
    generator = torch.Generator().manual_seed(1)
    draws = [(torch.randn(20, 4, generator=generator).double(), torch.arange(20) % 3) for _ in range(5)]
    mine = torch.nn.Linear(4, 3).double().requires_grad_(False)
    written_out = torch.nn.Linear(4, 3).double()
    written_out.load_state_dict(mine.state_dict())
    optimizer = torch.optim.SGD(written_out.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, period or 5)
    for x, y in draws:
        for i in range(max_steps or 4):
            rows = slice(6 * i, 6 * i + 6)
            optimizer.zero_grad()
            F.cross_entropy(written_out(x[rows]), y[rows]).backward()
            optimizer.step()
        cosine.step()
    settings = AlignmentSettings(5, 0.1, 6, weight_decay=1e-2, period=period, max_steps=max_steps)
    align(list(mine.parameters()), lambda x, y: F.cross_entropy(mine(x), y), iter(draws), settings)
    torch.testing.assert_close(mine.state_dict(), written_out.state_dict(), rtol=1e-12, atol=1e-12)
    assert not any(p.requires_grad or p.grad is not None for p in mine.parameters())
