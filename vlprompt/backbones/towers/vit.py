"""Block-wise image towers: a ViT takes prompts, and can be merged, split and copied."""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace

import torch
from torch import Tensor

from vlprompt.backbones.towers.image import ImageTower
from vlprompt.backbones.towers.input_size import check_patch_multiple, format_size, interpolate_positions
from vlprompt.backbones.towers.trainable import PositionedTokens, TrainableTower, TrainableUpper, build_lower_blocks
from vlprompt.core.compute_options import DEFAULT_COMPUTE_OPTIONS
from vlprompt.core.images import Images, Preprocessing
from vlprompt.core.prompt import NOTHING, Prompt
from vlprompt.core.towers import WeightedMap
from vlprompt.layers.blocks.attention_recorder import AttentionRecorder
from vlprompt.layers.blocks.block import (
    AttentionFn,
    Block,
    find_sites,
    isolate_rows,
    make_attention,
    run_block,
    validate_prompt_layers,
    walk,
)
from vlprompt.layers.blocks.cuda_graphs import CudaGraphCache
from vlprompt.layers.frozen_maps import FrozenMap, identity
from vlprompt.layers.weight_merging import find_frozen_map, has_weights, merge_adapter, merge_into_blocks

OUTPUTS = ("pooled", "class", "prompts", "tokens", "patches", "local", "regions")
PROJECTED_OUTPUTS = ("patches", "local", "regions")  # patches as the class token is: in the joint space
OUTER_MAPS = {"patch": "embed", "pre_norm": "pre_norm", "norm": "norm"}  # sites outside of the blocks
# token rows of a pass, those of prompts too, up to which launching its operations is what takes long: an estimate from
# the 25 ms that a step of 1976 rows of a ViT-B/16 takes on an H100 whatever its prompts are, of which the products are
# 10.5 ms in float32. Those of half precision take an eighth; a recording keeps the memory of its pass
MAX_RECORDED_ROWS, HALF_PRECISION_SHARE = 4096, 0.25


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
        self.cuda_graphs = CudaGraphCache() if device.type == "cuda" else None

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

    def require_patch_features(self) -> None:
        """Raise ValueError if the features of this tower are a pool over all tokens."""
        self._require_class_token("features of patches")

    def sites(self, *kinds: str) -> dict[str, tuple[int, int]]:
        """Return {"0/q": (fan_in, fan_out), ...} for the sites of these kinds.

        Args:
            kinds: patch, pre_norm (of CLIPs), norm, and per layer q k v out up down norm1 norm2 attn mlp attn+ mlp+
                block.
        """
        norms = ("pre_norm", "norm") if has_weights(self.pre_norm) else ("norm",)
        patch = {"patch": (3 * self.patch_size**2, self.dim)}
        return find_sites(self.blocks, kinds, patch | dict.fromkeys(norms, (self.dim, self.dim)))

    def frozen_map(self, site: str) -> WeightedMap:
        """Return the linear map or norm at a site such as "3/q", to read its weights; ValueError for other sites."""
        return find_frozen_map(self.blocks, site, {site: getattr(self, name) for site, name in OUTER_MAPS.items()})

    def __call__(self, images: Images, prompt: Prompt = NOTHING, output: str = "pooled") -> Tensor:
        """Encode images with a prompt.

        Args:
            images: the batch.
            prompt: tokens, prefixes and adapters; without any, features come from the cache.
            output: "pooled"; "class", the class token that it is the projection of; the states after the last norm of
                the "prompts" or the patch "tokens"; "patches", these tokens in the joint space; "local", the same where
                no row of the last block sees another one; or "regions", the class token and these tokens in the joint
                space.

        Returns:
            un-normalised, "pooled": (B, E); "class": (B, D); "prompts": (B, P, D); "tokens": (B, N, D); "patches" and
            "local": (B, N, E); "regions": (B, 1 + N, E). Only "pooled" and "class" are cached.
        """
        is_cached = not prompt and output in ("pooled", "class")
        if output == "class":
            self._require_class_token("output 'class'")
        features = self.look_up_features(images, output) if is_cached else None
        if features is not None and self.recorder is None:
            return features
        [encoded] = self.read(images, prompt, (output,))
        return encoded if features is None else features

    def read(self, images: Images, prompt: Prompt, outputs: Sequence[str]) -> tuple[Tensor, ...]:
        """Encode images with a prompt and return several outputs of one pass, such as ("pooled", "prompts").

        Args:
            images: the batch; nothing comes from the cache.
            prompt: tokens, prefixes and adapters.
            outputs: as of a call; "local" stands alone.
        """
        return self._encode_with_prompt(images.pixels(self.preprocessing).to(self.device), prompt, outputs)

    def _encode_with_prompt(self, pixels: Tensor, prompt: Prompt, outputs: Sequence[str]) -> tuple[Tensor, ...]:
        self._validate_pass(prompt, outputs)
        s, n, recorder = self.n_special_tokens, self.grid[0] * self.grid[1], self.recorder
        attention = None if recorder is None else recorder.record(self.attention, prompt, "+".join(outputs), s, n)
        x, prompt = self.embed_pixels(pixels, prompt)
        is_default = self.compute_options == DEFAULT_COMPUTE_OPTIONS
        if attention is not None or self.cuda_graphs is None or not is_default or pixels.requires_grad:
            return self.run_blocks(x, prompt, outputs, attention)
        return self._run_recorded(x, prompt, tuple(outputs))

    def _run_recorded(self, x: Tensor, prompt: Prompt, outputs: tuple[str, ...]) -> tuple[Tensor, ...]:
        """Run the blocks as `run_blocks` does, through recorded CUDA graphs."""
        assert self.cuda_graphs is not None
        sites = [site for site in prompt.adapters if site not in ("patch", "pre_norm")]  # those have made x
        prompt = replace(prompt, adapters={site: prompt.adapters[site] for site in sites})

        def run(prompt: Prompt, x: Tensor) -> tuple[Tensor, ...]:
            return self.run_blocks(x, prompt, outputs)

        is_half = torch.is_autocast_enabled(x.device.type) or x.element_size() < 4
        share = HALF_PRECISION_SHARE if is_half else 1.0
        size = share * x.shape[0] * (x.shape[1] + prompt.length) / MAX_RECORDED_ROWS
        return self.cuda_graphs(run, outputs, prompt, x, size=size)

    def _validate_pass(self, prompt: Prompt, outputs: Sequence[str]) -> None:
        if unknown := [output for output in outputs if output not in OUTPUTS]:
            raise ValueError(
                f"image tower: expected output {', '.join(OUTPUTS)}, got {unknown[0]!r}. Pass one of them."
            )
        for output in ("class", *PROJECTED_OUTPUTS):
            if output in outputs:
                self._require_class_token(f"output {output!r}")
        if "local" in outputs and len(outputs) > 1:
            raise ValueError(f"image tower: expected 'local' alone, got {tuple(outputs)}. Read it in its own pass.")
        validate_prompt_layers(prompt, self.depth)
        if any(t.ndim != 3 for t in prompt.tokens.values()):
            raise ValueError(
                "image tower: expected prompt tokens (R, P, D), one set per image or one for all, got one set per "
                "class. Use class-specific tokens in the text tower only."
            )
        if "prompts" in outputs and not prompt.length:
            raise ValueError("image tower: expected a prompt with tokens for output 'prompts', got none. Add tokens.")

    def _require_class_token(self, purpose: str) -> None:
        if self.n_pooled_tokens != 1:
            raise ValueError(
                f"image tower of {self.spec}: expected features that are read from the class token alone for "
                f"{purpose}, got a pool over all tokens. Use another CLIP, such as open_clip:ViT-B-16/openai."
            )

    def project_rows(self, rows: Tensor) -> Tensor:
        """Project rows (.., D) behind the last norm into the joint space (.., E), as the class token is.

        Raises:
            ValueError: if the features of this tower are a pool over all tokens.
        """
        self._require_class_token("a projection of single rows")
        return self.project(rows)

    def encode(self, pixels: Tensor, output: str = "pooled") -> Tensor:
        return self.run_blocks(*self.embed_pixels(pixels, NOTHING), (output,))[0]

    def embed_pixels(self, pixels: Tensor, prompt: Prompt) -> tuple[Tensor, Prompt]:
        """Return tokens (B, N, D) for the first block, and the prompt with `pre_norm` applied to its first tokens."""
        patches = self.unfold(pixels)
        x = prompt.apply_adapter("patch", patches, self.embed(patches))
        x = torch.cat([self.special_tokens.to(x.dtype).expand(x.shape[0], -1, -1), x], 1) + self.position_embeddings
        x = prompt.apply_adapter("pre_norm", x, self.pre_norm(x))
        if 0 in prompt.tokens and prompt.is_embedded:
            t = prompt.tokens[0]
            first = prompt.apply_adapter("pre_norm", t, self.pre_norm(t))
            prompt = replace(prompt, tokens={**prompt.tokens, 0: first})
        return x, prompt

    def run_blocks(
        self, x: Tensor, prompt: Prompt, outputs: Sequence[str], attention: AttentionFn | None = None
    ) -> tuple[Tensor, ...]:
        """Run the blocks on tokens (B, N, D) and return the outputs, as `read` does."""
        reads_prompt, reads_all = "prompts" in outputs, not {"tokens", *PROJECTED_OUTPUTS}.isdisjoint(outputs)
        reads_pooled = "pooled" in outputs or "class" in outputs
        n_read = None if reads_all else self.n_pooled_tokens if reads_pooled else 0
        block_fn = self.compute_options.wrap_block_fn(run_block)
        x = walk(
            self.blocks,
            x,
            prompt,
            attention=attention or self.attention,
            slot=self.n_special_tokens,
            positions=None if n_read is None else slice(n_read),
            return_prompt=reads_prompt,
            block_fn=isolate_rows(block_fn, self.depth - 1) if "local" in outputs else block_fn,
        )
        x, prompt_rows = x.split([x.shape[1] - prompt.length, prompt.length], 1) if reads_prompt else (x, x[:, :0])
        return tuple(self._read_output(prompt_rows if output == "prompts" else x, prompt, output) for output in outputs)

    def _read_output(self, x: Tensor, prompt: Prompt, output: str) -> Tensor:
        """Make one output of the rows (B, r, D) behind the last block that it is of."""
        is_pooled = output in ("pooled", "class")
        if is_pooled and self.is_norm_after_pool:
            x = self.pool(x)
        x = prompt.apply_adapter("norm", x, self.norm(x))
        if is_pooled:
            x = x if self.is_norm_after_pool else self.pool(x)
            return x if output == "class" else self.project(x)
        if output == "regions":
            x = torch.cat([x[:, :1], x[:, self.n_special_tokens :]], 1)
        elif output != "prompts":
            x = x[:, self.n_special_tokens :]
        return self.project(x) if output in PROJECTED_OUTPUTS else x

    def merged(self, prompt: Prompt) -> "ViT":
        """Return a tower with the adapters of a prompt merged into its weights (blocks, patches and last norm).

        Raises:
            ValueError: for tokens, prefixes, and adapters that have no merged form.
        """
        (tower := copy(self)).blocks = merge_into_blocks(self.blocks, prompt)
        for site, name in OUTER_MAPS.items():
            if site in prompt.adapters:
                setattr(tower, name, merge_adapter(site, getattr(self, name), prompt.adapters[site]))
        tower.feature_cache = self.feature_cache.new_with_namespace(None, tower)
        tower.cuda_graphs = None if self.cuda_graphs is None else CudaGraphCache()
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
        lower.feature_dtype, lower.feature_cache = self.feature_dtype, self.feature_cache.new_for(lower)
        return lower, TrainableUpper(self, self.depth - k)

    def trainable_copy(self) -> TrainableTower:
        """Return a trainable copy: pixels (B, 3, h, w) -> features (B, E)."""
        return TrainableTower(self)
