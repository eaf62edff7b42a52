"""Export a learned prompt as a program of torch.export, which plain torch runs."""

import io
import json
import warnings
from pathlib import Path

import torch

from vlprompt.experiments.export.formats import ExportOptions
from vlprompt.experiments.export.network.image_model import (
    CHECKED_BATCH_SIZES,
    ImageModel,
    build_image_model,
    compare_outputs,
    describe_model,
    draw_pixels,
    trace,
)
from vlprompt.experiments.export.whole_folder import write_whole_folder
from vlprompt.experiments.learned.prompt import LearnedPrompt

PROGRAM_FILE, DESCRIPTION_FILE = "model.pt2", "model.json"
MAX_DIFFERENCE = 1e-5


def write_program(prompt: LearnedPrompt, folder: Path, options: ExportOptions) -> list[str]:
    """Write model.pt2 (pixels -> logits and probabilities, for any number of images) and model.json.

    Raises:
        ValueError: for a method that can't be traced, or a program with other logits than the method.
    """
    model, names = build_image_model(prompt, options, "torch")
    program = trace(model, prompt, "torch")
    _own_storages(program)
    with write_whole_folder(folder) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about the format's future
        content = io.BytesIO()  # torch's own file ends the process where the disk is full
        torch.export.save(program, content)
        (temporary / PROGRAM_FILE).write_bytes(content.getbuffer())
        difference = _compare(model, prompt, temporary / PROGRAM_FILE)
        (temporary / DESCRIPTION_FILE).write_text(json.dumps(describe_model(prompt, names), indent=1) + "\n")
    return [
        f"wrote {folder / PROGRAM_FILE}: pixels to logits and probabilities of {len(names)} classes",
        f"read back, its logits differ from the method's by {difference:.0e} at most",
        f"classes, preprocessing and decision are in {folder / DESCRIPTION_FILE}",
    ]


def _own_storages(program: torch.export.ExportedProgram) -> None:
    """Copy weights that are parts of a larger tensor, which torch (2.14) can't save unless the whole one is there."""
    for tensors in (program.state_dict, program.constants):
        for name, tensor in tensors.items():
            if isinstance(tensor, torch.Tensor) and tensor.nbytes < tensor.untyped_storage().nbytes():
                tensors[name] = tensor.clone()


@torch.no_grad()
def _compare(model: ImageModel, prompt: LearnedPrompt, path: Path) -> float:
    """Return the greatest difference of the outputs of a written program; ValueError if it is too great."""
    program = torch.export.load(path).module()
    batches = [draw_pixels(prompt, n) for n in CHECKED_BATCH_SIZES]
    pairs = (pair for pixels in batches for pair in zip(model(pixels), program(pixels), strict=True))
    difference = max(compare_outputs(ours, theirs) for ours, theirs in pairs)
    if difference > MAX_DIFFERENCE:
        name = prompt.state.config["method"]["name"]
        raise ValueError(
            f"--to torch: expected the logits of {name} to {MAX_DIFFERENCE:.0e}, got a program that differs by "
            f"{difference:.1e}. Use vlprompt predict for it."
        )
    return difference
