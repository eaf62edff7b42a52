"""Entropy minimisation: Grandvalet and Bengio, "Semi-supervised Learning by Entropy Minimization", NIPS 2004.

The mean entropy of the predictions on unlabelled images is added to a method's loss. With `diversity` the entropy of
the mean prediction is subtracted, so that the images do not collapse to one class (SHOT: Liang et al., ICML 2020,
arXiv:2002.08546, its information maximisation). It wraps any method; without labelled images it is the only loss.
Sites: those of the wrapped method.

Differs from Grandvalet and Bengio in: the weight is constant (theirs is annealed or searched); labelled images don't
count as confident ones. From SHOT in: no pseudo-labels of class centres; all that the wrapped method trains is trained,
a head too (theirs is frozen).

Expected: no published number of a prompt method that was checked.
"""

import torch
from torch import Tensor

from vlprompt.core.batch import Batch
from vlprompt.core.method import LossTerms, Method, Output
from vlprompt.core.method_wrapper import MethodWrapper
from vlprompt.core.stage import Lesson
from vlprompt.methods._adaptation import require_target
from vlprompt.metrics import entropy


class Entropy(MethodWrapper):
    """A term for confident answers to unlabelled images, around any method.

    Args:
        method: the wrapped method.
        weight: of the mean entropy (nats).
        diversity: weight of the entropy of a batch's mean prediction, relative to `weight` (0: none, 1: SHOT's); above
            0 a step can't be split into micro-batches.
    """

    needs_unlabelled = True  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]

    def __init__(self, method: Method, weight: float = 0.1, diversity: float = 0.0):
        super().__init__()
        self.method, self.weight, self.diversity = method, weight, diversity
        self.needs_whole_batch = diversity > 0

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.require_at_least(weight=0, diversity=0)
        require_target(self, lesson)
        super().begin_lesson(lesson, generator)

    def loss_terms(self, batch: Batch, fixed: tuple[object, object]) -> tuple[LossTerms, Output]:
        inner, unlabelled = self.method, batch.unlabelled
        terms, out = LossTerms(), None
        is_default = type(inner).loss_terms is Method.loss_terms  # then one `prepare` serves both kinds of images
        prepared = inner.prepare(batch.names, fixed[0]) if is_default or unlabelled is not None else None
        if is_default and len(batch.inputs):
            out = inner(batch.inputs, prepared)
            terms["ce"] = batch.label_loss(out.logits.float(), batch.labels.to(out.logits.device)), len(batch.labels)
            if isinstance(out.penalty, Tensor):
                terms["penalty"] = out.penalty, len(batch.labels)
        elif inner.needs_unlabelled or len(batch.inputs):
            terms, out = inner.loss_terms(batch, fixed[0])
        if unlabelled is not None:
            unlabelled_out: Output = inner(unlabelled.inputs, prepared)
            p, n = unlabelled_out.logits.float().softmax(-1), len(unlabelled.inputs)
            terms["entropy"] = self.weight * entropy(p).mean(), n
            if self.diversity:
                terms["diversity"] = -self.weight * self.diversity * entropy(p.mean(0)), n
            out = out or unlabelled_out
        assert out is not None, "a batch has images"
        return terms, out
