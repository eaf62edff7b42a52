"""The refusal of a prompt that a format has no place for: the reason, and the nearest format that has."""

from dataclasses import replace
from typing import NoReturn

import torch

from vlprompt.backbones.open_clip.export import describe_open_clip
from vlprompt.core.images import Images, NotAugmentableError
from vlprompt.core.towers import Backbone, Clip, LanguageTower
from vlprompt.experiments.export.class_list import resolve_names
from vlprompt.experiments.export.class_matrix import ClassMatrix, NotAMatrixError, find_merged_answer
from vlprompt.experiments.export.comparison import make_test_images
from vlprompt.experiments.export.formats import ExportOptions
from vlprompt.experiments.learned.prompt import LearnedPrompt


def refuse(prompt: LearnedPrompt, to: str, expected: str, reason: str) -> NoReturn:
    """Raise the ValueError of a prompt that a format has no place for: the reason, and the nearest format that has."""
    name = prompt.state.config["method"]["name"]
    raise ValueError(f"--to {to}: expected {expected}, got {name}: {reason}. {describe_nearest(prompt, to)}")


def require_merged_answer(
    prompt: LearnedPrompt, options: ExportOptions, to: str, expected: str
) -> tuple[Backbone, ClassMatrix]:
    """Return what `find_merged_answer` returns for the classes of an export; the format's refusal where it has none."""
    try:
        return find_merged_answer(prompt, resolve_names(prompt, options))
    except NotAMatrixError as error:
        refuse(prompt, to, expected, str(error))


def describe_nearest(prompt: LearnedPrompt, to: str) -> str:
    """Return in a sentence which formats have a place for a prompt, other than `to`."""
    if isinstance(prompt.method.backbone, LanguageTower):
        return "Export it --to peft or transformers."
    if prompt.method.is_online:
        return "No format can, since each answer depends on the images before it: use vlprompt run --task online."
    if _needs_augmentations(prompt):
        return "No format can, since each answer needs augmentations of its image: use vlprompt predict."
    formats = [name for name in (*_list_merged_formats(prompt), "onnx", "torch") if name != to]
    return f"Export it --to {', '.join(formats[:-1])} or {formats[-1]}."


def _list_merged_formats(prompt: LearnedPrompt) -> list[str]:
    """Return the formats of a matrix or of weights that have a place for a prompt."""
    try:
        backbone, matrix = find_merged_answer(prompt)
    except ValueError:
        return []
    formats = ["classes"] if backbone is prompt.method.backbone else []
    formats += ["open_clip"] if _fits_open_clip(prompt, backbone) else []
    return formats if matrix.normalizes_images else [*formats, "timm"]


def _fits_open_clip(prompt: LearnedPrompt, backbone: Backbone) -> bool:
    clip = prompt.method.backbone
    if not isinstance(clip, Clip):
        return False
    try:
        describe_open_clip(backbone if isinstance(backbone, Clip) else replace(clip, image=backbone))
    except ValueError:
        return False
    return True


@torch.no_grad()
def _needs_augmentations(prompt: LearnedPrompt) -> bool:
    images = make_test_images()
    plain = Images(lambda preprocessing, indices: images.decode(preprocessing, indices), (None,) * len(images))
    try:
        prompt.method(plain, prompt.prepare())
    except NotAugmentableError:
        return True
    return False
