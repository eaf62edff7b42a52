"""NLPrompt: Pan et al., "NLPrompt: Noise-Label Prompt Learning for Vision-Language Models", CVPR 2025.

arXiv:2412.01256. Before each epoch the training images are assigned to the classes by optimal transport, so that all
receive equally many. Images whose assignment agrees with their label are learned from by cross-entropy, the others by
the mean absolute error, which wrong labels harm less. It wraps any method. Sites: those of the wrapped method.

Differs from the authors' code in: the pass before an epoch sees each image once, without augmentation (theirs augmented
views without those of the last short batch, which then count as wrong); a batch mixes both kinds, each image with the
same weight (theirs takes first all agreeing batches of an epoch and then all others); Sinkhorn's rounds on logarithms,
as their script's reg 0.001 underflows to one class for all images (0.01, their code's own default, is ours); their
1e-6 beside the probability is left out; where no image agrees all learn by cross-entropy (theirs by both); float32.
From the paper in: log_softmax is applied to probabilities, as the code does. Its labels that are wrong are drawn anew
here: `task.noise`, whose pairflip is the paper's asymmetric noise.

Expected (Flowers102, RN50, 16 shots, symmetric noise 12.5, 25, 37.5, 50, 62.5, 75 %): 93.9 92.6 92.7 89.9 84.8 76.8,
CoOp 88.9 83.5 77.9 70.1 55.6 37.2 (as TecoPrompt quotes them).
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from vlprompt.core.batch import Batch, LabelLoss, Split
from vlprompt.core.head import Fixed
from vlprompt.core.method import LossTerms, Method, Output
from vlprompt.core.method_wrapper import MethodWrapper
from vlprompt.core.stage import Lesson
from vlprompt.layers.label_losses.one_label import generalised_cross_entropy
from vlprompt.layers.label_losses.watched import WatchedLoss
from vlprompt.layers.optimal_transport import assign_evenly


class NLPrompt(MethodWrapper):
    """A method that learns by cross-entropy from labels that look right, and by a robust loss from the others.

    Args:
        method: the wrapped method, which learns from labels.
        budget: share of the images that may count as right, those assigned most surely.
        epsilon: weight of the entropy of the transport.
        similarity: of an image and a class in it: the log_softmax or the softmax of the method's probabilities.
        q: of the generalised cross-entropy of the others; 1 is the mean absolute error.
        max_rounds: of Sinkhorn's algorithm.
    """

    needs_single_labels = True

    def __init__(
        self,
        method: Method,
        budget: float = 1.0,
        epsilon: float = 0.01,
        similarity: Literal["log_softmax", "softmax"] = "log_softmax",
        q: float = 1.0,
        max_rounds: int = 1000,
    ):
        super().__init__()
        self.method, self.budget, self.epsilon, self.similarity = method, budget, epsilon, similarity
        self.q, self.max_rounds = q, max_rounds
        self.train_split, self.rows = Split((), (), ()), dict[tuple[str, int], int]()
        self.register_buffer("agrees", torch.zeros(0, dtype=torch.bool))  # (N,)

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.require_at_least(budget=0, epsilon=1e-4, q=1e-3, max_rounds=1)
        self.require_at_most(budget=1, q=1)
        if self.method.needs_unlabelled:
            raise ValueError(
                f"nlprompt: expected a method that learns from labels, got {type(self.method).__name__}, which learns "
                "from unlabelled images. Use a method such as coop."
            )
        self.method.begin_lesson(lesson, generator)
        train = self.method.training_lesson(lesson).train_with_memory
        self.train_split = train
        self.rows = {
            (item.key, label): i for i, (item, label) in enumerate(zip(train.items, train.labels, strict=True))
        }
        self.compare_labels()

    @torch.no_grad()
    def compare_labels(self) -> None:
        """Assign the training images to the classes, and remember which agree with their label."""
        train, was_training = self.train_split, self.method.training
        self.agrees = torch.ones(len(train), dtype=torch.bool)
        if not len(train):
            return
        self.method.eval()
        prepared = self.method.prepare(train.names, self.method.precompute(train.names))
        outputs = (self.method(batch.inputs, prepared) for batch in train.batches(100))
        plan = self.assign(torch.cat([output.logits for output in outputs]))
        self.method.train(was_training)
        agrees = self.choose_agreeing(plan, torch.tensor(train.labels, device=plan.device)).cpu()
        self.agrees = agrees if bool(agrees.any()) else self.agrees

    def assign(self, logits: Tensor) -> Tensor:
        """Return the assignment (N, C) of images with these logits, rows of which add up to 1."""
        p = logits.double().softmax(1)
        similarity = p.log_softmax(1) if self.similarity == "log_softmax" else p.softmax(1)
        return assign_evenly(similarity, self.epsilon, self.max_rounds)

    def choose_agreeing(self, plan: Tensor, labels: Tensor) -> Tensor:
        """Return which images (N,) are among the most surely assigned ones, and assigned to their label."""
        confidence, assigned = plan.max(1)
        is_sure = torch.zeros_like(labels, dtype=torch.bool)
        is_sure[confidence.topk(int(self.budget * len(plan))).indices] = True
        return is_sure & (assigned == labels)

    def find_agreeing(self, keys: Sequence[str | None], labels: Tensor) -> Tensor:
        """Return which rows (B,) of a batch agree; those of other images than the lesson's do."""
        found = list[bool]()
        for key, label in zip(keys, labels.tolist(), strict=True):
            # an augmentation's key is that of its item with two parts appended
            row = self.rows.get((key or "", label), self.rows.get(((key or "").rsplit("|", 2)[0], label)))
            found.append(row is None or bool(self.agrees[row]))
        return torch.tensor(found, dtype=torch.bool)

    def loss_terms(self, batch: Batch, fixed: Fixed) -> tuple[LossTerms, Output]:
        agrees = self.find_agreeing(batch.inputs.keys, batch.labels)
        loss = WatchedLoss(partial(compute_mixed_loss, agrees, batch.label_loss, self.q))
        terms, out = super().loss_terms(replace(batch, label_loss=loss), fixed)
        loss.require_use("method.method", type(self.method).__name__)
        return terms, out

    def end_epoch(self, epoch: int, epochs: int) -> None:
        self.method.end_epoch(epoch, epochs)
        self.compare_labels()

    def end_lesson(self, lesson: Lesson) -> None:
        self.method.end_lesson(lesson)
        self.train_split, self.rows, self.agrees = Split((), (), ()), {}, self.agrees[:0]

    def restore(self, lessons: Sequence[Lesson], state: dict[str, Tensor]) -> None:
        super().restore(lessons, state | {"agrees": self.agrees[:0]})


def compute_mixed_loss(
    agrees: Tensor, label_loss: LabelLoss, q: float, logits: Tensor, labels: Tensor, reduction: str = "mean"
) -> Tensor:
    """Compute the loss of labels of rows (B,) that agree, and the generalised cross-entropy of the others."""
    n_repeats, n_left = divmod(len(labels), len(agrees))  # of methods that take a loss of several answers at once
    robust = generalised_cross_entropy(logits, labels, "none", q)
    if n_left:
        raise ValueError(
            f"nlprompt: expected a loss with one row per image, got {len(labels)} rows of {len(agrees)} images. Wrap a "
            "method that classifies images."
        )
    rows = torch.where(agrees.to(logits.device).repeat(n_repeats), label_loss(logits, labels, reduction="none"), robust)
    return rows if reduction == "none" else rows.mean()
