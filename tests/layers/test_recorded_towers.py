"""Towers whose passes are recorded as on a GPU: the same features, gradients and trainings as without.

A `Tape` stands in the place of a CUDA graph: no GPU is needed, and what only a GPU does is in test_gpu.py.
"""

import pytest
import torch
from conformance import IMAGE_METHODS, SMALL
from replays import Tape, Twin
from shared import images
from torch.testing import assert_close
from written_out import double  # noqa: F401  # a fixture

from vlprompt.backbones.glyph import build_tiny_clip
from vlprompt.backbones.towers import vit
from vlprompt.config.build import resolve_class
from vlprompt.core.compute_options import DEFAULT_COMPUTE_OPTIONS, ComputeOptions
from vlprompt.core.prompt import Prompt
from vlprompt.layers.adapters import LowRankAdapter
from vlprompt.layers.blocks.attention_recorder import AttentionRecorder
from vlprompt.layers.blocks.cuda_graphs import CudaGraphCache
from vlprompt.layers.joined_passes import TowerPass, run_joined
from vlprompt.runtime.seeding import make_generator
from vlprompt.testing import MethodCase
from vlprompt.testing.images import build_digits_lesson

FORWARD, BACKWARD = {"rtol": 1e-12, "atol": 1e-12}, {"rtol": 1e-11, "atol": 1e-11}


@pytest.fixture
def clip(double, monkeypatch):  # noqa: F811
    """A CLIP in float64, whose towers record their passes."""
    torch.manual_seed(0)
    _, clip = double
    Tape.made = 0
    for tower in (clip.image, clip.text):
        monkeypatch.setattr(tower, "cuda_graphs", CudaGraphCache(Tape))
    return clip


def draw(*shape):
    return torch.randn(shape, dtype=torch.double)


def low_rank(tower, *kinds):
    adapters = {}
    for site, fans in tower.sites(*kinds).items():
        adapters[site] = LowRankAdapter(fans, 2, 0.5, 0.0, make_generator(0), tower.device).double()
        torch.nn.init.normal_(adapters[site].up, std=0.1)
    return adapters


def build_prompts(tower, n):
    """Tokens of all images and of each one, ones that go on, prefixes, adapters, and all of them; with what learns."""
    h, d, w = tower.n_heads, tower.head_dim, tower.dim
    deep, own = ({i: draw(r, 2, w).requires_grad_() for i in range(3)} for r in (1, n))
    prefix = {i: (draw(1, h, 2, d).requires_grad_(), draw(1, h, 2, d)) for i in (0, 2)}
    adapters = low_rank(tower, "q", "v", "down")
    factors = [p for adapter in adapters.values() for p in adapter.parameters()]
    keys = [k for k, _ in prefix.values()]
    return {
        "deep": (Prompt(deep), [*deep.values()]),
        "own": (Prompt(own, carry={1: 0.3, 2: torch.tensor([0.2, 0.9]).double()}), [*own.values()]),
        "prefix": (Prompt(prefix=prefix), keys),
        "adapters": (Prompt(adapters=adapters), factors),
        "all": (Prompt({0: deep[0]}, prefix, adapters), [deep[0], *keys, *factors]),
    }


def check_steps(tower, run, learned, n_recorded):
    """Compare steps with those of the tower without recordings, and change what learns between them."""
    for _ in range(3):
        pixels = draw(3, 3, 32, 32)
        found, graphs = run(pixels), tower.cuda_graphs
        weights = [torch.randn_like(t) for t in found]
        tower.cuda_graphs = None
        want = run(pixels)
        tower.cuda_graphs = graphs
        for a, b in zip(found, want, strict=True):
            assert_close(a, b, **FORWARD)
        grads = (torch.autograd.grad(out, learned, weights, allow_unused=True) for out in (found, want))
        for p, a, b in zip(learned, *grads, strict=True):
            if b is not None or a is not None:
                assert_close(a, b, **BACKWARD)
            p.data += 0.1 * torch.randn_like(p)
    assert Tape.made == n_recorded


def all_at_once(*slow):
    return [pytest.param(name, marks=pytest.mark.slow) for name in slow] + ["all"]


@pytest.mark.parametrize("name", all_at_once("deep", "own", "prefix", "adapters"))
def test_images(clip, name):
    prompt, learned = build_prompts(clip.image, 3)[name]
    reads = ("pooled", "prompts", "patches") if prompt.length else ("class", "patches")
    check_steps(clip.image, lambda pixels: clip.image.read(images(pixels), prompt, reads), learned, 1)


@pytest.mark.parametrize("name", all_at_once("prefix", "adapters"))
def test_texts(clip, name):
    prompt, learned = build_prompts(clip.text, 1)[name]
    template = "{2} " if prompt.length else ""
    texts = [f"{template}{noun}." for noun in ("cat", "golden retriever")]
    check_steps(clip.text, lambda _: [clip.text(texts, prompt)], learned, 1)


@pytest.mark.slow
def test_trainings_side_by_side(clip):
    """The adapters of several trainings are one pass, whose texts are as many contexts."""
    sets = [low_rank(clip.text, "q", "v") for _ in range(3)]
    learned = [p for adapters in sets for adapter in adapters.values() for p in adapter.parameters()]
    passes = [TowerPass(clip.text, ("a cat.", "dogs"), Prompt(adapters=adapters), "pooled", None) for adapters in sets]
    check_steps(clip.text, lambda _: run_joined(passes, []), learned, 1)


def test_two_passes_before_their_gradients(clip):
    """As of two views of an image: the second is run plainly."""
    prompt, learned = build_prompts(clip.image, 3)["deep"]
    check_steps(clip.image, lambda x: [clip.image(images(view), prompt) for view in (x, x.flip(3))], learned, 1)


@pytest.mark.slow
def test_adapters_below_the_blocks_are_run_plainly(clip):
    """They make the tokens that a recorded pass begins with, through which their gradients flow."""
    adapters = low_rank(clip.image, "patch") | low_rank(clip.image, "q")
    adapters["pre_norm"] = lambda given, made: 2 * made
    learned = [p for site in ("patch", "1/q") for p in adapters[site].parameters()]
    check_steps(clip.image, lambda x: [clip.image(images(x), Prompt(adapters=adapters))], learned, 1)


def test_sizes_and_outputs_are_kinds(clip):
    prompt, learned = build_prompts(clip.image, 2)["deep"]
    clip.image.cuda_graphs, Twin.made = CudaGraphCache(Twin), 0
    for n, output in ((2, "pooled"), (3, "pooled"), (2, "prompts")):
        pixels = images(draw(n, 3, 32, 32), f"{n} {output}")
        for _ in range(2):
            torch.autograd.grad(clip.image(pixels, prompt, output).sum(), learned, allow_unused=True)
    assert Twin.made == 3


def test_what_is_not_recorded(clip, monkeypatch):
    tower, prompt = clip.image, build_prompts(clip.image, 2)["deep"][0]
    pixels = draw(2, 3, 32, 32)

    def run(tower, pixels=pixels):
        for _ in range(2):
            tower(images(pixels), prompt).sum()

    run(tower.with_recorder(AttentionRecorder()))
    run(tower, pixels.clone().requires_grad_())
    with torch.no_grad():
        run(tower)
    for options in (ComputeOptions(activation_checkpointing=True), ComputeOptions(cuda_graphs=False)):
        tower.compute_options = options
        run(tower)
    tower.compute_options = DEFAULT_COMPUTE_OPTIONS
    rows = 2 * (tower.position_embeddings.shape[0] + prompt.length)
    monkeypatch.setattr(vit, "MAX_RECORDED_ROWS", rows - 1)
    run(tower)
    assert Tape.made == 0
    monkeypatch.setattr(vit, "MAX_RECORDED_ROWS", rows)
    run(tower)
    assert Tape.made == 1


def test_towers_of_other_weights_share_no_recording(clip):
    """Merged ones have their own; those that train read other weights in each step, and have none."""
    tower = clip.image
    merged = tower.merged(Prompt(adapters=low_rank(tower, "q")))
    assert merged.cuda_graphs is not tower.cuda_graphs
    trained = tower.trainable_copy().double()
    prompt = Prompt({1: draw(1, 2, tower.dim).requires_grad_()})
    for _ in range(3):
        part = trained.as_whole_tower()
        grad = torch.autograd.grad(part(images(draw(2, 3, 32, 32)), prompt).sum(), prompt.tokens[1])[0]
        assert grad.abs().sum() > 0
    assert Tape.made == 0


# --- methods ---

IN_IMAGES = [  # methods whose image passes are recorded
    "adapter", "adaptformer", "aper", "bitfit", "clip_lora", "clip_svd", "coda_prompt", "convpass", "coprompt",
    "dualprompt", "ease", "hideprompt", "ivlp", "l2p", "lae", "lora", "lora_fa", "maple", "mma", "mmrl", "mmrlpp",
    "mos", "pda", "plotpp", "promptkd", "promptsrc", "s_prompts", "sdlora", "slcapp", "ssf", "tuna", "two_stage",
    "vpt",
]  # fmt: skip
ADAPTERS_IN_TEXTS = ["clip_lora", "clip_svd", "mma", "two_stage"]


def train(name, stand_in, **changes):
    clip = build_tiny_clip()
    for tower in (clip.image, clip.text):
        tower.cuda_graphs = None if stand_in is None else CudaGraphCache(stand_in)
    case = MethodCase(resolve_class("method", name), SMALL.get(name, {}) | changes, clip, build_digits_lesson())
    method, losses = case.train(epochs=3, batch_size=8, drop_last=False)
    towers = (clip.image, clip.text) if stand_in else ()
    recorded = [any(tower.cuda_graphs.slots_by_kind.values()) for tower in towers]
    return losses, method.state_dict(), recorded


def check_training(name, stand_in=Tape, **changes):
    """Compare trainings bit for bit, over steps of two sizes, and return which towers recorded passes."""
    (losses, state, _), (found, after, recorded) = (train(name, one, **changes) for one in (None, stand_in))
    assert found == losses
    for key, value in state.items():
        assert torch.equal(after[key], value), key
    return recorded


@pytest.mark.parametrize("name", ["vpt", "clip_lora", "promptsrc"])
def test_a_few_train_the_same(name):
    assert check_training(name, Twin) == [True, name != "vpt"]


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGE_METHODS)
@pytest.mark.filterwarnings("ignore:no confident pseudo-label for")
def test_methods_train_the_same(name):
    in_images, in_texts = check_training(name)
    assert in_images == (name in IN_IMAGES)
    assert in_texts or name not in ADAPTERS_IN_TEXTS


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip_lora", "lora", "convpass", "adaptformer"])
def test_dropout_draws_the_same_masks(name):
    assert check_training(name, dropout=0.3) == [False, False]


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"dropout": 0.2}, {"bias": True}, {"deep": False}, {"token_dim": 8}])
def test_vpt(changes):
    assert check_training("vpt", **changes) == [True, False]
