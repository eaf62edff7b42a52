"""The loop: the literature's learning rates, optimizers, micro-batches, features computed once, losses not finite."""

import json
import math
from dataclasses import replace

import pytest
import torch

import vlprompt
from vlprompt.core.method import Method, Output
from vlprompt.core.stage import Lesson
from vlprompt.data.loading import open_data
from vlprompt.engine.evaluate import evaluate
from vlprompt.engine.loop import fit
from vlprompt.engine.train_config import TrainConfig, compute_learning_rate
from vlprompt.experiments.runner import run
from vlprompt.layers import heads
from vlprompt.methods import CoCoOp, CoOp, Linear, ZeroShot
from vlprompt.runtime.errors import NonFiniteError
from vlprompt.runtime.seeding import make_generator
from vlprompt.tasks import FewShot


def dassl(epochs, lr):
    """Constant warm-up for one epoch, then torch's own cosine scheduler, as Dassl chains them."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=lr)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    found = [1e-5]
    for _ in range(1, epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cosine.step()
    return found


@pytest.mark.parametrize("epochs", [2, 5, 50, 200])
def test_learning_rates_are_those_of_the_coop_family(epochs):
    mine = [
        compute_learning_rate(TrainConfig(epochs=epochs, lr=0.002), e, e * 3, epochs, 3 * epochs) for e in range(epochs)
    ]
    assert all(math.isclose(a, b, rel_tol=1e-9) for a, b in zip(mine, dassl(epochs, 0.002), strict=True))


def test_learning_rates_per_iteration():
    train = TrainConfig(epochs=4, lr=2e-4, schedule_unit="iteration", warmup=0, min_lr=1e-6)  # CLIP-LoRA's
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=2e-4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40, eta_min=1e-6)
    for step in range(40):
        assert math.isclose(
            compute_learning_rate(train, step // 10, step, 4, 40), optimizer.param_groups[0]["lr"], rel_tol=1e-9
        )
        optimizer.step()
        cosine.step()
    swinging = replace(train, schedule_period=10)  # a scheduler that is stepped on after its end
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.AdamW([parameter], lr=2e-4), 10, eta_min=1e-6)
    for step in range(40):
        assert math.isclose(compute_learning_rate(swinging, step // 10, step, 4, 40), cosine.get_last_lr()[0])
        cosine.optimizer.step()
        cosine.step()
    rising = [
        compute_learning_rate(
            TrainConfig(lr=1.0, warmup=4, warmup_kind="linear", warmup_lr=0.0, schedule="constant"), e, e, 6, 6
        )
        for e in range(6)
    ]
    assert rising == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


def test_rates_fall_at_milestones_as_torchs_do():
    train = TrainConfig(epochs=8, lr=0.1, schedule="milestones", milestones=(3, 6), milestone_factor=0.2, warmup=0)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    steps = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 6], 0.2)
    for epoch in range(8):
        assert math.isclose(compute_learning_rate(train, epoch, 4 * epoch, 8, 32), steps.get_last_lr()[0])
        optimizer.step()
        steps.step()
    for settings in (
        {"schedule": "milestones"},
        {"milestones": (3,)},
        {"schedule": "milestones", "milestones": (6, 3)},
    ):
        with pytest.raises(ValueError, match=r"train\.milestones: expected epochs .* in rising order"):
            TrainConfig(**settings)


def test_the_first_lesson_of_a_stream_has_epochs_and_a_rate_of_its_own(tiny):
    data = open_data("digits").train.select(range(64))
    train = TrainConfig(epochs=2, first_epochs=3, lr=0.1, first_lr=0.4, batch_size=32, schedule="constant", warmup=0)
    method = CoOp(tiny)
    for index, (n_epochs, lr) in enumerate([(3, 0.4), (2, 0.1), (2, 0.1)]):
        lesson = Lesson(data, index=index, total=3)
        method.begin_lesson(lesson, make_generator(1))
        steps = list(fit(method, lesson, train))
        assert len(steps) == 2 * n_epochs
        assert {step.lr for step in steps} == {lr}


class Seen(Method):
    """A linear model of known gradient, to hold the optimizer against one written out."""

    def __init__(self, clip):
        super().__init__()
        self.clip = clip

    def begin_lesson(self, lesson, generator):
        self.w = torch.nn.Parameter(torch.zeros(10, self.clip.feature_dim, dtype=torch.float64))

    def forward(self, inputs, prepared):
        return Output(self.clip.image(inputs).double() @ self.w.T)


def test_a_step_is_sgd_with_momentum_and_decay(tiny):
    lesson = FewShot("digits", shots=2).lesson
    method, train = (
        Seen(tiny),
        TrainConfig(epochs=5, batch_size=20, lr=0.1, warmup=0, schedule="constant", weight_decay=0.01),
    )
    method.begin_lesson(lesson, make_generator(0))
    list(fit(method, lesson, train))
    [batch] = lesson.train.batches(20)
    x, y = tiny.image(batch.inputs).double(), torch.nn.functional.one_hot(batch.labels, 10).double()
    w, v = torch.zeros(10, 64).double(), torch.zeros(10, 64).double()
    for _ in range(5):
        v = 0.9 * v + ((x @ w.T).softmax(1) - y).T @ x / 20 + 0.01 * w
        w = w - 0.1 * v
    assert torch.allclose(method.w.detach(), w, atol=1e-6)  # float32 inside cross-entropy


def test_clipping(tiny):
    lesson = FewShot("digits", shots=1).lesson
    method = Seen(tiny)
    method.begin_lesson(lesson, make_generator(0))
    [step] = fit(
        method,
        lesson,
        TrainConfig(epochs=1, batch_size=10, lr=1.0, warmup=0, momentum=0.0, weight_decay=0.0, grad_clip=0.01),
    )
    assert math.isclose(float(method.w.detach().norm()), 0.01, rel_tol=1e-3)
    assert step.loop.cursor.step == 1


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_other_optimizers_learn(tiny, optimizer):
    lesson = FewShot("digits", shots=2).lesson
    method = CoOp(tiny, 4)
    method.begin_lesson(lesson, make_generator(0))
    losses = [s.loss for s in fit(method, lesson, TrainConfig(epochs=30, optimizer=optimizer, lr=0.01, warmup=0))]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_parameters_stay_float32(tiny, precision):
    lesson = FewShot("digits", shots=1).lesson
    method = CoOp(tiny, 4)
    method.begin_lesson(lesson, make_generator(0))
    losses = [s.loss for s in fit(method, lesson, TrainConfig(epochs=20, lr=0.02, warmup=0, precision=precision))]
    assert method.ctx.dtype == torch.float32
    assert losses[-1] < losses[0]


def test_features_are_computed_once_in_a_run_of_several_epochs(tiny):
    passes = []
    encode = tiny.image.encode
    tiny.image.encode = lambda pixels, *output: passes.append(len(pixels)) or encode(pixels, *output)
    task = FewShot("digits", shots=4)
    run(CoOp(tiny, 4), task, TrainConfig(epochs=5))
    images = 40 + len(task.data.test)
    size = tiny.image.pass_size
    assert set(passes) == {size}
    assert images <= len(passes) * size < images + 20 * size  # each image once; a pass is filled up
    before = len(passes)
    run(CoCoOp(tiny, 4), FewShot("digits", shots=4), TrainConfig(epochs=2))
    assert len(passes) == before  # another method on the same images: nothing new


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(tiny, tmp_path):
    class Bad(CoOp):
        def loss_terms(self, batch, fixed):
            terms, out = super().loss_terms(batch, fixed)
            return ({"ce": (terms["ce"][0] * float("nan"), 1.0)} if batch.step == 7 else terms), out

    task, train = FewShot("digits", shots=1), TrainConfig(epochs=20, lr=0.01)
    with pytest.raises(
        NonFiniteError,
        match=r"ce: expected a finite value at step 8, got .* \(epoch 7, learning rate 0.00\d+.*train.grad_clip=1",
    ):
        run(Bad(tiny, 4), task, train, tmp_path / "bad", save_every=1e9)
    from vlprompt.results.run_folder import RunFolder

    state, _ = RunFolder(tmp_path / "bad").load_state()
    assert state.step == 7
    assert all(bool(t.isfinite().all()) for k, t in state.tensors.items() if k.startswith("method/"))
    assert len((tmp_path / "bad" / "steps.jsonl").read_text().splitlines()) == 7


def test_the_folder_of_a_run(tiny, tmp_path):
    result = run(CoOp(tiny, 4), FewShot("digits", shots=1), TrainConfig(epochs=3), tmp_path / "one")
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == [
        "answers.safetensors",
        "config.yaml",
        "inputs.json",
        "prompt.safetensors",
        "result.json",
        "steps.jsonl",
    ]
    told = json.loads((tmp_path / "one" / "result.json").read_text())
    assert told["summary"] == result.summary
    assert told["cost"]["trained_parameters"] == 4 * 48
    assert told["protocol"]["selection"] == "last epoch"
    assert told["protocol"]["classes"][3] == "three"
    assert told["environment"]["torch"] == torch.__version__.split("+")[0] or told["environment"]["torch"]
    steps = [json.loads(line) for line in (tmp_path / "one" / "steps.jsonl").read_text().splitlines()]
    assert [s["step"] for s in steps] == [1, 2, 3]
    assert {"stage", "epoch", "step", "lr", "ce"} == set(steps[0])
    again = run(CoOp(tiny, 4), FewShot("digits", shots=1), TrainConfig(epochs=3), tmp_path / "one")
    assert again == result
    with pytest.raises(ValueError, match=r"got a run with other method\. Name another folder"):
        run(CoOp(tiny, 5), FewShot("digits", shots=1), TrainConfig(epochs=3), tmp_path / "one")


def test_files_of_others_in_the_folder_stay(tiny, tmp_path):
    (tmp_path / ".profile").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".result.json.12345").write_text("half of")
    with pytest.raises(ValueError, match=r"expected at most 40 tokens, got 64 .*Use at most 36 prompt tokens"):
        run(CoOp(tiny, 60), FewShot("digits", shots=1), TrainConfig(epochs=1), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".profile", "notes.txt"]
    run(CoOp(tiny, 4), FewShot("digits", shots=1), TrainConfig(epochs=1), tmp_path)
    assert {".profile", "notes.txt", "result.json"} <= {p.name for p in tmp_path.iterdir()}


def test_the_python_three_liner():
    clip = vlprompt.load("glyph/random")
    task = vlprompt.tasks.FewShot("digits", shots=1, seed=1)
    result = vlprompt.run(vlprompt.methods.CoOp(clip), task, vlprompt.TrainConfig(epochs=1))
    assert set(result.summary) == {"accuracy", "class_mean", "macro_f1", "calibration_error"}
    assert vlprompt.run(vlprompt.methods.ZeroShot(clip), task).summary["accuracy"] < 40


def test_logistic_regression_is_scikit_learns():
    from sklearn.linear_model import LogisticRegression

    from vlprompt.data.builtin import digits

    task = FewShot("digits", shots=8, seed=1)
    score = run(Linear(vlprompt.load("pixels").image, heads.LinearHead(), inverse_regularization=1.0), task).summary[
        "accuracy"
    ]
    x, y = (
        digits.load_digit_arrays()[0].reshape(1797, -1).repeat(3, 1) / 255.0,
        digits.load_digit_arrays()[1],
    )  # three equal channels
    train, test = ([int(item.name.split("/")[1]) for item in s.items] for s in (task.lesson.train, task.data.test))
    theirs = 100 * LogisticRegression(max_iter=2000).fit(x[train], y[train]).score(x[test], y[test])
    assert abs(score - theirs) < 0.15


def test_two_classes_are_solved_too(tiny):
    from vlprompt.tasks import BaseToNew

    lesson = BaseToNew("digits", shots=4, base_classes=["0", "1"]).lesson
    method = Linear(tiny.image, heads.LinearHead(), inverse_regularization=1e6)
    method.begin_lesson(lesson, make_generator(0))
    from vlprompt.engine.evaluate import evaluate

    assert evaluate(method, lesson.train).metrics["accuracy"] == 100


def test_logits_that_are_no_numbers_make_no_prediction(tiny):
    method = CoOp(tiny, n_ctx=2)
    data = open_data("digits")
    method.begin_lesson(Lesson(data.train.select(range(4))), make_generator(1))
    with torch.no_grad():
        method.ctx[:] = torch.nan
    with pytest.raises(NonFiniteError, match=r"expected logits that are numbers, got NaN for 3 of 3 items\. Check"):
        evaluate(method, data.test.select(range(3)))


def test_a_small_backbone_runs_on_one_thread_and_leaves_the_others_as_they_were():
    threads, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        method, task = ZeroShot(vlprompt.load("glyph/random")), FewShot("digits", shots=1, seed=1)
        run(method, task, TrainConfig(epochs=1), on_event=lambda event: seen.append(torch.get_num_threads()))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert set(seen) == {1}


class Detached(CoOp):
    def prepare(self, names, fixed):
        return super().prepare(names, fixed).detach()


def test_a_loss_that_no_parameter_takes_part_in_says_so():
    method = Detached(vlprompt.load("glyph/random"), n_ctx=2)
    lesson = FewShot("digits", shots=1).lesson
    method.begin_lesson(lesson, make_generator(1))
    with pytest.raises(ValueError, match="Detached: expected a loss with a gradient, got one that no parameter takes"):
        list(fit(method, lesson, TrainConfig(epochs=1), seed=1))
