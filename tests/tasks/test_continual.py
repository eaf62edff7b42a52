"""Streams: what a lesson holds, what is tested when, the numbers that come of it, and that a run goes on anywhere."""

import csv
import functools
import inspect
import json
import types
from dataclasses import fields, is_dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from kills import end, interrupted, killed_until_done, outcome, same_but_for_time, start
from PIL import Image

import vlprompt
from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName, class_ids
from vlprompt.core.images import ImageItem
from vlprompt.data.builtin.digits import load_digit_arrays
from vlprompt.data.loading import open_data
from vlprompt.engine.evaluate import evaluate, iter_logits
from vlprompt.experiments.events import StepDone
from vlprompt.experiments.learned.prompt import load_prompt
from vlprompt.layers.heads import LinearHead
from vlprompt.methods import (
    L2P,
    CODAPrompt,
    CoOp,
    DualPrompt,
    Linear,
    NearestMean,
    RanPAC,
    SPrompts,
    TipAdapter,
    ZeroShot,
)
from vlprompt.metrics import CONTINUAL_METRICS, continual_summary
from vlprompt.results.run_folder import RunFolder
from vlprompt.runtime.errors import UnknownClassError
from vlprompt.tasks import Continual

TRAIN = vlprompt.TrainConfig(
    epochs=2, batch_size=16, optimizer="adam", lr=0.01, schedule="constant", warmup=0, drop_last=False
)
ONCE = vlprompt.TrainConfig(**{**vars(TRAIN), "epochs": 1})


@pytest.fixture(scope="module")
def vit():
    return vlprompt.load("glyph-vit/random")


@pytest.fixture(scope="module")
def domains(tmp_path_factory):
    """A table of pictures of ten classes in three domains: handwritten digits, dark, and darker ones."""
    root = tmp_path_factory.mktemp("domains")
    pictures, labels = load_digit_arrays()
    with (root / "data.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "class", "split", "domain"])
        for i in range(240):
            domain, part = ("plain", "dark", "darker")[i % 3], "train" if i % 6 < 3 else "test"
            Image.fromarray(pictures[i] // (1 + i % 3)).save(root / f"{i}.png")
            writer.writerow([f"{i}.png", f"digit {labels[i]}", part, domain])
    return str(root / "data.csv")


def linear(vit):
    return Linear(vit, LinearHead(), solver="fit")


def key_set(split):
    return {item.key for item in split.items}


# the lessons


def test_classes_come_once_and_tests_are_of_all_so_far():
    task = Continual("digits", stages=4)
    stages = list(task.stages())
    assert [len(s.lesson.train.names) for s in stages] == [3, 3, 2, 2]
    met = [i for s in stages for i in class_ids(s.lesson.train.names)]
    assert met == list(map(str, range(10)))
    whole = open_data("digits")
    assert set().union(*(key_set(s.lesson.train) for s in stages)) == key_set(whole.train) | key_set(whole.val)
    assert all(s.lesson.val is None for s in stages)  # trained on
    for lesson in Continual("digits", stages=4, with_val=False).lessons():
        assert key_set(lesson.train) <= key_set(whole.train)
        assert key_set(lesson.val) <= key_set(whole.val)
        assert lesson.val.names == lesson.train.names
    assert all(not key_set(a.lesson.train) & key_set(b.lesson.train) for a in stages for b in stages if a is not b)
    assert key_set(stages[-1].tests["seen"]) == key_set(whole.test)
    truth = dict(zip((i.key for i in whole.test.items), whole.test.labels, strict=True))
    seen = stages[1].tests["seen"]
    assert class_ids(seen.names) == tuple("012345")
    assert [int(class_ids(seen.names)[label]) for label in seen.labels] == [truth[i.key] for i in seen.items]
    assert seen.domains == tuple(label // 3 for label in seen.labels)
    assert class_ids(stages[0].future_tests["next"].names) == tuple("012345")
    assert set(stages[0].future_tests["next"].labels) == {3, 4, 5}
    assert not stages[-1].future_tests
    assert not stages[1].initial_tests


def test_orders():
    natural, seeded, again, other = (
        [class_ids(s.train.names) for s in Continual("digits", stages=5, order=order, seed=seed).lessons()]
        for order, seed in (("natural", 1), ("seeded", 1), ("seeded", 1), ("seeded", 2))
    )
    assert natural[0] == ("0", "1")
    assert seeded == again != other
    assert sorted(sum(seeded, ())) == list("0123456789")
    given = Continual("digits", stages=2, order=list("9876543210"))
    assert [class_ids(s.train.names) for s in given.lessons()] == [tuple("98765"), tuple("43210")]
    named = Continual("digits", stages=[["7"], ["1", "2"]])
    assert [class_ids(s.train.names) for s in named.lessons()] == [("7",), ("1", "2")]
    assert len(list(named.stages())[-1].tests["seen"].names) == 3


def test_stages_whose_classes_are_told_have_an_order_too():
    told = [["7"], ["1", "2"], ["0"], ["5", "3"]]
    natural, seeded, other, given = (
        Continual("digits", stages=told, order=order, seed=seed).protocol["class_order"]
        for order, seed in (("natural", 1), ("seeded", 1), ("seeded", 2), (["4", "2", "1", "3"], 1))
    )
    assert natural == told
    assert sorted(seeded) == sorted(other) == sorted(told)
    assert len({str(natural), str(seeded), str(other)}) == 3
    assert given == [["5", "3"], ["1", "2"], ["7"], ["0"]]


def test_without_a_mask_training_knows_all_classes_so_far():
    first, second, *_ = Continual("digits", stages=5, mask=False).lessons()
    assert class_ids(first.train.names) == ("0", "1")
    assert class_ids(second.train.names) == ("0", "1", "2", "3")
    assert set(second.train.labels) == {2, 3}


def test_domains_come_one_after_another(domains):
    task = Continual(domains, kind="domain_incremental", order=["plain", "dark", "darker"])
    stages = list(task.stages())
    assert len(stages) == 3
    assert all(len(s.lesson.train.names) == 10 and s.lesson.train.domains is None for s in stages)
    assert {int(i.name.split(".")[0]) % 3 for i in stages[1].lesson.train.items} == {1}
    assert {int(i.name.split(".")[0]) % 3 for i in stages[1].tests["seen"].items} == {0, 1}
    last = stages[2].tests["seen"]
    of_domain = {(int(i.name.split(".")[0]) % 3, k) for i, k in zip(last.items, last.domains, strict=True)}
    assert of_domain == {(0, 0), (1, 1), (2, 2)}
    assert task.protocol["class_order"] == [["plain"], ["dark"], ["darker"]]


def test_domains_that_only_the_test_has_are_one_test_for_all(domains, tmp_path):
    root = Path(domains).parent
    lines = list(csv.reader(Path(domains).read_text().splitlines()))
    rows = [[f"{root}/{p}", c, s, "far" if s == "test" else d] for p, c, s, d in lines[1:]]
    with (tmp_path / "data.csv").open("w", newline="") as file:
        csv.writer(file).writerows([lines[0], *rows])
    task = Continual(str(tmp_path / "data.csv"), kind="domain_incremental")
    stages = list(task.stages())
    assert [len(s.tests["seen"]) for s in stages] == [120] * 3
    assert not any(s.future_tests or s.initial_tests for s in stages)
    rows = [{"seen": {"accuracy": a, "calibration_error": 1.0}} for a in (10.0, 20.0, 60.0)]
    assert task.summary(rows) == {"accuracy": 60, "overall": 60, "incremental": 30, "calibration_error": 1.0}


def test_a_stage_that_can_not_be_tested_is_refused_at_once(domains, tmp_path):
    root = Path(domains).parent
    lines = list(csv.reader(Path(domains).read_text().splitlines()))
    rows = [[f"{root}/{p}", c, s, "plain" if s == "test" and d == "dark" else d] for p, c, s, d in lines[1:]]
    with (tmp_path / "data.csv").open("w", newline="") as file:
        csv.writer(file).writerows([lines[0], *rows])
    with pytest.raises(ValueError, match=r"stage 1 \(dark\): expected test images, got none"):
        Continual(str(tmp_path / "data.csv"), kind="domain_incremental").protocol  # noqa: B018


def test_a_task_free_stream_is_one_lesson_in_its_own_order():
    [stage] = Continual("digits", stages=5, kind="task_free", seed=3).stages()
    lesson, whole = stage.lesson, open_data("digits")
    assert not lesson.has_task_boundaries
    assert (lesson.index, lesson.total) == (0, 1)
    assert len(lesson.train) == len(whole.train) + len(whole.val) == len(key_set(lesson.train))
    [seeded] = Continual("digits", stages=5, kind="task_free", order="seeded").lessons()
    assert (
        class_ids(seeded.train.names) == class_ids(lesson.train.names) == tuple("0123456789")
    )  # tells nothing of the order
    groups = torch.tensor(lesson.train.labels) // 2
    centres = [float((groups == k).nonzero().double().mean()) for k in range(5)]
    assert centres == sorted(centres)
    first, second = (groups == 0).nonzero(), (groups == 1).nonzero()
    assert first.max() > second.min()  # the bumps overlap
    [apart] = Continual("digits", stages=5, kind="task_free", blur=0).lessons()
    assert (torch.tensor(apart.train.labels).div(2).floor().diff() >= 0).all()
    with pytest.raises(ValueError, match=r"got train.epochs=2. Set train.epochs=1"):
        vlprompt.run(
            CoOp(vlprompt.load("glyph/random"), n_ctx=2), Continual("digits", stages=5, kind="task_free"), TRAIN
        )


def test_task_free_training_sees_each_image_once_and_in_order(vit):
    order = []

    class Watching(Linear):
        def loss_terms(self, batch, fixed):
            order.extend(batch.inputs.keys)
            return super().loss_terms(batch, fixed)

    task = Continual("digits", stages=5, kind="task_free", shots=6)
    vlprompt.run(Watching(vit, LinearHead(), solver="fit"), task, ONCE)
    assert order == [item.key for item in next(task.lessons()).train.items]


def test_a_memory_is_bounded_balanced_and_keeps_what_it_had():
    lessons = list(Continual("digits", stages=5, buffer=20).lessons())
    assert lessons[0].memory is None
    held = [lesson.memory for lesson in lessons[1:]]
    assert [len(m) for m in held] == [20, 20, 18, 16]
    assert [m.count_per_class() for m in held] == [[10] * 2, [5] * 4, [3] * 6, [2] * 8]
    for before, after in pairwise(held):
        old = {i.key for i, label in zip(after.items, after.labels, strict=True) if label < len(before.names)}
        assert old <= key_set(before)
    other = list(Continual("digits", stages=5, buffer=20, seed=2).lessons())[1].memory
    assert key_set(other) != key_set(held[0])
    seen = lessons[2].train_with_memory
    assert class_ids(seen.names) == ("4", "5", "0", "1", "2", "3")
    truth = {f"digits/{i}": str(label) for i, label in enumerate(load_digit_arrays()[1])}
    assert all(class_ids(seen.names)[label] == truth[i.name] for i, label in zip(seen.items, seen.labels, strict=True))


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (lambda vit: Linear(vit, LinearHead()), r"got 'lbfgs', .*Set method\.solver=fit"),
        (
            lambda vit: SPrompts(vit, LinearHead()),
            "prompts of each lesson, got a stream without them. Use l2p, or dualprompt with",
        ),
    ],
)
def test_what_needs_more_than_one_look_refuses_a_task_free_stream(method, said, vit):
    with pytest.raises(ValueError, match=said):
        vlprompt.run(method(vit), Continual("digits", stages=5, kind="task_free", shots=4), ONCE)


def test_a_task_of_one_lesson_has_nothing_to_pause_after(vit):
    with pytest.raises(ValueError, match=r"got --max-lessons=1 for one lesson\. Leave --max-lessons out"):
        vlprompt.run(NearestMean(vit), vlprompt.tasks.FewShot("digits", shots=1), max_lessons=1)


def test_what_is_kept_is_trained_on(vit):
    met = {}

    class Watching(Linear):
        def begin_lesson(self, lesson, generator):
            super().begin_lesson(lesson, generator)
            self.lesson = lesson

        def loss_terms(self, batch, fixed):
            met.setdefault(self.lesson.index, set()).update(batch.inputs.keys)
            return super().loss_terms(batch, fixed)

    task = Continual("digits", stages=3, shots=4, buffer=6)
    vlprompt.run(Watching(vit, LinearHead(), solver="fit"), task, TRAIN)
    for lesson in task.lessons():
        assert met[lesson.index] == key_set(lesson.train) | (key_set(lesson.memory) if lesson.memory else set())


def test_joint_is_one_lesson_with_the_tests_of_all_tasks(vit):
    result = vlprompt.run(NearestMean(vit), Continual("digits", stages=5, joint=True, with_val=False))
    alone = vlprompt.run(NearestMean(vit), vlprompt.tasks.FewShot("digits", shots=None))
    assert result.summary["overall"] == pytest.approx(alone.summary["accuracy"])
    assert [k for k in result.scores[0] if k.startswith("seen/")] == [f"seen/{k}" for k in range(5)]
    assert "forgetting" not in result.summary


def test_one_lesson_says_nothing_of_which_lesson_was_chosen(vit):
    method = SPrompts(vit, LinearHead(), prompt_length=1)
    result = vlprompt.run(method, Continual("digits", stages=5, shots=2, joint=True), ONCE)
    assert "chosen" not in result.summary
    assert not any("chosen" in test for test in result.scores[0].values())


# nobody peeks


def reached(thing, seen=None):
    """Everything that attributes, slots, closures, arguments and containers lead to from here."""
    seen = {} if seen is None else seen
    if id(thing) in seen or isinstance(thing, type | types.ModuleType | int | float | torch.Tensor | type(None)):
        return seen
    seen[id(thing)] = thing
    inner = []
    if isinstance(thing, dict):
        inner = [*thing.keys(), *thing.values()]
    elif isinstance(thing, list | tuple | set | frozenset):
        inner = list(thing)
    elif isinstance(thing, functools.partial):
        inner = [thing.func, *thing.args, *thing.keywords.values()]
    elif inspect.isfunction(thing):
        inner = [cell.cell_contents for cell in thing.__closure__ or ()] + list(thing.__defaults__ or ())
    elif inspect.ismethod(thing):
        inner = [thing.__self__, thing.__func__]
    if is_dataclass(thing):
        inner += [getattr(thing, f.name) for f in fields(thing)]
    inner += [getattr(thing, s) for c in type(thing).__mro__ for s in getattr(c, "__slots__", ()) if hasattr(thing, s)]
    inner += list(getattr(thing, "__dict__", {}).values())
    for one in inner:
        reached(one, seen)
    return seen


class Hostile(NearestMean):
    """Looks for all that a lesson leads to."""

    def begin_lesson(self, lesson, generator):
        super().begin_lesson(lesson, generator)
        if len(lesson.train):
            every = list(reached(lesson).values())
            self.items = {x.key for x in every if isinstance(x, ImageItem)}
            self.names = {x.id for x in every if isinstance(x, ClassName)}
            self.splits = [x for x in every if isinstance(x, Split)]
            self.texts = {x for x in every if type(x) is str}


@pytest.mark.parametrize("kind", ["class_incremental", "domain_incremental", "task_incremental"])
@pytest.mark.parametrize("buffer", [0, 30])
def test_a_lesson_leads_to_nothing_but_itself(kind, buffer, vit, domains):
    stages = None if kind == "domain_incremental" else 5
    task = Continual(domains, stages=stages, kind=kind, buffer=buffer, with_val=bool(buffer))
    whole = open_data(domains)
    method = Hostile(vit)
    for stage in task.stages():
        lesson = stage.lesson
        method.begin_lesson(lesson, torch.Generator())
        mine = [s for s in (lesson.train, lesson.val, lesson.memory) if s is not None]
        assert method.items == set().union(*map(key_set, mine))
        assert not method.items & key_set(whole.test)
        assert method.names == {i for s in mine for i in class_ids(s.names)}
        assert len(method.splits) == len(mine)
        if kind == "domain_incremental":
            assert not {"plain", "dark", "darker"} & method.texts
        else:
            strange = {f"digit {k}" for k in range(10)} - {i for s in mine for i in class_ids(s.names)}
            assert not strange & method.texts


# the numbers


def test_every_number_of_a_stream_by_hand():
    def row(*accuracies, ahead=None, **more):
        parts = {f"seen/{i}": {"accuracy": a, "images": 1, "identity": a + 1} for i, a in enumerate(accuracies)}
        ahead = {} if ahead is None else {"next": {"accuracy": ahead}}
        return {"seen": {"accuracy": 0.0, "calibration_error": 4.0}} | parts | ahead | more

    start = {"start 1": {"accuracy": 15.0}, "start 2": {"accuracy": 5.0}}
    scores = [row(90.0, ahead=20.0, **start), row(70.0, 80.0, ahead=10.0), row(75.0, 85.0, 40.0)]
    found = continual_summary(scores, [1, 1, 2])
    assert found == pytest.approx({
        "accuracy": (75 + 85 + 40) / 3,
        "overall": (75 + 85 + 2 * 40) / 4,
        "incremental": (90 + 75 + 60) / 3,
        "forgetting": ((90 - 75) + (85 - 85)) / 2,
        "forgetting_step": ((90 - 70) / 1 + ((70 - 75) + (80 - 85)) / 2) / 2,
        "backward": ((75 - 90) + (85 - 80)) / 2,
        "forward": ((20 - 15) + (10 - 5)) / 2,
        "learning": (90 + 80 + 40) / 3,
        "identity": (76 + 86 + 2 * 41) / 4,
        "calibration_error": 4.0,
    })  # fmt: skip
    assert list(found) == [k for k in CONTINUAL_METRICS if k in found]


def test_forward_transfer_is_of_methods_that_can_answer_before_they_learn(vit, domains):
    task = Continual("digits", stages=5, shots=4)
    clip = vlprompt.load("glyph/random")
    zero = vlprompt.run(ZeroShot(clip), task)
    assert zero.summary["forward"] == 0
    assert "forward" not in vlprompt.run(NearestMean(vit), task).summary
    assert "next" in vlprompt.run(NearestMean(vit), Continual(domains, kind="domain_incremental")).scores[0]


def test_a_row_of_the_matrix_is_what_each_task_alone_would_give(vit):
    method, task = linear(vit), Continual("digits", stages=3, shots=8)
    result = vlprompt.run(method, task, TRAIN)
    last = list(task.stages())[-1].tests["seen"]
    for k in range(3):
        part = last.select([i for i, d in enumerate(last.domains) if d == k])
        found = evaluate(method, part).metrics["accuracy"]
        row = result.scores[-1][f"seen/{k}"]
        assert (row["accuracy"], row["images"]) == (pytest.approx(found), len(part))
        predicted = torch.cat(list(iter_logits(method, part))).argmax(1)
        of_task = sum({0: 4, 1: 3, 2: 3}[d] for d in range(k)), sum({0: 4, 1: 3, 2: 3}[d] for d in range(k + 1))
        right = ((predicted >= of_task[0]) & (predicted < of_task[1])).double().mean()
        assert row["identity"] == pytest.approx(100 * float(right))
    assert [s["parameters"] for s in result.stages] == [65 * n for n in (4, 7, 10)]
    assert result.stages[-1]["state_bytes"] == 4 * 65 * 10


def test_test_queries_are_made_once_for_all_lessons():
    vit, seen = vlprompt.load("glyph-vit/random"), []
    encode = vit.encode
    vit.encode = lambda pixels, *output: seen.append(len(pixels)) or encode(pixels, *output)
    data = open_data("digits")
    vlprompt.run(NearestMean(vit), Continual("digits", stages=5))
    most = len(data.train) + len(data.val) + len(data.test)
    assert most <= sum(seen) < most + vit.pass_size * 20  # passes have one size, the last of a batch is filled up


# bad input


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"stages": 11}, "task.stages: expected 1 to 10, as there are 10 classes, got 11. Set"),
        ({"stages": 0}, "task.stages: expected 1 to 10, as there are 10 classes, got 0. Set"),
        (
            {"stages": [["1", "2"], ["2", "3"]]},
            "expected each of the classes once, got '2' in stage 1 and in stage 2. Remove one",
        ),
        ({"stages": []}, "task.stages: expected the classes of each stage, got an empty list. Name them"),
        ({"stages": [["1"], []]}, "task.stages: expected classes in each stage, got none in stage 2. Name its classes"),
        (
            {"stages": [["1"], ["x"]]},
            "task.stages: expected the classes 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, got 'x' in stage 2",
        ),
        (
            {"stages": 5, "order": "random"},
            "task.order: expected natural, seeded, pilot, icarl, numpy-SEED or a list of classes, got 'random'. Set",
        ),
        (
            {"stages": 5, "order": ["1", "2"]},
            "task.order: expected each of the 10 classes once, got a list where '0' is missing",
        ),
        (
            {"stages": 5, "order": [*"0123456789", "9"]},
            "task.order: expected each of the 10 classes once, got a list where one is repeated",
        ),
        ({"stages": [["1"], ["2"]], "order": ["2", "1", "0"]}, "task.order: expected each of the 2 stages once"),
        (
            {"kind": "domain_incremental"},
            "expected domains for task.kind=domain_incremental, got digits without domains. Use digit_domains",
        ),
        (
            {"stages": 5, "buffer": 10, "joint": True},
            "which has no earlier images to replay, got 10. Set task.buffer=0",
        ),
        ({"stages": 5, "blur": -1.0}, "task.blur: expected at least 0, got -1.0"),
    ],
)
def test_streams_that_can_not_be_are_refused(settings, said):
    with pytest.raises(ValueError) as error:
        Continual("digits", **settings).protocol  # noqa: B018
    assert said in str(error.value)


def test_ids_without_quotes_are_told(type_in):
    words = ["run", "linear", "digits", "--task", "continual", "--backbone", "glyph-vit/random"]
    for setting, value in (("task.stages=[[0,1],[2,3]]", 0), ("task.order=[3,1]", 3)):
        status, told = type_in(*words, setting)
        assert status == 2
        assert f"expected a valid string, got {value}. Write numbers that are names in quotes" in told


def test_a_memory_too_small_for_its_classes_is_told():
    assert not Continual("digits", stages=5, buffer=8).protocol["warnings"]
    [told] = Continual("digits", stages=5, buffer=7).protocol["warnings"]
    assert told.startswith("task.buffer=7: nothing is replayed in the last lesson")
    assert "less than one image for each of the 8 classes before it; set task.buffer=8 or more" in told
    [told] = Continual("digit_domains", kind="domain_incremental", buffer=9).protocol["warnings"]
    assert "10 classes" in told


def test_domains_without_a_common_class_are_no_stream_of_domains(tmp_path):
    card = "title: t\nsource: s\nlicence: l\ntemplate: a {name}\nclasses: 85\nmembers: {a: digits, b: glyphs}\n"
    (tmp_path / "mine.yaml").write_text(card)
    task = Continual(str(tmp_path / "mine.yaml"), kind="domain_incremental")
    with pytest.raises(ValueError, match=r"expected a class in two domains .*, got none in .*Leave out task\.kind"):
        task.protocol  # noqa: B018
    assert Continual(str(tmp_path / "mine.yaml")).protocol["stages"] == 2


def test_a_method_on_a_tower_says_so_when_it_gets_a_clip():
    clip = vlprompt.load("glyph/random")
    with pytest.raises(ValueError, match=r"L2P: expected an image tower, got a Clip\. Pass clip\.image\."):
        vlprompt.run(L2P(clip, LinearHead()), Continual("digits", stages=5, shots=2), TRAIN)


def test_a_class_alone_in_a_masked_stage_is_told(type_in, vit):
    assert not Continual("digits", stages=5).protocol["warnings"]
    assert not Continual("digits", stages=10, mask=False).protocol["warnings"]
    words = "run nearest_mean --task continual dataset=digits task.stages=10 task.shots=2 --backbone glyph-vit/random"
    status, told = type_in(*words.split())
    assert not status
    assert "stage 1, 2, 3, 4, 5 ...: nothing is learned, because the cross-entropy of a single class is zero" in told
    assert "set task.mask=false, or fewer stages" in told
    method = linear(vit)
    vlprompt.run(method, Continual("digits", stages=[["0"], ["1"]], shots=4), TRAIN)
    losses = []
    vlprompt.run(method, Continual("digits", stages=[["0"]], shots=4), TRAIN,
                 on_event=lambda event: losses.append(event.loss) if isinstance(event, StepDone) else None)  # fmt: skip
    assert {f"{loss:.3f}" for loss in losses} == {"0.000"}


def test_another_class_order_or_method_does_not_resume(vit, tmp_path):
    task = Continual("digits", stages=5, shots=2)
    vlprompt.run(linear(vit), task, TRAIN, tmp_path, max_lessons=2)
    for method, other in (
        (linear(vit), Continual("digits", stages=5, shots=2, order="seeded")),
        (NearestMean(vit), task),
    ):
        with pytest.raises(
            ValueError, match=r"expected the same configuration, got a run with other .* Name another folder"
        ):
            vlprompt.run(method, other, TRAIN, tmp_path)
    assert vlprompt.run(linear(vit), task, TRAIN, tmp_path).summary


STREAMS = {
    "classes": {"stages": 5},
    "memory": {"stages": 5, "buffer": 12},
    "seeded": {"stages": 3, "order": "seeded", "mask": False},
    "free": {"stages": 5, "kind": "task_free"},
}


MAKERS = {
    "linear": lambda clip: linear(clip.image),
    "coop": lambda clip: CoOp(clip, n_ctx=2, class_specific=True),
    "nearest_mean": lambda clip: NearestMean(clip.image),
    "l2p": lambda clip: L2P(clip.image, LinearHead(), pool_size=4, prompt_length=1, top_k=2, penalize_frequency=True),
    "dualprompt": lambda clip: DualPrompt(clip.image, LinearHead(), 1, 2, (0,), (1,)),
    "coda_prompt": lambda clip: CODAPrompt(clip.image, LinearHead(), pool_size=6, prompt_length=2, n_layers=1),
    "s_prompts": lambda clip: SPrompts(clip.image, LinearHead(), prompt_length=1, n_centroids=2),
    "ranpac": lambda clip: RanPAC(clip.image, projection_dim=50),
    "tip_adapter": lambda clip: TipAdapter(clip),
    "tip_adapter_f": lambda clip: TipAdapter(clip, finetune=True),
}
RUNS = [(name, stream) for name in ("linear", "coop", "nearest_mean") for stream in STREAMS]
RUNS += [(name, "classes") for name in MAKERS if (name, "classes") not in RUNS]


@pytest.mark.parametrize(("name", "stream"), RUNS)
def test_stopped_anywhere_it_ends_with_the_same_bits(name, stream, tmp_path):
    clip, moments = vlprompt.load("glyph/random"), []
    data = open_data("digits")
    data = replace(data, test=data.test.select(range(0, len(data.test), 8)))
    task, train = Continual(data, shots=4, **STREAMS[stream]), ONCE if stream == "free" else TRAIN
    make = lambda: MAKERS[name](clip)  # noqa: E731
    vlprompt.run(make(), task, train, tmp_path / "whole", on_event=lambda *told: moments.append(told))
    every = len(moments)  # also later than the first save of a method that has no steps
    keeps_nothing = (name, stream) == ("nearest_mean", "free")  # one lesson without steps
    moments = [1, every // 2, 3, every // 3, 2, every // 2, every // 4]
    interrupted(make, task, train, tmp_path / "parts", moments, every + keeps_nothing)
    same_but_for_time(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow  # the quick suite stops streams within the process, and kills a run of one lesson
def test_killed_in_a_stream(tmp_path):
    settings = ["--task", "continual", "task.stages=5", "train.epochs=25", "train.warmup=0"]
    status, said = end(start(tmp_path / "whole", *settings))
    assert status == 0, said
    killed_until_done(tmp_path / "killed", ["0/9/loss", "2/13/end"], *settings)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def test_a_pause_after_so_many_lessons(type_in, tmp_path, vit):
    words = "run linear --task continual dataset=digits task.stages=5 task.shots=3 --backbone glyph-vit/random"
    words = [*words.split(), "method.solver=fit", "train.epochs=3", "train.warmup=0", "-o", tmp_path / "a"]
    status, told = type_in(*words, "--max-lessons", "2")
    assert not status
    assert "paused after 2 of 5 lessons" in told
    assert "the same command without --max-lessons goes on" in told
    [folder] = (tmp_path / "a").iterdir()
    assert RunFolder(folder).read_result() is None
    begun = (folder / "steps.jsonl").read_text().splitlines()
    assert {json.loads(line)["stage"] for line in begun} == {0, 1}
    assert type_in(*words)[0] == 0
    assert (folder / "steps.jsonl").read_text().splitlines()[: len(begun)] == begun
    type_in(*[tmp_path / "b" if w == tmp_path / "a" else w for w in words])
    [other] = (tmp_path / "b").iterdir()
    same_but_for_time(folder, other)


def test_what_a_stream_learned_is_taken_up_again(tmp_path):
    clip = vlprompt.load("glyph/random")
    method, task = CoOp(clip, n_ctx=2, class_specific=True), Continual("digits", stages=4, shots=4, order="seeded")
    result = vlprompt.run(method, task, TRAIN, tmp_path)
    prompt = load_prompt(tmp_path)
    again, names = prompt.method, prompt.names
    assert [[i] for i in class_ids(names)] == [[i] for part in task.protocol["class_order"] for i in part]
    found = evaluate(again, open_data("digits").test).metrics
    assert found["accuracy"] == pytest.approx(result.summary["overall"])


def test_one_object_can_run_again(vit):
    method, task = linear(vit), Continual("digits", stages=5, shots=4)
    first, again = (vlprompt.run(method, task, TRAIN).scores for _ in range(2))
    assert first == again


def test_a_head_says_which_class_it_never_met(vit):
    method = NearestMean(vit)
    lesson = next(Continual("digits", stages=5).lessons())
    method.begin_lesson(lesson, torch.Generator())
    with pytest.raises(UnknownClassError, match=r"no weights for class '5'.*Evaluate on the training classes"):
        method.precompute((ClassName("5"),))
