"""Class means in the subspaces of several lessons' adapters, with those composed that no image has, as in EASE."""

import torch
from torch import Tensor, nn

from vlprompt.core.class_names import Names, class_ids, extend_ids
from vlprompt.core.towers import Clip
from vlprompt.layers.heads import find_class_indices
from vlprompt.runtime.errors import UnknownClassError


class _LessonMeans(nn.Module):
    """Means (c, S, E) of a lesson's classes in each of the subspaces that there were, and their images (c,)."""

    means: Tensor
    counts: Tensor

    def __init__(self, names: Names, n_subspaces: int, feature_dim: int, device: torch.device):
        super().__init__()
        self.class_ids = class_ids(names)
        self.register_buffer("means", torch.zeros(len(names), n_subspaces, feature_dim, device=device))
        self.register_buffer("counts", torch.zeros(len(names), device=device))


class ClassMeans(nn.Module):
    """Means of the features of all classes so far, in S subspaces: some of every lesson, then one of each lesson.

    A class has 4 E S bytes for each of its lessons, with the subspaces that there were.

    Args:
        n_common: subspaces in which every class has a mean.
    """

    def __init__(self, n_common: int):
        super().__init__()
        self.n_common, self.class_ids, self.lessons = n_common, (), nn.ModuleList()

    def begin_lesson(self, names: Names, n_subspaces: int, feature_dim: int, device: torch.device) -> None:
        """Make room for the means of a lesson's classes."""
        self.class_ids = extend_ids(self.class_ids, names)
        self.lessons.append(_LessonMeans(names, n_subspaces, feature_dim, device))

    @property
    def parts(self) -> list[_LessonMeans]:
        return [part for part in self.lessons if isinstance(part, _LessonMeans)]

    @property
    def has_newest(self) -> bool:
        """Whether the newest lesson has means."""
        return bool(self.parts[-1].counts.any())

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Set the means of the newest lesson to those of features (N, S, E) with labels (N,)."""
        part = self.parts[-1]
        part.counts.copy_(torch.bincount(labels, minlength=len(part.counts)))
        sums = torch.zeros_like(part.means, dtype=torch.float64).index_add_(0, labels, features.double())
        part.means.copy_(sums / part.counts.clamp(min=1)[:, None, None])

    def get_rows(self, names: Names) -> Tensor:
        """Return the rows (C,) of classes; UnknownClassError for one that never came."""
        return find_class_indices(self.class_ids, names, "class means").to(self.parts[-1].means.device)

    def select(self, names: Names) -> tuple[Tensor, Tensor]:
        """Return what `compute` does for these classes.

        Raises:
            UnknownClassError: for a class that never came, and where none of them has images.
        """
        rows, (means, lessons) = self.get_rows(names), self.compute()
        if self.has_newest:
            require_images(lessons[rows] >= 0, names)
        return means[rows], lessons[rows]

    def compute(self) -> tuple[Tensor, Tensor]:
        """Compute the means of all classes, composed where a class never had an image in a subspace.

        There an old class is the mean of later ones, weighted by a softmax of their cosines to it in its own subspace.
        A class of several lessons has the means of all its images, and is one of the last of them.

        Returns:
            means (C, S, E) in float64, and the lesson (C,) of each class, -1 for one without images.
        """
        newest = self.parts[-1].means
        sums = newest.new_zeros(len(self.class_ids), *newest.shape[1:], dtype=torch.float64)
        counts, lessons = sums.new_zeros(sums.shape[:2]), torch.full(sums.shape[:1], -1, device=newest.device)
        for index, part in enumerate(self.parts):
            rows, n = self.get_rows(part.class_ids), part.means.shape[1]
            sums[rows, :n] += part.means.double() * part.counts[:, None, None]
            counts[rows, :n] += part.counts[:, None]
            lessons[rows[part.counts > 0]] = index
        means = sums / counts.clamp(min=1)[..., None]
        own = self.n_common + lessons
        for first in range(self.n_common, newest.shape[1]):
            old = own == first
            for k in range(first + 1, newest.shape[1]):
                later = own >= k
                similarity = Clip.unit(means[old, first]) @ Clip.unit(means[later, first]).T
                means[old, k] = similarity.softmax(-1) @ means[later, k]
        return means, lessons


def require_images(has_images: Tensor, names: Names) -> None:
    """Raise UnknownClassError where none of the classes (C,) has training images."""
    if not has_images.any():
        raise UnknownClassError(
            f"class names: expected one that has training images, got {', '.join(map(repr, names[:5]))}, which have "
            "none. Ask for other classes."
        )
