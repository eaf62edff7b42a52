"""A small transformer decoder whose queries read the features of the other modality, and losses of both modalities."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.core.method import Output
from vlprompt.core.towers import Clip
from vlprompt.layers.blocks.attention import attend, merge_heads, split_heads
from vlprompt.layers.initial_values import make_linear

EPSILON = 1e-5  # in logarithms


class _Attention(nn.Module):
    """Attention of queries (B, N, D) to a memory (B, M, D), with a bias in the last map alone."""

    def __init__(self, width: int, n_heads: int, dropout: float, generator: torch.Generator, device: torch.device):
        super().__init__()
        self.n_heads, self.dropout = n_heads, nn.Dropout(dropout)
        self.q, self.k, self.v = (make_linear(width, width, generator, device, bias=False) for _ in range(3))
        self.out = make_linear(width, width, generator, device)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        q, k, v = (split_heads(y, self.n_heads) for y in (self.q(x), self.k(memory), self.v(memory)))
        return self.dropout(self.out(merge_heads(attend(q, k, v))))


class _DecoderLayer(nn.Module):
    def __init__(self, width: int, n_heads: int, dropout: float, generator: torch.Generator, device: torch.device):
        super().__init__()
        self.self_attention = _Attention(width, n_heads, dropout, generator, device)
        self.cross_attention = _Attention(width, n_heads, dropout, generator, device)
        self.norms = nn.ModuleList([nn.LayerNorm(width, device=device) for _ in range(3)])
        up, down = make_linear(width, 4 * width, generator, device), make_linear(4 * width, width, generator, device)
        self.mlp = nn.Sequential(up, nn.GELU(), nn.Dropout(dropout), down, nn.Dropout(dropout))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        normalised = self.norms[0](x)
        x = x + self.self_attention(normalised, normalised)
        x = x + self.cross_attention(self.norms[1](x), memory)
        return x + self.mlp(self.norms[2](x))


class ContextDecoder(nn.Module):
    """Map queries and a memory in the joint space to what the queries read there.

    Args:
        dim: width of the joint space (E).
        width, n_heads, n_layers, dropout: of the decoder.
        generator: of the initial values.
        device: of the parameters.
    """

    def __init__(
        self,
        dim: int,
        width: int,
        n_heads: int,
        n_layers: int,
        dropout: float,
        generator: torch.Generator,
        device: torch.device,
    ):
        super().__init__()
        norm = lambda n: nn.LayerNorm(n, device=device)  # noqa: E731
        self.memory = nn.Sequential(norm(dim), make_linear(dim, width, generator, device), norm(width))
        self.query = nn.Sequential(norm(dim), make_linear(dim, width, generator, device))
        layers = [_DecoderLayer(width, n_heads, dropout, generator, device) for _ in range(n_layers)]
        self.layers = nn.ModuleList(layers)
        self.out = nn.Sequential(norm(width), make_linear(width, dim, generator, device))

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        """Decode queries (B, N, E), which see each other and a memory (B, M, E): (B, N, E)."""
        x, memory = self.query(query), self.memory(memory)
        for layer in self.layers:
            x = layer(x, memory)
        return self.out(x)


def sum_cross_entropies(outputs: Sequence[Output], labels: Tensor) -> Tensor:
    """Add up the losses (B,) of several answers to the same images."""
    labels = labels.to(outputs[0].logits.device)
    return torch.stack([F.cross_entropy(out.logits.float(), labels, reduction="none") for out in outputs]).sum(0)


def compute_contrast(clip: Clip, output: Output) -> Tensor:
    """Contrast image features (B, E) with the class texts (B, C, E) that each image made, in both directions."""
    image, text = output.image_features, output.text_features
    assert image is not None
    assert text is not None
    similarities = clip.scale * clip.unit(image) @ clip.unit(text).mean(1).T  # mean cosine over classes
    partner = torch.arange(len(image), device=image.device)
    return (F.cross_entropy(similarities, partner) + F.cross_entropy(similarities.T, partner)) / 2


def compute_information_loss(logits: Tensor, is_used: Tensor) -> Tensor:
    """Compute the mean entropy of answers (B, C) less the entropy of their mean, over the rows (B,) that are used."""
    p, n = logits.float().softmax(-1), is_used.sum().clamp(min=1)
    entropies = -(p * (p + EPSILON).log()).sum(1)
    mean = (p * is_used[:, None]).sum(0) / n + EPSILON
    return (entropies * is_used).sum() / n + (mean * mean.log()).sum()
