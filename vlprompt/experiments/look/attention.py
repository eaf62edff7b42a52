"""Where the class token and prompt tokens of an image tower look."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch

from vlprompt.core.batch import Item, Split
from vlprompt.core.class_names import Names
from vlprompt.core.towers import VisionTower, find_input_tower
from vlprompt.experiments.learned.prompt import LearnedPrompt
from vlprompt.experiments.look.subject import PictureUnavailableError, name_method, record_prompt
from vlprompt.results.plots.learned.attention import ImageAttention


def compute_attention(
    prompt: LearnedPrompt, items: Sequence[Item], names: Names | None = None, captions: Sequence[str] = ()
) -> ImageAttention:
    """Compute the attention over patches in the last layer, and by rollout (Abnar and Zuidema, arXiv:2005.00928).

    Args:
        prompt: on a block-wise image tower.
        items: images.
        names: the classes that are answered, for methods that need them; default: those of the training.
        captions: of the images.

    Raises:
        PictureUnavailableError: for an opaque tower, a tower without a class token, or a method that does not call it.
    """
    recorded = record_prompt(prompt)
    backbone = recorded.prompt.method.backbone
    assert backbone is not None, "a prompt on images has one"
    tower: Any = find_input_tower(backbone)
    if recorded.attention is None:
        raise _unavailable(prompt, f"the opaque image tower of {tower.spec}")
    names = prompt.names if names is None else names
    [batch] = Split(tuple(items), (0,) * len(items), names).batches(len(items))
    prepared, recorder = recorded.prompt.prepare(names), recorded.attention
    with torch.no_grad():
        recorded.prompt.method(batch.inputs, prepared)
        if not recorder.passes:
            raise _unavailable(prompt, f"{name_method(prompt)}, whose answers do not come from the frozen tower")
        injected = recorder.passes[-1].prompt
        if isinstance(prepared, tuple) and isinstance(prepared[0], VisionTower):
            tower = prepared[0]  # with adapters in its weights
        maps, on_prompts = dict[str, np.ndarray](), np.zeros(len(items))
        for output, title in (("pooled", "class token"), ("prompts", "prompt tokens")):
            if (output == "pooled" and tower.n_pooled_tokens != 1) or (output == "prompts" and not injected.tokens):
                continue
            tower(batch.inputs, injected, output)
            last, rollout, prompt_share = recorder.passes[-1].attention_over_image()
            for kind, values in (("last layer", last), ("rollout", rollout)):
                mean = values.mean(1).unflatten(1, tower.grid)
                maps[f"{title},\n{kind}"] = mean.cpu().double().numpy()
            on_prompts = prompt_share.mean(1).cpu().double().numpy() if output == "pooled" else on_prompts
    if not maps:
        raise _unavailable(prompt, f"{tower.spec}, which pools all tokens, without prompt tokens")
    plain = replace(tower.preprocessing, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    pixels = torch.stack([item.pixels(plain, None).clamp(0, 1) for item in items])
    images = cast(np.ndarray, pixels.permute(0, 2, 3, 1).numpy())
    return ImageAttention(images, maps, on_prompts, tuple(captions) or ("",) * len(items))


def _unavailable(prompt: LearnedPrompt, got: str) -> PictureUnavailableError:
    return PictureUnavailableError(
        f"attention: expected a block-wise image tower with a class token or prompt tokens, got {got}. "
        "Use a ViT, for example glyph-vit, or leave attention out."
    )
