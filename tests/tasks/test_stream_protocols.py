"""Streams as the literature has them: named orders, sizes of stages, one pass, blurry stages, memory per class."""

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import vlprompt
from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName, class_ids
from vlprompt.core.images import ImageItem
from vlprompt.data.dataset import Data
from vlprompt.data.loading import open_data
from vlprompt.data.splits.streams import ICARL_ORDER, group_into_stages, resolve_order
from vlprompt.layers.heads import LinearHead
from vlprompt.methods import Linear, NearestMean, SPrompts
from vlprompt.results.run_folder import RunFolder
from vlprompt.results.run_scan import scan_runs
from vlprompt.results.tables.summary import build_rows
from vlprompt.tasks import Continual

HUNDRED = [f"class {i:02}" for i in range(100)]
ONCE = vlprompt.TrainConfig(epochs=1, batch_size=10, optimizer="adam", lr=0.01, schedule="constant", warmup=0)


def count_classes(split):
    ids = class_ids(split.names)
    return Counter(ids[label] for label in split.labels)


def test_orders_of_the_literature_have_their_names():
    pilot = resolve_order(HUNDRED, "pilot", 1, "classes")
    assert pilot[:8] == [68, 56, 78, 8, 23, 84, 90, 65]  # as PILOT, PyCIL and DER print it
    assert sorted(pilot) == list(range(100))
    assert pilot == resolve_order(HUNDRED, "numpy-1993", 2, "classes")
    assert pilot != resolve_order(HUNDRED, "numpy-1996", 1, "classes")
    assert resolve_order(HUNDRED, "icarl", 1, "classes") == list(ICARL_ORDER)
    assert ICARL_ORDER[:4] == (87, 0, 52, 58)
    assert sorted(ICARL_ORDER) == list(range(100))
    with pytest.raises(ValueError, match="expected the 100 classes of CIFAR-100 in alphabetical order, got 10 classes"):
        resolve_order(list("0123456789"), "icarl", 1, "classes")
    with pytest.raises(ValueError, match=r"got 'numpy-x'\. Set task\.order=natural"):
        resolve_order(HUNDRED, "numpy-x", 1, "classes")


@pytest.mark.parametrize(
    ("stages", "sizes"),
    [
        ("B0-10", [10] * 10),
        ("B50-10", [50] + [10] * 5),
        ("B50-Inc10", [50] + [10] * 5),
        ("Bhalf-25", [50, 25, 25]),
        ("B0-30", [30, 30, 30, 10]),
        ("B100-5", [100]),
    ],
)
def test_sizes_of_stages_as_pilot_names_them(stages, sizes):
    order = resolve_order(HUNDRED, "pilot", 1, "classes")
    groups = group_into_stages(HUNDRED, stages, order, "classes")
    assert [len(group) for group in groups] == sizes
    assert [i for group in groups for i in group] == order


@pytest.mark.parametrize("stages", ["B0-0", "10", "B101-10", "half", "B0-101"])
def test_other_sizes_are_refused(stages):
    with pytest.raises(ValueError, match=r"or their sizes such as B0-10, B50-10 or Bhalf-10 of 100 classes, got"):
        group_into_stages(HUNDRED, stages, range(100), "classes")


def test_a_stream_by_its_sizes_and_order(type_in, tmp_path):
    task = Continual("digits", stages="B4-3", order="pilot")
    assert [len(stage.lesson.train.names) for stage in task.stages()] == [4, 3, 3]
    words = "task.stages=B4-3", "task.order=pilot", "--backbone", "glyph-vit/random", "--out", tmp_path
    status, text = type_in("run", "nearest_mean", "digits", "--task", "continual", *words)
    assert status == 0, text
    [folder] = tmp_path.glob("nearest_mean-*")
    assert "B4-3" in folder.name


def test_an_online_stream_gives_each_image_once_in_its_lesson():
    task = Continual("digits", stages=5, kind="online", shots=4)
    assert all(lesson.is_single_pass and lesson.has_task_boundaries for lesson in task.lessons())
    times = Counter()

    class Watching(Linear):
        def loss_terms(self, batch, fixed):
            times.update(batch.inputs.keys)
            return super().loss_terms(batch, fixed)

    vit = vlprompt.load("glyph-vit/random")
    train = replace(ONCE, drop_last=False)
    result = vlprompt.run(Watching(vit, LinearHead(), solver="fit"), task, train)
    assert set(times.values()) == {1}
    assert len(times) == 40
    assert result.protocol["kind"] == "online"
    with pytest.raises(ValueError, match=r"a stream that gives each image once \(task.kind\), got train.epochs=2"):
        vlprompt.run(Linear(vit, LinearHead(), solver="fit"), task, replace(ONCE, epochs=2))
    with pytest.raises(ValueError, match="got 'lbfgs', which needs several passes"):
        vlprompt.run(Linear(vit, LinearHead()), task, ONCE)


def make_data(n_classes=12, n_images=20):
    names = tuple(ClassName(f"thing {i}", str(i)) for i in range(n_classes))

    def split(part, n):
        places = [(c, i) for c in range(n_classes) for i in range(n)]
        items = tuple(
            ImageItem(f"{part}/{c}/{i}", lambda look, view, c=c, i=i: torch.full((3, 32, 32), c / 12 + i / 1000))
            for c, i in places
        )
        return Split(items, tuple(c for c, _ in places), names)

    return Data("things", split("train", n_images), None, split("test", 2), "a {name}.", "made here")


def test_blurry_stages_share_images_of_some_classes_and_of_no_others():
    data = make_data()
    task = Continual(data, stages=4, kind="si_blurry", disjoint_classes=0.5, blurred_images=0.25, seed=3)
    lessons = list(task.lessons())
    homes = {i: k for k, group in enumerate(task.protocol["class_order"]) for i in group}
    blurry = set(task.protocol["blurry_classes"])
    assert len(blurry) == 6
    counts = [count_classes(lesson.train) for lesson in lessons]
    assert sum(counts, Counter()) == Counter({str(i): 20 for i in range(12)})  # each image once
    for i, home in homes.items():
        assert counts[home][i] >= 15
        elsewhere = sum(count[i] for k, count in enumerate(counts) if k != home)
        assert (elsewhere > 0) == (i in blurry)
    for lesson, count in zip(lessons, counts, strict=True):
        assert set(class_ids(lesson.train.names)) == set(count)
        assert lesson.is_single_pass
        assert not lesson.has_task_boundaries
        assert list(lesson.train.labels) != sorted(lesson.train.labels)
    names = [
        class_ids(lesson.train.names) for lesson in Continual(data, stages=4, kind="si_blurry", mask=False).lessons()
    ]
    assert all(set(a) <= set(b) for a, b in pairwise(names))


def test_blurry_stages_are_drawn_by_the_seed_and_none_is_empty():
    data = make_data()
    drawn = [Continual(data, stages=6, kind="si_blurry", seed=seed).protocol["class_order"] for seed in (1, 1, 2, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(group for groups in drawn for group in groups)
    assert len({tuple(map(len, groups)) for groups in drawn}) > 1  # of drawn sizes
    [*_, last] = Continual(data, stages=6, kind="si_blurry", blurred_images=1.0).stages()
    assert len(last.tests["seen"].names) == 12


def test_a_run_of_a_blurry_stream(tmp_path):
    task = Continual("digits", stages=3, kind="si_blurry", shots=10, blurred_images=0.3)
    vit = vlprompt.load("glyph-vit/random")
    result = vlprompt.run(NearestMean(vit), task, ONCE, tmp_path / "run")
    alone = vlprompt.run(NearestMean(vit), Continual("digits", stages=3, shots=10), ONCE)
    assert result.summary["overall"] == alone.summary["overall"]  # means of the same images, whatever their stage
    assert result.scores != alone.scores
    with pytest.raises(ValueError, match="expected a stream with lesson boundaries"):
        vlprompt.run(SPrompts(vit, LinearHead()), task, ONCE)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"kind": "si_blurry", "stages": "B0-2"}, "task.stages: expected a number for task.kind=si_blurry"),
        ({"disjoint_classes": 1.5}, "task.disjoint_classes: expected a share from 0 to 1, got 1.5"),
        ({"blurred_images": -0.1}, "task.blurred_images: expected a share from 0 to 1"),
        ({"buffer": 3, "buffer_per_class": 2}, "expected 0 with task.buffer_per_class=2, got 3"),
        ({"buffer_per_class": 2, "joint": True}, "no earlier images to replay, got 2"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, error):
    with pytest.raises(ValueError, match=error):
        Continual("digits", **({"stages": 5} | settings)).protocol  # noqa: B018


def test_a_memory_per_class_grows_with_the_classes():
    memories = [lesson.memory for lesson in Continual("digits", stages=5, buffer_per_class=3).lessons()]
    assert [0 if m is None else len(m) for m in memories] == [0, 6, 12, 18, 24]
    assert all(set(m.count_per_class()) == {3} for m in memories[1:])
    first, later = ({item.name for item in m.items} for m in (memories[1], memories[4]))
    assert first < later


def test_a_search_sees_the_first_lessons_and_no_test_image():
    whole = Continual("digits", stages=5, order="pilot", seed=2, with_val=False)
    task = Continual("digits", stages=5, order="pilot", seed=2, phase="search", search_lessons=2)
    stages, expected = list(task.stages()), list(whole.lessons())[:2]
    assert [class_ids(s.lesson.train.names) for s in stages] == [class_ids(e.train.names) for e in expected]
    assert [s.lesson.train.items for s in stages] == [e.train.items for e in expected]
    tested = {item.name for stage in stages for item in stage.tests["val"].items}
    assert tested == {item.name for lesson in expected for item in lesson.val.items}
    assert all(set(s.tests) == {"val"} and not s.future_tests and not s.initial_tests for s in stages)
    assert class_ids(stages[1].tests["val"].names) == class_ids(
        stages[0].lesson.train.names + stages[1].lesson.train.names
    )
    for settings, error in (
        ({"search_lessons": None}, "task.search_lessons: expected 1 or more"),
        ({"search_lessons": 2, "joint": True}, "expected a search on the first lessons of a stream"),
    ):
        with pytest.raises(ValueError, match=error):
            Continual("digits", stages=5, phase="search", **settings)


def test_settings_are_searched_on_the_first_lessons_and_every_result_says_so(type_in, tmp_path):
    words = "linear", "digits", "--backbone", "glyph-vit/random", "--out", tmp_path
    settings = "task.stages=5", "task.search_lessons=2", "method.solver=fit", "train.epochs=5"
    rates = "search.train.lr=[0.000001,0.05]"
    status, text = type_in("search", *words, "--task", "continual", *settings, rates)
    assert status == 0, text
    [folder] = tmp_path.glob("linear-*")
    result = RunFolder(folder).read_finished()
    assert result.config["train"]["lr"] == 0.05
    assert result.config["task"]["phase"] == "final"
    assert len(result.scores) == 5
    assert result.protocol["settings_chosen"] == "searched on validation images of the first 2 lessons"
    [search] = tmp_path.glob("search-*")
    entries = [json.loads(line) for line in (search / "grid.jsonl").read_text().splitlines()]
    assert [entry["lr"] for entry in entries] == [1e-6, 0.05]
    assert entries[0]["accuracy"] < entries[1]["accuracy"]
    given = "task.stages=5", "method.solver=fit", "train.lr=0.05", "train.epochs=5"
    status, text = type_in("run", *words, "--task", "continual", *given)
    assert status == 0, text
    assert len(build_rows(scan_runs(tmp_path).results)) == 2
    status, text = type_in("table", tmp_path)
    assert "settings searched on validation images of the first 2 lessons (others given)" in " ".join(text.split())
    status, text = type_in("search", *words, "--task", "continual", "--sampler", "optuna", *settings, rates)
    assert status == 2
    assert "--sampler: expected grid for the task continual, got optuna" in text
    status, text = type_in("search", *words, "--task", "few_shot", rates)
    assert status == 2
    assert "--task: expected one of vtab, continual, domain, got few_shot" in text


def test_a_card_of_train_and_test_folders(root, jpegs, type_in):
    for part, n in (("train", 6), ("test", 2)):
        for i in range(12):
            (root / "vtab" / part / str(i)).mkdir(parents=True)
            for k in range(n):
                (root / "vtab" / part / str(i) / f"{k}.jpg").write_bytes(jpegs[(i + k) % len(jpegs)])
    data = open_data("pilot_vtab", allow_missing_classes=True)
    assert class_ids(data.test.names) == tuple(map(str, range(12)))  # by their value, not their spelling
    assert len(data.train) + len(data.val) == 72
    assert len(data.test) == 24
    assert data.train.info["stages"] == 5
    assert {item.name.split("/")[0] for item in data.test.items} == {"test"}
