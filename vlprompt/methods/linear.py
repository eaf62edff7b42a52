"""Linear probe: Radford et al., ICML 2021, arXiv:2103.00020.

The paper is "Learning Transferable Visual Models From Natural Language Supervision". A linear head on the frozen image
feature. By default it is logistic regression solved exactly by L-BFGS (scikit-learn), with the strength of the penalty
searched on validation images, as in the paper's appendix A.3. Sites: none.

Differs from the paper in: the search is over 13 values of C, a half decade apart, and the smaller of equally good ones
is taken; solver="fit" trains the head by the shared loop instead, as VPT's "linear" row does. In a stream "lbfgs"
solves the columns of a lesson's classes on its images alone, anew where they were met before; "fit" goes on from what
it has, over the names that the task asks for, the lesson's (a masked head) or all seen so far.

Expected: below zero-shot CLIP at 1 and 2 shots on most sets, above it from 8 (Figure 6 of the paper).
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from vlprompt.core.batch import Split
from vlprompt.core.head import Reader
from vlprompt.core.method import OnTower
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import AnyTower, Clip
from vlprompt.layers.heads import Linear as Head

GRID = tuple(10 ** (e / 2) for e in range(-6, 7))


class Linear(OnTower):
    """A head on the image feature.

    reader: Linear, or another head (Cosine) that "fit" trains; solver: "lbfgs" (logistic regression, exact) or "fit"
    (trained by the shared loop); penalty: scikit-learn's C, None to search for it on the validation images (1.0 where
    there are none); unit: normalise features first.
    """

    side_by_side = 10**6

    def __init__(self, tower: AnyTower, reader: Reader, solver: Literal["lbfgs", "fit"] = "lbfgs",
                 penalty: float | None = None, unit: bool = False):  # fmt: skip
        super().__init__()
        self.tower, self.reader, self.solver, self.penalty, self.unit = tower, reader, solver, penalty, unit

    def begin(self, lesson: Lesson, generator: torch.Generator) -> None:
        super().begin(lesson, generator)
        if self.solver == "lbfgs":
            if not isinstance(self.reader, Head):
                raise ValueError("method.solver=lbfgs solves a linear head; give another reader method.solver=fit")
            if not lesson.announced:
                raise ValueError(
                    "logistic regression goes through the images again and again, and this stream gives each once: set "
                    "method.solver=fit"
                )
            self.reader.requires_grad_(False)
            if len(lesson.train):
                self._solve(lesson, self.reader)

    def features(self, inputs: Any, tower: AnyTower) -> Tensor:
        image = tower(self.shown(inputs), read=self.reader.read)  # (B, E), or (R, E) of words
        return Clip.unit(image) if self.unit else image

    def _features(self, split: Split) -> tuple[Any, Any]:
        found = torch.cat([self.features(batch.inputs, self.tower) for batch in split.batches(256)])
        return found.cpu().double().numpy(), list(split.labels)

    def _solve(self, lesson: Lesson, head: Head) -> None:
        from sklearn.linear_model import LogisticRegression

        train = lesson.seen
        x, y = self._features(train)
        if len(set(y)) < 2:
            raise ValueError(
                "logistic regression tells classes apart, but this lesson has one alone "
                f"({train.names[y[0]]!r}): set method.solver=fit, or fewer stages"
            )
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
        place = head.places(train.names)[torch.from_numpy(best.classes_).to(head.weight.device)]
        head.weight.data[place] = weight.to(head.weight)
        head.bias.data[place] = bias.to(head.bias)
