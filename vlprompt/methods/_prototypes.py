"""Mean features of all classes so far, and a check that each class has an image."""

import torch
from torch import Tensor, nn

from vlprompt.core.batch import Split
from vlprompt.core.class_names import Names, class_ids, extend_ids
from vlprompt.layers.heads import find_class_indices


class Prototypes(nn.Module):
    """The mean feature of each class, over all images of all lessons; 4 E + 4 bytes a class.

    Args:
        owner: whose they are, for errors.
    """

    sums: Tensor  # (C, E)
    counts: Tensor  # (C,), images

    def __init__(self, owner: str):
        super().__init__()
        self.owner = owner
        self.class_ids: Names = ()

    def begin_lesson(self, names: Names, is_first: bool, feature_dim: int, device: torch.device) -> None:
        """Make room for the classes of a lesson; the first one begins anew."""
        known = () if is_first else self.class_ids
        self.class_ids = extend_ids(known, names)
        n_added = len(self.class_ids) - len(known)
        for name, shape in (("sums", (n_added, feature_dim)), ("counts", (n_added,))):
            rows = [getattr(self, name)] if known else []
            self.register_buffer(name, torch.cat([*rows, torch.zeros(shape, device=device)]))

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor, names: Names) -> None:
        """Add the features (N, E) of a lesson's images, whose labels (N,) are indices into its class names."""
        rows = self._find_rows(names)[labels.to(self.sums.device)]
        self.sums.index_add_(0, rows, features)
        self.counts.index_add_(0, rows, torch.ones_like(rows, dtype=self.counts.dtype))

    def get(self, names: Names) -> Tensor:
        """Return the mean features (C, E) of classes; UnknownClassError for one that never came."""
        rows = self._find_rows(names)
        return self.sums[rows] / self.counts[rows, None].clamp(min=1)

    def _find_rows(self, names: Names) -> Tensor:
        return find_class_indices(self.class_ids, names, self.owner).to(self.sums.device)


def require_images(train: Split, known_ids: Names = ()) -> None:
    """Raise ValueError for a lesson with images, but none of one of its classes, which had none before either."""
    if not len(train):
        return
    counts = zip(class_ids(train.names), train.names, train.count_per_class(), strict=True)
    if lacking := [str(name) for i, name, count in counts if not count and i not in known_ids]:
        listed = ", ".join(lacking[:5]) + " ..." * (len(lacking) > 5)
        raise ValueError(
            f"lesson: expected an image of each class for its mean feature, got none of {listed}. Add images, or leave "
            "the class out."
        )
