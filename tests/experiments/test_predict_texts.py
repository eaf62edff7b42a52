"""Runs on texts: tested again, asked about new texts from Python and the command line, and what is refused."""

import csv
import io
import json

import pytest
import small_models
import torch

import vlprompt
from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.texts import TextItem
from vlprompt.data.dataset import Data
from vlprompt.engine.evaluate import evaluate
from vlprompt.engine.train_config import TrainConfig
from vlprompt.experiments.evaluation import evaluate_run
from vlprompt.experiments.learned.prompt import load_prompt
from vlprompt.experiments.predict.prompts import load_prompts
from vlprompt.experiments.predict.read_ahead import iter_opened_batches
from vlprompt.experiments.predict.rows import RowLayout, predict_batch
from vlprompt.experiments.predict.texts import iter_text_inputs
from vlprompt.experiments.runner import run
from vlprompt.layers.heads import LinearHead
from vlprompt.methods import ChainOfThought, InContext, Linear
from vlprompt.tasks import Text

NAMES = (ClassName("negative", words=("bad",)), ClassName("positive", words=("good",)))
GOOD, BAD = ("great fun", "warm and funny", "well played"), ("terrible", "boring and long", "the price of oil")


def data(kind="class", template="{text} It was {mask}.", more=None, tag="toy"):
    def split(part, n):
        texts = [f"{(BAD, GOOD)[i % 2][i // 2 % 3]} {part} {i}" for i in range(n)]
        said = [{"response": ("bad", "good")[i % 2]} if kind == "response" else {} for i in range(n)]
        items = tuple(TextItem(f"{tag}/{part}/{t}", {"text": t} | (more or {}), template, "{text}", **how)
                      for t, how in zip(texts, said, strict=True))  # fmt: skip
        names = NAMES if kind == "class" else (ClassName("response"),)
        return Split(items, tuple(i % len(names) for i in range(n)), names)

    return Data(tag, split("train", 8), None, split("test", 4), template, "")


def predict_texts(folder, texts):
    ensemble = load_prompts([folder])
    [opened] = iter_opened_batches(iter_text_inputs(texts, [], None), ensemble.build_items, len(texts))
    return predict_batch(ensemble, opened, RowLayout(top_k=2))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{name: folder} of finished runs."""
    root = tmp_path_factory.mktemp("texts")
    lm = vlprompt.load(f"hf:{small_models.written('llama', root / 'llama')}")
    two = data(template="{text} {sep}{more} It was {mask}.", more={"more": "x"})
    made = {"context": (InContext(lm, 2), Text(data())), "two": (InContext(lm, 1), Text(two)),
            "head": (Linear(lm, LinearHead(), solver="fit"), Text(data(), prompt_template="{text} {mask}")),
            "response": (InContext(lm, 2), Text(data("response"), max_new_tokens=3)),
            "thought": (ChainOfThought(lm, max_new_tokens=3, max_answer_tokens=2), Text(data()))}  # fmt: skip
    for name, (method, task) in made.items():
        run(method, task, TrainConfig(epochs=2, batch_size=4), root / name)
    return {name: root / name for name in made}


@pytest.mark.parametrize("name", ["context", "head", "response", "thought"])
def test_a_run_on_texts_is_tested_again(runs, name):
    told = json.loads((runs[name] / "result.json").read_text())["summary"]
    kind = "response" if name == "response" else "class"
    assert evaluate_run(runs[name], data(kind), None, None, False).metrics == pytest.approx(told, abs=1e-4)


def test_new_texts_are_answered_as_the_task_shows_them(runs):
    prompt = load_prompt(runs["context"])
    method, names = prompt.method, prompt.names
    texts = ["great fun test 1", "something {new}"]
    found = predict_texts(runs["context"], texts)
    with torch.no_grad():
        items = tuple(TextItem(text, {"text": text}, "{text} It was {mask}.", "{text}") for text in texts)
        batch = next(Split(items, (0, 0), names).batches(2))
        wanted = method(batch.inputs, method.prepare(names, method.precompute(names))).logits.softmax(1)
    for answer, text, row in zip(found, texts, wanted, strict=True):
        assert answer["text"] == text
        assert "response" not in answer
        first, second = answer["top"]
        assert {one["class"]: one["probability"] for one in answer["top"]} == pytest.approx(
            dict(zip(map(str, names), row.tolist(), strict=True)), abs=1e-5
        )
        assert first["probability"] >= second["probability"]
        assert (answer["prediction"], answer["probability"]) == (first["class"], first["probability"])


def test_a_run_that_writes_answers_in_words(runs):
    method = load_prompt(runs["response"]).method
    test = data("response").test
    found = predict_texts(runs["response"], [item.fields["text"] for item in test.items])
    said = [answer["response"] for answer in found]
    shown = Split(test.items, test.labels, test.names, info={"max_new_tokens": 3})
    right = sum(str(one).lower() == item.response for one, item in zip(said, test.items, strict=True))
    assert evaluate(method, shown).metrics["exact_match"] == pytest.approx(100 * right / len(test))
    assert all(isinstance(one, str) for one in said)


def test_texts_on_the_command_line_and_in_files(type_all, runs, tmp_path):
    (tmp_path / "a.txt").write_text("one, two\nthree\n", "utf-8")
    (tmp_path / "b.jsonl").write_text('"four"\n{"text": "five"}\n', "utf-8")
    given = ["--text", "zero", tmp_path / "a.txt", tmp_path / "b.jsonl"]
    code, _, printed = type_all("predict", runs["context"], *given)
    assert code == 0
    assert [line.split(":")[0] for line in printed.splitlines()] == ["zero", "one, two", "three", "four", "five"]
    told = json.loads(type_all("predict", runs["context"], *given, "--format", "json")[2])
    assert [one["text"] for one in told] == ["zero", "one, two", "three", "four", "five"]
    assert [one["path"] for one in told[:2]] == ["text 1", f"{tmp_path / 'a.txt'}:1"]
    assert sum(c["probability"] for c in told[0]["top"]) == pytest.approx(1)
    table = list(csv.DictReader(io.StringIO(type_all("predict", runs["context"], *given, "--format", "csv")[2])))
    assert len(table) == 5
    assert table[1]["text"] == "one, two"
    assert table[1]["prediction"] == table[1]["class_1"] == told[1]["prediction"]
    told = json.loads(type_all("predict", runs["response"], *given, "--format", "json")[2])
    assert all(set(one) == {"path", "text", "response"} for one in told)
    table = list(csv.DictReader(io.StringIO(type_all("predict", runs["response"], *given, "--format", "csv")[2])))
    assert [row["response"] for row in table] == [one["response"] for one in told]
    (tmp_path / "c.jsonl").write_text('{"text": "six", "more": "seven"}\n', "utf-8")
    assert type_all("predict", runs["two"], tmp_path / "c.jsonl")[0] == 0


@pytest.mark.parametrize(("name", "words", "told"), [
    ("context", ["x.png"],
     "expected texts for a run on texts, got 'x.png'. Give texts by --text, or in a file (.txt, .jsonl, .csv, .tsv)."),
    ("context", ["--text", "a", "x.png"], "expected texts for a run on texts, got 'x.png'. Give texts by --text"),
    (
        "context",
        ["--text", "a", "--figure", "p.png"],
        "--figure: expected images, got texts to draw into 'p.png'. Leave --figure out",
    ),
    ("context", [], "predict: expected image files or texts, got none. Name images, or texts by --text"),
    ("context", ["--text", "  "], "text 1: expected the fields text, got nothing. Add 'text'."),
    ("context", ["blank.txt"], "line 1 of 'blank.txt': expected a text, got a blank line"),
    ("context", ["uneven.csv"], "'uneven.csv:2': expected as many values as columns, got more or fewer"),
    ("response", ["--text", "a", "--classes", "a,b"], "--classes: expected prompts that choose among classes"),
    ("context", ["bad.jsonl"], "line 1 of 'bad.jsonl': expected JSON, got an error"),
    ("context", ["list.jsonl"], "line 1 of 'list.jsonl': expected a JSON string or an object of fields, got [1]"),
    ("context", ["latin.txt"], "'latin.txt': expected UTF-8, got an "),
    ("context", ["none.txt"], "none.txt"),
    ("two", ["--text", "a"], "expected the fields text, more, got a text without fields. Give a .jsonl file"),
    ("two", ["half.jsonl"], "half.jsonl:1: expected the fields text, more, got text. Add 'more'."),
])  # fmt: skip
def test_what_can_t_be_predicted_is_said(type_in, runs, tmp_path, name, words, told):
    (tmp_path / "blank.txt").write_text("\n")
    (tmp_path / "uneven.csv").write_text("text,more\na\n")
    (tmp_path / "bad.jsonl").write_text("{\n")
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "half.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "latin.txt").write_bytes("ü".encode("latin-1"))
    code, text = type_in("predict", runs[name], *words)
    assert code == 2
    assert told in text


def test_a_broken_line_loses_no_other(type_all, runs, tmp_path):
    (tmp_path / "some.jsonl").write_text('"one"\n{\n\n{"text": "two"}\n{"more": "three"}\n')
    code, said, _ = type_all("predict", runs["context"], "some.jsonl", "--out", "rows.jsonl", "--batch-size", "2")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert code == 1
    assert "3 of 5 inputs could not be read" in said
    assert [row.get("text") for row in rows] == ["one", None, None, "two", None]
    assert [row["path"] for row in rows if "error" in row] == ["some.jsonl:2", "some.jsonl:3", "some.jsonl:5"]
    (tmp_path / "table.csv").write_text('label,text\n1,"one"\n2,two\n')
    told = type_all("predict", runs["context"], "table.csv", "--format", "jsonl")[2]
    for line, row in zip(told.splitlines(), [rows[0], rows[3]], strict=True):
        assert json.loads(line)["top"] == [
            {"class": one["class"], "probability": pytest.approx(one["probability"], rel=1e-4)} for one in row["top"]
        ]


def test_texts_from_standard_input(type_all, runs, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("grün\r\ntwo\n".encode())))
    code, _, out = type_all("predict", runs["context"], "-", "--format", "jsonl")
    assert code == 0
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["grün", "two"]


def test_several_prompts_on_texts_see_their_own_templates(type_all, runs):
    both = runs["context"], runs["head"]
    told = json.loads(type_all("predict", *both, "--text", "fun", "--each", "--format", "json")[2])
    alone = [
        json.loads(type_all("predict", runs[n], "--text", "fun", "--format", "json", "--top-k", "2")[2])
        for n in ("context", "head")
    ]
    mean = [sum(c["probability"] for [row] in alone for c in row["top"] if c["class"] == name) / 2 for name in NAMES]
    assert {c["class"]: c["probability"] for c in told[0]["top"]} == pytest.approx(
        dict(zip(map(str, NAMES), mean, strict=True))
    )
    code, said, _ = type_all("predict", runs["context"], runs["response"], "--text", "fun")
    assert code == 2
    assert "expected prompts that choose among classes of the same inputs" in said
