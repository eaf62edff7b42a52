"""Recorded passes: which are recorded, and that a replay never writes over what a gradient still needs."""

import copy
import gc
from functools import partial
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from replays import MADE, Tape, Twin
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from vlprompt.backbones.glyph import build_tiny_clip
from vlprompt.core.prompt import Prompt
from vlprompt.engine.loop import fit
from vlprompt.engine.train_config import TrainConfig
from vlprompt.layers.adapters import LowRankAdapter, NormAdapter
from vlprompt.layers.blocks.cuda_graphs import MAX_RECORDED_PASSES, CudaGraphCache, clone_all, copy_all
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
        graphs(make, "large", Prompt({0: given[0]}, {1: given[1:]}), size=1.01)
        graphs(lambda p: (p.tokens[0].sum(), torch.ones(1)), "constant", Prompt({0: given[0]}))
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


# --- adapters ---


def adapt(prompt, x):
    """Two outputs of all adapters, one behind the other; whether they mix rows decides what a tower leaves out."""
    x = x * (2 if prompt.mixes_rows else 1)
    for site in prompt.adapters:
        x = prompt.apply_adapter(site, x, x.tanh())
    return x, x.sum(0)


class Update(NamedTuple):
    change: torch.Tensor
    scale: float
    shift: torch.Tensor

    def __call__(self, given, made):
        return made + self.scale * given @ self.change + self.shift


class Holder(nn.Module):
    """A module whose method is an adapter, with a buffer and what a test changes."""

    def __init__(self, **attributes):
        super().__init__()
        self.weight, self.factor = nn.Parameter(torch.randn(3, dtype=torch.double)), 1.5
        self.register_buffer("fixed", torch.randn(3, dtype=torch.double))
        for name, value in attributes.items():
            setattr(self, name, value)

    def change(self, power, given, made):
        return made + self.factor * self.fixed * given * self.weight**power

    def forward(self, given, made):
        return self.change(2, given, made)


class Mixing(Holder):
    mixes_rows = True


def low_rank(dropout=0.0):
    adapter = LowRankAdapter((3, 3), 2, 0.7, dropout, make_generator(0), torch.device("cpu")).double()
    nn.init.normal_(adapter.up)
    return adapter


def norm():
    return NormAdapter(nn.LayerNorm(3).double().requires_grad_(False))


ADAPTERS = {
    "module": low_rank,
    "norm": norm,
    "method": lambda: partial(Holder().change, 3),
    "whole": Holder,
    "mixing": Mixing,
    "tuple": lambda: Update(
        torch.randn(3, 3, dtype=torch.double, requires_grad=True), 0.3, torch.randn(3, dtype=torch.double)
    ),
}


def learned_of(adapter):
    if isinstance(adapter, tuple):
        return [adapter.change]
    return list((adapter.func.__self__ if isinstance(adapter, partial) else adapter).parameters())


def differentiate(outputs, learned):
    total = (outputs[0] ** 3).sum() + outputs[1].sum()
    return torch.autograd.grad(total, learned)


def check_adapters(graphs, adapters, n_recorded):
    """Run and compare steps between which what is learned changes."""
    learned = [p for adapter in adapters.values() for p in learned_of(adapter) if p.requires_grad]
    for _ in range(4):
        x = torch.randn(4, 3, dtype=torch.double)
        found = graphs(adapt, "kind", Prompt(adapters=adapters), x)
        want = adapt(Prompt(adapters=adapters), x)
        for a, b in zip(found, want, strict=True):
            assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)
        pairs = zip(differentiate(found, learned), differentiate(want, learned), strict=True)
        for p, (a, b) in zip(learned, pairs, strict=True):
            assert torch.allclose(a, b, rtol=1e-11, atol=1e-11)
            p.data += 0.1 * torch.randn_like(p)
    assert Tape.made == n_recorded


@pytest.fixture
def tapes():
    Tape.made = 0
    return CudaGraphCache(Tape)


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_are_recorded_with_what_they_learn(name, tapes):
    adapter = ADAPTERS[name]()
    check_adapters(tapes, {"0/q": adapter, "1/q": ADAPTERS["module"](), "2/q": adapter}, 1)


def test_other_adapters_of_a_kind_are_replayed(tapes):
    """Those of another lesson, run or seed: what differs are tensors."""
    for _ in range(2):
        check_adapters(tapes, {"0/q": low_rank(), "1/q": ADAPTERS["tuple"]()}, 1)


def test_settings_belong_to_a_kind(tapes):
    holder = Holder()
    for i, factor in enumerate((1.0, 2.0, 1)):  # an integer computes otherwise
        holder.factor = factor
        check_adapters(tapes, {"0/q": holder}, i + 1)


def test_fixed_tensors_are_read_where_they_lie(tapes):
    holder = Holder()
    check_adapters(tapes, {"0/q": holder}, 1)
    holder.fixed.mul_(3)
    check_adapters(tapes, {"0/q": holder}, 1)
    holder.fixed = torch.randn(3, dtype=torch.double)
    check_adapters(tapes, {"0/q": holder}, 2)
    holder.weight.requires_grad_(False)
    check_adapters(tapes, {"0/q": holder, "1/q": low_rank()}, 3)


class Scaling(nn.Module):
    """Without anything trained: with a number, a tensor and a part that a test changes."""

    def __init__(self):
        super().__init__()
        self.factor, self.dropout = 2.0, nn.Dropout(0.5)
        self.register_buffer("shift", torch.ones(3, dtype=torch.double))

    def forward(self, x):
        return self.factor * self.dropout(x) + self.shift


class Beside(Holder):
    def forward(self, given, made):
        return self.change(2, given, self.beside[0](made))


class Drawing(Holder):
    def forward(self, given, made):
        return self.change(1, given, made + F.dropout(made, 0.5))


class DrawingAlone(Holder):
    """With a generator of its own, which the state of torch's doesn't tell."""

    def forward(self, given, made):
        return self.change(1, given, made + torch.rand(made.shape, generator=self.own[0], dtype=made.dtype))


class Counting(Holder):
    def forward(self, given, made):
        self.factor += 1
        return self.change(1, given, made)


class Reading(Holder):
    """Its number would be that of the recorded pass for good."""

    def forward(self, given, made):
        return self.change(1, given, made) * float(made.detach().abs().max())


class Choosing(Holder):
    def forward(self, given, made):
        return self.change(1, given, made) + given[given > 0].mean()


class Masking(Holder):
    """It writes into as many rows as a mask has, which only the device knows."""

    def forward(self, given, made):
        made = made.clone()
        made[made.detach().sum(1) > 0] = torch.ones(3).double()
        return self.change(1, given, made)


class Solving(Holder):
    def forward(self, given, made):
        return self.change(1, given, torch.linalg.solve(2 * torch.eye(3).double(), made.T).T)


class Moving(Holder):
    """Between devices, as a copy from the CPU is, which a recording can't hold."""

    def forward(self, given, made):
        torch.zeros(made.shape, device="meta", dtype=made.dtype).copy_(made.detach())
        return self.change(1, given, made)


class Averaging(Holder):
    def forward(self, given, made):
        self.fixed.lerp_(given.mean(0), 0.5)
        return self.change(1, given, made)


def hooked():
    holder = Holder()
    holder.register_forward_hook(lambda module, given, out: 2 * out)
    return holder


PLAIN = {
    "dropout": lambda: low_rank(dropout=0.5),
    "drawing": Drawing,
    "counting": Counting,
    "averaging": Averaging,
    "reading": Reading,
    "choosing": Choosing,
    "moving": Moving,
    "masking": Masking,
    "solving": Solving,
    "hooked": hooked,
    "tensor beside": lambda: Holder(beside=torch.ones(3)),
    "dict beside": lambda: Holder(beside={}),
    "trained module in a tuple": lambda: Holder(beside=(nn.Linear(2, 2),)),
    "fixed module that averages": lambda: Beside(beside=(nn.BatchNorm1d(3).double().requires_grad_(False),)),
    "object beside": lambda: Holder(beside=partial(hooked)),
}


@pytest.mark.parametrize("name", PLAIN)
def test_adapters_that_are_run_plainly(name, tapes):
    """Same masks, counts and averages as without recording, of which each pass has its own."""
    adapter, found = PLAIN[name](), []
    twin = copy.deepcopy(adapter)
    for one, run in ((adapter, partial(tapes, adapt, "kind")), (twin, adapt)):
        torch.manual_seed(0)
        found.append([run(Prompt(adapters={"0/q": one}), torch.ones(4, 3).double())[0].detach() for _ in range(4)])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
    assert Tape.made == 0
    assert not tapes.slots_by_kind


def test_a_generator_of_its_own(tapes):
    holder = DrawingAlone(own=(torch.Generator(),))
    for _ in range(3):
        tapes(adapt, "kind", Prompt(adapters={"0/q": holder}), torch.ones(4, 3).double())
    assert Tape.made == 0


def test_dropout_in_evaluation_is_none(tapes):
    adapter = low_rank(dropout=0.5).eval()
    check_adapters(tapes, {"0/q": adapter}, 1)
    adapter.train()
    x, found = torch.ones(4, 3).double(), []
    for _ in range(3):
        found.append(tapes(adapt, "kind", Prompt(adapters={"0/q": adapter}), x)[0].detach())
    assert not torch.equal(found[1], found[2])
    assert Tape.made == 1


def test_settings_of_a_fixed_module_beside_belong_to_a_kind(tapes):
    scaling = Scaling().eval()
    holder = Beside(beside=(scaling,))
    check_adapters(tapes, {"0/q": holder}, 1)
    scaling.factor = 3.0
    check_adapters(tapes, {"0/q": holder}, 2)
    scaling.shift.mul_(2)
    check_adapters(tapes, {"0/q": holder}, 3)
    scaling.shift = torch.full((3,), 5.0, dtype=torch.double)
    check_adapters(tapes, {"0/q": holder}, 4)
    scaling.train()
    x = torch.ones(4, 3).double()
    found = [tapes(adapt, "kind", Prompt(adapters={"0/q": holder}), x)[0].detach() for _ in range(3)]
    assert not torch.equal(found[1], found[2])


def test_autocast_belongs_to_a_kind(tapes):
    adapter = low_rank().float()
    for precision in (torch.float32, torch.bfloat16) * 2:
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
                x = torch.randn(4, 3)
                found = tapes(
                    lambda p, x: (x @ p.adapters["0/q"](x, x).T,), "kind", Prompt(adapters={"0/q": adapter}), x
                )
            assert found[0].dtype == precision
    assert Tape.made == 2


class Operations(TorchDispatchMode):
    n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += not func.is_view and "empty" not in func.__name__
        return func(*args, **(kwargs or {}))


def test_many_tensors_are_copied_at_once():
    """One operation for each type, and one for tensors laid out otherwise."""
    given = [torch.randn(2, 3) for _ in range(50)] + [torch.randn(4).double(), torch.randn(3, 1).expand(3, 5)]
    targets = [torch.zeros(t.shape, dtype=t.dtype) for t in given]
    with Operations() as counted:
        copy_all(targets, given)
        clones = clone_all(given)
    assert counted.n == 6
    for t, target, clone in zip(given, targets, clones, strict=True):
        assert torch.equal(t, target)
        assert torch.equal(t, clone)
        assert t.data_ptr() != clone.data_ptr()


def test_a_transform_has_tensors_of_its_own(tapes):
    """Settings trained together by vmap are run plainly."""
    stacked, shared = (torch.randn(*n, 2, 3, dtype=torch.double, requires_grad=True) for n in ((3,), ()))

    def run(t):
        return tapes(lambda p: (p.tokens[0] * p.tokens[1],), "kind", Prompt({0: t, 1: shared}))[0]

    for _ in range(3):
        assert torch.equal(torch.vmap(run)(stacked), stacked * shared)
    assert Tape.made == 0
    assert not tapes.plain_kinds  # so that the same pass of one setting is recorded
