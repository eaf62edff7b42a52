"""Read an ONNX file that `export --to onnx` wrote, and answer images with onnxruntime."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlprompt.core.images import Preprocessing
from vlprompt.data.images.decoding import convert_to_rgb, open_image, preprocess_image
from vlprompt.runtime.installation import require_package

MODEL_FILE = "model.onnx"
METADATA_KEYS = ("classes", "preprocessing", "temperature", "score", "threshold")


class OnnxPrompt:
    """A learned prompt in an ONNX file.

    Args:
        path: the file, or the folder that `vlprompt export --to onnx` wrote.

    Attributes:
        names: the classes.
        metadata: what the export wrote: classes, preprocessing, method, backbone, temperature, threshold ...

    Raises:
        ValueError: for a file that is no ONNX file, has lost its weights' file, or was not written by vlprompt.
        OSError: where onnxruntime is missing.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path) / MODEL_FILE if Path(path).is_dir() else Path(path)
        self.session = open_session(self.path)
        self.metadata = _read_metadata(self.session, self.path)
        self.names = tuple(self.metadata["classes"])
        settings: dict[str, Any] = self.metadata["preprocessing"]
        tuples: dict[str, Any] = {key: tuple(settings[key]) for key in ("size", "mean", "std")}
        self.preprocessing = Preprocessing(**settings | tuples)

    def decode(self, images: Sequence[str | Path | Image.Image]) -> np.ndarray:
        """Return normalised pixels (B, 3, h, w) of files or images; ValueError for what is no image."""
        decoded = (convert_to_rgb(x) if isinstance(x, Image.Image) else open_image(Path(x)) for x in images)
        return np.stack([preprocess_image(image, self.preprocessing).numpy() for image in decoded])

    def predict(self, images: Sequence[str | Path | Image.Image], batch_size: int = 32) -> np.ndarray:
        """Return the probabilities (B, C) of at least one image, a file or an image each."""
        batches = (images[i : i + batch_size] for i in range(0, len(images), batch_size))
        return np.concatenate([run_session(self.session, self.decode(batch))[1] for batch in batches])


def open_session(path: Path) -> Any:
    """Open an ONNX file in onnxruntime, on the CPU; errors as those of OnnxPrompt."""
    runtime = require_package("onnxruntime", "export", "an ONNX file")
    if not path.is_file():
        raise ValueError(f"{str(path)!r}: expected an ONNX file, got no such file. Check the path.")
    _require_data_files(path)
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors: the rest is about the graph's form
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common class
        cause = " ".join(str(error).split())
        raise ValueError(
            f"{str(path)!r}: expected an ONNX file that onnxruntime can load, got an error: {cause}. Export it again, "
            "or update onnxruntime."
        ) from error


def run_session(session: Any, pixels: np.ndarray) -> list[np.ndarray]:
    """Return logits (B, C) and probabilities (B, C) of normalised pixels (B, 3, h, w)."""
    return session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(pixels, np.float32)})


def _require_data_files(path: Path) -> None:
    """ValueError for a file that is no ONNX file, or whose weights are in a file that is missing or cut."""
    onnx = require_package("onnx", "export", "an ONNX file")
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:  # of protobuf
        raise ValueError(
            f"{str(path)!r}: expected an ONNX file, got another format or a cut file. Name a file that "
            "vlprompt export --to onnx wrote."
        ) from error
    sizes = dict[str, int]()
    for tensor in graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entry = {e.key: e.value for e in tensor.external_data}
            end = int(entry.get("offset", 0)) + int(entry.get("length", 0))
            sizes[entry["location"]] = max(end, sizes.get(entry["location"], 0))
    for name, size in sizes.items():
        data = path.parent / name
        if not data.is_file() or data.stat().st_size < size:
            got = f"{data.stat().st_size} bytes" if data.is_file() else "no such file"
            raise ValueError(
                f"{str(path)!r}: expected its weights in {name!r} beside it ({size} bytes), got {got}. Move both files "
                "together."
            )


def _read_metadata(session: Any, path: Path) -> dict[str, Any]:
    """Return the metadata of the export; ValueError if they are not there."""
    texts = session.get_modelmeta().custom_metadata_map
    if missing := [key for key in METADATA_KEYS if key not in texts]:
        raise ValueError(
            f"{str(path)!r}: expected metadata of vlprompt ({', '.join(METADATA_KEYS)}), got a file without "
            f"{', '.join(missing)}. Name a file that vlprompt export --to onnx wrote."
        )
    metadata = dict[str, Any]()
    for key, text in texts.items():
        try:
            metadata[key] = json.loads(text)
        except json.JSONDecodeError:  # a quantiser's own
            metadata[key] = text
    return metadata
