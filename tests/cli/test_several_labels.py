"""Runs on several labels answer everywhere as in their test; what answers with one class refuses them."""

import csv
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from shared import run_command
from starlette.testclient import TestClient

from vlprompt import PromptClassifier, load_prompt
from vlprompt.data.images.image_inputs import build_image_items
from vlprompt.experiments.export.network.onnx_runtime import OnnxPrompt
from vlprompt.experiments.server.app import build_app
from vlprompt.experiments.server.models import ServedModels
from vlprompt.experiments.server.neighbours import open_training_images
from vlprompt.experiments.server.service import Server, ServerSettings
from vlprompt.results.prediction_files import read_predictions

READINGS = ("sigmoid", "contrastive")
CLASSES = ("Dog", "Cat", "Cow, brown")
WHERE = ["--backbone", "glyph/random", "--seed", "1", "--out"]


def write_table(folder, is_val_empty=False):
    """24 pictures of one colour; what is in them follows from it, and some show nothing."""
    rows, colours = [["path", "split", *CLASSES]], np.random.default_rng(0).integers(0, 256, (24, 3), dtype=np.uint8)
    for i, colour in enumerate(colours):
        part = "train" if i < 10 else "val" if i < 16 else "test"
        Image.new("RGB", (32, 32), tuple(map(int, colour))).save(folder / f"{i:02}.png")
        rows.append([f"{i:02}.png", part, *(int(c > 110 and not (part == "val" and is_val_empty)) for c in colour)])
    file = io.StringIO()
    csv.writer(file).writerows(rows)
    table = folder / "table.csv"
    table.write_text(file.getvalue())
    return table


def find_run(folder):
    [result] = folder.rglob("result.json")
    return result.parent


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A table of several labels, a run on it by each reading, and a run on digits."""
    folder = tmp_path_factory.mktemp("several labels")
    table = write_table(folder)
    command = ["run", "coop", table, "--task", "multi_label", "--keep-predictions", "train.epochs=3"]
    for reading in READINGS:
        settings = ["train.lr=0.1", f"task.reading={reading}"]
        assert run_command(*command, *settings, *WHERE, folder / reading) == 0
    assert run_command("run", "zero_shot", "digits", "--shots", "1", *WHERE, folder / "single") == 0
    runs = {name: find_run(folder / name) for name in (*READINGS, "single")}
    return {"table": table, "image": folder / "00.png", "folder": folder, **runs}


class Kept:
    """What a run kept of its test: the pictures, the probability of each label (N, C), and which are given."""

    def __init__(self, folder, run):
        file = read_predictions(run / "predictions-test.parquet")
        self.paths = [folder / name for name in file.items]
        self.names = list(file.names)
        self.threshold = file.facts["threshold"]
        self.probabilities = file.logits.double().sigmoid().numpy()
        self.is_given = (file.logits.double() > self.threshold).numpy()
        self.targets = file.labels.numpy()

    def list_labels(self, i):
        order = sorted(range(len(self.names)), key=lambda k: -self.probabilities[i, k])
        return [self.names[k] for k in order if self.is_given[i, k]]

    @property
    def labels(self):
        return [self.list_labels(i) for i in range(len(self.paths))]


@pytest.fixture(params=READINGS)
def kept(request, places):
    kept = Kept(places["folder"], places[request.param])
    kept.run = places[request.param]
    assert kept.threshold, "chosen on validation"
    assert 0 < kept.is_given.mean() < 1, "else there is nothing to tell apart"
    return kept


def sort_columns(names, classes):
    """Probabilities (C,) in the order of `names`."""
    by_name = {one["class"] if "class" in one else one["name"]: one["probability"] for one in classes}
    return [by_name[name] for name in names]


def test_predict_answers_as_the_test_of_the_run(kept, type_all):
    status, said, out = type_all("predict", kept.run, *kept.paths, "--format", "json")
    assert status == 0, said
    rows = json.loads(out)
    assert [row["labels"] for row in rows] == kept.labels
    probabilities = [sort_columns(kept.names, row["top"]) for row in rows]
    assert np.abs(probabilities - kept.probabilities).max() < 1e-6
    assert all(row["top"] == sorted(row["top"], key=lambda one: -one["probability"]) for row in rows)

    table = list(csv.DictReader(io.StringIO(type_all("predict", kept.run, *kept.paths, "--format", "csv")[2])))
    assert [row["labels"].split("|") if row["labels"] else [] for row in table] == kept.labels
    assert [row["class_3"] for row in table] == [row["top"][2]["class"] for row in rows]
    lines = type_all("predict", kept.run, *kept.paths, "--top-k", "1")[2].splitlines()
    assert [line.partition(": ")[2].partition(" (")[0] for line in lines] == [
        ", ".join(labels) or "no label" for labels in kept.labels
    ]
    assert all(line.rpartition(" (")[2].count(".") == 1 for line in lines), "one probability"


def test_the_server_answers_likewise(kept):
    models = ServedModels()
    model = models.load("colours", kept.run)
    models.add(model)
    server = Server(models, ServerSettings(), {"colours": open_training_images(model.prompt)})
    with TestClient(build_app(server), "http://127.0.0.1") as client:
        files = [("image", (path.name, path.read_bytes())) for path in kept.paths]
        answer = client.post("/predict", files=files, data={"neighbours": 1}).json()["predictions"]
        assert [one["labels"] for one in answer] == kept.labels
        assert np.abs([sort_columns(kept.names, one["classes"]) for one in answer] - kept.probabilities).max() < 1e-6
        assert all(one["label"] is None and not one["is_unknown"] for one in answer)
        assert {one["neighbours"][0]["class_name"] for one in answer} & {"no label", "Dog, Cat", "Cat, Cow, brown"}
        [described] = client.get("/models").json()
        assert described["decision"]["labels"]["threshold"] == kept.threshold
        assert client.post("/predict", files=files, data={"top_k": 1}).json()["predictions"][0]["classes"][1:] == []


@pytest.mark.slow  # of a small network: tests/experiments/test_export_network.py
def test_exports_answer_likewise(kept, tmp_path):
    assert run_command("export", kept.run, tmp_path / "onnx", "--to", "onnx", "--int8") == 0
    network = OnnxPrompt(tmp_path / "onnx")
    assert np.abs(network.predict_proba(kept.paths) - kept.probabilities).max() < 1e-5
    assert network.predict(kept.paths) == kept.labels
    assert network.metadata["labels"]["reading"] == load_prompt(kept.run).decision.labels.reading
    assert OnnxPrompt(tmp_path / "onnx" / "model.int8.onnx").metadata["quantization"]["agreement"] > 0

    assert run_command("export", kept.run, tmp_path / "torch", "--to", "torch") == 0
    program = torch.export.load(tmp_path / "torch" / "model.pt2").module()
    facts = json.loads((tmp_path / "torch" / "model.json").read_text())
    probabilities = program(torch.from_numpy(network.decode(kept.paths)))[1].numpy()
    assert np.abs(probabilities - kept.probabilities).max() < 1e-5
    assert ((probabilities > facts["labels"]["probability"]) == kept.is_given).all()
    for to, name in (("classes", "classes.json"), ("open_clip", "classes.json")):
        assert run_command("export", kept.run, tmp_path / to, "--to", to) == 0
        assert json.loads((tmp_path / to / name).read_text())["labels"] == facts["labels"]


def test_python_and_model_folders_answer_likewise(kept, tmp_path, type_in):
    assert "labels above" in type_in("save", kept.run, tmp_path / "saved")[1]
    for source in (kept.run, tmp_path / "saved"):
        prompt, paths = load_prompt(source), list(map(str, kept.paths))
        answers = prompt.answer(build_image_items(paths))
        assert np.abs(answers.probabilities.numpy() - kept.probabilities).max() < 1e-6
        assert (answers.is_given.numpy() == kept.is_given).all()
        assert prompt.predict(paths) == kept.labels
        classifier = PromptClassifier.load(source)
        order = [kept.names.index(name) for name in classifier.classes_]
        assert (classifier.predict(paths) == kept.is_given[:, order]).all()
        assert np.abs(classifier.predict_proba(paths) - kept.probabilities[:, order]).max() < 1e-6
        assert ((classifier.decision_function(paths) > 0) == kept.is_given[:, order]).all()
        right = (kept.is_given == kept.targets).all(1).mean()
        assert classifier.score(paths, kept.targets[:, order]) == right
        with pytest.raises(ValueError, match=r"labels: expected an array .* of 0 and 1, a column for each class"):
            classifier.score(paths, ["Dog"] * len(paths))
    assert "gives the labels of a probability above" in (tmp_path / "saved" / "README.md").read_text()


def test_eval_scores_as_the_run_did(kept, places, type_all):
    summary = json.loads((kept.run / "result.json").read_text())["summary"]
    for words in (["eval", kept.run], ["eval", kept.run, places["table"]]):
        status, said, out = type_all(*words)
        assert status == 0, said
        assert f"threshold          {summary['threshold']:.2f} log odds\n" in out
        values = {line.split()[0]: line.split()[1] for line in out.splitlines()}
        assert all(values[name] == f"{value:.2f}" for name, value in summary.items())


def test_a_threshold_is_shown_in_its_own_unit(kept, type_all, tmp_path):
    assert "threshold (log odds)" in type_all("table", kept.run.parent, "--markdown", tmp_path / "table.md")[2]
    [header] = (line for line in (tmp_path / "table.md").read_text().splitlines() if "| mAP |" in line)
    assert "| threshold (log odds) |" in header
    assert type_all("save", kept.run, tmp_path / "saved")[0] == 0
    card = (tmp_path / "saved" / "README.md").read_text()
    assert f"| threshold (log odds) | {kept.threshold:.2f} |" in card
    assert "threshold (percent)" not in card
    assert "mAP (percent)" in card


def test_predict_says_its_threshold_and_takes_another(kept, places, type_all, tmp_path):
    _, said, _ = type_all("predict", kept.run, kept.paths[0])
    probability = 1 / (1 + np.exp(-kept.threshold))
    labels_above = f"labels are those of a probability above {probability:.6g} (log odds {kept.threshold:.4g})"
    assert f"{kept.run.name}: {labels_above} by the " in said
    assert "chosen on 6 validation items" in said
    limit = float(np.median(kept.probabilities))
    words = "predict", kept.run, *kept.paths, "--format", "json"
    status, said, out = type_all(*words, "--threshold", str(limit))
    assert status == 0, said
    assert f"above {limit:.6g} (log odds" in said
    assert "as given" in said
    is_given = kept.probabilities > limit + 1e-6
    assert [len(row["labels"]) for row in json.loads(out)] == is_given.sum(1).tolist()
    rows = tmp_path / "rows.jsonl"
    assert type_all(*words[:-2], "--out", rows)[0] == 0
    status, said, _ = type_all(*words[:-2], "--out", rows, "--threshold", "0.9")  # other rows
    assert status == 2, said
    assert "--fresh" in said


def test_a_threshold_that_is_given_holds_among_other_classes_too(kept, places, type_all):
    words = "predict", kept.run, places["image"], "--classes", "Cat,Dog", "--format", "json"
    for threshold, n_labels in (("1e-30", 2), ("0.9999999999999999", 0)):
        status, said, out = type_all(*words, "--threshold", threshold)
        assert status == 0, said
        assert len(json.loads(out)[0]["labels"]) == n_labels
        assert "as given" in said


@pytest.mark.parametrize(
    ("name", "threshold", "message"),
    [
        ("sigmoid", "1.5", "--threshold: expected a probability between 0 and 1, got 1.5. Write --threshold 0.5."),
        ("sigmoid", "nan", "--threshold: expected a probability between 0 and 1, got nan."),
        ("single", "0.5", "--threshold: expected prompts that give several labels, got"),
    ],
)
def test_a_threshold_that_no_label_has(name, threshold, message, places, type_in):
    status, said = type_in("predict", places[name], places["image"], "--threshold", threshold)
    assert status == 2, said
    assert message in said


def test_other_classes_have_the_threshold_only_where_odds_do_not_depend_on_them(places, type_in):
    said = {
        reading: type_in("predict", places[reading], places["image"], "--classes", "Cat,Dog")[1] for reading in READINGS
    }
    lost = "labels are those of a probability above 0.5: the threshold was chosen among the classes of the training"
    assert lost in said["contrastive"]
    assert lost not in said["sigmoid"]


def test_one_class_has_nothing_to_be_compared_with(places, tmp_path, type_in):
    prompt = load_prompt(places["contrastive"])
    expected = "classes: expected at least 2, which the contrastive reading compares, got 1"
    with pytest.raises(ValueError, match=expected):
        prompt.predict([str(places["image"])], prompt.resolve_classes(["Dog"]))
    (tmp_path / "one.txt").write_text("Dog\n")
    status, said = type_in("export", places["contrastive"], "out", "--to", "torch", "--classes", tmp_path / "one.txt")
    assert status == 2
    assert expected in said
    alone = load_prompt(places["sigmoid"])
    one = alone.predict_proba([str(places["image"])], alone.resolve_classes(["Dog"]))
    both = alone.predict_proba([str(places["image"])])[:, [list(map(str, alone.names)).index("Dog")]]
    assert np.abs(one - both).max() < 1e-6


def test_without_labels_in_validation_the_threshold_is_one_half_and_that_is_said(tmp_path, type_in):
    table = write_table(tmp_path, is_val_empty=True)
    status, said = type_in("run", "zero_shot", table, "--task", "multi_label", *WHERE, "runs")
    assert status == 0, said
    run = find_run(tmp_path / "runs")
    status, said = type_in("predict", run, tmp_path / "00.png")
    assert status == 0, said
    assert "labels are those of a probability above 0.5: the threshold was chosen on no validation images" in said
    assert load_prompt(run).decision.labels.probability == 0.5


def test_an_ensemble_gives_the_labels_of_most(places, type_all):
    runs = [places["sigmoid"], places["contrastive"]]
    single = [load_prompt(run).answer(build_image_items([str(places["image"])])) for run in runs]
    [row] = json.loads(type_all("predict", *runs, places["image"], "--each", "--format", "json")[2])
    both = single[0].is_given & single[1].is_given
    names = load_prompt(runs[0]).names
    assert set(row["labels"]) == {str(name) for name, given in zip(names, both[0], strict=True) if given}
    mean = (single[0].probabilities + single[1].probabilities)[0].numpy() / 2
    assert np.abs(np.array(sort_columns(names, row["top"])) - mean).max() < 1e-6
    assert [set(one["labels"]) for one in row["each"].values()] == [
        {str(name) for name, given in zip(names, one.is_given[0], strict=True) if given} for one in single
    ]


@pytest.mark.parametrize(
    "words",
    [
        ["eval", "sigmoid", "--reject", "0.9"],
        ["eval", "sigmoid", "--unknown", "digits"],
        ["eval", "sigmoid", "--figure", "figure.png"],
        ["save", "sigmoid", "saved", "--calibrate"],
    ],
    ids=" ".join,
)
def test_what_needs_one_class_says_so(words, places, type_in):
    status, said = type_in(*(places.get(word, word) for word in words))
    assert status == 2, said
    assert said.count("expected a prompt that answers with one class, got one of several labels") == 1
    assert str(places["sigmoid"]) in said
    assert "Traceback" not in said


def test_prompts_of_one_and_of_several_labels_do_not_answer_together(places, type_in):
    status, said = type_in("predict", places["single"], places["sigmoid"], places["image"], "--classes", "a,b")
    assert status == 2, said
    assert "expected prompts that choose among classes of the same inputs" in said
    assert "(several labels of images). Give one command for each." in said


def test_look_draws_what_needs_no_single_label(places, type_in):
    status, said = type_in("look", places["sigmoid"], "-o", "look")
    assert status == 0, said
    assert "attention.png" in said
    assert "features: expected test images with one label each, got ones that may have several" in said


def test_a_run_is_not_tested_on_the_other_kind(places, type_in):
    status, said = type_in("eval", places["single"], places["table"])
    assert status == 2, said
    assert "dataset: expected items with one label each, got 'table.csv'" in said
    status, said = type_in("eval", places["sigmoid"], "digits")
    assert status == 2, said
    assert "dataset: expected images that may have several labels, got 'digits', where each has one" in said


@pytest.mark.parametrize(
    ("method", "name", "lack"),
    [
        ("nlprompt", "nlprompt", "learns from one, by a loss or statistics of its own"),
        ("locoop", "locoop", "learns from one, by a loss or statistics of its own"),
        ("tip_adapter", "tip_adapter", "learns from one, by a loss or statistics of its own"),
        ("kgcoop method.method=nlprompt", "nlprompt", "learns from one, by a loss or statistics of its own"),
        ("upl", "upl", "learns from unlabelled ones"),
    ],
)
def test_methods_that_need_one_label_are_refused_before_anything_is_opened(method, name, lack, type_in):
    method, *settings = method.split()
    status, said = type_in("run", method, "not/there.csv", "--task", "multi_label", *settings)
    assert status == 2
    assert said == (
        f"error: method: expected one that learns from several labels an item, got {name}, which {lack}. Take a method "
        "whose loss is of its logits alone, such as coop, vpt or dualcoop."
    )
