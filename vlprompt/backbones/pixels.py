"""Pixels as features: the baseline that shows what a pretrained tower adds."""

import torch
from torch import nn

from vlprompt.backbones.towers.freeze import identify
from vlprompt.backbones.towers.image import ImageTower
from vlprompt.backbones.towers.opaque import OpaqueTextTower
from vlprompt.core.images import Preprocessing
from vlprompt.core.towers import Clip


def load_pixels(size: str, device: str) -> Clip:
    """Return a backbone without texts whose features (B, 3 * side²) are the pixels at side x side, in 0..1.

    Args:
        size: the side, in digits; "" for 8.
        device: the device of the features.
    """
    if size and not size.isdigit():
        raise ValueError(f"backbone: expected a number of pixels after 'pixels:', got {size!r}. Write pixels:16, say.")
    side, torch_device = int(size or 8), torch.device(device)
    spec, feature_dim = f"pixels:{side}", 3 * side * side

    def refuse_texts(texts: list[str]) -> torch.Tensor:
        raise ValueError(
            f"backbone {spec!r}: expected a text tower, got none. "
            "Use it with a method that needs no texts, such as linear or nearest_mean."
        )

    preprocessing = Preprocessing((side, side))
    key = f"{spec}#{identify(nn.Flatten(), preprocessing)}"
    image = ImageTower(lambda x: x.flatten(1), feature_dim, preprocessing, key, torch_device)
    return Clip(image, OpaqueTextTower(refuse_texts, feature_dim, key, torch_device), 1.0, spec)
