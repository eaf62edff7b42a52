"""Draw the first images of a prediction with their classes."""

from collections.abc import Sequence
from pathlib import Path

from vlprompt.experiments.predict.prediction_input import PredictionInput
from vlprompt.experiments.predict.read_ahead import OpenedInput
from vlprompt.experiments.predict.rows import Row
from vlprompt.results.plots.shots import plot_predictions

MAX_DRAWN_IMAGES = 40


class PredictionFigure:
    """A grid of the first images that can be read, each with its predicted class."""

    def __init__(self) -> None:
        self._drawn = list[tuple[PredictionInput, str]]()

    def add(self, batch: Sequence[OpenedInput], rows: Sequence[Row]) -> None:
        """Add the images of a batch, as long as there is room."""
        for one, row in zip(batch, rows, strict=True):
            if "top" in row and len(self._drawn) < MAX_DRAWN_IMAGES:
                self._drawn.append((one.source, _format_caption(row)))

    def draw(self, path: Path) -> Path:
        """Draw the grid into a file; ValueError without images."""
        if not self._drawn:
            raise ValueError("--figure: expected images that can be read, got none. Leave --figure out.")
        images = [one.open() for one, _ in self._drawn]
        path.parent.mkdir(parents=True, exist_ok=True)
        return plot_predictions(images, [caption for _, caption in self._drawn], [None] * len(images), path)


def _format_caption(row: Row) -> str:
    """Return the class with its probability, or the labels, of which those beyond top_k have none."""
    if "labels" not in row:
        return f"{row['prediction']} {row['probability']:.2f}"
    return ", ".join(row["labels"]) or "no label"


def require_figure_path(path: Path) -> None:
    """ValueError for a figure that is no PNG, or a folder."""
    if path.suffix.lower() != ".png" or path.is_dir():
        raise ValueError(f"--figure: expected a file .png, got {str(path)!r}. Name one.")
