"""What a run will hold, told beforehand; and how one that would not fit is made to."""

import json
import math

import pytest
import torch
from written_out import NAMES

from vlprompt import methods
from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.images import ImageItem
from vlprompt.core.introspection import apply_compute_options
from vlprompt.core.stage import Lesson
from vlprompt.engine.loop import Loop
from vlprompt.engine.train_config import TrainConfig
from vlprompt.experiments.memory_plan import (
    ALLOCATOR_OVERHEAD,
    FIRST_STEP_MB,
    CostModel,
    MemoryPlan,
    plan_memory,
    subsample_lesson,
)
from vlprompt.layers import heads
from vlprompt.runtime import memory
from vlprompt.runtime.seeding import make_generator
from vlprompt.runtime.settings import SETTINGS


@pytest.fixture
def limit(monkeypatch):
    """A limit of so many MB above what the process holds now; goes with the test."""
    monkeypatch.setattr(SETTINGS, "memory_limit_mb", math.inf)
    return lambda mb: memory.set_limit((memory.measure_used(torch.device("cpu")) + mb) / 1024)


def lesson(classes, images):
    names = tuple(ClassName(f"{NAMES[i % len(NAMES)]} {i}", str(i)) for i in range(classes))
    items = tuple(
        ImageItem(f"plan/{i}", lambda look, view, i=i: torch.randn(3, *look.size, generator=make_generator(i)))
        for i in range(images)
    )
    return Lesson(Split(items, tuple(i % classes for i in range(images)), names))


def held(build, lesson, train):
    """MB of the tensors of a step as it is."""
    method = build()
    method.begin_lesson(lesson, make_generator(0))
    loop, batch = Loop(method.train(), lesson, train, 1), next(lesson.train.batches(train.batch_size))
    loop.compute_gradients(batch)
    with memory.TensorMemoryTracker() as tracked:
        loop.compute_gradients(batch)
    return tracked.peak_bytes / 2**20


MADE = {
    "coop": (lambda clip: methods.CoOp(clip, n_ctx=8), 150, 4),
    "cocoop": (lambda clip: methods.CoCoOp(clip, n_ctx=4), 60, 24),
    "maple": (lambda clip: methods.MaPLe(clip, n_ctx=2), 80, 60),
    "vpt": (lambda clip: methods.VPT(clip.image, heads.LinearHead(), n_tokens=5), 5, 300),
    "lora": (lambda clip: methods.LoRA(clip.image, heads.LinearHead()), 5, 200),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in ("maple", "lora") else []) for n in MADE]
)
def test_what_a_step_holds_is_told_from_small_ones(name, tiny, limit):
    made, classes, images = MADE[name]
    limit(1e5)
    train = TrainConfig(batch_size=images, epochs=1)
    found = plan_memory(lambda: made(tiny), lesson(classes, images), train)
    assert found.tensor_mb == pytest.approx(held(lambda: made(tiny), lesson(classes, images), train), rel=0.15)
    assert found.fits
    assert not found.overrides
    assert found.seconds > 0


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("coop", {"text_micro_batch", "activation_checkpointing"}),
        pytest.param(
            "cocoop", {"micro_batch_size", "text_micro_batch", "activation_checkpointing"}, marks=pytest.mark.slow
        ),
        pytest.param("vpt", {"micro_batch_size", "activation_checkpointing"}, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_does_not_fit_is_made_to(name, wanted, tiny, limit):
    made, classes, images = MADE[name]
    train, shown = TrainConfig(batch_size=images, epochs=1), lesson(classes, images)
    limit(1e5)
    whole = plan_memory(lambda: made(tiny), shown, train).tensor_mb
    limit(FIRST_STEP_MB + ALLOCATOR_OVERHEAD * whole / 2)
    found = plan_memory(lambda: made(tiny), shown, train)
    assert found.overrides
    assert set(found.overrides) <= wanted
    assert found.fits
    assert found.requested_mb > found.available_mb
    assert "the same numbers" in str(found)
    from dataclasses import replace

    less, most = (held(lambda: made(tiny), shown, t) for t in (replace(train, **found.overrides), train))
    assert less < most
    assert less < 0.6 * whole


def test_what_can_not_be_made_to_fit_is_said(tiny, limit):
    limit(1)
    found = plan_memory(lambda: methods.CoOp(tiny), lesson(8, 4), TrainConfig(batch_size=4, epochs=1))
    assert not found.fits
    assert "may still not fit" in str(found) or "may not fit" in str(found)
    with pytest.raises(
        ValueError, match=r"--memory-limit: expected a number of GB above 0, got 0. Set --memory-limit 3"
    ):
        memory.set_limit(0)


def test_what_normalises_over_the_batch_keeps_it_whole(tiny, limit):
    limit(49)
    found = plan_memory(
        lambda: methods.MLP(tiny.image, heads.LinearHead()), lesson(5, 64), TrainConfig(batch_size=64, epochs=1)
    )
    assert "micro_batch_size" not in found.overrides


def test_small_runs_are_not_measured(tiny):
    def build():
        method = methods.CoOp(tiny)
        method.begin_lesson = lambda *given: pytest.fail("it was measured")
        return method

    assert plan_memory(build, lesson(8, 4), TrainConfig(batch_size=4)).seconds == 0


def test_parts_of_a_lesson_have_long_names_and_short():
    part = subsample_lesson(lesson(40, 10), 4, 3)
    assert len(part.train.names) == 4
    assert len(part.train) == 3
    lengths = [len(str(n)) for n in part.train.names]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]


def test_a_line_through_four_points():
    bill = CostModel.fit({(c, b): 5 + 2 * c + 3 * b + 0.5 * c * b for c in (10, 20) for b in (1, 2)})
    assert bill(100, 32) == pytest.approx(5 + 200 + 96 + 1600)
    assert CostModel.fit({(3, 1): 7.0, (3, 2): 9.0})(3, 10) == pytest.approx(25)
    assert str(MemoryPlan(2048, 4096, 30)) == "2.00 GB at most, 30 s"


def test_a_run_says_what_was_chosen_and_learns_the_same(type_in, pictures, limit, tmp_path):
    command = ["run", "cocoop", str(pictures), "--backbone", "glyph/random", "--shots", "4", "train.epochs=2"]
    command += ["train.batch_size=8", "train.lr=0.1"]
    assert type_in(*command, "-o", "plain")[0] == 0
    limit(1)
    status, told = type_in(*command, "-o", "spared")
    assert status == 0
    assert "(the same numbers)" in told
    results = [json.loads(next((tmp_path / out).rglob("result.json")).read_text()) for out in ("plain", "spared")]
    assert results[1]["environment"]["memory_overrides"]
    assert "memory_overrides" not in results[0]["environment"]
    assert results[0]["config"] == results[1]["config"]
    steps = [[json.loads(line)["ce"] for line in next((tmp_path / out).rglob("steps.jsonl")).read_text().splitlines()]
             for out in ("plain", "spared")]  # fmt: skip
    assert steps[0] == pytest.approx(steps[1], rel=1e-4)
    status, told = type_in(*command, "-o", "refused", "--memory-limit", "0")
    assert status == 2
    assert "--memory-limit: expected a number of GB above 0, got 0.0. Set --memory-limit 3." in told


def test_spare_takes_only_what_changes_no_number(tiny, pictures):
    from vlprompt.experiments.runner import run
    from vlprompt.tasks import FewShot

    with pytest.raises(
        ValueError,
        match="memory_overrides: expected micro_batch_size, text_micro_batch, activation_checkpointing, got lr",
    ):
        run(methods.CoOp(tiny), FewShot(str(pictures), shots=2), memory_overrides={"lr": 1.0})


def test_computed_leaves_towers_as_they_were_after_an_error(tiny):
    method = methods.CoOp(tiny)
    with (
        pytest.raises(KeyError),
        apply_compute_options(method, TrainConfig(activation_checkpointing=True).compute_options),
    ):
        raise KeyError
    assert not tiny.text.compute_options.activation_checkpointing
