"""Export to open_clip: a CLIP with what was learned in its weights, and the class matrix over its features."""

from pathlib import Path
from typing import cast

import torch

from vlprompt.backbones import load_backbone
from vlprompt.backbones.open_clip.export import OpenClipModel, describe_open_clip, read_open_clip, write_open_clip
from vlprompt.backbones.towers.image import ImageTower
from vlprompt.core.towers import Backbone, Clip, VisionTower, find_input_tower, with_preprocessing
from vlprompt.experiments.export.class_matrix import ClassMatrix
from vlprompt.experiments.export.classes import describe_class_matrix, write_class_matrix
from vlprompt.experiments.export.comparison import make_test_images, make_test_pictures, require_equal
from vlprompt.experiments.export.formats import ExportOptions
from vlprompt.experiments.export.refusal import refuse, require_merged_answer
from vlprompt.experiments.export.whole_folder import write_whole_folder
from vlprompt.experiments.learned.prompt import LearnedPrompt
from vlprompt.layers.class_texts import fill_class_texts

EXPECTED = "a CLIP of two plain transformers, changed in its weights alone"


@torch.no_grad()
def write_clip_folder(prompt: LearnedPrompt, folder: Path, options: ExportOptions) -> list[str]:
    """Write the merged CLIP as `open_clip.create_model_and_transforms("local-dir:FOLDER")` loads it, and the classes.

    Raises:
        ValueError: with the reason and the nearest format, for a method or a CLIP that has no such form, or where
            open_clip computes other numbers.
    """
    merged, matrix = require_merged_answer(prompt, options, "open_clip", EXPECTED)
    clip = _find_clip(prompt, merged)
    try:
        files = describe_open_clip(clip)
    except ValueError as error:
        refuse(prompt, "open_clip", EXPECTED, str(error))
    with write_whole_folder(folder) as temporary:
        write_open_clip(files, temporary)
        _compare(prompt, clip, matrix, read_open_clip(temporary, clip.device))
        write_class_matrix(prompt, matrix, temporary, "the image tower of this folder")
    is_changed = find_input_tower(merged) is not find_input_tower(cast(Backbone, prompt.method.backbone))
    content = "the CLIP with what was learned in its weights" if is_changed else "the frozen CLIP"
    return [
        f'wrote {content} into {folder}: open_clip.create_model_and_transforms("local-dir:{folder}")',
        describe_class_matrix(matrix, folder),
    ]


def _find_clip(prompt: LearnedPrompt, merged: Backbone) -> Clip:
    """Return the merged CLIP; a method on the image tower alone gets the frozen text tower of its backbone."""
    if isinstance(merged, Clip):
        return merged
    backbone = prompt.method.backbone
    if not isinstance(backbone, Clip):
        tower = cast(VisionTower, backbone)
        loaded = load_backbone(tower.spec, str(tower.device))
        if not isinstance(loaded, Clip):
            refuse(prompt, "open_clip", EXPECTED, f"its backbone {tower.spec} has no texts")
        backbone = cast(Clip, with_preprocessing(loaded, tower.preprocessing))
    return Clip(merged, backbone.text, backbone.scale, backbone.spec, backbone.bias, backbone.n_parameters)


def _compare(prompt: LearnedPrompt, clip: Clip, matrix: ClassMatrix, model: OpenClipModel) -> None:
    """ValueError where open_clip gives other features of images or texts, or other logits."""
    pictures, images, tower = make_test_pictures(), make_test_images(), cast(ImageTower, clip.image)
    features = model.encode_pictures(pictures)
    require_equal(features, tower.encode(images.pixels(tower.preprocessing).to(tower.device)), "open_clip", "features")
    logits = prompt.method(images, prompt.prepare(matrix.names)).logits
    require_equal(matrix.logits(features), logits, "open_clip", "logits")
    texts = fill_class_texts(None, matrix.names)
    require_equal(model.encode_texts(texts), clip.text(texts)[0], "open_clip", "text features")
