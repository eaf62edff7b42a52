"""What two methods or more use."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlprompt.core.towers import AnyTower, Clip, LanguageTower

MAPS = ("patch", "norm1", "q", "k", "v", "out", "norm2", "up", "down", "norm")  # the maps of a ViT that have biases


def dense(fan_in: int, fan_out: int, generator: torch.Generator, device: torch.device, bias: bool = True) -> nn.Linear:
    """A linear layer with torch's usual initial bounds, drawn from a generator on the CPU."""
    layer = nn.Linear(fan_in, fan_out, bias=bias)
    for tensor in (layer.weight, layer.bias) if bias else (layer.weight,):
        tensor.data.copy_((torch.rand(tensor.shape, generator=generator) * 2 - 1) * fan_in**-0.5)
    return layer.to(device)


def uniform(shape: Sequence[int], low: float, high: float, generator: torch.Generator) -> Tensor:
    """Values between low and high, drawn from a generator on the CPU."""
    return (low + high) / 2 + (high - low) / 2 * (torch.rand(tuple(shape), generator=generator) * 2 - 1)


def cosines(x: Tensor, y: Tensor) -> Tensor:
    """x (B, E) and y (M, E) -> (B, M)."""
    return Clip.unit(x) @ Clip.unit(y).T


def hold(module: nn.Module, name: str, value: Tensor, learned: bool) -> None:
    """A tensor of the state: a parameter where it is learned, else a buffer."""
    if learned:
        setattr(module, name, nn.Parameter(value))
    else:
        module.register_buffer(name, value)


class Shift(nn.Module):
    """made + bias (fan_out,), beside any map; starts at zero."""

    def __init__(self, width: int, device: torch.device):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width, device=device))

    def forward(self, given: Tensor, made: Tensor) -> Tensor:
        return made + self.bias

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        return weight, self.bias if bias is None else bias + self.bias


def maps_of(tower: AnyTower, sites: Sequence[str] | None) -> dict[str, tuple[int, int]]:
    """The sites of these kinds; None: of all maps that the tower has."""
    if sites is None and isinstance(tower, LanguageTower):
        kinds = {site.split("/")[-1] for site in tower.sites()}
        sites = [kind for kind in (*MAPS, "gate") if kind in kinds]
    return tower.sites(*(MAPS if sites is None else sites))


def shifts(tower: AnyTower, sites: Sequence[str] | None) -> nn.ModuleDict:
    """A Shift at each of these kinds of site; of a language model where its maps have biases."""
    found = maps_of(tower, sites)
    if isinstance(tower, LanguageTower):
        found = {site: fans for site, fans in found.items() if site in tower.biases}
        if not found:
            raise ValueError(f"{tower.spec} has no biases there, so there are none to train: take ssf, lora or adapter")
    return nn.ModuleDict({site: Shift(out, tower.device) for site, (_, out) in found.items()})


class Bottleneck(nn.Module):
    """x (B, N, D) -> up(dropout(act(down(x)))) with `hidden` units; up starts at zero, so it begins as nothing.

    std: of down's initial weights, None for torch's usual bounds; biases start at zero.
    """

    def __init__(self, width: int, hidden: int, act: nn.Module, std: float | None, dropout: float,
                 generator: torch.Generator, device: torch.device):  # fmt: skip
        super().__init__()
        self.down, self.up = dense(width, hidden, generator, device), nn.Linear(hidden, width, device=device)
        if std is not None:
            self.down.weight.data.copy_(torch.randn(hidden, width, generator=generator) * std)
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            tensor.data.zero_()
        self.act, self.dropout = act, nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.dropout(self.act(self.down(x))))


class LowRank(nn.Module):
    """What stands beside a frozen map: made + scale * up(down(given)); up (fan_out, rank) starts at zero.

    down (rank, fan_in) has the initial values of Hu et al., ICLR 2022 (arXiv:2106.09685).
    """

    def __init__(self, fans: tuple[int, int], rank: int, scale: float, dropout: float, generator: torch.Generator,
                 device: torch.device):  # fmt: skip
        super().__init__()
        (fan_in, fan_out), bound = fans, 1 / math.sqrt(fans[0])
        down = (torch.rand(rank, fan_in, generator=generator) * 2 - 1) * bound
        self.down, self.up = nn.Parameter(down.to(device)), nn.Parameter(torch.zeros(fan_out, rank, device=device))
        self.scale, self.dropout = scale, nn.Dropout(dropout)

    def forward(self, given: Tensor, made: Tensor) -> Tensor:
        return made + self.scale * (self.dropout(given) @ self.down.T @ self.up.T)

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if weight.ndim != 2:
            raise ValueError(
                "a low-rank update belongs beside a linear map, not beside a norm: its weights can't hold it"
            )
        return weight + self.scale * self.up @ self.down, bias
