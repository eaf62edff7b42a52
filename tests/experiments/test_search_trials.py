"""Searches by Optuna: ranges, pruning, trials that processes share and that go on after a kill."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from forks import Fork, give
from kills import killed_when
from miniatures import small_digits

from vlprompt.backbones import load_backbone
from vlprompt.cli.app import main
from vlprompt.core.images import ImageItem
from vlprompt.experiments.searches.grid import run_search
from vlprompt.experiments.searches.space import Range
from vlprompt.experiments.searches.study import build_study
from vlprompt.experiments.searches.trial_store import TrialStore
from vlprompt.experiments.searches.trials import run_trials
from vlprompt.tasks import VTAB

COMMAND = Path(sys.executable).parent / "vlprompt"
RATES = "search.train.lr={low: 1e-3, high: 10, log: true}"
FIXED = ["train.epochs=3", "train.warmup=0", "train.batch_size=64", "search.train.weight_decay=[0.0]"]


def command():
    return ["search", "linear", small_digits(), *FIXED, RATES, "--backbone", "glyph", "--seed", "1",
            "--sampler", "optuna", "--save-every", "0"]  # fmt: skip


def study_of(*more, name="linear", sampler="optuna"):
    return build_study(name, small_digits(), [1], sampler=sampler, overrides=[*FIXED, *more], backbone="glyph")


def store_of(path, *more, **how):
    study = study_of(*more, **how)
    return study, TrialStore(study, study.get_folder(path))


def trials_of(store):
    """Number, state, parameters and accuracies of each trial: all that a search depends on."""
    return [(t.number, t.state.name, t.params, t.value, t.intermediate_values) for t in store.read_trials()]


def search_of(path, clip, n_trials, *more, **how):
    study, store = store_of(path, *more, **how)
    notices = []
    chosen = run_trials(study, store, clip, n_trials, 0.0, lambda event: notices.append(getattr(event, "text", "")))
    return study, store, chosen, [text for text in notices if text]


@pytest.fixture(scope="module")
def clip():
    return load_backbone("glyph", "cpu")


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """The command, given once: its status and its folder."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.raises(SystemExit) as exit_:
        main([*command(), "--trials", "9", "--out", str(out), "--track", "jsonl"])
    status = exit_.value.code
    [folder] = out.glob("search-*")
    return status, out, folder


def reopen(out):
    study = study_of(RATES)
    return TrialStore(study, study.get_folder(out))


def test_the_command_searches_a_range_prunes_and_tests_the_best_once(searched):
    status, out, folder = searched
    assert not status
    trials = reopen(out).read_trials()
    chosen = json.loads((folder / "chosen.json").read_text())
    assert [trial.state.name for trial in trials[:5]] == ["COMPLETE"] * 5  # none is pruned before it can be compared
    assert len(trials) == 9 == chosen["n_settings"]
    pruned = [trial for trial in trials if trial.state.name == "PRUNED"]
    assert len(pruned) == chosen["pruned"] > 0
    assert all(max(trial.intermediate_values) < 3 for trial in pruned)
    assert chosen["accuracy"] == max(t.value for t in trials if t.state.name == "COMPLETE")
    assert all(1e-3 <= trial.params["train.lr"] <= 10 for trial in trials)
    assert {p.parent.parent.name for p in out.glob("*/result.json")} == {out.name}
    [result] = out.glob("linear-digits-*/result.json")
    config = json.loads(result.read_text())["config"]
    assert config["task"]["phase"] == "final"
    assert config["train"]["lr"] == chosen["config"]["train"]["lr"]


def tracked_trials(folder):
    """Lines of each tracked trial, but for names and the cost."""
    trials = {}
    for path in sorted(folder.glob("tracked/*/tracked.jsonl")):
        _, *lines = map(json.loads, path.read_text().splitlines())
        trials[int(path.parent.name)] = [{k: v for k, v in line.items() if "cost/" not in k} for line in lines]
    return trials


def test_each_trial_is_one_tracked_run_in_the_group_of_the_search(searched):
    _, out, folder = searched
    trials, lines = reopen(out).read_trials(), tracked_trials(folder)
    assert [*lines] == [trial.number for trial in trials]
    for trial in trials:
        path = folder / "tracked" / f"{trial.number:05d}" / "tracked.jsonl"
        config = json.loads(path.read_text().splitlines()[0])
        assert (config["name"], config["group"]) == (f"{folder.name}-trial-{trial.number:05d}", folder.name)
        assert config["config"]["train.lr"] == trial.params["train.lr"] * 64 / 256  # as the recipe scales it
        steps = [line for line in lines[trial.number] if line["kind"] == "step"]
        assert [line["epoch/val"] for line in steps if "epoch/val" in line] == [*trial.intermediate_values.values()]
        results = [line["accuracy"] for line in lines[trial.number] if line["kind"] == "result"]
        assert results == ([] if trial.state.name == "PRUNED" else [pytest.approx(trial.value)])
    assert len([*out.glob("linear-*/tracked.jsonl")]) == 1  # and the final run is one of its own


def test_a_trial_is_the_run_that_a_grid_makes_of_its_values(searched, clip, tmp_path):
    """Pruning looks at validation images between epochs; that changes nothing of what is learned."""
    first = reopen(searched[1]).read_trials()[0]
    lists = [f"search.train.lr=[{first.params['train.lr']!r},2.0]"]
    grid = study_of(*lists, sampler="grid")
    run_search(grid, grid.get_folder(tmp_path), clip)
    entries = grid.get_folder(tmp_path).read_entries().values()
    [entry] = [e for e in entries if e["values"]["train.lr"] == first.params["train.lr"]]
    assert entry["accuracy"] == pytest.approx(first.value)
    assert first.intermediate_values[3] == first.value


@pytest.mark.slow
def test_a_killed_search_goes_on_with_the_same_trials(searched, tmp_path, type_all):
    words = [*command(), "--trials", "9", "--out", str(tmp_path / "killed"), "--track", "jsonl"]
    for n_trials in (1, 6):  # in the middle of a trial
        condition = (
            f'any(p.parent.name >= "{n_trials:05d}" for p in folder.glob("search-*/.trials/*/last.safetensors"))'
        )
        killed_when(tmp_path / "killed", condition, COMMAND, *words)
    assert type_all(*words)[0] == 0
    assert trials_of(reopen(tmp_path / "killed")) == trials_of(reopen(searched[1]))
    [folder] = (tmp_path / "killed").glob("search-*")
    assert tracked_trials(folder) == tracked_trials(searched[2])


@pytest.mark.slow
def test_two_shells_share_the_trials_and_a_larger_number_adds_some(tmp_path):
    words = [*command(), "--out", str(tmp_path)]
    forks = [Fork(main, [str(word) for word in [*words, "--trials", "6"]]) for _ in range(2)]
    for fork in forks:
        text = fork.communicate()[0]
        assert fork.returncode == 0, text
        assert "6 trials" in text
    assert len(reopen(tmp_path).read_trials()) == 6
    assert give(*words, "--trials", "7")[0] == 0
    assert [trial.number for trial in reopen(tmp_path).read_trials()] == [*range(7)]
    [chosen] = tmp_path.glob("search-*/chosen.json")
    assert json.loads(chosen.read_text())["n_settings"] == 7


def test_the_same_seed_proposes_the_same_trials_and_another_others(searched, clip, tmp_path):
    _, store, *_ = search_of(tmp_path / "a", clip, 3, RATES)
    assert trials_of(store) == trials_of(reopen(searched[1]))[:3]
    _, store, *_ = search_of(tmp_path / "b", clip, 1, RATES, "search.seed=2")
    assert store.read_trials()[0].params != reopen(searched[1]).read_trials()[0].params


def test_trials_whose_loss_is_not_finite_are_out_and_told(clip, tmp_path):
    rates = "search.train.lr=[1.0e+38, 0.01]"
    more = ["train.warmup=0", "train.epochs=2", "train.batch_size=256", rates, "search.method.n_ctx=[1]"]
    _, store, chosen, notices = search_of(tmp_path, clip, 4, *more, name="coop")
    bad = [t for t in store.read_trials() if json.loads(t.params["train.lr"]) > 1]
    assert bad
    assert all(t.state.name == "PRUNED" and not t.intermediate_values for t in bad)
    assert chosen["non_finite"] == len(bad) == sum("the loss is not finite" in text for text in notices)
    assert chosen["values"]["train.lr"] == 0.01
    assert chosen["pruned"] == 0


def test_trials_never_decode_a_test_image(clip, tmp_path, monkeypatch):
    def broken(look, view):
        raise AssertionError("a test image was looked at")

    opened = VTAB(small_digits()).data
    test = replace(opened.test, items=tuple(ImageItem(i.key, broken, i.name) for i in opened.test.items))
    monkeypatch.setattr(VTAB, "data", replace(opened, test=test))
    study, _, chosen, _ = search_of(tmp_path, clip, 2, RATES)
    assert chosen["accuracy"] > 0
    assert set(study.stage.tests) == {"val"}


def test_a_search_refuses_another_test_than_validation_images(tmp_path):
    study = study_of(RATES)
    study.__dict__["task"] = VTAB(small_digits(), "final")
    with pytest.raises(ValueError, match=r"validation images as the only test of a search, got test\."):
        _ = study.stage


def test_ranges_are_of_integers_where_their_argument_is():
    study = study_of(
        "search.method.n_tokens={low: 2, high: 16, step: 2}", "search.train.lr={low: 1, high: 3}", name="vpt"
    )
    tokens, lr = study.axes["method.n_tokens"], study.axes["train.lr"]
    assert isinstance(tokens, Range)
    assert isinstance(lr, Range)
    assert (tokens.low, tokens.high, tokens.step, tokens.is_integer) == (2, 16, 2, True)
    assert not lr.is_integer
    assert [point.config.method["n_tokens"] for point in study.settings] == [2, 16]


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("{low: 0.1, high: 0.001}", "search.train.lr: expected low below high, got low 0.1 and high 0.001."),
        ("{low: 0, high: 1, log: true}", "search.train.lr: expected low above 0 in a logarithmic range, got 0."),
        ("{low: 0.1, high: 1, step: 0}", "search.train.lr: expected a step above 0 and at most high - low, got 0."),
        ("{low: 0.1, high: 1, log: true, step: 0.1}", "search.train.lr: expected log or step, got both."),
        ("{low: 0.1}", "search.train.lr: expected a value of high, got nothing"),
        ("{low: small, high: 1}", "search.train.lr: expected a value of low, got 'small'"),
        ("{low: 0.1, high: 1, hihg: 2}", "search.train.lr: expected low, high, log and step, got hihg."),
        ("{low: -1, high: 1}", "train.lr: expected a value above 0, got -"),
        ("[]", "search.train.lr: expected a list of values, got an empty one."),
    ],
)
def test_wrong_ranges_are_one_error_before_anything_runs(setting, text, tmp_path, type_all):
    words = ["search", "linear", "digits", "--sampler", "optuna", "--out", tmp_path / "out"]
    status, printed, _ = type_all(*words, f"search.train.lr={setting}")
    assert status == 2
    assert text in printed.replace("\n", " ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([RATES], "search.train.lr: expected a list of values for a grid, got the range"),
        (["--trials", "3"], "--trials: expected --sampler optuna with it, got 3 for a grid."),
        (["--sampler", "random"], "--sampler: expected grid or optuna, got random."),
        (
            ["--sampler", "optuna", "--trials", "0"],
            "Invalid value for '--trials': Input should be greater than or equal to 1",
        ),
    ],
)
def test_wrong_options_are_one_error(words, text, tmp_path, type_all):
    status, printed, _ = type_all("search", "linear", "digits", "--out", tmp_path / "out", *words)
    assert status == 2
    assert text in " ".join(printed.replace("│", " ").split())


def test_a_folder_of_another_space_is_refused(tmp_path):
    study, store = store_of(tmp_path, RATES)
    path = store.folder.config_path
    content = yaml.safe_load(path.read_text())
    content["search"]["train.lr"]["high"] = 5
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=r"expected a search of .*'high': 10.* got one of .*'high': 5.*--out"):
        TrialStore(study, store.folder)


def test_of_a_grid_trackers_follow_the_final_runs_alone(tmp_path, type_all):
    words = ["search", "linear", small_digits(), *FIXED, "search.train.lr=[1.0,0.25]", "--backbone", "glyph"]
    assert type_all(*words, "--seed", "1", "--track", "jsonl", "--out", tmp_path)[0] == 0
    assert len([*tmp_path.glob("linear-*/trackers.json")]) == len([*tmp_path.rglob("trackers.json")]) == 1
    status, text, _ = type_all(*words, "--track", "nothing", "--out", tmp_path / "other")
    assert status == 2
    assert "--track" in text
    assert not (tmp_path / "other").exists()


def test_without_optuna_the_extra_is_named(tmp_path, monkeypatch, type_all):
    monkeypatch.setitem(sys.modules, "optuna", None)
    status, printed, _ = type_all(*command(), "--out", tmp_path)
    assert status == 2
    assert '--sampler optuna: expected optuna, got no such package. Install it by: pip install "vlprompt[search]"' in (
        " ".join(printed.split())
    )
