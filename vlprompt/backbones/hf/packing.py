"""Pack several texts into one row, each attending only to itself: the same states without padding."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vlprompt.backbones.hf.tokenization import TokenizedText


def assign_bins(rows: Sequence[TokenizedText], max_tokens: int) -> list[list[int]]:
    """Assign rows to bins of at most max_tokens by first-fit decreasing; return the indices of each bin."""
    bins, free = list[list[int]](), list[int]()
    for i in sorted(range(len(rows)), key=lambda i: -len(rows[i].ids)):
        n = len(rows[i].ids)
        b = next((b for b, n_free in enumerate(free) if n_free >= n), None)
        if b is None:
            bins.append([])
            free.append(max_tokens)
            b = len(bins) - 1
        bins[b].append(i)
        free[b] -= n
    return bins


class PackedBatch:
    """Texts packed into rows: ids and positions (B, N), attention mask (B, 1, N, N), starts (bin, position).

    Args:
        rows: the tokenized texts.
        max_tokens: maximal length of a packed row.
        device: device of the tensors.
    """

    def __init__(self, rows: Sequence[TokenizedText], max_tokens: int, device: torch.device):
        bins = assign_bins(rows, max_tokens)
        n = max(sum(len(rows[i].ids) for i in indices) for indices in bins)
        self.starts: list[tuple[int, int]] = [(0, 0)] * len(rows)
        ids, positions, row_indices = ([[padding] * n for _ in bins] for padding in (0, 0, -1))
        for b, indices in enumerate(bins):
            start = 0
            for i in indices:
                length = len(rows[i].ids)
                span = slice(start, start + length)
                self.starts[i] = b, start
                ids[b][span], positions[b][span], row_indices[b][span] = rows[i].ids, range(length), [i] * length
                start += length
        self.ids, self.positions = torch.tensor(ids, device=device), torch.tensor(positions, device=device)
        row_of = torch.tensor(row_indices, device=device)  # (B, N)
        is_causal = torch.ones(n, n, dtype=torch.bool, device=device).tril()
        self.attention_mask: Tensor = ((row_of[:, :, None] == row_of[:, None]) & is_causal)[:, None]

    def find_soft_positions(self, rows: Sequence[TokenizedText]) -> tuple[Tensor, Tensor]:
        """Return the bins and the positions of all soft tokens, (B * P,) each."""
        pairs = [(b, start + k) for row, (b, start) in zip(rows, self.starts, strict=True) for k in row.soft_positions]
        indices = torch.tensor(pairs, device=self.ids.device).reshape(-1, 2)
        return indices[:, 0], indices[:, 1]
