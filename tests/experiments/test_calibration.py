"""Temperature and threshold of a learned prompt: chosen on validation items, tested, saved, and what is refused."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_models
import torch
from experiments.test_predict_texts import data as text_data
from PIL import Image

import vlprompt
from vlprompt.cli.app import main
from vlprompt.data.dataset import Data
from vlprompt.engine.train_config import TrainConfig
from vlprompt.experiments.calibration.choice import Selection, choose_decision
from vlprompt.experiments.calibration.items import ChosenItems, open_unknown, open_validation, relabel
from vlprompt.experiments.evaluation import evaluate_run
from vlprompt.experiments.learned.decision import Decision
from vlprompt.experiments.learned.prompt import decide, load_prompt
from vlprompt.experiments.learned.state import read_learned_state
from vlprompt.experiments.runner import run
from vlprompt.layers.heads import LinearHead
from vlprompt.methods import InContext, Linear
from vlprompt.metrics import calibration_scores, unknown_scores
from vlprompt.tasks import BaseToNew, FewShot, Text


def command(capsys, *words):
    """Exit status, and what a command printed on both streams."""
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    return end.value.code, out, err


def write_images(folder, classes, n=12):
    """A folder of noise, one sub-folder for each class."""
    rng = np.random.RandomState(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(rng.randint(0, 256, (16, 16, 3), np.uint8)).save(folder / name / f"{i}.png")
    return folder


def write_digits(folder, counts):
    """Some digits of each class as a folder with its splits: {part: images of each class}."""
    digits = vlprompt.data.open_data("digits").train
    for label, name in enumerate(digits.names):
        items = iter([item for item, k in zip(digits.items, digits.labels, strict=True) if k == label])
        for part, n in counts.items():
            (folder / part / name).mkdir(parents=True)
            for i in range(n):
                pixels = next(items).pixels(vlprompt.Preprocessing((32, 32)), None).clamp(0, 1)
                array = (pixels * 255).round().byte().permute(1, 2, 0).numpy()
                Image.fromarray(array).save(folder / part / name / f"{name}{i}.png")
    return str(folder)


@pytest.fixture(scope="module")
def feature_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("features")


@pytest.fixture(autouse=True)
def own_features(monkeypatch, feature_folder):
    """The tests of this file share the features of their images."""
    monkeypatch.setenv("VLPROMPT_FEATURE_CACHE", str(feature_folder))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{name: folder} of finished runs on digits: all ten, and the first five as base classes."""
    root, clip = tmp_path_factory.mktemp("calibration"), vlprompt.load("glyph")
    config = TrainConfig(epochs=1, lr=0.01)
    digits = write_digits(root / "digits", {"train": 3, "val": 8, "test": 9})
    run(vlprompt.methods.CoOp(clip, 2), FewShot(digits, 2), config, root / "all")
    run(vlprompt.methods.CoOp(clip, 2), BaseToNew(digits, 2), config, root / "base")
    write_images(root / "noise", ["blob", "cloud"])
    return {"all": root / "all", "base": root / "base", "noise": root / "noise", "digits": digits}


# decisions of a run


@pytest.mark.parametrize("score", ["msp", "maxlogit", "energy", "mcm", "gl-mcm"])
def test_a_decision_covers_what_was_stated(runs, score):
    prompt = load_prompt(runs["all"])
    validation = open_validation(prompt.state, prompt.names, runs["digits"])
    decision = choose_decision(prompt, validation, score=score, reject="0.9")
    answers = prompt.with_decision(decision).answer(validation.split.items)
    n, share = len(validation.split), (~answers.is_unknown).double().mean().item()
    assert answers.scores.dtype == torch.float64
    assert int((~answers.is_unknown).sum()) == math.ceil(0.9 * n)
    assert decision.facts["coverage"] == pytest.approx(100 * share)
    right = answers.probabilities.argmax(1) == torch.tensor(validation.split.labels)
    assert decision.facts["accepted_accuracy"] == pytest.approx(100 * right[~answers.is_unknown].double().mean().item())
    assert decision.facts["validation"] == {
        "dataset": "digits", "part": "val", "items": n, "hash": validation.split.hash()
    }  # fmt: skip


def test_a_run_has_validation_items_of_its_own(runs):
    state = read_learned_state(runs["all"])
    assert open_validation(state, state.names, None).describe()["items"] == 20  # 2 shots of 10 classes
    base = read_learned_state(runs["base"])
    assert open_validation(base, base.names, None).describe()["items"] == 10
    assert open_validation(base, base.names, runs["digits"]).split.names == base.names  # of its own data: its classes


def test_calibration_is_reported_before_and_after(runs, capsys):
    code, out, _ = command(capsys, "eval", runs["all"], "--calibrate", "--validation", runs["digits"])
    assert code == 0
    prompt = load_prompt(runs["all"])
    test = vlprompt.data.open_data(runs["digits"]).test
    temperature = float(next(line.split()[1] for line in out.splitlines() if line.startswith("temperature")))
    validation = open_validation(prompt.state, prompt.names, runs["digits"])
    decision = choose_decision(prompt, validation, calibrate=True)
    assert temperature == pytest.approx(decision.temperature, rel=1e-3)
    assert decision.facts["after"]["nll"] < decision.facts["before"]["nll"]
    labels = torch.tensor(test.labels)
    for when, t in (("before", 1.0), ("after", decision.temperature)):
        cells = next(line.split()[1:] for line in out.splitlines() if line.startswith(when))
        p = prompt.with_decision(Decision(t)).answer(test.items).probabilities
        told = calibration_scores(p, labels)
        assert [float(cell) for cell in cells] == pytest.approx(list(told.values()), abs=6e-3)
    evaluation = evaluate_run(runs["all"], None, None, None, False,
                              selection=Selection(calibrate=True, validation=runs["digits"]))  # fmt: skip
    assert evaluation.metrics["calibration_error"] == pytest.approx(evaluation.calibration["after"]["ece15"], abs=1e-3)


@pytest.mark.slow
def test_unknown_classes_are_reported_for_each_score(runs, capsys):
    code, out, _ = command(capsys, "eval", runs["all"], "--unknown", runs["noise"], "--score", "mcm,msp")
    assert code == 0
    rows = {cells[0]: cells[1:] for cells in map(str.split, out.splitlines()) if cells and cells[0] in ("mcm", "msp")}
    assert list(rows) == ["mcm", "msp"]
    prompt = load_prompt(runs["all"])
    known, noise = vlprompt.data.open_data(runs["digits"]).test, vlprompt.data.open_data(str(runs["noise"])).test
    for name, cells in rows.items():
        one = prompt.with_decision(Decision(score=name))
        told = unknown_scores(one.answer(known.items).scores, one.answer(noise.items).scores)
        assert [float(cell) for cell in cells] == pytest.approx(list(told.values()), abs=6e-3)
    assert f"{len(known)} known test items against {len(noise)} unknown ones of noise: 'eight'" in out
    assert "against 'blob', 'cloud'" in out
    _, out, _ = command(capsys, "eval", runs["all"], "--unknown", runs["noise"])
    assert [line.split()[0] for line in out.splitlines()[5:11]] == [
        "score",
        "msp",
        "maxlogit",
        "energy",
        "mcm",
        "gl-mcm",
    ]


def test_new_classes_of_the_same_data_are_unknown_to_base_classes(runs):
    evaluation = evaluate_run(runs["base"], None, None, None, False,
                              selection=Selection(unknown=runs["digits"], scores=("maxlogit",)))  # fmt: skip
    test = vlprompt.data.open_data(runs["digits"]).test
    base = sum(label < 5 for label in test.labels)
    assert evaluation.notes[0].startswith(f"{base} known test items against {len(test) - base} unknown ones of digits")
    assert "'one' against 'seven'" in evaluation.notes[0]
    assert list(evaluation.unknown) == ["maxlogit"]
    assert evaluation.unknown["maxlogit"]["auroc"] > 60


def test_a_threshold_is_saved_and_rejects(runs, tmp_path, capsys):
    folder = tmp_path / "model"
    words = ["save", runs["all"], folder, "--reject", "fpr=0.1", "--unknown", runs["noise"], "--score", "energy",
             "--calibrate", "--validation", runs["digits"]]  # fmt: skip
    code, out, err = command(capsys, *words)
    assert code == 0, err
    assert "threshold" in out
    assert "chosen on 80 validation items: the split val of digits" in out
    saved = json.loads((folder / "config.json").read_text())["decision"]
    prompt, plain = load_prompt(folder), load_prompt(runs["all"])
    assert prompt.decision.threshold == saved["threshold"]
    assert prompt.decision.score == "energy"
    assert prompt.decision.temperature == saved["temperature"] != 1
    state = read_learned_state(runs["all"])
    noise = open_unknown(state.config["task"], state.names, str(runs["noise"]), "val")
    rejected = prompt.answer(noise.split.items).is_unknown
    assert int((~rejected).sum()) == int(0.1 * len(noise.split))
    assert saved["facts"]["unknown_accepted"] == pytest.approx(100 * (~rejected).double().mean().item())
    assert not plain.answer(noise.split.items).is_unknown.any()
    test = vlprompt.data.open_data(runs["digits"]).test
    answers = prompt.answer(test.items)
    metrics = evaluate_run(folder, runs["digits"], None, None, False).metrics
    assert metrics["coverage"] == pytest.approx(100 * (~answers.is_unknown).double().mean().item())
    right = (answers.probabilities.argmax(1) == torch.tensor(test.labels))[~answers.is_unknown]
    assert metrics["accepted_accuracy"] == pytest.approx(100 * right.double().mean().item())
    assert metrics["accuracy"] == pytest.approx(evaluate_run(runs["all"], None, None, None, False).metrics["accuracy"])


def test_the_item_at_the_threshold_is_accepted_in_any_batch(runs):
    prompt = load_prompt(runs["all"])
    validation = open_validation(prompt.state, prompt.names, None)
    chosen = prompt.with_decision(choose_decision(prompt, validation, reject=1.0))
    items = validation.split.items
    parts = [a.is_unknown for size in (1, 7, 100) for a in chosen.iter_answers(items, batch_size=size)]
    assert not torch.cat(parts).any()


def test_a_score_that_is_no_number_is_not_accepted():
    output = vlprompt.Output(torch.zeros(2, 3), scores=torch.tensor([[math.nan], [0.5]], dtype=torch.double))
    assert decide(output, Decision(threshold=0.5)).is_unknown.tolist() == [True, False]


# what is refused


def refused(capsys, *words):
    code, out, err = command(capsys, *words)
    assert code == 2, out
    return " ".join(err.split())


def test_known_classes_among_the_unknown_are_refused(runs, tmp_path, capsys):
    write_images(tmp_path / "mixed", ["Zero", "blob"])
    text = refused(capsys, "eval", runs["all"], "--unknown", tmp_path / "mixed")
    assert "--unknown: expected items of classes that are not known, got 'zero' in" in text
    assert "got no items of other classes in" in refused(capsys, "eval", runs["all"], "--unknown", runs["digits"])


def test_known_images_among_the_unknown_are_refused(runs, tmp_path, capsys):
    """The same file as a class of another name; one image of the validation split, and one of the test split."""
    for part in ("train", "val", "test"):
        write_images(tmp_path / "other" / part, ["blob", "cloud"], 3)
    digits = Path(runs["digits"])
    shutil.copy(min((digits / "test" / "one").iterdir()), tmp_path / "other" / "test" / "blob")
    text = refused(capsys, "eval", runs["all"], "--unknown", tmp_path / "other")
    assert "--unknown: expected other items than the known ones, got 1 of 7 that are among them, such as" in text
    shutil.copy(min((digits / "val" / "one").iterdir()), tmp_path / "other" / "val" / "blob")
    words = ["--reject", "fpr=0.1", "--unknown", tmp_path / "other", "--validation", runs["digits"]]
    assert "got 1 of 7 that are among them" in refused(capsys, "save", runs["all"], tmp_path / "model", *words)


def test_without_a_best_temperature_eval_reports_and_save_refuses(runs, tmp_path, capsys):
    """Two validation items, both answered right."""
    prompt = load_prompt(runs["all"])
    data = vlprompt.data.open_data(runs["digits"])
    answers = prompt.predict(data.val.items)
    right = {answers[i]: i for i, k in enumerate(data.val.labels) if answers[i] == str(data.val.names[k])}
    for name in sorted(right)[:2]:
        (tmp_path / "few" / "val" / name).mkdir(parents=True)
        shutil.copy(data.val.items[right[name]].file, tmp_path / "few" / "val" / name)
        for part in ("train", "test"):
            shutil.copytree(Path(runs["digits"]) / part / name, tmp_path / "few" / part / name)
    words = ["--calibrate", "--validation", tmp_path / "few"]
    code, out, err = command(capsys, "eval", runs["all"], *words)
    assert code == 0, err
    assert (
        "temperature left at 1: --calibrate: expected validation items of which at least one is answered wrong" in out
    )
    assert [line.split()[0] for line in out.splitlines() if line.startswith(("before", "after"))] == ["before"]
    assert "answered wrong, got 2 that are all right" in refused(capsys, "save", runs["all"], tmp_path / "m", *words)


def test_items_that_were_trained_on_are_refused(runs):
    """One image of the training split among validation images."""
    task = FewShot(runs["digits"], 2)
    state, items = read_learned_state(runs["all"]), task.lesson
    mixed = replace(task.data, val=items.val.concat(items.train.select([0])))
    with pytest.raises(ValueError, match="expected items that were not trained on, got 1 of 21 that were, such as"):
        open_validation(state, state.names, mixed)


def test_items_of_other_classes_are_refused(runs, capsys):
    text = refused(capsys, "eval", runs["all"], "--calibrate", "--validation", runs["noise"])
    assert "expected items of the classes that were learned ('eight', 'five'" in text
    assert "got 'blob', 'cloud' in 'noise'" in text


def test_classes_are_matched_by_name_in_other_data():
    split = vlprompt.data.open_data("digits").test.select(range(10))
    names = (vlprompt.ClassName("zero", id="x"), vlprompt.ClassName("one", id="y"))
    zeros = split.select([i for i, label in enumerate(split.labels) if label == 0])
    assert set(relabel(zeros, names[::-1], "digits").labels) == {1}


def test_a_run_without_validation_items_says_so(tmp_path):
    digits = vlprompt.data.open_data("digits")
    task = FewShot(Data("few", digits.train, None, digits.test, digits.template, ""), 1)
    folder = tmp_path / "run"
    run(vlprompt.methods.CoOp(vlprompt.load("glyph/random"), 2), task, TrainConfig(epochs=1), folder)
    state = read_learned_state(folder)
    with pytest.raises(ValueError):
        open_validation(state, state.names, None)
    with pytest.raises(ValueError, match=r"validation: expected validation items in 'few', got none\. Name another"):
        open_validation(state, state.names, replace(digits, val=None, name="few"))
    # the data of the run can't be opened by its name again: that nothing was compared is told
    assert "not compared with the items" in open_validation(state, state.names, digits).describe()["note"]


def test_other_data_than_those_of_the_run_are_refused(tmp_path, capsys):
    photos, folder = tmp_path / "photos", tmp_path / "run"
    write_images(photos, ["blob", "cloud"], 20)
    run(vlprompt.methods.CoOp(vlprompt.load("glyph/random"), 2), FewShot(str(photos), 1), TrainConfig(epochs=1), folder)
    shutil.rmtree(photos)
    write_images(photos, ["blob", "cloud"], 30)
    text = refused(capsys, "eval", folder, "--calibrate")
    assert re.search(r"expected the data that it was trained on \(hash [0-9a-f]{16}\), got others", text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--reject", "0.9", "--score", "mcm,msp"], "--score: expected one score for --reject, got mcm, msp."),
        (["--score", "mcm"], "--score: expected --reject with it"),
        (["--validation", "digits"], "--validation: expected --reject or --calibrate with it"),
        (["--reject", "fpr=0.1"], "--reject: expected items of unknown classes for fpr=0.1, got none."),
        (["--reject", "95"], "--reject: expected the share of known items to accept"),
        (
            ["--unknown", "digits", "--score", "gl_mcm"],
            "score: expected a known name, got 'gl_mcm'; did you mean 'gl-mcm'",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_do_not_fit_are_refused(runs, words, message, capsys):
    assert message in refused(capsys, "eval", runs["all"], *words)


def test_save_refuses_unknown_items_without_a_threshold(runs, tmp_path, capsys):
    text = refused(capsys, "save", runs["all"], tmp_path / "model", "--unknown", runs["noise"])
    assert "--unknown: expected --reject with it" in text
    assert not (tmp_path / "model").exists()


def test_a_score_that_a_method_lacks_is_refused_or_left_out(runs, tmp_path, capsys):
    folder = tmp_path / "run"
    clip = vlprompt.load("glyph")
    run(Linear(clip.image, LinearHead(), solver="fit"), FewShot(runs["digits"], 2), TrainConfig(epochs=1), folder)
    text = refused(capsys, "eval", folder, "--unknown", runs["noise"], "--score", "mcm")
    assert "score mcm: expected a method whose logits are scaled cosines" in text
    code, out, _ = command(capsys, "eval", folder, "--unknown", runs["noise"])
    assert code == 0
    assert "left out: score mcm" in out
    assert "left out: score gl-mcm" in out
    assert [line.split()[0] for line in out.splitlines()[5:9]] == ["score", "msp", "maxlogit", "energy"]


def test_texts_have_scores_thresholds_and_temperatures(tmp_path):
    lm = vlprompt.load(f"hf:{small_models.written('llama', tmp_path / 'llama')}")
    texts, folder = text_data(), tmp_path / "run"
    run(InContext(lm, 2), Text(texts), TrainConfig(epochs=1, batch_size=4), folder)
    prompt = load_prompt(folder)
    validation = ChosenItems(relabel(texts.test, prompt.names, "toy"), "toy", "test")
    for score in ("msp", "maxlogit", "energy"):
        decision = choose_decision(prompt, validation, score=score, reject="0.75")
        assert int((~prompt.with_decision(decision).answer(texts.test.items).is_unknown).sum()) == 3
    with pytest.raises(ValueError, match=r"score mcm: .* InContext, whose logits are not"):
        choose_decision(prompt, validation, score="mcm", reject="0.75")
    response = text_data("response")
    with pytest.raises(
        ValueError, match="expected items that are answered by a class, got texts answered by a response"
    ):
        choose_decision(prompt, ChosenItems(response.test, "toy", "test"), reject="0.75")
