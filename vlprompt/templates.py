"""Sets of hand-written templates by name, for class vectors that are means over many texts."""

from collections.abc import Sequence

PLAIN = "a photo of a {name}."
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
