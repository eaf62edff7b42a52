"""Recorded passes: which are recorded, and that a replay never writes over what a gradient still needs."""

import gc

import pytest
import torch
from replays import MADE, Twin

from vlprompt.backbones.glyph import build_tiny_clip
from vlprompt.core.prompt import Prompt
from vlprompt.engine.loop import fit
from vlprompt.engine.train_config import TrainConfig
from vlprompt.layers.blocks.cuda_graphs import MAX_RECORDED_PASSES, CudaGraphCache
from vlprompt.runtime.memory import TensorMemoryTracker
from vlprompt.runtime.seeding import make_generator
from vlprompt.tasks import FewShot


@pytest.fixture
def graphs():
    Twin.made = 0
    return CudaGraphCache(Twin)


def make(prompt):
    k, v = prompt.prefix[1]
    return ((prompt.tokens[0] ** 3).sum() * (k * v).sum() ** 2,)


def tensors(size=3):
    a, k, v = (torch.randn(2, size, dtype=torch.double) for _ in range(3))
    return a.requires_grad_(), k, v.requires_grad_()


def passed(graphs, given, kind="kind"):
    a, k, v = given
    return graphs(make, kind, Prompt({0: a}, {1: (k, v)}))[0]


def plain(given):
    a, k, v = given
    return make(Prompt({0: a}, {1: (k, v)}))[0]


def test_a_pass_that_comes_again_is_recorded_once(graphs):
    for i in range(4):
        given = tensors()
        found = torch.autograd.grad(passed(graphs, given), (given[0], given[2]))
        assert Twin.made == min(i, 1)
        for a, b in zip(found, torch.autograd.grad(plain(given), (given[0], given[2])), strict=True):
            assert torch.equal(a, b)


def test_what_tokens_carry_belongs_to_the_kind_of_pass(graphs):
    """Numbers tell passes apart, tensors are inputs, and so is whether tokens are embedded."""

    def mix(prompt):
        parts = ((prompt.carry[1] * t).sum() * (1 + prompt.is_embedded) for t in prompt.tokens.values())
        return (sum(parts) ** 2,)

    for value in (0.5, 0.25, torch.tensor(0.5), torch.tensor(0.75)):
        for is_embedded in (True, False):
            for _ in range(2):
                a, b = (torch.randn(2, 3, dtype=torch.double, requires_grad=True) for _ in range(2))
                prompt = Prompt({0: a, 1: b}, carry={1: value}, is_embedded=is_embedded)
                found = torch.autograd.grad(graphs(mix, "mix", prompt), (a, b))
                for mine, want in zip(found, torch.autograd.grad(mix(prompt), (a, b)), strict=True):
                    torch.testing.assert_close(mine, want)
    assert Twin.made == 6  # four numbers, two tensors of one shape


def test_two_passes_before_their_gradients(graphs):
    """And micro-batches, whose gradients add up where the one before lies."""
    for _ in range(3):
        one, two, learned = tensors(), tensors(), torch.zeros(2, 3, dtype=torch.double, requires_grad=True)
        given = [(learned + a, k, v) for a, k, v in (one, two)]
        outs = [passed(graphs, g) for g in given]
        grad = torch.autograd.grad(outs[0] + 2 * outs[1], learned)[0]
        assert torch.allclose(grad, torch.autograd.grad(plain(given[0]) + 2 * plain(given[1]), learned)[0])
        learned.grad = None
        for k, v in (one[1:], two[1:]):
            passed(graphs, (learned + 1, k, v)).backward()
        want = torch.autograd.grad(sum(plain((learned + 1, *g[1:])) for g in (one, two)), learned)[0]
        assert torch.allclose(learned.grad, want)
    assert Twin.made == 1


def test_a_pass_whose_gradient_nobody_takes_does_not_hold_it(graphs):
    given = tensors()
    passed(graphs, given)
    out = passed(graphs, given)
    assert "Replay" in type(out.grad_fn).__name__
    assert "Replay" not in type(passed(graphs, given).grad_fn).__name__
    del out
    gc.collect()
    assert "Replay" in type(passed(graphs, given).grad_fn).__name__


def test_the_gradient_of_two_losses(graphs):
    """ProGrad takes both of one pass."""
    given = tensors()
    for _ in range(3):
        out = passed(graphs, given)
        first = torch.autograd.grad(out, given[0], retain_graph=True)[0]
        torch.testing.assert_close(torch.autograd.grad(3 * out, given[0])[0], 3 * first)


def test_a_gradient_that_is_gone_is_an_error(graphs):
    given = tensors()
    passed(graphs, given)
    out = passed(graphs, given)
    torch.autograd.grad(out, given[0], retain_graph=True)
    passed(graphs, given)
    with pytest.raises(RuntimeError, match=r"Take all gradients of a step before the next.*train\.cuda_graphs=false"):
        torch.autograd.grad(out, given[0])


def test_what_is_not_recorded(graphs):
    given = tensors()
    for _ in range(3):
        with torch.no_grad():
            passed(graphs, given)
        passed(graphs, [t.detach() for t in given])
        with TensorMemoryTracker():  # who counts what is made sees all of it
            passed(graphs, given)
        graphs(lambda p: (p.tokens[0].sum(),), "parts", Prompt({0: given[0]}, {}, {"0/q": lambda given, made: made}))
    for size in range(1, 70):  # each its own shape, none comes again
        passed(graphs, tensors(size))
    assert Twin.made == 0
    assert len(graphs.slots_by_kind) <= 64


def test_few_are_kept(graphs):
    for _ in range(3):
        for kind in range(MAX_RECORDED_PASSES + 2):
            given = tensors()
            out = passed(graphs, given, kind)
            assert torch.equal(torch.autograd.grad(out, given[0])[0], torch.autograd.grad(plain(given), given[0])[0])
    assert sum(kept is not None for kept in graphs.slots_by_kind.values()) == MAX_RECORDED_PASSES


@pytest.mark.parametrize("name", ["coop", "cocoop", "maple", "kgcoop"])
def test_recorded_texts_train_the_same(name, monkeypatch):
    """Through the tower: bit for bit, over steps of two sizes and terms with gradients of their own."""
    lesson, found = FewShot("digits", shots=2).lesson, []
    for graphs in (None, CudaGraphCache(Twin)):
        clip = build_tiny_clip("cpu")
        monkeypatch.setattr(clip.text, "cuda_graphs", graphs)
        method = MADE[name](clip)
        method.begin_lesson(lesson, make_generator(0))
        steps = fit(method, lesson, TrainConfig(epochs=3, batch_size=8, micro_batch_size=3, lr=0.01, warmup=0))
        found.append([s.loss for s in steps])
    assert found[0] == found[1]
    assert Twin.made
    made = Twin.made
    for _ in fit(method, lesson, TrainConfig(epochs=3, batch_size=8, cuda_graphs=False)):
        pass
    assert made == Twin.made


def test_what_is_learned_belongs_to_a_kind(graphs):
    """The prefix alone learns in one pass and the tokens in another."""
    a, k, v = (t.detach() for t in tensors())
    for _ in range(3):
        for which in range(3):
            given = [t.requires_grad_() if i == which else t for i, t in enumerate(x.clone() for x in (a, k, v))]
            found = torch.autograd.grad(passed(graphs, given), given[which])[0]
            assert torch.equal(found, torch.autograd.grad(plain(given), given[which])[0])
    assert Twin.made == 3
