"""Methods without golden vectors against twins that are written out on open_clip's own model, image by image."""

import copy

import pytest
import torch
import torch.nn.functional as F
from shared import images, relative
from written_out import clip_tokenizer

from vlprompt import methods as m
from vlprompt.core.batch import Batch, Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.images import ImageItem
from vlprompt.core.stage import Lesson
from vlprompt.layers.heads import LinearHead, TextHead
from vlprompt.runtime.seeding import make_generator

NAMES = (
    ClassName("cat", template="a photo of a {name}, a type of pet."),
    ClassName("red fox", template="a photo of a {name}, a type of pet."),
    ClassName("yak", template="a photo of a {name}, a type of pet."),
)
HAND = [f"a photo of a {n}, a type of pet." for n in NAMES]
LABELS = torch.tensor([0, 1, 2, 2, 1])


@pytest.fixture
def pixels():
    return torch.randn(5, 3, 32, 32, generator=make_generator("twins"))


@pytest.fixture
def encode(golden_model):
    """Texts by open_clip's own forward pass, 77 tokens each, un-normalised."""
    return lambda texts: golden_model.encode_text(clip_tokenizer()(texts))


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def split(pixels, labels=LABELS, names=NAMES):
    items = tuple(ImageItem(f"twin/{i}", lambda look, view, i=i: pixels[i]) for i in range(len(pixels)))
    return Split(items, tuple(labels.tolist()), names)


def begun(method, pixels):
    method.begin_lesson(Lesson(split(pixels)), make_generator(0))
    return method


def answer(method, inputs, names=NAMES):
    return method.eval()(inputs, method.prepare(names, method.precompute(names))).logits


def loss_of(method, pixels, tag):
    batch = Batch(images(pixels, tag), LABELS, NAMES)
    return sum(value for value, _ in method.train().loss_terms(batch, method.precompute(NAMES))[0].values())


def test_taskres(golden_clip, golden_model, encode, pixels):
    method = begun(m.TaskRes(golden_clip, alpha=0.3), pixels)
    method.residual.data = torch.randn(3, golden_clip.feature_dim, generator=make_generator(1))
    with torch.no_grad():
        weights = encode(HAND) + 0.3 * method.residual
        mine = golden_model.logit_scale.exp() * unit(golden_model.encode_image(pixels)) @ unit(weights).T
    assert relative(answer(method, images(pixels, "taskres")), mine) < 1e-4


def test_clap(golden_clip, golden_model, encode, pixels):
    method = begun(m.CLAP(golden_clip, weight=2.0), pixels)
    scale = float(golden_model.logit_scale.exp())
    with torch.no_grad():
        x, text = golden_model.encode_image(pixels), encode(HAND)
        sure = (scale * unit(x) @ unit(text).T).softmax(-1)
    firm = [sum(float(sure[i, c]) for i in range(5) if LABELS[i] == c) / int((c == LABELS).sum()) for c in range(3)]
    assert torch.allclose(method.penalty_weights, torch.tensor(firm), rtol=1e-4)
    moved = text + 0.1 * torch.randn(text.shape, generator=make_generator(2))
    method.prototypes.data = moved.clone()
    w = moved.clone().requires_grad_()
    near = sum(firm[c] * ((w[c] - text[c]) ** 2).sum() for c in range(3)) / 3
    loss = F.cross_entropy(scale * unit(x) @ unit(w).T, LABELS) + 2.0 * near
    loss.backward()
    mine = loss_of(method, pixels, "clap")
    mine.backward()
    assert relative(mine, loss.detach()) < 1e-4
    assert relative(method.prototypes.grad, w.grad) < 1e-4


def test_cross_modal(golden_clip, golden_model, encode, pixels):
    method = begun(m.CrossModal(golden_clip), pixels)
    with torch.no_grad():
        x, text = unit(golden_model.encode_image(pixels)), unit(encode(HAND))
    assert relative(method.weight, text) < 1e-4
    head = torch.nn.Linear(golden_clip.feature_dim, 3, bias=False)
    head.weight.data = text + 0.1 * torch.randn(text.shape, generator=make_generator(3))
    method.weight.data = head.weight.data.clone()
    scale = float(golden_model.logit_scale.exp())
    loss = 0.5 * F.cross_entropy(scale * head(x), LABELS) + 0.5 * F.cross_entropy(scale * head(text), torch.arange(3))
    loss.backward()
    mine = loss_of(method, pixels, "cross")
    mine.backward()
    assert relative(mine, loss.detach()) < 1e-4
    assert relative(method.weight.grad, head.weight.grad) < 1e-4


@pytest.mark.parametrize("make", [m.TaskRes, m.CLAP, m.CrossModal, lambda clip: m.TipAdapter(clip, search_scale=None)])
def test_a_class_that_was_not_trained_answers_by_its_text(golden_clip, pixels, make):
    method = begun(make(golden_clip), pixels)
    for p in method.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=make_generator(4))
    new = (ClassName("snow leopard"), NAMES[1], ClassName("teapot"))
    inputs = images(pixels, "unseen")
    found, plain = answer(method, inputs, new), answer(m.ZeroShot(golden_clip), inputs, new)
    assert torch.allclose(found[:, [0, 2]], plain[:, [0, 2]], atol=1e-3)
    assert not torch.allclose(found[:, 1], plain[:, 1], atol=1e-3)


def test_tpt_is_one_image_at_a_time(golden_clip, golden_model, pixels):
    """The authors' loop: a fresh context and AdamW for each image, the surest views, the entropy of the mean."""
    method = begun(m.TPT(golden_clip, augmentations=15, confident_fraction=0.25, lr=0.05), pixels)
    inputs = images(pixels, "tpt")
    mine = answer(method, inputs)
    texts, twin = [f"{{4}} {n}." for n in NAMES], []
    for i in range(5):
        ctx = method.ctx.detach().clone().requires_grad_()
        optimizer = torch.optim.AdamW([ctx], 0.05)
        seen = torch.stack([pixels[i], *(pixels.roll(k + 1, -1)[i] for k in range(15))])
        with torch.no_grad():
            x = unit(golden_model.encode_image(seen))
        from vlprompt.core.prompt import Prompt

        text = lambda c: unit(golden_clip.text(texts, Prompt(tokens={0: c[None]}))[0])  # noqa: E731  # held by goldens
        logits = golden_clip.scale * x @ text(ctx).T
        surest = torch.distributions.Categorical(logits=logits).entropy().argsort()[: int(16 * 0.25)]
        mean = logits[surest].softmax(-1).mean(0)
        torch.distributions.Categorical(probs=mean).entropy().backward()
        optimizer.step()
        with torch.no_grad():
            twin.append(golden_clip.scale * x[0] @ text(ctx).T)
    assert relative(mine, torch.stack(twin)) < 1e-4


def naive_vpt(visual, pixels, tokens):
    """open_clip's image tower with tokens behind the class token, replaced at every layer that has its own."""
    x = visual.conv1(pixels).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1) + visual.positional_embedding
    n = tokens.shape[2]
    x = visual.ln_pre(torch.cat([x[:, :1], tokens[0].expand(len(x), -1, -1), x[:, 1:]], 1))
    for i, block in enumerate(visual.transformer.resblocks):
        if 0 < i < len(tokens):
            x = torch.cat([x[:, :1], tokens[i].expand(len(x), -1, -1), x[:, 1 + n :]], 1)
        x = block(x)
    return visual.ln_post(x[:, 0]) @ visual.proj


@pytest.mark.parametrize("deep", [False, True])
def test_vpt_with_class_texts_and_with_a_linear_head(golden_clip, golden_model, encode, pixels, deep):
    method = begun(m.VPT(golden_clip.image, TextHead(golden_clip), n_tokens=3, deep=deep, dropout=0.0), pixels)
    assert len(method.tokens) == (golden_clip.image.depth if deep else 1)
    twin = method.tokens.detach().clone().requires_grad_()
    with torch.no_grad():
        text = unit(encode(HAND))
    logits = golden_clip.scale * unit(naive_vpt(golden_model.visual, pixels, twin)) @ text.T
    F.cross_entropy(logits, LABELS).backward()
    mine = loss_of(method, pixels, "vpt")
    mine.backward()
    assert relative(answer(method, images(pixels, "vpt")), logits.detach()) < 1e-4
    assert relative(method.tokens.grad, twin.grad) < 1e-4
    head = begun(m.VPT(golden_clip.image, LinearHead(), n_tokens=3, deep=deep, dropout=0.0), pixels)
    features = naive_vpt(golden_model.visual, pixels, head.tokens.detach())
    assert relative(answer(head, images(pixels, "vpt")), F.linear(features, head.head.weight, head.head.bias)) < 1e-4


def test_wrappers_go_around_each_other_and_around_other_designs(golden_clip, pixels):
    """KgCoOp around ProGrad around CoCoOp: each adds its own term, whichever is inside."""
    inner = m.CoCoOp(golden_clip, 2)
    whole = begun(m.KgCoOp(m.ProGrad(inner), weight=4.0), pixels)
    batch = Batch(images(pixels, "around"), LABELS, NAMES)
    terms, out = whole.loss_terms(batch, whole.precompute(NAMES))
    assert set(terms) == {"ce", "kl", "near"}
    alone, plain = inner.loss_terms(batch, inner.precompute(NAMES))
    assert torch.equal(terms["ce"][0], alone["ce"][0])
    assert torch.equal(out.logits, plain.logits)
    text = golden_clip.text(HAND)[0]
    near = 4.0 * (1 - F.cosine_similarity(plain.text_features, text, dim=-1).mean())
    assert relative(terms["near"][0], near.detach()) < 1e-4

    class WithoutTexts(m.ZeroShot):
        def forward(self, inputs, prepared):
            return super().forward(inputs, prepared)._replace(text_features=None)

    wrong = begun(m.KgCoOp(WithoutTexts(golden_clip)), pixels)
    with pytest.raises(ValueError, match=r"expected a method with text features.*Pass one whose classes are texts"):
        wrong.loss_terms(batch, wrong.precompute(NAMES))
    with pytest.raises(ValueError, match=r"expected a method on a CLIP, got .*Pass one that has a frozen CLIP"):
        m.KgCoOp(m.VPT(golden_clip.image, LinearHead())).reference_texts(NAMES)


def test_promptsrc_around_image_prompts_with_class_texts(golden_clip, pixels):
    method = begun(
        m.PromptSRC(m.VPT(golden_clip.image, TextHead(golden_clip), dropout=0.0), template="imagenet-7"), pixels
    )
    terms, _ = method.loss_terms(Batch(images(pixels, "src"), LABELS, NAMES), method.precompute(NAMES))
    assert {name for name, (value, _) in terms.items() if value.requires_grad} == {"ce", "answers", "image"}


def test_depths_beyond_the_tower_are_cut_and_told(golden_clip, pixels):
    method = begun(m.MaPLe(golden_clip, depth=9), pixels)
    assert len(method.ctx) == len(method.projections) == 3
    assert dict(method.clipped_settings) == {"depth": "clipped from 9 to 3 (the tower has 3 layers)"}
    assert all(torch.equal(method.projections[1].weight, f.weight) for f in method.projections[2:])
    with pytest.raises(ValueError, match=r"method\.depth: expected at least 1, got 0"):
        begun(m.MaPLe(golden_clip, depth=0), pixels)


@pytest.mark.slow
def test_tip_adapter_chooses_on_validation_images(golden_clip, pixels):
    """The first best point of the authors' grid, found by looking at every one of them."""
    val = split(torch.randn(9, 3, 32, 32, generator=make_generator("val")), torch.arange(9) % 3)
    method = m.TipAdapter(golden_clip, augmentations=1, search_scale=(7.0, 3.0))
    method.begin_lesson(Lesson(split(pixels), val), make_generator(0))
    before = copy.deepcopy(method)
    method.end_lesson(Lesson(split(pixels), val))
    best, where = -1.0, None
    inputs = next(val.batches(9)).inputs
    prepared = before.prepare(NAMES, before.precompute(NAMES))
    for i in range(200):
        for k in range(20):
            alpha, beta = k * (3 - 0.1) / 20 + 0.1, i * (7 - 0.1) / 200 + 0.1
            before.alpha_beta = torch.tensor([alpha, beta])
            right = (before(inputs, prepared).logits.argmax(1) == torch.tensor(val.labels)).float().mean()
            if right > best:
                best, where = float(right), (alpha, beta)
    assert torch.allclose(method.alpha_beta, torch.tensor(where), atol=1e-5)
    unchanged = m.TipAdapter(golden_clip, 2.0, 3.0)
    unchanged.begin_lesson(Lesson(split(pixels)), make_generator(0))
    unchanged.end_lesson(Lesson(split(pixels)))
    assert unchanged.alpha_beta.tolist() == [2.0, 3.0]


def test_low_rank_updates_stand_where_they_are_asked_for(golden_clip, pixels):
    method = begun(m.CLIPLoRA(golden_clip, ("image",), ("out", "up"), layers=(1,)), pixels)
    assert set(method.adapters) == {"image"}
    assert set(method.adapters["image"]) == {"1/out", "1/up"}
    with pytest.raises(ValueError, match=r"method.layers: expected layers 0 to 2 .* got "):
        begun(m.CLIPLoRA(golden_clip, layers=(7,)), pixels)


def test_descriptions_of_classes(golden_clip, encode, pixels, tmp_path):
    path = tmp_path / "texts.json"
    path.write_text('{"cat": ["a cat with {whiskers}", "a small cat"], "red_fox": "a fox", "Yak": ["a yak"]}')
    found = m.ZeroShot(golden_clip, descriptions=str(path)).precompute(NAMES)
    with torch.no_grad():
        texts = unit(encode(["a cat with {whiskers}", "a small cat", "a fox", "a yak"]))
    assert relative(found, torch.stack([texts[:2].mean(0), texts[2], texts[3]])) < 1e-4
    form = m.ZeroShot(golden_clip, "{name}, which is {description}", str(path)).precompute(NAMES)
    with torch.no_grad():
        assert relative(form[2:], unit(encode(["yak, which is a yak"]))) < 1e-4
    with pytest.raises(ValueError, match="expected a description of 'teapot', got none"):
        m.ZeroShot(golden_clip, descriptions=str(path)).precompute((ClassName("teapot"),))
    with pytest.raises(ValueError, match=r"method.descriptions: expected a file of descriptions, got "):
        m.ZeroShot(golden_clip, descriptions=str(tmp_path / "none.json")).precompute(NAMES)


def test_template_ensembles(golden_clip, encode, pixels):
    found = m.ZeroShot(golden_clip, "imagenet-7").precompute(NAMES)
    from open_clip.zero_shot_metadata import SIMPLE_IMAGENET_TEMPLATES

    with torch.no_grad():
        twin = torch.stack(
            [unit(encode([write(str(n)) for write in SIMPLE_IMAGENET_TEMPLATES])).mean(0) for n in NAMES]
        )
    assert relative(found, twin) < 1e-4


@pytest.mark.parametrize("make", [m.IVLP, m.MaPLe])
def test_words_begin_the_first_layer_alone(golden_clip, pixels, make):
    method = begun(make(golden_clip, depth_text=3) if make is m.IVLP else make(golden_clip, depth=3), pixels)
    words = golden_clip.text.init_context(None, method.init_text)
    assert torch.equal(method.ctx[0].detach(), words)
    later = torch.cat([c.detach().flatten() for c in list(method.ctx)[1:]])
    assert 0.015 < float(later.std()) < 0.025
    assert len(later.unique()) == len(later)


def test_prompts_in_one_tower_alone(golden_clip, pixels):
    text, image = (begun(m.IVLP(golden_clip, **n), pixels) for n in ({"n_image_tokens": 0}, {"n_text_tokens": 0}))
    assert (len(text.image_tokens), len(image.ctx)) == (0, 0)
    inputs = images(pixels, "alone")
    plain = answer(m.ZeroShot(golden_clip), inputs)
    assert torch.equal(
        text(inputs, text.prepare(NAMES, text.precompute(NAMES))).image_features, golden_clip.image(inputs)
    )
    for p in image.parameters():
        p.data.zero_()
    assert image(inputs, image.prepare(NAMES, image.precompute(NAMES))).logits.shape == plain.shape
    assert torch.equal(image.precompute(NAMES), golden_clip.text(HAND)[0])
    with pytest.raises(ValueError, match="ivlp: expected tokens in at least one tower, got 0 in both"):
        begun(m.IVLP(golden_clip, 0, 0), pixels)
