"""What methods choose and believe: prompts of a pool, and pseudo-labels of a target."""

import numpy as np
import torch

from vlprompt.core.batch import Split
from vlprompt.core.stage import Stage
from vlprompt.engine.model_selection import collect_pseudo_labels
from vlprompt.experiments.learned.prompt import LearnedPrompt
from vlprompt.experiments.look.subject import (
    PictureUnavailableError,
    collect_outputs,
    join,
    name_method,
    require_image_prompt,
    require_one_label_items,
    sample_evenly,
)
from vlprompt.results.plots.learned.pseudo_labels import PseudoLabels
from vlprompt.results.plots.learned.usage import PromptUsage

MAX_ROWS = 40


def compute_prompt_usage(prompt: LearnedPrompt, split: Split) -> PromptUsage:
    """Compute the share of each prompt of a pool in the answers to each lesson's and each class's test images.

    Raises:
        PictureUnavailableError: for a method without a pool, and images that may have several labels.
    """
    require_image_prompt(prompt)
    usage = join([output.prompt_usage for output in collect_outputs(prompt, split.select([0]))])
    if usage is None:
        raise PictureUnavailableError(
            f"usage: expected a method with a pool of prompts, got {name_method(prompt)}. Look at a run of l2p, or "
            "leave usage out."
        )
    usage = join([output.prompt_usage for output in collect_outputs(prompt, split)])
    assert usage is not None, "one image has it"
    require_one_label_items(split, "usage")
    shares, labels = usage.double().numpy(), np.array(split.labels)
    present = [c for c in range(len(split.names)) if (labels == c).any()]
    shown = [present[i] for i in sample_evenly(len(present), MAX_ROWS)]
    by_class = np.stack([shares[labels == c].mean(0) for c in shown])
    domains = np.array(split.domains if split.domains is not None else [])
    ids = sorted(set(domains.tolist()))
    by_lesson = np.stack([shares[domains == d].mean(0) for d in ids]) if ids else np.zeros((0, shares.shape[1]))
    domain_names = split.info.get("domains")
    named = domain_names if isinstance(domain_names, list | tuple) else range(max(ids, default=0) + 1)
    lessons = tuple(str(int(d) + 1) if str(named[d]).isdecimal() else str(named[d]) for d in ids)
    note = f"{len(shown)} of {len(present):,} classes, evenly spaced." if len(shown) < len(present) else ""
    return PromptUsage(by_lesson, lessons, by_class, tuple(str(split.names[c]) for c in shown), note)


def compute_pseudo_labels(prompt: LearnedPrompt, stage: Stage) -> PseudoLabels:
    """Compute the pseudo-labels that a method gives to the unlabelled images of a target.

    Raises:
        PictureUnavailableError: for a method without pseudo-labels, or a run without a target.
    """
    require_image_prompt(prompt)
    lesson = stage.lesson
    if lesson.unlabelled is None or not len(lesson.unlabelled):
        raise PictureUnavailableError(
            f"pseudo: expected a run with unlabelled images of a target, got one without ({name_method(prompt)}). Look "
            "at a run of dapl, or leave pseudo out."
        )
    fixed = prompt.method.precompute(lesson.train.names)
    batch = next(lesson.unlabelled.batches(1))
    with torch.no_grad():
        if prompt.method.pseudo_labels(batch.inputs, fixed) is None:
            raise PictureUnavailableError(
                f"pseudo: expected a method with pseudo-labels, got {name_method(prompt)}. Look at a run of dapl, or "
                "leave pseudo out."
            )
        pairs = collect_pseudo_labels(prompt.method, lesson.unlabelled, fixed)
    assert pairs is not None, "one image has some"
    probabilities, is_confident = pairs
    truth = None
    if (target := stage.labelled_target) is not None:
        label_of = {item.key: label for item, label in zip(target.items, target.labels, strict=True)}
        truth = np.array([label_of[item.key] for item in lesson.unlabelled.items])
    confidence, predicted = (x.numpy() for x in probabilities.double().max(1))
    names = tuple(map(str, lesson.train.names))
    note = f"by {name_method(prompt)}"
    return PseudoLabels(confidence, predicted, is_confident.numpy(), truth, names, note)
