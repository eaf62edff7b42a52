"""What the classifiers on features of the training images share: views, a state of any number of images, validation."""

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vlprompt.core.batch import Split
from vlprompt.core.class_names import Names, class_ids
from vlprompt.core.method import Method
from vlprompt.core.towers import Clip
from vlprompt.layers.class_texts import TemplateChoice, encode_class_texts

BATCH_SIZE = 256  # images at once


class SupportMethod(Method):
    """A method that answers from features of its training images.

    Attributes:
        tensors_by_image: names of the tensors of its state that have a row for each image.
    """

    needs_single_labels = True
    tensors_by_image: tuple[str, ...] = ()
    clip: Clip
    template: TemplateChoice
    names: Names = ()

    def encode_texts(self, names: Names) -> Tensor:
        """Compute the normalised class texts (C, E)."""
        return self.clip.unit(encode_class_texts(self.clip, names, self.template, normalize=True))

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: object, **kwargs: object
    ) -> None:
        """Take the number of images from the saved state, for a resumed run too."""
        for name in self.tensors_by_image:
            if (saved := state_dict.get(f"{prefix}{name}")) is not None:
                tensor: Tensor = getattr(self, name)
                tensor.data = tensor.data.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def iter_views(clip: Clip, split: Split, n_views: int, seed: int | None) -> Iterator[Tensor]:
    """Yield the features (N, E), not normalised, of each augmentation; of the plain images where there is none."""
    for k in range(1 if seed is None or split.augment == "none" else n_views):
        batches = split.batches(BATCH_SIZE, seed=seed, epoch=k, shuffle=False)
        yield torch.cat([clip.image(batch.inputs) for batch in batches])


def compute_features(clip: Clip, split: Split, n_views: int = 1, seed: int | None = None) -> tuple[Tensor, Tensor]:
    """Compute the normalised features (M, E) of a split's images, one view after the other, and their labels (M,).

    Args:
        clip: the CLIP.
        split: its images; there may be none.
        n_views: augmentations of each image.
        seed: of the augmentations; None for the plain images.
    """
    views = list(iter_views(clip, split, n_views, seed)) if len(split) else []
    features = torch.cat(views) if views else torch.zeros(0, clip.feature_dim, device=clip.device)
    labels = torch.tensor(split.labels, dtype=torch.long, device=clip.device)
    return clip.unit(features), labels.repeat(len(views))


def compute_keys(clip: Clip, train: Split, n_views: int, seed: int) -> tuple[Tensor, Tensor]:
    """Compute the normalised sums (M, E) of un-normalised features over the views of each image, and labels (M,)."""
    keys = torch.zeros(0, clip.feature_dim, device=clip.device)
    if len(train):
        keys = functools.reduce(torch.add, iter_views(clip, train, n_views, seed))
    return clip.unit(keys), torch.tensor(train.labels, dtype=torch.long, device=clip.device)


def draw_seed(generator: torch.Generator) -> int:
    """Draw the seed of all augmentations of a lesson."""
    return int(torch.randint(2**31, (), generator=generator))


def extend_names(known: Names, names: Names) -> Names:
    """Return the known names, and behind them those of other classes."""
    known_ids = class_ids(known)
    return (*known, *(name for name, i in zip(names, class_ids(names), strict=True) if i not in known_ids))


def find_rows(known: Names, names: Names, device: torch.device) -> Tensor:
    """Return the place (C,) of each of `names` among the known classes, -1 where it is not one of them."""
    row_of_id = {i: row for row, i in enumerate(class_ids(known))}
    return torch.tensor([row_of_id.get(i, -1) for i in class_ids(names)], dtype=torch.long, device=device)


def count_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Count the right answers (...) of logits (..., N, C)."""
    return (logits.argmax(-1) == labels).sum(-1)


def build_grid(starts: Sequence[float], ends: Sequence[float], steps: Sequence[int]) -> list[Tensor]:
    """Return evenly spaced values from each start, without the end."""
    return [torch.linspace(start, end, n + 1)[:-1] for start, end, n in zip(starts, ends, steps, strict=True)]


@torch.no_grad()
def search_cache(
    text_logits: Tensor,
    similarity: Tensor,
    columns: Tensor,
    weights: Tensor,
    labels: Tensor,
    grid: Sequence[Tensor],
) -> tuple[float, float, int]:
    """Search the cache of keys that is best on validation images, the first of a tie.

    Args:
        text_logits: (N, C).
        similarity: (N, M), cosines of the images and the keys.
        columns: (M,), the class of each key; -1 for one that is none of the C.
        weights: (G, M), weights of the keys, several of which are compared.
        labels: (N,), of the images.
        grid: values of beta and of alpha; the weights change fastest, beta slowest.

    Returns:
        beta, alpha and the place of the weights.
    """
    counts = torch.bincount(columns + 1, minlength=text_logits.shape[1] + 1)
    order, begins = columns.argsort(stable=True), counts.cumsum(0)
    place = begins[:-1, None] + torch.arange(max(int(counts[1:].max()), 1), device=order.device)  # (C, K)
    is_key = place < begins[1:, None]
    keys = order[place.clamp(max=len(order) - 1)]
    weights_by_class, best, chosen = weights[:, keys] * is_key, -1, (0.0, 0.0, 0)  # (G, C, K)
    for beta in grid[0].tolist():
        affinity = (-beta * (1 - similarity)).exp()[:, keys]
        cache_logits = torch.einsum("nck,gck->gnc", affinity, weights_by_class)
        n_correct = torch.stack([count_correct(text_logits + alpha * cache_logits, labels) for alpha in grid[1]])
        if int(n_correct.max()) > best:
            best, (row, column) = int(n_correct.max()), divmod(int(n_correct.argmax()), len(weights))
            chosen = beta, float(grid[1][row]), column
    return chosen


def compute_kernel(a: Tensor, b: Tensor, beta: float) -> Tensor:
    """Compute exp(-beta (1 - cosine)) (N, M) of normalised features (N, E) and (M, E)."""
    return (a @ b.T).sub_(1).mul_(beta).exp_()
