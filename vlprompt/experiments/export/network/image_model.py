"""A learned prompt of an image method as one traced network: pixels in, logits and probabilities out."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from vlprompt.core.class_names import Names, as_class_name, class_ids
from vlprompt.core.images import NotAugmentableError, PixelBatch
from vlprompt.core.towers import LanguageTower, find_input_tower, find_preprocessing
from vlprompt.experiments.export.class_list import resolve_names
from vlprompt.experiments.export.decision_file import describe_decision
from vlprompt.experiments.export.formats import ExportOptions
from vlprompt.experiments.learned.prompt import LearnedPrompt
from vlprompt.runtime.installation import DISTRIBUTION, find_version
from vlprompt.runtime.seeding import make_generator

INPUT, OUTPUTS = "pixels", ("logits", "probabilities")
CHECKED_BATCH_SIZES = (1, 3)  # what was written is compared with the method on batches of these sizes


class ImageModel(nn.Module):
    """Normalised pixels (B, 3, h, w) -> logits (B, C) and probabilities (B, C).

    Args:
        prompt: a learned prompt of an image method.
        names: the classes to choose from; what the method computes of them alone becomes a constant.
    """

    def __init__(self, prompt: LearnedPrompt, names: Names):
        super().__init__()
        self.method, self.prepared, self.temperature = prompt.method, prompt.prepare(names), prompt.decision.temperature
        labels = prompt.decide_among(names).labels
        # the contrastive reading is the softmax itself
        self.is_sigmoid = labels is not None and labels.reading == "sigmoid"

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.method(PixelBatch(pixels), self.prepared).logits.float()
        return logits, logits.sigmoid() if self.is_sigmoid else (logits / self.temperature).softmax(1)


def build_image_model(prompt: LearnedPrompt, options: ExportOptions, to: str) -> tuple[ImageModel, Names]:
    """Return the network of a learned prompt, and the classes that it answers.

    Args:
        prompt: on a CPU.
        options: its classes; default those that the prompt was trained on.
        to: the format, for errors.

    Raises:
        ValueError: for a language model, a method whose answer is no function of the pixels alone, classes that the
            method has no answer for, or a backbone on another device.
    """
    backbone, name = prompt.method.backbone, prompt.state.config["method"]["name"]
    if backbone is None or isinstance(backbone, LanguageTower):
        raise ValueError(
            f"--to {to}: expected a prompt for images, got {name} on a language model in {prompt.state.source!r}. Take "
            "--to transformers, which writes the language model."
        )
    device = find_input_tower(backbone).device
    if device.type != "cpu":
        raise ValueError(f"--to {to}: expected a backbone on a CPU, got one on {device}. Set --device cpu.")
    if prompt.method.is_online:
        raise ValueError(
            f"--to {to}: expected a method whose answer follows from the pixels alone, got {name}, whose answers "
            "depend on the images before. Export a run of a method that is fixed after its training, such as coop."
        )
    names = resolve_names(prompt, options)
    model = ImageModel(prompt, names).eval()
    try:
        with torch.no_grad():
            model(draw_pixels(prompt, 1))
    except NotAugmentableError as error:
        raise ValueError(
            f"--to {to}: expected a method whose answer follows from the pixels alone, got {name} ({error}). Use "
            "vlprompt predict for it, or export a run of a method that is fixed after its training, such as coop."
        ) from error
    return model, names


def draw_pixels(prompt: LearnedPrompt, n: int) -> Tensor:
    """Draw n random images (n, 3, h, w) of the prompt's size, the same for the same n."""
    backbone = prompt.method.backbone
    assert backbone is not None
    return torch.randn(n, 3, *find_preprocessing(backbone).size, generator=make_generator("export", n))


@torch.no_grad()
def trace(model: ImageModel, prompt: LearnedPrompt, to: str) -> ExportedProgram:
    """Trace the network for any number of images.

    Raises:
        ValueError: for a method that can't be traced.
    """
    arguments, shapes = (draw_pixels(prompt, 2),), {INPUT: {0: torch.export.Dim("batch")}}
    try:
        try:
            return torch.export.export(model, arguments, dynamic_shapes=shapes, strict=False)
        except Exception:  # Python's len() of a tensor is a constant there; the strict tracer reads it from the code
            return torch.export.export(model, arguments, dynamic_shapes=shapes, strict=True)
    except Exception as error:  # whatever the tracer raises: it has no class of its own
        name, cause = prompt.state.config["method"]["name"], str(error).strip().splitlines() or [""]
        raise ValueError(
            f"--to {to}: expected a method that torch.export can trace for any number of images, got {name} "
            f"({type(error).__name__}: {cause[0]}). Use vlprompt predict for it."
        ) from error


def compare_outputs(ours: Tensor, theirs: Tensor) -> float:
    """Return the greatest difference of two (B, C), relative to the greatest value where that exceeds 1.

    Infinite values must agree, otherwise it is infinite; NaN never does.
    """
    if ours.shape != theirs.shape or not torch.equal(ours.isinf(), theirs.isinf()):
        return float("inf")
    finite = ~ours.isinf()
    if not torch.equal(ours[~finite], theirs[~finite]) or not bool(finite.any()):
        return 0.0 if torch.equal(ours, theirs) else float("inf")
    difference = (ours[finite] - theirs[finite]).abs().max() / ours[finite].abs().max().clamp(min=1)
    return float(difference.nan_to_num(nan=float("inf")))


def describe_model(prompt: LearnedPrompt, names: Names) -> dict[str, Any]:
    """Return what a reader of an exported network needs beside it, as JSON has it."""
    backbone, config = prompt.method.backbone, prompt.state.config
    assert backbone is not None
    return {
        "classes": [str(name) for name in names],
        "class_ids": list(class_ids(names)),
        "preprocessing": asdict(find_preprocessing(backbone)),
        "method": config["method"]["name"],
        "backbone": backbone.spec,
        "backbone_key": find_input_tower(backbone).key,
        "template": _find_template(config["method"], names),
        **describe_decision(prompt.decide_among(names)),
        "vlprompt": find_version(DISTRIBUTION) or "unknown",
    }


def _find_template(settings: Mapping[str, Any], names: Names) -> str | None:
    """Return how class names became texts; None where there were none, or more than one template."""
    for key in ("context_template", "template"):
        if isinstance(template := settings.get(key), str):
            return template
    templates = {as_class_name(name).template for name in names}
    return templates.pop() if len(templates) == 1 else None


def serialize_description(description: Mapping[str, Any]) -> dict[str, str]:
    """Return each value as JSON, for files whose metadata are strings."""
    return {key: json.dumps(value) for key, value in description.items()}
