"""Trainable copies of frozen blocks and towers: `tower.trainable_copy()` and `tower.split_at(k)`."""

import copy
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from vlprompt.backbones.cache.memory import FeatureCache
from vlprompt.core.prompt import NOTHING, Prompt
from vlprompt.layers.blocks.block import AttentionFn, Block, walk
from vlprompt.layers.blocks.cuda_graphs import CudaGraphCache
from vlprompt.layers.frozen_maps import FrozenLinear, FrozenMap, FrozenScale

PositionedTokens: TypeAlias = Literal["all", "patches", "none"]


class BlockTower(Protocol):
    """The parts of a block-wise image tower that a trainable copy needs."""

    blocks: Sequence[Block]
    norm: FrozenMap
    embed: FrozenMap
    pre_norm: FrozenMap
    project: FrozenMap
    n_special_tokens: int
    special_tokens: Tensor
    position_embeddings: Tensor
    positioned_tokens: PositionedTokens
    attention: AttentionFn
    feature_cache: FeatureCache
    cuda_graphs: CudaGraphCache | None

    def embed_pixels(self, pixels: Tensor, prompt: Prompt) -> tuple[Tensor, Prompt]: ...
    def run_blocks(self, x: Tensor, prompt: Prompt, outputs: Sequence[str]) -> tuple[Tensor, ...]: ...
    def encode(self, pixels: Tensor) -> Tensor: ...


class TrainableLinear(nn.Module):
    """A trainable copy of a frozen linear map."""

    def __init__(self, frozen: FrozenLinear):
        super().__init__()
        self.weight = nn.Parameter(frozen.weight.detach().clone())
        self.bias = None if frozen.bias is None else nn.Parameter(frozen.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


class TrainableScale(nn.Module):
    """A trainable copy of a layer scale."""

    def __init__(self, frozen: FrozenScale):
        super().__init__()
        self.gain = nn.Parameter(frozen.gain.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


def copy_trainable(frozen: object) -> nn.Module | None:
    """Return a trainable copy of a map; None for a map without weights."""
    if isinstance(frozen, FrozenLinear):
        return TrainableLinear(frozen)
    if isinstance(frozen, FrozenScale):
        return TrainableScale(frozen)
    if isinstance(frozen, nn.Module) and any(True for _ in frozen.parameters()):
        return copy.deepcopy(frozen).requires_grad_(True)
    return None


class TrainableBlock(nn.Module):
    """A trainable copy of a block; q, k and v stay packed if they were."""

    def __init__(self, frozen: Block):
        super().__init__()
        self.maps, self._frozen = nn.ModuleDict(), frozen
        for field in fields(Block):
            is_packed = field.name in ("q", "k", "v") and frozen.qkv is not None
            if not is_packed and (module := copy_trainable(getattr(frozen, field.name))) is not None:
                self.maps[field.name] = module

    def as_block(self) -> Block:
        """Return the block as a value over the current parameters."""
        maps: dict[str, Any] = dict(self.maps.items())
        if isinstance(packed := maps.get("qkv"), TrainableLinear):
            weights = packed.weight.chunk(3)
            biases = (None,) * 3 if packed.bias is None else packed.bias.chunk(3)
            maps |= {kind: FrozenLinear(w, b) for kind, w, b in zip("qkv", weights, biases, strict=True)}
        return replace(self._frozen, **maps)


class TrainableUpper(nn.Module):
    """A trainable copy of a ViT's blocks from `first_block` on and its last norm: (B, N, D) -> features (B, E)."""

    def __init__(self, tower: BlockTower, first_block: int):
        super().__init__()
        self._tower = tower
        self.layers = nn.ModuleList(TrainableBlock(block) for block in tower.blocks[first_block:])
        self.norm = copy_trainable(tower.norm)

    def as_tower(self) -> BlockTower:
        """Return the tower as a value over the current parameters."""
        tower = copy.copy(self._tower)
        tower.blocks = [layer.as_block() for layer in self.layers]  # type: ignore[operator]
        tower.norm = self.norm or tower.norm
        tower.cuda_graphs = None  # a replay would read the weights of another step
        return tower

    def as_whole_tower(self) -> BlockTower:
        """Return the tower with its frozen lower blocks below the current ones."""
        tower = self.as_tower()
        n_frozen = len(self._tower.blocks) - len(self.layers)
        tower.blocks = [*self._tower.blocks[:n_frozen], *tower.blocks]
        tower.feature_cache = self._tower.feature_cache.new_with_namespace(None, tower)
        return tower

    def forward(self, x: Tensor) -> Tensor:
        return self.as_tower().run_blocks(x, NOTHING, ("pooled",))[0]


class TrainableTower(TrainableUpper):
    """A trainable copy of a ViT: pixels (B, 3, h, w) -> features (B, E).

    It trains patch embedding, class and register tokens, those positions that the weights have, norms, blocks and
    projection. Attention pools (SigLIP, CoCa) stay frozen.
    """

    def __init__(self, tower: BlockTower):
        super().__init__(tower, 0)
        self.embed, self.pre_norm, self.project = (
            copy_trainable(f) for f in (tower.embed, tower.pre_norm, tower.project)
        )
        self.special_tokens = nn.Parameter(tower.special_tokens.detach().clone()) if tower.n_special_tokens else None
        positions, scope = tower.position_embeddings.detach(), tower.positioned_tokens
        self._n_unpositioned = {"all": 0, "patches": tower.n_special_tokens, "none": len(positions)}[scope]
        is_positioned = self._n_unpositioned < len(positions) and bool(positions.any())
        self.position_embeddings = nn.Parameter(positions[self._n_unpositioned :].clone()) if is_positioned else None

    def as_tower(self) -> BlockTower:
        tower = super().as_tower()
        for name in ("embed", "pre_norm", "project", "special_tokens"):
            if (value := getattr(self, name)) is not None:
                setattr(tower, name, value)
        if self.position_embeddings is not None:  # class and register tokens without positions are trained once
            zeros = tower.position_embeddings[: self._n_unpositioned]
            tower.position_embeddings = torch.cat([zeros, self.position_embeddings])
        return tower

    def forward(self, x: Tensor) -> Tensor:
        return self.as_tower().encode(x)


def build_lower_blocks(tower: BlockTower, n_blocks: int) -> FrozenMap:
    """Return the first blocks of a ViT as a map from pixels (B, 3, h, w) to tokens (B, N, D)."""

    def run_lower_blocks(pixels: Tensor) -> Tensor:
        with torch.no_grad():
            return walk(tower.blocks[:n_blocks], tower.embed_pixels(pixels, NOTHING)[0], attention=tower.attention)

    return run_lower_blocks
