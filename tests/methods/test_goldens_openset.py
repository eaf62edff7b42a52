"""NLPrompt, LoCoOp and DeCoOp against numbers that their authors' own code computed."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from shared import golden, golden_cases, images, relative

from vlprompt import methods as m
from vlprompt.core.batch import Batch, Split
from vlprompt.core.images import ImageItem
from vlprompt.core.stage import Lesson
from vlprompt.engine.loop import fit
from vlprompt.engine.train_config import TrainConfig
from vlprompt.methods._detectors import compute_detector_terms, find_otsu_threshold, list_own_names
from vlprompt.testing.images import build_digits_lesson

CTX = "prompt_learner.ctx"
TEXTS = {"end": "{ctx} {name}.", "middle": "{ctx} {name} {ctx}.", "front": "{name} {ctx}."}


def coop_settings(h):
    return {
        "n_ctx": h["N_CTX"],
        "context_template": TEXTS[h["CLASS_TOKEN_POSITION"]],
        "class_specific": h["CSC"],
    }


def begin(method, names):
    method.begin_lesson(Lesson(Split((), (), tuple(names))), torch.Generator().manual_seed(0))
    return method


def answer(method, inputs, names):
    with torch.no_grad():
        return method.eval()(inputs, method.prepare(names, method.precompute(names)))


def step(method, batch, lr):
    """Take one step of plain SGD; the loss and the gradient before it."""
    terms, _ = method.train().loss_terms(batch, method.precompute(batch.names))
    [parameter] = method.parameters()
    loss = sum(value for value, _ in terms.values())
    [grad] = torch.autograd.grad(loss, [parameter])
    with torch.no_grad():
        parameter -= lr * grad
    return loss.detach(), grad


# --- NLPrompt ---


@pytest.mark.parametrize("case", golden_cases("nlprompt"))
def test_the_authors_numbers_of_nlprompt(authors_clip, case):
    told, arrays = golden(case)
    h, names = told["hyperparameters"], tuple(told["classnames"])
    similarity = {"logP": "log_softmax", "softmax": "softmax"}[h["Pmode"]]
    inner = m.CoOp(authors_clip, **coop_settings(h))
    method = begin(m.NLPrompt(inner, h["budget"], h["reg_e"], similarity, h["q"], h["numItermax"]), names)
    with torch.no_grad():
        inner.ctx.copy_(arrays[f"param.{CTX}"])
    labels = arrays["labels"]
    logits = answer(method, images(arrays["images"], case), names).logits
    plan = method.assign(logits)
    agrees = method.choose_agreeing(plan, labels)
    errors = {
        "logits": relative(logits, arrays["logits"]),
        "plan": relative(plan.float(), arrays["pseudo_labels"]),
        "coupling": relative(plan / len(plan), arrays["f64.coupling"]),
        "confidence": relative(plan.amax(1).float(), arrays["conf"]),
    }
    assert torch.equal(plan.argmax(1), arrays["pseudo"])
    assert torch.equal(agrees, arrays["clean"].bool())
    assert torch.equal(~agrees, arrays["noisy"].bool())
    assert int(arrays["selected"].sum()) == int(h["budget"] * len(labels))
    method.rows = {(f"{case}/{i}", int(label)): i for i, label in enumerate(labels)}
    method.agrees = agrees
    everything = images(arrays["images"], case)
    mixed, _ = method.loss_terms(Batch(everything, labels, names), method.precompute(names))
    for name, rows in (("ce", arrays["clean"]), ("mae", arrays["noisy"])):
        rows = rows.nonzero()[:, 0]
        pixels, tag = arrays["images"][rows], f"{case}-{name}"
        method.rows |= {(f"{tag}/{k}", int(labels[i])): int(i) for k, i in enumerate(rows)}
        batch = Batch(images(pixels, tag), labels[rows], names)
        loss, grad = step(method, batch, told["sgd"]["lr"])
        errors[f"loss {name}"] = relative(loss, arrays[f"loss_{name}"])
        errors[f"grad {name}"] = relative(grad, arrays[f"grad_{name}.{CTX}"])
        after = "after_ce" if name == "ce" else "after"
        errors[after] = relative(inner.ctx, arrays[f"{after}.{CTX}"])
    errors["logits after"] = relative(answer(method, everything, names).logits, arrays["logits_after"])
    print(case, max(errors.values()))
    assert max(errors.values()) < 1e-4, {k: v for k, v in errors.items() if v >= 1e-4}
    assert mixed["ce"][1] == len(labels)


def test_a_mixed_batch_gives_each_image_its_own_loss(tiny):
    method = begin(m.NLPrompt(m.CoOp(tiny, 4)), ("cat", "dog"))
    pixels = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 1, 0, 1])
    method.rows = {(f"mixed/{i}", int(label)): i for i, label in enumerate(labels)}
    method.agrees = torch.tensor([True, False, True, False, True])
    batch = Batch(images(pixels, "mixed"), labels, ("cat", "dog"))
    terms, out = method.loss_terms(batch, method.precompute(batch.names))
    p = out.logits.softmax(1)[range(5), labels]
    expected = torch.where(method.agrees, -p.log(), 1 - p).mean()
    assert float(terms["ce"][0].detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    views = batch.inputs.augment("crop", 0)
    assert (
        method.find_agreeing([f"{key}|crop|17" for key in batch.inputs.keys], labels).tolist() == method.agrees.tolist()
    )
    assert method.find_agreeing(views.keys, labels).all()  # images of no lesson


def test_labels_are_compared_before_each_epoch(tiny, monkeypatch):
    lesson, seen = build_digits_lesson(), []
    method = m.NLPrompt(m.CoOp(tiny, 4), epsilon=0.05)
    compare = method.compare_labels
    monkeypatch.setattr(method, "compare_labels", lambda: (compare(), seen.append(method.agrees.clone())))
    method.begin_lesson(lesson, torch.Generator().manual_seed(0))
    list(fit(method, lesson, TrainConfig(epochs=2, batch_size=10, lr=0.1, warmup=0)))
    assert len(seen) == 3
    assert 0 < seen[0].sum() < 20  # some of a random CLIP
    method.end_lesson(lesson)
    assert method.agrees.shape == (0,)
    again = m.NLPrompt(m.CoOp(tiny, 4))
    again.restore([lesson], method.state_dict())
    assert torch.equal(again.method.ctx, method.method.ctx)


def test_labels_that_all_look_wrong_are_all_learned(tiny):
    """Where no label agrees, all count as right; and they are compared by the answers of a test."""

    class Watched(m.CoOp):
        trained_with = ()

        def forward(self, inputs, prepared):
            self.trained_with = (*self.trained_with, self.training)
            return super().forward(inputs, prepared)

    lesson, watched = build_digits_lesson(), Watched(tiny, 4)
    method = m.NLPrompt(watched.train(), epsilon=0.05)
    method.begin_lesson(lesson, torch.Generator().manual_seed(0))
    assert watched.trained_with == (False,)
    assert watched.training
    train, n = method.train_split, len(lesson.train.names)
    outputs = answer(watched, next(iter(train.batches(100))).inputs, train.names)
    wrong = (method.assign(outputs.logits).argmax(1) + 1) % n
    method.train_split = replace(train, labels=tuple(wrong.tolist()))
    method.compare_labels()
    assert method.agrees.all()
    wrong[3] = (wrong[3] - 1) % n
    method.train_split = replace(train, labels=tuple(wrong.tolist()))
    method.compare_labels()
    assert method.agrees.nonzero()[:, 0].tolist() == [3]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda clip: m.NLPrompt(m.CoOp(clip, 4), budget=1.5), r"^method\.budget: expected at most 1, got 1.5"),
        (lambda clip: m.NLPrompt(m.CoOp(clip, 4), epsilon=0.0), r"^method\.epsilon: expected at least 0.0001, got 0"),
        (lambda clip: m.NLPrompt(m.CoOp(clip, 4), q=2.0), r"^method\.q: expected at most 1, got 2"),
        (lambda clip: m.NLPrompt(m.UPL(m.CoOp(clip, 4))), r"^nlprompt: expected a method that learns from labels"),
    ],
)
def test_settings_of_nlprompt_out_of_range(tiny, make, message):
    with pytest.raises(ValueError, match=message):
        begin(make(tiny), ("cat", "dog"))


# --- LoCoOp ---


def locoop(case, clip, **changes):
    told, arrays = golden(case)
    h = {**told["hyperparameters"], **changes}
    inner = m.CoOp(clip, **coop_settings(h))
    method = begin(m.LoCoOp(inner, h["lambda"], h["topk"]), told["classnames"])
    with torch.no_grad():
        inner.ctx.copy_(arrays[f"param.{CTX}"])
    batch = Batch(images(arrays["images"], case), arrays["labels"], tuple(told["classnames"]))
    return method, batch, arrays, told


@pytest.mark.parametrize("case", golden_cases("locoop"))
def test_the_authors_numbers_of_locoop(authors_clip, case):
    method, batch, arrays, told = locoop(case, authors_clip)
    terms, out = method.train().loss_terms(batch, method.precompute(batch.names))
    local_logits = method.compute_local_logits(batch, out).detach()
    is_other = method.find_other_things(local_logits, batch.labels)
    assert torch.equal(is_other.flatten(), arrays["kept"].bool())
    assert terms["local"][1] == int(arrays["kept"].sum())
    errors = {
        "logits": relative(out.logits, arrays["logits"]),
        "local logits": relative(local_logits, arrays["logits_local"]),
        "loss_id": relative(terms["ce"][0], arrays["loss_id"]),
        "loss_en": relative(terms["local"][0], told["hyperparameters"]["lambda"] * arrays["loss_en"]),
    }
    loss, grad = step(method, batch, told["sgd"]["lr"])
    errors["loss"] = relative(loss, arrays["loss"])
    errors["grad"] = relative(grad, arrays[f"grad.{CTX}"])
    errors["after"] = relative(method.method.ctx, arrays[f"after.{CTX}"])
    after = answer(method, batch.inputs, batch.names)
    errors["logits after"] = relative(after.logits, arrays["logits_after"])
    errors["local logits after"] = relative(method.compute_local_logits(batch, after), arrays["logits_local_after"])
    print(case, max(errors.values()))
    assert max(errors.values()) < 1e-4, {k: v for k, v in errors.items() if v >= 1e-4}


def test_no_region_of_another_thing_adds_nothing(authors_clip):
    method, batch, arrays, _ = locoop("locoop-end", authors_clip)
    method.top_k = 6  # all classes
    terms, _ = method.loss_terms(batch, method.precompute(batch.names))
    assert float(terms["local"][0].detach()) == float(arrays["loss_en_all"]) == 0
    assert terms["local"][1] == 0


def test_regions_of_micro_batches_add_up(authors_clip):
    """Each region of another thing counts once, whichever part of a batch its image is in."""
    method, batch, *_ = locoop("locoop-end", authors_clip)
    fixed = method.precompute(batch.names)
    whole = method.loss_terms(batch, fixed)[0]["local"]
    parts = [method.loss_terms(part, fixed)[0]["local"] for part in batch.micro_batches(1)]
    assert len({n for _, n in parts}) > 1
    mean = sum(value * n for value, n in parts) / sum(n for _, n in parts)
    assert float((mean - whole[0]).detach().abs()) < 1e-5


def test_locoop_around_texts_of_each_image(tiny):
    method = begin(m.LoCoOp(m.CoCoOp(tiny, 4, reduction=4)), ("cat", "dog"))
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    batch = Batch(images(pixels, "each"), torch.tensor([0, 1, 1]), ("cat", "dog"))
    terms, out = method.loss_terms(batch, method.precompute(batch.names))
    local = tiny.image(batch.inputs, output="local")
    expected = torch.stack([tiny.logits(rows, text) for rows, text in zip(local, out.text_features, strict=True)])
    assert torch.allclose(method.compute_local_logits(batch, out), expected, atol=1e-4)
    assert terms["local"][1] > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda clip: m.LoCoOp(m.CoOp(clip, 4), top_k=2), r"^method\.top_k: expected 1 to 1 of 2 classes, got 2"),
        (lambda clip: m.LoCoOp(m.CoOp(clip, 4), top_k=0), r"^method\.top_k: expected 1 to 1 of 2 classes, got 0"),
        (lambda clip: m.LoCoOp(m.CoOp(clip, 4), weight=-1.0), r"^method\.weight: expected at least 0, got -1"),
    ],
)
def test_settings_of_locoop_out_of_range(tiny, make, message):
    with pytest.raises(ValueError, match=message):
        begin(make(tiny), ("cat", "dog"))


def test_locoop_takes_a_fifth_of_the_classes(tiny):
    method = m.LoCoOp(m.CoOp(tiny, 4))
    assert [method.choose_top_k(n) for n in (2, 10, 1000)] == [1, 2, 200]


# --- DeCoOp ---


def decoop(case, clip):
    told, arrays = golden(case)
    h, names = told["hyperparameters"], tuple(told["classnames"])
    margin = None if h["ood_margin"] == "auto" else h["ood_margin"]
    template = None if h["templates"] == ["auto"] else "imagenet-7"
    base = names[: h["n_base"]]
    method = begin(m.DeCoOp(clip, h["n_ctx"], h["K"], margin, template=template), base)
    with torch.no_grad():
        method.detector_ctx.copy_(stacked(arrays, "param.ood", h["K"]))
        method.classifier_ctx.copy_(stacked(arrays, "param.coop", h["K"]))
    return method, Batch(images(arrays["images"], case), arrays["labels"], base), arrays, names, told["sgd"]["lr"]


def stacked(arrays, name, k):
    return torch.stack([arrays[f"{name}.{i}.ctx"] for i in range(k)])


def check_step(method, batch, arrays, stage, lr):
    """Errors of the loss, the gradient and the step of a stage."""
    ctx = {"ood": method.detector_ctx, "coop": method.classifier_ctx}[stage]
    terms, _ = method.loss_terms(batch, method.precompute(batch.names))
    loss = sum(value for value, _ in terms.values())
    [grad] = torch.autograd.grad(loss, [ctx])
    with torch.no_grad():
        ctx -= lr * grad
    return {
        f"loss {stage}": relative(loss, arrays["loss_stage1" if stage == "ood" else "loss_stage2"]),
        f"grad {stage}": relative(grad, stacked(arrays, f"grad.{stage}", len(ctx))),
        f"after {stage}": relative(ctx, stacked(arrays, f"after.{stage}", len(ctx))),
    }, terms


@pytest.mark.parametrize("case", golden_cases("decoop"))
def test_the_authors_numbers_of_decoop(authors_clip, case):
    method, batch, arrays, _, lr = decoop(case, authors_clip)
    k, fixed, image = method.n_detectors, method.precompute(batch.names), authors_clip.image(batch.inputs)
    logits = method.compute_logits(image, fixed.texts, method.detector_ctx).detach()
    errors = dict[str, float]()
    for i, (rows, own) in enumerate(zip(logits, method.list_own(len(batch.names)), strict=True)):
        errors[f"logits {i}"] = relative(rows[:, own].sort().values, arrays[f"ood_logits.{i}"].sort().values)
        inside = [j for j in range(len(batch.names)) if j % k != i]
        assert (arrays[f"ood_labels.{i}"] >= 0).nonzero()[:, 0].tolist() == inside
    first, terms = check_step(method, batch, arrays, "ood", lr)
    errors |= {
        name: relative(terms[ours][0], arrays[name]) for name, ours in (("loss_id", "ce"), ("loss_ood", "margin"))
    }
    method.train_split = split_of(arrays["images"], arrays["labels"], batch.names)
    method.choose_threshold()
    errors["scores"] = relative(method.score(image, fixed.texts).T, arrays["train_scores"])
    errors["threshold"] = relative(method.threshold, arrays["threshold"])
    method.is_second.fill_(True)
    errors |= first | check_step(method, batch, arrays, "coop", lr)[0]
    print(case, max(errors.values()))
    assert max(errors.values()) < 1e-4, {k: v for k, v in errors.items() if v >= 1e-4}


@pytest.mark.parametrize("case", golden_cases("decoop"))
def test_the_authors_answers_of_decoop(authors_clip, case):
    method, _, arrays, names, _ = decoop(case, authors_clip)
    with torch.no_grad():
        method.detector_ctx.copy_(stacked(arrays, "after.ood", method.n_detectors))
        method.classifier_ctx.copy_(stacked(arrays, "after.coop", method.n_detectors))
    method.threshold.copy_(arrays["threshold"])
    tests, fixed = images(arrays["test_images"], f"{case}-test"), method.precompute(names)
    image = authors_clip.image(tests)
    p, scores = answer(method, tests, names).logits.softmax(1), method.score(image, fixed.texts).T.detach()
    errors = {
        "test scores": relative(scores, arrays["test_scores"]),
        "answers": relative(p, arrays["test_prob"]),
        "zero-shot": relative(method.compute_zero_shot(image, fixed), arrays["test_zero_shot"]),
    }
    assert torch.equal((scores < method.threshold).all(1), arrays["used_zero_shot"].bool())
    right = p.argmax(1) == arrays["test_labels"]
    assert 100 * float(right.float().mean()) == pytest.approx(float(arrays["metrics"][3]), abs=1e-3)
    print(case, max(errors.values()))
    assert max(errors.values()) < 1e-4, errors


def split_of(pixels, labels, names):
    items = [
        ImageItem(f"split/{i}/{float(x.sum())}", lambda look, a, x=x: x, f"split/{i}") for i, x in enumerate(pixels)
    ]
    return Split(tuple(items), tuple(labels.tolist()), names)


def test_the_detectors_learn_first_and_then_the_classifiers(tiny):
    pixels = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    lesson = Lesson(split_of(pixels, torch.tensor([0, 1, 2, 0, 1, 2]), ("cat", "dog", "bird")))
    method = m.DeCoOp(tiny, 4)
    method.begin_lesson(lesson, torch.Generator().manual_seed(0))
    assert method.schedule_starts(9) == (0, 3)
    assert method.idle_parameters() == [method.classifier_ctx]
    first, second = method.detector_ctx.detach().clone(), method.classifier_ctx.detach().clone()
    config = TrainConfig(epochs=3, batch_size=3, warmup=0, lr=0.1)
    seen = [(step.terms.keys(), bool(method.is_second)) for step in fit(method, lesson, config)]
    assert ["kl" in terms for terms, _ in seen] == [False] * 2 + [True] * 4
    assert method.idle_parameters() == [method.detector_ctx]
    assert float(method.threshold) > 0
    assert not torch.equal(method.classifier_ctx, second)
    assert not torch.equal(method.detector_ctx, first)


def test_detectors_that_learn_to_the_end_leave_no_second_stage(tiny):
    pixels = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    lesson = Lesson(split_of(pixels, torch.tensor([0, 1, 2, 0, 1, 2]), ("cat", "dog", "bird")))
    method = m.DeCoOp(tiny, 4, share=1.0)
    method.begin_lesson(lesson, torch.Generator().manual_seed(0))
    classifiers = method.classifier_ctx.detach().clone()
    list(fit(method, lesson, TrainConfig(epochs=2, batch_size=3, warmup=0, lr=0.1)))
    assert not method.is_second
    assert float(method.threshold) == 0
    assert torch.equal(method.classifier_ctx, classifiers)


def test_labels_of_a_later_lesson_are_those_of_its_names(tiny):
    """A lesson that names its classes in another order gives the detectors the same labels."""
    method, names = m.DeCoOp(tiny, 4, n_detectors=2), ("cat", "dog", "bird", "fish")
    begin(method, names)
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    inputs, labels = images(pixels, "order"), torch.tensor([0, 1, 2, 3])
    batches = Batch(inputs, labels, names), Batch(inputs, 3 - labels, names[::-1])
    first, second = (method.loss_terms(batch, method.precompute(batch.names))[0] for batch in batches)
    assert first["ce"][0].item() == pytest.approx(second["ce"][0].item(), rel=1e-6)
    other = method.loss_terms(Batch(inputs, labels, names[::-1]), method.precompute(names[::-1]))[0]
    assert first["ce"][0].item() != pytest.approx(other["ce"][0].item(), rel=1e-3)


def test_defaults_are_those_of_the_authors(tiny):
    assert m.LoCoOp(m.CoOp(tiny, 4)).weight == golden("locoop-end")[0]["hyperparameters"]["lambda"]
    h, method = golden("decoop")[0]["hyperparameters"], m.DeCoOp(tiny)
    assert (method.margin, method.n_detectors) == (h["ood_margin"], h["K"])


def test_one_class_of_images_gives_no_nan(tiny):
    method = begin(m.DeCoOp(tiny, 4), ("cat", "dog", "bird", "fish"))
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    batch = Batch(images(pixels, "one"), torch.tensor([1, 1]), ("cat", "dog", "bird", "fish"))
    for is_second in (False, True):
        method.is_second.fill_(is_second)
        terms, _ = method.loss_terms(batch, method.precompute(batch.names))
        assert all(value.isfinite() for value, _ in terms.values())


def test_the_names_that_detectors_know():
    """Of five trained names and one more: two detectors lack a second name, and know that of their own number."""
    own = list_own_names(3, 5, 6)
    assert [row.nonzero()[:, 0].tolist() for row in own] == [[0, 1, 2, 4], [0, 1, 2, 3], [0, 1, 3, 4]]


def test_a_margin_that_is_reached_adds_nothing():
    """The entropy of the image outside is ln 2 above that of the one inside."""
    logits = torch.tensor([[50.0, 0.0], [0.0, 0.0]], dtype=torch.double, requires_grad=True)
    inside, columns = torch.tensor([True, False]), torch.tensor([0, 0])
    for margin, expected in ((0.4, 0.0), (1.0, 1 - math.log(2))):
        terms = compute_detector_terms(F.cross_entropy, logits, columns, inside, margin)
        assert terms["margin"].item() == pytest.approx(expected, abs=1e-12)


def test_a_threshold_between_two_groups():
    values = torch.cat([0.1 + 0.01 * torch.rand(50), 0.9 + 0.01 * torch.rand(50)])
    assert 0.1 < find_otsu_threshold(values) < 0.9
    assert find_otsu_threshold(torch.full((3,), 0.5)) == 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda clip: m.DeCoOp(clip, 4, n_detectors=1), r"^method\.n_detectors: expected at least 2, got 1"),
        (lambda clip: m.DeCoOp(clip, 4, share=1.5), r"^method\.share: expected at most 1, got 1.5"),
    ],
)
def test_settings_of_decoop_out_of_range(tiny, make, message):
    with pytest.raises(ValueError, match=message):
        begin(make(tiny), ("cat", "dog"))
