"""Texts of the classes, divided over the processes of a training step."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from torch import Tensor

from vlprompt.core.prompt import NOTHING, Prompt
from vlprompt.runtime.divided_passes import divided_passes


def divide_texts(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wrap the `__call__` of a text tower: where passes are divided, each process encodes a slice of the texts."""

    @wraps(call)
    def divided_call(self: Any, texts: Sequence[str], prompt: Prompt = NOTHING, output: str = "pooled") -> Tensor:
        n_texts = len(texts)
        passes = divided_passes(n_texts) if output == "pooled" else None
        if passes is None or any(t.ndim == 4 and t.shape[1] not in (1, n_texts) for t in prompt.tokens.values()):
            return call(self, texts, prompt, output)
        return passes.compute(
            n_texts, 1, lambda begin, end: call(self, texts[begin:end], prompt.select_texts(begin, end), output)
        )

    return divided_call
