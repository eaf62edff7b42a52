"""Figures of accuracy, costs and curves: their numbers, every form, and what `vlprompt plot --what` writes."""

import json
import re
import statistics
from dataclasses import replace

import pytest
from matplotlib import pyplot
from plotly import graph_objects
from shared import run_command

import vlprompt
from tests.results.test_domain_results import domain
from tests.results.test_stream_results import stream
from vlprompt.cli.plot import WHAT_HELP
from vlprompt.results.plots.accuracy import build_radar_figures, build_shots_figures
from vlprompt.results.plots.all_figures import TOPICS, build_figures
from vlprompt.results.plots.costs import build_cost_figures, find_pareto_front
from vlprompt.results.plots.curves import read_losses, thin
from vlprompt.results.plots.figure import draw_figure, save_figure_files
from vlprompt.results.run_folder import RunFolder
from vlprompt.results.run_scan import scan_runs
from vlprompt.results.tables.summary import build_rows


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of two methods at two numbers of shots, base to new, a stream, and unknown classes."""
    folder = tmp_path_factory.mktemp("runs")
    where = ["--backbone", "glyph/random", "--out", str(folder)]
    few = ["--shots", "1,2", "--seed", "1,2", *where]
    assert run_command("run", "coop", "digits", "train.epochs=2", *few) == 0
    assert run_command("run", "zero_shot", "digits", *few) == 0
    base_new = ["digits", "--task", "base_to_new", "--shots", "1", "train.epochs=2", *where]
    assert run_command("run", "coop", *base_new) == 0
    assert run_command("run", "linear", "digits", "--task", "continual", "train.epochs=2", *where) == 0
    assert run_command("run", "zero_shot", "digits", "--task", "open_set", "--shots", "1", *where) == 0
    return folder


@pytest.fixture(scope="module")
def results(runs):
    return scan_runs(runs).results


@pytest.fixture(scope="module")
def figures(results):
    return build_figures([*results, domain(seed=1), domain(seed=2), stream(lessons=2, pool=4)])


def get(figures, prefix):
    return next(f for f in figures if f.name.startswith(prefix))


@pytest.mark.slow
def test_every_topic_in_order_and_every_name_once(figures):
    names = [f.name.split("-")[0] for f in figures]
    expected = [topic for topic in TOPICS if topic != "radar"]
    assert list(dict.fromkeys(names)) == expected
    assert len({f.name for f in figures}) == len(figures)


def test_every_figure_draws_is_plotly_and_has_a_table(figures):
    for figure in figures:
        graph_objects.Figure(json.loads(json.dumps(figure.interactive, allow_nan=False)))
        assert figure.table.rows
        assert figure.description
        axes = draw_figure(figure)
        assert axes.get_ylabel()
        labels = axes.get_legend_handles_labels()[1]
        again = pyplot.Figure().subplots()
        figure.draw(again)
        assert again.get_legend_handles_labels()[1] == labels
        pyplot.close()


def test_files_have_the_same_bytes_again(figures, tmp_path):
    figure = get(figures, "cost")
    first = [p.read_bytes() for p in save_figure_files(figure, tmp_path)]
    assert first == [p.read_bytes() for p in save_figure_files(figure, tmp_path)]


def test_accuracy_over_shots_is_the_mean_over_seeds(results, figures):
    traces = {t["name"]: t for t in get(figures, "shots").interactive["data"]}
    runs = [r for r in results if r.config["method"]["name"] == "coop" and r.config["task"]["name"] == "few_shot"]
    by_shots = {k: [r.summary["accuracy"] for r in runs if r.config["task"]["shots"] == k] for k in (1, 2)}
    deviations = [statistics.pstdev(v) for v in by_shots.values()]
    assert traces["coop"]["x"] == [1, 2]
    assert traces["coop"]["y"] == pytest.approx([statistics.fmean(v) for v in by_shots.values()], abs=1e-4)
    assert traces["coop"]["error_y"]["array"] == pytest.approx(deviations, abs=1e-4)


def test_a_row_of_another_protocol_has_its_letter_and_is_not_on_the_front(results):
    few = [r for r in results if r.config["task"]["name"] == "few_shot"]
    changed = [
        replace(r, config={**r.config, "method": {"name": "cocoop"}}, protocol={**r.protocol, "split": "literature"})
        for r in few
        if r.config["method"]["name"] == "coop"
    ]
    better = [replace(r, summary={**r.summary, "accuracy": 99.0}) for r in changed]
    rows = build_rows([*few, *better])
    [shots] = build_shots_figures(rows)
    assert "cocoop [a]" in [t["name"] for t in shots.interactive["data"]]
    assert "a: " in shots.description
    cost = build_cost_figures(rows)[0]
    assert {cells[0]: cells[-1] for cells in cost.table.rows}["cocoop [a]"] == ""
    assert "not on the front" in cost.description


def test_base_against_new(results, figures):
    [run] = [r for r in results if r.config["task"]["name"] == "base_to_new"]
    trace = get(figures, "base_new").interactive["data"][0]
    expected = [run.summary["base"], run.summary["new"]]
    assert [*trace["x"], *trace["y"]] == pytest.approx(expected, abs=1e-4)


def test_pareto_front():
    points = [(0, 50.0), (3, 60.0), (2, 60.0), (5, 55.0), (9, 90.0), (2, 60.0)]
    assert find_pareto_front(points) == [0, 2, 5, 4]
    assert find_pareto_front([]) == []


def test_no_trained_parameters_have_a_place_left_of_one(figures):
    figure = get(figures, "cost-trained_parameters-few_shot")
    x = {t["name"]: t["x"][0] for t in figure.interactive["data"][:-1]}
    assert x["zero_shot"] < x["coop"]
    assert "0" in figure.interactive["layout"]["xaxis"]["ticktext"]


def test_a_radar_needs_three_datasets_and_names_who_lacks_one(results):
    rows = [r for r in build_rows(results) if r.task == "few_shot" and r.shots == 1]
    assert build_radar_figures(rows) == []
    copies = [replace(r, dataset=name) for name in ("a<b", "b") for r in rows]
    [radar] = build_radar_figures([*rows, *copies[:-1]])
    assert len(radar.interactive["data"]) == 1
    assert len(radar.interactive["data"][0]["r"]) == 4
    assert "not on all datasets" in radar.description
    graph_objects.Figure(radar.interactive)
    draw_figure(radar)


def test_a_learning_curve_is_that_of_the_log(results, figures):
    runs = [r for r in results if r.config["method"]["name"] == "linear"]
    losses = read_losses(runs[0])
    trace = get(figures, "learning-continual").interactive["data"][0]
    assert trace["name"] == "linear: ce"
    assert trace["y"] == pytest.approx([*losses["ce"].values()], abs=1e-4)


def test_long_logs_are_thinned_to_means():
    steps, values = list(range(1, 100_001)), [float(i % 2) for i in range(100_000)]
    x, y = thin(steps, values)
    assert len(x) == 500
    assert y == [0.5] * 500
    assert x[0] == 100.5


def test_a_broken_line_of_the_log_is_left_out(results, tmp_path):
    folder = RunFolder(tmp_path)
    folder.steps_path.write_bytes(b'{"step": 1, "ce": 2.0}\n{"step": 2, "c\xff\n[]\n{"step": 3, "ce": 1.0}\n')
    assert read_losses(replace(results[0], folder=str(tmp_path))) == {"ce": {1: 2.0, 3: 1.0}}
    assert read_losses(replace(results[0], folder=None)) == {}


def test_streams(results, figures):
    [run] = [r for r in results if r.config["method"]["name"] == "linear"]
    seen = [tests["seen"]["accuracy"] for tests in run.scores]
    trace = get(figures, "stages-digits-class_incremental-5").interactive["data"][0]
    assert trace["y"] == pytest.approx(seen, abs=1e-4)
    cells = get(figures, "matrix-linear").interactive["data"][0]["z"]
    assert cells[1][:2] == pytest.approx(run.accuracy_matrix[1], abs=1e-4)
    assert cells[0][1] is None


def test_pseudo_labels_over_epochs(figures):
    results = [domain(seed=1), domain(seed=2)]
    epochs = [[e["coverage"] for e in r.stages[-1]["epochs"]] for r in results]
    trace = next(t for t in get(figures, "pseudo").interactive["data"] if "coverage" in t["name"])
    assert trace["y"] == pytest.approx([statistics.fmean(v) for v in zip(*epochs, strict=True)], abs=1e-4)


def test_the_command_writes_what_it_is_asked_for(runs, tmp_path):
    assert run_command("plot", str(runs), "--what", "shots,stages", "--format", "svg,csv", "--out", str(tmp_path)) == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    stages = "stages-digits-class_incremental-5"
    assert names == [f"{n}.{s}" for n in ("shots-few_shot-digits", stages) for s in ("csv", "svg")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--what", "shos"], "--what: expected one of shots, base_new, .*did you mean 'shots'"),
        (["--what", "shots", "--format", "jpg"], "--format: expected one of png, pdf, svg, csv, md, tex, got 'jpg'"),
        (["--format", "png"], "--format: expected --what with it"),
        (["--out", "x"], "--out: expected --what with it"),
        (["--what", "shots", "--figure", "x.png"], "--figure: expected no --what with it"),
        (["--what", "radar"], "--what: expected runs with data for radar, got none"),
    ],
)
def test_a_wrong_option_is_one_error(runs, arguments, message, capsys):
    assert run_command("plot", str(runs), *arguments) != 0
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


def test_the_help_names_every_topic():
    names = WHAT_HELP.split(": ", 1)[1].split(";")[0].split(", ")
    assert tuple(names[-len(TOPICS) :]) == TOPICS


def test_the_public_functions():
    assert vlprompt.plots.build_figures is build_figures
    assert all(callable(getattr(vlprompt.plots, name)) for name in vlprompt.plots.__all__ if name != "TOPICS")
    with pytest.raises(AttributeError, match="it has Figure"):
        vlprompt.plots.build_figure  # noqa: B018
    assert build_figures([]) == []
    with pytest.raises(ValueError, match="did you mean 'shots'"):
        build_figures([], ["shot"])
