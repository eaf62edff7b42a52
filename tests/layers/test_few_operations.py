"""What is computed together instead of one by one: the MLP of frozen maps, unit vectors, maps and prompts of layers."""

import pytest
import torch
import torch.nn.functional as F
from shared import images
from torch.func import vmap
from torch.utils._python_dispatch import TorchDispatchMode
from written_out import library, near

from vlprompt import methods as m
from vlprompt.backbones.open_clip.towers import wrap_clip
from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import Clip
from vlprompt.layers.adapters import BiasAdapter
from vlprompt.layers.blocks.quick_gelu import build_quick_mlp
from vlprompt.layers.frozen_maps import FrozenLinear
from vlprompt.layers.heads import LinearHead
from vlprompt.layers.layer_maps import map_per_layer
from vlprompt.runtime.seeding import make_generator

NAMES = tuple(ClassName(name) for name in ("cat", "dog", "red fox"))


@pytest.fixture(scope="module")
def quick():
    model, tokenizer = library({"quick_gelu": True})
    return wrap_clip(model.double(), tokenizer, "x")


def draw(*shape):
    return torch.randn(*shape, dtype=torch.double)


def compare(fast, slow, *leaves):
    """Values and derivatives in a random direction."""
    near(fast, slow, 1e-12)
    direction = torch.randn_like(fast)
    for a, b in zip(*(torch.autograd.grad((f * direction).sum(), leaves) for f in (fast, slow)), strict=True):
        near(a, b, 1e-11)


@pytest.fixture
def maps():
    torch.manual_seed(0)
    return FrozenLinear(draw(7, 5), draw(7)), FrozenLinear(draw(5, 7), draw(5))


def test_an_mlp_of_frozen_maps_is_the_maps_one_by_one(maps):
    (up, down), y = maps, draw(4, 3, 5).requires_grad_()
    mlp = build_quick_mlp(up, down)
    h = up(y)
    compare(mlp(y), down(h * torch.sigmoid(1.702 * h)), y)
    compare(vmap(mlp)(y), mlp(y), y)
    compare(mlp(y.transpose(0, 1)), mlp(y).transpose(0, 1), y)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = mlp(y.float())
    assert rounded.dtype == torch.bfloat16
    near(rounded.double(), mlp(y), 0.03)
    before, learned = y.detach().clone(), mlp(y)
    with torch.no_grad():
        assert torch.equal(mlp(y), learned)
        near(vmap(mlp)(y), learned, 1e-12)
    assert torch.equal(y, before)
    with torch.inference_mode():
        assert torch.equal(mlp(before), learned)


def test_maps_that_train_are_computed_one_by_one(maps):
    up, down = maps
    assert build_quick_mlp(up, FrozenLinear(down.weight.clone().requires_grad_(), down.bias)) is None
    assert build_quick_mlp(FrozenLinear(up.weight), down) is None
    assert build_quick_mlp(torch.nn.Linear(5, 7), down) is None


@pytest.mark.parametrize("site", ["up", "down"])
def test_an_adapter_inside_an_mlp_sees_the_maps(quick, site):
    """A shift of one map in the prompt, and the same in the tower's weights."""
    torch.manual_seed(1)
    pixels, adapter = draw(2, 3, 32, 32), BiasAdapter(quick.image.sites(site)[f"1/{site}"][1], quick.device).double()
    adapter.bias.data.normal_()
    prompt = Prompt(adapters={f"1/{site}": adapter})
    with torch.no_grad():
        found, plain = quick.image(images(pixels, site), prompt), quick.image(images(pixels, site))
        near(quick.image.merged(prompt)(images(pixels, site)), found, 1e-12)
    assert (found - plain).abs().max() > 1e-3


def test_unit_vectors_have_two_derivatives():
    torch.manual_seed(2)
    x = draw(3, 4, 5).requires_grad_()
    compare(Clip.unit(x), F.normalize(x, dim=-1), x)
    assert torch.autograd.gradgradcheck(Clip.unit, (x,))
    zero = torch.zeros(1, 5, requires_grad=True)
    for unit in (Clip.unit, lambda x: F.normalize(x, dim=-1)):
        assert torch.equal(torch.autograd.grad(unit(zero).sum(), zero)[0], torch.full((1, 5), 1e12))


@pytest.mark.parametrize("shape", [(2, 5), (3, 2, 5)])
def test_maps_of_layers_are_the_maps_one_by_one(shape):
    torch.manual_seed(3)
    layers, x = [torch.nn.Linear(5, 4).double() for _ in range(3)], draw(*shape).requires_grad_()
    slow = torch.stack([layer(row) for layer, row in zip(layers, x.expand(3, -1, -1), strict=True)])
    compare(map_per_layer(layers, x), slow, x, *(p for layer in layers for p in layer.parameters()))


class _Counter(TorchDispatchMode):
    """Count what a step starts: neither views nor allocations."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += not func.is_view and "empty" not in func._schema.name
        return func(*args, **(kwargs or {}))


def count_step(method):
    method.begin_lesson(Lesson(Split((), (), NAMES)), make_generator(0))
    method.double()
    pixels, fixed = draw(3, 3, 32, 32), method.precompute(NAMES)
    with _Counter() as counter:
        output = method(images(pixels), method.prepare(NAMES, fixed))
        output.logits.logsumexp(-1).sum().backward()
    return counter.n


@pytest.mark.parametrize(
    ("make", "most", "one_by_one"),
    [
        (lambda clip: m.VPT(clip.image, LinearHead(), 2, dropout=0.0), 123, 156),
        (lambda clip: m.CoOp(clip, 2), 190, 220),
        (lambda clip: m.MaPLe(clip, 2), 270, 343),
        (lambda clip: m.MMRL(clip, 2, 8), 331, 416),
    ],
    ids=["vpt", "coop", "maple", "mmrl"],
)
def test_a_step_starts_few_operations(quick, make, most, one_by_one):
    """Of three blocks a tower; one_by_one: as many as there were when maps, norms and prompts were so."""
    assert count_step(make(quick)) < (most + one_by_one) / 2  # another torch may differ a little
