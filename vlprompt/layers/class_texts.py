"""What two methods or more use."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vlprompt.core.class_names import PLAIN, ids
from vlprompt.core.towers import Clip

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
    every = [clip.text(holes(t, names))[0] for t in templates(template)]
    return torch.stack([clip.unit(x) for x in every] if unit else every).mean(0)


def rows(table: Tensor, known: Sequence[str], names: Sequence[str], default: Tensor) -> Tensor:
    """Rows (C, E) of a table (M, E) whose rows are the classes `known`; a class it has none of gets its default's."""
    place = {i: k for k, i in enumerate(known)}
    chosen = torch.tensor([place.get(i, -1) for i in ids(names)], device=table.device)
    if len(table) == 0:
        return default
    return torch.where((chosen >= 0)[:, None], table[chosen], default)


ENSEMBLES = {"imagenet-80": 80, "imagenet-60": 60, "imagenet-7": 7}


def templates(chosen: str | Sequence[str] | None) -> Sequence[str | None]:
    """One template, several, or the name of a set: texts with {name} where the class stands; None stays None.

    imagenet-80: the 80 of Radford et al., 2021 (arXiv:2103.00020); imagenet-7: the seven that its authors found to do
    as well; imagenet-60: the first 60 of the 80, which PromptSRC's code uses.
    """
    if chosen is None or (isinstance(chosen, str) and chosen not in ENSEMBLES):
        return [chosen]
    if not isinstance(chosen, str):
        return list(chosen)
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

    made = SIMPLE_IMAGENET_TEMPLATES if chosen == "imagenet-7" else OPENAI_IMAGENET_TEMPLATES
    return [write("{name}") for write in made[: ENSEMBLES[chosen]]]
