"""FeCAM: Goswami et al., NeurIPS 2023, arXiv:2309.14062.

The paper is "FeCAM: Exploiting the Heterogeneity of Class Distributions in Exemplar-Free Continual Learning". The class
to whose mean the image has the smallest Mahalanobis distance, by the correlation of the class's own features instead of
one covariance for all. Nothing is trained; later lessons add classes. Sites: none; the frozen features are computed
once. Use: streams.

Differs from the authors' code in: a covariance is shrunk by its mean variance alone, as they set it for ViTs (theirs
has a weight of the mean covariance of two channels too, 0 there), and there is no power of the features (of ResNets);
a class that comes again has the statistics of all of its images; a class of one image has the mean covariance of its
lesson, and one of equal images independent channels, both with a warning. LAMDA-PILOT's FeCAM is another method: it
tunes an adapter first, adds a constant to the covariance of features that are not normalised, and takes the
correlation of that matrix's columns; it is not followed. Distances have no scale, as there. From the paper in: the
tower stays frozen, as in their code.

Its state has 4 E^2 + 4 E + 4 bytes a class: 2.4 MB on a ViT-B/16, 236 MB for 100 classes.

Expected: no number on a ViT that was checked.
"""

import warnings

import torch
from torch import Tensor

from vlprompt.core.class_names import Names
from vlprompt.core.images import Images
from vlprompt.core.method import Method, Output
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import AnyTower, Clip
from vlprompt.layers.class_gaussians import ClassGaussians
from vlprompt.methods._alignment import compute_features
from vlprompt.methods._prototypes import require_images

SINGULAR = 1e-10  # sum of the variances of unit features: less is a rounding error


class FeCAM(Method):
    """Classify by the Mahalanobis distance to each class, by its own correlation of normalised features.

    Args:
        tower: frozen image tower or language model.
        shrinkage: what is added to the diagonal of each covariance, over its mean variance.
    """

    needs_single_labels = True

    def __init__(self, tower: AnyTower, shrinkage: float = 1.0):
        super().__init__()
        self.tower, self.shrinkage = tower, shrinkage
        self.gaussians = ClassGaussians("covariance", ridge=0.0)

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        if not self.shrinkage > 0:
            raise ValueError(
                f"method.shrinkage: expected a value above 0, as a covariance of few images has no inverse, got "
                f"{self.shrinkage}. Set method.shrinkage=1, the paper's."
            )
        train = lesson.train
        require_images(train, self.gaussians.class_ids if lesson.index else ())
        self.gaussians.begin_lesson(train.names, not lesson.index, self.tower.feature_dim, self.tower.device)
        if len(train):
            self.gaussians.add(*compute_features(self.compute_features, train), train.names)
            self._warn_of_equal(train.names)

    def compute_features(self, inputs: Images) -> Tensor:
        """Compute the features (B, E) whose statistics are taken."""
        return Clip.unit(self.tower(inputs))

    def _warn_of_equal(self, names: Names) -> None:
        rows = self.gaussians.get_rows(names)
        traces, counts = self.gaussians.spreads[rows].diagonal(dim1=1, dim2=2).sum(1), self.gaussians.counts[rows, 0]
        is_equal = ((traces <= SINGULAR) & (counts > 1)).tolist()
        if equal := [str(name) for name, equal in zip(names, is_equal, strict=True) if equal]:
            listed = ", ".join(equal[:5]) + " ..." * (len(equal) > 5)
            warnings.warn(
                f"lesson: expected different images of a class for its covariance, got equal ones of {listed}, whose "
                "channels are taken as independent. Take other images.",
                stacklevel=2,
            )

    def invert_correlation(self, covariance: Tensor) -> Tensor:
        """Shrink a covariance (E, E), make it a correlation, and invert it."""
        covariance = covariance.double()
        identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
        if float(trace := covariance.trace()) <= SINGULAR:
            return identity.float()
        shrunk = covariance + self.shrinkage * trace / len(covariance) * identity
        deviations = shrunk.diagonal().sqrt()
        return torch.cholesky_inverse(torch.linalg.cholesky(shrunk / torch.outer(deviations, deviations))).float()

    @torch.no_grad()
    def precompute(self, names: Names) -> tuple[Tensor, Tensor]:
        """Return the unit means (C, E) and inverse correlations (C, E, E) of the classes."""
        inverses = [self.invert_correlation(self.gaussians.spreads[row]) for row in self.gaussians.get_rows(names)]
        return Clip.unit(self.gaussians.get_means(names)), torch.stack(inverses)

    def forward(self, inputs: Images, prepared: tuple[Tensor, Tensor]) -> Output:
        image = self.tower(inputs)  # (B, E)
        unit = Clip.unit(image)
        distances = [((unit - mean) @ inverse * (unit - mean)).sum(1) for mean, inverse in zip(*prepared, strict=True)]
        return Output(-torch.stack(distances, 1), image_features=image)
