"""Methods around other methods against numbers that their authors' own code computed: values, gradients, a step."""

import pytest
import torch
from conftest import golden, golden_cases, images, relative
from test_goldens import answer, coop, hand_written, maple
from test_goldens import ours as ours_of_older_methods

from vlprompt import methods as m
from vlprompt.core.batch import Batch, Split
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.engine.loop import Loop
from vlprompt.engine.train_config import TrainConfig
from vlprompt.layers.heads import LinearHead

DEPT_INNER = {
    "coop": coop,
    "kgcoop": lambda clip, h, told: m.KgCoOp(
        m.CoOp(clip, h["N_CTX"], h["CTX_INIT"]), h["W"], hand_written(h["template"])
    ),
    "maple": maple,
}


def dept(clip, h, told):
    inner = DEPT_INNER[told["name"].split("-")[1]](clip, h, told)
    return m.DePT(inner, h["LINEAR_PROBE.WEIGHT"])


def atprompt(clip, h, told):
    name = told["name"].split("-")[1]
    make = {"coop": m.CoOp, "cocoop": m.CoCoOp, "maple": lambda *given: m.MaPLe(*given, h["PROMPT_DEPTH"], None)}[name]
    inner = make(clip, h["N_CTX"])
    inner.context_template = "{ctx} {name}."
    return m.ATPrompt(inner, tuple(h[f"ATT{i + 1}_TEXT"] for i in range(h["ATT_NUM"])), h["N_ATT1"])


MAKE = {"dept": dept, "atprompt": atprompt}


def innermost(method):
    return innermost(method.method) if hasattr(method, "method") else method


def ours(method, theirs):
    """Our parameter that is the authors' `theirs`."""
    parts = theirs.split(".")
    if parts[0] == "linear_probe_proj":
        return getattr(method.linear, parts[1])
    if parts[0].startswith("film_lp"):
        tower = "image" if parts[0].endswith("img") else "text"
        return {"scale": method.scales, "bias": method.shifts}[parts[1]][tower]
    if parts[-1].startswith("ctx_att"):
        return method.anchors[int(parts[-1][-1]) - 1]
    return ours_of_older_methods(innermost(method), theirs)


def begun(case, clip):
    """The method of a golden vector with the authors' initial values in it, its parameters by their names, a batch."""
    told, arrays = golden(case)
    names = tuple(told["classnames"])
    method = MAKE[case.partition("-")[0]](clip, told["hyperparameters"], told)
    method.begin_lesson(Lesson(Split((), (), names)), torch.Generator().manual_seed(0))
    pairs = {k.removeprefix("param."): ours(method, k.removeprefix("param.")) for k in arrays if k.startswith("param.")}
    with torch.no_grad():
        for name, parameter in pairs.items():
            parameter.copy_(arrays[f"param.{name}"])
    assert {id(p) for p in pairs.values()} == {id(p) for p in method.parameters()}
    return method, pairs, Batch(images(arrays["images"], case), arrays["labels"], names), arrays, told


def dept_errors(method, out, terms, arrays):
    """Of what DePT alone has."""
    weight = method.weight
    errors = {
        "similarity": relative(out.logits, arrays["logits_similarity"]),
        "ce": relative(terms["ce"][0], (1 - weight) * arrays["loss_ce"]),
        "linear": relative(terms["linear"][0], weight * arrays["loss_linear"]),
        "head": relative(method.linear(method.modulate_images(out), slice(None)), arrays["logits_linear"]),
    }
    if "near" in terms:
        errors["near"] = relative(terms["near"][0], method.method.weight * arrays["loss_kg"])
    return errors


def atprompt_errors(method, out, terms, arrays):
    return {"training logits": relative(out.logits, arrays["logits"])}


OWN_ERRORS = {"dept": dept_errors, "atprompt": atprompt_errors}


@pytest.mark.parametrize("case", golden_cases(*MAKE))
def test_the_authors_numbers(authors_clip, case):
    method, pairs, batch, arrays, told = begun(case, authors_clip)
    errors = {"logits": relative(answer(method, batch).logits, arrays["logits"])}
    terms, out = method.train().loss_terms(batch, method.precompute(batch.names))
    loss = sum(value for value, _ in terms.values())
    loss.backward()
    errors["loss"] = relative(loss, arrays["loss"])
    errors["text"] = relative(out.text_features, arrays["text_features_raw"])
    errors["image"] = relative(out.image_features, arrays["image_features_raw"])
    errors |= OWN_ERRORS[case.partition("-")[0]](method, out, terms, arrays)
    errors |= {f"grad {name}": relative(p.grad, arrays[f"grad.{name}"]) for name, p in pairs.items()}
    torch.optim.SGD(method.parameters(), told["sgd"]["lr"]).step()
    errors |= {f"after {name}": relative(p, arrays[f"after.{name}"]) for name, p in pairs.items()}
    errors["logits after"] = relative(answer(method, batch).logits, arrays["logits_after"])
    print(case, max(errors.values()))
    assert max(errors.values()) < 1e-4, {k: v for k, v in errors.items() if v >= 1e-4}


# --- DePT ---


def step(method):
    begin(method)
    batch = batch_of(("cat", "dog"))
    return method.loss_terms(batch, method.precompute(batch.names))


@pytest.mark.parametrize("case", golden_cases("dept"))
def test_a_list_with_a_new_class_is_answered_by_the_cosines_alone(authors_clip, case):
    method, _, batch, arrays, _ = begun(case, authors_clip)
    some = Batch(batch.inputs, batch.labels, batch.names[3:1:-1])
    assert relative(answer(method, some).logits, arrays["logits"][:, [3, 2]]) < 1e-4  # by name, not by number
    method.linear.class_ids = method.linear.class_ids[1:]
    assert relative(answer(method, batch).logits, arrays["logits_new_classes"]) < 1e-4


def begin(method, names=("cat", "dog"), index=0):
    method.begin_lesson(Lesson(Split((), (), names), index=index), torch.Generator().manual_seed(0))
    return method


def batch_of(names, n=3):
    pixels = torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Batch(images(pixels), torch.arange(n) % len(names), names)


def test_each_image_of_cocoop_has_the_text_of_its_own_prompt(tiny):
    method, batch = begin(m.DePT(m.CoCoOp(tiny, 2))), batch_of(("cat", "dog"))
    terms, out = method.loss_terms(batch, method.precompute(batch.names))
    assert out.text_features.shape[:2] == (3, 2)
    rows = torch.stack([out.text_features[i, label] for i, label in enumerate(batch.labels.tolist())])
    logits = torch.cat([rows, out.image_features]) @ method.linear.weight.T + method.linear.bias  # scales begin at 1
    wanted = 0.7 * torch.nn.functional.cross_entropy(logits, batch.labels.repeat(2))
    assert relative(terms["linear"][0], wanted) < 1e-6


def test_the_head_learns_at_a_rate_of_its_own(tiny):
    method, batch = begin(m.DePT(m.CoOp(tiny, 2))), batch_of(("cat", "dog"))
    start = {name: p.detach().clone() for name, p in method.named_parameters()}
    loop = Loop(method, Lesson(Split((), (), batch.names)), TrainConfig(momentum=0, weight_decay=0), 1)
    loop.take_step(batch, 0.1)
    for name, p in method.named_parameters():
        rate = 0.1 if name.startswith("method.") else 0.65
        assert torch.allclose(p.detach(), start[name] - rate * p.grad, rtol=1e-5, atol=1e-7), name


def test_a_later_lesson_adds_classes_to_the_head(tiny):
    method = begin(m.DePT(m.CoOp(tiny, 2)))
    first = method.linear.weight.detach().clone()
    begin(method, ("fox", "dog"), 1)
    assert method.linear.class_ids == ("cat", "dog", "fox")
    assert torch.equal(method.linear.weight[:2].detach(), first)
    assert method.precompute(("fox", "cat"))[1].tolist() == [2, 0]
    assert method.precompute(("fox", "ox"))[1] is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda clip: m.DePT(m.CoOp(clip, 2), 1.5), r"method.weight: expected at most 1, got 1.5"),
        (lambda clip: m.DePT(m.CoOp(clip, 2), -0.1), r"method.weight: expected at least 0, got -0.1"),
        (lambda clip: m.DePT(m.CoOp(clip, 2), lr_factor=-1), r"method.lr_factor: expected at least 0, got -1"),
    ],
)
def test_settings_out_of_range(tiny, make, message):
    with pytest.raises(ValueError, match=message):
        begin(make(tiny))


def test_methods_without_a_clip_are_refused(tiny):
    with pytest.raises(ValueError, match=r"DePT: expected a method on a CLIP, got VPT."):
        begin(m.DePT(m.VPT(tiny.image, LinearHead(), 2)))


# --- ATPrompt ---


def plain_texts(clip, template, names, tokens):
    """Class texts with all tokens, as a template with places writes them."""
    texts = [template.replace("{name}", name) for name in names]
    return clip.text(texts, Prompt(tokens={0: tokens[None]}))[0]


def test_words_of_several_tokens_stand_in_the_text_whole(authors_clip):
    """The second word comes behind all of the first one, where the authors' slices lose it."""
    words, names = ("art world", "texture"), ("cat", "flower")
    method = begin(m.ATPrompt(m.CoOp(authors_clip, 3), words, 2), names)
    text = method.prepare(names, method.precompute(names))
    tokens = torch.cat([*method.anchors, method.method.ctx]).detach()
    assert relative(text, plain_texts(authors_clip, "{2} art world {2} texture {3} {name}.", names, tokens)) < 1e-6
    cut = plain_texts(authors_clip, "{2} art {2} world {3} {name}.", names, tokens)
    assert relative(text, cut) > 1e-3


def test_class_specific_contexts_share_the_words(tiny):
    names = ("cat", "dog", "fox")
    method = begin(m.ATPrompt(m.CoOp(tiny, 2, class_specific=True), ("color",), 3), names)
    text = method.prepare(names, method.precompute(names))
    for i, name in enumerate(names):
        tokens = torch.cat([*method.anchors, method.method.ctx[i]]).detach()
        assert relative(text[i], plain_texts(tiny, "{3} color {2} {name}.", (name,), tokens)[0]) < 1e-5


def test_frozen_texts_have_no_words_and_wrappers_stand_outside(tiny):
    names = ("cat", "dog")
    near, bare = (
        begin(m.KgCoOp(make(m.CoOp(tiny, 2))), names) for make in (lambda inner: m.ATPrompt(inner), lambda x: x)
    )
    assert torch.equal(near.reference_texts(names), bare.reference_texts(names))
    method, batch = begin(m.DePT(m.ATPrompt(m.CoOp(tiny, 2))), names), batch_of(names)
    terms, _ = method.loss_terms(batch, method.precompute(names))
    sum(value for value, _ in terms.values()).backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in method.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda clip: m.ATPrompt(m.CoOp(clip, 2), ()), r"method.attributes: expected words such as .*, got \[\]"),
        (lambda clip: m.ATPrompt(m.CoOp(clip, 2), ("color", " ")), r"method.attributes: .*, got \['color', ' '\]"),
        (lambda clip: m.ATPrompt(m.CoOp(clip, 2), n_tokens=0), r"method.n_tokens: expected at least 1, got 0"),
        (
            lambda clip: m.ATPrompt(m.KgCoOp(m.CoOp(clip, 2))),
            r"method.method: .*, got KgCoOp. Pass coop, cocoop or maple",
        ),
        (
            lambda clip: m.ATPrompt(m.TaskRes(clip)),
            r"method.method: expected .* at layer 0 of the text .*, got TaskRes",
        ),
        (lambda clip: m.ATPrompt(m.MMRL(clip, layers=2)), r"method.method: expected .* at layer 0 .*, got MMRL"),
    ],
)
def test_methods_and_words_that_do_not_fit(tiny, make, message):
    with pytest.raises(ValueError, match=message):
        step(make(tiny))
