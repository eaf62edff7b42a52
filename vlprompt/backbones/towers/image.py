"""Image towers: any network as an opaque tower, whose calls use the feature cache. Block-wise ones are in vit.py."""

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vlprompt.backbones.cache.memory import FeatureCache
from vlprompt.backbones.towers.input_size import check_finite, check_width
from vlprompt.core.compute_options import DEFAULT_COMPUTE_OPTIONS
from vlprompt.core.images import Images, PixelBatch, Preprocessing
from vlprompt.core.prompt import NOTHING, Prompt
from vlprompt.core.towers import WeightedMap
from vlprompt.layers.frozen_maps import FrozenMap
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
    feature_dtype: torch.dtype | None = None  # in which frozen features are computed, if not that of the weights

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

    def read(self, images: Images, prompt: Prompt, outputs: Sequence[str]) -> tuple[Tensor, ...]:
        raise self._unsupported_error()

    def read_without_positions(self, images: Images) -> tuple[Tensor, Tensor]:
        """Return "pooled" (B, E) and "local" (B, N, E), of a pool that adds positions without these."""
        return self(images), self(images, output="local")

    def project_rows(self, rows: Tensor) -> Tensor:
        raise self._unsupported_error()

    def look_up_features(self, images: Images, output: str = "pooled") -> Tensor:
        """Return features (B, E) from the cache, computing and caching those that are missing.

        In a run of several processes each computes its share of the missing features. Images without a key (random
        augmentations) are always computed; a PixelBatch in one pass, without the cache.

        Args:
            images: the batch.
            output: "pooled", or another one that `encode` knows, which is cached beside it.
        """
        if isinstance(images, PixelBatch):
            return self._encode_frozen(images.pixels(self.preprocessing).to(self.device), output)
        suffix = "" if output == "pooled" else f"|output={output}"
        keys = [None if key is None else key + suffix for key in images.keys]
        compute_and_cache = partial(self._compute_and_cache, images, keys, output)
        collectives.compute_missing_features(self.feature_cache, keys, compute_and_cache)
        features = self.feature_cache.get_many(key for key in keys if key is not None)
        if missing := [key for key in dict.fromkeys(keys) if key is not None and key not in features]:
            features |= compute_and_cache(missing)
        uncached = [i for i, key in enumerate(keys) if key is None]
        fresh = self.compute_features(images, uncached, output=output) if uncached else ()
        rows = dict(zip(uncached, fresh, strict=True))
        return torch.stack([rows[i] if key is None else features[key] for i, key in enumerate(keys)])

    def _compute_and_cache(
        self, images: Images, image_keys: Sequence[str | None], output: str, keys: Iterable[str]
    ) -> dict[str, Tensor]:
        """Compute and cache the features with these keys, in passes, of images that have them; return them by key."""
        index = {key: i for i, key in reversed([*enumerate(image_keys)])}
        indices, features = {key: index[key] for key in keys}, dict[str, Tensor]()
        order = list(indices)
        for begin in range(0, len(order), self.pass_size):
            current, following = (order[i : i + self.pass_size] for i in (begin, begin + self.pass_size))
            rows = self.compute_features(images, [indices[k] for k in current], [indices[k] for k in following], output)
            for key, feature in zip(current, rows, strict=True):
                features[key] = feature
                self.feature_cache.add_computed(key, feature.clone())
        return features

    def compute_features(
        self, images: Images, indices: list[int], next_indices: Sequence[int] = (), output: str = "pooled"
    ) -> Tensor:
        """Compute features (len(indices), E) without the cache, in passes of one size, the last one padded.

        Args:
            images: the batch.
            indices: which of its images.
            next_indices: images whose decoding is started during the last pass.
            output: "pooled", or another one that `encode` knows.
        """
        parts = []
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False), sdpa_kernel(SDPA_BACKENDS):
            for begin in range(0, len(indices), self.pass_size):
                current = indices[begin : begin + self.pass_size]
                following = indices[begin + self.pass_size :][: self.pass_size] or next_indices
                pixels = images.decode(self.preprocessing, current, single_use=True).to(self.device)
                images.prefetch(self.preprocessing, following, single_use=True)
                padded = torch.cat([pixels, pixels[-1:].expand(self.pass_size - len(current), -1, -1, -1)])
                parts.append(self._encode_frozen(padded, output)[: len(current)])
                check_finite(parts[-1], self.spec)
        return torch.cat(parts)

    def _encode_frozen(self, pixels: Tensor, output: str) -> Tensor:
        """Encode pixels in `feature_dtype`, as float32."""
        if self.feature_dtype is None:
            return self.encode(pixels, output)
        with torch.autocast(self.device.type, self.feature_dtype):
            return self.encode(pixels, output).float()

    def encode(self, pixels: Tensor, output: str = "pooled") -> Tensor:
        """Encode pixels (B, 3, h, w) as features (B, E), without the cache; ValueError for another output."""
        if output != "pooled":
            raise self._unsupported_error()
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

    def require_patch_features(self) -> None:
        """Raise ValueError unless the tower has features of patches in the joint space, as output "patches"."""
        raise ValueError(
            f"image tower of {self.spec}: expected a CLIP with features of patches, got one that only computes pooled "
            "features. Use a ViT or a ResNet of CLIP, for example open_clip:ViT-B-16/openai or open_clip:RN50/openai."
        )

    def sites(self, *kinds: str) -> dict[str, tuple[int, int]]:
        raise self._unsupported_error()

    def frozen_map(self, site: str) -> WeightedMap:
        raise self._unsupported_error()

    def merged(self, prompt: Prompt) -> "ImageTower":
        raise self._unsupported_error()

    def split_at(self, k: int) -> "tuple[ImageTower, nn.Module]":
        raise self._unsupported_error()

    def trainable_copy(self) -> nn.Module:
        raise self._unsupported_error()
