"""Trainable copies of what is frozen: the exception that is asked for by name (tower.copy(), tower.cut(k))."""

import copy
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vlprompt.core.prompt import NOTHING, Prompt
from vlprompt.layers.block import Attend, Block, walk
from vlprompt.layers.frozen_maps import Affine, Map, Scale


class BlockTower(Protocol):
    """What a trainable copy needs of a tower of images that walks block by block."""

    blocks: Sequence[Block]
    norm: Map
    embed: Map
    pre: Map
    project: Map
    special: int
    class_tokens: Tensor
    positions: Tensor
    attention: Attend

    def begun(self, pixels: Tensor, prompt: Prompt) -> tuple[Tensor, Prompt]: ...
    def ended(self, x: Tensor, prompt: Prompt, read: str) -> Tensor: ...
    def encode(self, pixels: Tensor) -> Tensor: ...


class Line(nn.Module):
    """A linear map that is trained."""

    def __init__(self, frozen: Affine):
        super().__init__()
        self.weight = nn.Parameter(frozen.weight.detach().clone())
        self.bias = None if frozen.bias is None else nn.Parameter(frozen.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


class Gain(nn.Module):
    """A layer scale that is trained."""

    def __init__(self, frozen: Scale):
        super().__init__()
        self.gain = nn.Parameter(frozen.gain.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


def trainable(frozen: Any) -> nn.Module | None:
    """A copy of a map that has weights; None for what has none."""
    if isinstance(frozen, Affine):
        return Line(frozen)
    if isinstance(frozen, Scale):
        return Gain(frozen)
    if isinstance(frozen, nn.Module) and any(True for _ in frozen.parameters()):
        return copy.deepcopy(frozen).requires_grad_(True)
    return None


class Layer(nn.Module):
    """A block that is trained; q, k and v stay packed where they were."""

    def __init__(self, frozen: Block):
        super().__init__()
        self.maps, self._frozen = nn.ModuleDict(), frozen
        for field in fields(Block):
            packed = field.name in ("q", "k", "v") and frozen.qkv is not None
            if not packed and (made := trainable(getattr(frozen, field.name))) is not None:
                self.maps[field.name] = made

    def block(self) -> Block:
        """The block as a value over the parameters of now."""
        change: dict[str, Any] = dict(self.maps.items())
        if isinstance(packed := change.get("qkv"), Line):
            weights = packed.weight.chunk(3)
            biases = (None,) * 3 if packed.bias is None else packed.bias.chunk(3)
            change |= {kind: Affine(w, b) for kind, w, b in zip("qkv", weights, biases, strict=True)}
        return replace(self._frozen, **change)


class Upper(nn.Module):
    """The blocks of a ViT from `begin` on and its last norm, trained: rows (B, N, D) -> features (B, E)."""

    def __init__(self, tower: BlockTower, begin: int):
        super().__init__()
        self._tower = tower
        self.layers = nn.ModuleList(Layer(block) for block in tower.blocks[begin:])
        self.norm = trainable(tower.norm)

    def now(self) -> BlockTower:
        """The tower as a value over the parameters of now."""
        made = copy.copy(self._tower)
        made.blocks = [layer.block() for layer in self.layers]  # type: ignore[operator]
        made.norm = self.norm or made.norm
        return made

    def forward(self, rows: Tensor) -> Tensor:
        return self.now().ended(rows, NOTHING, "pooled")


class Whole(Upper):
    """A whole ViT, trained: patches, class and register tokens, positions, norms, blocks, projection.

    What a library pools by attention (SigLIP, CoCa) stays frozen. Pixels (B, 3, h, w) -> features (B, E).
    """

    def __init__(self, tower: BlockTower):
        super().__init__(tower, 0)
        self.embed, self.pre, self.project = (trainable(f) for f in (tower.embed, tower.pre, tower.project))
        self.special = nn.Parameter(tower.class_tokens.detach().clone()) if tower.special else None
        self.positions = nn.Parameter(tower.positions.detach().clone()) if bool(tower.positions.any()) else None

    def now(self) -> BlockTower:
        made = super().now()
        for name, value in (("embed", self.embed), ("pre", self.pre), ("project", self.project),
                            ("class_tokens", self.special), ("positions", self.positions)):  # fmt: skip
            if value is not None:
                setattr(made, name, value)
        return made

    def forward(self, rows: Tensor) -> Tensor:  # they are pixels here
        return self.now().encode(rows)


def lower(tower: BlockTower, depth: int) -> Map:
    """The first blocks of a ViT: pixels -> rows (B, N, D)."""

    def rows(pixels: Tensor) -> Tensor:
        with torch.no_grad():
            return walk(tower.blocks[:depth], tower.begun(pixels, NOTHING)[0], attention=tower.attention)

    return rows
