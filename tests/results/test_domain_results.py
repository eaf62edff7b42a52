"""What comes of domains: tables over pairs where an oracle is marked, plots, and our numbers beside published ones."""

import csv
import json
import statistics
from dataclasses import replace
from itertools import permutations

import matplotlib as mpl
import pytest
import yaml
from shared import keep

from vlprompt.experiments.paper_recipes import load_reference
from vlprompt.results.comparability import get_domain_pair
from vlprompt.results.plots.all_plots import draw_all_plots
from vlprompt.results.plots.domains import build_pair_figures, build_pseudo_label_figures
from vlprompt.results.plots.figure import draw_figure
from vlprompt.results.published.compare import compare_results
from vlprompt.results.published.reference import read_reference
from vlprompt.results.run_folder import Result
from vlprompt.results.tables.all_tables import build_tables, render_results
from vlprompt.results.tables.summary import build_rows
from vlprompt.runtime.paths import find_configs_folder

mpl.use("Agg")
HOME = ("Art", "Clipart", "Product", "Real World")
PAIRS = list(permutations(HOME, 2))
CHOICES = {"last": "last epoch", "val": "best epoch on validation images",
           "oracle": "best epoch on the target's test labels (an oracle)"}  # fmt: skip


def domain(method="dapl", source="Art", target="Clipart", seed=1, at=60.0, pseudo=True, **changes):
    """A result in the format of the task domain, at `at` + its seed, 5 above zero-shot; the second epoch is best."""
    sources = [source] if isinstance(source, str) else list(source)
    task = {
        "name": "domain",
        "dataset": "office_home",
        "source": source,
        "target": target,
        "setting": "adapt",
        "transductive": None,
        "val_fraction": 0.1,
        "classes": None,
        "shots": None,
        "seed": seed,
        "epoch_metrics": True,
        "augment": None,
        "skip_broken": False,
    }
    protocol = {"dataset": "office_home", "sources": sources, "target": target, "setting": "adapt",
                "transductive": True, "train": "t", "test": f"h-{target}", "split": "literature", "classes": 65,
                "template": "a photo of a {name}.", "zero_shot_template": "a photo of a {name}.", "augment": "none",
                "backbone_key": "w", "metrics": {"accuracy": "of the target's test"}}  # fmt: skip
    train = {"lr": 0.1, "model_selection": "last", "precision": "fp32"}
    config = {"backbone": "glyph", "method": {"name": method}, "task": task, "train": train, "seed": seed}
    for key, value in changes.items():
        part = task if key in task else train if key in train else config if key in config else config["method"]
        (protocol if key in protocol and key not in ("sources", "target") else part)[key] = value
        if key in task and key in protocol:
            task[key] = value
    if "->" in protocol["dataset"]:  # two datasets, which the task names as source and target
        task["dataset"] = None
    protocol["selection"] = CHOICES[train["model_selection"]]
    top = at + seed
    summary = {"accuracy": top, "class_mean": top - 1, "source": 90.0, "zero_shot": top - 5, "gain": 5.0}
    scores = {"target": {"accuracy": top, "class_mean": top - 1}, "source": {"accuracy": 90.0},
              "zero_shot": {"accuracy": top - 5}}  # fmt: skip
    rules = {"last": top, "val": top - 2, "entropy": top - 1, "oracle": top + 2}
    epochs = [{"epoch": e + 1, "step": 10 * e, "val": 80.0 + e, "entropy": -1.0 / (e + 1),
               "target": top + d} for e, d in enumerate((-2.0, 2.0, 0.0))]  # fmt: skip
    if pseudo:
        summary |= {"coverage": 70.0 + seed, "precision": 85.0}
        scores["pseudo_labels"] = {"coverage": 70.0 + seed, "precision": 85.0}
        rules["agreement"] = top
        for e, told in enumerate(epochs):
            told |= {"coverage": 50.0 + 10 * e + seed, "precision": 90.0 - 2 * e, "agreement": 80.0}
    if method == "zero_shot":
        rules, epochs, summary["gain"] = {}, [], 0.0
    scores |= {"rules": rules} if rules else {}
    cost = {"seconds": 2.0, "trained_parameters": 0 if method == "zero_shot" else 300, "trained_percent": 0.5,
            "peak_memory_mb": 900.0, "stored_bytes": 1200}  # fmt: skip
    return Result(config, [scores], summary, cost, {}, protocol, [], [{"parameters": 300, "epochs": epochs}])


def home(method="dapl", pairs=PAIRS, seeds=(1, 2, 3), **changes):
    """A method on pairs of Office-Home; each next pair is one point better."""
    at = changes.pop("at", 60.0)
    return [domain(method, s, t, seed, at=at + PAIRS.index((s, t)), **changes) for s, t in pairs for seed in seeds]


def cells(grid):
    return {line[0]: dict(zip(grid.header, line, strict=True)) for line in grid.rows}


def test_pairs_are_columns_and_their_mean_is_over_seeds():
    pairs, means, rules = build_tables(build_rows([*home(), *home("zero_shot", pseudo=False, at=50.0)]))
    assert pairs.title == "domain on office_home, adapt, glyph: accuracy on the target's test"
    assert pairs.header == ["method", "A -> C", "A -> P", "A -> R", "C -> A", "C -> P", "C -> R", "P -> A", "P -> C",
                          "P -> R", "R -> A", "R -> C", "R -> P", "mean"]  # fmt: skip
    assert [line[0] for line in pairs.rows] == ["zero_shot", "dapl"]
    assert cells(pairs)["dapl"]["A -> C"] == "62.0±0.8"
    assert cells(pairs)["dapl"]["R -> P"] == "73.0±0.8"
    assert cells(pairs)["dapl"]["mean"] == "67.5±0.8"  # 60 + 5.5 + 2; of the means of the seeds, not of 36 numbers
    assert pairs.footnotes == ("domains: A = Art, C = Clipart, P = Product, R = Real World",
                           "mean: over the 12 pairs for each seed, then over seeds")  # fmt: skip
    assert means.header == ["method", "accuracy", "class mean", "source", "zero shot", "gain", "coverage", "precision",
                          "n", "trained", "%", "s", "MB"]  # fmt: skip
    assert means.rows[1][1:9] == [
        "67.5±0.8",
        "66.5±0.8",
        "90.0±0.0",
        "62.5±0.8",
        "5.0±0.0",
        "72.0±0.8",
        "85.0±0.0",
        "3",
    ]
    assert (cells(means)["zero_shot"]["coverage"], cells(means)["zero_shot"]["gain"]) == ("", "0.0±0.0")
    assert rules.header == ["method", "last", "val", "entropy", "agreement", "oracle*"]
    assert rules.rows == [["dapl", "67.5±0.8", "65.5±0.8", "66.5±0.8", "67.5±0.8", "69.5±0.8"]]
    assert any("looks at the target's labels" in note for note in rules.footnotes)


def test_a_missing_pair_empties_the_mean_and_is_named():
    pairs, means, _ = build_tables(build_rows([*home(), *home("coop", pairs=PAIRS[:-2])]))
    assert cells(pairs)["coop"]["A -> C"] == "62.0±0.8"
    assert (cells(pairs)["coop"]["mean"], cells(pairs)["coop"]["R -> P"]) == ("", "")
    assert cells(means)["coop"]["accuracy"] == ""
    told = "no mean for coop: no finished run of R -> C, R -> P"
    assert told in pairs.footnotes
    assert told in means.footnotes


def test_pairs_of_other_seeds_have_no_spread():
    some = [*home(pairs=PAIRS[:11]), *home(pairs=PAIRS[11:], seeds=(1,))]
    assert cells(build_tables(build_rows(some))[0])["dapl"]["mean"] == "67.4"


def test_a_number_that_one_seed_lacks_has_no_mean():
    some = home()
    del some[5].summary["source"]
    means = cells(build_tables(build_rows(some))[1])["dapl"]
    assert (means["source"], means["accuracy"]) == ("", "67.5±0.8")


def test_no_row_is_lost_where_nothing_tells_two_apart():
    some = [*home(seeds=(1,)), *home(seeds=(1,), at=70)]
    for r in some[12:]:
        r.config["task"]["dataset"] = "elsewhere/office_home"
    assert [(line[0], line[-1]) for line in build_tables(build_rows(some))[0].rows] == [
        ("dapl", "66.5"),
        ("dapl", "76.5"),
    ]


def opened(result, known=60.0, unknown=40.0):
    """The result of a target with unknown classes."""
    scores = {"known": known, "unknown": unknown, "h_score": 2 * known * unknown / (known + unknown)}
    task = {**result.config["task"], "unknown_classes": ["a"]}
    return replace(result, summary={**result.summary, **scores}, config={**result.config, "task": task})


def test_targets_with_unknown_classes_have_columns_of_their_own():
    *pairs, means, _ = build_tables(build_rows([*map(opened, home(seeds=(1, 2))), *home("coop", seeds=(1, 2))]))
    assert [table.title.partition(": ")[2] for table in pairs] == [
        "accuracy on the target's test",
        "H-score on the target's test",
    ]
    assert cells(pairs[1])["dapl"]["A -> C"] == "48.0±0.0"
    assert (cells(pairs[1])["dapl"]["mean"], cells(pairs[1])["coop"]["mean"]) == ("48.0±0.0", "")
    columns = ["known", "unknown", "h score"]
    first = means.header.index("precision") + 1
    assert means.header[first : first + 3] == columns
    assert [cells(means)["dapl"][k] for k in columns] == ["60.0±0.0", "40.0±0.0", "48.0±0.0"]
    assert [cells(means)["coop"][k] for k in columns] == ["", "", ""]
    [record] = json.loads(render_results(build_rows([opened(domain())]), "json"))
    assert (record["known"], record["unknown"], record["h_score"]) == (60, 40, pytest.approx(48))


def test_an_oracle_is_marked_in_every_table_and_form():
    found = build_rows(
        [*home("coop"), *home("coop", model_selection="oracle"), *home("maple", model_selection="oracle")]
    )
    for grid in build_tables(found):
        assert [line[0] for line in grid.rows] == [
            "coop (model_selection=last)",
            "coop (model_selection=oracle)*",
            "maple*",
        ]
        assert "protocol" not in grid.header  # the star tells it; no letter does so again
        assert any(note.startswith("*: an oracle") for note in grid.footnotes)
    assert "| maple* |" in render_results(found, "markdown")
    told = json.loads(render_results(found, "json"))
    assert {(r["method"], r["variant"], r["is_oracle"]) for r in told} == {
        ("coop", "model_selection=last", False),
        ("coop", "model_selection=oracle", True),
        ("maple", "", True),
    }
    flat = list(csv.DictReader(render_results(found, "csv").splitlines()))
    assert {(r["method"], r["is_oracle"]) for r in flat} == {("coop", "False"), ("coop", "True"), ("maple", "True")}


def test_no_star_without_an_oracle():
    pairs, means, _ = build_tables(build_rows([*home("coop"), *home("coop", model_selection="val")]))
    assert [line[0] for line in pairs.rows] == ["coop (model_selection=last)", "coop (model_selection=val)"]
    assert not any(note.startswith("*") for grid in (pairs, means) for note in grid.footnotes)


@pytest.mark.slow
def test_a_narrow_terminal_cuts_no_number(type_all, tmp_path, monkeypatch):
    keep(tmp_path / "runs", *(r for i in range(9) for r in home(f"method{i}", seeds=(1, 2), pseudo=False)))
    monkeypatch.setenv("COLUMNS", "60")
    text = type_all("table", "runs")[2]
    assert "…" not in text
    assert sum(line.split() == ["R", "->", "P", *["72.5±0.5"] * 9] for line in text.splitlines()) == 1
    assert "(gain, n, trained, %, s, MB: in a wider terminal, or by --markdown)" in " ".join(text.split())


PROTOCOLS = {
    "transductive": ({"transductive": False}, "transductive=false"),
    "classes": ({"classes": "shared"}, "task.classes=shared (others all)"),
    "val": ({"val_fraction": 0.2}, "task.val_fraction=0.2 (others 0.1)"),
    "shots": ({"shots": 8}, "task.shots=8 (others all)"),
    "template": ({"zero_shot_template": "a {name}."}, "zero_shot_template a {name}. (others a photo of a {name}.)"),
    "selection": ({"model_selection": "val"}, "selection best epoch on validation images (others last epoch)"),
    "test": ({"test": "other"}, "other test images of the target"),
}


@pytest.mark.parametrize("case", PROTOCOLS)
def test_a_protocol_that_differs_gets_one_letter_for_all_pairs(case):
    changes, told = PROTOCOLS[case]
    some = [*home("a"), *home("b"), *home("odd", **changes)]
    for grid in build_tables(build_rows(some)):
        assert [line[:2] for line in grid.rows] == [["a", ""], ["b", ""], ["odd", "a"]]
        assert grid.footnotes[0] == f"a: {told}"
    flat = list(csv.DictReader(render_results(build_rows(some), "csv").splitlines()))
    assert {(r["method"], r["protocol"], r["differs"]) for r in flat} == {
        ("a", "", ""), ("b", "", ""), ("odd", "a", told)}  # fmt: skip


def test_what_differs_on_some_pairs_says_on_which():
    some = [*home("a"), *home("b"), *home("odd", pairs=PAIRS[1:]), *home("odd", pairs=PAIRS[:1], test="g")]
    assert build_tables(build_rows(some))[0].footnotes[0] == "a: other test images of the target on A -> C"
    assert not [
        n
        for n in build_tables(build_rows([*home("a"), *home("zero_shot", model_selection="val")]))[0].footnotes
        if n[:2] == "a:"
    ]


def test_rows_of_one_method_are_told_apart_but_not_by_their_pair():
    some = [*home(tau=0.5), *home(tau=0.6), *home("coop"), *home(shots=4, tau=0.5)]
    lines = [line[0] for line in build_tables(build_rows(some))[0].rows]
    assert lines == ["coop", "dapl (tau=0.5)", "dapl (tau=0.5, shots=4)", "dapl (tau=0.6)"]
    assert all(cell for line in build_tables(build_rows(some))[0].rows for cell in (line[0], *line[2:]))


def test_every_setting_has_tables_of_its_own():
    rest = lambda target: [d for d in HOME if d != target]  # noqa: E731
    some = [domain(source=rest(t), target=t) for t in HOME]
    some += [domain(source=rest(t), target=t, setting="generalise", pseudo=False) for t in HOME]
    some += [domain(), domain(setting="source_free"), domain(dataset="office_31")]
    made = build_tables(build_rows(some))
    assert list(dict.fromkeys(g.title.split(": ")[0] for g in made)) == [
        "domain on office_31, adapt, Art -> Clipart, glyph",
        "domain on office_home, adapt, Art -> Clipart, glyph",
        "domain on office_home, adapt, several sources, glyph",
        "domain on office_home, generalise, several sources, glyph",
        "domain on office_home, source-free, Art -> Clipart, glyph",
    ]
    several = next(g for g in made if "several" in g.title)
    assert several.header == ["method", *HOME, "mean"]
    assert made[0].header[:2] == ["method", "accuracy"]  # one pair has no table of pairs


def test_letters_that_are_not_clear_are_whole_names():
    some = [domain(source=s, target=t) for s, t in permutations(("clipart", "cartoon", "photo"), 2)]
    assert build_tables(build_rows(some))[0].header[1:3] == ["cartoon -> clipart", "cartoon -> photo"]
    two = [domain(source="Art", target=["Clipart", "Product"][i], seed=1) for i in (0, 1)]
    assert build_tables(build_rows(two))[0].header == ["method", "Art -> Clipart", "Art -> Product", "mean"]


def test_two_datasets_are_a_dataset_of_their_own():
    some = [domain(source="glyphs", target="digits", dataset="glyphs -> digits", seed=s) for s in (1, 2)]
    means, rules = build_tables(build_rows(some))
    assert means.title == "domain on glyphs -> digits, adapt, glyph: numbers of the target"
    assert means.rows[0][:2] == ["dapl", "61.5±0.5"]
    assert rules.title.startswith("domain on glyphs -> digits, adapt, glyph: which epoch")


def test_every_form_has_pairs_and_their_mean(type_all, tmp_path, monkeypatch):
    keep(tmp_path / "runs", *home(), *home("coop", pairs=PAIRS[:-1], pseudo=False))
    monkeypatch.setenv("COLUMNS", "80")
    code, _, text = type_all("table", "runs", "--markdown", "t.md", "--csv", "t.csv", "--json", "t.json")
    assert code == 0
    lines = [line.strip() for line in text.splitlines()]
    assert any(line.split() == ["R", "->", "P", "73.0±0.8"] for line in lines)  # turned: too narrow for twelve columns
    assert "domains: A = Art, C = Clipart, P = Product, R = Real World" in lines
    assert any(line.split()[:2] == ["mean", "67.5±0.8"] for line in lines)
    assert (tmp_path / "t.md").read_text().count("| dapl |") == 3
    told = json.loads((tmp_path / "t.json").read_text())
    first = next(r for r in told if r["method"] == "dapl")
    assert (first["source_domain"], first["target_domain"], first["setting"]) == ("Art", "Clipart", "adapt")
    assert (first["accuracy"], first["rule_oracle"]) == (pytest.approx(62), pytest.approx(64))
    assert [r["epochs"][0]["precision"] for r in first["runs"]] == [90.0] * 3
    means = {r["method"]: r for r in told if r["target_domain"] == "mean"}
    assert means["dapl"]["accuracy"] == pytest.approx(67.5)
    assert (means["coop"]["accuracy"], means["coop"]["missing"]) == (None, "Real World -> Product")
    with (tmp_path / "t.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 12 + 11 + 2


def test_pseudo_labels_over_epochs():
    rows = build_rows([*home(), *home("zero_shot", pseudo=False), *home("upl", model_selection="oracle")])
    figures = build_pseudo_label_figures(rows)
    titles = ["dapl, mean over 12 pairs", "upl*, mean over 12 pairs"]
    assert [f.title for f in figures] == [f"{title}: mean and spread over 3 seeds" for title in titles]
    traces = {trace["name"]: trace for trace in figures[0].interactive["data"]}
    assert {name: trace["y"] for name, trace in traces.items()} == {
        "pseudo-labelled (coverage)": pytest.approx([52.0, 62.0, 72.0]),
        "right among these (precision)": pytest.approx([90.0, 88.0, 86.0]),
        "accuracy": pytest.approx([65.5, 69.5, 67.5]),  # 60 + 5.5 + 2 at the end
        "zero-shot accuracy": pytest.approx([62.5, 62.5]),
    }
    assert traces["accuracy"]["error_y"]["array"] == pytest.approx([(2 / 3) ** 0.5] * 3, abs=1e-4)
    assert ["an oracle" in f.description for f in figures] == [False, True]


def test_few_pairs_have_a_figure_each():
    figures = build_pseudo_label_figures(
        build_rows([*home(pairs=PAIRS[:2]), domain(source="glyphs", target="digits", dataset="glyphs -> digits")])
    )
    assert [f.title.partition(":")[0] for f in figures] == [
        "dapl glyphs -> digits, adapt",
        "dapl, Art -> Clipart office_home, adapt",
        "dapl, Art -> Product office_home, adapt",
    ]


def test_every_method_on_every_pair():
    rows = build_rows([*home(pairs=PAIRS[:3]), *home("zero_shot", pairs=PAIRS[:2], at=55, pseudo=False)])
    [figure] = build_pair_figures(rows)  # one source has no matrix of sources and targets
    assert figure.table.header == ["method", "A -> C", "A -> P", "A -> R", "mean"]
    assert figure.table.rows == [
        ["zero_shot", "57.0", "58.0", "", ""],
        ["dapl", "62.0", "63.0", "64.0", "63.0"],
    ]
    axes = draw_figure(figure)
    assert [t.get_text() for t in axes.texts if t.get_text() and "." in t.get_text()] == [
        cell for cells in figure.table.rows for cell in cells[1:] if cell
    ]
    assert axes.get_xlabel() == "source -> target (A = Art, C = Clipart, P = Product, R = Real World)"
    assert axes.images[0].get_array().tolist() == [[0, 0, None, None], [5, 5, 5, 5]]
    assert figure.interactive["data"][0]["z"] == [[0, 0, None, None], [5, 5, 5, 5]]
    without = home(pairs=PAIRS[:3])
    for r in without:
        del r.summary["gain"], r.summary["zero_shot"]
    [figure] = build_pair_figures(build_rows(without))
    assert "The colour is the accuracy, %." in figure.description
    assert figure.interactive["data"][0]["z"] == [[62, 63, 64, 63]]


def test_every_source_on_every_target():
    figures = build_pair_figures(build_rows(home()))
    assert [f.name for f in figures] == ["pairs-office_home-adapt", "pairs-office_home-adapt-dapl"]
    table = figures[1].table
    assert table.header == ["source", "Art", "Clipart", "Product", "Real World"]
    assert [line[i + 1] for i, line in enumerate(table.rows)] == [""] * 4  # no domain is a target of its own
    by_pair = {get_domain_pair(r): [] for r in home()}
    for r in home():
        by_pair[get_domain_pair(r)].append(r.summary["accuracy"])
    for source, *cells in table.rows:
        for target, cell in zip(table.header[1:], cells, strict=True):
            if cell:
                assert float(cell) == pytest.approx(statistics.fmean(by_pair[(source,), target]), abs=0.051)


def test_plot_draws_what_there_is(type_in, tmp_path):
    keep(tmp_path / "runs", *home(seeds=(1,), pairs=PAIRS[:2]))
    assert type_in("plot", "runs") == (0, "wrote runs/pseudo.png wrote runs/pairs.png")
    assert (tmp_path / "runs" / "pairs.png").read_bytes()[:4] == b"\x89PNG"
    keep(tmp_path / "coop", *home("coop", pairs=PAIRS[:1], pseudo=False, shots=4))  # and yet no few-shot run
    assert type_in("plot", "coop", "--figure", "my.png")[1] == "wrote my.png"
    assert build_pseudo_label_figures(build_rows(home("coop", pseudo=False))) == []
    with pytest.raises(ValueError, match="expected few-shot runs, got none"):
        draw_all_plots([], tmp_path)


KNOWN = load_reference()
DOMAINS = [e for e in KNOWN.entries if e.task == "domain"]
B16 = "open_clip:ViT-B-16/openai"


def set_beside(results, title):
    """Pairs with the numbers of one title, by a recipe that our settings always agree with."""
    found, _ = compare_results(results, KNOWN, lambda ours, theirs: ours.config)
    return [p for p in found if p.theirs.title == title]


def test_published_domains_have_their_protocol():
    own = {(e.dataset, e.backbone): e for e in DOMAINS if e.title == "DAPL"}
    assert {k: e.metrics for k, e in own.items()} == {
        ("office_home", "ViT-B-16/openai"): {"accuracy": 84.4}, ("office_home", "RN50/openai"): {"accuracy": 74.5},
        ("visda2017", "ViT-B-16/openai"): {"class_mean": 89.8}, ("visda2017", "RN101/openai"): {"class_mean": 86.9},
        ("mini_domainnet", "ViT-B-16/openai"): {"accuracy": 85.8},
        ("mini_domainnet", "RN50/openai"): {"accuracy": 74.8},
    }  # fmt: skip
    assert all("the epoch is chosen by the target's test labels" in e.protocol["defects"] for e in own.values())
    assert {e.dataset: e.protocol["pairs"] for e in DOMAINS} == {
        "office_home": 12, "office31": 6, "visda2017": 1, "mini_domainnet": 12}  # fmt: skip
    again = {(e.method, e.dataset): e.metrics for e in DOMAINS if "PDA" in e.title}
    assert again["dapl", "office31"] == {"accuracy": 81.2}
    assert again["coop", "visda2017"] == {"class_mean": 82.7}


def test_our_mean_over_pairs_is_set_beside_theirs():
    [pair] = set_beside(home("zero_shot", backbone=B16, pseudo=False), "CLIP by PDA's authors")
    assert (pair.metric, pair.published_value, pair.reasons) == ("accuracy", 82.1, ())
    assert str(pair.our_value) == "67.5±0.8"
    visda = {"dataset": "visda2017", "source": "synthetic", "target": "real", "backbone": B16}
    [pair] = set_beside([domain("zero_shot", **visda)], "CLIP by DAPL's authors")
    assert (pair.metric, pair.our_value.mean, pair.published_value) == ("class_mean", 60.0, 88.7)


DEFECTS = (
    "theirs: the epoch is chosen by the target's test labels",
    "theirs: the learning rate goes up and down every 50 steps: a schedule of epochs is stepped by batches",
)
SAME = {"backbone": B16, "val_fraction": 0, "precision": "fp16", "model_selection": "oracle"}
REASONS = {
    "pairs": ({"pairs": PAIRS[:3]}, "mean over 3 pairs, theirs over 12"),
    "val": ({"val_fraction": 0.1}, "0.1 of the source images held out, theirs 0"),
    "weights": (
        {"backbone": "open_clip:ViT-B-16/laion2b"},
        "backbone open_clip:ViT-B-16/laion2b, theirs ViT-B-16/openai",
    ),
    "selection": (
        {"model_selection": "last"},
        "model chosen by last epoch, theirs by best epoch on the target's test labels (an oracle)",
    ),
    "test": (
        {"transductive": False},
        "tested on other images than it adapts to, theirs tested on the images it adapts to",
    ),
    "shots": ({"shots": 8}, "8 shots, theirs all"),
    "split": ({"split": "custom"}, "split not the literature's"),
}


@pytest.mark.parametrize("case", REASONS)
def test_every_difference_from_a_published_protocol_is_a_reason(case):
    changes, told = REASONS[case]
    same = [p for p in set_beside(home(**SAME), "DAPL") if p.theirs.backbone == "ViT-B-16/openai"]
    assert [p.reasons for p in same] == [DEFECTS]
    odd = [p for p in set_beside(home(**SAME | changes), "DAPL") if p.theirs.backbone == "ViT-B-16/openai"]
    assert [set(p.reasons) - set(DEFECTS) for p in odd] == [{told}]


def test_what_is_not_told_of_theirs_is_a_reason():
    [pair] = set_beside(home("coop", **SAME | {"model_selection": "last"}, pseudo=False), "CoOp by PDA's authors")
    assert pair.reasons == ("not told of theirs: selection",)
    mini = {"dataset": "mini_domainnet", "backbone": B16}
    [pair] = set_beside(home("zero_shot", **mini), "CLIP by DAPL's authors")
    assert pair.reasons == ("not told of theirs: transductive",)


def test_other_settings_have_no_counterpart():
    for changes in ({"setting": "source_free"}, {"setting": "generalise"}):
        assert not set_beside(home(**SAME | changes), "DAPL")
    assert not set_beside([domain(source=HOME[:3], target=HOME[3], **SAME)], "DAPL")
    two = domain(source="glyphs", target="digits", dataset="glyphs -> digits")
    alone = compare_results([two], KNOWN, lambda ours, theirs: ours.config)[1]
    assert [o.dataset for o in alone] == ["glyphs -> digits"]
    back = domain(source="digits", target="glyphs", dataset="digits -> glyphs")
    alone = compare_results([two, back], KNOWN, lambda ours, theirs: ours.config)[1]
    assert [len(o.members) for o in alone] == [1, 1]


def test_what_the_protocol_speaks_of_is_no_other_setting():
    """The recipe knows no pair; what the protocol does not speak of stays a reason."""
    for more, other in (
        ({"source": None, "target": None, "val_fraction": 0, "transductive": True}, False),
        ({"augment": "x"}, True),
    ):
        recipe = lambda ours, _, more=more: ours.config | {"task": ours.config["task"] | more}  # noqa: E731
        found = compare_results(home(**SAME), KNOWN, recipe)[0]
        assert found
        assert all(any(r.startswith("other settings") for r in p.reasons) == other for p in found), more


def test_pairs_of_other_seeds_are_told_and_counted_where_they_agree():
    some = [*home(pairs=PAIRS[:11], **SAME), *home(pairs=PAIRS[11:], seeds=(1,), **SAME)]
    pair = next(p for p in set_beside(some, "DAPL") if p.theirs.backbone == "ViT-B-16/openai")
    assert "the pairs were run with different seeds" in pair.reasons
    assert (pair.our_value.mean, pair.our_value.n) == (pytest.approx(66.5), 1)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"stages": 3}, "protocol: unknown key 'stages'; "),
        ({"setting": "few"}, "protocol.setting: expected one of .*, got 'few'"),
        ({"sources": 1}, "protocol.sources: expected .*, got 1"),
        ({"transductive": "yes"}, "protocol.transductive: expected .*, got 'yes'"),
        ({"pairs": None}, "protocol.pairs: expected .*, got None"),
        ({"val_fraction": 2}, "protocol.val_fraction: expected .*, got 2"),
        ({"defects": "none"}, "protocol.defects: expected .*, got 'none'"),
        (None, "protocol: the key 'defects' is missing. Write null"),
    ],
)
def test_a_broken_protocol_is_told(tmp_path, change, told):
    held = yaml.safe_load((find_configs_folder() / "reference" / "domains.yaml").read_text())
    held["published"] = held["published"][:1]
    held["protocol"] = {} if change is None else held["protocol"] | change
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(held))
    with pytest.raises(ValueError, match=told):
        read_reference(tmp_path)


def test_domains_against_published(type_in, tmp_path):
    keep(tmp_path / "runs", *home("coop", backbone=B16, model_selection="oracle"), *home("upl", backbone=B16))
    code, text = type_in("table", "runs", "--against", "published", "--json", "j.json", "--markdown", "m.md")
    assert code == 0
    assert "office_home (12 pairs) coop* all accuracy 67.5±0.8 83.90 -16.4 [1]" in text
    assert "nothing published for: upl (domain on office_home)" in text
    assert "- *: an oracle" in (tmp_path / "m.md").read_text()
    [row] = json.loads((tmp_path / "j.json").read_text())
    assert (row["is_oracle"], row["comparable"], row["published"]) == (True, False, 83.9)


def test_a_mean_never_mixes_settings():
    some = [r for r in home("coop") if r.config["task"]["target"] == "Art"]
    others = [r for r in home("coop") if r.config["task"]["target"] != "Art"]
    for r in others:
        r.config["train"]["epochs"] = 3
    first = build_tables(build_rows([*some, *others]))[0]
    assert len({line[0] for line in first.rows}) == 2
    assert any("epochs=3" in line[0] for line in first.rows)
    assert all(line[-1] == "" for line in first.rows)  # neither has all pairs


def test_a_seed_that_one_pair_lacks_is_told():
    some = home("coop")
    gone = next(r for r in some if r.config["seed"] == 2)
    first = build_tables(build_rows([r for r in some if r is not gone]))[0]
    assert any("unequal seeds" in note and note.endswith(" 2") for note in first.footnotes)
    assert not any("unequal seeds" in note for note in build_tables(build_rows(some))[0].footnotes)
