"""Prefixes whose weights do not compete with those of the tokens, as LAE has them (arXiv:2303.10070).

A query's attention to the prefix alone is added to its attention to all rows, of which the prefix has no value.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from vlprompt.core.prompt import KV, AdapterFn, Prompt
from vlprompt.core.towers import VisionTower
from vlprompt.layers.blocks.attention import merge_heads, split_heads
from vlprompt.layers.initial_values import draw_uniform


class CompensatedPrefix(nn.Module):
    """Keys and values (P, D) with a scale each."""

    def __init__(self, width: int, length: int, generator: Generator, device: torch.device):
        super().__init__()
        bound = width**-0.5
        self.keys, self.values = (
            nn.Parameter(draw_uniform((length, width), -bound, bound, generator).to(device)) for _ in "kv"
        )
        self.key_scale, self.value_scale = (nn.Parameter(torch.ones((), device=device)) for _ in "kv")

    def scale(self, n_heads: int) -> KV:
        """Return scaled keys and values (1, H, P, Dh)."""
        rows = self.key_scale * self.keys, self.value_scale * self.values
        keys, values = (split_heads(x[None], n_heads) for x in rows)
        return keys, values


class _PrefixAttention:
    """Attention to the prefix (1, H, P, Dh) of a layer alone, added behind out_weight to what `out` made of the rest.

    Its two methods are the adapters of q and out; it serves one pass.
    """

    def __init__(self, prefix: KV, out_weight: Tensor):
        self.prefix, self.out_weight = prefix, out_weight
        self.queries: Tensor | None = None

    def read_queries(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        self.queries = outputs
        return outputs

    def add_values(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        assert self.queries is not None, "a block makes its queries before its output"
        q = split_heads(self.queries, self.prefix[0].shape[1])
        keys, values = (x.to(q.dtype).expand(len(q), -1, -1, -1) for x in self.prefix)
        attention = merge_heads(F.scaled_dot_product_attention(q, keys, values))
        return outputs + F.linear(attention, self.out_weight.to(attention.dtype))


def insert_prefixes(tower: VisionTower, prefixes: Sequence[CompensatedPrefix]) -> Prompt:
    """Return the prompt for one pass with a prefix in each of the first layers of a tower."""
    entries, adapters = dict[int | str, KV](), dict[str, AdapterFn]()
    for i, prefix in enumerate(prefixes):
        keys, values = prefix.scale(tower.n_heads)
        attention = _PrefixAttention((keys, values), tower.frozen_map(f"{i}/out").weight)
        entries[i] = keys, torch.zeros_like(values)
        adapters |= {f"{i}/q": attention.read_queries, f"{i}/out": attention.add_values}
    return Prompt(prefix=entries, adapters=adapters)
