"""A text encoder without block-wise access: fixed texts only."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vlprompt.backbones.cache.memory import cache_fixed_texts
from vlprompt.core.prompt import NOTHING, Prompt
from vlprompt.core.templates import as_templated_text
from vlprompt.core.towers import WeightedMap


class OpaqueTextTower:
    """Any encoder of texts, used without prompts.

    Args:
        net: C texts -> features (C, E).
        feature_dim: E.
        key: identifies the weights.
        device: the device of `net`.
    """

    depth, dim, n_heads, head_dim = 0, 0, 0, 0

    def __init__(self, net: Callable[[list[str]], Tensor], feature_dim: int, key: str, device: torch.device):
        self.net, self.feature_dim, self.key, self.device = net, feature_dim, key, device

    def _unsupported_error(self, feature: str) -> ValueError:
        return ValueError(
            f"text tower of {self.key.split('#')[0]}: expected a block-wise tower for {feature}, got one that only "
            'encodes fixed texts. Use a CLIP with its own text transformer, for example "open_clip:ViT-B-16/openai".'
        )

    @cache_fixed_texts
    def __call__(self, texts: Sequence[str], prompt: Prompt = NOTHING, output: str = "pooled") -> Tensor:
        """Encode C fixed texts.

        Returns:
            Un-normalised features (1, C, E).

        Raises:
            ValueError: if there is a prompt.
        """
        if prompt or output != "pooled":
            raise self._unsupported_error("soft tokens, prefixes and adapters")
        with torch.no_grad():
            return self.net([as_templated_text(text).words for text in texts])[None]

    def init_context(
        self,
        n_tokens: int | None = None,
        init: str | None = None,
        generator: torch.Generator | None = None,
        std: float = 0.02,
    ) -> Tensor:
        raise self._unsupported_error("soft tokens")

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        raise self._unsupported_error("tokens of texts")

    def require_blocks(self) -> None:
        raise self._unsupported_error("soft tokens")

    def frozen_map(self, site: str) -> WeightedMap:
        raise self._unsupported_error("weights of single maps")

    def merged(self, prompt: Prompt) -> "OpaqueTextTower":
        if prompt:
            raise self._unsupported_error("adapters")
        return self

    def sites(self, *kinds: str) -> dict[str, tuple[int, int]]:
        raise self._unsupported_error("adapters")
