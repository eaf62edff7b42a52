"""PLOT and PLOT++ against numbers that their authors' own code computed, and what each pair's own stop changes."""

from dataclasses import replace

import pytest
import torch
from shared import golden, golden_cases, images, relative
from written_out import library

from vlprompt import methods as m
from vlprompt.backbones.open_clip.towers import wrap_clip
from vlprompt.core.batch import Batch, Split
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.layers.class_texts import fill_class_texts
from vlprompt.layers.optimal_transport import compute_transport_plan


class GivenFeatures:
    """An image tower whose features (1 + M, B, E), the pooled one first, are given."""

    def __init__(self, tower, features):
        self.features, self.feature_dim, self.device = features, tower.feature_dim, tower.device

    def require_patch_features(self):
        pass

    def read(self, inputs, prompt, outputs):
        assert not prompt
        found = {"pooled": self.features[0], "patches": self.features[1:].transpose(0, 1)}
        return tuple(found[output] for output in outputs)


def plot(clip, h, arrays):
    given = replace(clip, image=GivenFeatures(clip.image, arrays["local_features"]))
    return m.PLOT(given, h["N"], h["N_CTX"], pooled=h["dataset"] == "ImageNet", epsilon=h["eps"])


def plotpp(clip, h, arrays):
    return m.PLOTpp(clip, h["templates"], h["M"], h["N_CTX_V"], epsilon=h["eps"])


MAKE = {"plot": plot, "plotpp": plotpp}


def begun(case, clip):
    """The method with the authors' values and as many rounds as their batch took, the trained parameters, a batch."""
    told, arrays = golden(case)
    names, h = tuple(told["classnames"]), told["hyperparameters"]
    method = MAKE[case.partition("-")[0]](clip, h, arrays)
    method.begin_lesson(Lesson(Split((), (), names)), torch.Generator().manual_seed(0))
    values = {"ctx": "prompt_learner.ctx", "image_ctx": "prompt_learner.ctx_vision"}
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            if f"frozen.{values[name]}" in arrays:
                assert torch.equal(parameter, arrays[f"frozen.{values[name]}"])  # the words of the sentences
            else:
                parameter.copy_(arrays[f"param.{values[name]}"])
    if case.startswith("plotpp"):
        method.is_joint.fill_(h["MODEL_UPD"] == "joint")
        assert h["TRADE_OFF"] != (h["MODEL_UPD"] == "joint")
    idle = {id(p) for p in method.idle_parameters()}
    trained = {values[name]: p for name, p in method.named_parameters() if id(p) not in idle}
    assert trained.keys() == {key.removeprefix("param.") for key in arrays if key.startswith("param.")}
    method.max_rounds, method.threshold = int(arrays["sinkhorn_rounds"]), 0.0
    pixels = arrays.get("images", torch.zeros(len(arrays["labels"]), 3, 8, 8))
    return method, trained, Batch(images(pixels, case), arrays["labels"], names), arrays, told


def answer(method, batch):
    with torch.no_grad():
        return method.eval()(batch.inputs, method.prepare(batch.names, method.precompute(batch.names)))


def cosines(method, batch, arrays):
    """(B, M, N, C) of the two sets of a vector."""
    text = method.prepare(batch.names, method.precompute(batch.names))
    text = text[0] if isinstance(text, tuple) else text
    image = arrays["local_features"][1:] if "local_features" in arrays else arrays["image_features_raw"]
    unit = method.clip.unit
    return torch.einsum("mbe,nce->bmnc", unit(image), unit(text)).detach()


@pytest.mark.parametrize("case", golden_cases(*MAKE))
def test_the_authors_numbers(authors_clip, case):
    method, trained, batch, arrays, told = begun(case, authors_clip)
    fixed = method.precompute(batch.names)
    terms, out = method.train().loss_terms(batch, fixed)
    assert list(terms) == ["ce"]
    terms["ce"][0].backward()
    text = method.prepare(batch.names, fixed)
    plan = compute_transport_plan(cosines(method, batch, arrays), method.epsilon, method.max_rounds, 0.0)
    errors = {
        "loss": relative(terms["ce"][0], arrays["loss"]),
        "logits": relative(out.logits, arrays["logits"]),
        "text": relative(text[0] if isinstance(text, tuple) else text, arrays["text_features_raw"]),
        "transport": relative(plan.movedim(-1, 1).flatten(0, 1), arrays["transport"]),
        "mean text": relative(out.text_features, arrays["text_features_raw"].mean(0)),
    }
    if "image_features_raw" in arrays:
        errors["mean image"] = relative(out.image_features, arrays["image_features_raw"].mean(0))
    errors |= {f"grad {name}": relative(p.grad, arrays[f"grad.{name}"]) for name, p in trained.items()}
    assert all(p.grad is None for p in method.idle_parameters())
    torch.optim.SGD([*trained.values()], told["sgd"]["lr"]).step()
    errors |= {f"after {name}": relative(p, arrays[f"after.{name}"]) for name, p in trained.items()}
    method.max_rounds = int(arrays["sinkhorn_rounds_after"])
    errors["logits after"] = relative(answer(method, batch).logits, arrays["logits_after"])
    print(case, max(errors.values()))
    assert max(errors.values()) < 1e-4, {k: v for k, v in errors.items() if v >= 1e-4}


@pytest.mark.parametrize("case", golden_cases(*MAKE))
def test_a_pair_that_stops_by_itself_answers_nearly_as_the_authors_batch(authors_clip, case):
    method, _, batch, arrays, told = begun(case, authors_clip)
    method.max_rounds, method.threshold = told["hyperparameters"]["max_iter"], told["hyperparameters"]["thresh"]
    logits = answer(method, batch).logits
    assert torch.equal(logits.argmax(1), arrays["logits"].argmax(1))
    assert relative(logits, arrays["logits"]) < 0.02


def test_the_texts_are_the_authors(authors_clip):
    """EuroSAT's third sentence leaves "of" before the name, its fourth "a"."""
    told, _ = golden("plotpp-joint")
    method, _, batch, *_ = begun("plotpp-joint", authors_clip)
    fixed = method.precompute(batch.names)
    assert [indices for _, indices in fixed] == [[0, 1], [2], [3]]
    assert [str(texts[0]) for texts, _ in fixed] == ["{5} cat.", "{5} of cat.", "{5} a cat."]
    assert method.ctx.shape[1] == told["hyperparameters"]["n_ctx_effective"]


def test_contexts_keep_their_order_where_ends_of_sentences_come_again(tiny):
    texts = ("a photo of a", "this is a photo of", "one small picture of a", "one picture of a")
    method = begin(m.PLOTpp(tiny, texts))
    found, _ = method.prepare(("cat", "dog"), method.precompute(("cat", "dog")))
    for text, ctx, rest in zip(found, method.ctx, ("", " of", " a", ""), strict=True):
        alone = tiny.text(fill_class_texts(f"{{ctx}}{rest} {{name}}.", ("cat", "dog"), 4), Prompt({0: ctx[None]}))
        assert relative(text, alone[0]) < 1e-5


# --- stages, other towers, bad input ---


def begin(method, names=("cat", "dog"), index=0):
    method.begin_lesson(Lesson(Split((), (), names), index=index), torch.Generator().manual_seed(0))
    return method


def batch_of(size=32):
    pixels = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    return Batch(images(pixels, f"plot/{size}"), torch.tensor([0, 1, 1]), ("cat", "dog"))


def test_the_second_stage_of_plotpp(tiny):
    method, batch = begin(m.PLOTpp(tiny)), batch_of()
    assert method.idle_parameters() == [method.ctx]
    assert method.schedule_starts(10) == (0, 5)
    first = answer(method, batch)
    method.end_step(4, 10)
    assert not method.is_joint
    method.end_step(5, 10)
    assert method.is_joint
    assert method.idle_parameters() == []
    joint = answer(method, batch)
    pooled = tiny.logits(first.image_features, first.text_features)
    assert torch.allclose(first.logits, joint.logits + pooled, atol=1e-4)
    assert begin(method, index=1).idle_parameters() == [method.ctx]  # each lesson has both stages
    method.share = 1.0
    method.end_step(10, 10)
    assert not method.is_joint  # no step is left for it


def test_the_contexts_of_plot_begin_apart(tiny):
    ctx = begin(m.PLOT(tiny, n_ctx=4)).ctx
    assert ctx.shape == (4, 4, tiny.text.dim)
    assert len({row.sum().item() for row in ctx}) == 4


@pytest.mark.parametrize("pooled", [False, True])
def test_plot_on_the_towers_that_have_patches(tiny, pooled):
    resnet = wrap_clip(
        *library({"vision_cfg": {"image_size": 96, "layers": [1] * 4, "width": 8, "patch_size": None}}), "rn"
    )
    for clip, size in ((tiny, 32), (resnet, 96)):
        method, batch = begin(m.PLOT(clip, n_ctx=2, pooled=pooled)), batch_of(size)
        text = method.prepare(batch.names, method.precompute(batch.names))
        rows = clip.unit(clip.image(batch.inputs, output="patches"))
        plan = compute_transport_plan(torch.einsum("bme,nce->bmnc", rows, clip.unit(text)), 0.1, 100, 0.01)
        expected = clip.scale * torch.einsum("bmnc,bme,nce->bc", plan, rows, clip.unit(text))
        if pooled:
            expected = expected + clip.logits(clip.image(batch.inputs), text.mean(0))
        found = method(batch.inputs, text)
        assert torch.allclose(found.logits, expected, atol=1e-3)
        assert (found.image_features is None) != pooled


@pytest.mark.parametrize("changes", [{"pool_type": "avg"}, {"qk_norm": True}])
def test_a_backbone_without_features_of_patches(changes):
    clip = wrap_clip(*library({"vision_cfg": changes}), "open_clip:other/x")
    with pytest.raises(ValueError, match=r"^image tower of open_clip:other/x: expected .*features .*got .*\. Use a"):
        begin(m.PLOT(clip))


def test_plotpp_needs_blocks():
    resnet = {"image_size": 64, "layers": [1] * 4, "width": 8, "patch_size": None}
    with pytest.raises(ValueError, match="image tower of rn: expected a block-wise tower"):
        begin(m.PLOTpp(wrap_clip(*library({"vision_cfg": resnet}), "rn")))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda clip: m.PLOT(clip, n_prompts=0), "method.n_prompts: expected at least 1, got 0"),
        (lambda clip: m.PLOT(clip, n_ctx=0), "method.n_ctx: expected at least 1 prompt token, got 0"),
        (lambda clip: m.PLOT(clip, epsilon=0.0), "method.epsilon: expected at least 0.025, got 0.0"),
        (lambda clip: m.PLOT(clip, max_rounds=0), "method.max_rounds: expected at least 1, got 0"),
        (lambda clip: m.PLOT(clip, threshold=-1.0), "method.threshold: expected at least 0, got -1.0"),
        (lambda clip: m.PLOTpp(clip, n_image_prompts=0), "method.n_image_prompts: expected at least 1, got 0"),
        (lambda clip: m.PLOTpp(clip, n_image_tokens=0), "method.n_image_tokens: expected at least 1, got 0"),
        (lambda clip: m.PLOTpp(clip, share=1.5), "method.share: expected at most 1, got 1.5"),
        (lambda clip: m.PLOTpp(clip, epsilon=0.01), "method.epsilon: expected at least 0.025, got 0.01"),
        (lambda clip: m.PLOTpp(clip, ()), r"method.init_texts: expected sentences .* got \[\] with \[\]"),
        (lambda clip: m.PLOTpp(clip, ("",)), r"method.init_texts: expected sentences .* got \[''\] with \[\]"),
        (lambda clip: m.PLOTpp(clip, ("a photo of a", "this is a")), r"equally many tokens, got .* with \[4, 3\]"),
    ],
)
def test_settings_out_of_range(tiny, make, message):
    with pytest.raises(ValueError, match=message):
        begin(make(tiny))
