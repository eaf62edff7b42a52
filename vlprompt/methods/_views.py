"""What methods that adapt to one test image share: the features of its augmentations, and the confident ones."""

import torch
from torch import Tensor

from vlprompt.core.images import Images
from vlprompt.core.method import Method
from vlprompt.core.towers import Clip
from vlprompt.data.images.decoding import AUGMENTATIONS
from vlprompt.metrics import entropy
from vlprompt.runtime.errors import suggest_nearest


def encode_views(clip: Clip, inputs: Images, augment: str, augmentations: int) -> Tensor:
    """Compute the features (1 + A, B, E) of images and of their augmentations, the images first; not normalised."""
    augmented = (clip.image(inputs.augment(augment, k)) for k in range(augmentations))
    return torch.stack([clip.image(inputs), *augmented])


def order_by_confidence(logits: Tensor) -> Tensor:
    """Return the views (V, B) of each image by the entropy of their logits (V, B, C), the lowest first."""
    return entropy(logits.softmax(-1)).argsort(0)


def count_confident(n_views: int, fraction: float) -> int:
    """Return how many of an image's views are used, at least one."""
    return max(1, int(n_views * fraction))


def require_view_settings(method: Method, min_augmentations: int = 0) -> None:
    """Raise ValueError for too few augmentations, an unknown kind, or a fraction of views outside 0 to 1."""
    require_augmentation(str(method.augment))
    method.require_at_least(augmentations=min_augmentations, confident_fraction=0)
    if (fraction := method.confident_fraction) > 1:  # type: ignore[operator]  # the setting of these methods
        raise ValueError(
            f"method.confident_fraction: expected a fraction from 0 to 1, got {fraction}. Set 0.1 for a tenth of the "
            "views."
        )


def require_augmentation(name: str) -> None:
    """Raise ValueError for a `method.augment` that there is not."""
    if name not in AUGMENTATIONS:
        choices = suggest_nearest(name, AUGMENTATIONS)
        raise ValueError(f"method.augment: expected a known augmentation, got {name!r}; {choices}")
