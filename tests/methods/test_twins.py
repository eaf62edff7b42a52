"""Methods without golden vectors against twins that are written out on open_clip's own model, image by image."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import images, relative

from vlprompt import methods as m
from vlprompt.core.batch import Batch, Split
from vlprompt.core.class_names import Name
from vlprompt.core.images import Item
from vlprompt.core.stage import Lesson
from vlprompt.layers.heads import Linear, Texts
from vlprompt.runtime.seeding import generator

NAMES = (
    Name("cat", hand="a photo of a {name}, a type of pet."),
    Name("red fox", hand="a photo of a {name}, a type of pet."),
    Name("yak", hand="a photo of a {name}, a type of pet."),
)
HAND = [f"a photo of a {n}, a type of pet." for n in NAMES]
LABELS = torch.tensor([0, 1, 2, 2, 1])


@pytest.fixture
def pixels():
    return torch.randn(5, 3, 32, 32, generator=generator("twins"))


@pytest.fixture
def encode(golden_model):
    """Texts by open_clip's own forward pass, 77 tokens each, un-normalised."""
    from open_clip.tokenizer import SimpleTokenizer

    return lambda texts: golden_model.encode_text(SimpleTokenizer()(texts))


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def split(pixels, labels=LABELS, names=NAMES):
    items = tuple(Item(f"twin/{i}", lambda look, view, i=i: pixels[i]) for i in range(len(pixels)))
    return Split(items, tuple(labels.tolist()), names)


def begun(method, pixels):
    method.begin(Lesson(split(pixels)), generator(0))
    return method


def answer(method, inputs, names=NAMES):
    return method.eval()(inputs, method.prepare(names, method.fixed(names))).logits


def loss_of(method, pixels, tag):
    batch = Batch(images(pixels, tag), LABELS, NAMES)
    return sum(value for value, _ in method.train().terms(batch, method.fixed(NAMES))[0].values())


def test_taskres(golden_clip, golden_model, encode, pixels):
    method = begun(m.TaskRes(golden_clip, alpha=0.3), pixels)
    method.residual.data = torch.randn(3, golden_clip.width, generator=generator(1))
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
    assert torch.allclose(method.firm, torch.tensor(firm), rtol=1e-4)
    moved = text + 0.1 * torch.randn(text.shape, generator=generator(2))
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
    head = torch.nn.Linear(golden_clip.width, 3, bias=False)
    head.weight.data = text + 0.1 * torch.randn(text.shape, generator=generator(3))
    method.weight.data = head.weight.data.clone()
    scale = float(golden_model.logit_scale.exp())
    loss = 0.5 * F.cross_entropy(scale * head(x), LABELS) + 0.5 * F.cross_entropy(scale * head(text), torch.arange(3))
    loss.backward()
    mine = loss_of(method, pixels, "cross")
    mine.backward()
    assert relative(mine, loss.detach()) < 1e-4
    assert relative(method.weight.grad, head.weight.grad) < 1e-4


@pytest.mark.parametrize("make", [m.TaskRes, m.CLAP, m.CrossModal, lambda clip: m.TipAdapter(clip, search=None)])
def test_a_class_that_was_not_trained_answers_by_its_text(golden_clip, pixels, make):
    method = begun(make(golden_clip), pixels)
    for p in method.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=generator(4))
    new = (Name("snow leopard"), NAMES[1], Name("teapot"))
    inputs = images(pixels, "unseen")
    found, plain = answer(method, inputs, new), answer(m.ZeroShot(golden_clip), inputs, new)
    assert torch.allclose(found[:, [0, 2]], plain[:, [0, 2]], atol=1e-3)
    assert not torch.allclose(found[:, 1], plain[:, 1], atol=1e-3)


def test_tpt_is_one_image_at_a_time(golden_clip, golden_model, pixels):
    """The authors' loop: a fresh context and AdamW for each image, the surest views, the entropy of the mean."""
    method = begun(m.TPT(golden_clip, views=15, keep=0.25, lr=0.05), pixels)
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
    method = begun(m.VPT(golden_clip.image, Texts(golden_clip), n_tokens=3, deep=deep, dropout=0.0), pixels)
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
    head = begun(m.VPT(golden_clip.image, Linear(), n_tokens=3, deep=deep, dropout=0.0), pixels)
    features = naive_vpt(golden_model.visual, pixels, head.tokens.detach())
    assert (
        relative(answer(head, images(pixels, "vpt")), F.linear(features, head.reader.weight, head.reader.bias)) < 1e-4
    )


def test_wrappers_go_around_each_other_and_around_other_designs(golden_clip, pixels):
    """KgCoOp around ProGrad around CoCoOp: each adds its own term, whichever is inside."""
    inner = m.CoCoOp(golden_clip, 2)
    whole = begun(m.KgCoOp(m.ProGrad(inner), weight=4.0), pixels)
    batch = Batch(images(pixels, "around"), LABELS, NAMES)
    terms, out = whole.terms(batch, whole.fixed(NAMES))
    assert set(terms) == {"ce", "kl", "near"}
    alone, plain = inner.terms(batch, inner.fixed(NAMES))
    assert torch.equal(terms["ce"][0], alone["ce"][0])
    assert torch.equal(out.logits, plain.logits)
    text = golden_clip.text(HAND)[0]
    near = 4.0 * (1 - F.cosine_similarity(plain.text, text, dim=-1).mean())
    assert relative(terms["near"][0], near.detach()) < 1e-4

    class WithoutTexts(m.ZeroShot):
        def forward(self, inputs, prepared):
            return super().forward(inputs, prepared)._replace(text=None)

    wrong = begun(m.KgCoOp(WithoutTexts(golden_clip)), pixels)
    with pytest.raises(ValueError, match="has none; give it a method whose classes are texts"):
        wrong.terms(batch, wrong.fixed(NAMES))
    with pytest.raises(ValueError, match="holds none; give it a method on a CLIP"):
        m.KgCoOp(m.VPT(golden_clip.image, Linear())).own(NAMES)


def test_promptsrc_around_image_prompts_with_class_texts(golden_clip, pixels):
    method = begun(
        m.PromptSRC(m.VPT(golden_clip.image, Texts(golden_clip), dropout=0.0), template="imagenet-7"), pixels
    )
    terms, _ = method.terms(Batch(images(pixels, "src"), LABELS, NAMES), method.fixed(NAMES))
    assert {name for name, (value, _) in terms.items() if value.requires_grad} == {"ce", "answers", "image"}


def test_depths_beyond_the_tower_are_cut_and_told(golden_clip, pixels):
    method = begun(m.MaPLe(golden_clip, depth=9), pixels)
    assert len(method.ctx) == len(method.maps) == 3
    assert dict(method.cuts) == {"depth": "9 cut to 3, all that the tower has"}
    assert all(torch.equal(method.maps[1].weight, f.weight) for f in method.maps[2:])
    with pytest.raises(ValueError, match=r"method\.depth must be at least 1, not 0"):
        begun(m.MaPLe(golden_clip, depth=0), pixels)


def test_tip_adapter_chooses_on_validation_images(golden_clip, pixels):
    """The first best point of the authors' grid, found by looking at every one of them."""
    val = split(torch.randn(9, 3, 32, 32, generator=generator("val")), torch.arange(9) % 3)
    method = m.TipAdapter(golden_clip, views=1, search=(7.0, 3.0))
    method.begin(Lesson(split(pixels), val), generator(0))
    before = copy.deepcopy(method)
    method.end(Lesson(split(pixels), val))
    best, where = -1.0, None
    inputs = next(val.batches(9)).inputs
    prepared = before.prepare(NAMES, before.fixed(NAMES))
    for i in range(200):
        for k in range(20):
            alpha, beta = k * (3 - 0.1) / 20 + 0.1, i * (7 - 0.1) / 200 + 0.1
            before.chosen = torch.tensor([alpha, beta])
            right = (before(inputs, prepared).logits.argmax(1) == torch.tensor(val.labels)).float().mean()
            if right > best:
                best, where = float(right), (alpha, beta)
    assert torch.allclose(method.chosen, torch.tensor(where), atol=1e-5)
    unchanged = m.TipAdapter(golden_clip, 2.0, 3.0)
    unchanged.begin(Lesson(split(pixels)), generator(0))
    unchanged.end(Lesson(split(pixels)))
    assert unchanged.chosen.tolist() == [2.0, 3.0]


def test_low_rank_updates_stand_where_they_are_asked_for(golden_clip, pixels):
    method = begun(m.CLIPLoRA(golden_clip, ("image",), ("out", "up"), layers=(1,)), pixels)
    assert set(method.parts) == {"image"}
    assert set(method.parts["image"]) == {"1/out", "1/up"}
    with pytest.raises(ValueError, match="layers 0 to 2, none of"):
        begun(m.CLIPLoRA(golden_clip, layers=(7,)), pixels)


def test_descriptions_of_classes(golden_clip, encode, pixels, tmp_path):
    path = tmp_path / "texts.json"
    path.write_text('{"cat": ["a cat with {whiskers}", "a small cat"], "red_fox": "a fox", "Yak": ["a yak"]}')
    found = m.ZeroShot(golden_clip, descriptions=str(path)).fixed(NAMES)
    with torch.no_grad():
        texts = unit(encode(["a cat with {whiskers}", "a small cat", "a fox", "a yak"]))
    assert relative(found, torch.stack([texts[:2].mean(0), texts[2], texts[3]])) < 1e-4
    form = m.ZeroShot(golden_clip, "{name}, which is {description}", str(path)).fixed(NAMES)
    with torch.no_grad():
        assert relative(form[2:], unit(encode(["yak, which is a yak"]))) < 1e-4
    with pytest.raises(ValueError, match="no description of 'teapot'"):
        m.ZeroShot(golden_clip, descriptions=str(path)).fixed((Name("teapot"),))
    with pytest.raises(ValueError, match="there is no file of descriptions"):
        m.ZeroShot(golden_clip, descriptions=str(tmp_path / "none.json")).fixed(NAMES)


def test_template_ensembles(golden_clip, encode, pixels):
    found = m.ZeroShot(golden_clip, "imagenet-7").fixed(NAMES)
    from open_clip.zero_shot_metadata import SIMPLE_IMAGENET_TEMPLATES

    with torch.no_grad():
        twin = torch.stack(
            [unit(encode([write(str(n)) for write in SIMPLE_IMAGENET_TEMPLATES])).mean(0) for n in NAMES]
        )
    assert relative(found, twin) < 1e-4


@pytest.mark.parametrize("make", [m.IVLP, m.MaPLe])
def test_words_begin_the_first_layer_alone(golden_clip, pixels, make):
    method = begun(make(golden_clip, depth_text=3) if make is m.IVLP else make(golden_clip, depth=3), pixels)
    words = golden_clip.text.context(None, method.init)
    assert torch.equal(method.ctx[0].detach(), words)
    later = torch.cat([c.detach().flatten() for c in list(method.ctx)[1:]])
    assert 0.015 < float(later.std()) < 0.025
    assert len(later.unique()) == len(later)


def test_prompts_in_one_tower_alone(golden_clip, pixels):
    text, image = (begun(m.IVLP(golden_clip, **n), pixels) for n in ({"n_image": 0}, {"n_text": 0}))
    assert (len(text.tokens), len(image.ctx)) == (0, 0)
    inputs = images(pixels, "alone")
    plain = answer(m.ZeroShot(golden_clip), inputs)
    assert torch.equal(text(inputs, text.prepare(NAMES, text.fixed(NAMES))).image, golden_clip.image(inputs))
    for p in image.parameters():
        p.data.zero_()
    assert image(inputs, image.prepare(NAMES, image.fixed(NAMES))).logits.shape == plain.shape
    assert torch.equal(image.fixed(NAMES), golden_clip.text(HAND)[0])
    with pytest.raises(ValueError, match="ivlp needs tokens in one tower at least"):
        begun(m.IVLP(golden_clip, 0, 0), pixels)
