"""Trainable modules at the sites of frozen maps, and how they are initialised."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlprompt.core.towers import AnyTower, Clip, LanguageTower, WeightedMap
from vlprompt.layers.initial_values import make_linear
from vlprompt.layers.weight_merging import replace_weights

# the maps of a ViT that have biases
VIT_MAP_SITES = ("patch", "norm1", "q", "k", "v", "out", "norm2", "up", "down", "norm")


def cosine_similarity(x: Tensor, y: Tensor) -> Tensor:
    """x (B, E) and y (M, E) -> (B, M)."""
    return Clip.unit(x) @ Clip.unit(y).T


def register_tensor(module: nn.Module, name: str, value: Tensor, is_trainable: bool) -> None:
    """Register a tensor of the state: a parameter if it is trained, else a buffer."""
    if is_trainable:
        setattr(module, name, nn.Parameter(value))
    else:
        module.register_buffer(name, value)


class BiasAdapter(nn.Module):
    """Add a bias (fan_out,) to the output of any map; it starts at zero."""

    def __init__(self, width: int, device: torch.device):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width, device=device))

    def forward(self, given: Tensor, made: Tensor) -> Tensor:
        return made + self.bias

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        return weight, self.bias if bias is None else bias + self.bias


class NormAdapter(nn.Module):
    """A frozen norm with another gain and bias (D,), which start at its own."""

    def __init__(self, frozen: WeightedMap):
        super().__init__()
        self.frozen, self.weight = (frozen,), nn.Parameter(frozen.weight.detach().clone())
        self.bias = None if frozen.bias is None else nn.Parameter(frozen.bias.detach().clone())

    def forward(self, given: Tensor, made: Tensor) -> Tensor:
        return replace_weights(self.frozen[0], self.weight, self.bias)(given)

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.weight, self.bias


def find_map_sites(tower: AnyTower, kinds: Sequence[str] | None) -> dict[str, tuple[int, int]]:
    """Return the sites of these kinds with their widths; None for all maps that the tower has."""
    if kinds is None and isinstance(tower, LanguageTower):
        known_kinds = {site.split("/")[-1] for site in tower.sites()}
        kinds = [kind for kind in (*VIT_MAP_SITES, "gate") if kind in known_kinds]
    return tower.sites(*(VIT_MAP_SITES if kinds is None else kinds))


def build_bias_adapters(tower: AnyTower, kinds: Sequence[str] | None) -> nn.ModuleDict:
    """Build a BiasAdapter at each site of these kinds; in a language model, where the maps have biases."""
    sites = find_map_sites(tower, kinds)
    if isinstance(tower, LanguageTower):
        sites = {site: fans for site, fans in sites.items() if site in tower.sites_with_bias}
        if not sites:
            raise ValueError(
                f"method.sites: expected sites with biases, got {tower.spec}, which has no biases there. "
                "Take another method, such as ssf, lora or adapter."
            )
    return nn.ModuleDict({site: BiasAdapter(fan_out, tower.device) for site, (_, fan_out) in sites.items()})


class Bottleneck(nn.Module):
    """x (B, N, D) -> up(dropout(act(down(x)))); up starts at zero, so it begins as nothing.

    Args:
        width: D.
        hidden: units of the bottleneck.
        act: its activation.
        std: of down's initial weights, None for torch's usual bounds; biases start at zero.
        dropout: of hidden units.
        generator: of the initial values.
        device: of the weights.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        act: nn.Module,
        std: float | None,
        dropout: float,
        generator: torch.Generator,
        device: torch.device,
    ):
        super().__init__()
        self.down, self.up = make_linear(width, hidden, generator, device), nn.Linear(hidden, width, device=device)
        if std is not None:
            self.down.weight.data.copy_(torch.randn(hidden, width, generator=generator) * std)
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            tensor.data.zero_()
        self.act, self.dropout = act, nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.dropout(self.act(self.down(x))))


class ParallelBottleneck(Bottleneck):
    """outputs + scale * bottleneck(inputs)."""

    def __init__(self, scale: float, *args: Any):
        super().__init__(*args)
        self.scale = scale

    def forward(self, inputs: Tensor, outputs: Tensor) -> Tensor:  # type: ignore[override]
        return outputs + self.scale * super().forward(inputs)


class LowRankAdapter(nn.Module):
    """made + scale * up(down(given)), with down (rank, fan_in) and up (fan_out, rank), which starts at zero.

    down has the initial values of Hu et al., ICLR 2022 (arXiv:2106.09685).

    Args:
        fans: (fan_in, fan_out) of the frozen map.
        rank: of the update.
        scale: of the update.
        dropout: of the input.
        generator: of the initial values.
        device: of the weights.

    Attributes:
        trains_down: whether down is a parameter, or a buffer that stays as it was drawn.
    """

    trains_down: bool = True
    down: Tensor

    def __init__(
        self,
        fans: tuple[int, int],
        rank: int,
        scale: float,
        dropout: float,
        generator: torch.Generator,
        device: torch.device,
    ):
        super().__init__()
        (fan_in, fan_out), bound = fans, 1 / math.sqrt(fans[0])
        down = (torch.rand(rank, fan_in, generator=generator) * 2 - 1) * bound
        register_tensor(self, "down", down.to(device), self.trains_down)
        self.up = nn.Parameter(torch.zeros(fan_out, rank, device=device))
        self.scale, self.dropout = scale, nn.Dropout(dropout)

    def forward(self, given: Tensor, made: Tensor) -> Tensor:
        return made + self.scale * (self.dropout(given) @ self.down.T @ self.up.T)

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if weight.ndim != 2:
            raise ValueError(
                f"LowRankAdapter: expected a linear map with a weight (out, in), got a weight of {weight.ndim} "
                "dimensions, as norms have. Put it at a linear map."
            )
        return weight + self.scale * self.up @ self.down, bias
