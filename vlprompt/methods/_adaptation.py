"""Checks shared by the methods that adapt to an unlabelled target domain."""

import warnings

import torch
from torch import Tensor, nn

from vlprompt.core.batch import Unlabelled
from vlprompt.core.images import Images
from vlprompt.core.method import Method
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip


def require_target(method: nn.Module, lesson: Lesson, *, min_domains: int = 0) -> None:
    """Check that a lesson with images has a target domain to adapt to, now or in a later lesson.

    Args:
        method: named in the errors.
        lesson: its last domain is the target, of which no training image may be.
        min_domains: least number of domains that the lesson must name.

    Raises:
        ValueError: if there is no target, or fewer domains than `min_domains`.
    """
    name, domains, last = type(method).__name__, lesson.domains, len(lesson.domains) - 1
    if not lesson.unlabelled and len(lesson.train) and (last < 1 or last in (lesson.train.domains or ())):
        raise ValueError(
            f"{name}: expected unlabelled images of a target domain, got no target. Run it with --source and --target; "
            "to generalise to an unseen domain, use a method that learns from labels alone, such as coop, with "
            "--task domain task.setting=generalise."
        )
    if len(domains) < min_domains:
        raise ValueError(
            f"{name}: expected at least {min_domains} domains, a source and a target, got "
            f"{', '.join(map(repr, domains)) or 'none'}. Run it with --source and --target."
        )


def require_positive(method: nn.Module, setting: str) -> None:
    if (value := getattr(method, setting)) <= 0:
        raise ValueError(f"method.{setting}: expected a value above 0, got {value}. Set a higher method.{setting}.")


def zero_shot_probabilities(clip: Clip, inputs: Images, text: Tensor, temperature: float) -> Tensor:
    """Compute the class probabilities (B, C) of a frozen CLIP by class texts (C, E)."""
    return (clip.logits(clip.image(inputs), text).float() / temperature).softmax(-1)


@torch.no_grad()
def warn_if_unconfident(method: Method, target: Unlabelled, threshold: float) -> None:
    """Warn if no pseudo-label of the target reaches the threshold."""
    fixed, highest = method.precompute(target.names), 0.0
    for batch in target.batches(100):
        labels = method.pseudo_labels(batch.inputs, fixed)
        assert labels is not None, "the method has pseudo-labels"
        highest = max(highest, float(labels[0].max()))
    if highest < threshold:
        warnings.warn(
            f"method.threshold is {threshold}, and the highest probability of a pseudo-label is {highest:.6f}: no "
            "target image is trained on. Lower method.threshold or method.temperature.",
            stacklevel=4,
        )
