"""The gradient of a loss of several terms: one backward pass where they add up, one of each where they do not."""

import pytest
import torch
import torch.nn.functional as F

from vlprompt.backbones.glyph import build_tiny_clip
from vlprompt.core.batch import Batch, Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.images import ImageItem, build_images
from vlprompt.core.method import Method, Output
from vlprompt.core.stage import Lesson
from vlprompt.engine.loop import Loop, adds_up_terms, join_terms
from vlprompt.engine.train_config import TrainConfig
from vlprompt.methods import CoOp, KgCoOp, ProGrad
from vlprompt.runtime.seeding import make_generator

NAMES = tuple(map(ClassName, ("zero", "one", "two")))


class ThreeTerms(Method):
    """Terms over different numbers of rows, one of them over none, and one without a gradient."""

    def __init__(self, tower):
        super().__init__()
        self.tower = tower
        self.weight = torch.nn.Parameter(torch.randn(3, 8, generator=make_generator("w"), dtype=torch.float64))
        self.other = torch.nn.Parameter(torch.randn(8, generator=make_generator("o"), dtype=torch.float64))

    def loss_terms(self, batch, fixed):
        x = torch.randn(
            len(batch.labels), 8, generator=make_generator("x", *batch.labels.tolist()), dtype=torch.float64
        )
        logits = (x * self.other) @ self.weight.T
        terms = {
            "ce": (F.cross_entropy(logits, batch.labels), len(x)),
            "pairs": (logits.square().mean(), 7 * len(x)),
            "fixed": (x.mean(), len(x)),
            "empty": (self.weight.sum() * 1e3, 0),
        }
        return terms, Output(logits)


@pytest.fixture(scope="module")
def clip():
    return build_tiny_clip()


def batch_of(n=5):
    pixels = torch.rand(n, 3, 32, 32, generator=make_generator("pixels"))
    items = [ImageItem(str(i), lambda look, view, i=i: pixels[i]) for i in range(n)]
    return Batch(build_images(items, [None] * n), torch.arange(n) % 3, NAMES)


def compute(method, micro_batch_size=None):
    """Its terms and gradients, and how often it was differentiated."""
    calls = []

    def differentiate(*arguments, **options):
        calls.append(options["retain_graph"])
        return torch.autograd.grad(*arguments, **options)

    lesson = Lesson(Split((), (), NAMES))
    method.train()
    config = TrainConfig(micro_batch_size=micro_batch_size)
    return *Loop(method, lesson, config, 1, differentiate).compute_gradients(batch_of()), calls


def test_terms_that_add_up_take_one_pass(clip):
    method = ThreeTerms(clip.image)
    terms, gradients, calls = compute(method)
    written = method.loss_terms(batch_of(), None)[0]
    assert terms == {name: pytest.approx(float(mean.detach()) if n else 0.0) for name, (mean, n) in written.items()}
    assert calls == [False]
    expected = torch.autograd.grad(written["ce"][0] + written["pairs"][0], [method.weight, method.other])
    for g, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(g, other, rtol=1e-11, atol=1e-11)


def test_parts_of_a_batch_are_divided_by_the_rows_of_each_term(clip):
    parts, whole = [], batch_of()
    method = ThreeTerms(clip.image)
    terms, gradients, calls = compute(method, micro_batch_size=2)
    for part in whole.micro_batches(2):
        parts.append(method.loss_terms(part, None)[0])
    assert calls == [True, True, False] * 3
    sums = {name: sum(part[name][0] * part[name][1] for part in parts) for name in ("ce", "pairs")}
    loss = sums["ce"] / 5 + sums["pairs"] / 35
    for g, other in zip(gradients, torch.autograd.grad(loss, [method.weight, method.other]), strict=True):
        torch.testing.assert_close(g, other, rtol=1e-11, atol=1e-11)
    assert terms["pairs"] == pytest.approx(float(sums["pairs"]) / 35)


def test_a_method_that_compares_gradients_has_one_of_each_term(clip):
    coop = lambda: CoOp(clip, n_ctx=2)  # noqa: E731
    kgcoop, prograd = KgCoOp(coop()), ProGrad(coop())
    assert adds_up_terms(coop())
    assert adds_up_terms(kgcoop)
    assert not adds_up_terms(prograd)
    assert not adds_up_terms(KgCoOp(prograd))
    for method, n in ((kgcoop, 1), (prograd, 2)):
        method.begin_lesson(Lesson(Split((), (), NAMES)), make_generator(0))
        assert len(compute(method)[2]) == n


def test_a_single_term_stays_as_it_is():
    mean = torch.ones((), requires_grad=True)
    assert join_terms({"ce": (mean, 4), "none": (mean, 0)}) == {"ce": (mean, 4), "none": (mean, 0)}
