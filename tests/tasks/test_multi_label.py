"""The task of several labels: what is drawn and hidden, what is scored, and whole runs on small parts of the scenes."""

from dataclasses import replace

import pytest
import torch

from vlprompt import methods as m
from vlprompt.backbones.glyph import build_tiny_clip
from vlprompt.core.batch import Split
from vlprompt.core.images import ImageItem
from vlprompt.data.builtin.glyphs.scenes import SCENE_SIZES, render_scenes
from vlprompt.data.dataset import Data
from vlprompt.data.splits.label_sets import hide_entries, sample_label_sets
from vlprompt.engine.evaluate import collect_outputs
from vlprompt.engine.label_scores import choose_threshold, read_label_odds, score_labels
from vlprompt.engine.train_config import TrainConfig
from vlprompt.experiments.events import EpochDone
from vlprompt.experiments.prediction_scores import score_predictions
from vlprompt.experiments.runner import run
from vlprompt.layers.heads import LinearHead
from vlprompt.metrics import average_precisions
from vlprompt.results.prediction_files import read_predictions
from vlprompt.tasks.few_shot import FewShot
from vlprompt.tasks.multi_label import MultiLabel

NAMES = ("ink", "chalk", "never")


def item(index):
    pixels = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(index))
    return ImageItem(f"labels/{index}", lambda look, view: pixels, f"{index}.png")


def split_of(n, begin=0):
    rows = [((begin + i) % 2, int((begin + i) % 3 == 1), 0) for i in range(n)]
    return Split(tuple(item(begin + i) for i in range(n)), tuple(rows), NAMES)


@pytest.fixture(scope="module")
def data():
    return Data("small", split_of(24), split_of(8, 100), split_of(12, 200), "a photo of a {name}.", "")


@pytest.fixture(scope="module")
def clip():
    return build_tiny_clip()


def test_scenes_are_what_they_say():
    scenes = render_scenes("val")
    assert scenes.images.shape == (SCENE_SIZES["val"], 32, 32, 3)
    for image, labels in zip(scenes.images[:20], scenes.labels, strict=False):
        places = image[..., 0].reshape(2, 16, 2, 16).transpose(1, 2).reshape(4, -1)
        assert sum(bool(place.min() != place.max()) for place in places) == len(
            labels
        )  # a digit in each place, no more
    assert {len(labels) for labels in scenes.labels} == {1, 2, 3}
    assert all(len({*labels}) == len(labels) for labels in scenes.labels)


def test_what_is_known_is_drawn_by_seed_and_item(data):
    full = torch.tensor(data.train.labels)
    half = torch.tensor(hide_entries(data.train, 0.5, 1).labels)
    assert bool(((half == full) | (half == -1)).all())
    assert 0.3 < float((half >= 0).double().mean()) < 0.7
    assert bool(((half == -1) & (full == 1)).any())
    assert bool(((half == -1) & (full == 0)).any())  # absent entries are hidden too
    assert hide_entries(data.train, 0.5, 1).labels == hide_entries(data.train, 0.5, 1).labels
    assert hide_entries(data.train, 0.5, 2).labels != hide_entries(data.train, 0.5, 1).labels
    backwards = hide_entries(data.train.select(range(23, -1, -1)), 0.5, 1)
    assert torch.equal(torch.tensor(backwards.labels).flip(0), half)
    assert hide_entries(data.train, 1.0, 1) is data.train


def test_shots_of_each_class(data):
    train, val = sample_label_sets(data.train, data.val, 3, 1)
    counts = train.count_per_class()
    assert counts[0] >= 3
    assert counts[1] >= 3
    assert len(train) <= 6
    assert len({one.name for one in train.items}) == len(train)
    assert train.info["undersized_classes"] == ["never"]
    assert [count >= 3 for count in val.count_per_class()] == [True, True, False]
    assert len(val) <= 6 < len(data.val)
    _, val = sample_label_sets(data.train, split_of(24, 100), 8, 1)  # 12, 8 and 0 of the classes
    assert [count >= 4 for count in val.count_per_class()] == [True, True, False]
    assert len(val) <= 8  # at most 4 shots of each
    again, _ = sample_label_sets(data.train, data.val, 3, 1)
    other, _ = sample_label_sets(data.train, data.val, 3, 2)
    assert train.hash() == again.hash() != other.hash()


def test_the_protocol_says_what_was_done(data):
    protocol = MultiLabel(data, known=0.5).protocol
    assert protocol["known"] == 0.5
    assert protocol["never_positive"] == ["never"]
    empty = sum(1 not in row for row in data.test.labels)
    assert protocol["images_without_labels"]["test"] == empty > 0
    assert protocol["train"] != MultiLabel(data, known=0.6).protocol["train"]
    assert protocol["test"] == MultiLabel(data, known=0.6).protocol["test"]


def test_a_reading_that_there_is_not(data):
    with pytest.raises(ValueError, match=r"task.reading: expected sigmoid or contrastive, got 'Sigmoid'. Set one"):
        MultiLabel(data, reading="Sigmoid")


@pytest.mark.parametrize("known", [0.0, -0.1, 1.5])
def test_shares_that_are_none(data, known):
    with pytest.raises(ValueError, match=f"task.known: expected a share above 0 and at most 1, got {known}. Set"):
        MultiLabel(data, known=known)


def test_kinds_of_labels_are_not_mixed(data, clip):
    with pytest.raises(
        ValueError, match=r"dataset: expected items with one label each, got 'small'.*--task multi_label"
    ):
        FewShot(data).data  # noqa: B018
    with pytest.raises(ValueError, match="dataset: expected images that may have several labels, got 'digits'"):
        MultiLabel("digits").data  # noqa: B018
    for method in (m.TipAdapter(clip), m.CLAP(clip), m.KgCoOp(m.DePT(m.CoOp(clip, 2)))):
        with pytest.raises(ValueError, match="expected items with one label each, got items that may have several"):
            run(method, MultiLabel(data), TrainConfig(epochs=1))


@pytest.mark.parametrize("reading", ["sigmoid", "contrastive"])
@pytest.mark.parametrize("name", ["zero_shot", "coop", "kgcoop", "vpt", "dualcoop"])
def test_methods_learn_several_labels(data, clip, name, reading):
    method = {
        "zero_shot": lambda: m.ZeroShot(clip),
        "coop": lambda: m.CoOp(clip, 2),
        "kgcoop": lambda: m.KgCoOp(m.CoOp(clip, 2)),
        "vpt": lambda: m.VPT(clip.image, LinearHead(), 2),
        "dualcoop": lambda: m.DualCoOp(clip, 2, 3),
    }[name]()
    task = MultiLabel(data, known=0.7, reading=reading)
    loss = "asl" if name == "dualcoop" else None
    result = run(method, task, TrainConfig(epochs=2, batch_size=8, lr=0.01, loss=loss))
    logits = collect_outputs(method, data.test).logits
    odds, targets = read_label_odds(logits, task.data.test)
    probabilities = logits.sigmoid() if reading == "sigmoid" else logits.softmax(1)
    assert torch.allclose(odds.sigmoid(), probabilities, atol=1e-5)
    threshold = choose_threshold(*read_label_odds(collect_outputs(method, task.lesson.val).logits, task.lesson.val))
    assert result.summary == pytest.approx(score_labels(odds, targets, threshold))
    assert result.summary["mAP"] == pytest.approx(average_precisions(odds, targets)[:2].mean().item())


def test_training_lowers_the_loss_and_parts_of_a_batch_change_nothing(data, clip):
    states = []
    for micro_batch_size in (None, 3):
        method = m.DualCoOp(clip, 2, 2)
        task = MultiLabel(data, known=0.7)
        config = TrainConfig(epochs=1, batch_size=8, lr=0.01, warmup=0, micro_batch_size=micro_batch_size, loss="asl")
        run(method, task, config)
        states.append(method.state_dict())
    for name, value in states[0].items():
        assert torch.allclose(value, states[1][name], atol=1e-5)


def test_the_best_epoch_is_that_of_the_best_map(data, clip):
    method, task, events = m.CoOp(clip, 2), MultiLabel(replace(data, val=split_of(24, 100))), []
    config = TrainConfig(epochs=6, batch_size=8, lr=0.5, warmup=0, model_selection="val")
    result = run(method, task, config, on_event=events.append)
    assert result.protocol["selection"] == "best epoch on validation images"
    scores = [event.scores["val"] for event in events if isinstance(event, EpochDone)]
    assert len(scores) == 6
    assert max(scores) > scores[-1]  # else the last epoch would do as well
    odds, targets = read_label_odds(collect_outputs(method, task.lesson.val).logits, task.lesson.val)
    assert average_precisions(odds, targets)[:2].mean().item() == pytest.approx(max(scores))


def test_predictions_have_the_metrics_of_the_result(data, clip, tmp_path):
    method = m.CoOp(clip, 2)
    result = run(method, MultiLabel(data), TrainConfig(epochs=1), tmp_path / "run", keep_predictions=True)
    file = read_predictions(tmp_path / "run" / "predictions-test.parquet")
    assert file.labels.tolist() == [list(row) for row in data.test.labels]
    odds, _ = read_label_odds(collect_outputs(method, data.test).logits, data.test)
    assert torch.equal(file.logits, odds)
    names = [name for name in result.summary if name != "threshold"]
    scores = score_predictions(file, names)
    assert scores.values == pytest.approx({name: result.summary[name] for name in names}, abs=1e-9)
    assert "left out 1 classes that are never positive: never" in scores.notes[0]
    assert any("items have no label that is known to be present" in note for note in scores.notes)
    assert file.facts["threshold"] == result.summary["threshold"] != 0
    with pytest.raises(ValueError, match="--metric accuracy: predictions: expected items of one label each, got items"):
        score_predictions(file, ["accuracy"])


def test_what_nothing_can_be_learned_from_or_scored_by(data):
    with pytest.raises(ValueError, match=r"^task\.known: expected labels that are known to be present, got 1e-09"):
        MultiLabel(data, known=1e-9).lesson  # noqa: B018
    empty = replace(data.test, labels=((0, 0, 0),) * len(data.test))
    with pytest.raises(ValueError, match=r"^dataset: expected test images with labels, got none in 'small'"):
        MultiLabel(replace(data, test=empty)).data  # noqa: B018


def test_a_class_that_is_never_positive_is_said(data):
    assert MultiLabel(data).protocol["warnings"] == ["mAP leaves out 1 classes that are in no test image: never"]
    every = replace(data, test=replace(data.test, labels=((1, 1, 1),) * len(data.test)))
    assert "warnings" not in MultiLabel(every).protocol


def test_training_images_without_a_known_label(data):
    unknown = replace(data.train, labels=((-1, -1, -1),) * len(data.train))
    with pytest.raises(ValueError, match=r"^dataset: expected labels that .* got none in 24 training .*Label some"):
        MultiLabel(replace(data, train=unknown)).lesson  # noqa: B018
    with pytest.raises(ValueError, match=r"^task.known: expected labels that .* got 1e-06, which leaves none in 24 "):
        MultiLabel(data, known=1e-6).lesson  # noqa: B018
