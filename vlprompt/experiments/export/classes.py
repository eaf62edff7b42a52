"""Export the classes as a matrix: classes.safetensors, classes.npz and classes.json."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlprompt.core.class_names import as_class_name
from vlprompt.core.images import Preprocessing
from vlprompt.core.towers import find_input_tower, find_preprocessing
from vlprompt.experiments.export.class_list import resolve_names
from vlprompt.experiments.export.class_matrix import ClassMatrix, NotAMatrixError, compute_class_matrix
from vlprompt.experiments.export.decision_file import describe_decision
from vlprompt.experiments.export.formats import ExportOptions
from vlprompt.experiments.export.refusal import refuse
from vlprompt.experiments.export.whole_folder import write_whole_folder
from vlprompt.experiments.learned.prompt import LearnedPrompt
from vlprompt.results.tensor_files import serialize_tensors

TENSOR_FILE, ARRAY_FILE, FACT_FILE = "classes.safetensors", "classes.npz", "classes.json"


@torch.no_grad()
def write_classes(prompt: LearnedPrompt, folder: Path, options: ExportOptions) -> list[str]:
    """Write the class matrix of a method that reads the pooled feature of the frozen image tower.

    Raises:
        ValueError: with the reason and the nearest format, for a method that answers otherwise.
    """
    try:
        matrix = compute_class_matrix(prompt, resolve_names(prompt, options))
    except NotAMatrixError as error:
        refuse(prompt, "classes", "an answer from the frozen image feature by one matrix", str(error))
    with write_whole_folder(folder) as temporary:
        write_class_matrix(prompt, matrix, temporary, "the frozen image tower")
    return [describe_class_matrix(matrix, folder)]


def write_class_matrix(prompt: LearnedPrompt, matrix: ClassMatrix, folder: Path, tower: str) -> None:
    """Write a class matrix in three files.

    Args:
        prompt: whose classes they are.
        matrix: its matrix.
        folder: where to write.
        tower: whose features the matrix takes, in words.
    """
    facts = _describe(prompt, matrix, tower)
    (folder / TENSOR_FILE).write_bytes(serialize_tensors({"matrix": matrix.matrix, "bias": matrix.bias}, facts))
    (folder / ARRAY_FILE).write_bytes(_serialize_arrays(matrix))
    (folder / FACT_FILE).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", "utf-8")


def describe_class_matrix(matrix: ClassMatrix, folder: Path) -> str:
    """Return in words what `write_class_matrix` wrote."""
    rows, width = matrix.matrix.shape
    return f"wrote {rows} classes x {width} into {folder / FACT_FILE}, .npz and .safetensors: {_write_formula(matrix)}"


def _write_formula(matrix: ClassMatrix) -> str:
    return f"scale * {'x / |x|' if matrix.normalizes_images else 'x'} @ matrix.T + bias"


def _describe(prompt: LearnedPrompt, matrix: ClassMatrix, tower: str) -> dict[str, Any]:
    backbone, names = prompt.method.backbone, [as_class_name(name) for name in matrix.names]
    assert backbone is not None, "it has a matrix over its features"
    decision = prompt.decide_among(matrix.names)
    return {
        "logits": _write_formula(matrix),
        "x": f"pooled feature of {tower}, not normalised",
        "normalize_images": matrix.normalizes_images,
        "scale": matrix.scale,
        "names": [str(name) for name in names],
        "ids": [name.id for name in names],
        "templates": [name.template for name in names],
        "temperature": decision.temperature,
        "unknown": {"score": decision.score, "threshold": decision.threshold},
        **{key: value for key, value in describe_decision(decision).items() if key == "labels"},
        "method": prompt.state.config["method"],
        "backbone": prompt.state.config["backbone"],
        "backbone_key": find_input_tower(backbone).key,
        "preprocessing": describe_preprocessing(find_preprocessing(backbone)),
    }


def describe_preprocessing(preprocessing: Preprocessing) -> dict[str, Any]:
    """Return a preprocessing as JSON has it."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in vars(preprocessing).items()}


def _serialize_arrays(matrix: ClassMatrix) -> bytes:
    file = io.BytesIO()
    np.savez(
        file,
        matrix=matrix.matrix.cpu().numpy(),
        bias=matrix.bias.cpu().numpy(),
        scale=np.float32(matrix.scale),
        normalize_images=np.bool_(matrix.normalizes_images),
        names=np.array([str(name) for name in matrix.names]),
    )
    return file.getvalue()
