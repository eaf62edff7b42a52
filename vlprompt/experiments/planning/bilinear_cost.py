"""Costs that are linear in classes and in images, by measurements of few of both."""

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class CostModel:
    """constant + per_class * classes + per_image * images + per_class_and_image * classes * images."""

    constant: float
    per_class: float = 0.0
    per_image: float = 0.0
    per_class_and_image: float = 0.0

    def __call__(self, classes: float, images: float = 0.0, own_classes: float | None = None) -> float:
        """Return the value; own_classes: of which the part is that no image takes part in (default: all)."""
        own = classes if own_classes is None else own_classes
        both = self.per_class_and_image * classes * images
        return self.constant + self.per_class * own + self.per_image * images + both

    @classmethod
    def fit(cls, points: Mapping[tuple[int, int], float], min_constant: float = -math.inf) -> "CostModel":
        """Fit measured points; what would fall with classes or images is taken as constant.

        Args:
            points: (classes, images) -> value, at one or two numbers of classes and one or two of images.
            min_constant: of the constant.
        """
        (c1, *more_classes), (b1, *more_images) = (sorted({point[k] for point in points}) for k in (0, 1))
        c2, b2 = (more_classes or [c1 + 1])[0], (more_images or [b1 + 1])[0]

        def value(c: int, b: int) -> float:
            return points.get((c, b), points.get((c, b1), points.get((c1, b), points[c1, b1])))

        d = max(0.0, value(c2, b2) - value(c2, b1) - value(c1, b2) + value(c1, b1)) / ((c2 - c1) * (b2 - b1))
        b = max(0.0, (value(c2, b1) - value(c1, b1)) / (c2 - c1) - d * b1)
        c = max(0.0, (value(c1, b2) - value(c1, b1)) / (b2 - b1) - d * c1)
        return cls(max(min_constant, value(c1, b1) - b * c1 - c * b1 - d * c1 * b1), b, c, d)
