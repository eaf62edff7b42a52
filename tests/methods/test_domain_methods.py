"""Methods that learn from a target's images without labels: the authors' numbers, naive twins, odd batches."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from shared import golden, golden_cases, images, relative
from written_out import clip_tokenizer

from vlprompt import methods as m
from vlprompt.backbones.open_clip.towers import wrap_clip
from vlprompt.core.batch import Batch, Split, Unlabelled
from vlprompt.core.images import Augmentation, ImageItem, build_images
from vlprompt.core.stage import Lesson
from vlprompt.engine.loop import Loop, fit
from vlprompt.engine.train_config import TrainConfig
from vlprompt.layers.heads import LinearHead, TextHead
from vlprompt.runtime.seeding import make_generator

NONE = torch.empty(0, dtype=torch.long)
NAMES, DOMAINS = ("cat", "red fox", "yak"), ("art", "clip {4}", "real_world")
LABELS, OF = torch.tensor([0, 1, 2, 2, 1]), torch.tensor([0, 1, 0, 1, 1])
DAPL = {"prompt_learner.ctx": "ctx", "prompt_learner.domain_vectors": "domain_ctx"}


def beside(pixels, names, tag):
    return Batch(images(pixels, tag), NONE, names)


def items(pixels, tag):
    """As items that can be picked; a view is the picture rolled by its seed."""
    roll = lambda x, view: x if view is None else x.roll(view.seed % 7 + 1, -1)  # noqa: E731
    return tuple(ImageItem(f"{tag}/{i}", lambda look, view, x=x: roll(x, view)) for i, x in enumerate(pixels))


def pictures(count, tag, dtype=torch.float32):
    return torch.randn(count, 3, 32, 32, generator=make_generator(tag)).to(dtype)


def taught(sources=5, targets=7, domains=("art", "real_world"), names=NAMES, **more):
    """A lesson of two domains or more."""
    labels = tuple(LABELS.tolist()[:sources])
    train = Split(items(pictures(sources, "source"), "source"), labels, names)
    if len(domains) > 2:
        train = replace(train, domains=tuple(OF.tolist()[:sources]))
    target = Unlabelled(items(pictures(targets, "target"), "target"), names) if targets else None
    return Lesson(train, None, target, domains=domains, **more)


def begun(method, lesson=None, spread=True):
    """With values that tell more than the small initial ones."""
    method.begin_lesson(lesson or taught(), make_generator(0))
    with torch.no_grad():
        for i, p in enumerate(method.parameters()):
            p += 0.3 * torch.randn(p.shape, generator=make_generator("spread", i)) if spread else 0
    return method


def whole(lesson):
    """All images of a lesson as one batch."""
    labelled = list(lesson.train.batches(100))
    batch = labelled[0] if labelled else Batch(build_images([], []), NONE, lesson.train.names)
    return replace(batch, unlabelled=next(lesson.unlabelled.batches(100)) if lesson.unlabelled else None)


def gradient(method, batch):
    """As the training loop makes it."""
    fixed = method.precompute(batch.names)
    parameters = [p for p in method.parameters() if p.requires_grad]
    found = {}
    for name, (value, _) in method.train().loss_terms(batch, fixed)[0].items():
        found[name] = torch.autograd.grad(
            value, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
    return [sum(parts) for parts in zip(*found.values(), strict=True)]


def dapl(clip, case):
    told, arrays = golden(case)
    h, names = told["hyperparameters"], tuple(told["classnames"])
    method = m.DAPL(
        clip,
        h["N_CTX"],
        h["N_DMX"],
        h["U"],
        h["TAU"],
        h["T"],
        h["CSC"],
        context_template="{ctx} {name} , a {domain} image..",
    )
    domains = (*h["source_domains"], *h["target_domains"])
    method.begin_lesson(Lesson(Split((), (), names), domains=domains), make_generator(0))
    with torch.no_grad():
        for theirs, ours in DAPL.items():
            getattr(method, ours).copy_(arrays[f"param.{theirs}"])
    source, target = images(arrays["images_x"], f"{case} x"), beside(arrays["images_u"], names, f"{case} u")
    return method, Batch(source, arrays["labels_x"], names, unlabelled=target), arrays, told["sgd"]["lr"]


def blocks(method, inputs, fixed):
    """Logits by the source's texts, by the target's and by the frozen ones, side by side as the authors have them."""
    texts = [method.encode_domain(0, fixed), method.encode_domain(1, fixed), fixed.zero_shot_text]
    return method.clip.logits(method.clip.image(inputs), torch.cat(texts)), torch.cat(texts)


@pytest.mark.parametrize("case", golden_cases("dapl"))
def test_the_authors_dapl(authors_clip, case):
    method, batch, arrays, lr = dapl(authors_clip, case)
    fixed, target = method.precompute(batch.names), batch.unlabelled.inputs
    terms, out = method.train().loss_terms(batch, fixed)
    sum(value for value, _ in terms.values()).backward()
    p, sure = method.pseudo_labels(target, fixed)
    assert torch.equal(sure.float(), arrays["mask"])
    assert 0 < sure.sum() < len(sure)
    assert torch.equal(p.argmax(1), arrays["pseudo_label"])
    assert terms["target"][1] == float(sure.sum())
    logits, texts = blocks(method, batch.inputs, fixed)
    classes = len(batch.names)
    errors = {
        "text": relative(texts, arrays["text_features_raw"]),
        "image": relative(out.image_features, arrays["image_features_raw"]),
        "source": relative(out.logits, arrays["logits_x_all"][:, :classes]),
        "logits_x": relative(logits, arrays["logits_x_all"]),
        "logits_u": relative(blocks(method, target, fixed)[0], arrays["logits_u_all"]),
        "sure": relative(p.max(1).values, arrays["pseudo_prob_max"]),
        "loss_x": relative(terms["ce"][0], arrays["loss_x"]),
        "loss_u": relative(terms["target"][0], arrays["loss_u"] * method.weight),
        "loss": relative(terms["ce"][0] + terms["target"][0], arrays["loss"]),
    }
    errors |= {f"grad {k}": relative(getattr(method, v).grad, arrays[f"grad.{k}"]) for k, v in DAPL.items()}
    torch.optim.SGD(method.parameters(), lr).step()
    errors |= {f"after {k}": relative(getattr(method, v), arrays[f"after.{k}"]) for k, v in DAPL.items()}
    for name, inputs in (("x", batch.inputs), ("u", target)):
        errors[f"{name} after"] = relative(blocks(method, inputs, fixed)[0], arrays[f"logits_{name}_all_after"])
    answer = method.eval()(target, method.prepare(batch.names, fixed)).logits
    errors["eval"] = relative(answer, arrays["logits_eval_target"])
    assert max(errors.values()) < 1e-4, {k: v for k, v in errors.items() if v >= 1e-4}


def dapl_of(clip, **more):
    return m.DAPL(clip, **{"n_ctx": 3, "n_domain_ctx": 2, "threshold": 0.47, **more})


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def long_texts(model, texts, tokens):
    """Texts of 77 tokens with learned ones after the first, as the authors encode them: a row for each text."""
    n = tokens.shape[-2]
    ids = clip_tokenizer()([f"{'X ' * n}{text}" for text in texts])
    embedded = model.token_embedding(ids)
    x = torch.cat([embedded[:, :1], tokens.expand(len(texts), -1, -1), embedded[:, 1 + n :]], 1)
    x = model.transformer(x + model.positional_embedding, attn_mask=model.attn_mask.to(x.dtype))
    return model.ln_final(x)[torch.arange(len(x)), ids.argmax(-1)] @ model.text_projection


def long_dapl(model, method, pixels, targets, domains, of):
    """Its loss written out: all texts of all domains and the frozen ones encoded for both kinds of images."""
    scale, c = model.logit_scale.exp(), len(NAMES)
    rows = [long_texts(model, [f"{n}, a {d} image." for n in NAMES], torch.cat([method.ctx, own]))
            for d, own in zip(domains, method.domain_ctx, strict=True)]  # fmt: skip
    plain = model.encode_text(clip_tokenizer()([f"a photo of a {n}." for n in NAMES]))
    every = unit(torch.cat([*rows, plain]))
    logits, other = (scale * unit(model.encode_image(x)) @ every.T for x in (pixels, targets))
    places = range(len(domains)) if method.softmax_over == "all" else None
    losses = []
    for row, label, k in zip(logits, LABELS, of, strict=True):
        mine = [row[d * c : d * c + c] for d in (places or [k])]
        losses.append(torch.cat(mine).logsumexp(0) - row[k * c + label])
    sure = []
    for row in other:
        p, label = (row[-c:] / method.temperature).softmax(0).max(0)
        if p >= method.threshold:
            d = len(domains) - 1
            mine = [row[e * c : e * c + c] for e in (places or [d])]
            sure.append(torch.cat(mine).logsumexp(0) - row[d * c + label])
    assert 0 < len(sure) < len(other)
    return sum(losses) / len(losses) + method.weight * sum(sure) / len(sure)


@pytest.fixture(scope="module")
def exact(golden_model):
    """The golden CLIP in double precision."""
    model = copy.deepcopy(golden_model).double()
    return model, wrap_clip(model, clip_tokenizer(), "golden64")


@pytest.mark.parametrize(("over", "domains"), [("domain", DOMAINS[::2]), ("all", DOMAINS[::2]), ("domain", DOMAINS),
                                               ("all", DOMAINS)])  # fmt: skip
def test_dapl_is_the_long_way_written_out(exact, over, domains):
    """Texts of 77 tokens in double precision, one source or two: the loss and its gradient."""
    model, clip = exact
    method = dapl_of(clip, softmax_over=over, weight=0.7, temperature=0.8)
    begun(method, taught(domains=domains).without_items()).double()
    pixels, targets = pictures(5, "twin x", torch.float64), pictures(7, "twin u", torch.float64)
    batch = Batch(images(pixels, "twin x"), LABELS, NAMES, OF if len(domains) > 2 else None,
                  beside(targets, NAMES, "twin u"))  # fmt: skip
    fixed, of = method.precompute(NAMES), OF.tolist() if len(domains) > 2 else [0] * 5
    terms, _ = method.train().loss_terms(batch, fixed)
    loss, mine = long_dapl(model, method, pixels, targets, domains, of), sum(value for value, _ in terms.values())
    assert mine.item() == pytest.approx(loss.item(), rel=1e-6)  # a loss is float32
    for a, b in zip(*(torch.autograd.grad(x, [method.ctx, method.domain_ctx]) for x in (mine, loss)), strict=True):
        assert relative(a, b) < 1e-5
    for k, d in enumerate(domains):
        short, tokens = method.encode_domain(k, fixed), torch.cat([method.ctx, method.domain_ctx[k]])
        assert relative(short, long_texts(model, [f"{n}, a {d} image." for n in NAMES], tokens)) < 1e-12


def test_nothing_comes_from_a_target_that_nobody_is_sure_of(golden_clip):
    with pytest.warns(
        UserWarning,
        match=r"method.threshold is 0.999, and the highest probability .* is 0\.\d+: .* Lower method\.threshold",
    ) as told:
        method = begun(dapl_of(golden_clip, threshold=0.999))
    assert len(told) == 1
    batch = whole(taught())
    most = max(
        float(method.pseudo_labels(batch.unlabelled.inputs, method.precompute(NAMES))[0].max(1).values[i])
        for i in range(7)
    )
    assert f"{most:.6f}" in str(told[0].message)
    terms, _ = method.train().loss_terms(batch, method.precompute(NAMES))
    assert (terms["target"][0].item(), terms["target"][1]) == (0.0, 0)
    alone = gradient(method, replace(batch, unlabelled=None))
    for a, b in zip(gradient(method, batch), alone, strict=True):
        assert relative(a, b) < 1e-5
        assert a.isfinite().all()
    assert float(alone[1][-1].abs().sum()) == 0  # the target's tokens
    nothing = replace(taught(), train=Split((), (), NAMES))
    before = [p.detach().clone() for p in method.parameters()]
    list(fit(method, nothing, TrainConfig(epochs=2, batch_size=3, warmup=0, weight_decay=0.0)))
    assert all(torch.equal(a, b) for a, b in zip(before, method.parameters(), strict=True))


def test_a_target_that_it_is_sure_of_is_no_warning(golden_clip, recwarn):
    begun(dapl_of(golden_clip, threshold=0.55))
    assert not recwarn


SEVERAL = {
    "dapl": lambda clip: dapl_of(clip),
    "dapl over both": lambda clip: dapl_of(clip, softmax_over="all"),
    "kgcoop around dapl": lambda clip: m.KgCoOp(dapl_of(clip)),
    "entropy around coop": lambda clip: m.Entropy(m.CoOp(clip, 3)),
    "entropy around kgcoop": lambda clip: m.Entropy(m.KgCoOp(m.CoOp(clip, 3))),
    "entropy around dapl": lambda clip: m.Entropy(dapl_of(clip)),
    "entropy around vpt": lambda clip: m.Entropy(m.VPT(clip.image, LinearHead(), 2, dropout=0.0)),
    "entropy around lora": lambda clip: m.Entropy(m.LoRA(clip.image, TextHead(clip), 2)),
    "entropy around maple": lambda clip: m.Entropy(m.MaPLe(clip, depth=2)),
    "dann": lambda clip: m.DANN(clip.image, LinearHead(), 8, 16),
}


@pytest.mark.parametrize(("sources", "targets"), [(5, 3), (2, 7)])
@pytest.mark.parametrize("name", SEVERAL)
def test_parts_of_a_batch_add_up(golden_clip, name, sources, targets):
    """However many images of either kind a part has; the last ones have only one kind."""
    lesson = taught(domains=DOMAINS)
    method = begun(SEVERAL[name](golden_clip), lesson).train()
    batch = replace(whole(taught(sources, targets, DOMAINS)), progress=0.4)
    found = [Loop(method, lesson, TrainConfig(micro_batch_size=k), 1).compute_gradients(batch) for k in (None, 2)]
    assert found[0][0].keys() == found[1][0].keys()
    if name == "kgcoop around dapl" and targets > sources:
        return  # a part without a source's images keeps the target's texts near
    for term, value in found[0][0].items():
        assert found[1][0][term] == pytest.approx(value, rel=1e-4, abs=1e-6)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max()))


@pytest.mark.parametrize("name", [n for n in SEVERAL if n != "dann"])
def test_it_learns_without_a_source(golden_clip, name):
    lesson = replace(taught(), train=Split((), (), NAMES))
    method = begun(SEVERAL[name](golden_clip), lesson)
    terms, out = method.train().loss_terms(whole(lesson), method.precompute(NAMES))
    assert out.logits.shape == (7, 3)
    assert "ce" not in terms
    assert sum(float(g.abs().sum()) for g in gradient(method, whole(lesson))) > 0
    losses = [s.loss for s in fit(method, lesson, TrainConfig(epochs=20, batch_size=7, lr=0.001, warmup=0))]
    assert losses[-1] < losses[0]


class Counted:
    """A text tower that counts its passes."""

    def __init__(self, tower):
        self.tower, self.passes = tower, 0

    def __call__(self, *given, **how):
        self.passes += 1
        return self.tower(*given, **how)

    def __getattr__(self, name):
        return getattr(self.tower, name)


@pytest.mark.parametrize(("name", "domains", "passes"), [
    ("dapl", DOMAINS[::2], 2), ("dapl", DOMAINS, 3), ("entropy around coop", DOMAINS[::2], 1),
    ("entropy around maple", DOMAINS[::2], 1), ("kgcoop around dapl", DOMAINS[::2], 2),
])  # fmt: skip
def test_texts_are_encoded_once_a_step(golden_clip, name, domains, passes):
    clip = replace(golden_clip, text=Counted(golden_clip.text))
    lesson = taught(domains=domains)
    method = begun(SEVERAL[name](clip), lesson)
    fixed = method.precompute(NAMES)
    clip.text.passes = 0
    method.train().loss_terms(whole(lesson), fixed)
    assert clip.text.passes == passes
    clip.text.passes = 0
    method.loss_terms(replace(whole(lesson), unlabelled=None), fixed)
    assert clip.text.passes == (passes - 1 if "dapl" in name else passes)  # the target's are not asked for


@pytest.mark.filterwarnings("ignore:text. classes 'emu' and 'yak' have the same text features")  # its words are few
@pytest.mark.parametrize("own", [False, True])
def test_later_lessons_of_dapl_keep_and_add(golden_clip, own):
    method = begun(dapl_of(golden_clip, class_specific=own, threshold=0.0))
    old, x = copy.deepcopy(method.state_dict()), images(pictures(4, "later"), "later")
    first = method.eval()(x, method.prepare(NAMES, method.precompute(NAMES))).logits
    lesson = taught(domains=("art", "real_world"), index=1, total=3)
    method.begin_lesson(lesson, make_generator(1))
    assert torch.equal(first, method(x, method.prepare(NAMES, method.precompute(NAMES))).logits)
    target = method.encode_domain(1, method.precompute(NAMES))
    more = taught(domains=("real_world", "sketch"), names=(*NAMES, "emu"), index=2, total=3)
    method.begin_lesson(more, make_generator(2))
    assert torch.equal(method.domain_ctx[:2], old["domain_ctx"])
    assert len(method.domain_ctx) == 3
    assert torch.equal(method.ctx[:3], old["ctx"])
    assert method.ctx.shape == ((4, 3, golden_clip.text.dim) if own else old["ctx"].shape)
    assert torch.equal(method.encode_domain(0, method.precompute(NAMES)), target)
    names = (*NAMES, "emu")
    third = method(x, method.prepare(names, method.precompute(names))).logits
    assert not torch.allclose(first, third[:, :3])  # the target is another domain now
    again = dapl_of(golden_clip, class_specific=own, threshold=0.0)
    again.restore([taught(), lesson, more], method.state_dict())
    assert torch.equal(again.eval()(x, again.prepare(names, again.precompute(names))).logits, third)


def test_upl_takes_the_surest_images_of_each_class(golden_clip, golden_model):
    """Image by image on open_clip's own model; what a few-shot method then learns from is only those."""
    lesson, template = taught(targets=9), "a bad photo of the {name}."
    text = unit(golden_model.encode_text(clip_tokenizer()([f"a bad photo of the {n}." for n in NAMES])))
    sure = {c: [] for c in range(3)}
    for i, x in enumerate(pictures(9, "target")):
        p, c = (
            (golden_model.logit_scale.exp() * unit(golden_model.encode_image(x[None])) @ text.T).softmax(-1)[0].max(0)
        )
        sure[int(c)].append((-float(p), i))
    wanted = {f"target/{i}": c for c, found in sure.items() for _, i in sorted(found)[:2]}
    assert any(len(found) > 2 for found in sure.values())
    method = m.UPL(m.CoOp(golden_clip, 3), 2, template)
    method.begin_lesson(lesson, make_generator(0))
    train = method.training_lesson(lesson).train
    assert dict(zip([item.key for item in train.items], train.labels, strict=True)) == wanted
    assert method.training_lesson(lesson).unlabelled is None
    every = [*lesson.unlabelled.items, lesson.train.items[0]]
    for view in (None, Augmentation("crop", 3)):
        _, chosen = method.pseudo_labels(build_images(every, [view] * 10), method.precompute(NAMES))
        assert chosen.tolist() == [item.key in wanted for item in every]
    inner = m.CoOp(golden_clip, 3)
    inner.begin_lesson(lesson, make_generator(0))
    train = replace(lesson, train=train, unlabelled=None)
    mine, plain = ([s.loss for s in fit(*given, TrainConfig(epochs=3, batch_size=4, lr=0.1, warmup=0))]
                   for given in ((method, lesson), (inner, train)))  # fmt: skip
    assert mine == plain
    with pytest.warns(UserWarning, match="no confident pseudo-label for 'anvil': 1 of 4 classes"):
        m.UPL(m.CoOp(golden_clip, 3)).begin_lesson(_without(golden_clip, "anvil"), make_generator(0))


def _without(clip, name):
    """A lesson none of whose images is taken for a class."""
    names = (*NAMES, name)
    lesson = taught(targets=100, names=names)
    text = clip.text([f"a photo of a {n}." for n in names])[0]
    found = clip.logits(clip.image(next(lesson.unlabelled.batches(100)).inputs), text).argmax(1)
    kept = tuple(item for item, c in zip(lesson.unlabelled.items, found, strict=True) if c != 3)
    assert {int(c) for c in found} >= {0, 1, 2}
    return replace(lesson, unlabelled=Unlabelled(kept, names))


@pytest.mark.parametrize("diversity", [0.0, 0.6])
def test_entropy_by_hand(golden_clip, diversity):
    method, batch = begun(m.Entropy(m.CoOp(golden_clip, 3), 0.3, diversity)), whole(taught())
    inner = method.method
    answer = lambda x: inner(x, inner.prepare(NAMES, inner.precompute(NAMES))).logits  # noqa: E731
    loss = F.cross_entropy(answer(batch.inputs), LABELS)
    p = answer(batch.unlabelled.inputs).softmax(1)
    loss = loss - 0.3 * sum((q * q.log()).sum() for q in p) / len(p)
    mean = sum(p) / len(p)
    loss = loss + 0.3 * diversity * (mean * mean.log()).sum()
    wanted = torch.autograd.grad(loss, inner.ctx)
    terms = method.train().loss_terms(batch, method.precompute(NAMES))[0]
    assert sum(value for value, _ in terms.values()).item() == pytest.approx(loss.item(), rel=1e-5)
    assert relative(gradient(method, batch)[0], wanted[0]) < 1e-4
    assert method.needs_whole_batch == bool(diversity)


@pytest.mark.parametrize("domains", [DOMAINS[::2], DOMAINS])
def test_dann_turns_the_gradient_of_the_discriminator(golden_clip, domains):
    """Two passes backward, the second with the sign turned by hand for all but the discriminator."""
    method = begun(m.DANN(golden_clip.image, LinearHead(), 8, 16, weight=0.5), taught(domains=domains))
    for progress in (0.0, 0.3):
        batch = replace(whole(taught(domains=domains)), progress=progress)
        x, u = (golden_clip.image(i) for i in (batch.inputs, batch.unlabelled.inputs))
        down, up, critic = method.adapter.down, method.adapter.up, method.discriminator
        changed = [f + (f @ down.weight.T + down.bias).relu() @ up.weight.T + up.bias for f in (x, u)]
        ce = F.cross_entropy(changed[0] @ method.head.weight.T + method.head.bias, LABELS)
        told = (torch.cat(changed) @ critic[0].weight.T + critic[0].bias).relu() @ critic[2].weight.T + critic[2].bias
        sources = OF if len(domains) > 2 else torch.zeros(5).long()
        domain = F.cross_entropy(told, torch.cat([sources, torch.full((7,), len(domains) - 1)]))
        turn, named = 0.5 * (2 / (1 + math.exp(-10 * progress)) - 1), dict(method.named_parameters())
        first, second = (dict(zip(named, torch.autograd.grad(
            loss, list(named.values()), retain_graph=True, allow_unused=True, materialize_grads=True,
        ), strict=True)) for loss in (ce, domain))  # fmt: skip
        for name, mine in zip(named, gradient(method, batch), strict=True):
            wanted = first[name] + second[name] * (1 if name.startswith("discriminator") else -turn)
            assert torch.allclose(mine, wanted, rtol=1e-4, atol=1e-6), name
        terms = method.loss_terms(batch, method.precompute(NAMES))[0]
        assert {name: rows for name, (_, rows) in terms.items()} == {"ce": 5, "domain": 12}


def test_dann_begins_as_zero_shot_on_class_texts(golden_clip):
    method, x = (
        begun(m.DANN(golden_clip.image, TextHead(golden_clip), 8, 16), spread=False),
        images(pictures(4, "y"), "y"),
    )
    plain = m.ZeroShot(golden_clip)
    found = [one.eval()(x, one.prepare(NAMES, one.precompute(NAMES))).logits for one in (method, plain)]
    assert torch.allclose(*found, atol=1e-4)


@pytest.mark.parametrize(("make", "lesson", "said"), [
    ("dapl", {"targets": 0, "domains": ()}, "got no target. Run it with --source and --target"),
    ("dapl", {"targets": 0, "domains": ("art",)}, "got no target"),
    ("dapl", {"domains": ("real_world",)}, "expected at least 2 domains, .*, got 'real_world'. Run it with --source"),
    ("dann", {"targets": 0, "domains": ("art", "real_world")}, "got only one kind. Set task.setting=adapt"),
    ("dann", {"sources": 0}, "only one kind"),
    ("entropy around coop", {"targets": 0, "domains": ("art",)}, "got no target"),
])  # fmt: skip
def test_what_has_nothing_to_adapt_to_is_refused(golden_clip, make, lesson, said):
    with pytest.raises(ValueError, match=said):
        SEVERAL[make](golden_clip).begin_lesson(taught(**lesson), make_generator(0))


def test_what_upl_cant_use_is_refused(golden_clip):
    upl = m.UPL(m.CoOp(golden_clip, 3))
    for lesson, said in (
        ({"domains": ()}, "got no target"),
        ({}, "expected unlabelled images of the target, got labelled images alone.*--source none"),
    ):
        with pytest.raises(ValueError, match=said):
            upl.begin_lesson(taught(targets=0, **lesson), make_generator(0))
    with pytest.raises(ValueError, match=r"got DAPL, which learns from unlabelled images. Use a method"):
        m.UPL(dapl_of(golden_clip)).begin_lesson(taught(), make_generator(0))
    upl.begin_lesson(taught().without_items(), make_generator(0))  # as a saved state is restored


def test_domains_that_are_all_trained_on_have_no_target(golden_clip):
    """Generalisation names its sources only, as many as they are; a source alone waits for its target."""
    lesson = taught(targets=0, domains=DOMAINS)
    dapl_of(golden_clip).begin_lesson(lesson, make_generator(0))  # nothing is trained on of the third: it comes later
    with pytest.raises(ValueError, match="got no target"):
        dapl_of(golden_clip).begin_lesson(replace(lesson, domains=DOMAINS[:2]), make_generator(0))


@pytest.mark.parametrize(("make", "said"), [
    (lambda clip: dapl_of(clip, threshold=-0.1), "method.threshold: expected at least 0"),
    (lambda clip: dapl_of(clip, temperature=0.0), "method.temperature: expected a value above 0, got 0.0"),
    (lambda clip: m.UPL(m.CoOp(clip), 0), "method.images_per_class: expected at least 1"),
    (lambda clip: m.Entropy(m.CoOp(clip), -1.0), "method.weight: expected at least 0"),
    (lambda clip: m.DANN(clip.image, LinearHead(), 0), "method.bottleneck_dim: expected at least 1"),
])  # fmt: skip
def test_settings_out_of_their_range(golden_clip, make, said):
    with pytest.raises(ValueError, match=said):
        make(golden_clip).begin_lesson(taught(), make_generator(0))


def test_what_is_added_around_is_about_the_images_that_were_answered(golden_clip):
    """Those of the target where a batch has no others."""
    lesson = replace(taught(), train=Split((), (), NAMES))
    method, batch = begun(m.ProGrad(dapl_of(golden_clip)), lesson), whole(lesson)
    terms, out = method.train().loss_terms(batch, method.precompute(NAMES))
    plain = golden_clip.logits(golden_clip.image(batch.unlabelled.inputs), method.reference_texts(NAMES)).softmax(1)
    assert terms["kl"][0].item() == pytest.approx(F.cross_entropy(out.logits, plain).item(), rel=1e-5)
    assert terms["kl"][1] == 7
