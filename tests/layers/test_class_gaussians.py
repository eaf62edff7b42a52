"""Gaussians of classes: their numbers, what is drawn, classes that come again or have one image, their bytes."""

import pytest
import torch

from vlprompt.core.class_names import ClassName
from vlprompt.layers.class_gaussians import ClassGaussians, GaussianSampler, shrink_covariance
from vlprompt.runtime.errors import UnknownClassError

D = 4
NAMES = tuple(ClassName(name, name) for name in "abc")


def draw_features(n=60, seed=1):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    mixing = torch.randn(3, D, D, generator=generator)
    x = torch.randn(n, D, generator=generator)
    return torch.einsum("nd,nde->ne", x, mixing[labels]) + labels[:, None], labels


def build(spread="covariance", names=NAMES, **options):
    gaussians = ClassGaussians(spread, **options)
    gaussians.begin_lesson(names, True, D, torch.device("cpu"))
    return gaussians


def test_means_and_covariances_are_those_of_each_class():
    x, labels = draw_features()
    gaussians = build(ridge=1e-3)
    gaussians.add(x, labels, NAMES)
    for row in range(3):
        members = x[labels == row].double()
        torch.testing.assert_close(gaussians.means[row, 0].double(), members.mean(0), rtol=0, atol=1e-6)
        expected = torch.cov(members.T) + 1e-3 * torch.eye(D)
        torch.testing.assert_close(gaussians.spreads[row].double(), expected.double(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gaussians.get_means(NAMES[::-1]), gaussians.means[:, 0].flip(0))


@pytest.mark.parametrize("spread", ["covariance", "variance"])
def test_a_class_that_comes_again_has_the_statistics_of_all_its_images(spread):
    x, labels = draw_features()
    once, twice = build(spread), build(spread)
    once.add(x, labels, NAMES)
    twice.add(x[:24], labels[:24], NAMES)
    twice.begin_lesson(NAMES[::-1], False, D, torch.device("cpu"))
    twice.add(x[24:], 2 - labels[24:], NAMES[::-1])
    assert twice.class_ids == once.class_ids
    for name in ("means", "spreads", "counts"):
        torch.testing.assert_close(getattr(twice, name), getattr(once, name), rtol=1e-5, atol=1e-5)


def test_what_is_drawn_has_the_mean_and_covariance_of_its_class():
    x, labels = draw_features()
    gaussians = build()
    gaussians.add(x, labels, NAMES)
    noise = torch.randn(200_000, D, generator=torch.Generator().manual_seed(3))
    drawn = gaussians.draw(1, noise)
    torch.testing.assert_close(drawn.mean(0), gaussians.means[1, 0], rtol=0, atol=0.05)
    torch.testing.assert_close(torch.cov(drawn.T), gaussians.spreads[1], rtol=0.05, atol=0.05)
    factor = torch.linalg.cholesky(gaussians.spreads[1])
    torch.testing.assert_close(gaussians.draw(1, noise[:5], 0.5), noise[:5] @ factor.T + 0.5 * gaussians.means[1])
    features, targets = gaussians.draw_classes([2, 0], 7, torch.Generator().manual_seed(5))
    assert features.shape == (14, D)
    assert targets.bincount().tolist() == [7, 7]
    again, _ = gaussians.draw_classes([2, 0], 7, torch.Generator().manual_seed(5))
    assert torch.equal(features, again)
    centred, order = gaussians.draw_classes([2, 0], 7, torch.Generator().manual_seed(5), [0.0, 1.0])
    shift = (features - centred)[order == 0]
    torch.testing.assert_close(shift, gaussians.means[2].expand_as(shift), rtol=1e-4, atol=1e-4)


def test_centroids_are_those_of_k_means_with_their_variances():
    centres = torch.tensor([[0.0] * D, [10.0] * D])
    x = torch.cat([centres[0] + torch.randn(30, D), centres[1] + 0.1 * torch.randn(10, D)])
    gaussians = build("centroids", NAMES[:2], n_centroids=2)
    gaussians.add(x, torch.zeros(40, dtype=torch.long), NAMES[:2])
    order = gaussians.means[0, :, 0].argsort()
    for i, members in zip(order, (x[:30], x[30:]), strict=True):
        torch.testing.assert_close(gaussians.means[0, i], members.mean(0))
        torch.testing.assert_close(gaussians.spreads[0, i], members.var(0) + 1e-4)
    torch.testing.assert_close(gaussians.get_means(NAMES[:1])[0], x.mean(0))
    features, labels = gaussians.draw_classes([0], 50, torch.Generator().manual_seed(1))
    assert features.shape == (100, D)  # as many of each centroid
    assert int((features[:, 0] > 5).sum()) == 50
    assert labels.sum() == 0


def test_a_class_of_one_image_has_the_mean_covariance_of_its_lesson_and_it_is_told():
    x, labels = draw_features()
    first = int((labels == 0).nonzero()[0])
    rows = (labels != 0) | (torch.arange(len(labels)) == first)
    gaussians = build()
    with pytest.warns(UserWarning, match="got one of a, so it has the mean covariance of its lesson"):
        gaussians.add(x[rows], labels[rows], NAMES)
    torch.testing.assert_close(gaussians.spreads[0], gaussians.spreads[1:].mean(0), rtol=1e-4, atol=1e-4)
    alone = build(names=NAMES[:1])
    with pytest.warns(UserWarning, match="no more spread than the ridge"):
        alone.add(x[:1], labels[:1], NAMES[:1])
    torch.testing.assert_close(alone.spreads[0], 1e-4 * torch.eye(D))
    many_centroids = build("centroids", NAMES[:1], n_centroids=3)
    many_centroids.add(x[:1], labels[:1], NAMES[:1])
    assert many_centroids.draw_classes([0], 2, torch.Generator().manual_seed(1))[0].shape == (2, D)


def test_the_bytes_are_those_that_are_said():
    sizes = {spread: sum(b.nbytes for b in build(spread).buffers()) / 3 for spread in ("covariance", "variance")}
    assert sizes["covariance"] == 4 * D * D + 4 * D + 4
    assert sizes["variance"] == 4 * D + 4 * D + 4
    assert sum(b.nbytes for b in build("centroids", n_centroids=5).buffers()) / 3 == 5 * (8 * D + 4)


def test_a_state_is_read_back_and_an_unknown_class_refused():
    x, labels = draw_features()
    gaussians, other = build(), build()
    gaussians.add(x, labels, NAMES)
    other.load_state_dict(gaussians.state_dict())
    assert torch.equal(other.draw(2, torch.ones(1, D)), gaussians.draw(2, torch.ones(1, D)))
    with pytest.raises(UnknownClassError, match="Gaussians of classes"):
        gaussians.get_means((ClassName("d", "d"),))


def test_a_covariance_of_few_long_features_is_drawn_from():
    """Their rounding to float32 is larger than the ridge, so that the stored covariance has negative eigenvalues."""
    gaussians = ClassGaussians()
    gaussians.begin_lesson(NAMES[:1], True, 64, torch.device("cpu"))
    x = 1000 * torch.randn(4, 64, generator=torch.Generator().manual_seed(4))
    gaussians.add(x, torch.zeros(4, dtype=torch.long), NAMES[:1])
    assert float(torch.linalg.eigvalsh(gaussians.spreads[0].double())[0]) < 0
    drawn = gaussians.draw(0, torch.randn(50_000, 64, generator=torch.Generator().manual_seed(5)))
    expected = torch.cov(x.T)
    assert float((torch.cov(drawn.T) - expected).abs().max() / expected.abs().max()) < 0.05


def test_a_sampler_draws_as_the_gaussians_do_and_shrinks_on_request():
    x, labels = draw_features()
    gaussians = build()
    gaussians.add(x, labels, NAMES)
    noise = torch.randn(3, 5, D, generator=torch.Generator().manual_seed(5))
    drawn = GaussianSampler(gaussians).draw(torch.tensor([2, 0, 2]), noise)
    torch.testing.assert_close(
        drawn, torch.cat([gaussians.draw(row, z) for row, z in zip((2, 0, 2), noise, strict=True)])
    )
    shrunk = GaussianSampler(gaussians, shrinkage=True).draw(torch.tensor([1]), noise[:1])
    factor = torch.linalg.cholesky(shrink_covariance(gaussians.spreads[1].double())).float()
    torch.testing.assert_close(shrunk, noise[0] @ factor.T + gaussians.means[1])
    assert GaussianSampler(gaussians).draw(torch.tensor([], dtype=torch.long), noise[:0]).shape == (0, D)


def test_a_shrunk_covariance_has_the_mean_variance_and_the_mean_of_the_others_more():
    covariance = torch.tensor([[2.0, 1.0, 0.0], [1.0, 4.0, 3.0], [0.0, 3.0, 6.0]])
    expected = covariance + torch.tensor([[4.0, 2.0, 2.0], [2.0, 4.0, 2.0], [2.0, 2.0, 4.0]])  # 2: of those not 0
    torch.testing.assert_close(shrink_covariance(covariance), expected)
