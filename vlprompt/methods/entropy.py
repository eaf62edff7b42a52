"""Entropy minimisation: Grandvalet and Bengio, "Semi-supervised Learning by Entropy Minimization", NIPS 2004.

A method is made to be sure of its answers to unlabelled images: their mean entropy is added to its loss. With
`diversity` the entropy of the mean answer is taken away, so that not all images become of one class (SHOT: Liang et
al., ICML 2020, arXiv:2002.08546, its information maximisation). It can be put around any method, and without labelled
images it is alone. Sites: those of the method inside.

Differs from Grandvalet and Bengio in: the weight is constant (theirs is annealed or searched); labelled images don't
count as sure ones. From SHOT in: no pseudo-labels of class centres; all that the method inside trains is trained, a
head too (theirs is frozen).

Expected: no published number of a prompt method that was checked.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.core.batch import Batch
from vlprompt.core.method import Method, Output, Terms
from vlprompt.core.method_wrapper import Around
from vlprompt.core.stage import Lesson
from vlprompt.methods._adaptation import needs_target
from vlprompt.metrics import entropy


class Entropy(Around):
    """A method that is made sure of its answers to unlabelled images.

    method: the one inside; weight: of the mean entropy (nats); diversity: of the entropy of the mean answer over a
    batch, in shares of weight (0: none, 1: SHOT's); with it a step can't be made of micro-batches.
    """

    adapts = True  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]

    def __init__(self, method: Method, weight: float = 0.1, diversity: float = 0.0):
        super().__init__()
        self.method, self.weight, self.diversity = method, weight, diversity
        self.whole_batch = diversity > 0

    def begin(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.at_least(weight=0, diversity=0)
        needs_target(self, lesson)
        super().begin(lesson, generator)

    def terms(self, batch: Batch, fixed: tuple[object, object]) -> tuple[Terms, Output]:
        inner, beside = self.method, batch.unlabelled
        found, out = Terms(), None
        plain = type(inner).terms is Method.terms  # then texts are prepared once for both kinds of images
        prepared = inner.prepare(batch.names, fixed[0]) if plain or beside is not None else None
        if plain and len(batch.inputs):
            out = inner(batch.inputs, prepared)
            found["ce"] = F.cross_entropy(out.logits.float(), batch.labels.to(out.logits.device)), len(batch.labels)
            if isinstance(out.penalty, Tensor):
                found["penalty"] = out.penalty, len(batch.labels)
        elif inner.adapts or len(batch.inputs):
            found, out = inner.terms(batch, fixed[0])
        if beside is not None:
            answer: Output = inner(beside.inputs, prepared)
            p, rows = answer.logits.float().softmax(-1), len(beside.inputs)
            found["entropy"] = self.weight * entropy(p).mean(), rows
            if self.diversity:
                found["diversity"] = -self.weight * self.diversity * entropy(p.mean(0)), rows
            out = out or answer
        assert out is not None, "a batch has images"
        return found, out
