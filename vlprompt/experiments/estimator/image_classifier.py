"""PromptClassifier: a learned prompt for images as a classifier of scikit-learn."""

import warnings
from dataclasses import replace
from math import isfinite
from typing import Any

import numpy as np
from sklearn.utils import Tags
from sklearn.utils.validation import validate_data

from vlprompt.core.class_names import DEFAULT_TEMPLATE
from vlprompt.core.images import ImageItem
from vlprompt.data.dataset import RawDataset
from vlprompt.data.images.image_inputs import (
    PixelRange,
    build_image_items,
    find_pixel_range,
    is_image_dataset,
    list_images,
    read_dataset_labels,
)
from vlprompt.experiments.estimator.labels import ClassNames, LabelledData
from vlprompt.experiments.estimator.prompt_estimator import PromptEstimator


class PromptClassifier(PromptEstimator):
    """A prompt for images, learned by any method on a frozen backbone.

    Images are arrays (N, H, W) or (N, H, W, 3), PIL images, paths, or a dataset of torchvision's kind or Hugging
    Face's. Settings are checked when `fit` resolves them, over the recipes that `vlprompt run` takes.

    Args:
        method: one of `vlprompt list methods`, or module:Class.
        backbone: what `vlprompt.load` takes.
        seed: of initial values, order and augmentations.
        template: of the class texts, with {name}.
        image_shape: (H, W) or (H, W, 3) of images that come as rows of pixels (N, H*W), as in pipelines; -1 stands for
            what is left.
        pixel_range: the numbers that are black and white in arrays. Default: 0 and 255 in bytes, recognised in others.
        validation_fraction: of each class, for methods that search on validation images.
        device: as `vlprompt.load` takes it.
        **settings: others of `vlprompt run`, as method__n_ctx=4, train__epochs=20, task__augment="none" or
            preprocess__resize="squash".

    Attributes:
        float_range_: which numbers were recognised as black and white in arrays that are not bytes.
        n_features_in_: numbers per image, where arrays were fitted.
    """

    _task, _items_name = "few_shot", "images"

    def __init__(
        self,
        method: str = "coop",
        backbone: str = "glyph",
        *,
        seed: int = 1,
        template: str = DEFAULT_TEMPLATE,
        image_shape: tuple[int, ...] | None = None,
        pixel_range: PixelRange | None = None,
        validation_fraction: float | None = None,
        device: str | None = None,
        **settings: Any,
    ):
        self.method, self.backbone, self.seed, self.template = method, backbone, seed, template
        self.image_shape, self.pixel_range = image_shape, pixel_range
        self.validation_fraction, self.device = validation_fraction, device
        self._set_settings(settings)

    def _get_template(self) -> str:
        if not isinstance(self.template, str) or not self.template.strip():
            raise ValueError(
                f"template: expected a text with a place for the class, {{name}}, got {self.template!r}. Set it to "
                f"{DEFAULT_TEMPLATE!r}."
            )
        return self.template

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = self.image_shape is not None
        tags.input_tags.three_d_array = self.image_shape is None
        return tags

    def _complete_dataset(self, inputs: Any, labels: Any, class_names: ClassNames) -> tuple[Any, ClassNames]:
        if labels is not None or not is_image_dataset(inputs):
            return labels, class_names
        read = read_dataset_labels(inputs)
        if class_names is None and read.class_names is not None:
            class_names = dict(enumerate(read.class_names))
        return read.labels, class_names

    def _read_training_data(self, *arguments: Any, **options: Any) -> LabelledData:
        data = super()._read_training_data(*arguments, **options)
        return data._replace(train=replace(data.train, augment=RawDataset.augment))

    def _read_items(self, inputs: Any, is_training: bool) -> tuple[ImageItem, ...]:
        pixel_range = self._read_pixel_range()
        if is_training:
            for name in ("n_features_in_", "float_range_"):
                vars(self).pop(name, None)
        if self.image_shape is not None:
            rows: Any = validate_data(self, inputs, reset=is_training)
            inputs = self._reshape(rows)
        if is_image_dataset(inputs):
            return build_image_items(inputs)
        images = list_images(inputs)
        if is_training and self.image_shape is None and isinstance(images, np.ndarray) and images.dtype.kind in "buif":
            self.n_features_in_ = int(np.prod(images.shape[1:]))
        return build_image_items(images, pixel_range, self._choose_float_range(images, pixel_range, is_training))

    def _read_pixel_range(self) -> PixelRange | None:
        if self.pixel_range is None:
            return None
        try:
            low, high = (float(bound) for bound in self.pixel_range)
            if isfinite(low) and isfinite(high) and low < high:
                return low, high
        except (TypeError, ValueError):
            pass
        raise ValueError(
            f"pixel_range: expected the numbers of black and white, the lower first, got {self.pixel_range!r}. Set it "
            "to (0, 1) or (0, 255)."
        )

    def _choose_float_range(self, images: Any, pixel_range: PixelRange | None, is_training: bool) -> PixelRange | None:
        """Return which numbers are black and white: as recognised in training, else in these images."""
        if pixel_range is not None:
            return None
        if (known := vars(self).get("float_range_")) is not None and not is_training:
            return known
        recognised = find_pixel_range(images)
        if recognised is not None:
            warnings.warn(
                f"{type(self).__name__}: took 0 for black and {recognised[1]:g} for white in arrays that are not "
                f"bytes. Set pixel_range=(0, {recognised[1]:g}) to silence this, or pass uint8.",
                stacklevel=6 if is_training else 5,
            )
        if is_training:
            self.float_range_ = recognised
        return recognised

    def _reshape(self, rows: np.ndarray) -> np.ndarray:
        shape = self.image_shape
        try:
            images = rows.reshape(len(rows), *shape)  # type: ignore[misc]  # the caller has checked for None
        except (TypeError, ValueError):
            images = rows
        if images.ndim not in (3, 4):
            raise ValueError(
                f"image_shape: expected a shape (H, W) or (H, W, 3) of {rows.shape[1]} numbers, got {shape!r}. "
                "Correct it."
            )
        return images[..., None] if images.ndim == 3 else images
