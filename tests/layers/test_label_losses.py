"""Losses of labels: generalised cross-entropy against its formula, and a training that uses it."""

import pytest
import torch
import torch.nn.functional as F
from shared import images

from vlprompt import methods as m
from vlprompt.core.batch import Batch, Split
from vlprompt.core.images import ImageItem
from vlprompt.core.stage import Lesson
from vlprompt.engine.loop import fit
from vlprompt.engine.train_config import TrainConfig
from vlprompt.layers.label_losses.one_label import generalised_cross_entropy
from vlprompt.layers.label_losses.watched import WatchedLoss
from vlprompt.layers.optimal_transport import assign_evenly


def random_rows(n=40, c=7):
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(n, c, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(c, (n,), generator=generator)


@pytest.mark.parametrize("q", [0.05, 0.7, 1.0])
def test_gce_is_its_formula(q):
    logits, labels = random_rows()
    p = logits.softmax(1)[torch.arange(len(labels)), labels]
    rows = (1 - p**q) / q
    mine = generalised_cross_entropy(logits, labels, q=q)
    assert float((mine - rows.mean()).detach().abs()) < 1e-12
    assert torch.equal(generalised_cross_entropy(logits, labels, "none", q).mean(), mine)
    [expected], [found] = torch.autograd.grad(rows.mean(), logits, retain_graph=True), torch.autograd.grad(mine, logits)
    assert float((expected - found).abs().max()) < 1e-11


def test_gce_is_between_cross_entropy_and_the_mean_absolute_error():
    logits, labels = random_rows()
    absolute = (logits.softmax(1) - F.one_hot(labels, 7)).abs().sum(1).mean() / 2
    assert float((generalised_cross_entropy(logits, labels, q=1.0) - absolute).detach().abs()) < 1e-12
    near = generalised_cross_entropy(logits, labels, q=1e-6)
    assert abs(float(near - F.cross_entropy(logits, labels))) < 1e-4


def test_improbable_labels_are_finite():
    logits = torch.tensor([[0.0, 500.0]], requires_grad=True)
    loss = generalised_cross_entropy(logits, torch.tensor([0]))
    loss.backward()
    assert float(loss) == pytest.approx(1 / 0.7)
    assert logits.grad.isfinite().all()


# --- the loss of a training ---


def lesson():
    pixels = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    items = tuple(ImageItem(f"gce/{i}", lambda look, a, i=i: pixels[i], f"gce/{i}") for i in range(6))
    return Lesson(Split(items, (0, 1, 1, 0, 1, 0), ("cat", "dog")))


def train(method, **settings):
    method.begin_lesson(lesson(), torch.Generator().manual_seed(0))
    config = TrainConfig(epochs=1, batch_size=6, warmup=0, **settings)
    [step] = fit(method, lesson(), config)
    return step.terms, method


def test_a_training_learns_by_its_loss(tiny):
    plain, _ = train(m.CoOp(tiny, 4))
    terms, method = train(m.CoOp(tiny, 4), loss="gce", loss_q=0.3)
    fresh = m.CoOp(tiny, 4)
    fresh.begin_lesson(lesson(), torch.Generator().manual_seed(0))
    batch = next(lesson().train.batches(6))
    logits = fresh(batch.inputs, fresh.prepare(batch.names, fresh.precompute(batch.names))).logits
    assert plain["ce"] == pytest.approx(float(F.cross_entropy(logits, batch.labels)), rel=1e-5)
    assert terms["ce"] == pytest.approx(float(generalised_cross_entropy(logits, batch.labels, q=0.3)), rel=1e-5)
    assert not torch.equal(fresh.ctx, method.ctx)


@pytest.mark.parametrize(
    "build",
    [
        lambda clip: m.KgCoOp(m.CoOp(clip, 4)),
        lambda clip: m.MMRL(clip, dim=16, layers=2),
        lambda clip: m.DePT(m.CoOp(clip, 4)),
        lambda clip: m.CrossModal(clip),
    ],
)
def test_methods_with_losses_of_their_own_learn_by_it(tiny, build):
    terms, other = train(build(tiny))[0], train(build(tiny), loss="gce", loss_q=1.0)[0]
    labels = {"ce", "ce_tokens", "linear"} & terms.keys()
    assert all(other[name] < terms[name] for name in labels)
    assert all(other[name] == pytest.approx(terms[name]) for name in terms.keys() - labels)


class Blind(m.CoOp):
    def loss_terms(self, batch, fixed):
        out = self(batch.inputs, self.prepare(batch.names, fixed))
        return {"near": (out.logits.square().mean(), len(batch.labels))}, out


def test_a_method_that_does_not_learn_from_labels_is_refused(tiny):
    with pytest.raises(ValueError, match=r"^train\.loss=gce: expected a method that learns from labels .* got Blind"):
        train(Blind(tiny, 4), loss="gce")
    train(Blind(tiny, 4))


def test_a_watched_loss_is_the_loss_itself():
    logits, labels = random_rows()
    watched = WatchedLoss(generalised_cross_entropy)
    with pytest.raises(ValueError, match=r"^method: expected a method that learns from labels .* got CoOp, which does"):
        watched.require_use("method", "CoOp")
    for reduction in ("mean", "none"):
        expected = generalised_cross_entropy(logits, labels, reduction)
        assert torch.equal(watched(logits, labels, reduction), expected)
    watched.require_use("method", "CoOp")


@pytest.mark.parametrize("q", [0.0, 1.5])
def test_q_out_of_its_range(q):
    with pytest.raises(ValueError, match=r"^train\.loss_q: expected .*, got "):
        TrainConfig(loss="gce", loss_q=q)


def test_micro_batches_add_up(tiny):
    method = m.CoOp(tiny, 4)
    method.begin_lesson(lesson(), torch.Generator().manual_seed(0))
    batch = Batch(images(torch.rand(4, 3, 32, 32)), torch.tensor([0, 1, 1, 0]), ("cat", "dog"), label_loss=max)
    assert all(part.label_loss is max for part in batch.micro_batches(3))


# --- even assignment ---


def test_an_even_assignment_is_the_optimum():
    """Rows add up to 1, columns to N / C, and it is exp(similarity / epsilon) up to a factor per row and column."""
    similarity = torch.randn(12, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plan = assign_evenly(similarity, 0.3)
    assert torch.allclose(plan.sum(1), torch.ones(12, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(plan.sum(0), torch.full((5,), 12 / 5, dtype=torch.float64), atol=1e-7)
    rest = plan.log() - similarity / 0.3
    rest = rest - rest[:1] - rest[:, :1] + rest[:1, :1]
    assert float(rest.abs().max()) < 1e-9


def test_a_small_epsilon_does_not_underflow():
    """Each class receives its two images, where exp(-cost / 0.001) is zero for all."""
    similarity = torch.eye(3, dtype=torch.float64).repeat(2, 1) - 5
    assert torch.allclose(assign_evenly(similarity, 0.001), similarity + 5, atol=1e-9)
