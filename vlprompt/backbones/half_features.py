"""Frozen image features in bfloat16: less than half of the time where the processor has it, other numbers."""

from copy import copy
from dataclasses import replace
from typing import cast

import torch

from vlprompt.backbones.towers.image import ImageTower
from vlprompt.core.towers import Backbone, Clip, find_input_tower


def with_half_features(backbone: Backbone, spec: str) -> Backbone:
    """Return a backbone whose frozen image features are computed in bfloat16 and stored as float32.

    Its name and its key are others, as its features are. Texts, and passes with a prompt or a gradient, are as before.

    Args:
        backbone: a Clip or an image tower, as each scheme with such a name loads it.
        spec: the name that was loaded.
    """
    loaded = cast(ImageTower, find_input_tower(backbone))
    tower = copy(loaded)
    tower.spec, tower.key = spec, f"{spec}#{loaded.key.partition('#')[2]}"
    tower.feature_dtype = torch.bfloat16
    tower.feature_cache = loaded.feature_cache.new_for(tower)
    tower.notes = {**tower.notes, "frozen image features": "are computed in bfloat16"}
    return replace(backbone, image=tower, spec=spec) if isinstance(backbone, Clip) else tower
