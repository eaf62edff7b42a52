"""The task open_set: known and unknown classes, scores against them as written out, and what is refused."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from vlprompt import methods as m
from vlprompt.config.resolve import resolve_grid
from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.images import ImageItem
from vlprompt.core.method import Method, Output
from vlprompt.engine.evaluate import evaluate
from vlprompt.engine.evaluate_unknown import evaluate_against_unknown
from vlprompt.experiments.calibration.items import open_unknown
from vlprompt.experiments.runner import run
from vlprompt.layers.heads import LinearHead
from vlprompt.results.run_folder import Result
from vlprompt.results.tables.summary import build_rows, build_task_tables
from vlprompt.tasks import FewShot, OpenSet
from vlprompt.testing.images import write_digit_folders


def stage_of(*args, **settings):
    task = OpenSet(*args, **settings)
    [stage] = task.stages()
    return task, stage


def test_held_out_classes_are_unknown():
    task, stage = stage_of("digits", shots=4)
    names = stage.lesson.train.names
    assert [str(name) for name in names] == ["zero", "one", "two", "three", "four"]
    assert stage.tests["test"].names == stage.lesson.val.names == names
    [unknown] = stage.unknown_tests.values()
    assert [str(name) for name in unknown.names] == ["five", "six", "seven", "eight", "nine"]
    assert len(unknown) + len(stage.tests["test"]) == len(task.data.test)
    few_shot = FewShot("digits", 4).lesson.train.select_classes(range(5))
    assert stage.lesson.train.items == few_shot.items  # the shots are those of FewShot
    assert task.protocol["known_classes"] == ["0", "1", "2", "3", "4"]
    assert task.protocol["test"] == stage.tests["test"].hash() != task.data.test.hash()
    assert list(task.protocol["unknown_items"]) == ["digits"]


def test_chosen_classes_near_and_far():
    task, stage = stage_of("digits", ["digits", "glyphs"], known_classes=["3", "1", "7"], shots=4)
    assert [str(name) for name in stage.lesson.train.names] == ["three", "one", "seven"]
    assert list(stage.unknown_tests) == ["digits", "glyphs"]
    assert not {"one", "three", "seven"} & {str(name) for name in stage.unknown_tests["digits"].names}
    assert len(stage.unknown_tests["digits"].names) == 7
    assert task.protocol["unknown_left_out"] == ["digit one", "digit three", "digit seven"]
    assert len(stage.unknown_tests["glyphs"].names) == 72


def test_all_classes_are_known_against_another_dataset():
    task, stage = stage_of("digits", "glyphs", shots=4)
    assert len(stage.lesson.train.names) == 10
    assert len(stage.unknown_tests["glyphs"]) == 1300  # without the ten digits by another name
    [warning] = task.protocol["warnings"]
    assert warning.startswith("10 unknown classes have names like known ones and are left out ('digit zero', ")
    kept, stage = stage_of("digits", "glyphs", shots=4, keep_alike=True)
    assert len(stage.unknown_tests["glyphs"]) == 1500
    assert "warnings" not in kept.protocol


def test_noise_and_hidden_labels_are_those_of_known_classes():
    _, stage = stage_of("digits", shots=4, noise={"kind": "pairflip", "rate": 0.4})
    assert stage.lesson.train.info["wrong_labels"] == 8
    assert max(stage.lesson.train.labels) == 4
    _, stage = stage_of("digits", shots=4, unlabelled=True)
    assert (len(stage.lesson.train), len(stage.lesson.unlabelled)) == (0, 20)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unknown": ["glyphs", "glyphs"]}, r"^task\.unknown: expected different datasets, got glyphs, glyphs"),
        ({"known_classes": ["zero", "1"]}, r"^task\.known_classes: expected class ids of digits, got 'zero'"),
        ({"known_classes": ["1", "1"]}, r"^task\.known_classes: expected at least two different classes"),
        ({"known_classes": ["1"]}, r"^task\.known_classes: expected at least two different classes"),
        ({"known_classes": [str(i) for i in range(10)]}, r"^task\.known_classes: .* at least one left"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        stage_of("digits", shots=4, **settings)


def test_eval_has_the_unknown_items_of_the_task():
    """`vlprompt eval RUN --unknown glyphs` counts what the run counted."""
    (_, stage), settings = stage_of("digits", unknown="glyphs", shots=1), {"name": "few_shot", "dataset": "digits"}
    [wanted], names = stage.unknown_tests.values(), stage.lesson.train.names
    chosen = open_unknown(settings, names, "glyphs", "test")
    assert chosen.split.hash() == wanted.hash()
    assert chosen.note.startswith("left out of glyphs, as their names are like known ones: 'digit zero', ")
    every = open_unknown({**settings, "keep_alike": True}, names, "glyphs", "test")
    assert (len(every.split), every.note) == (1500, "")
    alike = tuple(ClassName(f"{name} again", str(i)) for i, name in enumerate(every.split.names))
    with pytest.raises(
        ValueError, match=r"--unknown: expected items of .*, whose classes all have names like known ones"
    ):
        open_unknown(settings, alike, "glyphs", "test")


def test_an_unknown_set_with_known_classes_is_refused(tmp_path):
    folder = str(write_digit_folders(tmp_path) / "digits")
    with pytest.raises(
        ValueError, match=r"^task\.unknown: expected a dataset without the known classes, got 'eight', "
    ):
        stage_of("digits", folder, shots=4)
    with pytest.raises(ValueError, match="got 'one', 'zero' in 'digits'"):
        stage_of("digits", folder, shots=4, known_classes=["0", "1"])


def test_a_score_that_there_is_not_is_refused_before_the_training(tiny):
    with pytest.raises(ValueError, match=r"^score: expected a known name, got 'mmc'; .*mcm"):
        run(m.CoOp(tiny, 4), OpenSet("digits", shots=4, scores=["mmc"]))


# --- scores ---


class GivenLogits(Method):
    """A method whose logits are given, by the number of the item."""

    def __init__(self, logits):
        super().__init__()
        self.table = logits

    def forward(self, inputs, prepared):
        return Output(self.table[[int(key.rpartition("/")[2]) for key in inputs.keys]])


def items_of(numbers, labels, names):
    items = tuple(ImageItem(f"given/{i}", lambda look, a: torch.zeros(3, 8, 8), f"given/{i}") for i in numbers)
    return Split(items, tuple(labels), names)


def closest_fpr(known, unknown):
    """FPR at the threshold whose recall is closest to 0.95, of equals the loosest, as written out."""
    thresholds = sorted(set(known) | set(unknown))
    recall = np.array([np.mean(known >= t) for t in thresholds])
    return np.mean(unknown >= thresholds[int(np.argmin(np.abs(recall - 0.95)))])


def test_scores_as_written_out():
    generator = torch.Generator().manual_seed(0)
    table = 2 * torch.randn(90, 4, generator=generator)
    table[:40] += 3 * torch.eye(4).repeat(10, 1)
    known = items_of(range(40), [i % 4 for i in range(40)], ("a", "b", "c", "d"))
    others = {
        "near": items_of(range(40, 60), [6] * 20, tuple("ghijklm")),
        "far": items_of(range(60, 90), [0] * 30, ("x",)),
    }
    method = GivenLogits(table)
    found = evaluate_against_unknown(method, known, others, batch_size=7)
    assert found.known.metrics == evaluate(method, known).metrics
    values = {
        "msp": table.double().softmax(1).amax(1),
        "maxlogit": table.double().amax(1),
        "energy": table.double().exp().sum(1).log(),
    }
    for name, rows in (("near", range(40, 60)), ("far", range(60, 90))):
        assert {key.partition("_")[2] for key in found.metrics[name] if key.startswith("auroc")} == set(values)
        for score, value in values.items():
            a, b = value[:40].numpy(), value[list(rows)].numpy()
            expected = roc_auc_score([1] * 40 + [0] * len(b), np.concatenate([a, b]))
            assert found.metrics[name][f"auroc_{score}"] == pytest.approx(100 * expected)
            assert found.metrics[name][f"fpr95_{score}"] == pytest.approx(100 * closest_fpr(a, b))
    assert len(found.notes) == 2
    assert all("logits are scaled cosines" in note for note in found.notes)
    assert method.training


def test_a_method_without_any_of_the_scores():
    known = items_of(range(4), [0, 1, 0, 1], ("a", "b"))
    method, others = GivenLogits(torch.randn(9, 2)), {"far": items_of(range(4, 9), [0] * 5, ("x",))}
    with pytest.raises(ValueError, match=r"^task\.scores: expected a score that the method has, got mcm\. left out: "):
        evaluate_against_unknown(method, known, others, ["mcm"])
    with pytest.raises(ValueError, match="test 'far': expected items, got none"):
        evaluate_against_unknown(method, known, {"far": items_of([], [], ("x",))})


def test_a_run_has_all_scores_side_by_side(tiny, tmp_path):
    task = OpenSet("digits", ["digits", "glyphs"], shots=1, scores=["mcm", "energy"])
    result = run(m.ZeroShot(tiny, "a photo of a {name}."), task, folder=tmp_path / "run")
    scores = result.scores[-1]
    assert set(scores) == {"test", "unknown/digits", "unknown/glyphs"}
    names = [f"{metric}_{score}" for score in ("msp", "mcm", "energy") for metric in ("auroc", "fpr95")]
    assert list(result.summary) == ["accuracy", *names]
    assert result.summary["accuracy"] == scores["test"]["accuracy"]
    for name in names:
        assert result.summary[name] == pytest.approx(
            (scores["unknown/digits"][name] + scores["unknown/glyphs"][name]) / 2
        )
    [table] = build_task_tables(build_rows([result]))
    assert table.header[:4] == ["method", "shots", "accuracy", "auroc msp"]
    assert run(m.ZeroShot(tiny, "a photo of a {name}."), task, folder=tmp_path / "run").summary == result.summary


def test_a_head_lacks_scores_of_cosines(tiny):
    result = run(m.Linear(tiny.image, LinearHead(), solver="fit"), OpenSet("digits", shots=1))
    assert list(result.summary) == [
        "accuracy",
        *(f"{a}_{b}" for b in ("msp", "maxlogit", "energy") for a in ("auroc", "fpr95")),
    ]
    assert [note[:30] for note in result.stages[0]["notes"]] == [
        "left out: score mcm: expected ",
        "left out: score gl-mcm: expect",
    ]


def test_rows_on_other_unknown_images_are_marked():
    def result(unknown, method):
        [config] = resolve_grid(
            [method], [4], [1], dataset="digits", task="open_set", overrides=[f"task.unknown={unknown}"]
        )
        cost = {"seconds": 1.0, "trained_parameters": 1, "peak_memory_mb": 1.0}
        protocol = {"unknown_items": {unknown: "1"}, "known_classes": ["0"], "test": "x"}
        return Result(config.to_dict(), [], {"accuracy": 1.0, "auroc_msp": 2.0}, cost, {}, protocol)

    [table] = build_task_tables(
        build_rows([result("glyphs", "coop"), result("glyphs", "linear"), result("digits", "vpt")])
    )
    assert [note.partition(":")[2] for note in table.footnotes] == [" unknown items digits 1 (others glyphs 1)"]


def test_it_trains_by_the_recipe_of_few_shot():
    few, many = (
        resolve_grid(["locoop"], [16], [1], dataset="digits", task=task)[0] for task in ("few_shot", "open_set")
    )
    assert (few.method, few.train) == (many.method, many.train)
