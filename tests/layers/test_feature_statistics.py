"""Statistics of features against loops over classes and pairs, in float64."""

import pytest
import torch

from vlprompt.layers.feature_statistics import (
    build_gaussian_classifier,
    compute_channel_similarity,
    compute_divergence,
    compute_gaussian_sums,
    estimate_precision,
    invert_shrunk,
    select_by_herding,
)

E = 6
LABELS = torch.tensor([0, 2, 0, 2, 2, 0, 4, 4, 0, 2, 0, 4])  # classes 1 and 3 have none


@pytest.fixture
def x():
    return torch.nn.functional.normalize(torch.randn(12, E, dtype=torch.float64, generator=torch.manual_seed(0)), dim=1)


def centered(x, labels):
    return torch.stack([row - x[labels == label].mean(0) for row, label in zip(x, labels, strict=True)])


def close(a, b, tolerance=1e-12):
    assert float((a - b).abs().max() / b.abs().max()) < tolerance


def test_sums_of_parts_add_up(x):
    parts = [compute_gaussian_sums(x[rows], LABELS[rows], 5) for rows in (slice(5), slice(5, 12))]
    for one, two, both in zip(*parts, compute_gaussian_sums(x, LABELS, 5), strict=True):
        close(one + two, both)


def test_the_shrunk_precision(x):
    sums = compute_gaussian_sums(x, LABELS, 5)
    c = centered(x, LABELS)
    covariance = c.T @ c / (len(x) - 1)
    theirs = E * torch.linalg.pinv((len(x) - 1) * covariance + covariance.trace() * torch.eye(E).double())
    close(estimate_precision(sums), theirs)
    close(invert_shrunk(c.T @ c, len(x)), theirs)
    assert (sums.means[[1, 3]] == 0).all()


def test_the_mean_covariance_of_the_classes(x):
    sums = compute_gaussian_sums(x, LABELS, 5)
    theirs = torch.stack([torch.cov(x[label == LABELS].T) for label in (0, 2, 4)]).mean(0).inverse()
    close(estimate_precision(sums, x, LABELS), theirs, 1e-10)
    alone = torch.cat([x, torch.eye(E, dtype=torch.float64)[:1]]), torch.cat([LABELS, torch.tensor([1])])
    close(estimate_precision(compute_gaussian_sums(*alone, 5), *alone), theirs, 1e-10)  # one image has no covariance


def test_a_singular_covariance_is_shrunk_and_said(x):
    few, labels = x[:5], LABELS[:5]
    sums = compute_gaussian_sums(few, labels, 5)
    with pytest.warns(UserWarning, match=f"expected a covariance of rank {E}, got a singular one of 5 images"):
        precision = estimate_precision(sums, few, labels)
    assert torch.equal(precision, estimate_precision(sums))


@pytest.mark.parametrize("rows", [[0, 1, 6], [0, 0, 1, 1, 1]])
def test_without_two_different_images_the_covariance_is_the_identity(x, rows):
    with pytest.warns(UserWarning, match="got equal ones, or one of each, so the covariance is the identity"):
        precision = estimate_precision(compute_gaussian_sums(x[rows].float(), LABELS[rows], 5))
    assert torch.equal(precision, torch.eye(E, dtype=torch.float64))


def test_the_classifier_is_that_of_gaussians(x):
    precision = torch.eye(E, dtype=torch.float64) + x.T @ x
    means = x[:4] / 2
    weights, biases = build_gaussian_classifier(means, precision)
    densities = torch.distributions.MultivariateNormal(means, precision_matrix=precision).log_prob(x[4:, None])
    close((x[4:] @ weights.T + biases).log_softmax(1), densities.log_softmax(1))


def test_the_similarity_of_classes_by_pairs(x):
    """Classes of different sizes count alike; of each, its text and its images do."""
    text = x.roll(1, 0)[:5]
    members = [torch.cat([text[c : c + 1], x[c == LABELS]]) for c in range(5)]
    pairs = [
        torch.stack([a * b for a in members[i] for b in members[k]]).mean(0)
        for i in range(5)
        for k in range(5)
        if i != k
    ]
    close(compute_channel_similarity(text, x, LABELS), torch.stack(pairs).mean(0))


def test_the_divergence_is_that_of_the_labels(x):
    text = 3 * x.roll(1, 0)[:5]
    one_hot, p = torch.eye(5).double()[LABELS], (x @ torch.nn.functional.normalize(text, dim=1).T).softmax(1)
    theirs = (one_hot * ((one_hot + 1e-6) / (p + 1e-6)).log2()).sum(1)
    close(compute_divergence(text, 2 * x, LABELS), theirs)


def test_herding_takes_what_brings_the_mean_nearest_each_time(x):
    chosen = select_by_herding(x, 5).tolist()
    for k in range(5):
        before = chosen[:k]
        left = [i for i in range(len(x)) if i not in before]
        gaps = {i: float((x[[*before, i]].mean(0) - x.mean(0)).norm()) for i in left}
        assert chosen[k] == min(left, key=gaps.get)
    assert (x[chosen].mean(0) - x.mean(0)).norm() < (x[:5].mean(0) - x.mean(0)).norm()


def test_herding_of_few_or_equal_features_takes_each_once(x):
    assert sorted(select_by_herding(x[:3], 20).tolist()) == [0, 1, 2]
    assert select_by_herding(x[:1].expand(4, -1), 3).tolist() == [0, 1, 2]
    assert select_by_herding(x, 0).shape == (0,)
