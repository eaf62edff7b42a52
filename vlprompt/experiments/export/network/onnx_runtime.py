"""Read an ONNX file that `export --to onnx` wrote, and answer images with onnxruntime."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, FiniteFloat, JsonValue

from vlprompt.core.batch import Reading
from vlprompt.core.images import Preprocessing
from vlprompt.core.method import Output
from vlprompt.data.images.image_inputs import build_image_items
from vlprompt.data.images.preprocess_presets import resolve_preprocessing
from vlprompt.data.validation import Schema, validate
from vlprompt.engine.unknown_scores import SCORES, match_concepts
from vlprompt.experiments.export.decision_file import DECISION_KEYS
from vlprompt.experiments.learned.decision import UNKNOWN, Decision, LabelDecision
from vlprompt.experiments.learned.prompt import list_labels
from vlprompt.runtime.installation import require_package

MODEL_FILE = "model.onnx"
BATCH_SIZE = 32
SCORES_OF_LOGITS = ("msp", "maxlogit", "energy")


class _Labels(Schema, extra="allow"):
    """How logits become several labels."""

    reading: Reading = Field(description="sigmoid or contrastive")
    threshold: FiniteFloat = Field(description="a number")
    n_validation: int = Field(description="a whole number")


class _Facts(Schema, extra="allow"):
    """The metadata that the reader needs."""

    classes: Annotated[list[str], Field(min_length=1)] = Field(description="the names of the classes")
    preprocessing: dict[str, JsonValue] = Field(description="size, mean, std ... of the pixels")
    temperature: Annotated[FiniteFloat, Field(gt=0)] = Field(description="a number above 0")
    score: str = Field(description="the name of a score")
    threshold: FiniteFloat | None = Field(description="a number or null")
    labels: _Labels | None = Field(None, description="reading and threshold of several labels")


class OnnxPrompt:
    """A learned prompt in an ONNX file.

    Args:
        path: the file, or the folder that `vlprompt export --to onnx` wrote.

    Attributes:
        names: the classes.
        metadata: what the export wrote: classes, preprocessing, method, backbone, temperature, threshold ...
        preprocessing: of the pixels.
        decision: how logits become an answer.

    Raises:
        ValueError: for a file that is no ONNX file, has lost its weights' file, or was not written by vlprompt.
        OSError: where onnxruntime is missing.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path) / MODEL_FILE if Path(path).is_dir() else Path(path)
        self.session = open_session(self.path)
        self.metadata = _read_metadata(self.session, self.path)
        self.names = tuple(self.metadata["classes"])
        self.preprocessing = _read_preprocessing(self.metadata["preprocessing"], self.path)
        labels = self.metadata.get("labels")
        labels = None if labels is None else LabelDecision(**{key: labels[key] for key in _Labels.model_fields})
        self.decision = Decision(**{key: self.metadata[key] for key in DECISION_KEYS}, labels=labels)

    def decode(self, images: Any) -> np.ndarray:
        """Return normalised pixels (B, 3, h, w) of images; ValueError for none, and for what is no image."""
        return np.stack([item.decode_once(self.preprocessing, None).numpy() for item in build_image_items(images)])

    def predict_proba(self, images: Any) -> np.ndarray:
        """Return the probabilities (B, C) of images as `build_image_items` takes them.

        Those of classes add up to 1; of several labels each has its own.
        """
        return np.concatenate([probabilities for _, probabilities in self._iter_outputs(images)])

    def predict(self, images: Any) -> list[str] | list[list[str]]:
        """Return the class of each image, or `unknown` where its score is below the threshold.

        Of several labels it is the list of those of each image, by falling probability.

        Raises:
            ValueError: where the threshold is one of a score that reads more than logits.
        """
        if (labels := self.decision.labels) is not None:
            logits = torch.cat([torch.from_numpy(part) for part, _ in self._iter_outputs(images)])
            return list_labels(*labels.apply(logits), self.names)
        answers = list[str]()
        for logits, probabilities in self._iter_outputs(images):
            is_unknown = self._find_unknown(logits).tolist()
            best = probabilities.argmax(1).tolist()
            answers += [UNKNOWN if unknown else self.names[k] for k, unknown in zip(best, is_unknown, strict=True)]
        return answers

    def _iter_outputs(self, images: Any) -> Iterator[list[np.ndarray]]:
        items = build_image_items(images)
        for i in range(0, len(items), BATCH_SIZE):
            yield run_session(self.session, self.decode(items[i : i + BATCH_SIZE]))

    def _find_unknown(self, logits: np.ndarray) -> np.ndarray:
        """Return for each row of logits (B, C) whether its score is below the threshold."""
        score, threshold = self.decision.score, self.decision.threshold
        if threshold is None:
            return np.zeros(len(logits), bool)
        values = torch.from_numpy(logits).double()
        if score == "mcm":
            scores = match_concepts(values)
        elif score in SCORES_OF_LOGITS:
            unread: Any = None  # of these scores the method and the images
            scores = SCORES[score].compute(unread, unread, Output(values), self.decision.temperature)
        else:
            known = ", ".join([*SCORES_OF_LOGITS, "mcm"])
            raise ValueError(
                f"{str(self.path)!r}: expected a threshold of a score of logits ({known}), got one of {score}. Take "
                "predict_proba, or vlprompt predict."
            )
        return ~(scores >= threshold).numpy()


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
    """Return logits (B, C) and probabilities (B, C) of normalised pixels (B, 3, h, w); ValueError for other pixels."""
    [pixels_input] = session.get_inputs()
    try:
        return session.run(None, {pixels_input.name: np.ascontiguousarray(pixels, np.float32)})
    except Exception as error:  # its errors have no common class
        raise ValueError(
            f"pixels: expected {pixels_input.shape}, which onnxruntime can run, got {list(pixels.shape)} "
            f"({' '.join(str(error).split())}). Pass normalised pixels of that shape."
        ) from error


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
    """Return the metadata of the export; ValueError if they are not there, or other ones."""
    texts: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
    if missing := [key for key, field in _Facts.model_fields.items() if field.is_required() and key not in texts]:
        raise ValueError(
            f"{str(path)!r}: expected metadata of vlprompt ({', '.join(_Facts.model_fields)}), got a file without "
            f"{', '.join(missing)}. Name a file that vlprompt export --to onnx wrote."
        )
    metadata: dict[Any, Any] = {}
    for key, text in texts.items():
        try:
            metadata[key] = json.loads(text)
        except json.JSONDecodeError:  # a quantiser's own
            metadata[key] = text
    validate(_Facts, metadata, f"{str(path)!r}: metadata")
    return metadata


def _read_preprocessing(settings: Mapping[str, Any], path: Path) -> Preprocessing:
    if missing := [field.name for field in fields(Preprocessing) if field.name not in settings]:
        raise ValueError(
            f"{str(path)!r}: expected a preprocessing with {', '.join(missing)}, got one without. Export it again."
        )
    return resolve_preprocessing(settings, Preprocessing((1, 1)))
