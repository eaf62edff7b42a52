"""Quantise the weights of an ONNX file to 8 bits, and measure what that loses."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from vlprompt.config.build import build_task
from vlprompt.core.batch import Split
from vlprompt.core.class_names import Names, class_ids
from vlprompt.core.towers import find_preprocessing
from vlprompt.experiments.export.network.image_model import draw_pixels
from vlprompt.experiments.export.network.onnx_runtime import open_session, run_session
from vlprompt.experiments.export.network.quiet import silence_converter
from vlprompt.experiments.learned.decision import LabelDecision
from vlprompt.experiments.learned.prompt import LearnedPrompt

INT8_FILE = "model.int8.onnx"
METADATA_KEY = "quantization"
SCHEME = "uint8 weights per channel, activations quantised per batch"
MAX_MEASURED_IMAGES, BATCH_SIZE = 1000, 32


class _Measurement(NamedTuple):
    """Images to compare on.

    Args:
        pixels: (N, 3, h, w), normalised.
        source: what they are, for the report.
        targets: (N,), columns of the right classes; None where these are unknown, or there may be several.
    """

    pixels: np.ndarray
    source: str
    targets: np.ndarray | None


def write_int8(prompt: LearnedPrompt, names: Names, path: Path, folder: Path) -> list[str]:
    """Write model.int8.onnx beside an ONNX file, with its measured loss in the metadata; return lines that say it.

    Args:
        prompt: whose run names the test images.
        names: the classes of the file.
        path: the ONNX file.
        folder: where the file will be, for the lines.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target = path.with_name(INT8_FILE)
    has_data_file = path.with_name(f"{path.name}.data").exists()
    with silence_converter():
        # signed weights overflow on CPUs without VNNI, so that they are less accurate
        quantize_dynamic(
            path, target, per_channel=True, weight_type=QuantType.QUInt8, use_external_data_format=has_data_file
        )
    images = _open_images(prompt, names)
    loss = _measure(path, target, images, prompt.decide_among(names).labels)
    quantised = onnx.load(target, load_external_data=False)
    onnx.helper.set_model_props(
        quantised,
        {p.key: p.value for p in quantised.metadata_props} | {METADATA_KEY: json.dumps({"scheme": SCHEME, **loss})},
    )
    onnx.save(quantised, target)
    onnx.checker.check_model(str(target))
    answer = "best class" if prompt.decision.labels is None else "labels"
    sizes = [sum(f.stat().st_size for f in path.parent.glob(f"{p.name}*")) / 1e6 for p in (path, target)]
    accuracies = ""
    if images.targets is not None:
        accuracies = f", accuracy {loss['accuracy_float32']:.1f} in float32 and {loss['accuracy_int8']:.1f} in 8 bits"
    return [
        f"wrote {folder / INT8_FILE}: {SCHEME}, {sizes[1]:.1f} MB instead of {sizes[0]:.1f} MB",
        f"on {images.source}, one by one: {loss['agreement']:.1f}% have the same {answer} as in float32, "
        f"logits differ by {loss['max_logit_difference']:.2g} at most (of {loss['max_logit']:.2g}){accuracies}",
    ]


def _measure(path: Path, target: Path, images: _Measurement, labels: LabelDecision | None) -> dict[str, Any]:
    """Compare the logits of two ONNX files; rates in percent."""
    ours = _compute_logits(path, images.pixels, BATCH_SIZE)
    theirs = _compute_logits(target, images.pixels, 1)  # the scale of activations is that of the batch
    finite = np.isfinite(ours) & np.isfinite(theirs)
    best = [_choose_answers(logits, labels) for logits in (ours, theirs)]
    loss: dict[str, Any] = {
        "images": images.source,
        "agreement": 100 * float((best[0] == best[1]).all(1).mean()),
        "max_logit_difference": float(np.abs(ours - theirs, where=finite, out=np.zeros_like(ours)).max()),
        "max_logit": float(np.abs(ours[finite]).max(initial=0)),
    }
    if images.targets is not None:
        for key, predicted in zip(("accuracy_float32", "accuracy_int8"), best, strict=True):
            loss[key] = 100 * float((predicted[:, 0] == images.targets).mean())
    return loss


def _choose_answers(logits: np.ndarray, labels: LabelDecision | None) -> np.ndarray:
    """Return the best class (N, 1), or which labels (N, C) are given."""
    return logits.argmax(1)[:, None] if labels is None else labels.apply(torch.from_numpy(logits))[1].numpy()


def _compute_logits(path: Path, pixels: np.ndarray, batch_size: int) -> np.ndarray:
    session = open_session(path)
    batches = (pixels[i : i + batch_size] for i in range(0, len(pixels), batch_size))
    return np.concatenate([run_session(session, batch)[0] for batch in batches])


def _open_images(prompt: LearnedPrompt, names: Names) -> _Measurement:
    """Return test images of the prompt's run, or random ones where its dataset does not open."""
    task = prompt.state.config["task"]
    try:
        [*_, stage] = build_task(task).stages()
        splits = [split for split in stage.tests.values() if len(split)]
        items = _pick([(split, i) for split in splits for i in range(len(split))])
        preprocessing = find_preprocessing(prompt.method.backbone)  # pyright: ignore[reportArgumentType]
        pixels = np.stack([split.items[i].decode_once(preprocessing, None).numpy() for split, i in items])
    except (ValueError, OSError, TypeError):  # not on this machine, a user's own object, a broken file
        n = 64
        return _Measurement(draw_pixels(prompt, n).numpy(), f"{n} random images (the run's dataset did not open)", None)
    return _Measurement(pixels, f"{len(items)} test images of {task.get('dataset')}", _find_targets(items, names))


def _pick(items: Sequence[tuple[Split, int]]) -> list[tuple[Split, int]]:
    """Return at most MAX_MEASURED_IMAGES items, evenly spaced."""
    n = min(len(items), MAX_MEASURED_IMAGES)
    return [items[i * len(items) // n] for i in range(n)]


def _find_targets(items: Sequence[tuple[Split, int]], names: Names) -> np.ndarray | None:
    """Return the columns of the items' classes; None where one is not among the names, or there may be several."""
    if any(split.has_several_labels for split, _ in items):
        return None
    columns = {class_id: column for column, class_id in enumerate(class_ids(names))}
    ids = [class_ids(split.names)[split.labels[i]] for split, i in items]
    return np.array([columns[i] for i in ids]) if all(i in columns for i in ids) else None
