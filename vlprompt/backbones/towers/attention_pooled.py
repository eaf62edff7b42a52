"""Image towers that end in an attention pool: a CLIP's ResNet takes no prompts, but has features of its patches."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vlprompt.backbones.towers.image import ImageTower
from vlprompt.core.images import Images, Preprocessing
from vlprompt.core.prompt import NOTHING, Prompt
from vlprompt.layers.attention_pool import AttentionPool
from vlprompt.layers.frozen_maps import FrozenMap

ROW_OUTPUTS = {  # output -> how its rows are read: whether they see each other, and have positions
    "patches": {"attends": True, "has_positions": True},
    "local": {"attends": False, "has_positions": False},
    "regions": {"attends": False, "has_positions": True},
}


class AttentionPooledTower(ImageTower):
    """An opaque image tower whose attention pool gives features of patches too.

    Args:
        trunk: pixels (B, 3, h, w) -> grid (B, D, h', w').
        pool: grid -> pooled features (B, E), by the library.
        rows: the same pool, which gives the features of all places.
        feature_dim: E.
        preprocessing: the preprocessing of the weights.
        key: the spec and a hash of the weights, joined by "#".
        device: the device of the weights.
    """

    def __init__(
        self,
        trunk: FrozenMap,
        pool: FrozenMap,
        rows: AttentionPool,
        feature_dim: int,
        preprocessing: Preprocessing,
        key: str,
        device: torch.device,
    ):
        super().__init__(lambda pixels: pool(trunk(pixels)), feature_dim, preprocessing, key, device)
        self.trunk, self.pool, self.rows = trunk, pool, rows

    def require_patch_features(self) -> None:
        """Do nothing: the pool gives features of patches."""

    def __call__(self, images: Images, prompt: Prompt = NOTHING, output: str = "pooled") -> Tensor:
        """Return un-normalised features; ValueError for a prompt or another output.

        Args:
            images: the batch.
            prompt: none.
            output: "pooled", from the cache (B, E); or features of the patches (B, N, E), computed each time:
                "patches", as the pool computes them; "local", where each is its own value without a position; or
                "regions" (B, 1 + N, E) of the mean and the places, each its own value with its position.
        """
        if output not in ROW_OUTPUTS:
            return super().__call__(images, prompt, output)
        return self.read(images, prompt, (output,))[0]

    def read(self, images: Images, prompt: Prompt, outputs: Sequence[str]) -> tuple[Tensor, ...]:
        """Return several outputs of one pass, as of a call; nothing comes from the cache."""
        if prompt or not {*outputs} <= {"pooled", *ROW_OUTPUTS}:
            raise self._unsupported_error()
        grid = self.trunk(images.pixels(self.preprocessing).to(self.device))
        return tuple(self.pool(grid) if output == "pooled" else self._read_rows(grid, output) for output in outputs)

    def read_without_positions(self, images: Images) -> tuple[Tensor, Tensor]:
        """Return the pooled feature (B, E) without positions, which is not cached, and "local" (B, N, E)."""
        grid = self.trunk(images.pixels(self.preprocessing).to(self.device))
        return self.rows.read_rows(grid, has_positions=False)[:, 0], self._read_rows(grid, "local")

    def _read_rows(self, grid: Tensor, output: str) -> Tensor:
        rows = self.rows.read_rows(grid, **ROW_OUTPUTS[output])
        return rows if output == "regions" else rows[:, 1:]
