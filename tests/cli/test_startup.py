"""A run on the embedded CLIP starts without the libraries that take seconds to import."""

import json
import subprocess
import sys

import pytest
import torch

from vlprompt.backbones import glyph
from vlprompt.backbones.open_clip.byte_pairs import BytePairTokenizer
from vlprompt.backbones.open_clip.plain_clip import PlainClip
from vlprompt.backbones.open_clip.towers import wrap_clip
from vlprompt.engine.optimizers import build_optimizer
from vlprompt.engine.train_config import TrainConfig

SLOW = {"open_clip", "timm", "transformers", "torchvision", "sklearn", "scipy", "matplotlib", "peft", "datasets"}
TEXTS = (
    "a photo of a dog.",
    "A photo of a Dog,  2 caf\u00e9s.",
    "I'm they'RE it's 1234 ---",
    "  <b>&amp;amp;</b> \u201cquoted\u201d \u65e5\u672c\u8a9e \U0001f642 \u00c3\u00a9 \u200b \u0130\u017f",
    "<start_of_text> <END_OF_TEXT>",
    "",
    "word " * 60,
)


TWO_RUNS = """
import sys
from vlprompt.backbones import load
from vlprompt.cli.app import main
load("glyph/random")
for words in (["coop", "digits", "--memory-limit", "100"], ["vpt", "digits", "--backbone", "glyph-vit"]):
    try:
        main(["run", *words, "--shots", "1", "train.epochs=1", "--out", sys.argv[1], "--feature-cache", "none"])
    except SystemExit as end:
        assert not end.code, words
"""


def test_a_first_run_imports_nothing_slow(tmp_path):
    """Nor does the plan of its memory, which a limit asks for."""
    words = [sys.executable, "-X", "importtime", "-c", TWO_RUNS, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "import time:" in line}
    assert "torch" in modules
    assert not SLOW & {name.partition(".")[0] for name in modules}
    assert not {name for name in modules if name.startswith("torch._dynamo")}
    results = [json.loads(path.read_text()) for path in tmp_path.rglob("result.json")]
    assert [result["summary"]["accuracy"] > 50 for result in results] == [True, True]


def test_the_tokenizer_is_that_of_open_clip():
    from open_clip.tokenizer import SimpleTokenizer

    ours, theirs = BytePairTokenizer(32), SimpleTokenizer(context_length=32)
    assert (ours.sot_token_id, ours.eot_token_id) == (theirs.sot_token_id, theirs.eot_token_id)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text), text
    assert torch.equal(ours(list(TEXTS)), theirs(list(TEXTS)))


def test_the_embedded_clip_is_that_of_open_clip():
    """The same state, the same identity (so the same keys in the feature cache), the same features."""
    from open_clip.model import CLIP
    from open_clip.tokenizer import SimpleTokenizer

    model = glyph._read_embedded_model()
    vision = {"image_size": 32, "patch_size": 8, "width": 128, "layers": 6, "head_width": 32, "mlp_ratio": 2.0}
    text = {"context_length": 32, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 4, "mlp_ratio": 2.0}
    theirs = CLIP(embed_dim=128, vision_cfg=vision, text_cfg=text)
    assert list(theirs.state_dict()) == list(model.state_dict())
    theirs.load_state_dict(model.state_dict())
    theirs.visual.preprocess_cfg = model.visual.preprocess_cfg
    clip = glyph.load_glyph("cpu")
    other = wrap_clip(theirs, SimpleTokenizer(context_length=32), "glyph", "cpu")
    assert clip.image.key == other.image.key
    assert (clip.scale, clip.n_parameters) == (other.scale, other.n_parameters)
    assert torch.equal(clip.text(list(TEXTS[:5])), other.text(list(TEXTS[:5])))
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(clip.image.encode(pixels), other.image.encode(pixels))
    with torch.no_grad():
        reference = theirs.eval().encode_image(pixels)
    assert torch.allclose(clip.image.encode(pixels), reference, atol=1e-5)


@pytest.mark.parametrize(
    "changes", [{}, {"embed_dim": 16, "vision_cfg": {"mlp_ratio": 2.0}, "text_cfg": {"layers": 1}}]
)
@pytest.mark.parametrize("seed", [0, 3])
def test_the_random_clip_is_that_of_open_clip(changes, seed):
    """Bit for bit, with the same identity, and the caller's random numbers go on as if it had drawn none."""
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
    from open_clip.model import CLIP

    before = torch.get_rng_state()
    clip = glyph.build_tiny_clip(seed=seed, **changes)
    assert torch.equal(torch.get_rng_state(), before)
    config = {k: {**v, **changes.get(k, {})} if isinstance(v, dict) else v for k, v in glyph.TINY_CONFIG.items()}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        theirs = CLIP(**config | {k: v for k, v in changes.items() if not isinstance(v, dict)})
    ours = glyph._build_tiny_model(seed, **changes)
    assert type(ours) is PlainClip
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    other = wrap_clip(theirs, BytePairTokenizer(40), "glyph/random", "cpu")
    assert (clip.image.key, clip.scale, clip.n_parameters) == (other.image.key, other.scale, other.n_parameters)
    pixels = clip.image.preprocessing
    assert (pixels.mean, pixels.std) == (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)


def test_a_random_clip_that_is_not_plain_is_built_by_open_clip():
    from open_clip.model import CLIP

    assert type(glyph._build_tiny_model(0, text_cfg={"no_causal_mask": True})) is CLIP
    assert type(glyph._build_tiny_model(0, vision_cfg={"layers": [1, 1, 1, 1], "width": 16, "head_width": 64})) is CLIP


@pytest.mark.parametrize("n_parameters", [2, 12])  # few are changed one by one, many in one call
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_optimizers_are_those_of_torch(name, n_parameters):
    """Bit for bit, over steps with groups of their own weight decay, and after a state was saved and loaded."""
    config = TrainConfig(optimizer=name, lr=0.1, weight_decay=0.01)
    classes = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    options = {"momentum": config.momentum} if name == "sgd" else {"betas": config.betas, "eps": config.eps}
    values = torch.randn(n_parameters, 5, 3, generator=torch.Generator().manual_seed(0))
    decays = (0.01, 0.0) * (n_parameters // 2)

    def make():
        return [torch.nn.Parameter(v.clone()) for v in values]

    mine, theirs = make(), make()
    groups = [{"params": [p], "weight_decay": decay} for p, decay in zip(mine, decays, strict=True)]
    ours = build_optimizer(groups, config, torch.device("cpu"))
    groups = [{"params": [p], "weight_decay": decay} for p, decay in zip(theirs, decays, strict=True)]
    reference = classes[name](groups, lr=0.1, **options)
    assert isinstance(ours, classes[name])
    generator = torch.Generator().manual_seed(1)
    for step in range(6):
        for a, b in zip(mine, theirs, strict=True):
            a.grad = torch.randn(5, 3, generator=generator)
            b.grad = a.grad.clone()
        ours.step(), reference.step()
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True)), step
        if step == 2:
            ours.load_state_dict(ours.state_dict())
    assert all(p.requires_grad for p in mine)
