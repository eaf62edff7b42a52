"""Export to timm: an image tower with what was learned in its weights, and a linear head."""

from pathlib import Path
from typing import cast

import torch

from vlprompt.backbones.timm.export import read_timm, write_timm
from vlprompt.backbones.towers.image import ImageTower
from vlprompt.core.towers import find_input_tower
from vlprompt.experiments.export.comparison import make_test_images, make_test_pictures, require_equal
from vlprompt.experiments.export.decision_file import write_decision
from vlprompt.experiments.export.formats import ExportOptions
from vlprompt.experiments.export.refusal import refuse, require_merged_answer
from vlprompt.experiments.export.whole_folder import write_whole_folder
from vlprompt.experiments.learned.prompt import LearnedPrompt

EXPECTED = "an image tower changed in its weights alone, and a linear head on its feature"


@torch.no_grad()
def write_timm_folder(prompt: LearnedPrompt, folder: Path, options: ExportOptions) -> list[str]:
    """Write the merged tower and its head as `timm.create_model("local-dir:FOLDER", pretrained=True)` loads them.

    Raises:
        ValueError: with the reason and the nearest format, for a method or a tower that has no such form, or where
            timm computes other numbers.
    """
    merged, matrix = require_merged_answer(prompt, options, "timm", EXPECTED)
    if matrix.normalizes_images:
        refuse(prompt, "timm", EXPECTED, "its answer is a cosine, and a head of timm normalises no feature")
    tower = cast(ImageTower, find_input_tower(merged))
    names = [str(name) for name in matrix.names]
    with write_whole_folder(folder) as temporary:
        try:
            write_timm(tower, matrix.scale * matrix.matrix, matrix.bias, names, temporary)
        except ValueError as error:
            refuse(prompt, "timm", EXPECTED, str(error))
        logits = prompt.method(make_test_images(), prompt.prepare(matrix.names)).logits
        require_equal(read_timm(temporary, tower.device)(make_test_pictures()), logits, "timm", "logits")
        decision_lines = write_decision(prompt.decide_among(matrix.names), temporary, folder)
    return [
        f"wrote the image tower with a head of {len(names)} classes into {folder}: "
        f'timm.create_model("local-dir:{folder}", pretrained=True)',
        *decision_lines,
    ]
