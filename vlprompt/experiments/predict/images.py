"""Predict images by what a run has learned, and test it on other datasets."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vlprompt.core.class_names import Names
from vlprompt.data.images.decoding import build_file_item, open_image
from vlprompt.experiments.learned.prompt import restore_prompt
from vlprompt.experiments.learned.state import read_learned_state
from vlprompt.results.plots.shots import plot_predictions

MAX_DRAWN_IMAGES = 40


@dataclass(frozen=True)
class ImagePrediction:
    """Probabilities of the classes, best first; of a file that can't be read none, but the error."""

    path: Path
    ranked_classes: tuple[tuple[str, float], ...]
    error: str | None = None


def rank_classes(probabilities: Tensor, names: Names) -> tuple[tuple[str, float], ...]:
    """Return the classes with their probabilities (C,), best first."""
    order = probabilities.argsort(descending=True).tolist()
    return tuple((str(names[i]), float(probabilities[i])) for i in order)


def predict_images(
    folder: Path, images: Sequence[Path], backbone: str | None, device: str | None, skip_broken: bool
) -> list[ImagePrediction]:
    """Predict the classes of image files.

    Args:
        folder: of the run.
        images: the files.
        backbone: where the run's backbone is now; None for where it was.
        device: as `load` takes it.
        skip_broken: go on after a file that can't be read, and return its error in its place.

    Raises:
        ValueError: for the first file that can't be read, or a run on texts.
    """
    state = read_learned_state(folder)
    if state.text_protocol:
        raise ValueError(
            f"{str(folder)!r}: expected texts for a run on texts, got {str(images[0])!r}. Give texts by --text, or in "
            "a "
            "file (.txt, .jsonl)."
        )
    errors = _find_errors(images, skip_broken)
    paths = [path for path in images if path not in errors]
    ranked = dict[Path, tuple[tuple[str, float], ...]]()
    if paths:
        prompt = restore_prompt(state, backbone, device)
        probabilities = prompt.answer([build_file_item(path) for path in paths]).probabilities
        ranked = {path: rank_classes(row, prompt.names) for path, row in zip(paths, probabilities, strict=True)}
    return [ImagePrediction(path, ranked.get(path, ()), errors.get(path)) for path in images]


def _find_errors(images: Sequence[Path], skip_broken: bool) -> dict[Path, str]:
    """Return the errors of files that can't be read; ValueError for the first one unless they are skipped."""
    errors = dict[Path, str]()
    for path in images:
        try:
            open_image(path)
        except ValueError as error:
            if not skip_broken:
                raise
            errors[path] = str(error)
    return errors


def draw_predictions(predictions: Sequence[ImagePrediction], path: Path) -> Path:
    """Draw the images in a grid, each with its predicted class; those that can't be read are left out."""
    predictions = [prediction for prediction in predictions if prediction.error is None]
    if not predictions:
        raise ValueError("--figure: expected images that can be read, got none. Leave --figure out.")
    images = [open_image(prediction.path) for prediction in predictions]
    best = [prediction.ranked_classes[0] for prediction in predictions]
    captions = [f"{name} {probability:.2f}" for name, probability in best]
    return plot_predictions(images, captions, [None] * len(predictions), path)
