"""Several rows behind one another in one, each seeing itself alone: the same states, without rows filled up."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vlprompt.backbones.hf.tokenization import Row


def bins(rows: Sequence[Row], room: int) -> list[list[int]]:
    """Which rows stand together, none longer than `room` tokens: each goes, longest first, to the first with place."""
    found, free = list[list[int]](), list[int]()
    for i in sorted(range(len(rows)), key=lambda i: -len(rows[i].ids)):
        n = len(rows[i].ids)
        k = next((k for k, left in enumerate(free) if left >= n), None)
        if k is None:
            found.append([])
            free.append(room)
            k = len(found) - 1
        found[k].append(i)
        free[k] -= n
    return found


class Packed:
    """Rows packed into bins: ids and positions (B, N), mask (B, 1, N, N), and where each row begins (bin, token)."""

    def __init__(self, rows: Sequence[Row], room: int, device: torch.device):
        packs = bins(rows, room)
        n = max(sum(len(rows[i].ids) for i in pack) for pack in packs)
        self.begins: list[tuple[int, int]] = [(0, 0)] * len(rows)
        ids, places, owner = ([[fill] * n for _ in packs] for fill in (0, 0, -1))
        for b, pack in enumerate(packs):
            at = 0
            for i in pack:
                end = at + len(rows[i].ids)
                self.begins[i] = b, at
                ids[b][at:end], places[b][at:end], owner[b][at:end] = rows[i].ids, range(end - at), [i] * (end - at)
                at = end
        self.ids, self.places = torch.tensor(ids, device=device), torch.tensor(places, device=device)
        whose = torch.tensor(owner, device=device)
        own = (whose[:, :, None] == whose[:, None]) & torch.ones(n, n, dtype=torch.bool, device=device).tril()
        self.mask: Tensor = own[:, None]

    def soft(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """Where the soft tokens (rows * P) stand: bins and tokens."""
        found = [(b, at + k) for row, (b, at) in zip(rows, self.begins, strict=True) for k in row.soft]
        where = torch.tensor(found, device=self.ids.device).reshape(-1, 2)
        return where[:, 0], where[:, 1]
