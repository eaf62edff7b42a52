"""Methods that change a CLIP's weights, or its blocks, against numbers that their authors' own code computed."""

import math

import pytest
import torch
from shared import golden, golden_cases, images, relative
from written_out import library

from vlprompt import methods as m
from vlprompt.backbones.open_clip.towers import wrap_clip
from vlprompt.core.batch import Batch, Split
from vlprompt.core.stage import Lesson
from vlprompt.engine.loop import fit
from vlprompt.engine.train_config import TrainConfig
from vlprompt.testing.images import build_digits_lesson

KINDS = ("clipsvd", "mma")  # those of one stage
MAPS = {"ln_1": "norm1", "ln_2": "norm2", "out_proj": "out"} | {
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "proj": "out",
    "c_fc": "up",
    "c_proj": "down",
}


def named(text):
    return text.replace("{}", "{name}")


def clip_svd(clip, h):
    sides = [side for side, key in (("image", "image"), ("text", "text")) if h[f"train_{key}_encoder"]]
    flags = {"q": "q", "k": "k", "v": "v", "out": "o_proj", "up": "mlp", "down": "mlp"}
    sites = [site for site, flag in flags.items() if h[f"train_{flag}"]]
    return m.CLIPSVD(clip, sides, sites, logit_scale=float(h["logit_scale"]), template=named(h["template"]))


def mma(clip, h):
    layers = tuple(range(h["ADAPTER_START"] - 1, h["ADAPTER_END"]))
    return m.MMA(clip, h["ADAPTER_DIM"], layers, h["ADAPTER_SCALE"], h["TEXT_CTX_INIT"] + " {name}.")


def two_stage(clip, h):
    assert h["text_start"] == 0
    towers = {"both": ("image", "text"), "vision": ("image",)}[h["modality"]]
    layers = tuple(range(h["vision_start"], clip.image.depth))
    return m.TwoStage(
        clip, towers, {"ln": "norms", "bitfit": "biases"}[h["peft"]], layers, template=named(h["template"])
    )


MAKE = {"clipsvd": clip_svd, "mma": mma, "twostage": two_stage}
OUTER = {"ln_pre": "pre_norm", "ln_post": "norm", "ln_final": "norm"}


def ours(method, theirs):
    """Our parameter that is the authors' `theirs`."""
    parts = theirs.split(".")
    if theirs == "classifier":
        return method.classifier
    if "adapter_learner" in parts:
        tower, index = {"visual": "image", "text": "text"}.get(parts[1].split("_")[0]), int(parts[2]) - 1
        maps = method.shared if tower is None else getattr(method, parts[3])[tower]
        return getattr(maps[method.tower_layers["image"].index(index)], parts[-1])
    tower = "image" if parts[0] == "visual" else "text"
    site = OUTER.get(parts[-2]) or f"{parts[parts.index('resblocks') + 1]}/{MAPS[parts[-2]]}"
    return getattr(method.adapters[tower][site], {"vector_S": "values"}.get(parts[-1], parts[-1]))


def begun(case, clip):
    told, arrays = golden(case)
    names = tuple(told["classnames"])
    method = MAKE[case.partition("-")[0]](clip, told["hyperparameters"])
    method.begin_lesson(Lesson(Split((), (), names)), torch.Generator().manual_seed(0))
    parts = {k.removeprefix("param."): ours(method, k.removeprefix("param.")) for k in arrays if k.startswith("param.")}
    assert {id(p) for p in parts.values()} == {id(p) for p in method.parameters()}
    return method, parts, Batch(images(arrays["images"], case), arrays["labels"], names), arrays, told


def answer(method, batch):
    with torch.no_grad():
        return method.eval()(batch.inputs, method.prepare(batch.names, method.precompute(batch.names)))


def step(method, batch):
    """The loss and the answer, with the gradients that the training loop makes."""
    terms, out = method.train().loss_terms(batch, method.precompute(batch.names))
    parameters = list(method.parameters())
    grads = {
        name: list(torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True))
        for name, (value, _) in terms.items()
    }
    idle = {id(p) for p in method.idle_parameters()}
    for p, g in zip(parameters, method.merge_gradients(grads), strict=True):
        p.grad = None if id(p) in idle else g
    return sum(value for value, _ in terms.values()), out


def compare_step(method, parts, batch, arrays, told):
    """The errors of a step that begins with the authors' values."""
    with torch.no_grad():
        for name, p in parts.items():
            p.copy_(arrays[f"param.{name}"])
    loss, out = step(method, batch)
    errors = {"loss": relative(loss, arrays["loss"]), "logits": relative(out.logits, arrays["logits"])}
    if "image_features_raw" in arrays:
        errors["image"] = relative(out.image_features, arrays["image_features_raw"])
        is_unit = out.text_features.norm(dim=1).allclose(torch.ones(()))  # frozen texts
        texts = arrays["text_features_raw"]
        errors["text"] = relative(out.text_features, method.clip.unit(texts) if is_unit else texts)
    errors |= {f"grad {name}": relative(p.grad, arrays[f"grad.{name}"]) for name, p in parts.items()}
    torch.optim.SGD(method.parameters(), told["sgd"]["lr"]).step()
    errors |= {f"after {name}": relative(p, arrays[f"after.{name}"]) for name, p in parts.items()}
    errors["logits after"] = relative(answer(method, batch).logits, arrays["logits_after"])
    return errors


def hold(case, errors):
    print(case, max(errors.values()))
    assert max(errors.values()) < 1e-4, {k: v for k, v in errors.items() if v >= 1e-4}


@pytest.mark.parametrize("case", golden_cases(*KINDS))
def test_the_authors_numbers(authors_clip, case):
    method, parts, batch, arrays, told = begun(case, authors_clip)
    errors = {f"start {name}": relative(p, arrays[f"param.{name}"]) for name, p in parts.items() if "svd" in case}
    hold(case, errors | compare_step(method, parts, batch, arrays, told))


def begin(method, names=("cat", "dog"), index=0):
    method.begin_lesson(Lesson(Split((), (), names), index=index), torch.Generator().manual_seed(0))
    return method


# --- CLIP-SVD ---


def test_trained_singular_values_merge_exactly(authors_clip):
    method, _, batch, _, _ = begun("clipsvd-both", authors_clip)
    with torch.no_grad():
        for p in method.parameters():
            p *= 1 + 0.1 * torch.rand(p.shape, generator=torch.Generator().manual_seed(0))
    out, merged = answer(method, batch), method.merge_backbone()
    found = merged.image(batch.inputs), merged.text(method.precompute(batch.names)[0])[0]
    assert relative(out.image_features, found[0]) < 1e-6  # the same bits on some processors alone
    assert relative(out.text_features, found[1]) < 1e-6
    assert relative(found[0], authors_clip.image(batch.inputs)) > 1e-2


def test_the_state_has_the_singular_values_alone(tiny):
    method = begin(m.CLIPSVD(tiny))
    assert sum(t.numel() for t in method.state_dict().values()) == sum(p.numel() for p in method.parameters())
    saved = {key: value * 1.1 for key, value in method.state_dict().items()}
    fresh = m.CLIPSVD(tiny)
    fresh.restore([Lesson(Split((), (), ("cat", "dog")))], saved)
    part, again = method.adapters["image"]["0/q"], fresh.adapters["image"]["0/q"]
    torch.testing.assert_close(again.merge(part.u * 0, None)[0], part.u * (0.1 * part.start) @ part.vh)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda clip: m.TwoStage(clip, share=1.5), r"method.share: expected at most 1, got 1.5"),
        (lambda clip: m.TwoStage(clip, share=-0.1), r"method.share: expected at least 0, got -0.1"),
        (lambda clip: m.TwoStage(clip, layers=(9,)), r"method.layers: expected layers 0 to 2 of the image tower"),
        (lambda clip: m.MMA(clip, 0), r"method.bottleneck_dim: expected at least 1, got 0"),
        (lambda clip: m.MMA(clip, scale=0.0), r"method.scale: expected a value above 0, got 0.0"),
        (lambda clip: m.MMA(clip, layers=(3,)), r"method.layers: expected layers 0 to 2 of the tower, got \[3\]"),
        (lambda clip: m.MMA(clip, layers=0), r"method.layers: expected at least 1, got 0"),
        (lambda clip: m.CLIPSVD(clip, sites=("norm1",)), r"method.sites: expected linear maps .*, got 'norm1'"),
        (lambda clip: m.CLIPSVD(clip, sites=()), r"method.sites: expected one linear map at least, got none"),
        (
            lambda clip: m.CLIPSVD(clip, layers=(7,)),
            r"method.layers: expected layers 0 to 2 of the image tower, got \[7\]",
        ),
    ],
)
def test_settings_out_of_range(tiny, make, message):
    with pytest.raises(ValueError, match=message):
        begin(make(tiny))


# --- MMA ---


def test_the_last_blocks_of_towers_of_different_depths():
    model, tokenizer = library({"vision_cfg": {"layers": 4}, "text_cfg": {"layers": 2}})
    method = begin(m.MMA(wrap_clip(model, tokenizer, "x"), 8, 3))
    assert {name: list(layers) for name, layers in method.tower_layers.items()} == {"text": [0, 1], "image": [2, 3]}
    assert method.clipped_settings == {"layers": "clipped from 3 to 2 (the tower has 2 layers)"}


def test_a_bottleneck_as_wide_as_a_tower(tiny):
    """It breaks in the authors' code."""
    method = begin(m.MMA(tiny, tiny.text.dim, 1))
    batch = Batch(images(torch.randn(2, 3, 32, 32)), torch.tensor([0, 1]), ("cat", "dog"))
    loss, _ = step(method, batch)
    assert loss.isfinite()
    assert all(p.grad.abs().sum() > 0 for p in method.parameters())


# --- 2SFS ---


@pytest.mark.parametrize("case", golden_cases("twostage"))
def test_the_two_stages_of_2sfs(authors_clip, case):
    method, parts, batch, arrays, told = begun(case, authors_clip)
    rows = parts.pop("classifier")
    if told["listed_but_frozen"]:  # the norms outside of the blocks
        assert all(int(name.split("/")[0]) >= 0 for tower in method.adapters.values() for name in tower)
    before = rows.clone()
    errors = compare_step(method, parts, batch, arrays, told)
    assert torch.equal(rows, before)
    method.end_step(1, 1)
    errors["rows"] = relative(rows, arrays["param.classifier"])
    adapters = {name: p.detach().clone() for name, p in parts.items()}
    loss, out = step(method, batch)
    errors |= {
        "loss 2": relative(loss, arrays["stage2.loss"]),
        "logits 2": relative(out.logits, arrays["stage2.logits"]),
    }
    errors["grad"] = relative(rows.grad, arrays["grad.classifier"])
    torch.optim.SGD(method.parameters(), told["sgd"]["lr"]).step()
    errors["after"] = relative(rows, arrays["after.classifier"])
    assert all(torch.equal(p, adapters[name]) for name, p in parts.items())
    for key, names in (("base", "classnames"), ("new", "new_classnames"), ("mixed", "mixed_names")):
        test = Batch(images(arrays["images_test"], f"{case} test"), torch.zeros(3).long(), tuple(told[names]))
        errors[f"eval {key}"] = relative(answer(method, test).logits, arrays[f"eval.logits_{key}"])
    hold(case, errors)


def train(method, lesson, iterations, **settings):
    """The learning rate, the idle parameters and the norm of the rows at each step."""
    config = TrainConfig(iterations=iterations, batch_size=5, schedule_unit="iteration", warmup=0, **settings)
    steps = []
    for taken in fit(method, lesson, config):
        is_idle = {name for name, p in method.named_parameters() if p.grad is None}
        steps.append((taken.lr, is_idle, float(method.classifier.detach().norm())))
    return steps


def test_each_stage_has_its_parameters_and_its_schedule(tiny):
    lesson = build_digits_lesson()
    method = m.TwoStage(tiny)
    method.begin_lesson(lesson, torch.Generator().manual_seed(0))
    steps = train(method, lesson, 10, optimizer="adamw", lr=0.01, weight_decay=0.5, min_lr=1e-6)
    rates = [rate for rate, *_ in steps]
    wanted = [1e-6 + (0.01 - 1e-6) * (1 + math.cos(math.pi * i / n)) / 2 for n in (6, 4) for i in range(n)]
    assert rates == pytest.approx(wanted, rel=1e-12)
    adapters = {name for name, _ in method.named_parameters()} - {"classifier"}
    assert [idle for _, idle, _ in steps] == [{"classifier"}] * 6 + [adapters] * 4
    norms = [norm for *_, norm in steps]
    assert norms[:5] == [0.0] * 5  # filled behind the sixth step
    assert norms[5] == pytest.approx(len(lesson.train.names) ** 0.5, rel=1e-5)
    assert norms[6] < norms[5]  # its weight decay begins here


def test_a_stage_without_steps(tiny):
    lesson = build_digits_lesson()
    for share, iterations, is_filled in ((0.0, 1, True), (1.0, 3, True), (0.6, 1, True)):
        method = m.TwoStage(tiny, share=share)
        method.begin_lesson(lesson, torch.Generator().manual_seed(0))
        train(method, lesson, iterations)
        assert method.has_rows.tolist() == [is_filled] * 10
    method = m.TwoStage(tiny)
    method.begin_lesson(lesson, torch.Generator().manual_seed(0))
    batch = next(lesson.train.batches(4))
    zero_shot = m.ZeroShot(tiny, "a photo of a {name}.")
    assert relative(answer(method, batch).logits, answer(zero_shot, batch).logits) < 1e-5  # untrained


def test_a_later_lesson_begins_with_the_texts_of_its_classes(tiny):
    method = begin(m.TwoStage(tiny))
    method.end_step(1, 1)
    begin(method, ("dog", "fox"), 1)
    assert method.has_rows.tolist() == [True, False, False]
    assert not method.is_second_stage
    method.end_step(1, 1)
    assert method.is_second_stage
    begin(method, ("ox",))
    assert method.has_rows.tolist() == [False]


def test_weights_of_both_stages_merge(tiny):
    for tuning in ("norms", "biases"):
        method = begin(m.TwoStage(tiny, tuning=tuning))
        with torch.no_grad():
            for p in method.parameters():
                p += 0.1 * torch.rand(p.shape, generator=torch.Generator().manual_seed(0))
        batch = Batch(images(torch.randn(2, 3, 32, 32)), torch.tensor([0, 1]), ("cat", "dog"))
        out, merged = answer(method, batch), method.merge_backbone()
        assert relative(merged.image(batch.inputs), out.image_features) < 1e-5
        assert relative(merged.text(method.precompute(batch.names)[0])[0], out.text_features) < 1e-5
        assert relative(out.image_features, tiny.image(batch.inputs)) > 1e-2


def test_the_stages_go_through_a_method_around_it(tiny):
    lesson = build_digits_lesson()
    wrapper = m.KgCoOp(m.TwoStage(tiny), 1.0)
    wrapper.begin_lesson(lesson, torch.Generator().manual_seed(0))
    assert wrapper.schedule_starts(10) == (0, 6)
    config = TrainConfig(iterations=3, batch_size=5, schedule_unit="iteration", warmup=0)
    idle = [{n for n, p in wrapper.named_parameters() if p.grad is None} for _ in fit(wrapper, lesson, config)]
    assert idle[0] == {"method.classifier"}
    assert idle[1] == idle[2] == {n for n, _ in wrapper.named_parameters()} - {"method.classifier"}


def test_each_class_keeps_its_row_while_another_is_learned_again(tiny):
    method = begin(m.TwoStage(tiny))
    method.end_step(1, 1)
    rows = torch.randn_like(method.classifier)
    method.classifier.data.copy_(rows)
    begin(method, ("cat",), 1)
    names = ("dog", "cat")
    with torch.no_grad():
        found = method.prepare(names, method.precompute(names))
    assert torch.equal(found[0], rows[1])
    assert relative(found[1], tiny.text(["a photo of a cat."])[0, 0]) < 1e-5
