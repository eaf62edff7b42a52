"""A learned prompt that is looked at: on towers that record what it puts into them, with test images."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from vlprompt.config.build import build_task
from vlprompt.core.batch import Split
from vlprompt.core.method import Output
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Stage
from vlprompt.core.towers import Clip, LanguageTower
from vlprompt.experiments.learned.prompt import LearnedPrompt, restore_prompt
from vlprompt.layers.blocks.attention_recorder import AttentionRecorder

MAX_IMAGES, MAX_CLASSES = 1000, 20


class PictureUnavailableError(ValueError):
    """A picture of something that a method does not have."""


def require_image_prompt(prompt: LearnedPrompt) -> None:
    """Raise PictureUnavailableError for a prompt on texts."""
    if prompt.method.backbone is None or isinstance(prompt.method.backbone, LanguageTower):
        raise PictureUnavailableError(
            f"look: expected a method on images, got {name_method(prompt)}, which reads texts. Look at another run."
        )


def require_one_label_items(split: Split, picture: str) -> None:
    """Raise PictureUnavailableError for items that may have several labels, which a picture has no one colour for."""
    if split.has_several_labels:
        raise PictureUnavailableError(
            f"{picture}: expected test images with one label each, got ones that may have several. Look at another run."
        )


def name_method(prompt: LearnedPrompt) -> str:
    """Return the name of the method."""
    return prompt.state.config["method"]["name"]


@dataclass
class Recorded:
    """A prompt on towers that record.

    Args:
        prompt: restored anew on these towers; the one that was given stays as it is.
        attention: of the image tower, None for an opaque one.
        text_prompts: what the text tower was called with.
    """

    prompt: LearnedPrompt
    attention: AttentionRecorder | None
    text_prompts: list[Prompt] = field(default_factory=list)


def record_prompt(prompt: LearnedPrompt) -> Recorded:
    """Restore a prompt on towers that record."""
    require_image_prompt(prompt)
    backbone, text_prompts = cast(Any, prompt.method.backbone), list[Prompt]()
    image: Any = backbone.image if isinstance(backbone, Clip) else backbone
    recorder = AttentionRecorder() if hasattr(image, "with_recorder") else None
    image = image.with_recorder(recorder) if recorder is not None else image
    if isinstance(backbone, Clip):
        listen = getattr(backbone.text, "with_prompt_listener", None)
        text = backbone.text if listen is None else listen(text_prompts.append)
        image = replace(backbone, image=image, text=text)
    return Recorded(restore_prompt(prompt.state, image), recorder, text_prompts)


def open_stage(prompt: LearnedPrompt) -> Stage:
    """Open the last stage of the run that a prompt was learned in, with its tests."""
    require_image_prompt(prompt)
    [*_, stage] = build_task(prompt.state.config["task"]).stages()
    return stage


def select_test(stage: Stage) -> Split:
    """Return the test of the target, of all that was seen, or the first one."""
    name = next((name for name in ("target", "seen") if name in stage.tests), next(iter(stage.tests)))
    return stage.tests[name]


def sample_evenly(count: int, limit: int) -> list[int]:
    """Return all numbers below count, or `limit` of them evenly spaced."""
    return list(range(count)) if count <= limit else [i * count // limit for i in range(limit)]


def sample_split(split: Split, n_images: int = MAX_IMAGES, n_classes: int = MAX_CLASSES) -> tuple[Split, str]:
    """Return images of some classes, evenly spaced, and a note of what was sampled ("" for all)."""
    classes = sample_evenly(len(split.names), n_classes)
    part = split if len(classes) == len(split.names) else split.select_classes(classes)
    drawn = part.select(sample_evenly(len(part), n_images))
    if len(drawn) == len(split):
        return split, ""
    of_classes = f" of {len(classes)} of {len(split.names):,} classes" if len(classes) < len(split.names) else ""
    return drawn, f"{len(drawn):,} of {len(split):,} test images{of_classes}, evenly spaced"


@torch.no_grad()
def collect_outputs(prompt: LearnedPrompt, split: Split, batch_size: int = 100) -> list[Output]:
    """Return the outputs of a split batch by batch, with features, on the CPU."""
    prepared, outputs = prompt.prepare(split.names), list[Output]()
    for batch in split.batches(batch_size):
        output = prompt.method(batch.inputs, prepared)
        outputs.append(Output(*(x.cpu() if isinstance(x, Tensor) else x for x in output)))
    return outputs


def join(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """Concatenate tensors of batches; None where there are none."""
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(present) if present else None
