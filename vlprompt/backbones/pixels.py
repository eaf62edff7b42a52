"""Pixels as features: the control that shows what a pretrained tower adds."""

import torch

from vlprompt.backbones.towers.image import ImageTower
from vlprompt.backbones.towers.opaque import OpaqueText
from vlprompt.core.images import Look
from vlprompt.core.towers import Clip


def pixels(side: str, device: str) -> Clip:
    """Features (B, 3 * side²) in 0..1, of the image at side x side (default 8); it has no texts."""
    if side and not side.isdigit():
        raise ValueError(f"'pixels:{side}' is no size: write 'pixels' or for example 'pixels:16'")
    n, where = int(side or 8), torch.device(device)
    spec = f"pixels:{n}"

    def no_text(texts: list[str]) -> torch.Tensor:
        raise ValueError(
            f"the backbone {spec!r} has no text tower; "
            "use it with a method that needs none, such as linear or nearest_mean"
        )

    image = ImageTower(lambda x: x.flatten(1), 3 * n * n, Look((n, n)), spec, where)
    return Clip(image, OpaqueText(no_text, 3 * n * n, spec, where), 1.0, spec)
