"""Model selection: the scores by which epochs are compared, higher is better.

val: accuracy on validation images, mAP where they may have several labels. The others read the unlabelled images of the
target: entropy (Morerio et al., ICLR 2018, arXiv:1711.10288), density (soft neighbourhood density; Saito et
al., ICCV 2021, arXiv:2108.10860), agreement (with the pseudo-labels).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vlprompt.core.batch import Unlabelled
from vlprompt.core.head import Fixed, Prepared
from vlprompt.core.method import Method
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.engine.evaluate import iter_logits
from vlprompt.engine.label_scores import read_label_odds
from vlprompt.layers.class_texts import encode_class_texts
from vlprompt.metrics import accuracy, entropy, mean_average_precision, neighbourhood_density
from vlprompt.runtime import collectives

CONFIDENCE_THRESHOLD = 0.5  # probability from which a zero-shot prediction counts as a pseudo-label
UNLABELLED_CRITERIA = ("entropy", "density", "agreement")  # rules that read the unlabelled images
SELECTION_DESCRIPTIONS = {
    "last": "last epoch",
    "val": "best epoch on validation images",
    "entropy": "epoch of the lowest entropy on the unlabelled images",
    "density": "epoch of the highest soft neighbourhood density on the unlabelled images",
    "agreement": "epoch that agrees most with the pseudo-labels",
    "oracle": "best epoch on the target's test labels (an oracle)",
}


@torch.no_grad()
def collect_pseudo_labels(
    method: Method, unlabelled: Unlabelled, fixed: Fixed, micro_batch_size: int | None = None
) -> tuple[Tensor, Tensor] | None:
    """Pseudo-label unlabelled images by the method itself, else by the zero-shot CLIP of its backbone.

    Returns:
        Probabilities (N, C) and whether each is confident (N,); None where neither the method nor a CLIP can tell.
    """
    clip, text, outputs = method.backbone, None, []
    with collectives.in_lockstep():
        for batch in unlabelled.batches(100):
            for part in batch.micro_batches(micro_batch_size):
                output = method.pseudo_labels(part.inputs, fixed)
                if output is None:
                    if not isinstance(clip, Clip):
                        return None
                    text = encode_class_texts(clip, unlabelled.names, None) if text is None else text
                    p = clip.logits(clip.image(part.inputs), text).float().softmax(-1)
                    output = p, p.max(-1).values >= CONFIDENCE_THRESHOLD
                outputs.append(output)
    return torch.cat([p for p, _ in outputs]).cpu(), torch.cat([confident for _, confident in outputs]).cpu()


@torch.no_grad()
def compute_selection_scores(
    method: Method,
    lesson: Lesson,
    criteria: Sequence[str],
    micro_batch_size: int | None = None,
    fixed: Fixed = None,
    prepared: Prepared = None,
    unlabelled_logits: Tensor | None = None,
) -> dict[str, float]:
    """Score a method as it is now by each criterion; criteria that the lesson has no data for are left out.

    Args:
        fixed: `method.precompute` of the lesson's names, if it is there already.
        prepared: `method.prepare` of them, if it is there already.
        unlabelled_logits: logits (N, C) of the unlabelled images, if they are there already.
    """
    scores = dict[str, float]()
    if not criteria:
        return scores
    fixed = method.precompute(lesson.train.names) if fixed is None else fixed
    if "val" in criteria and lesson.val is not None:
        logits = torch.cat(list(iter_logits(method, lesson.val, micro_batch_size=micro_batch_size, prepared=prepared)))
        if lesson.val.has_several_labels:
            scores["val"] = mean_average_precision(*read_label_odds(logits, lesson.val))
        else:
            scores["val"] = accuracy(logits.argmax(1), torch.tensor(lesson.val.labels))
    if not lesson.unlabelled or not set(criteria) & set(UNLABELLED_CRITERIA):
        return scores
    if unlabelled_logits is None:
        unlabelled_logits = torch.cat(
            list(iter_logits(method, lesson.unlabelled, micro_batch_size=micro_batch_size, prepared=prepared))
        )
    p = unlabelled_logits.softmax(1)
    if "entropy" in criteria:
        scores["entropy"] = -float(entropy(p.double()).mean())
    if "density" in criteria:
        backbone = method.backbone  # where N x N products are fast, if anywhere
        scores["density"] = neighbourhood_density(p if backbone is None else p.to(backbone.device))
    pseudo_labels = (
        collect_pseudo_labels(method, lesson.unlabelled, fixed, micro_batch_size) if "agreement" in criteria else None
    )
    if pseudo_labels is not None:
        labels, confident = pseudo_labels[0].argmax(1), pseudo_labels[1]
        has_any = bool(confident.any())
        scores["agreement"] = accuracy(p.argmax(1)[confident], labels[confident]) if has_any else 0.0
    return scores
