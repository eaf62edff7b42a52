"""Linear probe: Radford et al., ICML 2021, arXiv:2103.00020.

The paper is "Learning Transferable Visual Models From Natural Language Supervision". A linear head on the frozen image
feature. By default it is logistic regression solved exactly by L-BFGS (scikit-learn), with the strength of the penalty
searched on validation images, as in the paper's appendix A.3. Sites: none.

Differs from the paper in: the search is over 13 values of C, a half decade apart, and the smaller of equally good ones
is taken; solver="fit" trains the head by the shared loop instead, as VPT's "linear" row does.

Expected: below zero-shot CLIP at 1 and 2 shots on most sets, above it from 8 (Figure 6 of the paper).
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from vlprompt import readers
from vlprompt.method import Method, Output
from vlprompt.stage import Images, Lesson, Split
from vlprompt.tower import Clip

GRID = tuple(10 ** (e / 2) for e in range(-6, 7))


class Linear(Method):
    """A linear head on the image feature.

    solver: "lbfgs" (logistic regression, exact) or "fit" (trained by the shared loop); penalty: scikit-learn's C, None
    to search for it on the validation images (1.0 where there are none); unit: normalise features first; std: of the
    weights that "fit" starts from.
    """

    side_by_side = 10**6

    def __init__(self, clip: Clip, solver: Literal["lbfgs", "fit"] = "lbfgs", penalty: float | None = None,
                 unit: bool = False, std: float = 0.01):  # fmt: skip
        super().__init__()
        self.clip, self.solver, self.penalty, self.unit, self.std = clip, solver, penalty, unit, std
        self.reader = readers.Linear(std)

    def begin(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.reader.begin(lesson, generator, self.clip.width, self.clip.device)
        if self.solver == "lbfgs":
            self.reader.requires_grad_(False)
            if len(lesson.train):
                self._solve(lesson)

    def forward(self, inputs: Images, prepared: Tensor) -> Output:
        image = self.clip.image(inputs)  # (B, E)
        return Output(self.reader(self.clip.unit(image) if self.unit else image, prepared), image=image)

    def _features(self, split: Split) -> tuple[Any, Any]:
        found = torch.cat([self.clip.image(batch.inputs) for batch in split.batches(256)])
        return (self.clip.unit(found) if self.unit else found).cpu().double().numpy(), list(split.labels)

    def _solve(self, lesson: Lesson) -> None:
        from sklearn.linear_model import LogisticRegression

        x, y = self._features(lesson.train)
        solve = lambda c: LogisticRegression(C=c, max_iter=2000).fit(x, y)  # noqa: E731
        if self.penalty is not None or lesson.val is None or not len(lesson.val):
            best = solve(self.penalty or 1.0)
        else:
            held, right = self._features(lesson.val)
            score, best = -math.inf, None
            for c in GRID:
                model = solve(c)
                if (now := model.score(held, right)) > score:
                    score, best = now, model
        assert best is not None, "the grid is not empty"
        weight, bias = torch.from_numpy(best.coef_), torch.from_numpy(best.intercept_)
        if len(weight) == 1:  # two classes: scikit-learn keeps the difference of their columns
            weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
        place = self.reader.fixed(lesson.train.names)[torch.from_numpy(best.classes_).to(self.reader.weight.device)]
        self.reader.weight.data[place] = weight.to(self.reader.weight)
        self.reader.bias.data[place] = bias.to(self.reader.bias)
