"""Wrong training labels: how many, which, that nothing else changes, and what is refused or warned of."""

import warnings
from collections import Counter

import pytest

from vlprompt.config.resolve import resolve_grid
from vlprompt.core.batch import Split
from vlprompt.data.splits.label_noise import LabelNoise, flip_labels
from vlprompt.results.comparability import collect_protocol_facts, describe_protocol_differences
from vlprompt.tasks import BaseToNew, FewShot

NAMES = ("a", "b", "c", "d")
TRAIN = Split(tuple(range(400)), tuple(i % 4 for i in range(400)), NAMES)


def changes(noise, seed=1, train=TRAIN):
    found = flip_labels(train, noise, seed)
    assert (found.items, found.names) == (train.items, train.names)
    wrong = {i: (a, b) for i, (a, b) in enumerate(zip(train.labels, found.labels, strict=True)) if a != b}
    assert found.info["wrong_labels"] == len(wrong)
    return wrong


def test_symmetric_noise_draws_every_other_class():
    wrong = changes(LabelNoise("symmetric", 0.6))
    assert len(wrong) == 240
    counts = Counter(wrong.values())
    assert set(counts) == {(a, b) for a in range(4) for b in range(4) if a != b}
    assert max(counts.values()) < 2.5 * min(counts.values())


def test_pairflip_takes_the_next_class():
    wrong = changes(LabelNoise("pairflip", 0.25))
    assert len(wrong) == 100
    assert set(wrong.values()) == {(0, 1), (1, 2), (2, 3), (3, 0)}


def test_asymmetric_noise_takes_the_named_classes():
    wrong = changes(LabelNoise("asymmetric", 0.3, {"a": "c", "d": "a"}))
    assert len(wrong) == 60  # of the 200 images of both
    assert set(wrong.values()) == {(0, 2), (3, 0)}


def test_a_seed_draws_the_same_and_another_one_others():
    few, many = changes(LabelNoise("symmetric", 0.2)), changes(LabelNoise("symmetric", 0.5))
    assert few == changes(LabelNoise("symmetric", 0.2))
    assert few.items() <= many.items()  # the wrong labels of a lower rate are among those of a higher one
    assert few != changes(LabelNoise("symmetric", 0.2), seed=2)
    assert len(changes(LabelNoise("symmetric", 0.29), train=TRAIN.select(range(100)))) == 29
    assert not changes(LabelNoise("symmetric", 0.0))


@pytest.mark.parametrize(
    ("kind", "rate", "warns"),
    [("symmetric", 0.74, 0), ("symmetric", 0.75, 1), ("pairflip", 0.5, 1), ("pairflip", 0.49, 0)],
)
def test_a_rate_from_which_the_majority_is_wrong_is_warned_of(kind, rate, warns):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        changes(LabelNoise(kind, rate))
    assert len(found) == warns
    assert all("task.noise.rate: expected less than" in str(warning.message) for warning in found)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "symetric"}, r"^task\.noise\.kind: expected symmetric, .*got 'symetric'"),
        ({"rate": 1.5}, r"^task\.noise\.rate: expected 0 to 1, got 1.5"),
        ({"rate": float("nan")}, r"^task\.noise\.rate: expected 0 to 1, got nan"),
        ({"kind": "asymmetric", "rate": 0.2}, r"^task\.noise\.flips: .*kind=pairflip"),
        ({"rate": 0.2, "flips": {"a": "b"}}, r"^task\.noise\.flips: .*with symmetric"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LabelNoise(**settings)


def test_flips_of_classes_that_there_are_not():
    with pytest.raises(ValueError, match=r"^task\.noise\.flips: expected ids of training classes, got 'x'"):
        changes(LabelNoise("asymmetric", 0.2, {"a": "x"}))
    with pytest.raises(ValueError, match=r"^task\.noise\.flips: expected another class for 'a', got itself"):
        changes(LabelNoise("asymmetric", 0.2, {"a": "a"}))
    with pytest.raises(ValueError, match=r"^task\.noise: expected at least two classes, got 1"):
        changes(LabelNoise("pairflip", 0.2), train=Split((1, 2), (0, 0), ("a",)))


# --- in tasks ---


def test_only_training_labels_change():
    plain, noisy = FewShot("digits", 4), FewShot("digits", 4, noise=LabelNoise("symmetric", 0.5))
    [clean], [stage] = plain.stages(), noisy.stages()
    assert sum(a != b for a, b in zip(clean.lesson.train.labels, stage.lesson.train.labels, strict=True)) == 20
    assert stage.lesson.train.items == clean.lesson.train.items
    assert stage.lesson.val == clean.lesson.val
    assert stage.tests == clean.tests
    assert noisy.protocol["noise"] == "symmetric 0.5"
    assert noisy.protocol["wrong_labels"] == 20
    assert noisy.protocol["train"] != plain.protocol["train"]
    assert "noise" not in plain.protocol


def test_base_classes_become_base_classes():
    task = BaseToNew("digits", 4, noise={"kind": "pairflip", "rate": 0.4})
    train = next(task.stages()).lesson.train
    clean = next(BaseToNew("digits", 4).stages()).lesson.train
    assert {(a, b) for a, b in zip(clean.labels, train.labels, strict=True) if a != b} <= {
        (i, (i + 1) % 5) for i in range(5)
    }
    assert task.protocol["wrong_labels"] == 8


def test_the_command_line_sets_one_rate():
    [config] = resolve_grid(["coop"], [4], [1], dataset="digits", overrides=["task.noise.rate=0.5"])
    assert config.task["noise"] == {"kind": "symmetric", "rate": 0.5, "flips": {}}
    [config] = resolve_grid(["coop"], [4], [1], dataset="digits", overrides=["task.noise={kind: pairflip, rate: 0.3}"])
    assert config.task["noise"] == {"kind": "pairflip", "rate": 0.3, "flips": {}}
    [config] = resolve_grid(["coop"], [4], [1], dataset="digits")
    assert config.task["noise"] is None
    for setting, message in (
        ("task.noise.rte=0.5", r"task\.noise"),
        ("task.noise.kind=sym", r"task\.noise.*got 'sym'"),
        ("task.noise.rate=2", r": task\.noise\.rate: expected 0 to 1, got 2.0\. Set task\.noise\.rate=0\.5\.$"),
    ):
        with pytest.raises(ValueError, match=message):
            resolve_grid(["coop"], [4], [1], dataset="digits", overrides=[setting])


def test_labels_that_are_hidden_have_no_noise():
    with pytest.raises(ValueError, match=r"^task\.noise: expected labels to change, got task\.unlabelled=true"):
        FewShot("digits", 4, unlabelled=True, noise=LabelNoise("symmetric", 0.5))


class Row:
    """What a table reads of a result."""

    def __init__(self, protocol):
        self.protocol, self.cost = protocol, {"trained_parameters": 1}
        self.config = {"task": {"name": "few_shot"}, "backbone": "glyph", "train": {}, "seed": 1}


def test_tables_mark_rows_with_noise():
    rows = [collect_protocol_facts([Row(p)]) for p in ({"noise": "symmetric 0.5"}, {"noise": "symmetric 0.5"}, {})]
    marked = describe_protocol_differences(rows)
    assert marked == ["wrong training labels: symmetric 0.5"] * 2 + [""]
