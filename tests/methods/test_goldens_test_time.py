"""The methods that adapt to one test image, against numbers that the authors' own code computed (tests/golden)."""

import json
from dataclasses import replace

import pytest
import torch
from shared import golden, golden_cases, images, relative

from vlprompt import methods as m
from vlprompt.core.batch import Split
from vlprompt.core.images import Images
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.methods import mta, tps
from vlprompt.methods._views import count_confident, order_by_confidence
from vlprompt.methods.ctpt import compute_dispersion
from vlprompt.metrics import entropy

BOUNDS = "entropy_threshold", "mask_threshold"  # of the negative cache of TDA
NAMES = ("cat", "dog", "plane", "big car")


def fed(case, clip):
    """A CLIP with the scale of a vector, the vector's views (V, B, E), what it says and its arrays."""
    told, arrays = golden(case)
    clip = replace(clip, scale=float(arrays["logit_scale"].exp()), bias=0.0)
    views = arrays["views"] if arrays["views"].ndim == 3 else arrays["views"][None]
    return clip, views.transpose(0, 1), told["hyperparameters"], arrays


def begun(method, names=NAMES):
    method.begin_lesson(Lesson(Split((), (), names)), torch.Generator().manual_seed(0))
    return method.eval()


def answer(method, inputs, names=NAMES):
    with torch.no_grad():
        return method(inputs, method.prepare(names, method.precompute(names)))


def equal_views(pixels, tag):
    """Images whose augmentations are the images themselves, as those of a constant picture are."""
    keys = [f"{tag}/{i}" for i in range(len(pixels))]
    return Images(lambda look, places: pixels[list(places)], keys, lambda kind, k: equal_views(pixels, f"{tag} {k}"))


@pytest.fixture
def pixels():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))


# --- ZERO ---


@pytest.mark.parametrize("case", golden_cases("zero"))
def test_zero(authors_clip, case):
    clip, views, h, arrays = fed(case, authors_clip)
    method = m.ZERO(clip, h["views"] - 1, h["gamma"], h["eps"])
    cosines = views @ arrays["text"].T
    order, n = order_by_confidence(clip.scale * cosines), count_confident(h["views"], h["gamma"])
    assert torch.equal(order[:n].T, arrays["kept"])
    votes = method.cast_votes(torch.take_along_dim(cosines, order[:n, :, None], 0)).sum(0)
    assert relative(votes, arrays["votes"]) < 1e-4
    output = method.decide(views, arrays["text"])
    assert relative(output, arrays["output"]) < 1e-4
    assert torch.equal((output - votes).sum(1) > 0.5, arrays["tied"])
    if h["eps"] < 1e-6:  # a vote of float32 is a whole one
        assert torch.equal(
            m.ZERO(clip, h["views"] - 1, h["gamma"], 0.0).decide(views, arrays["text"]), arrays["output"]
        )


def test_a_tie_of_zero_goes_to_the_first_view_that_decides_it():
    from vlprompt.methods.zero import break_ties

    votes = torch.tensor([[2.0, 2.0, 1.0], [2.0, 2.0, 1.0], [3.0, 2.0, 0.0], [2.0, 0.0, 2.0]])
    choices = torch.tensor([[2, 1, 1, 1], [0, 2, 1, 1], [1, 0, 1, 2], [1, 0, 1, 0]])  # (V, B), in order of entropy
    expected = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert torch.equal(break_ties(votes, choices), expected)


def test_the_probabilities_of_zero_are_shares_of_votes(golden_clip, pixels):
    p = answer(begun(m.ZERO(golden_clip, 7, 0.5, 0.0)), images(pixels, "zero")).logits.softmax(-1)
    is_whole = [((n * p).round() - n * p).abs().amax(-1) < 1e-4 for n in (4, 5)]  # four votes, and one for a tie
    assert bool((is_whole[0] | is_whole[1]).all())
    assert len(set(p.flatten().tolist())) > 2


# --- MTA ---


@pytest.mark.parametrize("case", golden_cases("mta"))
def test_mta(authors_clip, case):
    clip, views, h, arrays = fed(case, authors_clip)
    method = m.MTA(clip, views.shape[0] - 1, h["lambda_y"], h["lambda_q"])
    assert (h["max_iter"], h["tolerance"], h["nearest"]) == (mta.ITERATIONS, mta.TOLERANCE, mta.NEAREST)
    by_image = views.transpose(0, 1)
    mode, inlierness = method.find_mode(views, arrays["text"])
    errors = {
        "bandwidth": relative(mta.compute_bandwidth(by_image).sqrt(), arrays["bandwidth"]),
        "affinity": relative(method.compute_affinity(by_image, arrays["text"]), arrays["affinity"]),
        "inlierness": relative(inlierness, arrays["inlierness"]),
        "mode": relative(mode, arrays["mode"]),
        "output": relative(method.decide(views, arrays["text"]), arrays["output"]),
    }
    assert max(errors.values()) < 1e-4, errors


def test_equal_views_have_the_answer_of_one(golden_clip, pixels):
    """Views of a constant picture are all equal: their distances are zero, and the mode is their feature."""
    inputs = equal_views(pixels, "equal")
    plain = answer(begun(m.ZeroShot(golden_clip)), inputs).logits
    for method in (m.MTA(golden_clip, 5), m.TPS(golden_clip, augmentations=5, lr=0.0)):
        assert relative(answer(begun(method), inputs).logits, plain) < 1e-5
    votes = answer(begun(m.ZERO(golden_clip, 5)), inputs).logits
    assert torch.equal(votes.argmax(1), plain.argmax(1))


def test_views_of_which_some_are_equal_have_an_inlierness(golden_clip):
    """The bandwidth of equal views is zero, of which the others know nothing."""
    clip, draw = golden_clip, torch.Generator().manual_seed(2)
    views, text = clip.unit(torch.randn(12, 2, 64, generator=draw)), clip.unit(torch.randn(3, 64, generator=draw))
    views[:5] = views[0]
    mode, inlierness = m.MTA(clip, 11).find_mode(views, text)
    assert torch.allclose(inlierness.sum(1), torch.ones(2))
    assert torch.allclose(mode.norm(dim=1), torch.ones(2))


# --- C-TPT ---


@pytest.mark.parametrize("case", golden_cases("ctpt"))
def test_ctpt(authors_clip, case):
    told, arrays = golden(case)
    h, names, clip = told["hyperparameters"], tuple(told["classnames"]), authors_clip
    words = h["ctx_init"] and h["ctx_init"].replace("_", " ")
    method = begun(
        m.CTPT(
            clip,
            h["n_ctx"] if words is None else None,
            words,
            augmentations=h["views"] - 1,
            confident_fraction=h["selection_p"],
            lr=h["lr"],
            steps=h["adamw_steps"],
            dispersion_weight=h["lambda_term"],
        ),
        names,
    )
    if words is not None:
        assert torch.equal(method.ctx, arrays["param.ctx"])
    method.ctx = arrays["param.ctx"].clone()
    texts = method.precompute(names)

    def look(views, k=-1):  # one image, whose augmentations are the views behind the first
        return Images(lambda *_: views[k + 1 : k + 2], (f"{case} {k}",), lambda kind, k: look(views, k))

    inputs = look(arrays["images"])
    ctx = arrays["param.ctx"].clone().requires_grad_()
    encode = lambda ctx: clip.text(texts, Prompt(tokens={0: ctx[None]}))[0]  # noqa: E731
    features = torch.cat([clip.image(inputs), *(clip.image(inputs.augment("", k)) for k in range(h["views"] - 1))])
    text = encode(ctx)
    logits = clip.logits(features, text)
    chosen = order_by_confidence(logits[:, None])[: count_confident(h["views"], h["selection_p"]), 0]
    assert torch.equal(chosen, arrays["chosen"])
    p = logits[chosen].softmax(-1)
    loss = method.compute_loss(p[:, None], clip.unit(text)[None])[0]
    loss.backward()
    after = ctx.detach() - told["sgd"]["lr"] * ctx.grad
    tuned = method.tune_context(features[:, None], texts)[0]
    errors = {
        "image": relative(features, arrays["image_features_raw"]),
        "text": relative(text, arrays["text_features_raw"]),
        "logits": relative(logits, arrays["logits_views"]),
        "entropy": relative(entropy(p.mean(0)), arrays["entropy"]),
        "dispersion": relative(compute_dispersion(clip.unit(text)), arrays["dispersion"]),
        "loss": relative(loss, arrays["loss"]),
        "grad": relative(ctx.grad, arrays["grad.ctx"]),
        "after": relative(after, arrays["after.ctx"]),
        "logits after": relative(clip.logits(features[:1], encode(after)), arrays["logits_after"]),
        "adamw": relative(tuned, arrays["adamw.ctx"]),
        "adamw dispersion": relative(compute_dispersion(clip.unit(encode(tuned))), arrays["adamw.dispersion"]),
        "answer": relative(answer(method, inputs, names).logits, arrays["adamw.logits"]),
    }
    assert max(errors.values()) < 1e-4, errors


def test_ctpt_without_dispersion_is_tpt(golden_clip, pixels):
    settings = {"augmentations": 7, "confident_fraction": 0.3, "lr": 0.05}
    plain, same, other = (
        answer(begun(method), images(pixels, "ctpt")).logits
        for method in (
            m.TPT(golden_clip, **settings),
            m.CTPT(golden_clip, **settings, dispersion_weight=0.0),
            m.CTPT(golden_clip, **settings),
        )
    )
    assert torch.equal(plain, same)
    assert not torch.allclose(plain, other, atol=0.01)


# --- TPS ---


@pytest.mark.parametrize("case", golden_cases("tps"))
def test_tps(authors_clip, case):
    clip, views, h, arrays = fed(case, authors_clip)
    method = m.TPS(clip, h["per_class"], h["scale"], h["views"] - 1, h["selection_p"], h["lr"])
    if "text" in arrays:
        text = clip.unit(arrays["text"])
    else:
        weight = {"micro": None, "macro": 80}[h["pooling"]]
        counts, described = arrays["concept_counts"].tolist(), arrays["concept_features"]
        text = clip.unit(tps.join_texts(arrays["template_features"].mean(1), described, counts, weight))
    initial = [arrays[key].reshape(1, -1, h["dim"]) for key in ("param.shift", "param.scale") if key in arrays]
    names = ["shift", "scale"][: len(initial)]
    trained = [value.clone().requires_grad_() for value in initial]
    logits = method.compute_logits(views, text, trained)
    chosen = order_by_confidence(logits)[: count_confident(h["views"], h["selection_p"]), 0]
    assert torch.equal(chosen, arrays["chosen"])
    loss = entropy(logits[chosen, 0].softmax(-1).mean(0))
    grads = torch.autograd.grad(loss, trained)
    after = [value - 0.1 * grad for value, grad in zip(initial, grads, strict=True)]
    tuned = method.tune_parameters(views, text, initial)
    errors = {
        "prototypes": relative(text, arrays["prototypes"]),
        "logits": relative(logits[:, 0], arrays["logits_views"]),
        "loss": relative(loss, arrays["loss"]),
        "logits after": relative(method.compute_logits(views, text, after)[0], arrays["logits_after"]),
        "answer": relative(clip.logits(views[0], method.move(text, tuned)), arrays["adamw.logits"]),
    }
    for name, *values in zip(names, grads, after, tuned, strict=True):
        for kind, value in zip(("grad", "after", "adamw"), values, strict=True):
            key = f"{kind}.{name}"
            errors[key] = relative(value.reshape(arrays[key].shape), arrays[key])
    assert max(errors.values()) < 1e-4, errors


def test_the_files_descriptions_are_joined_with_the_templates(golden_clip, tmp_path):
    from vlprompt.layers.class_texts import encode_class_texts

    described = {"cat": ["a cat that purrs", "whiskers"], "dog": ["a dog that barks"]}
    path, templates = tmp_path / "texts.json", ["a photo of a {name}.", "{name}", "a {name}."]
    path.write_text(json.dumps({**described, "bird": ["wings"]}))
    unit, names = golden_clip.unit, ("dog", "cat")
    by_template = encode_class_texts(golden_clip, names, templates, normalize=True)
    means = torch.stack([unit(golden_clip.text(described[name])[0]).mean(0) for name in names])
    counts = torch.tensor([[1.0], [2.0]])
    expected = {"micro": (by_template + means) / 2, "macro": (3 * by_template + counts * means) / (3 + counts)}
    for pooling, text in expected.items():
        method = m.TPS(golden_clip, template=templates, descriptions=str(path), pooling=pooling)
        assert relative(method.precompute(names), unit(text)) < 1e-5
    with pytest.raises(ValueError, match="expected a description of 'plane', got none"):
        m.TPS(golden_clip, descriptions=str(path)).precompute(("cat", "plane"))


# --- TDA ---


@pytest.mark.parametrize("case", golden_cases("tda"))
def test_tda(authors_clip, case):
    told, arrays = golden(case)
    h, clip = told["hyperparameters"], replace(authors_clip, scale=told["hyperparameters"]["scale"], bias=0.0)
    positive, negative = h["positive"], h["negative"]
    bounds = [tuple(negative[key][bound] for bound in ("lower", "upper")) for key in BOUNDS]
    method = m.TDA(
        *(clip, positive["alpha"], positive["beta"], positive["shot_capacity"]),
        *(negative["alpha"], negative["beta"], negative["shot_capacity"], *bounds, h["views"] - 1),
    )
    views, names = arrays["views"].transpose(0, 1), tuple(map(str, range(h["classes"])))
    stream, plain = (method.prepare(names, arrays["text"]) for _ in range(2))
    logits = torch.cat([method.decide(views[:, i : i + 7], stream) for i in range(0, h["images"], 7)])
    features, image_logits, p = method.merge_views(views, plain)
    errors = {
        "feature": relative(features, arrays["feature"]),
        "zero-shot": relative(image_logits, arrays["logits_zeroshot"]),
        "probabilities": relative(p, arrays["probabilities"]),
        "entropy": relative(entropy(p), arrays["entropy"]),
        "logits": relative(logits, arrays["logits"]),
    }
    assert torch.equal(image_logits.argmax(1), arrays["predicted"])
    assert torch.equal(torch.tensor([method.is_unsure(row) for row in p]), arrays["in_negative"])
    for name, cache in (("positive", stream.positive), ("negative", stream.negative)):
        is_stored = cache.entropies.isfinite()
        assert torch.equal(is_stored.nonzero()[:, 0], arrays[f"{name}.class"])
        errors[f"{name} keys"] = relative(cache.keys[is_stored], arrays[f"{name}.keys"])
        errors[f"{name} entropies"] = relative(cache.entropies[is_stored], arrays[f"{name}.entropy"])
    lower, upper = bounds[1]
    may_be = (arrays["negative.probabilities"] > lower) & (arrays["negative.probabilities"] < upper)
    assert torch.equal(stream.negative.values[stream.negative.entropies.isfinite()], may_be.float())
    assert max(errors.values()) < 1e-4, errors


def test_an_image_of_tda_is_in_the_cache_before_it_is_judged(golden_clip, pixels):
    """Its own key has similarity 1, so the predicted class gets alpha at least."""
    inputs = images(pixels[:1], "first")
    plain = answer(begun(m.ZeroShot(golden_clip)), inputs).logits
    logits = answer(begun(m.TDA(golden_clip, alpha=3.0, negative_capacity=0)), inputs).logits
    assert torch.allclose(logits - plain, 3.0 * (plain == plain.amax(1)).float(), atol=1e-4)
    nothing = answer(begun(m.TDA(golden_clip, capacity=0, negative_capacity=0)), images(pixels, "first")).logits
    assert relative(nothing, answer(begun(m.ZeroShot(golden_clip)), images(pixels, "first")).logits) < 1e-5


def test_the_answers_of_tda_depend_on_the_order(golden_clip):
    pixels = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    method, order = begun(m.TDA(golden_clip)), torch.arange(11, -1, -1)
    forwards, backwards = (answer(method, images(p, f"tda {k}")).logits for k, p in enumerate((pixels, pixels[order])))
    assert not torch.allclose(forwards, backwards[order], atol=0.01)


# --- all ---


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (lambda clip: m.ZERO(clip, -1), "method.augmentations: expected at least 0, got -1"),
        (lambda clip: m.ZERO(clip, confident_fraction=1.5), "method.confident_fraction: expected a fraction from 0"),
        (lambda clip: m.ZERO(clip, temperature=-1.0), "method.temperature: expected at least 0, got -1.0"),
        (lambda clip: m.MTA(clip, 0), "method.augmentations: expected at least 1, got 0"),
        (lambda clip: m.MTA(clip, entropy_weight=0.0), "method.entropy_weight: expected at least 0.001, got 0.0"),
        (lambda clip: m.CTPT(clip, confident_fraction=2.0), "method.confident_fraction: expected a fraction from 0"),
        (lambda clip: m.TPT(clip, confident_fraction=-0.1), "method.confident_fraction: expected at least 0, got -0.1"),
        (lambda clip: m.TDA(clip, capacity=-1), "method.capacity: expected at least 0, got -1"),
        (lambda clip: m.TPS(clip, steps=-1), "method.steps: expected at least 0, got -1"),
    ],
)
def test_settings_that_do_not_fit(golden_clip, method, message):
    with pytest.raises(ValueError, match=message):
        begun(method(golden_clip))


@pytest.mark.parametrize("name", ["ZERO", "MTA", "CTPT", "TPS", "TDA"])
def test_one_class_and_one_augmentation(golden_clip, pixels, name):
    logits = answer(begun(getattr(m, name)(golden_clip, augmentations=1), ("cat",)), images(pixels, "one"), ("cat",))
    assert logits.logits.shape == (4, 1)
    assert bool(logits.logits.isfinite().all())


@pytest.mark.parametrize("name", ["TPT", "CTPT", "TPS", "ZERO", "MTA", "TDA"])
def test_an_unknown_augmentation_is_one_error(golden_clip, name):
    with pytest.raises(ValueError, match=r"^method.augment: expected a known augmentation, got 'augmx'; .*augmix"):
        begun(getattr(m, name)(golden_clip, augment="augmx"))


def test_texts_of_several_templates_have_the_same_weight_in_tda(golden_clip):
    templates = ("a {name}", "a photo of many of the {name}")
    every = torch.stack([golden_clip.text([t.format(name=n) for n in NAMES])[0] for t in templates])
    wanted = golden_clip.unit(golden_clip.unit(every).mean(0))
    made = m.TDA(golden_clip, template=templates).precompute(NAMES)
    assert relative(made, wanted) < 1e-6
    assert relative(golden_clip.unit(every.mean(0)), wanted) > 1e-5
