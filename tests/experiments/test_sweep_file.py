"""Files of sweeps: one name for each setting, exclusions that exclude, and what stops a sweep as a whole."""

import resource
from functools import partial

import pytest
from forks import give

from vlprompt.cli.app import main
from vlprompt.cli.sweeps.placement import choose_placement
from vlprompt.experiments.schedulers.slurm import SlurmOptions
from vlprompt.experiments.sweeps.combinations import resolve_sweep
from vlprompt.experiments.sweeps.expansion import expand, find_impossible_runs
from vlprompt.experiments.sweeps.options import LoadedBackbones, SweepOptions
from vlprompt.experiments.sweeps.sweep_file import read_sweep_space, split_values

GRID = "grid: {method: [coop, zero_shot], shots: [1, 2], seed: [1]}\nsettings: {dataset: digits, train: {epochs: 1}}\n"


@pytest.fixture
def read(tmp_path):
    def read(text, *words):
        (tmp_path / "sweep.yaml").write_text(text)
        return read_sweep_space(tmp_path / "sweep.yaml", words)

    return read


def test_the_grid_wins_over_settings_in_whatever_form_they_are_written(read):
    settings = "settings: {method: {name: coop}, task: {dataset: digits, shots: 4}}\n"
    [config] = expand(read(settings + "grid: {method: [linear], dataset: [glyphs], task.shots: [2]}")).configs
    assert (config.method["name"], config.task["dataset"], config.task["shots"]) == ("linear", "glyphs", 2)
    space = read(settings + "grid: {method: [linear]}", "task.dataset=glyphs", "shots=2")
    assert expand(space).configs == [config]


def test_a_setting_by_two_names_is_refused(read):
    with pytest.raises(ValueError, match="settings: dataset: expected one value, got it as dataset too"):
        read("settings: {task.dataset: digits, dataset: glyphs}\ngrid: {seed: [1]}")
    with pytest.raises(ValueError, match="shots: expected in one of grid, zip and runs"):
        read("grid: {shots: [1]}\nzip: {task.shots: [2]}")


def test_names_are_taken_as_they_are_typed():
    [combination] = read_sweep_space(None, ["dataset=010", 'method="coop"', "seed=010"]).iter_combinations()
    assert combination == {"dataset": "010", "method": "coop", "seed": 10}


def test_an_apostrophe_is_no_quote_and_what_does_not_end_is_refused():
    assert split_values("it's {name}, {name}'s") == ["it's {name}", "{name}'s"]
    for text in ("[1, 2", '"a, b', "a), b"):
        with pytest.raises(ValueError, match="expected brackets and quotes that end"):
            split_values(text)


def test_exclusions_see_settings_and_refuse_values_that_no_run_has(read):
    found = read(GRID + "exclude: [{dataset: digits, method: coop, shots: 1}]").iter_combinations()
    assert [(c["method"], c["shots"]) for c in found] == [("coop", 2), ("zero_shot", 1), ("zero_shot", 2)]
    with pytest.raises(
        ValueError, match=r"exclude: method: expected a value of the sweep, got 'cop'; did you mean 'co"
    ):
        read(GRID + "exclude: [{method: cop}]")
    narrowed = read(GRID + "exclude: [{method: coop, shots: 1}]", "method=zero_shot")
    assert len(list(narrowed.iter_combinations())) == 2  # the file's own exclusion, though no run here has coop


def test_values_are_read_as_the_command_run_reads_them(read):
    words = ["method=coop", "dataset=digits", "method.init_text=5"]
    assert expand(read_sweep_space(None, words)).configs == resolve_sweep(
        ["coop"], [None], [None], dataset="digits", overrides=["method.init_text=5"]
    )
    [config] = expand(read_sweep_space(None, ["method=coop", "dataset=digits", "shots=null"])).configs
    assert config.task["shots"] is None  # all, not the default
    narrowed = read(
        GRID.replace("seed: [1]", "train.lr: [0.1, 0.2]") + "exclude: [{train.lr: 0.2}]", "train.lr=0.10,0.20"
    )
    assert [c["train.lr"] for c in narrowed.iter_combinations()] == ["0.10"] * 4


def test_an_error_names_the_file_and_the_section_of_a_key(read, tmp_path):
    file = tmp_path / "sweep.yaml"
    for text, words, error in (
        ("grid: {train.lrr: [0.1]}", [], f"{file}: grid: unknown key 'train.lrr'"),
        ("settings: {train: {lr: fast}}", [], f"{file}: settings: train.lr: expected a valid number"),
        ("grid: {method: [cop]}", [], f"{file}: grid: method: expected a known name, got 'cop'"),
        ("settings: {train: {lr: 0.1}}", ["train.lr=fast"], "the option 'train.lr=fast': train.lr: expected"),
    ):
        method = "" if "method" in text else "\nruns: [{method: coop}]"
        [impossible] = expand(read(text + method, "dataset=digits", *words)).impossible.values()
        assert impossible.reason.startswith(error)


def test_what_combines_to_nothing_new_is_noticed(read):
    text = "grid: {method: [coop], seed: [1, 1]}\nzip: {dataset: [digits, glyphs], train.epochs: [1, 2]}\n"
    expansion = expand(read(text + "exclude: [{dataset: digits, train.epochs: 2}]"))
    assert len(expansion.configs) == 2
    assert [notice.partition(": ")[2] or notice for notice in expansion.notices] == [
        "2 combinations name a run of another one; each is made once",
        "exclude: dataset=digits train.epochs=2 leaves nothing out, as no combination has all of it",
    ]
    narrowed = read(GRID + "exclude: [{method: coop, shots: 1}]", "method=zero_shot")
    assert not expand(narrowed).notices


def test_a_file_says_where_runs_are_made_and_the_command_line_wins(read):
    text = GRID + "out: there\non: slurm\njobs: 8\nslurm: {partition: gpu, minutes: 120}\n"
    place = choose_placement(read(text), None, None, [])
    assert (place.cluster, place.n_workers, place.options) == ("slurm", 8, SlurmOptions(partition="gpu", minutes=120))
    place = choose_placement(read(text), 2, None, ["minutes=5", "account=7"])
    assert (place.n_workers, place.options) == (2, SlurmOptions(partition="gpu", minutes=5, account="7"))
    assert choose_placement(read(text), 1, "local", []).is_in_process
    assert read(text).place.out == "there"
    for wrong, error in (
        ("on: slrum", "sweep.yaml: on: unknown scheduler 'slrum'; did you mean 'slurm'"),
        ("slurm: {minute: 5}", "sweep.yaml: slurm: unknown option 'minute'; did you mean 'minutes'"),
        ("on: ray\nray: {gpus: many}", "sweep.yaml: ray: gpus: expected a valid number"),
    ):
        with pytest.raises(ValueError, match=error):
            choose_placement(read(GRID + wrong), None, None, [])


def test_weights_that_there_are_not_are_impossible_and_those_elsewhere_missing(type_in):
    words = ["sweep", "method=coop", "dataset=digits", "backbone=open_clip:ViT-B-16/openai,open_clip:ViT-B-16/opnai"]
    status, text = type_in(*words, "seed=1,2", "--plan")
    assert status == 0
    assert "2 runs, 2 left, 2 impossible" in text
    assert "and 1 more: backbone: expected weights of ViT-B-16 in open_clip, got 'opnai'" in text
    assert "missing: open_clip:ViT-B-16/openai: its weights are not on this machine" in text


FLAKY = """
from vlprompt.methods.coop import CoOp

class Flaky(CoOp):
    def loss(self, *args):
        raise RuntimeError("flaky")

    loss_terms = loss
"""


def test_a_run_that_is_tried_again_is_counted_once(tmp_path, type_in, monkeypatch):
    (tmp_path / "flaky_method.py").write_text(FLAKY)
    monkeypatch.syspath_prepend(tmp_path)
    status, text = type_in("sweep", "method=flaky_method:Flaky", "dataset=digits", "shots=1", "train.epochs=1")
    assert status == 1
    assert text.count("failed, is tried again") == 1
    assert "1/1" in text
    assert "2/1" not in text


def test_methods_without_weights_for_new_classes_are_impossible(tmp_path):
    space = read_sweep_space(None, ["method=linear,coop", "dataset=digits", "task=base_to_new", "seed=1,2"])
    reasons = find_impossible_runs(expand(space).configs, LoadedBackbones(SweepOptions(tmp_path))).values()
    assert len(reasons) == 2
    assert all("linear head: no weights for class '5'" in run.reason for run in reasons)
    assert all("task.base_only=true" in run.reason for run in reasons)


WORDS = ["sweep", "method=coop", "dataset=digits", "shots=1", "backbone=glyph", "train.epochs=1", "--out", "runs"]


def sweep_with_limit(limit, words):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # stands for a full disk
    main(words)


@pytest.mark.parametrize("jobs", [[], pytest.param(["--jobs", "2"], marks=pytest.mark.slow)])
def test_a_full_disk_ends_a_sweep_with_one_error_and_loses_nothing(tmp_path, jobs):
    words = [*WORDS, "seed=1,2", *jobs]
    status, text = give(*words, act=partial(sweep_with_limit, 8000), cwd=tmp_path)
    text = " ".join(text.split())
    assert status == 2, text
    assert text.count("error: ") == 1
    assert "expected a file that can be written" in text.partition("error: ")[2]
    assert "Free space" in text
    assert "Traceback" not in text
    assert not list(tmp_path.glob("runs/.sweep/calls/*/outcomes/*"))  # the other run is not trained in vain
    status, text = give(*words, cwd=tmp_path)
    assert (status, "2 of 2 runs" in text) == (0, True)


def test_runs_go_where_the_file_says_and_status_is_of_the_latest_sweep(tmp_path, type_in):
    (tmp_path / "sweep.yaml").write_text("out: there\nsettings: {dataset: digits}\ngrid: {method: zero_shot}\n")
    words = ["sweep", "sweep.yaml", "backbone=glyph/random"]
    assert type_in(*words, "shots=1", "seed=1,2", "--out", "there")[0] == 0
    assert type_in(*words, "shots=2", "seed=1,2,3")[0] == 0
    assert "3 of 3 runs done, 0 running" in type_in("status", "there")[1]
    assert not (tmp_path / "runs").exists()
