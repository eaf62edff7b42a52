"""Export a learned prompt as an ONNX file, checked by onnxruntime before it is there."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule

from vlprompt.backbones.schemes import HALF_FEATURES
from vlprompt.experiments.export.formats import ExportOptions
from vlprompt.experiments.export.network.image_model import (
    CHECKED_BATCH_SIZES,
    INPUT,
    OUTPUTS,
    ImageModel,
    build_image_model,
    compare_outputs,
    describe_model,
    draw_pixels,
    serialize_description,
    trace,
)
from vlprompt.experiments.export.network.onnx_int8 import write_int8
from vlprompt.experiments.export.network.onnx_runtime import MODEL_FILE, open_session, run_session
from vlprompt.experiments.export.network.quiet import silence_converter
from vlprompt.experiments.export.whole_folder import write_whole_folder
from vlprompt.experiments.learned.prompt import LearnedPrompt
from vlprompt.runtime.installation import require_package

OPSET = 20
MAX_DIFFERENCE = 1e-4
MAX_INLINE_BYTES = 2_000_000_000  # a file of protobuf ends at 2 GiB; larger weights lie beside it


def _compute_distances(x: Tensor, y: Tensor, p: float = 2.0, compute_mode: int | None = None) -> Tensor:
    """torch.cdist by operations that ONNX has: x (B, E) and y (M, E) -> (B, M)."""
    differences = (x[..., :, None, :] - y[..., None, :, :]).abs()
    return differences.sum(-1) if p == 1 else differences.pow(p).sum(-1).pow(1 / p)


DECOMPOSITIONS: dict[Any, Any] = {torch.ops.aten.cdist.default: _compute_distances}  # of what the converter lacks


def write_onnx(
    prompt: LearnedPrompt, folder: Path, options: ExportOptions, max_inline_bytes: int = MAX_INLINE_BYTES
) -> list[str]:
    """Write model.onnx: pixels -> logits and probabilities, for any number of images, with what to know in metadata.

    Args:
        prompt: of an image method, on a CPU.
        folder: new or empty.
        options: its classes; whether model.int8.onnx is written too.
        max_inline_bytes: weights of more bytes are written into model.onnx.data.

    Raises:
        ValueError: for a method that has no ONNX form, or a network with other logits in onnxruntime.
        OSError: where a package is missing.
    """
    for package in ("onnx", "onnxruntime", "onnxscript"):
        require_package(package, "export", "--to onnx")
    model, names = build_image_model(prompt, options, "onnx")
    program, description = trace(model, prompt, "onnx"), describe_model(prompt, names)
    _require_known_numbers(program, prompt)
    with write_whole_folder(folder) as temporary:
        path = temporary / MODEL_FILE
        n_bytes = _convert(program, path, description, prompt, max_inline_bytes)
        difference = _compare(model, prompt, path)
        lines = [
            f"wrote {folder / MODEL_FILE}: {INPUT} to {' and '.join(OUTPUTS)} of {len(names)} classes, opset {OPSET}, "
            f"{n_bytes / 1e6:.1f} MB",
            f"in onnxruntime its logits differ from the method's by {difference:.0e} at most",
        ]
        if data := [file.name for file in temporary.iterdir() if file.suffix == ".data"]:
            lines.insert(1, f"its weights are in {folder / data[0]}: move both files together")
        if options.int8:
            lines += write_int8(prompt, names, path, folder)
    return lines


def _require_known_numbers(program: ExportedProgram, prompt: LearnedPrompt) -> None:
    """ValueError for a program that computes in bfloat16, in which onnxruntime multiplies no matrices on a CPU."""
    backbone = prompt.method.backbone
    assert backbone is not None
    for module in program.graph_module.modules():
        nodes = module.graph.nodes if isinstance(module, GraphModule) else ()
        if any(getattr(node.meta.get("val"), "dtype", None) is torch.bfloat16 for node in nodes):
            raise ValueError(
                f"--to onnx: expected a network in float32, got one on {backbone.spec}, which computes image features "
                "in bfloat16, and onnxruntime does not. Take --to torch, or export a run on the float32 backbone "
                f"({backbone.spec.replace(HALF_FEATURES, '', 1)})."
            )


def _convert(
    program: ExportedProgram, path: Path, description: Mapping[str, Any], prompt: LearnedPrompt, max_inline_bytes: int
) -> int:
    """Write a program as an ONNX file; return the bytes of its weights. ValueError for one without an ONNX form."""
    import onnx

    try:
        with silence_converter():
            converted = torch.onnx.export(
                program.run_decompositions(DECOMPOSITIONS),
                dynamo=True,
                input_names=[INPUT],
                output_names=[*OUTPUTS],
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as error:  # the converter has no class for all its errors
        name, cause = prompt.state.config["method"]["name"], error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        message = (str(cause).strip().splitlines() or [type(cause).__name__])[0].rstrip(".")
        raise ValueError(
            f"--to onnx: expected a method of operations that ONNX has, got {name} ({message}). Take --to torch."
        ) from error
    assert converted is not None
    for node in converted.model.graph.all_nodes():  # else a third of the file says where on this machine it was traced
        node.metadata_props.clear()
    converted.model.metadata_props.update(serialize_description(description))
    n_bytes = sum(
        w.const_value.nbytes for w in converted.model.graph.initializers.values() if w.const_value is not None
    )
    converted.save(path, external_data=n_bytes > max_inline_bytes)
    onnx.checker.check_model(str(path), full_check=True)
    return n_bytes


def _compare(model: ImageModel, prompt: LearnedPrompt, path: Path) -> float:
    """Return the greatest difference of the outputs in onnxruntime; ValueError if it is too great."""
    session, differences = open_session(path), list[float]()
    for n in CHECKED_BATCH_SIZES:
        pixels = draw_pixels(prompt, n)
        with torch.no_grad():
            ours = model(pixels)
        try:
            theirs = run_session(session, pixels.numpy())
        except ValueError as error:
            raise ValueError(
                f"--to onnx: expected a network that onnxruntime can run, got {prompt.state.config['method']['name']} "
                f"({error}). Take --to torch."
            ) from error
        differences += [compare_outputs(a, Tensor(b)) for a, b in zip(ours, theirs, strict=True)]
    if max(differences) > MAX_DIFFERENCE:
        raise ValueError(
            f"--to onnx: expected the logits of {prompt.state.config['method']['name']} to {MAX_DIFFERENCE:.0e}, got a "
            f"network that differs by {max(differences):.1e} in onnxruntime. Take --to torch."
        )
    return max(differences)
