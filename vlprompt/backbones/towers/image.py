"""Image towers: a block-wise ViT, or any network as an opaque tower. Calls without a prompt use the feature cache."""

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vlprompt.backbones.cache.memory import FeatureCache
from vlprompt.backbones.towers.input_size import (
    check_finite,
    check_patch_multiple,
    check_width,
    format_size,
    interpolate_positions,
)
from vlprompt.backbones.towers.trainable import PositionedTokens, TrainableTower, TrainableUpper, build_lower_blocks
from vlprompt.core.compute_options import DEFAULT_COMPUTE_OPTIONS
from vlprompt.core.images import Images, PixelBatch, Preprocessing
from vlprompt.core.prompt import NOTHING, Prompt
from vlprompt.layers.attention_recorder import AttentionRecorder
from vlprompt.layers.block import (
    AttentionFn,
    Block,
    find_sites,
    isolate_rows,
    make_attention,
    run_block,
    validate_prompt_layers,
    walk,
)
from vlprompt.layers.frozen_maps import FrozenMap, identity
from vlprompt.layers.weight_merging import merge_adapter, merge_into_blocks
from vlprompt.runtime import collectives

SDPA_BACKENDS = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
]
CPU_TOKENS_PER_PASS = 512  # tokens of one pass on a CPU


class ImageTower:
    """A frozen network for images as an opaque tower: cached features, but no prompts.

    A feature is a pure function of the weights, the preprocessing, the item and its augmentation: cache misses are
    computed in passes of one fixed size and by the default kernels (whatever the caller chose), so that its bits do not
    depend on its batch.

    Args:
        net: pixels (B, 3, h, w) -> un-normalised features (B, E).
        feature_dim: E.
        preprocessing: the size, crop and normalisation of the pixels.
        key: the spec and a hash of the weights, joined by "#".
        device: the device of the network.
        n_tokens: tokens of an image, from which the size of a pass follows; 0 for networks without tokens.
    """

    depth, dim, n_heads, head_dim, n_special_tokens, n_parameters = 0, 0, 0, 0, 0, 0  # n_parameters: frozen ones
    grid: tuple[int, int] = (0, 0)
    has_custom_preprocessing = False  # whether a user chose the preprocessing, instead of the one of the weights
    notes: Mapping[str, str] = {}  # replaced, never written into
    compute_options = DEFAULT_COMPUTE_OPTIONS

    def __init__(
        self,
        net: FrozenMap,
        feature_dim: int,
        preprocessing: Preprocessing,
        key: str,
        device: torch.device,
        n_tokens: int = 0,
    ):
        self.net, self.feature_dim, self.preprocessing = net, feature_dim, preprocessing
        self.key, self.device, self.spec = key, device, key.partition("#")[0]
        pass_size = max(1, CPU_TOKENS_PER_PASS // n_tokens) if n_tokens else 8
        self.pass_size = pass_size if device.type == "cpu" else 32 * pass_size
        self.feature_cache, self.position_embeddings = FeatureCache(), torch.empty(0, 0)

    def _unsupported_error(self) -> ValueError:
        return ValueError(
            f"image tower of {self.key.split('#')[0]}: expected a block-wise tower for tokens, prefixes, adapters, "
            "token outputs or the training of blocks, got one that only computes pooled features. "
            "Use a ViT, for example open_clip:ViT-B-16/openai, timm:vit_base_patch16_224/orig_in21k or glyph-vit."
        )

    def __call__(self, images: Images, prompt: Prompt = NOTHING, output: str = "pooled") -> Tensor:
        """Return the un-normalised features (B, E); ValueError for a prompt or another output."""
        if prompt or output != "pooled":
            raise self._unsupported_error()
        return self.look_up_features(images)

    def look_up_features(self, images: Images) -> Tensor:
        """Return features (B, E) from the cache, computing and caching those that are missing.

        In a run of several processes each computes its share of the missing features. Images without a key (random
        augmentations) are always computed; a PixelBatch in one pass, without the cache.
        """
        if isinstance(images, PixelBatch):
            return self.encode(images.pixels(self.preprocessing).to(self.device))
        collectives.compute_missing_features(
            self.feature_cache, images.keys, lambda keys: self._compute_and_cache(images, keys)
        )
        features: dict[str, Tensor] = {}
        missing: dict[str, int] = {}
        for i, key in enumerate(images.keys):
            if key is not None and (cached := self.feature_cache.get(key)) is not None:
                features[key] = cached
            elif key is not None:
                missing.setdefault(key, i)
        if missing:
            features |= self._compute_and_cache(images, missing)
        uncached = [i for i, key in enumerate(images.keys) if key is None]
        fresh = dict(zip(uncached, self.compute_features(images, uncached), strict=True)) if uncached else {}
        return torch.stack([fresh[i] if key is None else features[key] for i, key in enumerate(images.keys)])

    def _compute_and_cache(self, images: Images, keys: Iterable[str]) -> dict[str, Tensor]:
        """Compute and cache the features of the images with these keys, in passes; return them by key."""
        index = {key: i for i, key in reversed([*enumerate(images.keys)])}
        indices, features = {key: index[key] for key in keys}, dict[str, Tensor]()
        order = list(indices)
        for begin in range(0, len(order), self.pass_size):
            current, following = (order[i : i + self.pass_size] for i in (begin, begin + self.pass_size))
            rows = self.compute_features(images, [indices[k] for k in current], [indices[k] for k in following])
            for key, feature in zip(current, rows, strict=True):
                features[key] = feature
                self.feature_cache.add_computed(key, feature.clone())
        return features

    def compute_features(self, images: Images, indices: list[int], next_indices: Sequence[int] = ()) -> Tensor:
        """Compute features (len(indices), E) without the cache, in passes of one size, the last one padded.

        Args:
            images: the batch.
            indices: which of its images.
            next_indices: images whose decoding is started during the last pass.
        """
        parts = []
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False), sdpa_kernel(SDPA_BACKENDS):
            for begin in range(0, len(indices), self.pass_size):
                current = indices[begin : begin + self.pass_size]
                following = indices[begin + self.pass_size :][: self.pass_size] or next_indices
                pixels = images.decode(self.preprocessing, current, single_use=True).to(self.device)
                images.prefetch(self.preprocessing, following, single_use=True)
                padded = torch.cat([pixels, pixels[-1:].expand(self.pass_size - len(current), -1, -1, -1)])
                parts.append(self.encode(padded)[: len(current)])
                check_finite(parts[-1], self.spec)
        return torch.cat(parts)

    def encode(self, pixels: Tensor) -> Tensor:
        """Encode pixels (B, 3, h, w) as features (B, E), without the cache."""
        return self.net(pixels)

    def with_preprocessing(self, preprocessing: Preprocessing) -> "ImageTower":
        """Return a tower of the same weights with another preprocessing; ValueError for a size it does not accept."""
        check_width(self.net, self.feature_dim, self.preprocessing, preprocessing, self.device, self.spec)
        return self._with_preprocessing(self.net, preprocessing, 0)

    def _with_preprocessing(self, net: FrozenMap, preprocessing: Preprocessing, n_tokens: int) -> Any:
        tower = copy(self)
        ImageTower.__init__(tower, net, self.feature_dim, preprocessing, self.key, self.device, n_tokens)
        tower.spec, tower.has_custom_preprocessing = self.spec, True
        tower.feature_cache = self.feature_cache.new_for(tower)
        return tower

    def require_blocks(self) -> None:
        """Raise ValueError: an opaque tower takes no prompt."""
        raise self._unsupported_error()

    def sites(self, *kinds: str) -> dict[str, tuple[int, int]]:
        raise self._unsupported_error()

    def merged(self, prompt: Prompt) -> "ImageTower":
        raise self._unsupported_error()

    def split_at(self, k: int) -> "tuple[ImageTower, nn.Module]":
        raise self._unsupported_error()

    def trainable_copy(self) -> nn.Module:
        raise self._unsupported_error()


class ViT(ImageTower):
    """An image tower with access to its blocks: it takes prompts, and can be merged, split and copied.

    Args:
        blocks: the frozen blocks.
        unfold: pixels (B, 3, h, w) -> patches (B, N, 3 * patch²).
        embed: patches -> tokens (B, N, D).
        special_tokens: class and register tokens (S, D).
        position_embeddings: (S + N, D).
        pre_norm: the norm before the first block.
        norm: the norm after the last block.
        pool: rows (B, r, D) -> (B, D).
        project: (B, D) -> (B, E).
        n_pooled_tokens: how many of the first tokens `pool` reads; None for all. Prompt tokens are never pooled.
        is_norm_after_pool: whether `norm` follows `pool` instead of preceding it.
        feature_dim: E.
        patch_size: side of a patch in pixels.
        grid: (height, width) in patches.
        preprocessing: the preprocessing of the weights.
        key: the spec and a hash of the weights, joined by "#".
        device: the device of the weights.
        attention: the attention between all tokens of an image, if it is not the plain one (rotary positions).
        positioned_tokens: which tokens the weights have positions for; the positions of the others are zero and fixed.
    """

    recorder: AttentionRecorder | None = None

    def __init__(
        self,
        blocks: Sequence[Block],
        *,
        unfold: FrozenMap,
        embed: FrozenMap,
        special_tokens: Tensor,
        position_embeddings: Tensor,
        pre_norm: FrozenMap,
        norm: FrozenMap,
        pool: FrozenMap,
        project: FrozenMap,
        n_pooled_tokens: int | None,
        is_norm_after_pool: bool,
        feature_dim: int,
        patch_size: int,
        grid: tuple[int, int],
        preprocessing: Preprocessing,
        key: str,
        device: torch.device,
        attention: AttentionFn | None = None,
        positioned_tokens: PositionedTokens = "all",
    ):
        super().__init__(identity, feature_dim, preprocessing, key, device, len(position_embeddings))
        self.blocks, self.unfold, self.embed = blocks, unfold, embed
        self.special_tokens, self.position_embeddings = special_tokens, position_embeddings
        self.pre_norm, self.norm, self.pool, self.project = pre_norm, norm, pool, project
        self.n_pooled_tokens, self.is_norm_after_pool = n_pooled_tokens, is_norm_after_pool
        self.attention, self.has_rotary_positions = attention or make_attention(causal=False), attention is not None
        self.depth, self.dim, self.n_heads = len(blocks), position_embeddings.shape[1], blocks[0].n_heads
        self.head_dim, self.n_special_tokens = self.dim // self.n_heads, len(special_tokens)
        self.patch_size, self.grid = patch_size, grid
        self.positioned_tokens: PositionedTokens = positioned_tokens
        self.native_geometry = preprocessing.size, grid, position_embeddings

    def with_preprocessing(self, preprocessing: Preprocessing) -> "ViT":
        """Return a tower of the same weights with another preprocessing, interpolating positions for another grid.

        Positions are always interpolated from those of the weights.

        Raises:
            ValueError: if the size is no multiple of the patch size, or differs where positions are rotary.
        """
        (size, grid, positions), s = self.native_geometry, self.n_special_tokens
        notes = {k: note for k, note in self.notes.items() if k != "positions"}
        if preprocessing.size != size:
            check_patch_multiple(preprocessing.size, self.patch_size, self.spec)
            if self.has_rotary_positions:
                raise ValueError(
                    f"preprocess.size: expected {format_size(size)} for the rotary positions of {self.spec}, got "
                    f"{format_size(preprocessing.size)}. Leave preprocess out (preprocess=null if a recipe has one)."
                )
            grid = (preprocessing.size[0] // self.patch_size, preprocessing.size[1] // self.patch_size)
        if grid != self.native_geometry[1]:
            positions = torch.cat([positions[:s], interpolate_positions(positions[s:], self.native_geometry[1], grid)])
            notes["positions"] = (
                f"of {format_size(self.native_geometry[1])} patches interpolated to {format_size(grid)}, as timm does"
            )
        tower = self._with_preprocessing(identity, preprocessing, len(positions))
        tower.position_embeddings, tower.grid, tower.notes = positions, grid, notes
        return tower

    def with_recorder(self, recorder: AttentionRecorder) -> "ViT":
        """Return the same tower, which records the attention of each call; the numbers stay the same."""
        (tower := copy(self)).recorder = recorder
        return tower

    def require_blocks(self) -> None:
        """Do nothing: a ViT has blocks."""

    def sites(self, *kinds: str) -> dict[str, tuple[int, int]]:
        """Return {"0/q": (fan_in, fan_out), ...} for the sites of these kinds.

        Args:
            kinds: patch, norm, and per layer q k v out up down norm1 norm2 attn mlp attn+ mlp+.
        """
        return find_sites(
            self.blocks, kinds, {"patch": (3 * self.patch_size**2, self.dim), "norm": (self.dim, self.dim)}
        )

    def __call__(self, images: Images, prompt: Prompt = NOTHING, output: str = "pooled") -> Tensor:
        """Encode images with a prompt.

        Args:
            images: the batch.
            prompt: tokens, prefixes and adapters; without any, features come from the cache.
            output: "pooled"; the states after the last norm of the "prompts" or the patch "tokens"; or "local", the
                patches in the joint space, where no row of the last block sees another one.

        Returns:
            "pooled": un-normalised (B, E); "prompts": (B, P, D); "tokens": (B, N, D); "local": un-normalised (B, N, E).
        """
        features = None if prompt or output != "pooled" else self.look_up_features(images)
        if features is not None and self.recorder is None:
            return features
        encoded = self._encode_with_prompt(images.pixels(self.preprocessing).to(self.device), prompt, output)
        return encoded if features is None else features

    def _encode_with_prompt(self, pixels: Tensor, prompt: Prompt, output: str) -> Tensor:
        if output not in (outputs := ("pooled", "prompts", "tokens", "local")):
            raise ValueError(f"image tower: expected output {', '.join(outputs)}, got {output!r}. Pass one of them.")
        if output == "local" and self.n_pooled_tokens != 1:
            raise ValueError(
                f"image tower of {self.spec}: expected features that are read from the class token alone for output "
                "'local', got a pool over all tokens. Use another CLIP, such as open_clip:ViT-B-16/openai."
            )
        validate_prompt_layers(prompt, self.depth)
        if any(t.ndim != 3 for t in prompt.tokens.values()):
            raise ValueError(
                "image tower: expected prompt tokens (R, P, D), one set per image or one for all, got one set per "
                "class. Use class-specific tokens in the text tower only."
            )
        if output == "prompts" and not prompt.length:
            raise ValueError("image tower: expected a prompt with tokens for output 'prompts', got none. Add tokens.")
        s, n, recorder = self.n_special_tokens, self.grid[0] * self.grid[1], self.recorder
        attention = None if recorder is None else recorder.record(self.attention, prompt, output, s, n)
        return self.run_blocks(*self.embed_pixels(pixels, prompt), output, attention)

    def encode(self, pixels: Tensor) -> Tensor:
        return self.run_blocks(*self.embed_pixels(pixels, NOTHING), "pooled")

    def embed_pixels(self, pixels: Tensor, prompt: Prompt) -> tuple[Tensor, Prompt]:
        """Return tokens (B, N, D) for the first block, and the prompt with `pre_norm` applied to its first tokens."""
        patches = self.unfold(pixels)
        x = prompt.apply_adapter("patch", patches, self.embed(patches))
        x = self.pre_norm(
            torch.cat([self.special_tokens.to(x.dtype).expand(x.shape[0], -1, -1), x], 1) + self.position_embeddings
        )
        if 0 in prompt.tokens:
            tokens = {i: self.pre_norm(t) if i == 0 else t for i, t in prompt.tokens.items()}
            prompt = Prompt(tokens, prompt.prefix, prompt.adapters)
        return x, prompt

    def run_blocks(self, x: Tensor, prompt: Prompt, output: str, attention: AttentionFn | None = None) -> Tensor:
        """Run the blocks on tokens (B, N, D) and return the output, as `__call__` does."""
        n_read = self.n_pooled_tokens if output == "pooled" else None
        block_fn = self.compute_options.wrap_block_fn(run_block)
        x = walk(
            self.blocks,
            x,
            prompt,
            attention=attention or self.attention,
            slot=self.n_special_tokens,
            positions=None if n_read is None else torch.arange(n_read, device=x.device),
            return_prompt=output == "prompts",
            block_fn=isolate_rows(block_fn, self.depth - 1) if output == "local" else block_fn,
        )
        if output == "pooled" and self.is_norm_after_pool:
            x = self.pool(x)
        x = prompt.apply_adapter("norm", x, self.norm(x))
        if output != "pooled":
            x = x if output == "prompts" else x[:, self.n_special_tokens :]
            return self.project(x) if output == "local" else x
        return self.project(x if self.is_norm_after_pool else self.pool(x))

    def merged(self, prompt: Prompt) -> "ViT":
        """Return a tower with the adapters of a prompt merged into its weights (blocks, patches and last norm).

        Raises:
            ValueError: for tokens, prefixes, and adapters that have no merged form.
        """
        (tower := copy(self)).blocks = merge_into_blocks(self.blocks, prompt)
        if "patch" in prompt.adapters:
            tower.embed = merge_adapter("patch", self.embed, prompt.adapters["patch"])
        if "norm" in prompt.adapters:
            tower.norm = merge_adapter("norm", self.norm, prompt.adapters["norm"])
        tower.feature_cache = self.feature_cache.new_with_namespace(None, tower)
        return tower

    def split_at(self, k: int) -> tuple[ImageTower, TrainableUpper]:
        """Split the tower before its last k blocks.

        Returns:
            The frozen lower part, whose tokens (B, N, D) are cached like features, and a trainable copy of the rest.
        """
        if not 1 <= k <= self.depth:
            expected = f"expected 1 to {self.depth} blocks to split off"
            raise ValueError(f"{self.spec}: {expected}, got {k}. Pass a number in this range.")
        net = build_lower_blocks(self, self.depth - k)
        n_tokens = len(self.position_embeddings)
        lower = ImageTower(net, self.dim, self.preprocessing, f"{self.key}/cut{k}", self.device, n_tokens)
        lower.feature_cache = self.feature_cache.new_for(lower)
        return lower, TrainableUpper(self, self.depth - k)

    def trainable_copy(self) -> TrainableTower:
        """Return a trainable copy: pixels (B, 3, h, w) -> features (B, E)."""
        return TrainableTower(self)
