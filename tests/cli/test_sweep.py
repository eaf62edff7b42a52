"""`vlprompt sweep` and `vlprompt status`: what combines, what is refused, and that each run is made once."""

import json
import os
import subprocess
import sys
from shutil import copytree

import pytest

from vlprompt.cli.app import main
from vlprompt.experiments.sweeps.sweep_file import read_sweep_space, split_values
from vlprompt.results.run_folder import RunFolder, find_run_folders

SHORT = ["train.epochs=1"]


def call(*words):
    with pytest.raises(SystemExit) as exit_:
        main([str(word) for word in words])
    return exit_.value.code


def read_results(folder):
    """name of a run's folder -> its scores and the bytes of what it learned."""
    runs = [RunFolder(path) for path in find_run_folders(folder)]
    return {run.path.name: (run.read_result().scores, run.learned_path.read_bytes()) for run in runs}


def write(path, text):
    path.write_text(text, "utf-8")
    return path


def combinations(tmp_path, text, *words):
    return list(read_sweep_space(write(tmp_path / "sweep.yaml", text), words).iter_combinations())


def test_values_are_split_outside_brackets_and_quotes():
    assert split_values("1,2, 4") == ["1", "2", "4"]
    assert split_values('["0","2"],["1","3"]') == ['["0","2"]', '["1","3"]']
    assert split_values('"a, b",c') == ['"a, b"', "c"]
    assert split_values("{low: 1, high: 2},null") == ["{low: 1, high: 2}", "null"]
    assert split_values("") == []


def test_a_file_combines_grids_zips_and_runs_and_leaves_out(tmp_path):
    text = """
grid: {shots: [1, 2], seed: [1, 2]}
zip: {dataset: [digits, glyphs], train.epochs: [3, 5]}
runs: [{method: coop, method.n_ctx: 4}, {method: linear}]
exclude: [{method: linear, shots: 1}, {dataset: glyphs, seed: 2}]
"""
    found = combinations(tmp_path, text)
    assert len(found) == 2 * 2 * 2 * 2 - 4 - 4 + 1  # one combination is left out twice
    assert {(c["dataset"], c["train.epochs"]) for c in found} == {("digits", 3), ("glyphs", 5)}
    assert all(c.get("method.n_ctx") == 4 for c in found if c["method"] == "coop")
    assert not [c for c in found if c["method"] == "linear" and c["shots"] == 1]
    narrowed = combinations(tmp_path, text, "shots=4", "train.lr=0.1,0.2")
    assert {(c["shots"], c["train.lr"]) for c in narrowed} == {(4, "0.1"), (4, "0.2")}


@pytest.mark.parametrize(
    ("text", "words", "error"),
    [
        ("grids: {seed: [1]}", [], "unknown key 'grids'; did you mean 'grid'?"),
        ("grid: [1]", [], "grid: expected keys with values, got [1]"),
        ("runs: {method: coop}", [], "runs: expected a list, got {'method': 'coop'}"),
        ("grid: {shots: []}", [], "shots: expected values, got none"),
        ("zip: {shots: [1, 2], seed: [1]}", [], "expected as many values of each key, got 2 of shots, 1 of seed"),
        ("grid: {seed: [1]}\nzip: {seed: [2]}", [], "seed: expected in one of grid, zip and runs"),
        ("grid: {seed: [1]}\nexclude: [{sed: 1}]", [], "exclude: unknown key 'sed'; did you mean 'seed'?"),
        ("zip: {seed: [1]}", ["seed=2"], "got one that"),
        ("{}", [], "expected values to combine, got none"),
        ("grid: {seed: [1]}", ["coop"], "expected a file .yaml first, then key=value, got 'coop'"),
        ("method: coop", [], "method: expected under grid, zip, runs or settings"),
        ("grid: {shot: [1]}", [], "grid: unknown key 'shot'; did you mean 'shots'?"),
        ("grid: {lr: [1]}", [], "Settings have their section, as train.lr."),
        ("grid: {search.train.lr: [1, 2]}", [], "grid: unknown key 'search.train.lr'"),
        ("grid: {seed: 1-3}", [], "grid: seed: expected whole numbers, got '1-3'. Write seed: [1, 2, 4]."),
        ("grid: {method: 'coop, linear'}", [], "method: expected a list of names, got 'coop, linear'"),
        ("grid: {dataset: [010]}", [], "dataset: expected names, got 10"),
        ("grid: {method: [{name: coop}]}", [], "method: expected names, got {'name': 'coop'}"),
        ("settings: {method: [coop]}\ngrid: {seed: [1]}", [], "Write lists under grid or zip"),
        ("grid: {seed: [1]}\ngrid: {seed: [2]}", [], "the key 'grid' stands twice at line 2"),
        ("grid: {seed: [1]}\njobs: many", [], "jobs: expected a valid integer"),
    ],
)
def test_a_sweep_that_says_nothing_runnable_is_refused(tmp_path, text, words, error):
    with pytest.raises(ValueError, match=r"expected|unknown") as info:
        read_sweep_space(write(tmp_path / "sweep.yaml", text), words)
    assert error in str(info.value)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["method=coop", "dataset=digits", "train.lrr=0.1"], "unknown key 'train.lrr'"),
        (["method=coop", "dataset=digits", "shots=one"], "shots: expected whole numbers, got 'one'"),
        (["method=dapl", "dataset=digits"], "expected at least two domains"),
        (["method=prompt_tuning", "dataset=digits"], "expected a language model, got glyph"),
        (["method=coop", "dataset=nowhere"], "nowhere"),
    ],
)
def test_what_is_impossible_is_said_before_anything_runs(tmp_path, capsys, words, error):
    out = tmp_path / "runs"
    assert call("sweep", *words, "seed=1,2", "--out", out) == 2
    text = capsys.readouterr().err
    assert error in text
    assert "--skip-impossible" in text
    assert not find_run_folders(out)
    assert call("sweep", *words, "--plan", "--out", out) == 0
    assert error in " ".join(capsys.readouterr().out.split())


def test_a_million_runs_are_counted_and_asked_about(tmp_path, capsys):
    numbers = ",".join(map(str, range(1000)))
    assert call("sweep", "method=coop", f"seed={numbers}", f"train.lr={numbers}", "--out", tmp_path) == 2
    assert "got 1,000,000. Give --yes" in " ".join(capsys.readouterr().err.split())


def test_options_that_do_not_fit_are_refused(tmp_path, capsys):
    words = ["sweep", "method=zero_shot", "dataset=digits", "--out", tmp_path]
    for options, error in (
        (["--on", "slrum"], "unknown scheduler 'slrum'; did you mean 'slurm'?"),
        (["--on-option", "partition=gpu"], "expected with --on slurm or --on ray"),
        (["--on", "ray", "--on-option", "cpu=2"], "unknown option 'cpu'; did you mean 'cpus'?"),
        (["--on", "ray", "--on-option", "cpus=none"], "cpus: expected a valid number"),
        (["--on", "ray", "--on-option", "cpus"], "expected KEY=VALUE, got 'cpus'"),
        (["--jobs", "0"], "Invalid value for '--jobs'"),
        (["task=nowhere", "--on", "ray", "--on-option", "cpu=2"], "unknown option 'cpu'"),  # before runs are looked at
    ):
        assert call(*words, *options) == 2
        assert error in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "words", [("run", "coop", "digits"), ("sweep", "method=coop", "dataset=digits"), ("search", "coop", "digits")]
)
def test_a_file_in_place_of_the_folder_of_runs_is_refused_at_once(tmp_path, capsys, words):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "runs"):
        assert call(*words, "--out", path) == 2
        error = " ".join(capsys.readouterr().err.split())
        assert "--out: expected a folder, or one to make, got the file" in error


def test_status_without_a_sweep(tmp_path, capsys):
    assert call("status", tmp_path) == 2
    assert "expected a folder of a sweep" in capsys.readouterr().err


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of eight runs in this process."""
    out = tmp_path_factory.mktemp("swept") / "runs"
    assert call(*WORDS, "--out", out) == 0
    return out


RANDOM = "backbone=glyph/random"
WORDS = ["sweep", "method=coop,zero_shot", "dataset=digits", RANDOM, "shots=1,2", "seed=1,2", *SHORT]


def test_a_sweep_is_planned_run_and_shown(swept, capsys):
    assert call("status", swept, "--json") == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["n_runs"], status["n_done"], status["running"], status["failed"]) == (8, 8, [], {})
    assert call(*WORDS, "--out", swept) == 0
    assert "8 of 8 runs" in capsys.readouterr().out
    assert call(*WORDS, "seed=1,2,3", "--out", swept, "--plan") == 0
    plan = capsys.readouterr().out
    assert "12 runs, 4 left" in plan
    assert "?" not in plan  # finished runs say what others cost


def test_a_plan_shows_what_differs_and_what_has_changed(swept, tmp_path, capsys):
    out = tmp_path / "runs"
    copytree(swept, out)
    [folder] = out.glob("coop-digits-1shot-seed1-*")
    inputs = json.loads((folder / "inputs.json").read_text())
    (folder / "inputs.json").write_text(json.dumps(inputs | {"classes": {}}))
    assert call(*WORDS[:-1], "train.epochs=1,2", "method=coop", "--out", out, "--plan") == 0
    text = capsys.readouterr().out
    rows = [line.split()[:8] for line in text.splitlines() if line.strip().startswith("digits ")]
    assert rows == [
        ["digits", "coop", "train.epochs=1", "1", "2", "1", "0", "1"],
        ["digits", "coop", "train.epochs=2", "1", "2", "0", "0", "0"],
        ["digits", "coop", "train.epochs=1", "2", "2", "2", "0", "0"],
        ["digits", "coop", "train.epochs=2", "2", "2", "0", "0", "0"],
    ]
    assert "8 runs, 5 left, 1 of them changed;" in text
    assert "side by side" not in text
    assert f"changed: {str(folder)!r}: expected a run on the same inputs" in text
    assert call(*WORDS, "--out", out, "--plan", "--side-by-side") == 0
    assert "what training side by side saves is not counted" in capsys.readouterr().out
    assert call(*WORDS, "method=coop", "--out", out) == 1
    assert f"{folder.name}: {str(folder)!r}: expected a run on the same inputs" in capsys.readouterr().err


def test_processes_make_the_same_bits(swept, tmp_path, capsys):
    assert call(*WORDS, "shots=1", "--out", tmp_path / "runs", "--jobs", 2) == 0
    made = read_results(tmp_path / "runs")
    assert made == {run: result for run, result in read_results(swept).items() if run in made}
    assert len(made) == 4
    assert "4 of 4 runs" in capsys.readouterr().out


@pytest.mark.slow
def test_two_sweeps_of_one_folder_make_each_run_once(swept, tmp_path):
    """Both print all runs; no run is begun by both."""
    out = tmp_path / "runs"
    code = "from vlprompt.cli.app import main; main()"
    command = [sys.executable, "-P", "-c", code, *WORDS, "--out", str(out)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) for _ in range(2)]
    assert ["8 of 8 runs" in process.communicate(timeout=120)[0] for process in both] == [True, True]
    assert read_results(out) == read_results(swept)
    begun = [path.name.split(".")[0] for path in out.glob(".sweep/calls/*/attempts/*")]
    steps = {run.name: (run / "steps.jsonl").read_text().count("\n") for run in find_run_folders(out)}
    assert set(begun) == {config["run"] for config in map(json.loads, _iter_outcomes(out))}
    assert steps == {run.name: (run / "steps.jsonl").read_text().count("\n") for run in find_run_folders(swept)}


def _iter_outcomes(out):
    return (path.read_text("utf-8") for path in out.glob(".sweep/calls/*/outcomes/*.json"))


def test_one_failure_stops_nothing(tmp_path, capsys):
    words = ["sweep", "method=coop", "dataset=digits", "shots=1", "seed=1", "train.lr=0.002,1e30", "train.epochs=2"]
    assert call(*words, "--out", tmp_path) == 1
    streams = capsys.readouterr()
    assert "1 of 2 runs" in streams.out
    assert "got NaN for" in " ".join(streams.err.split())
    assert "coop-digits-1shot-seed1-" in streams.err  # the settings differ, the names do not
    assert call("status", tmp_path) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "1 of 2 runs done, 0 running, 1 failed" in text
    assert "got NaN for" in text
