"""Which state of a training to keep: numbers by which epochs are compared, higher is better; only one knows labels.

val: accuracy on validation images of what is trained on. The others look at the unlabelled images: entropy (Morerio et
al., ICLR 2018, arXiv:1711.10288), density (soft neighbourhood density; Saito et al., ICCV 2021, arXiv:2108.10860),
agreement (with the pseudo-labels).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vlprompt.core.batch import Unlabelled
from vlprompt.core.introspection import backbone_of, clip_of
from vlprompt.core.method import Method
from vlprompt.core.stage import Lesson
from vlprompt.engine.evaluate import answers
from vlprompt.layers.class_texts import hand
from vlprompt.metrics import accuracy, entropy, neighbourhood_density
from vlprompt.runtime import collectives

SURE = 0.5  # from which probability on a zero-shot answer counts as a pseudo-label where a method has none of its own
UNSEEN = ("entropy", "density", "agreement")  # rules that look at the unlabelled images
SELECTION = {
    "last": "last epoch",
    "val": "best epoch on validation images",
    "entropy": "epoch of the lowest entropy on the unlabelled images",
    "density": "epoch of the highest soft neighbourhood density on the unlabelled images",
    "agreement": "epoch that agrees most with the pseudo-labels",
    "oracle": "best epoch on the target's test labels (an oracle)",
}


@torch.no_grad()
def pseudo_labels(
    method: Method, unlabelled: Unlabelled, fixed: Any, micro_batch: int | None = None
) -> tuple[Tensor, Tensor] | None:
    """What unlabelled images are taken to be, (N, C) and (N,): probabilities, and of which it is sure.

    By the method itself, else by the zero-shot CLIP that it stands on, sure from a probability of 0.5 on; None where
    neither is there.
    """
    clip, text, found = clip_of(method), None, []
    with collectives.alike():
        for whole in unlabelled.batches(100):
            for part in whole.split(micro_batch):
                guess = method.guess(part.inputs, fixed)
                if guess is None:
                    if clip is None:
                        return None
                    text = hand(clip, unlabelled.names, None) if text is None else text
                    p = clip.logits(clip.image(part.inputs), text).float().softmax(-1)
                    guess = p, p.max(-1).values >= SURE
                found.append(guess)
    return torch.cat([p for p, _ in found]).cpu(), torch.cat([sure for _, sure in found]).cpu()


@torch.no_grad()
def criteria(method: Method, lesson: Lesson, rules: Sequence[str], micro_batch: int | None = None, fixed: Any = None,
             prepared: Any = None, seen: Tensor | None = None) -> dict[str, float]:  # fmt: skip
    """The numbers asked for, of a method as it is now; without those that can't be had.

    fixed, prepared: what the method holds for the lesson's names, if it is there already; seen: its answers (N, C) to
    the unlabelled images.
    """
    found = dict[str, float]()
    if not rules:
        return found
    fixed = method.fixed(lesson.train.names) if fixed is None else fixed
    if "val" in rules and lesson.val is not None:
        logits = torch.cat(list(answers(method, lesson.val, micro_batch=micro_batch, prepared=prepared)))
        found["val"] = accuracy(logits.argmax(1), torch.tensor(lesson.val.labels))
    if not lesson.unlabelled or not set(rules) & set(UNSEEN):
        return found
    if seen is None:
        seen = torch.cat(list(answers(method, lesson.unlabelled, micro_batch=micro_batch, prepared=prepared)))
    p = seen.softmax(1)
    if "entropy" in rules:
        found["entropy"] = -float(entropy(p.double()).mean())
    if "density" in rules:
        backbone = backbone_of(method)  # where N x N products are fast, if anywhere
        found["density"] = neighbourhood_density(p if backbone is None else p.to(backbone.device))
    if "agreement" in rules and (guess := pseudo_labels(method, lesson.unlabelled, fixed, micro_batch)) is not None:
        guessed, sure = guess
        found["agreement"] = accuracy(p.argmax(1)[sure], guessed.argmax(1)[sure]) if bool(sure.any()) else 0.0
    return found
