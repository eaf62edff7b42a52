"""Published numbers add up, and our results are set beside them with every reason not to compare."""

import csv
import json
import shutil

import pytest
import yaml

from vlprompt.cli.app import main
from vlprompt.cli.listing import describe_method
from vlprompt.config.resolve import resolve_grid
from vlprompt.experiments.paper_recipes import compare_with_published, load_reference
from vlprompt.metrics import harmonic_mean
from vlprompt.results.published.reference import read_reference
from vlprompt.results.run_scan import read_runs
from vlprompt.runtime.paths import find_configs_folder

B16 = "open_clip:ViT-B-16/openai"
KNOWN = load_reference()
ELEVEN = KNOWN.averaged_datasets["base_to_new"]
TABLE = "PromptKD repository"


def entries(task, method, shots=None):
    found = [e for e in KNOWN.entries if (e.task, e.method) == (task, method)]
    return [e for e in found if shots is None or e.shots == shots]


def table(task, method):
    """{dataset: entry} of the full table of a method."""
    return {e.dataset: e for e in entries(task, method) if e.source.text.startswith((TABLE, "APE repository"))}


def tables_of(task):
    """Each table that has all eleven sets and their average: its title, shots and backbone -> {dataset: entry}."""
    tables = {}
    for e in (e for e in KNOWN.entries if e.task == task and not e.targets):
        tables.setdefault((e.title, e.source.text, e.backbone, e.shots), {})[e.dataset] = e
    return {key: rows for key, rows in tables.items() if {*ELEVEN, "average"} <= set(rows)}


@pytest.mark.parametrize(("task", "n_tables"), [("base_to_new", 13), ("few_shot", 8)])
def test_tables_of_the_eleven_add_up(task, n_tables):
    tables = tables_of(task)
    assert len(tables) == n_tables
    for title, rows in tables.items():
        for name in {"base", "new", "accuracy"} & set(rows["average"].metrics):
            mean = sum(rows[d].metrics[name] for d in ELEVEN) / 11
            assert mean == pytest.approx(rows["average"].metrics[name], abs=0.0061), (title, name)
    others = {e.dataset for e in entries("base_to_new", "promptkd") if e.has_other_harmonic}
    assert others == {"stanford_cars", "ucf101"}


def test_what_a_number_used_beyond_its_shots_is_told(tmp_path):
    """No result of ours had what the published one had, until its protocol says so."""
    config = planned("dtd", "coop", more=["train.precision=fp16"])
    config["method"]["name"] = "promptkd"
    write_run(tmp_path, config, {"base": 85.0, "new": 71.0, "harmonic": 77.0})
    reasons = pairs_of(tmp_path)[0].reasons
    assert {"theirs had a larger teacher", "theirs had unlabelled images of all classes"} <= set(reasons)
    write_run(tmp_path / "too", config, {"base": 85.0, "new": 71.0, "harmonic": 77.0}, uses=["teacher"])
    reasons = pairs_of(tmp_path / "too")[0].reasons
    assert "theirs had a larger teacher" not in reasons
    assert "theirs had unlabelled images of all classes" in reasons


def test_harmonic_means_are_those_of_base_and_new():
    """To the rounding of what is printed: two digits of base, new and the mean itself."""
    whole = [e for e in KNOWN.entries if {"base", "new", "harmonic"} <= set(e.metrics)]
    for e in whole:
        apart = abs(harmonic_mean(e.metrics["base"], e.metrics["new"]) - e.metrics["harmonic"])
        assert (apart > 0.011) == e.has_other_harmonic, (e.title, e.dataset, apart)
    assert len(whole) == 196


def test_transfer_and_few_shot_add_up():
    whole = [e for e in KNOWN.entries if e.targets and set(e.targets) <= set(e.metrics)]
    assert [e.method for e in whole if len(e.targets) == 10] == ["coop", "cocoop", "maple", "promptsrc", "promptkd"]
    assert [e.method for e in whole if len(e.targets) == 4] == [
        *("coop", "cocoop", "maple", "tpt", "tpt+coop", "gda", "tda", "tda", "zero", "mta", "tps"),
    ]
    for e in whole:
        assert sum(e.metrics[t] for t in e.targets) / len(e.targets) == pytest.approx(e.metrics["average"], abs=0.0051)
    coop = {e.dataset: e.metrics["accuracy"] for e in entries("few_shot", "coop", 16) if e.backbone == "RN50/openai"}
    assert sum(coop[d] for d in ELEVEN) / 11 == pytest.approx(coop["average"], abs=0.006)
    tip = [e for e in entries("few_shot", "tip_adapter") if e.backbone == "RN50/openai" and e.arguments["finetune"]]
    assert [e.metrics["accuracy"] for e in tip] == [64.60, 66.65, 69.67, 72.45, 75.83]


def test_weak_evidence_is_told():
    for e in KNOWN.entries:
        weak = any(word in e.source.extraction for word in ("memory", "plot", "not told"))
        assert weak != e.source.is_verified, e
        assert (e.tolerance > 0) == ("plot" in e.source.extraction), e
    sizes = yaml.safe_load((find_configs_folder() / "reference" / "datasets.yaml").read_text())
    assert set(sizes) == {*ELEVEN, "imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"}


def test_the_reference_is_no_task_and_no_recipe(capsys):
    assert not any("reference" in line for line in describe_method("coop"))
    for command in (["list", "tasks"], ["run", "coop", "digits", "--task", "reference"]):
        with pytest.raises(SystemExit):
            main(command)
    printed = capsys.readouterr()
    assert "task: expected a known name, got 'reference'" in printed.err
    assert "reference" not in printed.out


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda held: held | {"backbones": 1}, "unknown key 'backbones'"),
        (lambda held: held | {"published": [{"title": "X", "method": "x", "sorce": "a"}]}, "X: unknown key 'sorce'"),
        (lambda held: held | {"published": [{"title": "X", "method": "x"}]}, "X: the key 'source' is missing. Add it"),
        (
            lambda held: held | {"published": [held["published"][0] | {"source": "b"}]},
            "source: expected one of .*, got 'b'",
        ),
        (
            lambda held: held | {"published": [held["published"][0] | {"rows": {"dtd": [1, 2]}}]},
            "expected rows of accuracy, got 2 numbers",
        ),
        (
            lambda held: held | {"published": [held["published"][0] | {"rows": {"dtd": {"ece": 2}}}]},
            "unknown number 'ece'; there are",
        ),
        (
            lambda held: held | {"published": [held["published"][0] | {"uses": ["techer"]}]},
            "uses: expected some of teacher, .*, got 'techer'. Correct it.",
        ),
        (lambda held: {}, "expected files of published numbers, got none. They are those of configs/reference/"),
    ],
)
def test_a_broken_reference_is_told(tmp_path, change, told):
    held = yaml.safe_load((find_configs_folder() / "reference" / "few_shot.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(change(held)))
    with pytest.raises(ValueError, match=told):
        read_reference(tmp_path)


def write_run(root, config, summary, **changes):
    """A finished run as `vlprompt run` leaves it, with numbers of our choice."""
    trained = 0 if config["method"]["name"] == "zero_shot" else 2048
    protocol = {"dataset": "x", "train": "t", "test": "h", "selection": "last epoch", "split": "literature"} | changes
    cost = {"seconds": 1.0, "trained_parameters": trained, "peak_memory_mb": 1.0}
    told = {"config": config, "scores": [], "summary": summary, "cost": cost, "environment": {}, "protocol": protocol}
    folder = root / f"{len(list(root.glob('*')))}"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "result.json").write_text(json.dumps(told))


def planned(dataset, method="coop", shots=16, seed=1, task="base_to_new", backbone=B16, more=()):
    settings = ["train.precision=fp16", *more]
    return resolve_grid([method], [shots], [seed], dataset=dataset, task=task, backbone=backbone, overrides=settings)[
        0
    ].to_dict()


def pairs_of(root):
    return compare_with_published(read_runs(root)[0])[0]


def test_the_average_is_that_of_the_literature(tmp_path):
    """All eleven with the published numbers, two seeds around them: the average row comes to the published one."""
    rows = table("base_to_new", "coop")
    for dataset in ELEVEN:
        for seed, off in ((1, -1.0), (2, 1.0)):  # seeds so far apart that the mean of their harmonic means is another
            base, new = rows[dataset].metrics["base"] + off, rows[dataset].metrics["new"] - 9 * off
            write_run(tmp_path, planned(dataset, seed=seed), {"base": base, "new": new, "harmonic": 0.0, "joint": 1.0})
    found = pairs_of(tmp_path)
    assert all(not p.reasons for p in found if p.theirs.source.is_verified)
    mean = {p.metric: p for p in found if p.ours.dataset == "average" and p.theirs.source.text.startswith(TABLE)}
    assert {k: round(p.published_value, 2) for k, p in mean.items()} == {"base": 82.69, "new": 63.22, "harmonic": 71.66}
    assert all(abs(p.difference) < 0.01 for p in mean.values())
    assert mean["base"].our_value.std == pytest.approx(1.0)
    assert str(mean["base"].our_value) == "82.7±1.0"
    others = {
        p.theirs.source.text: p.published_value for p in found if p.ours.dataset == "average" and p.metric == "harmonic"
    }
    assert sorted(others.values()) == [71.66, 71.66, 74.60, 74.84, 75.04, 75.18]
    assert len({p.ours.dataset for p in found}) == 12
    shutil.rmtree(tmp_path / "0")
    shutil.rmtree(tmp_path / "1")  # one dataset less: no average
    assert {p.ours.dataset for p in pairs_of(tmp_path)} == set(ELEVEN) - {"imagenet"}


def test_the_average_needs_seeds_in_common_for_a_spread(tmp_path):
    for i, dataset in enumerate(ELEVEN):
        write_run(tmp_path, planned(dataset, task="few_shot", seed=1 + i % 2), {"accuracy": 50.0 + i})
    means = [p for p in pairs_of(tmp_path) if p.ours.dataset == "average"]
    assert {(p.our_value.mean, p.our_value.n) for p in means} == {(55.0, 1)}
    assert all("the datasets were run with different seeds" in p.reasons for p in means)
    [mean] = [p for p in means if not p.theirs.source.is_verified]
    assert "the published number: from memory, not verified" in mean.reasons
    assert not any("backbone" in reason for reason in mean.reasons)  # of two backbones ours is taken


REASONS = {
    "backbone": ({"backbone": "open_clip:ViT-B-32/openai"}, {}, "backbone open_clip:ViT-B-32/openai, theirs ViT-B-16"),
    "a file": ({"backbone": "open_clip:ViT-B-16@x.pt"}, {}, "backbone open_clip:ViT-B-16@x.pt, theirs ViT-B-16"),
    "split": ({}, {"split": "custom"}, "split not the literature's"),
    "selection": ({}, {"selection": "best on val"}, "model chosen by best on val, theirs by last epoch"),
    "precision": ({"more": ["train.precision=fp32"]}, {}, "precision fp32, theirs fp16"),
    "shots": ({"shots": 4}, {}, "4 shots, theirs 16"),
    "method": ({"more": ["method.init_text=null"]}, {}, "other settings than the paper's: method.init_text=null"),
    "train": ({"more": ["train.epochs=9"]}, {}, "other settings than the paper's: train.epochs=9 (theirs 200)"),
    "task": (
        {"more": ["task.base_classes=[a, b]"]},
        {},
        "other settings than the paper's: task.base_classes=['a', 'b']",
    ),
}


@pytest.mark.parametrize("case", REASONS)
def test_what_is_not_comparable_is_told(tmp_path, case):
    plan, protocol, told = REASONS[case]
    write_run(tmp_path / "good", planned("dtd"), {"base": 79.0, "new": 41.0, "harmonic": 54.0})
    assert [p.reasons for p in pairs_of(tmp_path / "good")] == [(), (), ()]
    write_run(tmp_path / "bad", planned("dtd", **plan), {"base": 79.0, "new": 41.0, "harmonic": 54.0}, **protocol)
    found = pairs_of(tmp_path / "bad")
    assert len(found) == 3
    assert all(len(p.reasons) == 1 and p.reasons[0].startswith(told) for p in found), found[0].reasons


def test_what_does_not_matter_is_not_told(tmp_path):
    same = {
        "backbone": "open_clip:ViT-B-16-quickgelu/openai",
        "more": ["train.micro_batch_size=4", "task.skip_broken=true"],
    }
    write_run(tmp_path, planned("dtd", **same), {"base": 79.0, "new": 41.0, "harmonic": 54.0})
    write_run(tmp_path, planned("dtd", "zero_shot", shots=4), {"base": 53.0, "new": 60.0, "harmonic": 56.0})
    assert {p.reasons for p in pairs_of(tmp_path)} == {()}


def test_imagenet_has_its_own_recipe(tmp_path):
    for more in ([], ["train.epochs=200"]):
        write_run(tmp_path, planned("imagenet", more=more), {"base": 76.0, "new": 68.0, "harmonic": 71.8})
    told = {p.ours.config["train"]["epochs"]: p.reasons for p in pairs_of(tmp_path)}
    assert told == {50: (), 200: ("other settings than the paper's: train.epochs=200 (theirs 50)",)}


@pytest.mark.parametrize(("finetune", "theirs"), [("false", 70.32), ("true", 75.83)])
def test_variants_of_a_method_are_told_apart(tmp_path, finetune, theirs):
    for dataset in ELEVEN:
        more, rn50 = [f"method.finetune={finetune}"], "open_clip:RN50/openai"
        write_run(
            tmp_path, planned(dataset, "tip_adapter", task="few_shot", backbone=rn50, more=more), {"accuracy": 70.0}
        )
    [mean] = pairs_of(tmp_path)
    assert mean.published_value == theirs
    assert [reason[:15] for reason in mean.reasons] == ["model chosen by"]  # theirs looked at the test images


def test_seeds_that_were_tested_on_other_images(tmp_path):
    for seed in (1, 2):
        numbers = {"base": 79.0, "new": 41.0, "harmonic": 54.0}
        write_run(tmp_path, planned("dtd", seed=seed), numbers, test=f"hash {seed}")
    assert pairs_of(tmp_path)[0].reasons == ("not all seeds were tested on the same images of dtd",)


def test_transfer(tmp_path):
    """One run on ImageNet may be tested on the ten targets and the four other ImageNets; each average is its own."""
    [coop] = [e for e in entries("transfer", "coop", 16) if len(e.targets) == 10 and "caltech101" in e.metrics]
    [shift] = [e for e in entries("transfer", "coop", 16) if "imagenet_a" in e.metrics]
    targets = [*coop.targets, *shift.targets]
    config = planned("imagenet", task="transfer", more=[f"task.targets={json.dumps(targets)}"])
    numbers = {"source": 70.0, "average": 1.0} | {t: (coop.metrics | shift.metrics)[t] + 1.0 for t in targets}
    write_run(tmp_path, config, numbers)
    found = {(p.theirs.source.text, p.metric): p for p in pairs_of(tmp_path)}
    assert found[coop.source.text, "average"].difference == pytest.approx(1.0, abs=0.006)
    assert found[shift.source.text, "average"].difference == pytest.approx(1.0, abs=0.006)
    assert found[coop.source.text, "eurosat"].difference == pytest.approx(1.0)
    assert found[coop.source.text, "source"].difference == pytest.approx(70.0 - 71.51)
    assert found["DePT's re-run", "average"].published_value == 64.40
    assert {p.reasons for p in found.values()} == {()}
    config["task"]["targets"] = ["eurosat"]
    write_run(tmp_path / "few", config, {"source": 70.0, "eurosat": 45.0, "average": 45.0})
    assert {p.metric for p in pairs_of(tmp_path / "few")} == {"source", "eurosat"}


def test_table_against_published(type_in, tmp_path, pictures, monkeypatch):
    """Real runs: digits have no counterpart, a folder called eurosat has one that it can't be compared with."""
    shutil.copytree(pictures, tmp_path / "eurosat")
    for dataset, method in (("digits", "zero_shot"), (str(tmp_path / "eurosat"), "zero_shot,coop")):
        words = ["--backbone", "glyph/random", "--shots", "2", "--seed", "1,2", "train.epochs=1"]
        assert type_in("run", method, dataset, *words)[0] == 0
    files = ["--markdown", "m.md", "--csv", "c.csv", "--json", "j.json"]
    code, text = type_in("table", "runs", "--against", "published", *files)
    assert code == 0
    assert "few_shot with glyph/random, against published" in text
    assert "1 numbers have a published counterpart, 0 of them comparable" in text
    assert "nothing published for: zero_shot (few_shot on digits), zero_shot (few_shot on eurosat)" in text
    [row] = json.loads((tmp_path / "j.json").read_text())
    assert (row["method"], row["dataset"], row["metric"], row["published"]) == ("coop", "eurosat", "accuracy", 83.27)
    assert row["difference"] == pytest.approx(row["ours"] - 83.27)
    assert row["n"] == 2
    assert not row["comparable"]
    told = ["backbone glyph/random", "split not the", "2 shots, theirs 16", "precision fp32", "other settings than"]
    assert [a[: len(b)] for a, b in zip(row["reasons"], told, strict=True)] == told
    with (tmp_path / "c.csv").open() as file:
        [line] = csv.DictReader(file)
    assert float(line["ours"]) == pytest.approx(row["ours"])
    assert line["reasons"] == "; ".join(row["reasons"])
    markdown = (tmp_path / "m.md").read_text()
    assert f"| eurosat | coop | 2 | accuracy | {row['ours']:.1f}±" in markdown
    assert "- a: backbone glyph/random, theirs RN50/openai" in markdown
    assert "- source 1: APE repository" in markdown
    assert text.count("83.27") == 1
    code, text = type_in("table", "runs", "--against", "puplished")
    assert code == 2
    assert "--against: expected published, got 'puplished'; did you mean 'published'?" in text
    assert "the choices are published" in type_in("table", "runs", "--against", "x")[1]
    assert "against published" not in type_in("table", "runs")[1]
    monkeypatch.setenv("COLUMNS", "40")  # nothing is cut off where the terminal is narrow
    assert f"eurosat coop 2 accuracy {row['ours']:.1f}±" in type_in("table", "runs", "--against", "published")[1]
    (tmp_path / "empty").mkdir()
    assert "there is nothing to compare" in type_in("table", "empty", "--against", "published", "--json", "e.json")[1]
    assert json.loads((tmp_path / "e.json").read_text()) == []


def test_a_method_around_another_is_compared_with_the_number_of_both(tmp_path):
    """What it wraps is a name in the reference, and settings in a result."""
    numbers = {"base": 83.0, "new": 73.0, "harmonic": 77.7}
    for method, inner, title in [
        ("dept", ["kgcoop", "coop"], "DePT on KgCoOp"),
        ("atprompt", ["maple"], "ATPrompt on MaPLe"),
        ("atprompt", ["coop"], "ATPrompt on CoOp"),
    ]:
        settings = [f"method.{'method.' * i}method={name}" for i, name in enumerate(inner)]
        write_run(tmp_path / title, planned("dtd", method, more=settings), numbers)
        assert {p.theirs.title for p in pairs_of(tmp_path / title)} == {title}
    for dataset in ELEVEN:
        more = ["method.method=atprompt", "method.method.method=coop"]
        write_run(tmp_path / "both", planned(dataset, "dept", more=more), numbers)
    assert {p.theirs.title for p in pairs_of(tmp_path / "both")} == {"ATPrompt on CoOp in DePT"}


def test_an_average_is_of_one_method_around_one_other(tmp_path):
    for i, dataset in enumerate(ELEVEN):
        inner = "coop" if i < 6 else "maple"
        write_run(tmp_path, planned(dataset, "dept", more=[f"method.method={inner}"]), {"base": 1.0, "new": 1.0})
    assert not [p for p in pairs_of(tmp_path) if p.ours.dataset == "average"]
