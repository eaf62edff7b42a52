"""`vlprompt report`: what the page says of runs, and what is no report."""

import csv
import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch

from tests.results.test_published import planned, write_run
from vlprompt.cli.app import main
from vlprompt.experiments.report import build as build_module
from vlprompt.experiments.report.build import build_report
from vlprompt.experiments.report.choice import choose_detailed_runs, choose_learned_runs
from vlprompt.experiments.report.mistakes import MistakeFinder, MistakesUnknownError
from vlprompt.results.run_folder import RunFolder, find_run_folders
from vlprompt.results.run_scan import scan_runs
from vlprompt.results.tables.summary import build_rows


def call(*words):
    with pytest.raises(SystemExit) as exit_:
        main([str(word) for word in words])
    return exit_.value.code


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "runs"
    options = ["--shots", "1,2", "--seed", "1,2,3", "train.epochs=1", "--out", folder]
    assert call("run", "zero_shot,coop", "digits", *options) == 0
    return folder


@pytest.fixture
def copy(runs, tmp_path):
    return shutil.copytree(runs, tmp_path / "runs")


def section(report, name):
    [one] = [section for section in report.sections if section.name == name]
    return one


@pytest.fixture(scope="module")
def report(runs):
    return build_report([runs])


@pytest.mark.slow
def test_results_have_marks_and_name_the_correction(report, runs):
    [item] = section(report, "results").tables
    column = item.table.header.index("against the best")
    verdicts = {cells[0]: cells[column] for cells in item.table.rows}
    rows = build_rows(scan_runs(runs).results)
    means = {row.method: 0.0 for row in rows}
    for row in rows:
        means[row.method] += row.metrics["accuracy"].mean
    best = max(means, key=means.get)
    assert verdicts[best] == "best"
    assert verdicts[min(means, key=means.get)].startswith(("worse, p ", "not shown worse, p "))
    marked = [item.table.rows[i][0] for (i, _), mark in item.marks.items() if mark == "best"]
    assert marked == [best]
    assert any("Holm's correction" in note for note in item.table.footnotes)


def test_commands_make_the_runs_again(report, runs, tmp_path):
    commands, environments = section(report, "repeat").tables
    lines = [cells[-1] for cells in commands.table.rows]
    assert len(lines) == 4
    command = next(line for line in lines if "coop" in line and "--shots 1 " in line)
    assert "--seed 1,2,3" in command
    assert call(*command.split()[1:], "--out", tmp_path / "again") == 0
    assert {path.name for path in find_run_folders(tmp_path / "again")} <= {p.name for p in find_run_folders(runs)}
    assert environments.table.rows[0][1] == "12"


def test_all_runs_are_listed(report, runs):
    [item] = section(report, "runs").tables
    assert {cells[0] for cells in item.table.rows} == {path.name for path in find_run_folders(runs)}


def test_mistakes_have_images_of_the_items(report):
    galleries = section(report, "mistakes").galleries
    assert len(galleries) == 2  # the best run of each method
    for gallery in galleries:
        images = [image for group in gallery.groups for image in group.images]
        assert 0 < len(images) <= 24
        assert all(image.jpeg[:2] == b"\xff\xd8" and image.caption.startswith("digits/") for image in images)
        assert "answered as" in gallery.groups[0].title


def write_answers(folder, answers):
    """Write answers as if the run in the folder had given them."""
    run = RunFolder(folder)
    result = run.read_result()
    run.save_answers({"test": answers})
    run.finish(result, run.learned_path.read_bytes())


def test_mistakes_of_other_items_are_refused(copy):
    result = scan_runs(copy).results[0]
    folder = find_run_folders(copy)[0]
    answers = RunFolder(folder).read_answers()["test"]
    write_answers(folder, replace(answers, labels=answers.labels.flip(0)))
    with pytest.raises(MistakesUnknownError, match="other test items"):
        MistakeFinder().build_gallery(result, "a run")
    gone = replace(result, config={**result.config, "task": {**result.config["task"], "dataset": "./nowhere"}})
    with pytest.raises(MistakesUnknownError, match="can't be opened here"):
        MistakeFinder().build_gallery(gone, "a run")


def test_the_best_runs_are_chosen_and_the_others_counted(runs):
    rows = build_rows(scan_runs(runs).results)
    chosen, n_left = choose_detailed_runs(rows)
    assert n_left == 0
    assert len(chosen) == 2
    values = {r.config["method"]["name"]: 0.0 for row in rows for r in row.runs}
    for run in (r for row in rows for r in row.runs):
        name = run.config["method"]["name"]
        values[name] = max(values[name], run.summary["accuracy"])
    assert [run.value for run in chosen] == sorted(values.values(), reverse=True)
    many = [replace(row, dataset=f"{row.dataset}{i}") for row in rows for i in range(10)]
    chosen, n_left = choose_detailed_runs(many)
    assert (len(chosen), n_left) == (16, 4)
    assert [run.value for run in chosen[:10]] == [max(values.values())] * 10


def test_published_numbers_stand_beside_ours(tmp_path):
    """A run by the paper's protocol has no letter; one of another precision and fewer epochs has two."""
    for folder, more in (("same", ()), ("other", ["train.precision=fp32", "train.epochs=9"])):
        write_run(tmp_path / folder, planned("dtd", more=more), {"base": 79.0, "new": 41.0, "harmonic": 53.99})
    published = section(build_report([tmp_path]), "published")
    [item] = published.tables
    assert item.table.header[-5:] == ["ours", "published", "difference", "source", "not comparable"]
    rows = {(cells[3], cells[-1]): cells[4:7] for cells in item.table.rows}
    assert rows["base", ""] == rows["base", "a b"] == ["79.0", "79.44", "-0.4"]
    assert rows["new", ""] == ["41.0", "41.18", "-0.2"]
    notes = "\n".join(item.table.footnotes)
    assert "a: precision fp32, theirs fp16" in notes
    assert "b: other settings than the paper's: train.epochs=9 (theirs 200)" in notes
    assert "source 1: PromptKD repository" in notes


def test_costs_of_many_datasets_are_cut_and_answers_are_not(runs, monkeypatch):
    rows = build_rows(scan_runs(runs).results)
    monkeypatch.setattr(build_module, "MAX_FIGURES", 1)
    built = build_report([runs])
    costs = section(built, "cost-against-accuracy")
    assert (len(costs.figures), costs.texts[-1]) == (1, "The first 1 of 2 figures.")
    assert len(section(built, "answers-confusion-and-calibration").figures) == 2 * len({row.method for row in rows})


def test_the_page_tells_that_prompts_are_not_looked_at(report, runs):
    learned = section(report, "learned")
    assert not learned.figures
    assert "give `--look`" in learned.texts[0]
    chosen, n_left = choose_learned_runs(choose_detailed_runs(build_rows(scan_runs(runs).results))[0])
    assert ([run.result.config["method"]["name"] for run in chosen], n_left) == (
        ["coop"],
        0,
    )  # zero_shot learns nothing


@pytest.mark.slow
def test_prompts_are_looked_at(copy, tmp_path):
    zero_shot, coop = (next(copy.glob(f"{name}-*-1shot-seed1-*")) for name in ("zero_shot", "coop"))
    shutil.copytree(zero_shot, tmp_path / "few" / zero_shot.name)
    shutil.copytree(coop, tmp_path / "few" / coop.name)
    built = build_report([tmp_path / "few"], with_learned=True)
    learned = section(built, "learned")
    assert [f.name.split("-")[1] for f in learned.figures] == ["words", "similarity", "tsne", "attention"]
    assert "seldom mean anything" in learned.figures[0].description
    (tmp_path / "few" / coop.name / "prompt.safetensors").write_bytes(b"broken")
    learned = section(build_report([tmp_path / "few"], with_learned=True), "learned")
    assert not learned.figures
    assert learned.lines[0].startswith("no pictures of coop, few_shot on digits, seed 1: ")


def test_broken_and_unfinished_runs_are_listed(copy):
    folders = find_run_folders(copy)
    (folders[0] / "result.json").write_text("{")
    (folders[1] / "result.json").unlink()
    content = json.loads((folders[2] / "result.json").read_text())
    del content["checksum"]
    (folders[2] / "result.json").write_text(json.dumps({**content, "added_by_a_later_version": 1}))
    shutil.copytree(folders[3], copy / "a copy")
    built = build_report([copy, copy / folders[4].name])
    lines = "\n".join(section(built, "left-out").lines)
    assert folders[0].name in lines
    assert f"not finished, give the same command again: {folders[1].name}" in lines
    assert "unknown key 'added_by_a_later_version'" in lines
    assert "a copy" in lines
    assert built.summary.startswith("9 runs, ")


@pytest.mark.slow
def test_a_thousand_classes(copy):
    for folder in find_run_folders(copy):
        names = tuple(f"class {i}" for i in range(1000))
        answers = RunFolder(folder).read_answers()["test"]
        labels = torch.arange(len(answers.labels)) % 1000
        write_answers(folder, replace(answers, labels=labels, predicted=labels // 2, names=names))
    built = build_report([copy])
    [figure, _] = [f for part in built.sections for f in part.figures if f.name.startswith("confusion")]
    assert "40 most confused of 1000 classes" in figure.description
    assert len(figure.table.rows) <= 50
    [path, _] = built.files
    lines = list(csv.reader(built.files[path][0].decode().splitlines()))
    assert (len(lines), len(lines[0])) == (1001, 1001)
    assert "other test items" in section(built, "mistakes").lines[0]


def refuse(capsys, *words):
    assert call("report", *words) == 2
    return " ".join(capsys.readouterr().err.split())


def test_what_is_no_report(runs, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "index.html").write_text("mine")
    assert "expected finished runs, got none in" in refuse(capsys, tmp_path / "empty")
    assert "expected a folder of runs" in refuse(capsys, runs, tmp_path / "missing")
    assert "--single: expected a file .html, got a folder" in refuse(capsys, runs, "--single", tmp_path)
    assert "--single: expected a file .html, got 'page.pdf'" in refuse(capsys, runs, "--single", "page.pdf")
    assert "--out: expected a folder, got" in refuse(capsys, runs, "--out", tmp_path / "file")
    assert "which is a file" in refuse(capsys, runs, "--single", tmp_path / "file" / "page.html")
    assert "without 'index.html' of another origin" in refuse(capsys, runs, "--out", tmp_path / "other")
    assert (tmp_path / "other" / "index.html").read_text() == "mine"


def test_a_folder_that_can_not_be_written(runs, capsys):
    for words in (["--out", "/proc/report"], ["--single", "/proc/report/page.html"]):
        assert "expected a file that can be written" in refuse(capsys, runs, *words)


def test_without_the_extra(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert 'pip install "vlprompt[report]"' in refuse(capsys, runs, "--out", tmp_path / "report")
    assert not (tmp_path / "report").exists()
