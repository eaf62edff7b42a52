"""PDA, PromptStyler and DAMP against numbers that their authors' own code computed, and what each of them refuses."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from shared import golden, golden_cases, images, relative
from test_domain_methods import NAMES, beside, items, taught, whole
from written_out import clip_tokenizer

from vlprompt import methods as m
from vlprompt.backbones import load
from vlprompt.backbones.open_clip.towers import wrap_clip
from vlprompt.core.batch import Batch, Split, Unlabelled
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.engine.loop import fit
from vlprompt.engine.train_config import TrainConfig
from vlprompt.experiments.domain_pairs import expand_domain_pairs
from vlprompt.layers.class_texts import fill_class_texts
from vlprompt.methods.promptstyler import compute_arcface_loss
from vlprompt.runtime.seeding import make_generator
from vlprompt.tasks.domain import Domain

PROMPT, DOMAINS = "prompt_learner.", ("art", "real_world")


# --- PDA ---
PDA_WORDS = {2: "{ctx} of a {name}.", 3: "{ctx} a {name}."}
PDA_RENAMED = {"pre_project.": "attention.into.", "post_project.0.": "attention.out."}


def ours_of_pda(method, theirs):
    """Our tensors that are the authors' `theirs`, in its order."""
    name = theirs.removeprefix(PROMPT).removeprefix("attn_block.")
    if name == "ctx":
        return [method.ctx[0]]
    if name == "deep_ctx":
        return [*method.ctx[1:]]
    if name == "deep_vctx":  # its last row is never read
        return [*method.image_ctx]
    if name.startswith("proj."):
        return [method.get_parameter(f"projections.0.{name[5:]}")]
    if name.startswith("deep_prompt_proj."):
        layer, kind = name.removeprefix("deep_prompt_proj.").split(".")
        return [method.get_parameter(f"projections.{int(layer) + 1}.{kind}")]
    for old, new in PDA_RENAMED.items():
        name = name.replace(old, new)
    return [method.state_dict(keep_vars=True)[name]]


def rows_of_pda(theirs, mine, value):
    return [*value[: len(mine)]] if theirs.endswith(("deep_ctx", "deep_vctx")) else [value]


def pda(clip, case):
    """The method with the authors' values, as far into the training as theirs was, and its banks filled by itself."""
    told, arrays = golden(case)
    h, names = told["hyperparameters"], tuple(told["classnames"])
    method = m.PDA(clip, h["N_CTX"], 12 if h["T_DEEP"] else 1, h["VP"], h["SHARE_LAYER"][1] + 2, h["K"],
                   h["beta_s"], h["confidence"], h["EPOCH"] + 1, h["WARM_UP"], PDA_WORDS[h["N_CTX"]])  # fmt: skip
    train = Split(items(arrays["bank_images_x"], f"{case} x"), tuple(arrays["bank_labels_x"].tolist()), names)
    lesson = Lesson(train, None, Unlabelled(items(arrays["bank_images_u"], f"{case} u"), names), domains=DOMAINS)
    method.begin_lesson(lesson, make_generator(0))
    method.epoch += h["epoch"]
    with torch.no_grad():
        for key, value in arrays.items():
            kind, _, name = key.partition(".")
            if kind in ("param", "buffer"):
                mine = ours_of_pda(method, name)
                for tensor, row in zip(mine, rows_of_pda(name, mine, value), strict=True):
                    tensor.copy_(row)
    batch = Batch(images(arrays["images_x"], f"{case} bx"), arrays["labels_x"], names)
    return method, replace(batch, unlabelled=beside(arrays["images_u"], names, f"{case} bu")), arrays, told


@pytest.mark.parametrize("case", golden_cases("pda"))
def test_the_authors_pda(authors_clip, case):
    method, batch, arrays, told = pda(authors_clip, case)
    fixed, target = method.precompute(batch.names), batch.unlabelled.inputs
    answer = lambda: method.eval()(target, method.prepare(batch.names, fixed))  # noqa: E731
    errors = {"eval": relative(answer().logits, arrays["eval.logits"])}
    for name in ("source", "target"):
        bank = getattr(method, f"{name}_bank")
        for mine, theirs in zip(bank.confidence, arrays[f"{name}_probs"], strict=True):
            assert torch.allclose(mine, theirs.sort(descending=True).values, atol=1e-5)
        errors[f"{name} bank"] = relative(bank.class_features(), arrays[f"{name}_bank"].mean(1))
    p, sure = method.pseudo_labels(target, fixed)
    assert torch.equal(sure.float(), arrays["mask"].float())
    assert 0 < sure.sum() <= len(sure) - (case == "pda-multimodal")
    assert torch.equal(p.argmax(1), arrays["pseudo_label"])
    terms, out = method.train().loss_terms(batch, fixed)
    sum(value for value, _ in terms.values()).backward()
    assert terms["target"][1] == float(sure.sum())
    errors |= {
        "text": relative(out.text_features, arrays["text_features_raw"]),
        "image": relative(out.image_features, arrays["image_features_raw"]),
        "loss_x": relative(terms["source"][0], arrays["loss_x"]),
        "loss_u": relative(terms["target"][0], arrays["loss_u"]),
        "answer": relative(out.logits, arrays["train.logits_x"] + 0.5 * arrays["train.logits_c_x"]),
    }
    for key, value in arrays.items():
        kind, _, name = key.partition(".")
        if kind in ("grad", "buffer_after"):
            mine = ours_of_pda(method, name)
            theirs = torch.stack(rows_of_pda(name, mine, value))
            errors[key] = relative(torch.stack([x.grad if kind == "grad" else x for x in mine]), theirs)
    torch.optim.SGD(method.parameters(), told["sgd"]["lr"]).step()
    for key, value in arrays.items():
        if key.startswith("after."):
            mine = ours_of_pda(method, key[6:])
            errors[key] = relative(torch.stack([*mine]), torch.stack(rows_of_pda(key, mine, value)))
    errors["eval after"] = relative(answer().logits, arrays["eval.logits_after"])
    print(case, max(errors.values()))
    assert max(errors.values()) < 1e-4, {k: v for k, v in errors.items() if v >= 1e-4}


# --- PromptStyler ---
@pytest.mark.parametrize("case", golden_cases("promptstyler"))
def test_the_authors_promptstyler(authors_clip, case):
    told, arrays = golden(case)
    h, names, lr = told["hyperparameters"], tuple(told["classnames"]), told["sgd"]["lr"]
    template = {
        "A S style of a": "A {ctx} style of a {name}.",
        "A x x x painting of the": "A {ctx} painting of the {name}.",
    }
    method = m.PromptStyler(authors_clip, h["K"], h["N_CTX"], template[h["CTX_INIT"]])
    method.begin_lesson(Lesson(Split((), (), names)), make_generator(0))
    for i in range(h["K"]):
        method.styles[i] = arrays[f"param.style.{i}"]
    method.weight.copy_(arrays["param.classifier.weight"])
    texts, unit = method.list_texts(names), authors_clip.unit
    encode = lambda texts: authors_clip.text(texts, Prompt(tokens={0: method.styles}))  # noqa: E731
    content = authors_clip.text(fill_class_texts("{name}", names))[0]
    alone = encode(texts[:1])[:, 0]
    errors = {
        "style": relative(alone, arrays["style_features_raw"]),
        "content": relative(content, arrays["content_features_raw"]),
        "both": relative(encode(texts[1:]).flatten(0, 1), arrays["style_content_features_raw"]),
    }
    for i in range(h["K"]):
        style = method.styles[i].clone().requires_grad_(True)
        losses = method.compute_style_losses(style, unit(alone[:i]), texts, unit(content))
        for name, loss in zip(("loss_style", "loss_content"), losses, strict=True):
            errors[f"{name} {i}"] = float((loss.detach() - arrays[f"{name}.{i}"]).abs())
        if i == h["stepped"]:
            errors["loss"] = relative(losses[0] + losses[1], arrays["loss"])
            [grad] = torch.autograd.grad(losses[0] + losses[1], [style])
            errors["grad"] = relative(grad, arrays[f"grad.style.{i}"])
            stepped = style.detach() - lr * grad
    method.styles[h["stepped"]] = stepped
    features = method.compute_text_features(names)
    errors["features"] = relative(features, arrays["train_features"])
    assert torch.equal(torch.arange(len(features)) % len(names), arrays["train_labels"])
    answer = lambda: method(images(arrays["images"], case), method.precompute(names)).logits  # noqa: E731
    errors["logits"] = relative(answer(), arrays["logits"])
    rows, weight = arrays["batch"], method.weight.clone().requires_grad_(True)
    loss = method.compute_classifier_loss(features[rows], rows % len(names), weight)
    [grad] = torch.autograd.grad(loss, [weight])
    errors |= {
        "classifier": relative(loss, arrays["loss_classifier"]),
        "its grad": relative(grad, arrays["grad.classifier.weight"]),
    }
    loss = compute_arcface_loss(features[rows] @ weight.T, rows % len(names))  # they leave W un-normalised
    [arcface_grad] = torch.autograd.grad(loss, [weight])
    errors |= {"arcface": relative(loss, arrays["arcface.loss"]), "its": relative(arcface_grad, arrays["arcface.grad"])}
    method.weight = method.weight - lr * grad
    errors["logits after"] = relative(answer(), arrays["logits_after"])
    print(case, max(errors.values()))
    assert max(errors.values()) < 1e-4, {k: v for k, v in errors.items() if v >= 1e-4}


@pytest.mark.parametrize("loss", ["cross_entropy", "arcface"])
def test_promptstyler_learns_from_class_names_alone(golden_clip, loss):
    """Styles move apart and stay true to the names, and the classifier knows the texts that it learned from."""
    lesson = Lesson(Split((), (), NAMES))
    method = m.PromptStyler(golden_clip, 3, style_steps=8, style_lr=0.5, epochs=60, lr=1.0, loss=loss)
    method.begin_lesson(lesson, make_generator(0))
    start = method.styles.clone()

    def measure():
        texts, unit = method.list_texts(NAMES), golden_clip.unit
        content = unit(golden_clip.text(list(NAMES))[0])
        alone = unit(golden_clip.text(texts[:1], Prompt(tokens={0: method.styles}))[:, 0])
        parts = [method.compute_style_losses(s, alone[:i], texts, content) for i, s in enumerate(method.styles)]
        return sum(float(a + b) for a, b in parts)

    with torch.no_grad():
        before, weight = measure(), method.weight
        method.end_lesson(lesson)
        assert measure() < before - 1e-3
    assert not torch.equal(method.styles, start)
    features = method.compute_text_features(NAMES)
    losses = [method.compute_classifier_loss(features, torch.arange(9) % 3, w) for w in (weight, method.weight)]
    assert losses[1] < losses[0] - 0.05
    weight = method.precompute(NAMES)
    assert torch.equal(weight, golden_clip.unit(method.weight) if loss == "arcface" else method.weight)
    state = method.state_dict()
    again = m.PromptStyler(golden_clip, 3, style_steps=8, style_lr=0.5, epochs=60, lr=1.0, loss=loss)
    again.restore([lesson], state)  # nothing is trained here
    assert torch.equal(again.precompute(NAMES[::-1]), weight.flip(0))
    with pytest.raises(ValueError, match="promptstyler: no weights for class 'forget-me-not'"):
        again.precompute((*NAMES, "forget-me-not"))


def descend(x, gradient, lr, steps, epochs=None):
    """SGD with momentum 0.9, weight decay 5e-4 and a rate that falls by a cosine, written out.

    gradient(x, i) is that of step i; the rate changes after every `steps / epochs` steps, after each without epochs.
    """
    velocity, epochs = 0, epochs or steps
    for i in range(steps):
        rate = lr * (1 + math.cos(math.pi * (i * epochs // steps) / epochs)) / 2
        velocity = 0.9 * velocity + gradient(x, i) + 5e-4 * x
        x = x - rate * velocity
    return x


@pytest.mark.parametrize("loss", ["cross_entropy", "arcface"])
def test_promptstyler_is_the_long_way_written_out(golden_model, loss):
    clip = wrap_clip(copy.deepcopy(golden_model).double(), clip_tokenizer(), "styles")
    unit = clip.unit
    lesson, n = Lesson(Split((), (), NAMES)), len(NAMES)
    method = m.PromptStyler(clip, 3, style_steps=5, style_lr=0.2, epochs=4, batch_size=4, lr=0.5, loss=loss)
    method.begin_lesson(lesson, make_generator(0))
    assert method.weight.abs().max() <= clip.feature_dim**-0.5 < 2 * method.weight.abs().max()
    method.styles, method.weight = method.styles.double(), method.weight.double()
    styles, weight, seed = method.styles.clone(), method.weight.clone(), method.order_seed
    method.end_lesson(lesson)

    texts = fill_class_texts("A {ctx} style of a {name}.", NAMES, 1)
    alone = method.list_texts(NAMES)[:1]
    encode = lambda texts, style: unit(clip.text(texts, Prompt(tokens={0: style[None]}))[0])  # noqa: E731
    content, earlier = unit(clip.text(list(NAMES))[0]), []

    def style_gradient(style, i):
        style = style.clone().requires_grad_()
        likeness = sum(((encode(alone, style)[0] * one).sum().abs() for one in earlier), torch.zeros(()).double())
        right = (encode(texts, style) @ content.T).log_softmax(1).diagonal()
        return torch.autograd.grad(likeness / max(len(earlier), 1) - right.mean(), style)[0]

    for i in range(3):
        styles[i] = descend(styles[i], style_gradient, 0.2, 5)
        earlier.append(encode(alone, styles[i])[0].detach())
    assert relative(method.styles, styles) < 1e-11
    features = torch.cat([encode(texts, style).detach() for style in styles])
    orders = [torch.randperm(3 * n, generator=make_generator(seed, epoch)).split(4) for epoch in range(4)]
    rows = [one for order in orders for one in order]

    def weight_gradient(weight, i):
        weight, labels = weight.clone().requires_grad_(), rows[i] % n
        cosines = features[rows[i]] @ (unit(weight) if loss == "arcface" else weight).T
        if loss == "arcface":
            right = torch.nn.functional.one_hot(labels, n).bool()
            cosines = 5 * torch.where(right, (cosines.acos() + 0.5).cos(), cosines)
        return torch.autograd.grad(F.cross_entropy(cosines, labels), weight)[0]

    weight = descend(weight, weight_gradient, 0.5, len(rows), 4)
    assert relative(method.weight, weight) < 1e-11


def test_a_finished_promptstyler_is_left_alone_by_a_lesson_without_new_classes(golden_clip):
    method = m.PromptStyler(golden_clip, 2, style_steps=2, epochs=2)
    for index, names in enumerate((NAMES, NAMES, (*NAMES, "forget-me-not"))):
        lesson = Lesson(Split((), (), names), index=index, total=3)
        method.begin_lesson(lesson, make_generator(index))
        before = method.weight.clone(), method.styles.clone()
        method.end_lesson(lesson)
        assert torch.equal(method.weight, before[0]) == (index == 1)
        assert torch.equal(method.styles, before[1]) == (index > 0)
    assert len(method.precompute((*NAMES, "forget-me-not"))) == 4


# --- DAMP ---
DAMP_RENAMED = {
    "prompt_learner.gamma_t": "gamma.text", "prompt_learner.gamma_v": "gamma.image", "prompt_learner.ctx": "ctx",
    "context_decoder.memory_proj": "decoder.memory", "context_decoder.text_proj": "decoder.query",
    "context_decoder.out_proj": "decoder.out", "context_decoder.decoder": "decoder.layers",
    "self_attn.": "self_attention.", "cross_attn.": "cross_attention.", "q_proj": "q", "k_proj": "k", "v_proj": "v",
    "tion.proj": "tion.out", "norm1": "norms.0", "norm2": "norms.1", "norm3": "norms.2",
}  # fmt: skip


def ours_of_damp(method, theirs):
    for old, new in DAMP_RENAMED.items():
        theirs = theirs.replace(old, new)
    return method.get_parameter(theirs)


def two_views(weak, strong, tag):
    inputs = images(weak, tag)
    inputs._augment_fn = lambda kind, index: images(strong, f"{tag} strong")
    return inputs


def damp(clip, case):
    told, arrays = golden(case)
    h, names = told["hyperparameters"], tuple(told["classnames"])
    d = h["decoder"]
    method = m.DAMP(clip, h["N_CTX"], h["CSC"], d["width"], d["heads"], d["layers"], 0.0, h["TAU"], h["U"])
    method.begin_lesson(Lesson(Split((), (), names), domains=DOMAINS), make_generator(0))
    assert [p.tolist() for p in method.gamma.values()] == [[pytest.approx(0.01)]] * 2
    method.end_epoch(h["epoch"] - 1, h["max_epoch"])
    with torch.no_grad():
        for key, value in arrays.items():
            if key.startswith("param."):
                parameter = ours_of_damp(method, key[6:])
                parameter.copy_(value.view_as(parameter))
    assert {id(ours_of_damp(method, k[6:])) for k in arrays if k[:6] == "param."} == {
        id(p) for p in method.parameters()
    }
    target = Batch(two_views(arrays["images_u"], arrays["images_u2"], f"{case} u"), torch.empty(0).long(), names)
    source = two_views(arrays["images_x"], arrays["images_x2"], f"{case} x")
    return method, Batch(source, arrays["labels_x"], names, unlabelled=target), arrays, told


@pytest.mark.parametrize("case", golden_cases("damp"))
def test_the_authors_damp(authors_clip, case):
    method, batch, arrays, told = damp(authors_clip, case)
    fixed, target = method.precompute(batch.names), batch.unlabelled.inputs
    text, context = method.prepare(batch.names, fixed)
    zero_shot = authors_clip.logits(authors_clip.image(target), fixed.zero_shot_text)
    strong = method(target.augment("", 0), (text, context))
    p, sure = method.pseudo_labels(target, fixed)
    assert torch.equal(sure.float(), arrays["mask"].float())
    assert 0 < sure.sum() < len(sure) or case != "damp"
    assert torch.equal(p.argmax(1), arrays["pseudo_label"])
    terms, out = method.train().loss_terms(batch, fixed)
    sum(value for value, _ in terms.values()).backward()
    read = (out.text_features - text) / method.gamma["text"]
    errors = {
        "text": relative(text, arrays["text_features_raw"]),
        "context": relative(context, arrays["text_context"]),
        "zero shot": relative(zero_shot, arrays["zero_shot_logits_u"]),
        "sure": relative(p.max(1).values, arrays["pseudo_prob_max"]),
        "logits_x": relative(out.logits, arrays["logits_x"]),
        "logits_u2": relative(strong.logits, arrays["logits_u2"]),
        "read": relative(read, arrays["text_diff"]),
        "loss_x": relative(F.cross_entropy(out.logits, batch.labels), arrays["loss_x"]),  # theirs are of one view
        "contrast": relative(terms["contrast"][0], arrays["loss_ind_x"]),
        "information": relative(terms["information"][0], arrays["loss_im"]),
        "loss": relative(sum(value for value, _ in terms.values()), arrays["loss"]),
    }
    for kind in ("grad", "after"):
        for key, value in arrays.items():
            if key.startswith(f"{kind}."):
                parameter = ours_of_damp(method, key.removeprefix(f"{kind}."))
                errors[key] = relative((parameter.grad if kind == "grad" else parameter).view_as(value), value)
        if kind == "grad":
            torch.optim.SGD(method.parameters(), told["sgd"]["lr"]).step()
    answer = method.eval()(target, method.prepare(batch.names, fixed)).logits
    errors["logits after"] = relative(answer, arrays["logits_u_after"])
    print(case, max(errors.values()))
    assert max(errors.values()) < 1e-4, {k: v for k, v in errors.items() if v >= 1e-4}


# --- what they refuse, and odd lessons ---
def pda_of(clip, **more):
    return m.PDA(clip, **{"depth": 2, "coupled_depth": 1, "threshold": 0.0, **more})


@pytest.mark.parametrize(("make", "said"), [
    (lambda clip: pda_of(clip, coupled_depth=0), "method.coupled_depth: expected at least 1, got 0"),
    (lambda clip: pda_of(clip, bank_size=0), "method.bank_size: expected at least 1, got 0"),
    (lambda clip: pda_of(clip, threshold=-0.1), "method.threshold: expected at least 0"),
    (lambda clip: m.DAMP(clip, 2, width=10, n_heads=4), "method.width: expected a multiple of method.n_heads=4"),
    (lambda clip: m.DAMP(clip, 2, augment="blur"), "method.augment: expected a known augmentation, got 'blur'"),
    (lambda clip: m.PromptStyler(clip, 0), "method.n_styles: expected at least 1, got 0"),
    (lambda clip: m.PromptStyler(clip, style_steps=0), "method.style_steps: expected at least 1, got 0"),
])  # fmt: skip
def test_settings_out_of_their_range(golden_clip, make, said):
    with pytest.raises(ValueError, match=said):
        make(golden_clip).begin_lesson(taught(), make_generator(0))


def test_pda_refuses_a_lesson_without_a_target_and_a_batch_of_one(golden_clip):
    with pytest.raises(ValueError, match="got no target"):
        pda_of(golden_clip).begin_lesson(taught(targets=0, domains=("art",)), make_generator(0))
    method = pda_of(golden_clip)
    method.begin_lesson(taught(), make_generator(0))
    batch = whole(taught(sources=1))
    with pytest.raises(ValueError, match="expected batches of at least 2 images, because batch norm"):
        method.train().loss_terms(batch, method.precompute(batch.names))


def test_pda_without_a_confident_target_image_learns_from_the_source_alone(golden_clip):
    method = pda_of(golden_clip, threshold=1.1)
    with pytest.warns(UserWarning, match="no target image is trained on"):
        method.begin_lesson(taught(), make_generator(0))
    batch = whole(taught())
    terms, _ = method.train().loss_terms(batch, method.precompute(batch.names))
    assert terms["target"][1] == terms["target"][0].item() == 0
    assert terms["source"][1] == 5
    early = pda_of(golden_clip, source_epochs=1)
    early.begin_lesson(taught(), make_generator(0))
    counts = []
    for epoch in range(2):
        counts.append(early.train().loss_terms(batch, early.precompute(batch.names))[0]["target"][1])
        early.end_epoch(epoch, 2)
    assert counts == [0, 7]


def test_the_first_values_of_pda(golden_clip):
    """The maps of the deeper layers begin as one, that of the first layer apart; tokens have a deviation of 0.02."""
    method = pda_of(golden_clip, n_ctx=40, depth=3, coupled_depth=3)
    method.begin_lesson(taught(), make_generator(0))
    first, second, third = (p.weight for p in method.projections)
    assert torch.equal(second, third)
    assert second is not third
    assert not torch.equal(first, second)
    method = pda_of(golden_clip, n_ctx=40, depth=3, coupled_depth=1)
    method.begin_lesson(taught(), make_generator(0))
    assert [float(own.std()) for own in method.image_ctx] == [pytest.approx(0.02, rel=0.1)] * 2


def test_pda_labels_by_itself_after_its_zero_shot_epochs(golden_clip):
    method = pda_of(golden_clip, zero_shot_epochs=1)
    method.begin_lesson(taught(), make_generator(0))
    batch = whole(taught())
    fixed, inputs = method.precompute(batch.names), batch.unlabelled.inputs
    zero_shot = golden_clip.logits(golden_clip.image(inputs), fixed[1]).softmax(1)
    assert torch.equal(method.pseudo_labels(inputs, fixed)[0], zero_shot)
    method.end_epoch(0, 2)
    with torch.no_grad():
        prompted = golden_clip.logits(method.encode_images(inputs), method.prepare(batch.names, fixed)).softmax(1)
    assert torch.allclose(method.pseudo_labels(inputs, fixed)[0], prompted)
    assert not torch.allclose(prompted, zero_shot)


def test_banks_of_pda_grow_with_a_stream(golden_clip):
    """A source first, then its target with a class more; what the first lesson left stays."""
    method, first = pda_of(golden_clip), taught(targets=0, total=2)
    method.begin_lesson(first, make_generator(0))
    source = method.source_bank.slots.clone()
    assert not method.target_bank.slots.any()
    second = taught(sources=0, names=(*NAMES[::-1], "forget-me-not"), index=1, total=2)
    method.begin_lesson(second, make_generator(1))
    assert torch.equal(method.source_bank.slots[:3], source)
    assert method.source_bank.class_ids == (*NAMES, "forget-me-not")
    assert method.target_bank.slots.any()
    counts = (method.target_bank.confidence > 0).sum(1)
    assert 0 < counts.sum() <= 7
    again = pda_of(golden_clip)
    again.restore([first, second], method.state_dict())
    assert torch.equal(again.target_bank.slots, method.target_bank.slots)


def test_a_lesson_without_images_by_the_task():
    """No source in generalisation is no image; None there is all other domains, and "none" elsewhere is as before."""
    task = Domain(source="none", target="digits", setting="generalise")
    [stage] = task.stages()
    assert len(stage.lesson.train) == 0
    assert stage.lesson.unlabelled is None
    assert len(stage.tests["target"]) > 500
    assert task.protocol["sources"] == []
    assert task.protocol["train_images"] == 0
    [[source, _]] = expand_domain_pairs({"setting": "generalise"}, "none", "digits")
    assert source == 'task.source="none"'
    [[source, _]] = expand_domain_pairs({}, "none", "digits")
    assert source == "task.source=null"
    with pytest.raises(ValueError, match=r"task.source: expected a domain, got none. Name one by --source"):
        list(Domain(source="none", target="digits").stages())
    coop = m.CoOp(load("glyph/random"), 2)
    coop.begin_lesson(stage.lesson, make_generator(0))
    with pytest.raises(ValueError, match="expected training images, got none"):
        list(fit(coop, stage.lesson, TrainConfig(epochs=1), 1))


def damp_of(clip, **more):
    return m.DAMP(
        clip, **{"n_ctx": 2, "width": 8, "n_heads": 2, "n_layers": 1, "threshold": 0.0, "dropout": 0.0, **more}
    )


def test_damp_trusts_itself_more_from_epoch_to_epoch(golden_clip):
    method = damp_of(golden_clip)
    method.begin_lesson(taught(), make_generator(0))
    batch = whole(taught())
    fixed, inputs = method.precompute(batch.names), batch.unlabelled.inputs
    zero_shot = golden_clip.logits(golden_clip.image(inputs), fixed.zero_shot_text).softmax(1)
    assert torch.equal(method.pseudo_labels(inputs, fixed)[0], zero_shot)
    method.end_epoch(0, 4)
    own = method.eval()(inputs, method.prepare(batch.names, fixed)).logits.softmax(1)
    assert torch.allclose(method.pseudo_labels(inputs, fixed)[0], 0.25 * own + 0.75 * zero_shot)
    method.begin_lesson(taught(index=1, total=2), make_generator(0))
    assert float(method.own_share) == 0
    text = golden_clip.text([f"a real world photo of a {name}." for name in NAMES])[0]  # the target's name is in it
    assert relative(fixed.zero_shot_text, text) < 1e-6


@pytest.mark.parametrize("scale", [60.0, 1e5])
def test_damp_is_informed_by_target_images_that_are_not_certain(golden_clip, scale):
    """An image with a pseudo-label of probability 1 counts for nothing in the information term."""
    method = damp_of(replace(golden_clip, scale=torch.tensor(scale)))
    method.begin_lesson(taught(), make_generator(0))
    batch = whole(taught())
    fixed, target = method.precompute(batch.names), batch.unlabelled.inputs
    top = method.pseudo_labels(target, fixed)[0].max(1).values
    assert ((top > 0.5) & (top < 1)).sum() > 1 if scale == 60 else (top == 1).sum() > 1
    p = method(target, method.prepare(batch.names, fixed)).logits.softmax(1)[top < 1]
    terms = method.loss_terms(batch, fixed)[0]
    mean = (p.sum(0) / max(len(p), 1)) + 1e-5
    entropy = -(p * (p + 1e-5).log()).sum() / max(len(p), 1)
    expected = entropy + (mean * mean.log()).sum()
    assert terms["information"][0].item() == pytest.approx(expected.item(), abs=1e-5)


def test_class_specific_contexts_of_damp_grow_with_a_stream(golden_clip):
    method, first = damp_of(golden_clip, class_specific=True), taught(total=2)
    method.begin_lesson(first, make_generator(0))
    ctx, decoder = method.ctx.detach().clone(), copy.deepcopy(method.decoder.state_dict())
    second = taught(names=(*NAMES[::-1], "forget-me-not"), index=1, total=2)
    method.begin_lesson(second, make_generator(1))
    assert method.ctx.shape == (4, *ctx.shape[1:])
    assert torch.equal(method.ctx[:3], ctx)
    assert torch.equal(method.precompute(second.train.names).context_indices, torch.tensor([2, 1, 0, 3]))
    assert all(torch.equal(value, decoder[name]) for name, value in method.decoder.state_dict().items())
    shared, ctx = damp_of(golden_clip), None
    for lesson in (first, second):
        shared.begin_lesson(lesson, make_generator(lesson.index))
        assert ctx is None or torch.equal(shared.ctx, ctx)
        ctx = shared.ctx.detach().clone()


def test_damp_takes_opaque_towers_for_what_they_are(golden_clip):
    class Opaque:
        feature_dim, device = 64, torch.device("cpu")

        def require_patch_features(self):
            raise ValueError("only computes pooled features")

    with pytest.raises(ValueError, match="only computes pooled features"):
        damp_of(replace(golden_clip, image=Opaque())).begin_lesson(taught(), make_generator(0))


def test_all_rows_of_texts_are_those_of_the_model(golden_model):
    """The twin is open_clip's own pass, in float64: values and gradients."""
    model = copy.deepcopy(golden_model).double()
    clip = wrap_clip(model, clip_tokenizer(), "rows")
    tokens = (0.1 * torch.randn(2, 3, clip.text.dim, generator=make_generator(1)).double()).requires_grad_()
    texts = fill_class_texts("{ctx} {name}.", NAMES, 3)
    rows = clip.text(texts, Prompt(tokens={0: tokens}), output="rows")  # (R, C, N, E)
    ids = clip_tokenizer()([f"X X X {name}." for name in NAMES])
    ends, errors = ids.argmax(-1).tolist(), []
    for r in range(2):
        embedded = model.token_embedding(ids)
        x = torch.cat([embedded[:, :1], tokens[r].expand(3, -1, -1), embedded[:, 4:]], 1) + model.positional_embedding
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask.double())) @ model.text_projection
        for c, end in enumerate(ends):
            weight = torch.randn(end + 1, x.shape[-1], generator=make_generator(r, c)).double()
            mine, twin = rows[r, c, : end + 1], x[c, : end + 1]
            errors.append(relative(mine, twin))
            grads = [torch.autograd.grad((y * weight).sum(), tokens, retain_graph=True)[0] for y in (mine, twin)]
            assert relative(*grads) < 1e-11
    assert max(errors) < 1e-12
    assert rows.shape[2] == max(ends) + 1
    pooled = clip.text(texts, Prompt(tokens={0: tokens}))
    assert relative(torch.stack([rows[:, c, end] for c, end in enumerate(ends)], 1), pooled) < 1e-12
    with pytest.raises(ValueError, match=r"expected one of .* of a text tower, got 'patches'"):
        clip.text(texts, Prompt(tokens={0: tokens}), output="patches")
