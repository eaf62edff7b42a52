"""Gaussians of the features of each class, from which features are drawn in place of images of earlier lessons.

As SLCA (arXiv:2303.05118), HiDe-Prompt (arXiv:2310.07234) and their followers keep them for the alignment of a head.
"""

import warnings
from collections.abc import Sequence
from itertools import compress
from typing import Literal

import torch
from torch import Tensor, nn

from vlprompt.core.class_names import Names, extend_ids
from vlprompt.layers.heads import find_class_indices

Spread = Literal["covariance", "variance", "centroids"]


class ClassGaussians(nn.Module):
    """Means and spreads of the features of all classes so far; its buffers are as large as all lessons need.

    A class that comes again has the statistics of all of its features, as if they had come together, but for centroids,
    which are those of the latest lesson. Where a class has one image, its covariance is the mean one of its lesson.

    Args:
        spread: what is stored of a class besides means: a "covariance" (4 D^2 bytes), a "variance" of each channel
            (4 D), or "centroids" by k-means, each with its variances (8 D for each).
        ridge: added to variances: 1e-4 in the papers.
        n_centroids: of a class, at most.
    """

    means: Tensor  # (C, K, D)
    spreads: Tensor  # (C, D, D), or (C, K, D)
    counts: Tensor  # (C, K), images

    def __init__(self, spread: Spread = "covariance", ridge: float = 1e-4, n_centroids: int = 10):
        super().__init__()
        self.spread, self.ridge, self.n_centroids = spread, ridge, n_centroids
        self.class_ids: Names = ()

    def begin_lesson(self, names: Names, is_first: bool, feature_dim: int, device: torch.device) -> None:
        """Make room for the classes of a lesson; the first one begins anew."""
        known = () if is_first else self.class_ids
        self.class_ids = extend_ids(known, names)
        k = self.n_centroids if self.spread == "centroids" else 1
        tail = (feature_dim, feature_dim) if self.spread == "covariance" else (k, feature_dim)
        n_added = len(self.class_ids) - len(known)
        for name, shape in (("means", (k, feature_dim)), ("spreads", tail), ("counts", (k,))):
            rows = [getattr(self, name)] if known else []
            self.register_buffer(name, torch.cat([*rows, torch.zeros(n_added, *shape, device=device)]))

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor, names: Names, seed: int = 0) -> None:
        """Add the features (N, D) of a lesson's images, whose labels (N,) are indices into its class names.

        Args:
            features: of the images as a test sees them.
            labels: of the images.
            names: of the lesson's classes.
            seed: of k-means.
        """
        rows = find_class_indices(self.class_ids, names, "Gaussians of classes")
        groups = {int(row): features[labels == label].double() for label, row in enumerate(rows)}
        groups = {row: x for row, x in groups.items() if len(x)}
        if self.spread == "centroids":
            for row, x in groups.items():
                self._set_centroids(row, x, seed)
            return
        covariances = {row: self._compute_spread(x) for row, x in groups.items() if len(x) > 1}
        common = torch.stack(list(covariances.values())).mean(0) if covariances else None
        is_single = [row in groups and row not in covariances for row in rows.tolist()]
        if any(is_single):
            _warn_of_single(list(compress(names, is_single)), has_common=common is not None)
        for row, x in groups.items():
            alone = common if common is not None else torch.zeros_like(self.spreads[row], dtype=torch.double)
            self._merge(row, x, covariances.get(row, alone))

    def _compute_spread(self, x: Tensor) -> Tensor:
        """Compute the unbiased covariance (D, D), or variance (1, D), of features (n, D)."""
        return torch.cov(x.T) if self.spread == "covariance" else x.var(0, keepdim=True)

    def _merge(self, row: int, x: Tensor, spread: Tensor) -> None:
        """Join n features with those that a class has: their sums of squares about the common mean add up."""
        n, m = len(x), float(self.counts[row, 0])
        old, new = self.means[row, 0].double(), x.mean(0)
        mean = (m * old + n * new) / (m + n)
        if m:
            ridge = self.ridge * (torch.eye(len(old), device=x.device) if self.spread == "covariance" else 1.0)
            shift = (old - new)[None]
            outer = shift.T @ shift if self.spread == "covariance" else shift.square()
            earlier = self.spreads[row].double() - ridge
            spread = ((m - 1) * earlier + (n - 1) * spread + m * n / (m + n) * outer) / (m + n - 1)
        self.means[row, 0], self.counts[row, 0] = mean.float(), m + n
        self.spreads[row] = self._add_ridge(spread)

    def _add_ridge(self, spread: Tensor) -> Tensor:
        if self.spread == "covariance":
            spread = spread + self.ridge * torch.eye(len(spread), dtype=spread.dtype, device=spread.device)
        else:
            spread = spread + self.ridge
        return spread.float()

    def _set_centroids(self, row: int, x: Tensor, seed: int) -> None:
        from sklearn.cluster import KMeans

        k = min(self.n_centroids, len(x.unique(dim=0)))
        model = KMeans(k, n_init=10, random_state=seed).fit(x.cpu().numpy())  # type: ignore[arg-type]
        nearest = torch.from_numpy(model.labels_).long().to(x.device)
        self.counts[row].zero_()
        for i in range(k):
            members = x[nearest == i]
            variance = members.var(0) if len(members) > 1 else torch.zeros_like(members[0])
            self.means[row, i], self.counts[row, i] = members.mean(0).float(), len(members)
            self.spreads[row, i] = (variance + self.ridge).float()

    def get_rows(self, names: Names) -> Tensor:
        """Return the rows (C,) of classes; UnknownClassError for one that never came."""
        return find_class_indices(self.class_ids, names, "Gaussians of classes").to(self.means.device)

    def get_means(self, names: Names) -> Tensor:
        """Return the mean features (C, D) of classes."""
        rows = self.get_rows(names)
        weights = self.counts[rows, :, None] / self.counts[rows].sum(1).clamp(min=1)[:, None, None]
        return (self.means[rows] * weights).sum(1)

    def draw(self, row: int, noise: Tensor, mean_factor: float = 1.0) -> Tensor:
        """Turn standard normal noise into features of a class; with centroids, n from each.

        Args:
            row: of the class.
            noise: (n, D), or (n K, D) of the K centroids that the class has, one after the other.
            mean_factor: by which the means are multiplied.
        """
        present = self.counts[row] > 0
        if self.spread == "covariance":
            factor = self.factorize(self.spreads[row].double())
            return (noise.double() @ factor.T + mean_factor * self.means[row].double()).float()
        means, deviations = self.means[row, present], self.spreads[row, present].sqrt()
        noise = noise.unflatten(0, (len(means), -1))
        return (mean_factor * means[:, None] + deviations[:, None] * noise).flatten(0, 1)

    def factorize(self, covariance: Tensor) -> Tensor:
        """Return the Cholesky factor (D, D); eigenvalues that float32 rounded below the ridge are raised to it."""
        factor, info = torch.linalg.cholesky_ex(covariance)
        if int(info):
            values, vectors = torch.linalg.eigh(covariance)
            values = values.clamp(min=max(self.ridge, 1e-12 * float(values[-1])))
            factor = torch.linalg.cholesky(vectors * values @ vectors.T)
        return factor

    def draw_classes(
        self, rows: Sequence[int], n: int, generator: torch.Generator, mean_factors: Sequence[float] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw n features of each class, or of each of its centroids, and shuffle them.

        Args:
            rows: of the classes.
            n: features.
            generator: of the noise and the order, on the CPU, so that every device draws the same.
            mean_factors: of each class; 1 by default.

        Returns:
            features (N, D), and the index (N,) into `rows` of each.
        """
        features, labels = list[Tensor](), list[Tensor]()
        for label, row in enumerate(rows):
            k = int((self.counts[row] > 0).sum())
            noise = torch.randn(n * k, self.means.shape[-1], generator=generator).to(self.means.device)
            features.append(self.draw(row, noise, mean_factors[label] if mean_factors else 1.0))
            labels.append(torch.full((n * k,), label))
        order = torch.randperm(sum(map(len, labels)), generator=generator)
        return torch.cat(features)[order.to(self.means.device)], torch.cat(labels)[order].to(self.means.device)


class GaussianSampler:
    """Features drawn from classes with covariances that stay as they are meanwhile: each factor is computed once.

    Args:
        gaussians: means and covariances of the classes.
        shrinkage: whether covariances are shrunk (`shrink_covariance`).
    """

    def __init__(self, gaussians: ClassGaussians, shrinkage: bool = False):
        self.gaussians, self.shrinkage, self._factors = gaussians, shrinkage, dict[int, Tensor]()

    def draw(self, rows: Tensor, noise: Tensor) -> Tensor:
        """Turn standard normal noise (k, n, D) into features (k n, D) of the classes in k rows."""
        drawn = [z @ self._get_factor(row).T for row, z in zip(rows.tolist(), noise, strict=True)]
        return (torch.stack([*drawn]) + self.gaussians.means[rows]).flatten(0, 1) if drawn else noise.flatten(0, 1)

    def _get_factor(self, row: int) -> Tensor:
        if row not in self._factors:
            covariance = self.gaussians.spreads[row].double()
            covariance = shrink_covariance(covariance) if self.shrinkage else covariance
            self._factors[row] = self.gaussians.factorize(covariance).float()
        return self._factors[row]


def shrink_covariance(covariance: Tensor) -> Tensor:
    """Add the mean variance to variances and the mean of what is not 0 among covariances to these: (D, D).

    As RAPF (arXiv:2407.14143) does.
    """
    others = covariance - covariance.diag().diag()
    mean_other = others.sum() / others.count_nonzero().clamp(min=1)
    shift = torch.full_like(covariance, float(mean_other)).fill_diagonal_(float(covariance.diagonal().mean()))
    return covariance + shift


def _warn_of_single(class_names: Sequence[str], has_common: bool) -> None:
    names = ", ".join(class_names[:5]) + " ..." * (len(class_names) > 5)
    instead = "the mean covariance of its lesson" if has_common else "no more spread than the ridge"
    warnings.warn(
        f"lesson: expected two images of a class for its covariance, got one of {names}, so it has {instead}. Take "
        "more shots.",
        stacklevel=3,
    )
