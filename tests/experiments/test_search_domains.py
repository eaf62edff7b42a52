"""DomainBed's criteria: what settings of generalisation are judged by, what they must not see, and what results say."""

import json
import statistics
from dataclasses import replace

import pytest

from vlprompt import TrainConfig, run
from vlprompt.backbones.glyph import build_tiny_clip
from vlprompt.data.loading import open_data
from vlprompt.data.splits.domains import select_domain
from vlprompt.engine.evaluate import evaluate
from vlprompt.experiments.events import StepDone
from vlprompt.experiments.searches.study import build_studies
from vlprompt.methods import CoOp, ZeroShot
from vlprompt.results.run_folder import RunFolder
from vlprompt.results.tables.all_tables import build_tables
from vlprompt.results.tables.summary import build_rows
from vlprompt.runtime.errors import RunStoppedError
from vlprompt.tasks import Domain

SOURCES = ["noisy", "rotated", "blurred"]
SEARCH = {"source": SOURCES, "target": "negative", "setting": "generalise", "shots": 2, "phase": "search"}
TRAIN = TrainConfig(epochs=1, batch_size=30, optimizer="adam", lr=0.005, weight_decay=0.0, warmup=0)


def stages_of(criterion, **settings):
    return list(Domain("digit_domains", **{**SEARCH, **settings}, criterion=criterion).stages())


def keys_of(*splits):
    return {item.key for split in splits if split is not None for item in split.items}


@pytest.fixture(scope="module")
def images():
    """The keys of all images of each domain."""
    data = open_data("digit_domains")
    return {name: keys_of(select_domain(data, name).all_images) for name in [*SOURCES, "negative"]}


def test_training_domain_judges_by_held_out_images_of_every_source(images):
    [stage] = stages_of("training-domain")
    final = next(Domain("digit_domains", **{**SEARCH, "phase": "final"}).stages())
    assert stage.lesson.train.hash() == final.lesson.train.hash()
    assert keys_of(stage.tests["val"]) == keys_of(final.lesson.val)
    assert not keys_of(stage.tests["val"]) & keys_of(stage.lesson.train)
    assert all(keys_of(stage.tests["val"]) & images[name] for name in SOURCES)
    assert not keys_of(stage.tests["val"], stage.lesson.train, stage.lesson.val) & images["negative"]


def test_leave_one_domain_out_holds_out_each_source_in_turn(images):
    stages = stages_of("leave-one-domain-out")
    assert [keys_of(stage.tests["val"]) for stage in stages] == [images[name] for name in SOURCES]
    for stage, name in zip(stages, SOURCES, strict=True):
        others = set().union(*(images[other] for other in SOURCES if other != name))
        assert keys_of(stage.lesson.train, stage.lesson.val) <= others
        assert len(stage.lesson.train) == 40
        assert len(stage.lesson.domains) == 2
        assert name not in stage.lesson.domains
        assert (stage.lesson.index, stage.lesson.total, stage.lesson.unlabelled) == (0, 1, None)
        assert [*stage.tests] == ["val"]
        assert not stage.needs_epoch_metrics


def test_test_domain_judges_by_images_of_the_target_that_are_not_tested(images):
    [stage] = stages_of("test-domain")
    tested = keys_of(select_domain(open_data("digit_domains"), "negative").test)
    assert keys_of(stage.tests["val"]) == images["negative"] - tested
    [stage] = stages_of("test-domain", transductive=True)
    assert keys_of(stage.tests["val"]) == images["negative"]


def test_the_summary_of_a_search_is_the_mean_over_the_sources():
    clip = build_tiny_clip()
    result = run(ZeroShot(clip), Domain("digit_domains", **SEARCH, criterion="leave-one-domain-out"), TRAIN)
    data = open_data("digit_domains")
    expected = []
    for name in SOURCES:
        split = replace(select_domain(data, name).all_images, domains=None, info={})
        expected.append(evaluate(ZeroShot(clip), split).metrics["accuracy"])
    assert [stage["val"]["accuracy"] for stage in result.scores] == pytest.approx(expected)
    assert result.summary == {"accuracy": pytest.approx(statistics.fmean(expected))}


@pytest.mark.parametrize("stop", [1, 3, 6])
def test_a_search_that_was_stopped_goes_on(stop, tmp_path):
    """In any of its three runs; each begins anew, so that it is that of a search without a stop."""
    clip, task = build_tiny_clip(), Domain("digit_domains", **SEARCH, criterion="leave-one-domain-out")
    train = replace(TRAIN, epochs=2)
    whole = run(CoOp(clip, 2), task, train)
    steps = []

    def hear(event):
        if isinstance(event, StepDone):
            steps.append(event)
            if len(steps) == stop:
                raise RunStoppedError("stopped")

    with pytest.raises(RunStoppedError):
        run(CoOp(clip, 2), task, train, tmp_path, on_event=hear)
    assert run(CoOp(clip, 2), task, train, tmp_path).scores == whole.scores


def test_settings_are_searched_and_every_result_says_by_which_rule(type_in, tmp_path):
    words = "linear", "digit_domains", "--backbone", "glyph-vit/random", "--task", "domain", "--out", tmp_path
    settings = "task.target=negative", 'task.source=["noisy","rotated","blurred"]', "task.shots=4", "train.epochs=10"
    rates = "search.train.lr=[0.000001,0.05]"
    for criterion in ("leave-one-domain-out", "training-domain", "test-domain"):
        out = tmp_path / criterion
        rule = f"task.criterion={criterion}"
        status, text = type_in("search", *words[:-1], out, *settings, rule, "method.solver=fit", rates)
        assert status == 0, text
        assert "linear on digit_domains -> negative: 2 settings" in text
        [folder] = out.glob("linear-*")
        result = RunFolder(folder).read_finished()
        assert result.config["task"]["phase"] == "final"
        assert "accuracy" in result.scores[-1]["target"]
        assert criterion in result.protocol["settings_chosen"].replace(" ", "-")
        assert build_rows([result])[0].is_oracle == (criterion == "test-domain")
        [search] = out.glob("search-*")
        entries = [json.loads(line) for line in (search / "grid.jsonl").read_text().splitlines()]
        assert [entry["lr"] for entry in entries] == [1e-6, 0.05]
        best = max(entries, key=lambda entry: entry["accuracy"])
        assert result.config["train"]["lr"] == best["lr"]


def test_results_of_different_rules_have_letters():
    final = {**SEARCH, "phase": "final"}
    given = run(ZeroShot(build_tiny_clip()), Domain("digit_domains", **final), TRAIN)
    assert given.protocol["settings_chosen"] == "given"
    searched = []
    for criterion in ("leave-one-domain-out", "test-domain"):
        task = {**given.config["task"], "criterion": criterion}
        protocol = Domain("digit_domains", **final, criterion=criterion).protocol
        searched.append(replace(given, config={**given.config, "task": task}, protocol={**given.protocol, **protocol}))
    again = replace(given, config={**given.config, "method": {"name": "other"}})
    table = build_tables(build_rows([given, again, *searched]))[0]
    letters = {line[0]: line[1] for line in table.rows}
    assert sorted(letters.values()) == ["", "", "", "a"]
    [oracle] = [name for name in letters if name.endswith("*")]
    assert letters[oracle] == ""
    assert "a: settings by leave-one-domain-out cross-validation (others given)" in table.footnotes[0]
    assert any(note.startswith("*: an oracle") for note in table.footnotes)


def test_each_domain_is_the_target_in_turn():
    options = {"sampler": "grid", "overrides": ["search.train.lr=[0.1,0.01]"], "backbone": "glyph-vit/random"}
    studies = build_studies("linear", "digit_domains", task="domain", **options)
    targets = [study.settings[0].config.task["target"] for study in studies]
    assert len(targets) == len(set(targets)) == 6
    assert all(study.settings[0].config.task["criterion"] == "training-domain" for study in studies)
    options["overrides"] = [*options["overrides"], "task.target=noisy,negative"]
    studies = build_studies("linear", "digit_domains", task="domain", **options)
    assert [study.settings[0].config.task["target"] for study in studies] == ["noisy", "negative"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"criterion": "oracle"},
            r"^task\.criterion: expected training-domain, leave-one-domain-out, test-domain, got",
        ),
        ({"criterion": None}, r"^task\.criterion: .* for task\.phase=search, got none"),
        (
            {"criterion": "test-domain", "setting": "adapt"},
            r"^task\.criterion: expected task\.setting=generalise, got a",
        ),
        ({"criterion": "test-domain", "phase": "both"}, r"^task\.phase: expected 'search' or 'final', got 'both'"),
        ({"criterion": "leave-one-domain-out", "source": "noisy"}, r"expected at least two sources, got 1\. Name more"),
        ({"criterion": "training-domain", "val_fraction": 0}, r"expected held-out images of the sources, got none"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        list(Domain("digit_domains", **{**SEARCH, **settings}).stages())


def test_a_search_that_there_is_not(type_in, tmp_path):
    words = "linear", "digit_domains", "--backbone", "glyph-vit/random", "--out", tmp_path, "search.train.lr=[0.1,0.01]"
    status, text = type_in("search", *words, "--task", "domain", "--sampler", "optuna")
    assert status != 0
    assert "--sampler: expected grid for the task domain, got optuna" in text
    status, text = type_in("search", *words, "--task", "few_shot")
    assert status != 0
    assert (
        "--task: expected one of vtab, continual, domain, got few_shot, which has no test on validation images" in text
    )
