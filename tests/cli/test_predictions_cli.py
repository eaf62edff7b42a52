"""`run --keep-predictions`, `eval --keep-predictions` and `eval --from-predictions`, and the confusions of a result."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from vlprompt.cli.app import main
from vlprompt.experiments.prediction_scores import ALL_METRICS, parse_metrics, score_predictions
from vlprompt.metrics import confusion_matrix
from vlprompt.metrics.synonyms import SYNONYMS
from vlprompt.results.prediction_files import read_predictions
from vlprompt.results.run_folder import RunFolder, find_run_folders


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a zero-shot run whose predictions were kept."""
    root = tmp_path_factory.mktemp("kept")
    with pytest.raises(SystemExit) as left:
        main(["run", "zero_shot", "digits", "--task", "base_to_new", "--out", str(root), "--keep-predictions"])
    assert not left.value.code
    [folder] = find_run_folders(root)
    return folder


def lines(printed):
    return {words[0]: words[1] for words in map(str.split, printed.splitlines()) if len(words) == 2}


def test_every_number_of_a_result_comes_from_its_predictions(folder, type_all):
    result = RunFolder(folder).read_result()
    assert sorted(p.name for p in folder.glob("*.parquet")) == [
        f"predictions-{t}.parquet" for t in ("base", "joint", "new")
    ]
    for test, scores in result.scores[0].items():
        path = folder / f"predictions-{test}.parquet"
        status, _, printed = type_all(
            "eval", "--from-predictions", path, "--metric", "accuracy,class_mean,macro_f1,ece15"
        )
        assert not status
        names = {
            "accuracy": "accuracy",
            "class_mean": "class_mean",
            "macro_f1": "macro_f1",
            "calibration_error": "ece15",
        }
        assert {lines(printed)[name]: f"{scores[key]:.2f}" for key, name in names.items()} == {
            v: v for v in lines(printed).values()
        }
        file = read_predictions(path)
        assert file.facts["test"] == test
        assert file.learned_ids == tuple("01234")
        confusion = result.confusion[test]
        counts = torch.zeros(len(file.ids), len(file.ids), dtype=torch.long)
        for true, answered, n in confusion["counts"]:
            counts[true, answered] = n
        assert confusion["classes"] == list(file.ids)
        assert torch.equal(counts, confusion_matrix(file.predicted, file.labels, len(file.ids)))
    joint = folder / "predictions-joint.parquet"
    _, _, printed = type_all("eval", "--from-predictions", joint, "--metric", "base,new,harmonic,openworld_accuracy")
    summary = {**result.summary, "openworld_accuracy": result.summary["joint"]}
    assert lines(printed) == {
        name: f"{summary[name]:.2f}" for name in ("base", "new", "harmonic", "openworld_accuracy")
    }


def test_the_names_that_a_run_prints_are_names_of_metrics(folder, type_all):
    result, names = RunFolder(folder).read_result(), ("accuracy", "class_mean", "macro_f1", "calibration_error")
    words = "eval", "--from-predictions", folder / "predictions-base.parquet", "--metric", ",".join((*names, "ece15"))
    status, _, printed = type_all(*words)
    assert not status
    shown = lines(printed)
    assert {name: shown[name] for name in names} == {name: f"{result.scores[0]['base'][name]:.2f}" for name in names}
    assert shown["calibration_error"] == shown["ece15"]


def test_an_evaluation_keeps_the_same_predictions(folder, type_all, tmp_path):
    path = tmp_path / "again.parquet"
    status, printed, _ = type_all("eval", folder, "--keep-predictions", path)
    assert not status
    assert f"wrote {path}" in printed
    kept, again = read_predictions(folder / "predictions-joint.parquet"), read_predictions(path)
    assert again.digest == kept.digest
    assert torch.allclose(again.logits, kept.logits, atol=1e-4)
    assert again.learned_ids == kept.learned_ids
    status, printed, _ = type_all("eval", "--from-predictions", path, "--against", folder / "predictions-joint.parquet",
                                  "--metric", "accuracy,per_class")  # fmt: skip
    assert not status
    assert "difference interval accuracy" in printed
    assert "McNemar: 0 items only the first has right, 0 only the second, p = 1" in printed
    assert "class items precision recall f1 zero" in printed


@pytest.fixture(scope="module")
def open_folder(tmp_path_factory):
    """The folder of a zero-shot run against unknown classes whose predictions were kept."""
    root = tmp_path_factory.mktemp("open")
    words = "run", "zero_shot", "digits", "--task", "open_set", "--unknown", "digits,glyphs", "--shots", "1"
    with pytest.raises(SystemExit) as left:
        main([*words, "--out", str(root), "--keep-predictions"])
    assert not left.value.code
    [folder] = find_run_folders(root)
    return folder


def test_metrics_of_unknown_classes_are_those_of_the_run(open_folder, type_all):
    result, path = RunFolder(open_folder).read_result(), open_folder / "predictions-test.parquet"
    file = read_predictions(path)
    scores = score_predictions(file, parse_metrics(",".join(result.summary)))
    assert scores.values == result.summary  # to the last bit
    assert len(result.summary) == 11
    for row in score_predictions(file).tables["unknown"]:
        metrics = result.scores[0][f"unknown/{row['unknown']}"]
        for metric in ("auroc", "fpr95", "fpr95_at_least", "aupr_in", "aupr_out"):
            assert row[metric] == metrics[f"{metric}_{row['score']}"]
    kept = RunFolder(open_folder).read_unknown_scores()
    assert torch.equal(file.unknown.known_scores, kept.known)
    assert torch.equal(file.unknown.scores, torch.cat([*kept.unknown.values()]))
    assert file.unknown.predicted.tolist() == file.unknown.logits.argmax(1).tolist()
    # the logits are those of the unknown items: their softmax is msp
    msp = file.unknown.scores[:, file.unknown.score_names.index("msp")]
    assert torch.equal(file.unknown.logits.double().softmax(1).amax(1), msp)
    status, _, printed = type_all("eval", "--from-predictions", path, "--metric", "auroc,open_auc_mcm,accuracy")
    assert not status
    assert lines(printed)["auroc_gl-mcm"] == f"{result.summary['auroc_gl-mcm']:.2f}"
    assert "the mean over the unknown sets digits, glyphs" in printed
    status, _, printed = type_all("eval", "--from-predictions", path)
    assert "unknown  score" in printed


def test_an_evaluation_against_unknown_keeps_its_unknown_items(open_folder, type_all, tmp_path):
    path = tmp_path / "again.parquet"
    words = "eval", open_folder, "--unknown", "digits", "--score", "mcm,maxlogit", "--keep-predictions", path
    status, _, printed = type_all(*words)
    assert not status
    file = read_predictions(path)
    assert file.unknown.score_names == ("msp", "mcm", "maxlogit")
    table = {row["score"]: row for row in score_predictions(file).tables["unknown"]}
    shown = {words[0]: words[1:] for line in printed.splitlines() if (words := line.split())}
    for score in ("mcm", "maxlogit"):
        names = ("auroc", "fpr95", "fpr95_at_least", "aupr_in", "aupr_out")
        assert shown[score] == [f"{table[score][name]:.2f}" for name in names]


def test_a_target_names_its_images_as_a_test_of_few_shot_does(type_all, tmp_path):
    """Labels are hidden from the method only, so that both files are of the same test."""
    colours = iter(np.random.default_rng(0).integers(0, 256, (24, 3)))
    for folder in ("source", "target/train", "target/test"):
        for class_name in ("cat", "dog"):
            (tmp_path / folder / class_name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (32, 32), tuple(map(int, next(colours)))).save(
                    tmp_path / folder / class_name / f"{i}.png"
                )
    target, predictions = tmp_path / "target", []
    for words in (["--source", tmp_path / "source", "--target", target], [target, "--shots", "1"]):
        out = tmp_path / f"runs{len(predictions)}"
        command = "run", "zero_shot", *words, "--backbone", "glyph/random", "--out", out, "--keep-predictions"
        status, said, _ = type_all(*command)
        assert status == 0, said
        [path] = (path for path in out.rglob("*.parquet") if path.name != "predictions-source.parquet")
        predictions.append(path)
    names = {f"test/{class_name}/{i}.png" for class_name in ("cat", "dog") for i in range(4)}
    assert [set(read_predictions(path).items) for path in predictions] == [names, names]
    status, said, out = type_all("eval", "--from-predictions", predictions[0], "--against", predictions[1])
    assert status == 0, said
    assert "McNemar: 0 items only the first has right, 0 only the second, p = 1" in out


def test_mistakes_in_a_command(folder, type_in, tmp_path):
    base, joint = folder / "predictions-base.parquet", folder / "predictions-joint.parquet"
    for words, message in (
        (("eval",), "expected a RUN or --from-predictions FILE, got none"),
        (("eval", folder, "--metric", "ece15"), "expected --from-predictions with --metric, got none"),
        (("eval", folder, "--metric", "ece15"), "by `vlprompt eval"),
        (
            ("eval", folder, "--metric", "expected_calibration_error"),
            "got 'expected_calibration_error'; did you mean 'ece15'?",
        ),
        (("eval", "--from-predictions", base, "--metric", "roc_auc"), "did you mean 'auroc_ovr' or 'auroc'?"),
        (("eval", folder, "--from-predictions", base), "expected a RUN or --from-predictions, got"),
        (("eval", "--from-predictions", base, "--against", joint), "got those of another split"),
        (("eval", "--from-predictions", base, "--metric", "auroc"), "--metric auroc: predictions: expected items of"),
        (("eval", "--from-predictions", tmp_path / "none.parquet"), "expected a file of predictions, got no such file"),
    ):
        status, printed = type_in(*words)
        assert status, words
        assert message in printed, words


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("Balanced Accuracy", "did you mean 'class_mean'?"),
        ("top-1", "did you mean 'accuracy'?"),
        ("f1", "'macro_f1' or 'macro_f1_all' or 'weighted_f1' or 'micro_f1' or 'CF1' or 'CF1_mean' or 'OF1'?"),
        ("f1_macro", "did you mean 'macro_f1_all' or 'CF1_mean'?"),  # scikit-learn's; macro_f1 is over fewer classes
        ("FPR95TPR", "did you mean 'fpr95' or 'fpr95_at_least' or 'fpr95_unknown'?"),
        ("map", "did you mean 'mAP'?"),
        ("FPR@95", "did you mean 'fpr95'?"),
        ("auroc-gl-mcm", "did you mean 'auroc_gl-mcm'?"),
        ("acuracy", "did you mean 'accuracy'?"),
        ("xyz", "the choices are accuracy, "),
    ],
)
def test_a_metric_by_another_name(name, nearest):
    with pytest.raises(ValueError, match=re.escape(nearest)):
        parse_metrics(name)


def test_names_elsewhere_are_of_metrics_that_there_are_and_are_none_of_them():
    assert SYNONYMS.keys() <= ALL_METRICS.keys()
    synonyms = {word for words in SYNONYMS.values() for word in words.split()}
    assert not synonyms & {name.lower() for name in ALL_METRICS}
    for synonym in synonyms:
        with pytest.raises(ValueError, match="did you mean"):
            parse_metrics(synonym)


def test_a_run_that_was_tested_before_says_that_it_has_none(folder, type_in, tmp_path):
    words = "run", "zero_shot", "digits", "--task", "base_to_new", "task.base_only=true", "--out", tmp_path / "runs"
    assert type_in(*words)[0] == 0
    status, printed = type_in(*words, "--keep-predictions")
    assert status == 0
    assert "it was tested before; vlprompt eval" in printed


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_sweep_keeps_the_predictions_of_every_run(jobs, type_in, tmp_path):
    words = "sweep", "method=zero_shot", "dataset=digits,glyphs", "shots=1", "--out", tmp_path, "--jobs", jobs
    status, printed = type_in(*words, "--keep-predictions")
    assert status == 0, printed
    folders = find_run_folders(tmp_path)
    assert len(folders) == 2
    for folder in folders:
        accuracy = RunFolder(folder).read_result().summary["accuracy"]
        predictions = read_predictions(folder / "predictions-test.parquet")
        assert 100 * (predictions.predicted == predictions.labels).double().mean().item() == pytest.approx(accuracy)
    assert "it was tested before" not in printed


def test_a_sweep_that_was_finished_before_says_that_it_has_none(type_in, tmp_path):
    words = "sweep", "method=zero_shot", "dataset=digits", "shots=1", "--out", tmp_path
    assert type_in(*words)[0] == 0
    assert not [*tmp_path.rglob("*.parquet")]
    status, printed = type_in(*words, "--keep-predictions")
    assert status == 0
    assert "it was tested before; vlprompt eval" in printed


def test_predictions_of_earlier_tests_go(folder, tmp_path):
    run = RunFolder(tmp_path)
    file = read_predictions(folder / "predictions-base.parquet")
    run.save_predictions({"seen": file, "seen/0": file})
    assert {p.name for p in tmp_path.iterdir()} == {"predictions-seen.parquet", "predictions-seen%2F0.parquet"}
    run.save_predictions({"seen": file})
    assert [p.name for p in tmp_path.iterdir()] == ["predictions-seen.parquet"]
    run.save_predictions({})
    assert not list(tmp_path.iterdir())
