"""The training images that are nearest to a query, by frozen features, with thumbnails."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vlprompt.config.build import build_task
from vlprompt.core.batch import Item, build_inputs
from vlprompt.core.images import ImageItem, Preprocessing
from vlprompt.core.towers import Backbone, VisionTower, find_input_tower
from vlprompt.experiments.learned.prompt import LearnedPrompt

MAX_TRAINING_IMAGES = 20_000
THUMBNAIL_SIZE = (96, 96)


@dataclass(frozen=True)
class Neighbour:
    """A training image near a query: its index, class (or classes), and cosine similarity."""

    index: int
    class_name: str
    similarity: float


class TrainingImages:
    """The training images of a learned prompt, with their frozen features.

    Args:
        items: the images.
        classes: the class of each, or its several with commas.
        tower: frozen; encodes them once, here.
    """

    def __init__(self, items: Sequence[ImageItem], classes: Sequence[str], tower: VisionTower):
        self.items, self.classes, self.tower = items, classes, tower
        self._features = self._encode(items)

    def find_nearest(self, queries: Sequence[Item], k: int) -> list[list[Neighbour]]:
        """Return the k nearest training images of each query, the nearest first."""
        similarities = self._encode(queries) @ self._features.T
        values, indices = similarities.topk(min(k, len(self.items)), dim=1)
        rows = zip(values.tolist(), indices.tolist(), strict=True)
        return [
            [Neighbour(int(i), self.classes[int(i)], float(value)) for value, i in zip(row, positions, strict=True)]
            for row, positions in rows
        ]

    def draw_thumbnail(self, index: int) -> bytes:
        """Return a training image as a small PNG."""
        pixels = self.items[index].decode_once(Preprocessing(THUMBNAIL_SIZE), None).clamp(0, 1)
        array = (pixels * 255).round().byte().permute(1, 2, 0).numpy()
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "PNG")
        return buffer.getvalue()

    @torch.no_grad()
    def _encode(self, items: Sequence[Item]) -> Tensor:
        """Return normalised features (N, E)."""
        images = build_inputs(list(items), [None] * len(items))
        return F.normalize(self.tower(images), dim=-1).cpu()


def open_training_images(prompt: LearnedPrompt) -> TrainingImages:
    """Open the images that a prompt was trained on, where its dataset is still there.

    Raises:
        ValueError: for a dataset that can't be opened, or has too many images.
    """
    task: dict[str, Any] = prompt.state.config["task"]
    items, classes = list[ImageItem](), list[str]()
    for stage in build_task(task).stages():
        train = stage.lesson.train
        items += train.items
        classes += [", ".join(map(str, train.list_labels(i))) or "no label" for i in range(len(train))]
        if len(items) > MAX_TRAINING_IMAGES:
            raise ValueError(
                f"--neighbours: expected at most {MAX_TRAINING_IMAGES} training images, got more. Leave it out."
            )
    if not items:
        raise ValueError("--neighbours: expected training images with labels, got none. Leave it out.")
    tower = find_input_tower(cast(Backbone, prompt.method.backbone))
    return TrainingImages(items, classes, cast(VisionTower, tower))
