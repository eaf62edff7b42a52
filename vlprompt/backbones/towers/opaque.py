"""A text encoder as it is: fixed texts only."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vlprompt.backbones.cache.memory import looked_up
from vlprompt.backbones.towers.text import bare
from vlprompt.core.prompt import NOTHING, Prompt


class OpaqueText:
    """Any encoder of texts; it takes no prompt, so CoOp and its like can't work on it and are told so."""

    depth, dim, heads, head_dim = 0, 0, 0, 0

    def __init__(self, net: Callable[[list[str]], Tensor], width: int, key: str, device: torch.device):
        self.net, self.width, self.key, self.device = net, width, key, device

    def _refuse(self, what: str) -> ValueError:
        return ValueError(
            f"the text tower of {self.key.split('#')[0]} is used as it is ({what} can't be put in); "
            'learn the context on a CLIP with its own text transformer, for example "open_clip:ViT-B-16/openai"'
        )

    @looked_up
    def __call__(self, texts: Sequence[str], prompt: Prompt = NOTHING, read: str = "pooled") -> Tensor:
        """C texts -> (1, C, E), un-normalised; ValueError for a prompt."""
        if prompt or read != "pooled":
            raise self._refuse("soft tokens, prefixes and parts")
        with torch.no_grad():
            return self.net([bare(text) for text in texts])[None]

    def context(
        self, n: int | None = None, init: str | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        raise self._refuse("soft tokens")

    def sites(self, *names: str) -> dict[str, tuple[int, int]]:
        raise self._refuse("parts")
