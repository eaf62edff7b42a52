"""Linear probe: a linear head on frozen features (Radford et al. 2021, arXiv:2103.00020, section 3.2, and everyone else).

A column per class on the tower's feature; with cross-entropy and weight decay this is logistic regression. Sites: none.

Differs from Radford et al. in: trained by the shared loop (AdamW) instead of L-BFGS with a search for the penalty; on the few-shot
digits it is within a point of scikit-learn's LogisticRegression (tests/test_methods.py).

Expected: below zero-shot CLIP at 1 and 2 shots on most sets, above it from 8 (Figure 6 of the paper).
"""

import torch

from vlprompt import readers
from vlprompt.method import Method, Output
from vlprompt.stage import Images, Lesson
from vlprompt.tower import Clip


class Linear(Method):
    """A linear head on the image feature. unit: normalise the features first (then `scale` multiplies them); std: of the first weights."""

    def __init__(self, clip: Clip, unit: bool = False, scale: float = 1.0, std: float = 0.01):
        super().__init__()
        self.clip, self.unit, self.scale, self.std = clip, unit, scale, std
        self.reader = readers.Linear(std)

    def begin(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.reader.begin(lesson, generator, self.clip.width, self.clip.device)

    def forward(self, inputs: Images, prepared: torch.Tensor) -> Output:
        image = self.clip.image(inputs)  # (B, E)
        return Output(self.reader((self.clip.unit(image) if self.unit else image) * self.scale, prepared), image=image)
