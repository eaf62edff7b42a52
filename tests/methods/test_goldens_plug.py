"""Methods around other methods against numbers that their authors' own code computed: values, gradients, a step."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from shared import golden_cases, images, relative
from test_goldens import answer, begun, coop, hand_written, maple
from test_goldens import ours as ours_of_older_methods

import vlprompt
from vlprompt import methods as m
from vlprompt.core.batch import Batch, Split
from vlprompt.core.images import Augmentation, Images, Preprocessing
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.data.images.decoding import preprocess_image
from vlprompt.engine.loop import Loop
from vlprompt.engine.train_config import TrainConfig
from vlprompt.layers.heads import LinearHead
from vlprompt.tasks.few_shot import FewShot

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


def coprompt(clip, h, told):
    distance = {"cosine": "cosine"}.get(h["DISTILL"], "mse")
    ratios = h["image_adapter_m"], h["text_adapter_m"]
    return m.CoPrompt(maple(clip, h, told), None, h["W"], distance, *ratios, h["reduction"])


MAKE = {"dept": dept, "atprompt": atprompt, "coprompt": coprompt}


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
    if parts[0].startswith("adapter_"):
        return method.adapters[parts[0].removeprefix("adapter_")][int(parts[2])].weight
    if parts[-1].startswith("ctx_att"):
        return method.anchors[int(parts[-1][-1]) - 1]
    return ours_of_older_methods(innermost(method), theirs)


def dept_errors(method, out, terms, arrays):
    """Of what DePT alone has."""
    weight = method.weight
    errors = {
        "similarity": relative(out.logits, arrays["logits_similarity"]),
        "ce": relative(terms["ce"][0], (1 - weight) * arrays["loss_ce"]),
        "linear": relative(terms["linear"][0], weight * arrays["loss_linear"]),
        "head": relative(
            method.linear(method.modulate("image", out.image_features), slice(None)), arrays["logits_linear"]
        ),
    }
    if "near" in terms:
        errors["near"] = relative(terms["near"][0], method.method.weight * arrays["loss_kg"])
    return errors


def atprompt_errors(method, out, terms, arrays):
    return {"training logits": relative(out.logits, arrays["logits"])}


def coprompt_errors(method, out, terms, arrays):
    weight = method.weight
    return {
        "training logits": relative(out.logits, arrays["logits"]),
        "ce": relative(terms["ce"][0], arrays["loss_ce"]),
        "image term": relative(terms["image"][0], weight * arrays["loss_image"]),
        "text term": relative(terms["text"][0], weight * arrays["loss_text"]),
    }


OWN_ERRORS = {"dept": dept_errors, "atprompt": atprompt_errors, "coprompt": coprompt_errors}


def with_second_view(method, batch, arrays, told, tmp_path):
    """Images whose augmentation is the authors' second view; one sentence for each class: the one that they drew."""
    drawn = {n: [s[told["hyperparameters"]["text_index"]]] for n, s in zip(batch.names, told["llm_texts"], strict=True)}
    (tmp_path / "drawn.json").write_text(json.dumps(drawn))
    method.descriptions = str(tmp_path / "drawn.json")
    pixels = arrays["images"]
    second = Images(
        lambda look, places: pixels[list(places)],
        [f"{told['name']}/{i}" for i in range(len(pixels))],
        lambda kind, k: images(arrays["images2"], f"{told['name']}/second"),
    )
    return replace(batch, inputs=second)


@pytest.mark.parametrize("case", golden_cases(*MAKE))
def test_the_authors_numbers(authors_clip, case, tmp_path):
    method, pairs, batch, arrays, told = begun(case, authors_clip, MAKE, ours)
    if case.startswith("coprompt"):
        batch = with_second_view(method, batch, arrays, told, tmp_path)
    errors = {"logits": relative(answer(method, batch).logits, arrays["logits"])}
    terms, out = method.train().loss_terms(batch, method.precompute(batch.names))
    loss = sum(value for value, _ in terms.values())
    loss.backward()
    errors["loss"] = relative(loss, arrays["loss"])
    for tower, features in {"text": out.text_features, "image": out.image_features}.items():
        wanted = arrays[f"{tower}_features_raw"]
        if f"adapter_{tower}_out" in arrays:
            ratio = told["hyperparameters"][f"{tower}_adapter_m"]
            wanted = ratio * arrays[f"adapter_{tower}_out"] + (1 - ratio) * wanted
        errors[tower] = relative(features, wanted)
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
    method, _, batch, arrays, _ = begun(case, authors_clip, MAKE, ours)
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


def test_terms_of_one_name_are_refused_instead_of_lost(tiny):
    inner = m.DePT(m.CoOp(tiny, 2))
    assert {"ce", "linear", "near"} == step(m.KgCoOp(inner))[0].keys()
    with pytest.raises(ValueError, match=r"KgCoOp: expected a method without a loss term 'near', .*, got TCP. Wrap"):
        step(m.KgCoOp(m.TCP(tiny, depth=1)))


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


def test_texts_without_a_context_have_no_words(tiny):
    _, text = begin(m.ATPrompt(m.CoOp(tiny, 2))).view_anchored()
    assert torch.equal(text(["a photo of a cat."]), tiny.text(["a photo of a cat."]))
    assert not text.is_used


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


# --- CoPrompt ---


def write_sentences(tmp_path, sentences):
    (tmp_path / "sentences.json").write_text(json.dumps(sentences))
    return str(tmp_path / "sentences.json")


@pytest.mark.parametrize("case", golden_cases("coprompt"))
def test_one_number_of_a_sentence_is_drawn_for_all_classes_at_each_step(authors_clip, case, tmp_path):
    method, _, batch, arrays, told = begun(case, authors_clip, MAKE, ours)
    method.descriptions = write_sentences(tmp_path, dict(zip(batch.names, told["llm_texts"], strict=True)))
    sentences = method.precompute(batch.names)[1]
    drawn = [sentences.draw(torch.Generator().manual_seed(i)) for i in range(30)]
    matches = [[n for n, wanted in enumerate(arrays["llm_text_features"]) if relative(d, wanted) < 1e-4] for d in drawn]
    assert all(len(found) == 1 for found in matches)
    assert {found[0] for found in matches} == set(range(len(arrays["llm_text_features"])))
    fixed = method.precompute(batch.names)
    steps = [method.loss_terms(replace(batch, step=step), fixed)[0]["text"][0] for step in range(5)]
    again = method.loss_terms(replace(batch, step=0), method.precompute(batch.names))[0]["text"][0]
    assert torch.equal(steps[0], again)
    assert len({float(value.detach()) for value in steps}) > 1


def test_classes_may_have_different_numbers_of_sentences(tiny, tmp_path):
    path = write_sentences(tmp_path, {"cat": ["a cat."], "dog": ["a dog.", "one more dog.", "the {dog}"]})
    method = begin(m.CoPrompt(m.MaPLe(tiny, 2, 2), path))
    sentences = method.precompute(("dog", "cat"))[1]
    assert [len(of_class) for of_class in sentences.features] == [3, 1]
    assert all(
        torch.equal(sentences.draw(torch.Generator().manual_seed(i))[1], sentences.features[1][0]) for i in (0, 1, 2)
    )


def test_new_classes_need_no_sentences_and_a_restored_method_needs_no_file(tiny):
    method, batch = begin(m.CoPrompt(m.MaPLe(tiny, 2, 2))), batch_of(("fox", "cat"))
    assert answer(method, batch).logits.shape == (3, 2)


def test_a_training_without_sentences_says_what_to_put_where(tiny, tmp_path):
    with pytest.raises(
        ValueError, match=r"method.descriptions: expected a file of sentences .* set method.descriptions"
    ):
        step(m.CoPrompt(m.MaPLe(tiny, 2, 2)))
    path = write_sentences(tmp_path, {"cat": ["a cat."]})
    with pytest.raises(ValueError, match=r"sentences.json': expected a description of 'dog', got none. Add one"):
        step(m.CoPrompt(m.MaPLe(tiny, 2, 2), path))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda clip: m.CoPrompt(m.CoOp(clip, 2), image_ratio=1.5), r"method.image_ratio: expected at most 1, got 1.5"),
        (lambda clip: m.CoPrompt(m.CoOp(clip, 2), text_ratio=-1), r"method.text_ratio: expected at least 0, got -1"),
        (
            lambda clip: m.CoPrompt(m.CoOp(clip, 2), augment="randaug"),
            r"method.augment: .*, got 'randaug'; did you mean",
        ),
        (lambda clip: m.CoPrompt(m.CoOp(clip, 2), reduction=0), r"method.reduction: expected at least 1, got 0"),
        (
            lambda clip: m.CoPrompt(m.KgCoOp(m.CoOp(clip, 2))),
            r"method.method: .* by cross-entropy alone, .*, got KgCoOp",
        ),
    ],
)
def test_settings_of_coprompt_that_do_not_fit(tiny, make, message):
    with pytest.raises(ValueError, match=message):
        begin(make(tiny))


def test_the_protocol_says_that_texts_of_a_language_model_were_used(tiny):
    descriptions = str(Path(__file__).parents[1] / "descriptions_of_digits.json")
    method = m.DePT(m.CoPrompt(m.MaPLe(tiny, 2, 1), descriptions)), m.DePT(m.MaPLe(tiny, 2, 1))
    with_texts, without = (
        vlprompt.run(one, FewShot("digits", shots=1), TrainConfig(iterations=1, batch_size=2)).protocol
        for one in method
    )
    assert with_texts["uses"] == ["llm_texts"]
    assert "uses" not in without


def test_randaugment_squashes_without_a_crop_and_is_a_function_of_its_seed():
    pixels = torch.zeros(40, 60, 3, dtype=torch.uint8)
    pixels[:, 30:] = 255
    picture, size = Image.fromarray(pixels.numpy()), Preprocessing((32, 32))
    views = [preprocess_image(picture, size, Augmentation("randaugment", seed)) for seed in range(40)]
    assert torch.equal(views[3], preprocess_image(picture, size, Augmentation("randaugment", 3)))
    assert len({view.numpy().tobytes() for view in views}) > 10
    squashed = preprocess_image(picture, replace(size, resize="squash"))  # what operations on colours leave as it is
    assert any(torch.equal(view, squashed) for view in views)
