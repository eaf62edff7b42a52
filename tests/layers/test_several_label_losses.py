"""Losses of several labels against their definitions, in float64, and which loss a training has."""

import math

import pytest
import torch
from shared import golden
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vlprompt.core.batch import Split
from vlprompt.core.images import ImageItem
from vlprompt.engine.train_config import TrainConfig
from vlprompt.layers.label_losses.several_labels import SeveralLabelLoss, compute_ranking_loss, read_odds

LABELS = torch.tensor([[1, 0, -1], [0, -1, -1], [1, 1, 0], [-1, -1, -1]])
LOGITS = torch.tensor([[0.3, -1.2, 2.0], [4.0, 0.1, -0.7], [-2.5, 0.9, 0.0], [1.0, 2.0, 3.0]], dtype=torch.double)


def find_odds(z, k, reading):
    return z[k] - math.log(sum(math.exp(v) for j, v in enumerate(z) if j != k)) if reading == "contrastive" else z[k]


def write_entries(loss):
    """The loss of each known entry, written out one by one in Python's own floats, by item."""
    rows = []
    for z, y in zip(LOGITS.tolist(), LABELS.tolist(), strict=True):
        row = []
        for k, label in enumerate(y):
            p = 1 / (1 + math.exp(-find_odds(z, k, loss.reading)))
            label = 0 if label == -1 and loss.unknown == "negative" else label
            if label == -1:
                continue
            if loss.kind != "asl":
                row.append(-math.log(p if label else 1 - p))
            elif label:
                row.append(-((1 - p) ** loss.gammas[0]) * math.log(max(p, loss.epsilon)))
            else:
                q = min(1 - p + loss.margin, 1)
                row.append(-((1 - q) ** loss.gammas[1]) * math.log(max(q, loss.epsilon)))
        rows.append(row)
    return rows


@pytest.mark.parametrize("unknown", ["ignore", "negative"])
@pytest.mark.parametrize("reading", ["sigmoid", "contrastive"])
@pytest.mark.parametrize("kind", ["bce", "partial_bce", "asl"])
def test_losses_are_their_definitions(kind, unknown, reading):
    loss = SeveralLabelLoss(kind, unknown, (1.5, 2.5), 0.1, reading)
    rows = write_entries(loss)
    divisors = {"bce": [3] * 4, "partial_bce": [max(len(row), 1) for row in rows], "asl": [1] * 4}[kind]
    expected = [sum(row) / n for row, n in zip(rows, divisors, strict=True)]
    assert loss(LOGITS, LABELS, reduction="none").tolist() == pytest.approx(expected, rel=1e-12)
    assert loss(LOGITS, LABELS).item() == pytest.approx(sum(expected) / 4, rel=1e-12)


def test_the_contrastive_reading_is_the_softmax():
    p = read_odds(LOGITS, "contrastive").sigmoid()
    assert torch.allclose(p, LOGITS.softmax(1), atol=1e-12)
    assert read_odds(LOGITS, "sigmoid") is LOGITS


def read_by_copies(logits):
    """The contrastive reading by its definition: for each class a copy of the row without it."""
    n = logits.shape[1]
    others = logits[:, None].expand(-1, n, -1).masked_fill(torch.eye(n, dtype=torch.bool), -torch.inf)
    return logits - others.logsumexp(2)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float, 1e-6), (torch.double, 1e-12)])
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 300.0])
@pytest.mark.parametrize("n_classes", [2, 3, 80])
def test_the_contrastive_reading_is_its_definition(n_classes, scale, dtype, tolerance):
    generator = torch.Generator().manual_seed(n_classes)
    logits = scale * torch.randn(40, n_classes, generator=generator, dtype=torch.double)
    logits[0, :2] = 2 * scale  # two largest ones
    logits = logits.to(dtype)
    weights = torch.randn(40, n_classes, generator=generator, dtype=torch.double).to(dtype)
    leaf, precise = (x.clone().requires_grad_() for x in (logits, logits.double()))
    odds, expected = read_odds(leaf, "contrastive"), read_by_copies(precise)
    [mine] = torch.autograd.grad((odds * weights).sum(), leaf)
    [gradient] = torch.autograd.grad((expected * weights).sum(), precise)
    for found, target in ((odds.detach(), expected.detach()), (mine, gradient)):
        assert found.dtype == dtype
        assert float((found - target).abs().max()) <= tolerance * max(1, float(target.abs().max()))


class LargestResult(TorchDispatchMode):
    """Counts the values of the largest tensor that an operation returns."""

    n_values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.n_values = max(self.n_values, *(x.numel() for x in tree_leaves(result) if isinstance(x, torch.Tensor)), 0)
        return result


def test_the_contrastive_reading_makes_no_copy_for_each_class():
    with LargestResult() as largest:
        read_odds(torch.randn(50, 20, requires_grad=True), "contrastive").sum().backward()
    assert largest.n_values == 50 * 20


def test_the_weights_of_focusing_have_no_gradient():
    logits = LOGITS.clone().requires_grad_()
    SeveralLabelLoss("asl", margin=0.0)(logits, LABELS).backward()
    p = LOGITS.sigmoid()
    of_present, of_absent = -(1 - p) * (1 - p), p**2 * p  # focus times the gradient of the logarithm
    expected = torch.where(LABELS == 1, of_present, of_absent) * (LABELS >= 0) / 4
    assert float((logits.grad - expected).abs().max()) < 1e-11


def test_a_label_that_is_ruled_out_has_a_finite_loss():
    """The asymmetric loss ends at the logarithm of its least probability, and teaches nothing there."""
    logits = torch.tensor([[-40.0, -40.0]], dtype=torch.double, requires_grad=True)
    loss = SeveralLabelLoss("asl")(logits, torch.tensor([[1, 0]]))
    assert loss.item() == pytest.approx(-math.log(1e-6))
    loss.backward()
    assert not logits.grad.any()


def test_the_focus_and_the_margin_are_those_of_the_golden_values():
    h = golden("dualcoop-rn-csc")[0]["hyperparameters"]
    loss = SeveralLabelLoss()
    assert (loss.gammas, loss.margin) == ((h["gamma_pos"], h["gamma_neg"]), h["clip"])


@pytest.mark.parametrize("kind", ["bce", "partial_bce", "asl"])
def test_an_item_of_which_nothing_is_known_changes_nothing(kind):
    logits = LOGITS.clone().requires_grad_()
    rows = SeveralLabelLoss(kind)(logits, LABELS, reduction="none")
    rows[3].backward()
    assert rows[3].item() == 0
    assert not logits.grad.any()


# --- which loss a training has ---


def split_of(*labels, reading="sigmoid"):
    items = tuple(ImageItem(f"{i}", lambda look, view: torch.zeros(3, 2, 2), f"{i}") for i in range(len(labels)))
    return Split(items, labels, ("cat", "dog", "bird"), reading=reading)


def test_each_kind_of_labels_has_its_loss():
    several, single = split_of((1, 0, 0), (1, 1, -1), reading="contrastive"), split_of(0, 2)
    logits = LOGITS[:2]
    bce = SeveralLabelLoss(reading="contrastive")(logits, torch.tensor(several.labels))
    assert torch.equal(TrainConfig().build_label_loss(several)(logits, torch.tensor(several.labels)), bce)
    asl = TrainConfig(loss="asl", loss_gammas=(0, 3), loss_margin=0.2, loss_unknown="negative", loss_weight=2)
    expected = 2 * SeveralLabelLoss("asl", "negative", (0, 3), 0.2, "contrastive")(logits, torch.tensor(several.labels))
    assert torch.equal(asl.build_label_loss(several)(logits, torch.tensor(several.labels)), expected)
    ce = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 2]), reduction="none")
    weighted = TrainConfig(loss_weight=3).build_label_loss(single)(logits, torch.tensor([0, 2]), reduction="none")
    assert torch.equal(weighted, 3 * ce)


@pytest.mark.parametrize(
    ("loss", "labels", "message"),
    [
        ("gce", ((1, 0, 0),), r"^train\.loss: expected bce, partial_bce or asl for items with several labels, got gce"),
        ("ce", ((1, 0, 0),), r"^train\.loss: expected bce, partial_bce or asl for items with several labels, got ce"),
        ("asl", (1, 2), r"^train\.loss: expected ce or gce for items with one label each, got asl\. Set one of these"),
    ],
)
def test_a_loss_that_does_not_suit_the_labels(loss, labels, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(loss=loss).build_label_loss(split_of(*labels))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_margin": -0.1}, r"train\.loss_margin: expected at least 0, got -0\.1"),
        ({"loss_gammas": (1, -2)}, r"train\.loss_gammas: expected two numbers of at least 0, got \[1, -2\]"),
        ({"loss_weight": 0}, r"train\.loss_weight: expected a value above 0, got 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(loss="asl", **settings)


@pytest.mark.parametrize(
    ("labels", "settings", "told"),
    [
        (1, {"loss_q": 0.5}, "train.loss_q: expected train.loss=gce, which reads it, got 0.5 with ce. Leave it out."),
        (
            1,
            {"loss_unknown": "negative"},
            "train.loss_unknown: expected train.loss=bce, partial_bce or asl, which reads it, got neg",
        ),
        ((1, 0), {"loss_margin": 0.1}, "train.loss_margin: expected train.loss=asl, which reads it, got 0.1 with bce."),
        ((1, 0), {"loss_gammas": [0, 1]}, r"train.loss_gammas: expected train.loss=asl, which reads it, got \(0, 1\)"),
    ],
)
def test_a_setting_that_the_loss_does_not_read_is_refused(labels, settings, told):
    split = Split((ImageItem("a", lambda look, view: torch.zeros(3, *look.size)),), (labels,), ("cat", "dog"))
    with pytest.raises(ValueError, match=told):
        TrainConfig(**settings).build_label_loss(split)
    assert TrainConfig(loss_weight=2.0).loss_settings.changed == ["train.loss_weight=2.0"]
    assert TrainConfig(loss="ce").loss_settings.changed == TrainConfig().loss_settings.changed == []


def test_the_ranking_loss_is_its_sum_over_pairs():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(5, 6, generator=generator, dtype=torch.double).requires_grad_()
    labels = torch.randint(-1, 2, (5, 6), generator=generator)
    pairs = [
        max(0.0 * scores[0, 0], 1 - scores[n, i] + scores[n, j])
        for n in range(5)
        for i in range(6)
        for j in range(6)
        if labels[n, i] == 1 and labels[n, j] == 0
    ]
    expected = torch.stack(pairs).sum() / 5
    mine = compute_ranking_loss(scores, labels)
    assert float((mine - expected).detach().abs()) < 1e-12
    [found], [twin] = (torch.autograd.grad(x, scores, retain_graph=True) for x in (mine, expected))
    assert float((found - twin).abs().max()) < 1e-11
