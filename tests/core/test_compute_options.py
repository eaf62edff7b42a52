"""Other ways to compute the same passes: layers made again, texts in chunks, fewer bytes."""

import pytest
import torch
from shared import images
from torch import nn
from written_out import NAMES, TEMPLATES, Whole, double, near  # noqa: F401  # double is a fixture

from vlprompt import methods
from vlprompt.core.batch import Batch, Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.compute_options import DEFAULT_COMPUTE_OPTIONS, ComputeOptions
from vlprompt.core.introspection import apply_compute_options
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.engine.loop import fit
from vlprompt.engine.train_config import TrainConfig
from vlprompt.layers import heads
from vlprompt.layers.class_texts import fill_class_texts
from vlprompt.runtime.memory import TensorMemoryTracker
from vlprompt.runtime.seeding import make_generator

WAYS = {
    "checkpointing": ComputeOptions(activation_checkpointing=True),
    "chunk": ComputeOptions(text_micro_batch=3),
    "both": ComputeOptions(True, 2),
}
MADE = {
    "coop": lambda clip: methods.CoOp(clip, n_ctx=4),
    "own": lambda clip: methods.CoOp(clip, n_ctx=4, class_specific=True, context_template="{name} {ctx}."),
    "cocoop": lambda clip: methods.CoCoOp(clip, n_ctx=4),
    "maple": lambda clip: methods.MaPLe(clip, n_ctx=2),
    "promptsrc": lambda clip: methods.PromptSRC(methods.IVLP(clip)),
    "lora": lambda clip: methods.CLIPLoRA(clip, dropout=0.0),
}
ON_IMAGES = {
    "vpt": lambda tower: methods.VPT(tower, heads.LinearHead(), n_tokens=3, dropout=0.0),
    "adapter": lambda tower: methods.Adapter(tower, heads.LinearHead()),
    "partial": lambda tower: methods.Partial(tower, heads.LinearHead()),
    "full": lambda tower: methods.Full(tower, heads.LinearHead()),
}


def step(method, how, names, pixels):
    """The terms of a step, their gradients, and the bytes held at most."""
    batch = Batch(images(pixels), torch.arange(len(pixels)) % len(names), names)
    with TensorMemoryTracker() as bytes_:
        with apply_compute_options(method, how):  # the gradients are taken after it, as a training does
            terms, _ = method.loss_terms(batch, method.precompute(names))
        loss = sum(value for value, _ in terms.values())
        grads = torch.autograd.grad(loss, list(method.parameters()), allow_unused=True, materialize_grads=True)
    return loss, grads, bytes_.peak_bytes


def begun(made, backbone, names):
    method = made(backbone)
    pixels = torch.randn(len(names), 3, 32, 32)
    lesson = Lesson(Split((), (), names))
    method.begin_lesson(lesson, make_generator(0))
    return method.double(), pixels.double()


@pytest.mark.parametrize(
    ("name", "way"),
    [pytest.param(n, w, marks=[] if n in ("coop", "vpt") or (w == "both" and n != "promptsrc") else [pytest.mark.slow])
     for n in (*MADE, *ON_IMAGES) for w in WAYS],
)  # fmt: skip
def test_the_same_numbers_with_less_memory(double, name, way):  # noqa: F811
    _, clip = double
    names = tuple(ClassName(n, str(i)) for i, n in enumerate(NAMES))
    torch.manual_seed(0)
    made, backbone = (MADE[name], clip) if name in MADE else (ON_IMAGES[name], clip.image)
    method, pixels = begun(made, backbone, names)
    loss, grads, most = step(method, DEFAULT_COMPUTE_OPTIONS, names, pixels)
    if name in ON_IMAGES and way == "chunk":
        with pytest.raises(
            ValueError,
            match=f"train.text_micro_batch: expected a method on a CLIP's text tower, got {type(method).__name__}",
        ):
            step(method, WAYS[way], names, pixels)
        return
    how = WAYS[way] if name in MADE else ComputeOptions(activation_checkpointing=True)
    found, again, less = step(method, how, names, pixels)
    assert less < most or (way == "chunk" and name in ("maple", "promptsrc", "lora"))  # there images hold the most
    near(found, loss, 1e-12)
    for a, b in zip(again, grads, strict=True):
        assert (a - b).abs().max() <= 1e-11 * max(g.abs().max() for g in grads)
    assert clip.text.compute_options == clip.image.compute_options == DEFAULT_COMPUTE_OPTIONS


def test_dropout_of_a_layer_made_again_is_the_same(tiny):
    method = methods.LoRA(tiny.image, heads.LinearHead(), rank=2, dropout=0.5, sites=("q", "up"))
    names = tuple(ClassName(n) for n in "abc")
    method.begin_lesson(Lesson(Split((), (), names)), make_generator(0))
    pixels, found = torch.randn(3, 3, 32, 32), []
    for how in (DEFAULT_COMPUTE_OPTIONS, ComputeOptions(activation_checkpointing=True)):
        torch.manual_seed(1)
        found.append(step(method.train(), how, names, pixels)[1])
    for a, b in zip(*found, strict=True):
        near(a, b, 1e-5)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(("own", "mixes"), [(False, False), (True, False), (False, True)])
def test_chunks_of_texts_are_the_whole(double, template, own, mixes):  # noqa: F811
    """Also where a text's tokens are its own, and where every text is a pass by itself."""
    _, clip = double
    torch.manual_seed(3)
    t = torch.randn((2, len(NAMES), 4, 48) if own else (2, 4, 48)).double().requires_grad_()
    texts, found = fill_class_texts(template, NAMES, 4), []
    for how in (DEFAULT_COMPUTE_OPTIONS, ComputeOptions(text_micro_batch=4), ComputeOptions(text_micro_batch=1)):
        clip.text.compute_options = how
        try:
            out = clip.text(texts, Prompt({0: t, 1: 2 * t}, {}, {"0/q": Whole()} if mixes else {}))
        finally:
            clip.text.compute_options = DEFAULT_COMPUTE_OPTIONS
        found.append((out, *torch.autograd.grad((out * torch.linspace(0, 1, 64).double()).sum(), t)))
    for mine in found[1:]:
        near(mine[0], found[0][0], 1e-12)
        near(mine[1], found[0][1], 1e-11)


def test_without_a_gradient_many_texts_are_made_in_turn(tiny):
    texts = [f"thing {i}" for i in range(300)]
    contexts = torch.randn(100, 4, 48)
    with torch.no_grad(), TensorMemoryTracker() as whole:
        found = tiny.text([f"{{4}} {t}" for t in texts], Prompt({0: contexts}))
    rows = 100 * 300 * 5
    assert whole.peak_bytes < rows * 48 * 4 * 8  # all at once would hold about 14 such
    near(found[:3], tiny.text([f"{{4}} {t}" for t in texts], Prompt({0: contexts[:3]})).detach(), 1e-5)


@pytest.mark.parametrize("name", ["activation_checkpointing", "text_micro_batch"])
def test_a_way_that_nothing_can_go_is_refused(name, tiny):
    method = methods.Linear(tiny.image, heads.LinearHead()) if name == "text_micro_batch" else nn.Linear(2, 2)
    how = {
        "activation_checkpointing": ComputeOptions(True),
        "text_micro_batch": ComputeOptions(text_micro_batch=2),
    }[name]
    with (
        pytest.raises(ValueError, match=rf"train.{name}: expected a method on .*, got Linear. Leave {name} out"),
        apply_compute_options(method, how),
    ):
        pass
    with pytest.raises(ValueError, match=r"train\.text_micro_batch: expected at least 1, got 0"):
        TrainConfig(text_micro_batch=0)


def test_a_training_in_other_ways_is_the_same(tiny, pictures):
    from vlprompt.tasks import FewShot

    stage = next(iter(FewShot(str(pictures), shots=4).stages()))
    found = []
    for more in ({}, {"activation_checkpointing": True}, {"text_micro_batch": 1}, {"micro_batch_size": 3}):
        method = methods.CoCoOp(tiny, n_ctx=4)
        method.begin_lesson(stage.lesson, make_generator(1))
        train = TrainConfig(epochs=2, batch_size=4, lr=0.1, warmup=0, **more)
        found.append([s.loss for s in fit(method, stage.lesson, train)])
    for losses in found[1:]:
        assert losses == pytest.approx(found[0], rel=1e-5)
