"""Statistics of frozen features: Gaussian classes of one covariance, exemplars, channels that tell classes apart.

Sums are float64 and add up over parts of the data.
"""

import math
import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SINGULAR = 1e-10  # of a sum of squares, or of the largest variance: less is a rounding error of float32 features


class GaussianSums(NamedTuple):
    """Float64 sums of features by class, to which those of other images are added.

    Args:
        sums: (C, E), of each class's features.
        counts: (C,), features of each class.
        gram: (E, E), x^T x of all features.
    """

    sums: Tensor
    counts: Tensor
    gram: Tensor

    @property
    def means(self) -> Tensor:
        return self.sums / self.counts.clamp(min=1)[:, None]  # (C, E); 0 for a class without features

    @property
    def scatter(self) -> Tensor | None:
        """The scatter (E, E) about the class means; None if no two features of a class differ."""
        scatter = self.gram - self.sums.T @ self.means
        return scatter if float(scatter.trace()) > SINGULAR * float(self.gram.trace()) else None


def compute_gaussian_sums(features: Tensor, labels: Tensor, n_classes: int) -> GaussianSums:
    """Sum features (N, E) with labels (N,) by class."""
    x = features.double()
    counts = torch.bincount(labels, minlength=n_classes).double()
    return GaussianSums(x.new_zeros(n_classes, x.shape[1]).index_add_(0, labels, x), counts, x.T @ x)


def estimate_precision(sums: GaussianSums, features: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
    """Estimate the precision (E, E) of all classes, the inverse of their covariance.

    By default the covariance is shrunk. With the features (N, E) and labels (N,) of the sums it is the mean of the
    classes' unbiased covariances, which is not shrunk unless it is singular. Where no two features of a class differ,
    the precision is the identity. A warning says where it is another one than was asked for.
    """
    scatter, n = sums.scatter, float(sums.counts.sum())
    if scatter is None:
        _warn("different images or views of a class", "equal ones, or one of each", "the covariance is the identity")
        return torch.eye(len(sums.gram), dtype=sums.gram.dtype, device=sums.gram.device)
    if features is None or labels is None:
        return invert_shrunk(scatter, n)
    n_of_class = sums.counts[labels]
    x = (features.double() - sums.means[labels])[n_of_class > 1]
    weights = 1 / (n_of_class[n_of_class > 1] - 1)
    covariance = x.T @ (x * weights[:, None]) / int((sums.counts > 1).sum())
    variances = torch.linalg.eigvalsh(covariance)
    if float(variances[0]) > SINGULAR * float(variances[-1]):
        return covariance.inverse()
    _warn(f"a covariance of rank {len(scatter)}", f"a singular one of {n:.0f} images or views", "it is shrunk")
    return invert_shrunk(scatter, n)


def _warn(expected: str, got: str, consequence: str) -> None:
    text = f"lesson: expected {expected}, got {got}, so {consequence}. Take more shots, or augment the images."
    warnings.warn(text, stacklevel=4)


def invert_shrunk(scatter: Tensor, n: float) -> Tensor:
    """Invert the covariance (E, E) of n features, shrunk as by Kubokawa and Srivastava, from their scatter."""
    ridge = scatter.trace() / max(n - 1, 1) * torch.eye(len(scatter), dtype=scatter.dtype, device=scatter.device)
    return len(scatter) * torch.cholesky_inverse(torch.linalg.cholesky(scatter + ridge))


def build_gaussian_classifier(means: Tensor, precision: Tensor) -> tuple[Tensor, Tensor]:
    """Build the linear classifier, (C, E) and (C,), of Gaussians with these means (C, E), without a prior."""
    weights = means @ precision
    return weights, -(weights * means).sum(1) / 2


class AveragedGaussians(nn.Module):
    """Gaussian classes of a stream, of one covariance: its inverse is the mean of those of the lessons, by classes.

    As ENGINE (arXiv:2503.08510) has them. The mean of inverses is not the inverse of the mean; `GaussianSums` add up.
    Its buffers have 8 D + 8 bytes a class, and 8 D^2 + 8.
    """

    sums: Tensor  # (C, D)
    counts: Tensor  # (C,)
    precision: Tensor  # (D, D)
    n_averaged: Tensor

    def begin_lesson(self, n_classes: int, is_first: bool, dim: int, device: torch.device) -> None:
        """Make room for all classes so far; the first lesson begins anew."""
        options = {"dtype": torch.float64, "device": device}
        known = 0 if is_first else len(self.counts)
        for name, size in (("sums", (dim,)), ("counts", ())):
            rows = [] if is_first else [getattr(self, name)]
            self.register_buffer(name, torch.cat([*rows, torch.zeros(n_classes - known, *size, **options)]))
        if is_first:
            self.register_buffer("precision", torch.eye(dim, **options))
            self.register_buffer("n_averaged", torch.zeros((), **options))

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add the features (N, D) of a lesson, and the rows (N,) of their classes."""
        added, n = compute_gaussian_sums(features, labels, len(self.counts)), len(labels.unique())
        self.precision += n / (n + self.n_averaged) * (estimate_precision(added) - self.precision)
        self.n_averaged += n
        self.sums += added.sums
        self.counts += added.counts

    def build_classifier(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Build the linear classifier, (C, D) and (C,), of these classes, with equal priors."""
        means = self.sums[rows] / self.counts[rows].clamp(min=1)[:, None]
        weights, biases = build_gaussian_classifier(means, self.precision)
        return weights, biases - math.log(max(len(rows), 1))


def select_by_herding(features: Tensor, n: int) -> Tensor:
    """Select at most n features (N, E) whose mean stays nearest to that of all, one after the other.

    As iCaRL (Rebuffi et al., CVPR 2017, arXiv:1611.07725) selects exemplars; the first of a tie, none twice.

    Returns:
        Their indices in the order of the selection.
    """
    x, chosen = features.double(), list[int]()
    mean, total, is_free = x.mean(0), torch.zeros_like(x[0]), torch.ones(len(x), dtype=torch.bool, device=x.device)
    for k in range(1, min(n, len(x)) + 1):
        distances = ((total + x) / k - mean).square().sum(1)
        chosen.append(int(torch.where(is_free, distances, torch.inf).argmin()))
        total, is_free[chosen[-1]] = total + x[chosen[-1]], False
    return torch.tensor(chosen, dtype=torch.long, device=x.device)


def compute_channel_similarity(text: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Compute the mean product (E,) of two classes in each channel.

    Over all pairs of classes, and of their features: of each class its text (C, E) and the features (N, E) with its
    label (N,).
    """
    counts = 1 + torch.bincount(labels, minlength=len(text))
    means = text.double().index_add(0, labels, features.double()) / counts[:, None]
    return (means.sum(0).square() - means.square().sum(0)) / (len(text) * (len(text) - 1))


def compute_divergence(text: Tensor, features: Tensor, labels: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Compute in bits (N,) how far the softmax of bare cosines to the texts (C, E) is from the labels (N,)."""
    probabilities = (F.normalize(features, dim=-1) @ F.normalize(text, dim=-1).T).softmax(-1)
    p = probabilities.gather(1, labels[:, None])[:, 0]
    return ((1 + epsilon) / (p + epsilon)).log2()
