"""Figures of what a run answered: confusion matrices and reliability, drawn, interactive, as tables and as files."""

import json

import pytest
import torch
from plotly import graph_objects

from vlprompt.metrics import calibration_error
from vlprompt.results.plots.confusion import (
    build_confusion,
    build_reliability,
    compute_answer_calibration_error,
    compute_reliability,
    count_confusions,
    find_confused_pairs,
    write_confusion_csv,
)
from vlprompt.results.plots.figure import draw_figure, save_figure_files
from vlprompt.results.test_answers import TestAnswers

SMALL = TestAnswers(
    torch.tensor([0, 0, 0, 0, 1, 1, 2]),
    torch.tensor([0, 0, 1, 3, 1, 0, 2]),
    torch.tensor([0.9, 0.8, 0.55, 0.3, 0.7, 0.6, 1.0]),
    ("a<b", "$x$", "c"),
)


def test_confusions():
    assert count_confusions(SMALL).tolist() == [[2, 1, 0, 1], [1, 1, 0, 0], [0, 0, 1, 0]]
    assert find_confused_pairs(SMALL) == [
        ("a<b", "$x$", 1, 25.0),
        ("a<b", "(no answer)", 1, 25.0),
        ("$x$", "a<b", 1, 50.0),
    ]
    assert write_confusion_csv(SMALL).splitlines()[:2] == ["class,a<b,$x$,c,(no answer)", "a<b,2,1,0,1"]
    figure = build_confusion(SMALL, "confusion", "run")
    assert figure.interactive["data"][0]["z"][0] == [50.0, 25.0, 0.0, 25.0]
    assert figure.interactive["data"][0]["y"][0] == "a&lt;b"


def test_the_calibration_error_is_that_of_the_metrics():
    probabilities = torch.rand(500, 7, generator=torch.Generator().manual_seed(0)).softmax(1)
    labels = torch.randint(7, (500,), generator=torch.Generator().manual_seed(1))
    top, predicted = probabilities.max(1)
    bins = compute_reliability(TestAnswers(labels, predicted, top, tuple("abcdefg")))
    assert compute_answer_calibration_error(bins) == pytest.approx(calibration_error(probabilities, labels))


def test_a_thousand_classes_show_the_most_confused():
    labels = torch.arange(1000).repeat_interleave(3)
    predicted = labels.clone()
    predicted[0:60:3] = labels[3000 - 60 :: 3]
    answers = TestAnswers(labels, predicted, torch.full((3000,), 0.5), tuple(f"class {i}" for i in range(1000)))
    figure = build_confusion(answers, "confusion", "run")
    assert len(figure.interactive["data"][0]["z"]) == 40
    assert figure.interactive["data"][0]["y"][0] == "class 0"
    assert "40 most confused of 1000 classes" in figure.description
    assert len(figure.table.rows) == 20
    assert len(write_confusion_csv(answers).splitlines()) == 1001


@pytest.mark.parametrize("build", [build_confusion, build_reliability])
def test_every_form(build, tmp_path):
    figure = build(SMALL, "one", "run, <test>")
    graph_objects.Figure(json.loads(json.dumps(figure.interactive)))
    assert draw_figure(figure).get_xlabel()
    paths = save_figure_files(figure, tmp_path)
    assert [p.name for p in paths] == [f"one.{s}" for s in ("png", "pdf", "svg", "csv", "md", "tex")]
    before = [p.read_bytes() for p in paths]
    assert before == [p.read_bytes() for p in save_figure_files(figure, tmp_path)]
