"""Metrics of an adaptation while it trains, and baselines of its scores; only here are labels of a target used."""

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from vlprompt.core.batch import Batch, Split, Unlabelled
from vlprompt.core.method import Method
from vlprompt.core.stage import Lesson, Stage, UnknownTest
from vlprompt.core.towers import Clip
from vlprompt.engine.evaluate import evaluate, iter_logits
from vlprompt.engine.loop import Loop
from vlprompt.engine.model_selection import UNLABELLED_CRITERIA, compute_selection_scores
from vlprompt.engine.train_config import TrainConfig
from vlprompt.methods.zero_shot import ZeroShot
from vlprompt.metrics import accuracy, harmonic_mean
from vlprompt.runtime import collectives
from vlprompt.runtime.seeding import derive_seed

LABEL_FREE_RULES = ("val", *UNLABELLED_CRITERIA)  # rules of model selection that need no label of the target
REFUSED_SHARE = 0.05  # of known source images, by which the threshold of an open set is chosen
EpochRecord = dict[str, float]


@torch.no_grad()
def record_epoch(stage: Stage, config: TrainConfig, seed: int, loop: Loop) -> EpochRecord:
    """Score the epoch that has just ended.

    Returns:
        The score of each selection rule (percent, but entropy and density in nats), `target` (test accuracy),
        `coverage` and `precision` of the pseudo-labels where there are some, and `epoch` and `step`, from 1.
    """
    method, lesson, test = loop.method, stage.lesson, stage.tests["target"]
    was_training = method.training
    method.eval()
    names = lesson.train.names  # those of the target too
    fixed = loop.precompute(names)
    prepared, micro_batch_size = method.prepare(names, fixed), config.micro_batch_size

    def compute_logits(split: Split | Unlabelled) -> Tensor:
        return torch.cat(list(iter_logits(method, split, micro_batch_size=micro_batch_size, prepared=prepared)))

    logits = None if lesson.unlabelled is None else compute_logits(lesson.unlabelled)
    record = {"epoch": float(loop.cursor.epoch), "step": float(loop.cursor.step)}
    record |= compute_selection_scores(
        method,
        lesson,
        LABEL_FREE_RULES,
        fixed=fixed,
        unlabelled_logits=logits,
        micro_batch_size=micro_batch_size,
        prepared=prepared,
    )
    if logits is None or stage.labelled_target is not test:  # else the task is transductive: these are the test images
        logits = compute_logits(test)
    record["target"] = accuracy(logits.argmax(1), torch.tensor(test.labels))
    if stage.labelled_target is not None:
        record |= _score_pseudo_labels(stage.labelled_target, lesson, config, seed, loop)
    method.train(was_training)
    return record


def _score_pseudo_labels(truth: Split, lesson: Lesson, config: TrainConfig, seed: int, loop: Loop) -> EpochRecord:
    """Return coverage and precision of the pseudo-labels, on the augmentations of this epoch if it trains on them."""
    labels = {item.key: label for item, label in zip(truth.items, truth.labels, strict=True)}
    fixed = loop.precompute(lesson.train.names)
    batches = _iter_unlabelled_batches(lesson, config, seed, loop)
    n_correct, n_confident, n_images = 0, 0, 0
    with collectives.in_lockstep():
        for batch in batches:
            for part in batch.micro_batches(config.micro_batch_size):
                pseudo_labels = loop.method.pseudo_labels(part.inputs, fixed)
                if pseudo_labels is None:
                    return {}
                probabilities, is_confident = (tensor.cpu() for tensor in pseudo_labels)
                targets = torch.tensor([labels[str(key).partition("|")[0]] for key in part.inputs.keys])
                n_images, n_confident = n_images + len(targets), n_confident + int(is_confident.sum())
                n_correct += int((probabilities.argmax(1) == targets)[is_confident].sum())
    precision = {"precision": 100 * n_correct / n_confident} if n_confident else {}
    return {"coverage": 100 * n_confident / n_images} | precision


def _iter_unlabelled_batches(lesson: Lesson, config: TrainConfig, seed: int, loop: Loop) -> Iterator[Batch]:
    """Return the unlabelled images as the epoch that has just ended had them."""
    assert lesson.unlabelled is not None, "there are labels of it"
    if loop.method.training_lesson(lesson).unlabelled is None:
        return lesson.unlabelled.batches(100)
    n_steps = loop.cursor.step - loop.epoch_start_step
    batches = lesson.unlabelled.sample_batches(
        config.batch_size, derive_seed(seed, lesson.index), config.augmentations, loop.epoch_start_step
    )
    return islice(batches, n_steps)


def score_selection_rules(records: Sequence[EpochRecord]) -> EpochRecord:
    """Return the test accuracy of the epoch that each rule selects; `oracle` is the best of all."""
    targets = [record["target"] for record in records]
    scores = {"last": targets[-1], "oracle": max(targets)}
    for rule in LABEL_FREE_RULES:
        if all(rule in record for record in records):
            scores[rule] = max(records, key=lambda record: record[rule])["target"]  # the first of equally good ones
    return scores


@torch.no_grad()
def score_open_set(method: Method, target: Split, test: UnknownTest, micro_batch_size: int | None) -> EpochRecord:
    """Score answers of which the least confident are refused, by a threshold that known source images choose.

    Returns:
        In percent, `known`: mean over the known classes of the target images that are answered, and right; `unknown`:
        images of unknown classes that are refused; `h_score`: the harmonic mean of both (Bucci et al., ECCV 2020,
        arXiv:2007.12576). An answer is refused below the probability that 95 % of the validation images reach.
    """

    def answer(split: Split) -> tuple[Tensor, Tensor]:
        logits = torch.cat(list(iter_logits(method, split, micro_batch_size=micro_batch_size)))
        confidence, predicted = logits.double().softmax(1).max(1)
        return confidence, predicted

    threshold = answer(test.validation)[0].quantile(REFUSED_SHARE)
    confidence, predicted = answer(target)
    labels = torch.tensor(target.labels)
    is_right = ((predicted == labels) & (confidence >= threshold)).double()
    known = 100 * float(torch.stack([is_right[labels == c].mean() for c in labels.unique()]).mean())
    unknown = 100 * float((answer(test.images)[0] < threshold).double().mean())
    return {"known": known, "unknown": unknown, "h_score": harmonic_mean(known, unknown)}


def evaluate_baselines(
    method: Method, stage: Stage, records: Sequence[EpochRecord], micro_batch_size: int | None
) -> dict[str, EpochRecord]:
    """Return what the scores of an adaptation are compared with; {} for other stages.

    Returns:
        `zero_shot` (of the target; "zero_shot source"): the frozen CLIP with the prompt templates of the dataset.
        `open_set`: of `score_open_set`, where there are unknown classes. `rules`: the accuracy that each selection rule
        would give. `pseudo_labels`: those of the last epoch.
    """
    baselines, clip = dict[str, EpochRecord](), method.backbone
    if stage.needs_zero_shot and isinstance(clip, Clip):
        for name, test in stage.tests.items():
            metrics = evaluate(ZeroShot(clip), test, micro_batch_size=micro_batch_size).metrics
            baselines["zero_shot" if name == "target" else f"zero_shot {name}"] = metrics
    if stage.unknown_test is not None:
        baselines["open_set"] = score_open_set(method, stage.tests["target"], stage.unknown_test, micro_batch_size)
    if records:
        baselines["rules"] = score_selection_rules(records)
        baselines["pseudo_labels"] = {k: v for k, v in records[-1].items() if k in ("coverage", "precision")}
    return {name: metrics for name, metrics in baselines.items() if metrics}
