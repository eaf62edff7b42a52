"""Scores of unknown classes, and the local features of image towers, against LoCoOp's code and twins written out."""

import pytest
import torch
from shared import OWN_GOLDEN, golden, golden_clip_of, images, relative

import vlprompt
from vlprompt.backbones.towers.image import ImageTower
from vlprompt.cli.options import ScoreOption
from vlprompt.core.method import Method, Output
from vlprompt.core.prompt import Prompt
from vlprompt.engine.unknown_scores import SCORES, make_score_fn, match_concepts
from vlprompt.layers.heads import LinearHead
from vlprompt.methods import IVLP, CLIPAdapter, CoOp, Linear, TipAdapter

CASES = ["locoop-end", "locoop-csc-middle"]


@pytest.fixture(scope="module")
def clip():
    return golden_clip_of(OWN_GOLDEN)


def answer_of(name):
    told, a = golden(name, OWN_GOLDEN)
    return told, a, Output(a["logits"], image_features=a["image_features_raw"], text_features=a["text_features_raw"])


@pytest.mark.parametrize("case", CASES)
def test_local_features_are_the_authors(case, clip):
    _, a, output = answer_of(case)
    local = clip.image(images(a["images"], case), output="local")
    assert relative(local, a["local_features_raw"]) < 1e-5
    unit = clip.unit
    assert relative(clip.scale * unit(local) @ unit(output.text_features).T, a["logits_local"]) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_mcm_and_gl_mcm_are_the_authors(case, clip):
    told, a, output = answer_of(case)
    method, inputs = CoOp(clip), images(a["images"], f"{case}/scores")
    mcm, gl = make_score_fn(method, ["mcm", "gl-mcm"])(inputs, output).T
    assert mcm.dtype == torch.float64
    assert (mcm + a["mcm.T1"]).abs().max() < 1e-6
    assert (gl + a["glmcm.T1"]).abs().max() < 1e-6
    for t in told["hyperparameters"]["temperatures"]:
        own = match_concepts(a["logits"].double(), t)
        local = match_concepts(a["logits_local"].double(), t).amax(1)
        assert (own + a[f"mcm.T{t}"]).abs().max() < 1e-6
        assert (own + local + a[f"glmcm.T{t}"]).abs().max() < 1e-6


def test_at_the_scale_of_100_mcm_is_the_softmax_of_plain_cosines():
    cosines = torch.rand(5, 3, dtype=torch.double) - 0.5
    plain = (cosines.exp() / cosines.exp().sum(1, keepdim=True)).amax(1)
    assert torch.allclose(match_concepts(100 * cosines), plain, atol=1e-12)


def test_scores_of_logits_as_written_out(clip):
    logits = torch.tensor([[1.0, 2.0, -1.0], [0.0, 0.0, 0.0]])
    output = Output(logits)
    msp, largest, energy = make_score_fn(CoOp(clip), ["msp", "maxlogit", "energy"], 2.0)(None, output).T
    e = (logits.double() / 2).exp()
    assert torch.allclose(msp, (e / e.sum(1, keepdim=True)).amax(1), atol=1e-12)
    assert largest.tolist() == [2.0, 0.0]
    assert torch.allclose(energy, logits.double().exp().sum(1).log(), atol=1e-12)  # no temperature


def test_texts_of_each_image_have_cosines_of_their_own(clip):
    _, a, output = answer_of("locoop-end")
    each = output._replace(text_features=output.text_features.expand(4, -1, -1))
    inputs = images(a["images"], "each")
    compute = make_score_fn(CoOp(clip), ["mcm", "gl-mcm"])
    assert torch.allclose(compute(inputs, each), compute(inputs, output), atol=1e-7)


def test_what_has_no_cosines_is_refused(clip):
    _, a, output = answer_of("locoop-end")
    inputs, compute = images(a["images"], "none"), make_score_fn(CoOp(clip), ["mcm"])
    shifted = output._replace(logits=output.logits + 3)  # SigLIP's bias changes no ranking
    assert torch.allclose(compute(inputs, shifted), compute(inputs, output), atol=1e-7)
    for other in (output._replace(text_features=None), output._replace(image_features=None),
                  output._replace(logits=-output.logits),
                  output._replace(logits=output.logits + torch.eye(4, 6))):  # fmt: skip
        with pytest.raises(ValueError, match=r"score mcm: expected a method whose logits are scaled cosines .* CoOp"):
            compute(inputs, other)
    with pytest.raises(ValueError, match=r"score mcm: .* Linear, whose logits are not"):
        make_score_fn(Linear(clip.image, LinearHead()), ["mcm"])(inputs, output)


def test_patches_of_changed_image_features_are_refused(clip):
    _, a, output = answer_of("locoop-end")
    image = output.image_features + 0.1 * output.image_features.roll(1, 1)
    other = output._replace(image_features=image, logits=clip.logits(image, output.text_features))
    with pytest.raises(ValueError, match="score gl-mcm: expected a method that leaves the features of images"):
        make_score_fn(CoOp(clip), ["gl-mcm"])(images(a["images"], "changed"), other)


def test_an_unknown_score_names_the_nearest(clip):
    with pytest.raises(ValueError, match="score: expected a known name, got 'gl_mcm'; did you mean 'gl-mcm'"):
        make_score_fn(CoOp(clip), ["gl_mcm"])
    assert list(SCORES) == ["msp", "maxlogit", "energy", "mcm", "gl-mcm"]
    assert ", ".join(SCORES) in ScoreOption.__metadata__[0].help  # which is shown without importing them


def test_towers_without_local_features_say_so(clip):
    _, a, _output = answer_of("locoop-end")
    opaque = ImageTower(lambda x: x.flatten(1)[:, :8], 8, clip.image.preprocessing, "opaque#1", torch.device("cpu"))
    with pytest.raises(ValueError, match="expected a block-wise tower"):
        opaque(images(a["images"], "opaque"), output="local")
    averaging = clip.image.with_preprocessing(clip.image.preprocessing)
    averaging.n_pooled_tokens = None
    with pytest.raises(ValueError, match="expected features that are read from the class token alone for output"):
        averaging(images(a["images"], "averaging"), output="local")
    with pytest.raises(ValueError, match=r"expected output pooled, .*, local, regions, got 'rows'"):
        clip.image(images(a["images"], "rows"), output="rows")


def test_no_patch_of_the_last_block_sees_another_one(clip):
    """One layer alone: a patch's local feature depends on its own pixels only."""
    tower = clip.image.with_preprocessing(clip.image.preprocessing)
    tower.blocks, tower.depth = tower.blocks[-1:], 1
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    changed = pixels.clone()
    changed[..., :8, :8] += 1  # the first patch
    first, second = (tower(images(x, f"own/{k}"), output="local")[0] for k, x in enumerate((pixels, changed)))
    same = (first - second).abs().amax(1) == 0
    assert same.tolist() == [False] + [True] * 15
    tokens = [tower(images(x, f"own/{k}"), output="tokens")[0] for k, x in enumerate((pixels, changed))]
    assert ((tokens[0] - tokens[1]).abs().amax(1) > 0).all()


def test_a_prompt_of_earlier_layers_reaches_local_features(clip):
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    tokens = torch.randn(1, 2, clip.image.dim, generator=torch.Generator().manual_seed(2))
    inputs = images(pixels, "prompted")
    plain = clip.image(inputs, output="local")
    prompted = clip.image(inputs, Prompt(tokens={0: tokens}), output="local")
    assert prompted.shape == plain.shape == (2, 16, 64)
    assert (prompted - plain).abs().max() > 1e-4


def test_every_score_is_finite_or_refused_for_methods_on_a_clip():
    glyph = vlprompt.load("glyph/random")
    data = vlprompt.data.open_data("digits")
    lesson = vlprompt.tasks.FewShot(data, 1).lesson
    inputs = next(data.test.select(range(6)).batches(6)).inputs
    has = {}
    for cls in (CoOp, IVLP, CLIPAdapter, TipAdapter):
        method: Method = cls(glyph)
        method.begin_lesson(lesson, torch.Generator().manual_seed(0))
        method.eval()
        has[cls.__name__] = []
        with torch.no_grad():
            output = method(inputs, method.prepare(data.test.names, method.precompute(data.test.names)))
            for name in SCORES:
                try:
                    scores = make_score_fn(method, [name])(inputs, output)
                except ValueError:
                    continue
                assert scores.shape == (6, 1)
                assert bool(scores.isfinite().all())
                has[cls.__name__].append(name)
    plain = ["msp", "maxlogit", "energy"]
    assert has == {"CoOp": [*plain, "mcm", "gl-mcm"], "IVLP": [*plain, "mcm"], "CLIPAdapter": [*plain, "mcm"],
                   "TipAdapter": plain}  # fmt: skip
