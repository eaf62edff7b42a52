"""Protocols: what each task trains and tests on, what its scores come to, and which parameters are kept."""

import math
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import f1_score

import vlprompt
from vlprompt import methods, metrics
from vlprompt.core.images import Images, Preprocessing
from vlprompt.data.images.decoding import AUGMENTATIONS
from vlprompt.engine.evaluate import evaluate
from vlprompt.engine.loop import fit
from vlprompt.engine.train_config import TrainConfig
from vlprompt.runtime.seeding import make_generator
from vlprompt.tasks import BaseToNew, FewShot, Transfer


def test_joint_accuracy_is_over_all_classes_at_once(tiny):
    task = BaseToNew("digits", shots=2)
    [stage] = task.stages()
    assert set(stage.tests) == {"base", "new", "joint"}
    assert len(stage.tests["joint"].names) == 10
    assert len(stage.tests["base"]) + len(stage.tests["new"]) == len(stage.tests["joint"])
    result = vlprompt.run(methods.ZeroShot(tiny), task, TrainConfig())
    whole = evaluate(methods.ZeroShot(tiny), FewShot("digits").data.test)
    assert result.summary["joint"] == whole.metrics["accuracy"]
    assert result.summary["joint"] <= max(result.summary["base"], result.summary["new"])


def test_transfer_tests_each_target_among_its_own_classes(tiny, pictures):
    task = Transfer("digits", ["glyphs", str(pictures)], shots=1)
    [stage] = task.stages()
    assert [len(t.names) for t in stage.tests.values()] == [10, 75, 2]
    assert stage.tests["glyphs"].names[0].template == "a photo of the {name}."
    result = vlprompt.run(methods.CoOp(tiny, 4), task, TrainConfig(epochs=1))
    summary = result.summary
    assert list(summary) == ["source", "glyphs", pictures.name, "average"]
    assert math.isclose(summary["average"], (summary["glyphs"] + summary[pictures.name]) / 2)
    assert set(result.protocol["targets"]) == {"glyphs", pictures.name}
    assert result.protocol["targets"]["glyphs"]["test"] == stage.tests["glyphs"].hash()


def test_zero_shot_in_a_transfer_uses_the_targets_template(tiny):
    [stage] = Transfer("digits", ["glyphs"], shots=1).stages()
    names = stage.tests["glyphs"].names
    found = methods.ZeroShot(tiny).precompute(names)
    assert torch.allclose(found, tiny.unit(tiny.text([f"a photo of the {n}." for n in names])[0]), atol=1e-6)


def test_a_transfer_needs_targets(pictures):
    with pytest.raises(ValueError, match=r"task.targets: expected datasets or folders, got none. Set --targets"):
        Transfer("digits", [])
    with pytest.raises(ValueError, match=r"task.targets: expected different names, got 'glyphs' twice. Rename"):
        list(Transfer("digits", ["glyphs", "glyphs"]).stages())


def test_macro_f1_and_accuracy_per_class():
    g = make_generator("f1")
    labels, predicted = torch.randint(5, (200,), generator=g), torch.randint(6, (200,), generator=g)
    theirs = 100 * f1_score(labels, predicted, labels=range(5), average="macro", zero_division=0)
    assert math.isclose(metrics.macro_f1(predicted, labels, 7), theirs, rel_tol=1e-9)
    each = metrics.per_class_accuracy(predicted, labels, 7)
    assert math.isclose(float(each[2]), 100 * float((predicted[labels == 2] == 2).double().mean()))
    assert each[5:].isnan().all()


def test_the_result_holds_the_accuracy_of_each_class(tiny, tmp_path):
    result = vlprompt.run(methods.NearestMean(tiny.image), FewShot("digits", shots=1), TrainConfig(), tmp_path / "run")
    [stage] = result.class_accuracy
    assert set(stage["test"]) == {str(i) for i in range(10)}
    count = FewShot("digits").data.test.count_per_class()
    mean = sum(stage["test"][str(i)] * count[i] for i in range(10)) / sum(count)
    assert math.isclose(mean, result.summary["accuracy"], rel_tol=1e-9)


def test_the_epoch_that_is_best_on_validation_images_is_kept(tiny):
    lesson, train = (
        FewShot("digits", shots=2).lesson,
        TrainConfig(epochs=6, batch_size=20, lr=0.2, warmup=0, model_selection="val"),
    )
    method = methods.CoOp(tiny, 4)
    method.begin_lesson(lesson, make_generator(0))
    seen = []
    for step in fit(method, lesson, train):
        if step.step < step.total_steps:  # after the last step the best is back already
            seen.append((evaluate(method, lesson.val).metrics["accuracy"], method.ctx.detach().clone()))
    last = methods.CoOp(tiny, 4)
    last.begin_lesson(lesson, make_generator(0))
    list(fit(last, lesson, TrainConfig(epochs=6, batch_size=20, lr=0.2, warmup=0)))
    seen.append((evaluate(last, lesson.val).metrics["accuracy"], last.ctx.detach().clone()))
    best = max(range(6), key=lambda i: seen[i][0])
    assert best != 5, "this setting must have its best epoch before the last, or the test says nothing"
    assert torch.equal(method.ctx, seen[best][1])
    with pytest.raises(ValueError, match=r"train.model_selection=val: expected validation images, got none. Set"):
        next(fit(method, replace(lesson, val=None), train))


def test_selection_is_told_in_the_result(tiny):
    result = vlprompt.run(
        methods.CoOp(tiny, 4), FewShot("digits", shots=1), TrainConfig(epochs=1, model_selection="val")
    )
    assert result.protocol["selection"] == "best epoch on validation images"


def test_a_number_of_iterations_ends_the_training_in_the_middle_of_an_epoch(tiny):
    lesson = FewShot("digits", shots=2).lesson
    method = methods.CoOp(tiny, 4)
    method.begin_lesson(lesson, make_generator(0))
    steps = list(
        fit(
            method,
            lesson,
            TrainConfig(iterations=7, batch_size=5, schedule_unit="iteration", warmup=0, lr=1.0, min_lr=0.5),
        )
    )
    assert [s.step for s in steps] == list(range(1, 8))
    assert [s.epoch for s in steps] == [0, 0, 0, 0, 1, 1, 1]
    assert math.isclose(steps[3].lr, 0.5 + 0.5 * (1 + math.cos(math.pi * 3 / 7)) / 2)


@pytest.mark.parametrize("kind", [a for a in AUGMENTATIONS if a != "none"])
def test_views_of_an_image_are_always_the_same_and_differ(pictures, kind):
    batch = next(FewShot(str(pictures), shots=2).lesson.train.batches(4))
    look = Preprocessing((32, 32))
    views = [batch.inputs.augment(kind, k) for k in (0, 1, 0)]
    assert torch.equal(views[0].pixels(look), views[2].pixels(look))
    assert views[0].keys == views[2].keys != views[1].keys
    assert not torch.equal(views[0].pixels(look), views[1].pixels(look))
    [first, _] = batch.micro_batches(2)
    assert first.inputs.augment(kind, 1).keys == views[1].keys[:2]
    assert torch.equal(first.inputs.augment(kind, 1).pixels(look), views[1].pixels(look)[:2])


def test_half_crops_keep_half_of_the_picture():
    from vlprompt.data.images.decoding import MIN_CROP_AREA, _crop_box

    areas = {}
    for kind, least in MIN_CROP_AREA.items():
        boxes = [_crop_box(200, 100, least, torch.Generator().manual_seed(s)) for s in range(300)]
        areas[kind] = min(h * w for _, _, h, w in boxes) / 20000
    assert areas["crop-flip"] < 0.2
    assert areas["crop-flip-half"] > 0.45


def test_pixels_alone_have_no_other_views(tiny):
    bare = Images(lambda look, places: torch.zeros(len(places), 3, 32, 32), ["bare/0"])
    method = methods.TPT(tiny)
    method.begin_lesson(FewShot("digits", shots=1).lesson, make_generator(0))
    names = FewShot("digits").data.test.names
    with pytest.raises(ValueError, match=r"augmentation .*got pixels.*Give them as files"):
        method.eval()(bare, method.prepare(names, method.precompute(names)))


@pytest.mark.parametrize("select", ["last", "val"])
def test_what_is_summed_over_epochs_and_what_was_best_survive_a_stop(tiny, select):
    lesson, train = (
        FewShot("digits", shots=1).lesson,
        TrainConfig(epochs=4, batch_size=5, lr=0.05, warmup=0, model_selection=select),
    )

    def begun():
        inner = methods.IVLP(tiny, 2, 2, 2, 2, None)
        method = methods.PromptSRC(inner, gaussian_mean=2.0, gaussian_std=1.0, template="a {name}")
        method.begin_lesson(lesson, make_generator(0))
        return method

    whole, states = begun(), []
    for step in fit(whole, lesson, train):
        states.append(step.loop.state())
    for stop in (2, 3, 6):  # in the middle of an epoch and at its end
        again = begun()
        assert len(list(fit(again, lesson, train, resume=states[stop]))) == len(states) - stop - 1
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_a_wrapper_takes_another_method_than_its_recipes(tmp_path):
    """Settings of the recipe's inner method don't stay behind when another one is named."""
    from vlprompt.config.resolve import resolve_grid

    file = tmp_path / "mine.yaml"
    file.write_text("method: {name: kgcoop, method: {name: prograd, method: {name: cocoop, n_ctx: 4}}}")
    [plan] = resolve_grid([None], [1], [1], dataset="digits", config_file=file)
    assert plan.method["method"]["name"] == "prograd"
    assert plan.method["method"]["method"] == {
        "name": "cocoop", "n_ctx": 4, "init_text": None, "context_template": "{ctx} {name}.", "reduction": 16,
    }  # fmt: skip
    [short] = resolve_grid(["kgcoop"], [1], [1], dataset="digits", overrides=["method.method=cocoop"])
    assert short.method["method"]["name"] == "cocoop"
    [same] = resolve_grid(
        ["kgcoop"], [1], [1], dataset="digits", overrides=["method.method.n_ctx=7", "method.method.init_text=null"]
    )
    assert same.method["method"]["name"] == "coop"
    with pytest.raises(ValueError, match="method: expected a known name, got 'cocop'; did you mean 'cocoop'"):
        resolve_grid(["kgcoop"], [1], [1], dataset="digits", overrides=["method.method=cocop"])
    with pytest.raises(ValueError, match="head: expected a known name, got 'text'; did you mean 'texts'"):
        resolve_grid(["vpt"], [1], [1], dataset="digits", overrides=["method.head=text"])
