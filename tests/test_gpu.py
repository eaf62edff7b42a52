"""The same on a GPU: features, prompts, training, resume. Run by `pytest -m gpu` on a machine with CUDA."""

import pytest
import torch
from replays import MADE
from shared import images

from vlprompt import methods
from vlprompt.backbones.glyph import build_tiny_clip
from vlprompt.core.prompt import Prompt
from vlprompt.engine.loop import fit
from vlprompt.engine.train_config import TrainConfig
from vlprompt.experiments.runner import run
from vlprompt.layers import heads
from vlprompt.layers.adapters import LowRankAdapter
from vlprompt.methods import (
    CLAP,
    IVLP,
    CLIPAdapter,
    CoCoOp,
    CoOp,
    CrossModal,
    MaPLe,
    PromptSRC,
    TaskRes,
    TipAdapter,
    ZeroShot,
)
from vlprompt.runtime.seeding import make_generator
from vlprompt.tasks import Domain, FewShot

pytestmark = pytest.mark.gpu
EVERY = [CLAP, IVLP, CLIPAdapter, CoCoOp, CoOp, CrossModal, MaPLe, TaskRes, TipAdapter, ZeroShot]
EVERY.append(lambda clip: PromptSRC(IVLP(clip)))
EVERY.append(lambda clip: methods.NearestMean(clip.image))
ON_TOWER = ["VPT", "BitFit", "SSF", "LoRA", "Adapter", "AdaptFormer", "Convpass", "MLP", "Partial", "Full"]
ON_TOWER += ["SideTuning", "Linear", "DualPrompt", "SPrompts"]
EVERY += [lambda clip, n=n: getattr(methods, n)(clip.image, heads.LinearHead()) for n in ON_TOWER]
EVERY.append(
    lambda clip: methods.L2P(clip.image, heads.LinearHead(), 6, 2, 2, penalize_frequency=True, init_range=(-1.0, 1.0))
)
EVERY.append(lambda clip: methods.CODAPrompt(clip.image, heads.LinearHead(), 8))
EVERY.append(lambda clip: methods.RanPAC(clip.image, 500))


@pytest.fixture(scope="module")
def pair():
    return build_tiny_clip("cpu"), build_tiny_clip("cuda")


def test_features_and_prompts_are_those_of_the_cpu(pair):
    x, t = torch.randn(5, 3, 32, 32), torch.randn(2, 4, 48)
    deep = {i: torch.randn(1, 3, 64) for i in range(3)}
    texts = ["a photo of a dog.", "{4} cat", "golden retriever"]
    found = [
        [
            clip.image(images(x)),
            clip.image(images(x), Prompt({i: v.to(clip.device) for i, v in deep.items()})),
            clip.text([f"{{4}} {n}." for n in texts[::2]], Prompt({0: t.to(clip.device)})),
        ]
        for clip in pair
    ]
    for a, b in zip(*found, strict=True):
        assert b.device.type == "cuda"
        assert torch.allclose(a, b.cpu(), atol=1e-3 * float(a.abs().max()))


@pytest.mark.parametrize("method", EVERY)
def test_every_method_runs_there(pair, method, tmp_path):
    task = FewShot("digits", shots=4)
    scores = [run(method(clip), task, TrainConfig(epochs=3, lr=0.01)).summary["accuracy"] for clip in pair]
    assert abs(scores[0] - scores[1]) < 3
    result = run(method(pair[1]), task, TrainConfig(epochs=1), tmp_path / "run")
    assert "cuda" in result.environment["device"]


ADAPTS = {
    "dapl": lambda clip: methods.DAPL(clip, 4, 4, threshold=0.1),
    "upl": lambda clip: methods.UPL(CoOp(clip, 4)),
    "entropy": lambda clip: methods.Entropy(CoOp(clip, 4), diversity=1.0),
    "dann": lambda clip: methods.DANN(clip.image, heads.LinearHead(), 16, 16),
}


@pytest.mark.filterwarnings("ignore:no confident pseudo-label")
@pytest.mark.parametrize("method", ADAPTS)
def test_adaptation_runs_there(pair, method):
    task, train = (
        Domain("digit_domains", ["noisy", "rotated"], "handwritten"),
        TrainConfig(epochs=3, lr=0.01, model_selection="density"),
    )
    found = [run(ADAPTS[method](clip), task, train) for clip in pair]
    assert abs(found[0].summary["accuracy"] - found[1].summary["accuracy"]) < 3
    for rule, value in found[0].stages[0]["epochs"][0].items():
        assert found[1].stages[0]["epochs"][0][rule] == pytest.approx(value, rel=0.02, abs=3), rule


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_precisions(pair, precision):
    lesson = FewShot("digits", shots=2).lesson
    method = CoOp(pair[1], 4)
    method.begin_lesson(lesson, make_generator(0))
    losses = [s.loss for s in fit(method, lesson, TrainConfig(epochs=30, lr=0.02, warmup=0, precision=precision))]
    assert losses[-1] < losses[0]
    assert method.ctx.dtype == torch.float32


def test_a_state_goes_on_there(pair):
    lesson = FewShot("digits", shots=2).lesson

    def fresh():
        method = CoOp(pair[1], 4)
        method.begin_lesson(lesson, make_generator(0))
        return method

    whole, first, second = fresh(), fresh(), fresh()
    steps = list(fit(whole, lesson, TrainConfig(epochs=10)))
    for step in fit(first, lesson, TrainConfig(epochs=10)):
        if step.step == 5:
            state = step.loop.state()
            break
    rest = list(fit(second, lesson, TrainConfig(epochs=10), resume=state))
    assert [s.step for s in rest] == [s.step for s in steps[5:]]
    assert torch.allclose(whole.ctx, second.ctx, atol=1e-6)


def build_vpt(clip, **options):
    return methods.VPT(clip.image, heads.LinearHead(), **options)


GRAPHED = {  # what builds a method, and whether it records passes of images and of texts
    **{name: (build, name == "maple", True) for name, build in MADE.items()},
    "own": (lambda clip: CoOp(clip, 4, class_specific=True, context_template="{name} {ctx}."), False, True),
    "prograd": (lambda clip: methods.ProGrad(CoOp(clip, 4)), False, True),
    "promptsrc": (lambda clip: PromptSRC(IVLP(clip)), True, True),
    "vpt": (build_vpt, True, False),
    "vpt and biases": (lambda clip: build_vpt(clip, bias=True, dropout=0.0), True, False),
    "lora": (lambda clip: methods.CLIPLoRA(clip, dropout=0.0), True, True),
    "lora with dropout": (lambda clip: methods.CLIPLoRA(clip, dropout=0.25), False, False),
    "mma": (lambda clip: methods.MMA(clip, layers=2), True, True),
    "convpass": (lambda clip: methods.Convpass(clip.image, heads.LinearHead(), dropout=0.0), True, False),
    "dualprompt": (lambda clip: methods.DualPrompt(clip.image, heads.LinearHead()), True, False),
}


def has_recorded(tower):
    return any(kept is not None for kept in tower.cuda_graphs.slots_by_kind.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", GRAPHED)
def test_recorded_passes_train_the_same(name, precision):
    """Equal to the eager passes up to 1e-5 of a loss (float32; 1e-2 in bf16), over steps of two sizes."""
    (build, in_images, in_texts), lesson, found = GRAPHED[name], FewShot("digits", shots=2).lesson, []
    for graphs in (False, True):
        clip = build_tiny_clip("cuda")
        method = build(clip)
        method.begin_lesson(lesson, make_generator(0))
        train = TrainConfig(
            epochs=6, batch_size=8, micro_batch_size=3, lr=0.01, warmup=0, precision=precision, cuda_graphs=graphs
        )
        found.append([s.loss for s in fit(method, lesson, train)])
        recorded = has_recorded(clip.image), has_recorded(clip.text)
        assert recorded == (graphs and in_images, graphs and in_texts)
    assert found[1] == pytest.approx(found[0], rel=1e-5 if precision == "fp32" else 1e-2)


def build_low_rank(tower):
    adapters = {}
    for site, fans in tower.sites("q", "v", "down").items():
        adapters[site] = LowRankAdapter(fans, 2, 0.5, 0.0, make_generator(0), tower.device)
        torch.nn.init.normal_(adapters[site].up, std=0.1)
    return adapters


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inputs", ["images", "texts"])
def test_replays_are_the_plain_pass(inputs, precision):
    """Features and gradients of what changes between steps, with a smaller last batch."""
    clip = build_tiny_clip("cuda")
    tower = clip.image if inputs == "images" else clip.text
    h, d = tower.n_heads, tower.head_dim
    tokens = {0: torch.randn(1, 2, tower.dim, device="cuda", requires_grad=True)}
    prefix = {1: tuple(torch.randn(1, h, 2, d, device="cuda", requires_grad=True) for _ in "kv")}
    adapters, graphs = build_low_rank(tower), tower.cuda_graphs
    learned = [*tokens.values(), *prefix[1], *(p for adapter in adapters.values() for p in adapter.parameters())]
    tolerance = 1e-4 if precision == torch.float32 else 0.05

    def run(pixels):
        prompt = Prompt(tokens, prefix, adapters)
        with torch.autocast("cuda", precision, enabled=precision != torch.float32):
            if inputs == "texts":
                return (tower([f"{{2}} {noun}." for noun in ("cat", "retriever", "ox")][: len(pixels)], prompt),)
            return tower.read(images(pixels), prompt, ("pooled", "prompts"))

    for n in (3, 3, 2, 3, 2, 2, 3):
        pixels, found = torch.randn(n, 3, 32, 32), []
        for cache in (graphs, None):
            tower.cuda_graphs = cache
            outputs = run(pixels)
            loss = sum((t.float() ** 2).sum() for t in outputs)
            found.append([*outputs, *torch.autograd.grad(loss, learned)])
        for a, b in zip(*found, strict=True):
            assert (a - b).abs().max() <= tolerance * b.abs().max()
        with torch.no_grad():
            for p in learned:
                p += 0.1 * torch.randn_like(p)
    assert sum(kept is not None for kept in graphs.slots_by_kind.values()) == 2


def test_two_views_before_their_gradients():
    """The second pass of a step does not write over what the first one's gradient needs."""
    clip = build_tiny_clip("cuda")
    tokens = torch.randn(1, 2, clip.image.dim, device="cuda", requires_grad=True)
    graphs = clip.image.cuda_graphs
    for _ in range(4):
        views, grads = [torch.randn(2, 3, 32, 32) for _ in range(2)], []
        for cache in (graphs, None):
            clip.image.cuda_graphs = cache
            one, two = (clip.image(images(view), Prompt({0: tokens})) for view in views)
            grads.append(torch.autograd.grad((one * two).sum(), tokens)[0])
        assert torch.allclose(*grads, rtol=1e-4, atol=1e-5)


def test_few_launches_replay_a_step():
    """Hundreds of factors are copied at once, and so are their gradients."""
    clip = build_tiny_clip("cuda")
    adapters = build_low_rank(clip.image)
    learned = [p for adapter in adapters.values() for p in adapter.parameters()]
    pixels = torch.randn(2, 3, 32, 32)

    def step():
        return torch.autograd.grad(clip.image(images(pixels), Prompt(adapters=adapters)).sum(), learned)

    for _ in range(3):
        step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    copies = [event.name for event in profile.events() if event.name in ("aten::copy_", "aten::_foreach_copy_")]
    assert copies.count("aten::_foreach_copy_") <= 8
    assert copies.count("aten::copy_") < len(learned)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
def test_language_models(family, tmp_path):
    """States with tokens, prefix and parts, and what is written, are those of the CPU; a prefix learns."""
    import small_models
    from texts_and_models import parts, passages, prefix

    import vlprompt
    from vlprompt.layers.verbalizers import Verbalizer

    folder, found = small_models.written(family, tmp_path / family), []
    for device in ("cpu", "cuda"):
        lm = vlprompt.load(f"hf:{folder}", device)
        kv = {layer: (k.to(device), v.to(device)) for layer, (k, v) in prefix(lm).items()}
        beside = {site: part.to(device) for site, part in parts(lm, "q", "down").items()}
        for part in beside.values():
            part.weight = part.weight.to(device)
        tokens = torch.randn(1, 4, lm.dim, generator=make_generator("t")).to(device)
        states = lm(passages().with_template(), Prompt({0: tokens}, kv, beside), "mask")
        found.append(states.detach().cpu())
    assert torch.allclose(*found, atol=1e-3 * float(found[0].abs().max()))
    from opinions import data

    from vlprompt.tasks import Text

    method = methods.PrefixTuning(lm, Verbalizer(lm), 4, hidden_dim=None)
    result = run(
        method,
        Text(data()),
        TrainConfig(epochs=2, batch_size=8, lr=0.1, precision="bf16", activation_checkpointing=True),
    )
    assert result.summary["accuracy"] >= 0


def test_four_bits_on_a_gpu(tmp_path):
    """QLoRA with the paged optimizer."""
    import small_models
    from opinions import data

    import vlprompt
    from vlprompt.tasks import Text

    lm = vlprompt.load(f"hf-nf4:{small_models.written('llama', tmp_path / 'llama')}", "cuda")
    method = methods.QLoRA(lm, heads.LinearHead(), rank=4)
    how = TrainConfig(epochs=4, batch_size=8, lr=0.01, optimizer="paged_adamw")
    assert run(method, Text(data()), how).summary["accuracy"] >= 0
