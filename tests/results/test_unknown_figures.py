"""Figures against unknown classes: what a run keeps of each item, histograms, ROC curves, and what the commands do."""

import json

import matplotlib as mpl
import pytest
import torch
from plotly import graph_objects
from shared import run_command
from sklearn import metrics as sk

from vlprompt.experiments.report.build import build_report
from vlprompt.metrics import auroc, fpr_at_recall, roc_curve, unknown_scores
from vlprompt.results.plots.all_figures import build_figures
from vlprompt.results.plots.figure import draw_figure, save_figure_files
from vlprompt.results.plots.unknown import (
    build_roc,
    build_score_histogram,
    compute_threshold,
    count_shares,
    read_run_scores,
    thin_curve,
)
from vlprompt.results.run_scan import scan_runs
from vlprompt.results.test_answers import TestAnswers, UnknownScores, read_unknown_scores, serialize_answers

mpl.use("Agg")


def draw_scores(n, mean, seed):
    """Scores with ties, high for known."""
    values = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.double) + mean
    return (10 * values).round() / 10


KNOWN, UNKNOWN = draw_scores(300, 1.0, 0), draw_scores(200, 0.0, 1)


def test_the_roc_curve_is_that_of_scikit_learn():
    known, unknown = roc_curve(KNOWN, UNKNOWN)
    truth = torch.cat([torch.ones(300), torch.zeros(200)])
    x, y, _ = sk.roc_curve(truth, torch.cat([KNOWN, UNKNOWN]), drop_intermediate=False)
    assert known.tolist() == pytest.approx(100 * y, abs=1e-12)
    assert unknown.tolist() == pytest.approx(100 * x, abs=1e-12)
    area = torch.trapezoid(known, unknown).item() / 100
    assert area == pytest.approx(auroc(KNOWN, UNKNOWN), abs=1e-9)


def test_a_thinned_curve_keeps_its_corners_and_its_ends():
    known, unknown = roc_curve(KNOWN, UNKNOWN)
    x, y = (torch.tensor(v, dtype=torch.double) for v in thin_curve(unknown, known))
    assert torch.trapezoid(y, x).item() / 100 == pytest.approx(auroc(KNOWN, UNKNOWN), abs=1e-9)
    line = torch.linspace(0, 100, 50)
    assert thin_curve(line, line) == ([0.0, 100.0], [0.0, 100.0])
    steps = roc_curve(torch.arange(0, 8000, 2), torch.arange(1, 8001, 2))
    x, y = thin_curve(*steps)
    assert len(x) == 500
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 100, 100)


def test_the_threshold_accepts_the_share_that_its_label_says():
    threshold = compute_threshold(KNOWN)
    assert KNOWN.ge(threshold).double().mean() >= 0.95
    assert KNOWN.gt(threshold).double().mean() < 0.95
    accepted = 100 * UNKNOWN.ge(threshold).double().mean().item()
    assert accepted == pytest.approx(fpr_at_recall(KNOWN, UNKNOWN, closest=False))


def test_shares_by_hand():
    edges = torch.tensor([0.0, 1.0, 2.0], dtype=torch.double)
    assert count_shares(torch.tensor([0.0, 0.5, 1.0, 2.0]), edges) == [50.0, 50.0]


def test_a_histogram():
    sets = {"letters, far": UNKNOWN, "digits, other classes (near)": UNKNOWN[:50] - 1}
    figure = build_score_histogram("msp", KNOWN, sets, "scores-run-msp", "run")
    *bars, line = figure.interactive["data"]
    names = ["known (n=300)", "letters, far (n=200)", "digits, other classes (near) (n=50)"]
    assert [bar["name"] for bar in bars] == names
    assert all(sum(bar["y"]) == pytest.approx(100, abs=1e-3) for bar in bars)
    assert line["x"] == [pytest.approx(compute_threshold(KNOWN))] * 2
    assert figure.table.header == ["msp", *(f"{name}, %" for name in names)]
    columns = list(zip(*figure.table.rows, strict=True))[1:]
    assert [sum(map(float, column)) for column in columns] == [pytest.approx(100, abs=0.3)] * 3


def test_equal_scores_have_a_histogram_and_a_curve():
    """Of a method that knows everything equally well."""
    ones = torch.ones(5, 1)
    figure = build_score_histogram("msp", ones[:, 0], {"far": ones[:, 0]}, "scores", "run")
    assert len(figure.table.rows) == 1
    draw_figure(figure)
    curve = build_roc(UnknownScores(("msp",), ones, {}), ones, "roc", "run")
    assert curve.interactive["data"][0]["name"] == "msp, AUROC 50.00"


def test_more_sets_than_colours_are_all_drawn():
    figure = build_score_histogram("msp", KNOWN, {f"set {i}": UNKNOWN for i in range(12)}, "scores", "run")
    assert len(figure.interactive["data"]) == 14
    assert len(draw_figure(figure).get_legend_handles_labels()[1]) == 14


def test_roc_curves():
    known, unknown = torch.stack([KNOWN, -KNOWN], 1), torch.stack([UNKNOWN, -UNKNOWN], 1)
    figure = build_roc(UnknownScores(("a", "b"), known, {"far": unknown}), unknown, "roc-run-far", "run")
    first, second, _ = figure.interactive["data"]
    area = auroc(KNOWN, UNKNOWN)
    assert (first["name"], second["name"]) == (f"a, AUROC {area:.2f}", f"b, AUROC {100 - area:.2f}")
    row, expected = figure.table.rows[0], unknown_scores(KNOWN, UNKNOWN)
    assert row[1:3] == [f"{expected['auroc']:.2f}", f"{expected['fpr95']:.2f}"]
    assert row[figure.table.header.index("unknown at 95 %")] == f"{expected['fpr95_at_least']:.2f}"


@pytest.mark.parametrize("kind", ["scores", "roc"])
def test_every_form(kind, tmp_path):
    scores = UnknownScores(("<msp>",), KNOWN[:, None], {"a<b, $x$": UNKNOWN[:, None]})
    if kind == "roc":
        figure = build_roc(scores, UNKNOWN[:, None], "one", "run, <test>")
    else:
        figure = build_score_histogram("<msp>", KNOWN, {"a<b, $x$": UNKNOWN}, "one", "run, <test>")
    graph_objects.Figure(json.loads(json.dumps(figure.interactive, allow_nan=False)))
    paths = save_figure_files(figure, tmp_path)
    assert [p.name for p in paths] == [f"one.{s}" for s in ("png", "pdf", "svg", "csv", "md", "tex")]
    before = [p.read_bytes() for p in paths]
    assert before == [p.read_bytes() for p in save_figure_files(figure, tmp_path)]


# --- runs ---


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Zero-shot on five digits, against the others and against glyphs; and one run that has no unknown classes."""
    folder = tmp_path_factory.mktemp("runs")
    words = ["digits", "--shots", "1", "--out", str(folder)]
    assert run_command("run", "zero_shot", *words, "--task", "open_set", "--unknown", "digits,glyphs") == 0
    assert run_command("run", "zero_shot", *words) == 0
    return folder


@pytest.fixture(scope="module")
def result(runs):
    [result] = [r for r in scan_runs(runs).results if r.config["task"]["name"] == "open_set"]
    return result


def test_a_run_keeps_the_scores_that_its_result_is_made_of(result):
    scores = read_run_scores(result)
    assert scores.names == ("msp", "maxlogit", "energy", "mcm", "gl-mcm")
    assert list(scores.unknown) == ["digits", "glyphs"]
    for name, values in scores.unknown.items():
        metrics = result.scores[-1][f"unknown/{name}"]
        for k, score in enumerate(scores.names):
            expected = unknown_scores(scores.known[:, k], values[:, k])
            assert {key: metrics[f"{key}_{score}"] for key in expected} == expected


def test_figures_of_runs(runs, result):
    figures = build_figures(scan_runs(runs).results, ["scores", "roc"])
    kinds = [f.name.partition("-")[0] for f in figures]
    assert kinds == ["scores"] * 5 + ["roc"] * 2
    names = [trace["name"] for trace in figures[0].interactive["data"]]
    n_known, n_near = (len(v) for v in (read_run_scores(result).known, read_run_scores(result).unknown["digits"]))
    assert names[:2] == [f"known (n={n_known})", f"digits, other classes (near) (n={n_near})"]
    assert names[2].startswith("glyphs, far (n=")
    near = result.scores[-1]["unknown/digits"]
    assert figures[5].interactive["data"][3]["name"] == f"mcm, AUROC {near['auroc_mcm']:.2f}"


def test_the_command_and_the_report(runs, tmp_path):
    assert run_command("plot", str(runs), "--what", "scores,roc", "--format", "svg,csv", "--out", str(tmp_path)) == 0
    assert len([*tmp_path.iterdir()]) == 14
    [section] = [s for s in build_report([runs]).sections if s.title == "Unknown classes: scores and ROC"]
    assert len(section.figures) == 7
    assert section.texts[0].startswith("Of each method on each dataset")


def test_a_broken_file_is_one_error(tmp_path):
    answers = {"test": TestAnswers(torch.zeros(1), torch.zeros(1), torch.zeros(1), ("a", "b"))}
    path = tmp_path / "answers.safetensors"
    path.write_bytes(serialize_answers(answers))
    assert read_unknown_scores(path) is None
    assert read_unknown_scores(tmp_path / "none") is None
    scores = UnknownScores(("msp",), torch.ones(2, 1), {"far": torch.zeros(3, 1)})
    path.write_bytes(serialize_answers(answers, scores).replace(b"scores/unknown/0", b"scores/unknown/1"))
    with pytest.raises(ValueError, match="expected the answers of a run, got other content"):
        read_unknown_scores(path)
