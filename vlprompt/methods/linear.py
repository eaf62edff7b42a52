"""Linear probe: Radford et al., ICML 2021, arXiv:2103.00020.

The paper is "Learning Transferable Visual Models From Natural Language Supervision". A linear head on the frozen image
feature. By default it is logistic regression solved exactly by L-BFGS (scikit-learn), with the strength of the penalty
searched on validation images, as in the paper's appendix A.3. Sites: none.

Differs from the paper in: the search is over 13 values of C, a half decade apart, and the smaller of equally good ones
is taken; solver="fit" trains the head by the shared loop instead, as VPT's "linear" row does. In a stream "lbfgs"
solves the weights of a lesson's classes on its images (and those of its replay buffer), anew for classes of earlier
lessons; "fit" continues from the current weights, over the names that the task trains, the lesson's (a masked head) or
all seen so far.

Expected: below zero-shot CLIP at 1 and 2 shots on most sets, above it from 8 (Figure 6 of the paper).
"""

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from vlprompt.core.batch import Inputs, Split
from vlprompt.core.head import Head
from vlprompt.core.method import TowerMethod
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import AnyTower, Clip
from vlprompt.layers.heads import LinearHead

MAX_ITERATIONS = 2000  # of L-BFGS
C_GRID = tuple(10 ** (e / 2) for e in range(-6, 7))


class Linear(TowerMethod[AnyTower]):
    """A head on the frozen feature.

    Args:
        tower: frozen image tower or language model.
        head: LinearHead, or another head that "fit" trains.
        solver: "lbfgs" (exact logistic regression) or "fit" (trained by the shared loop).
        inverse_regularization: scikit-learn's C; None: searched on the validation images (1.0 without any).
        normalize: whether features are normalised first.
    """

    max_vmap_images = 10**6

    def __init__(
        self,
        tower: AnyTower,
        head: Head,
        solver: Literal["lbfgs", "fit"] = "lbfgs",
        inverse_regularization: float | None = None,
        normalize: bool = False,
    ):
        super().__init__()
        self.tower, self.head, self.solver = tower, head, solver
        self.inverse_regularization, self.normalize = inverse_regularization, normalize
        self.needs_single_labels = solver == "lbfgs"

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        super().begin_lesson(lesson, generator)
        if self.solver == "lbfgs":
            if not isinstance(self.head, LinearHead):
                raise ValueError(
                    f"method.solver: expected 'fit' for a {type(self.head).__name__}, got 'lbfgs', which solves a "
                    "linear head. Set method.solver=fit."
                )
            if lesson.is_single_pass:
                raise ValueError(
                    "method.solver: expected 'fit' for a stream that gives each image once, got 'lbfgs', which needs "
                    "several passes. Set method.solver=fit."
                )
            self.head.requires_grad_(False)
            if len(lesson.train):
                self._solve(lesson, self.head)

    def compute_features(self, inputs: Inputs, tower: AnyTower) -> Tensor:
        image = tower(self.prepare_inputs(inputs), output=self.head.output)  # (B, E), or (R, E) of words
        return Clip.unit(image) if self.normalize else image

    def _extract_features(self, split: Split) -> tuple[Any, Any]:
        features = torch.cat([self.compute_features(batch.inputs, self.tower) for batch in split.batches(256)])
        return features.cpu().double().numpy(), list(split.labels)

    def _solve(self, lesson: Lesson, head: LinearHead) -> None:
        train = lesson.train_with_memory
        x, y = self._extract_features(train)
        if len(set(y)) < 2:
            raise ValueError(
                f"method.solver=lbfgs: expected at least two classes in a lesson, got {train.names[y[0]]!r} alone. "
                "Set method.solver=fit, or fewer stages."
            )
        model = self._search_penalty(x, y, lesson.val)
        weight, bias = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
        if len(weight) == 1:  # of two classes scikit-learn returns the difference of their weights
            weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
        rows = head.class_indices(train.names)[torch.from_numpy(model.classes_).to(head.weight.device)]
        head.weight.data[rows] = weight.to(head.weight)
        head.bias.data[rows] = bias.to(head.bias)

    def _search_penalty(self, x: Any, y: Any, val: Split | None) -> Any:
        """Fit scikit-learn's logistic regression with the given C, or the best one on the validation images."""
        if self.inverse_regularization is not None or val is None or not len(val):
            return _fit_regressions((self.inverse_regularization or 1.0,), x, y)[0]
        val_x, val_y = self._extract_features(val)
        models = _fit_regressions(C_GRID, x, y)
        return max(models, key=lambda model: model.score(val_x, val_y))  # the first, smallest C of a tie


def _fit_regressions(values: Sequence[float], x: Any, y: Any) -> list[Any]:
    """Fit a logistic regression for each value of C; one warning for all that do not converge."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told below, for all values at once
        models = [LogisticRegression(C=c, max_iter=MAX_ITERATIONS).fit(x, y) for c in values]
    if unfinished := [c for c, model in zip(values, models, strict=True) if max(model.n_iter_) >= MAX_ITERATIONS]:
        warnings.warn(
            f"method.solver=lbfgs: expected the regression to converge in {MAX_ITERATIONS} iterations, got "
            f"{len(unfinished)} of {len(values)} values of C that did not (from {min(unfinished):.3g}). Set "
            "method.normalize=true, a smaller method.inverse_regularization, or method.solver=fit.",
            stacklevel=2,
        )
    return models
