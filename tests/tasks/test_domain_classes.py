"""Targets with fewer classes than the source, with unknown ones, and without any source; and who may look at what."""

from dataclasses import replace

import pytest
import torch
from shared import images

from vlprompt import TrainConfig, run
from vlprompt.backbones.glyph import build_tiny_clip
from vlprompt.core.batch import Split
from vlprompt.core.class_names import class_ids
from vlprompt.core.images import ImageItem
from vlprompt.core.method import Method, Output
from vlprompt.core.stage import UnknownTest
from vlprompt.experiments.adaptation_metrics import score_open_set
from vlprompt.methods import CoOp, ZeroShot
from vlprompt.methods.dapl import DAPL
from vlprompt.tasks import Domain

PAIR = {"source": "glyphs", "target": "digits"}
TRAIN = TrainConfig(epochs=1, batch_size=32, optimizer="adam", lr=0.005, weight_decay=0.0, warmup=0)


@pytest.fixture(scope="module")
def ids():
    return class_ids(next(Domain(**PAIR).stages()).lesson.train.names)


def stage_of(**settings):
    [stage] = Domain(**PAIR, **settings).stages()
    return stage


def test_a_partial_target_has_images_of_some_classes_and_answers_among_all(ids):
    full, partial = stage_of(), stage_of(target_classes=[ids[7], ids[2]])
    assert class_ids(partial.lesson.train.names) == ids
    assert partial.lesson.train.hash() == full.lesson.train.hash()
    assert partial.tests["source"].hash() == full.tests["source"].hash()
    assert set(partial.tests["target"].labels) == set(partial.labelled_target.labels) == {2, 7}
    assert sum(full.labelled_target.count_per_class()[k] for k in (2, 7)) == len(partial.lesson.unlabelled)
    assert Domain(**PAIR, target_classes=[ids[7], ids[2]]).protocol["target_classes"] == sorted([ids[7], ids[2]])
    assert "target_classes" not in Domain(**PAIR).protocol


def test_an_open_target_has_images_of_classes_that_nobody_names(ids):
    full, known = stage_of(), stage_of(classes=[*ids[:4], *ids[6:]])
    opened = stage_of(unknown_classes=[ids[5], ids[4]])
    assert class_ids(opened.lesson.train.names) == (*ids[:4], *ids[6:])
    assert opened.lesson.train.hash() == known.lesson.train.hash()
    assert opened.tests["target"].hash() == known.tests["target"].hash()
    hidden = sum(full.labelled_target.count_per_class()[4:6])
    assert len(opened.lesson.unlabelled) == len(known.lesson.unlabelled) + hidden == len(full.lesson.unlabelled)
    assert opened.labelled_target.labels.count(-1) == hidden > 0
    truth = {
        item.key: label for item, label in zip(full.labelled_target.items, full.labelled_target.labels, strict=True)
    }
    for item, label in zip(opened.labelled_target.items, opened.labelled_target.labels, strict=True):
        assert (truth[item.key] in (4, 5)) == (label == -1)
    names = [item.name for item in opened.lesson.unlabelled.items]
    assert names == sorted(names)  # their place says nothing either
    images_of_test = {item.key for item in opened.unknown_test.images.items}
    assert len(images_of_test) == sum(full.tests["target"].count_per_class()[4:6])
    assert not images_of_test & {item.key for item in opened.tests["target"].items}
    assert opened.unknown_test.validation.items == opened.lesson.val.items
    protocol = Domain(**PAIR, unknown_classes=[ids[5], ids[4]]).protocol
    assert protocol["unknown_images"] == len(images_of_test)
    assert protocol["metrics"]["h_score"] == "harmonic mean of known and unknown"
    assert "h_score" not in Domain(**PAIR).protocol["metrics"]


def test_an_open_target_that_is_tested_on_what_it_adapts_to(ids):
    stage = stage_of(unknown_classes=[ids[0]], transductive=True)
    truth, test = stage.labelled_target, stage.tests["target"]
    assert len(truth) == len(test) + len(stage.unknown_test.images)
    assert -1 not in test.labels
    assert Domain(**PAIR, unknown_classes=[ids[0]], transductive=True).protocol["transductive"] is True
    assert not Domain(**PAIR, unknown_classes=[ids[0]]).protocol["transductive"]


class Table(Method):
    """Answers each image by the logits in a table."""

    def __init__(self, rows):
        super().__init__()
        self.rows = rows

    def forward(self, inputs, prepared):
        return Output(torch.tensor([self.rows[key] for key in inputs.keys]))


def test_the_h_score_by_hand():
    """Two known classes of unequal size; 20 validation images, of which one is refused."""
    logit = lambda p: torch.tensor(p / (1 - p)).log().item()  # noqa: E731
    rows = {f"v{i}": [logit(0.52 + 0.02 * i), 0.0] for i in range(21)}  # the 5 % quantile is 0.54
    rows |= {"a": [logit(0.6), 0.0], "b": [logit(0.53), 0.0], "c": [0.0, logit(0.7)], "d": [logit(0.9), 0.0]}
    rows |= {"u": [logit(0.53), 0.0], "w": [0.0, logit(0.53)], "x": [0.0, logit(0.8)]}

    def split(keys, labels):
        item = lambda key: ImageItem(key, lambda look, view: images(torch.zeros(1, 3, 4, 4)).pixels(look)[0])  # noqa: E731
        return Split(tuple(map(item, keys)), tuple(labels), ("one", "two"))

    validation, target = split([f"v{i}" for i in range(21)], [0] * 21), split("abcd", [0, 0, 1, 0])
    unknown = split("uwx", [0, 0, 0])
    scores = score_open_set(Table(rows), target, UnknownTest(unknown, validation), None)
    known = 100 * (2 / 3 + 1) / 2  # b is right and refused
    assert scores["known"] == pytest.approx(known)
    assert scores["unknown"] == pytest.approx(200 / 3)
    assert scores["h_score"] == pytest.approx(2 * known * (200 / 3) / (known + 200 / 3))
    never = score_open_set(Table(rows), replace(target, labels=(1, 1, 0, 1)), UnknownTest(unknown, validation), None)
    assert never["known"] == never["h_score"] == 0


SLOW = [lambda clip: DAPL(clip, 2, 2, threshold=0.0), lambda clip: CoOp(clip, 2)]


@pytest.mark.parametrize("make", [ZeroShot, *(pytest.param(make, marks=pytest.mark.slow) for make in SLOW)])
def test_a_run_reports_them(make, ids):
    settings = {"classes": [*ids[:3]], "unknown_classes": ids[8:], "shots": 4}
    summary = run(make(build_tiny_clip()), Domain(**PAIR, **settings), TRAIN).summary
    assert 0 <= summary["known"] <= summary["accuracy"] + 100 / 3
    assert summary["h_score"] <= min(100, 2 * min(summary["known"], summary["unknown"]))


def test_unknown_classes_in_generalisation_and_after_the_source(ids):
    [stage] = Domain(**PAIR, setting="generalise", unknown_classes=[ids[0]]).stages()
    assert stage.unknown_test is not None
    assert stage.lesson.unlabelled is None
    *_, last = Domain(**PAIR, setting="source_free", unknown_classes=[ids[0]]).stages()
    assert -1 in last.labelled_target.labels
    assert len(last.unknown_test.validation)


@pytest.mark.parametrize(("settings", "said"), [
    ({"unknown_classes": ["nine lives"]}, "task.unknown_classes: expected the target's classes, got 'nine lives'"),
    ({"target_classes": ["nine lives"]}, "task.target_classes: expected the target's classes, got 'nine lives'"),
    ({"unknown_classes": ["ONE"], "target_classes": ["ONE"]}, "unknown_classes: expected classes that are not known"),
    ({"unknown_classes": ["ONE"], "classes": ["ONE", "TWO", "THREE"]}, "expected classes that are not known"),
    ({"unknown_classes": ["ONE"], "val_fraction": 0}, "expected held-out images of a source, by which answers"),
    ({"target_classes": []}, "task.target_classes: expected at least one class, got none"),
])  # fmt: skip
def test_bad_lists_of_classes(settings, said, ids):
    names = {"ONE": ids[1], "TWO": ids[2], "THREE": ids[3]}
    settings = {k: [names.get(x, x) for x in v] if isinstance(v, list) else v for k, v in settings.items()}
    with pytest.raises(ValueError, match=said):
        list(Domain(**PAIR, **settings).stages())


def test_a_target_alone_has_nothing_to_choose_a_threshold_by(ids):
    with pytest.raises(ValueError, match="expected held-out images of a source"):
        list(Domain(target="digits", setting="source_free", unknown_classes=[ids[1]]).stages())
