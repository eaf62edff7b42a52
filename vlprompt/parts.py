"""What two methods or more use."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vlprompt.templates import templates
from vlprompt.tower import Clip

PLAIN = "a photo of a {name}."
Template = str | list[str] | None  # one, several or a set by name; None: the hand-written one of each name's dataset


def holes(template: str | None, names: Sequence[str], n: int = 0) -> list[str]:
    """One text per name: "{ctx} {name}." -> "{16} dog."

    Without a template each name has that of its dataset, or "a photo of a {name}.". Of several {ctx} each takes n // k
    tokens and the last one the rest. Underscores in names become spaces and their braces are escaped. ValueError for a
    template without {name}.
    """
    clean = (name.replace("_", " ").replace("{", "{{").replace("}", "}}") for name in names)
    chosen = [getattr(name, "hand", None) or PLAIN if template is None else template for name in names]
    ready = {t: _counted(t, n) for t in dict.fromkeys(chosen)}
    return [ready[t].replace("{name}", name) for t, name in zip(chosen, clean, strict=True)]


def _counted(template: str, n: int) -> str:
    k = template.count("{ctx}")
    if "{name}" not in template:
        raise ValueError(
            f'the template {template!r} has no place for the class: write for example "a photo of a {{name}}."'
        )
    for i in range(k):
        template = template.replace("{ctx}", f"{{{n // k if i < k - 1 else n - n // k * (k - 1)}}}", 1)
    return template


def hand(clip: Clip, names: Sequence[str], template: Template, unit: bool = False) -> Tensor:
    """Text features (C, E) of hand-written templates: their mean, of normalised features (unit) or of raw ones."""
    if template is None:
        return clip.text(holes(None, names))[0]
    every = [clip.text(holes(t, names))[0] for t in templates(template)]
    return torch.stack([clip.unit(x) for x in every] if unit else every).mean(0)
