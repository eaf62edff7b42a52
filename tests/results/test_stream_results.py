"""What comes of streams: tables that say where protocols differ, plots, and our numbers beside the published ones."""

import csv
import json
from types import SimpleNamespace

import matplotlib as mpl
import pytest
import yaml
from shared import keep

from vlprompt.experiments.paper_recipes import load_reference, resolve_paper_config
from vlprompt.results.comparability import describe_protocol_differences
from vlprompt.results.plots.accuracy import build_shots_figures
from vlprompt.results.plots.all_plots import draw_all_plots
from vlprompt.results.plots.continual import build_matrix_figures, build_prompt_figures, build_stage_figures
from vlprompt.results.plots.figure import draw_figure
from vlprompt.results.published.compare import compare_results
from vlprompt.results.published.reference import read_reference
from vlprompt.results.run_folder import Result
from vlprompt.results.tables.summary import build_rows, build_task_tables, merge_in_order
from vlprompt.runtime.paths import find_configs_folder

mpl.use("Agg")
HALF = {"size": [32, 32], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
ACCURACY = "mean over lessons of the accuracy after the last"


def stream(method="l2p", seed=1, lessons=3, last=60.0, pool=None, **changes):
    """A result in the format of a stream: after lesson t, lesson i is at last + 10 (T - 1 - t) + i + seed."""
    joint = changes.get("joint", False)
    stages = 1 if joint else lessons
    at = [[last + 10.0 * (stages - 1 - t) + i + seed for i in range(t + 1)] for t in range(stages)]
    task = {"name": "continual", "dataset": "digits", "stages": lessons, "kind": "class_incremental",
            "order": "natural", "seed": seed, "joint": False, "mask": True, "buffer": 0, "blur": 0.25, "shots": None,
            "augment": None, "skip_broken": False}  # fmt: skip
    order = [list(range(10))] if joint else [[2 * i, 2 * i + 1] for i in range(lessons)]
    protocol = {"dataset": "digits", "kind": task["kind"], "stages": stages, "class_order": order, "train": "t",
                "test": "h", "augment": "none", "split": "literature", "preprocess": HALF, "backbone_key": "w",
                "metrics": {"accuracy": ACCURACY}, "selection": "last epoch"}  # fmt: skip
    resolve = {"backbone": "glyph-vit", "method": {"name": method}, "task": task, "train": {"lr": 0.1}, "seed": seed}
    for key, value in changes.items():
        part = (
            task if key in task else protocol if key in protocol else resolve if key in resolve else resolve["method"]
        )
        part[key] = value
    scores = [{"seen": {"accuracy": sum(row) / len(row)}} | {f"seen/{i}": {"accuracy": a} for i, a in enumerate(row)}
              for row in at]  # fmt: skip
    summary = {"accuracy": sum(at[-1]) / stages, "overall": sum(at[-1]) / stages}
    if stages > 1:
        summary |= {"forgetting": sum(max(at[t][i] for t in range(i, stages)) - at[-1][i]
                                      for i in range(stages - 1)) / (stages - 1)}  # fmt: skip
    told = [{"parameters": 100 * (t + 1), "state_bytes": 400 * (t + 1), "seconds": 1.5} for t in range(stages)]
    if pool:
        summary["prompts_used"] = 2.0
        for t, stage in enumerate(told):
            stage["prompt_usage"] = {"seen": [1 / pool] * pool}
            stage["prompt_usage"] |= {f"seen/{i}": [float(k == i % pool) for k in range(pool)] for i in range(t + 1)}
    cost = {"seconds": 2.0, "trained_parameters": 300, "trained_percent": 0.5, "peak_memory_mb": 900.0,
            "stored_bytes": 1200}  # fmt: skip
    return Result(resolve, scores, summary, cost, {}, protocol, [], told)


def seeds(method="l2p", **changes):
    return [stream(method, seed, **changes) for seed in (1, 2, 3)]


def one_grid(results):
    [grid] = build_task_tables(build_rows(results))
    return grid, {line[0]: dict(zip(grid.header, line, strict=True)) for line in grid.rows}


def test_means_over_seeds(tmp_path):
    found = keep(tmp_path, *seeds(pool=4), *seeds("linear", last=50.0), *seeds("zero_shot", last=30.0))
    grid, cells = one_grid(found)
    assert grid.title == "continual on digits, class-incremental, 3 stages, glyph-vit"
    assert grid.header == [
        "method",
        "accuracy",
        "overall",
        "forgetting",
        "prompts used",
        "n",
        "trained",
        "%",
        "s",
        "MB",
    ]
    assert [line[0] for line in grid.rows] == ["zero_shot", "l2p", "linear"]
    assert cells["l2p"]["accuracy"] == "63.0±0.8"  # seeds 62, 63, 64: the root of 2/3
    assert cells["linear"]["accuracy"] == "53.0±0.8"
    assert cells["l2p"]["forgetting"] == "15.0±0.0"  # 20 for the first lesson, 10 for the second
    assert (cells["l2p"]["prompts used"], cells["linear"]["prompts used"]) == ("2.0±0.0", "")
    assert not grid.footnotes
    assert found[0].stages[2]["parameters"] == 300


def test_columns_of_all_rows_in_their_order():
    assert merge_in_order([["a", "d"], ["a", "b", "c", "d", "e"], ["b", "x"]]) == ["a", "b", "x", "c", "d", "e"]
    assert merge_in_order([[], ["b"], ["a", "b"]]) == ["a", "b"]


def test_one_table_per_kind_and_number_of_stages():
    every = [stream(), stream(lessons=5), stream(kind="task_incremental"), stream(dataset="glyphs"), stream(shots=4)]
    titles = [g.title for g in build_task_tables(build_rows(every))]
    assert titles == [
        "continual on digits, class-incremental, 3 stages, glyph-vit",
        "continual on digits, class-incremental, 5 stages, glyph-vit",
        "continual on digits, task-incremental, 3 stages, glyph-vit",
        "continual on glyphs, class-incremental, 3 stages, glyph-vit",
    ]
    grid = build_task_tables(build_rows(every))[0]
    assert grid.header[:3] == ["method", "protocol", "shots"]
    assert [line[:3] for line in grid.rows] == [["l2p", "", "all"], ["l2p", "a", "4"]]
    assert grid.footnotes == ("a: task.shots=4 (others all)",)


@pytest.mark.parametrize("told", [3, [[0, 1], [2, 3], [4, 5]], None])  # None: by the card, as the others
def test_joint_training_stands_beside_its_stream(told):
    results = [*seeds(), *seeds(joint=True, last=90.0), stream("linear", joint=True)]
    for r in results:
        r.config["task"]["stages"] = told
    grid, cells = one_grid(results)
    assert "3 stages" in grid.title
    assert cells["l2p (joint training)"]["accuracy"] == "92.0±0.8"
    assert cells["l2p (joint training)"]["forgetting"] == ""
    assert "linear (joint training)" in cells  # also where no other row of the method tells it apart
    assert [line[1] for line in grid.rows] == ["", "a", "a"]
    assert grid.footnotes == ("a: task.joint=true",)


DIFFERENT = {
    "mask": ({"mask": False}, "task.mask=false"),
    "buffer": ({"buffer": 50}, "task.buffer=50 (others 0)"),
    "order": ({"order": "seeded"}, "task.order=seeded (others natural)"),
    "test": ({"test": "g"}, "test images g (others h)"),
    "augment": ({"augment": "crop"}, "task.augment"),
    "split": ({"split": "custom"}, "split custom (others literature)"),
    "weights": ({"backbone_key": "v"}, "weights v (others w)"),
    "metrics": ({"metrics": {"accuracy": "mean over stages"}}, f"metric accuracy mean over stages (others {ACCURACY})"),
    "preprocess": (
        {"preprocess": HALF | {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}},
        "preprocess.mean=0.0 (others 0.5); preprocess.std=1.0 (others 0.5)",
    ),
    "classes": (
        {"class_order": [[5, 4], [1, 0], [3, 2]]},
        "class order 5 4 | 1 0 | 3 2 (others 0 1 | 2 3 | 4 5)",
    ),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_a_protocol_that_differs_gets_a_letter(case):
    changes, told = DIFFERENT[case]
    if case == "augment":  # what was done, not what was asked for
        odd = stream("odd")
        odd.protocol["augment"], told = "crop", "augment crop (others none)"
    else:
        odd = stream("odd", **changes)
    grid, cells = one_grid([stream("a"), stream("b"), odd])
    assert {name: line["protocol"] for name, line in cells.items()} == {"a": "", "b": "", "odd": "a"}
    assert grid.footnotes == (f"a: {told}",)


def test_what_is_no_other_protocol():
    """Another backbone's look, orders that a seed draws, and what an older run does not say."""
    other = stream("other", backbone="timm:x", backbone_key="x", preprocess=HALF | {"size": [224, 224]})
    old = stream("old")
    del old.protocol["metrics"], old.protocol["preprocess"], old.protocol["split"]
    assert not one_grid([stream("a"), stream("b"), other, old])[0].footnotes
    orders = {1: [[0, 1], [2, 3]], 2: [[3, 1], [0, 2]]}
    drawn = [stream(m, s, lessons=2, order="seeded", class_order=orders[s]) for m in ("a", "b", "c") for s in orders]
    assert not one_grid(drawn)[0].footnotes
    assert [(r.method, r.variant, r.seeds) for r in build_rows(drawn)] == [(m, "", (1, 2)) for m in ("a", "b", "c")]
    assert not one_grid(drawn[:-1])[0].footnotes  # also where one has a seed less
    drawn[-1].protocol["class_order"] = orders[1]  # the same setting and seed, and yet another order
    assert one_grid(drawn)[0].footnotes == ("a: class order 0 1 | 2 3 (others 3 1 | 0 2)",)


def test_a_fixed_class_order_that_changed_makes_a_row_of_its_own():
    """The same settings on a card whose class ids have changed: no seeds of the two are mixed, and no row is lost."""
    grid, _ = one_grid([*seeds(), *seeds(class_order=[[1, 0], [2, 3], [4, 5]])])
    assert [(line[0], line[1], line[5]) for line in grid.rows] == [
        ("l2p (class_order=0 1 | 2 3 | 4 5)", "", "3"), ("l2p (class_order=1 0 | 2 3 | 4 5)", "a", "3")]  # fmt: skip
    assert grid.footnotes == ("a: class order 1 0 | 2 3 | 4 5 (others 0 1 | 2 3 | 4 5)",)


def test_what_is_too_long_to_print_is_other_all_the_same():
    long = [[i] for i in range(100)]
    assert describe_protocol_differences(
        [{("class order", ""): order} for order in (long, long, long[:-2] + long[:-3:-1])]
    ) == ["", "", "another class order"]


def test_rows_of_one_method_are_told_apart_in_words():
    _, cells = one_grid([*seeds(), *seeds(mask=False), *seeds(pull=0.5)])
    assert list(cells) == ["l2p", "l2p (no mask)", "l2p (pull=0.5)"]
    assert [line["protocol"] for line in cells.values()] == ["", "a", ""]


def test_several_letters_in_every_form(type_all, tmp_path, monkeypatch):
    zero = {"mean": [0.0] * 3, "std": [1.0] * 3}
    keep(tmp_path / "runs", *seeds(pool=4), *seeds("coda", preprocess=HALF | zero), *seeds("linear"),
         *seeds("linear", mask=False))  # fmt: skip
    monkeypatch.setenv("COLUMNS", "80")
    code, _, text = type_all("table", "runs", "--markdown", "t.md", "--csv", "t.csv", "--json", "t.json")
    assert code == 0
    notes = ["a: preprocess.mean=0.0 (others 0.5); preprocess.std=1.0 (others 0.5)", "b: task.mask=false"]
    lines = [line.strip() for line in text.splitlines()]
    assert [line for line in lines if line in notes] == notes
    table = lines[: lines.index(notes[0])]
    assert max(map(len, table)) <= 80
    assert any(line.split()[:3] == ["coda", "a", "63.0±0.8"] for line in table)
    assert any(line.startswith("linear (no mask)") and line.split()[3:5] == ["b", "63.0±0.8"] for line in table)
    markdown = (tmp_path / "t.md").read_text()
    assert "| linear (no mask) | b | 63.0±0.8 |" in markdown
    assert markdown.endswith("\n\n- " + "\n- ".join(notes) + "\n")
    with (tmp_path / "t.csv").open() as file:
        flat = list(csv.DictReader(file))
    assert [(r["method"], r["protocol"], r["differs"]) for r in flat] == [
        ("coda", "a", notes[0][3:]), ("l2p", "", ""), ("linear", "", ""), ("linear", "b", notes[1][3:])]  # fmt: skip
    assert "runs" not in flat[0]
    row = json.loads((tmp_path / "t.json").read_text())[1]
    assert (row["kind"], row["stages"], row["accuracy"]) == ("class_incremental", 3, pytest.approx(63.0))
    assert [r["seed"] for r in row["runs"]] == [1, 2, 3]
    assert row["runs"][0]["matrix"] == [[81.0], [71.0, 72.0], [61.0, 62.0, 63.0]]
    assert row["runs"][0]["seen"] == [81.0, 71.5, 62.0]
    assert row["runs"][0]["class_order"] == [[0, 1], [2, 3], [4, 5]]
    assert [s["parameters"] for s in row["runs"][0]["stages"]] == [100, 200, 300]


def test_a_narrow_terminal_leaves_out_columns_and_says_which(type_all, tmp_path, monkeypatch):
    keep(tmp_path / "runs", *seeds(pool=4))
    for columns, out in ((60, "n, trained, %, s, MB"), (30, "forgetting, prompts used, n, trained, %, s, MB")):
        monkeypatch.setenv("COLUMNS", str(columns))
        text = type_all("table", "runs")[1]
        assert f"({out}: in a wider terminal, or by --markdown)" in text
        assert "63.0±0.8" in text


def few_shot(seed=1):
    cost = {"seconds": 1.0, "trained_parameters": 10, "peak_memory_mb": 5.0}
    resolve = {"backbone": "glyph", "method": {"name": "coop"}, "train": {}, "seed": seed,
              "task": {"name": "few_shot", "dataset": "digits", "shots": 4, "seed": seed}}  # fmt: skip
    return Result(resolve, [], {"accuracy": 90.0 + seed}, cost, {}, {"test": "h"})


def test_accuracy_over_lessons():
    every = [*seeds(), *seeds("zero_shot", last=30.0), *seeds("linear", joint=True, last=90.0), *seeds(lessons=5)]
    figures = build_stage_figures(build_rows(every))
    assert [f.title for f in figures] == [
        f"digits, class-incremental, {t} stages: mean and spread over 3 seeds" for t in (3, 5)]  # fmt: skip
    traces = {trace["name"].split(" [")[0]: trace for trace in figures[0].interactive["data"]}
    assert sorted(traces) == ["l2p", "linear (joint training)", "zero_shot"]
    assert traces["l2p"]["x"] == [1, 2, 3]
    assert traces["l2p"]["y"] == pytest.approx([82.0, 72.5, 63.0])  # of what was seen: 80, 70.5, 61 + the seed
    assert traces["l2p"]["error_y"]["array"][2] == pytest.approx((2 / 3) ** 0.5, abs=1e-4)
    assert traces["linear (joint training)"]["y"] == [92.0, 92.0]  # a level over all lessons
    assert traces["zero_shot"]["y"] == pytest.approx([52.0, 42.5, 33.0])
    assert {trace["line"]["dash"] for name, trace in traces.items() if name != "l2p"} == {"dash", "dashdot"}


def test_the_accuracy_matrix():
    rows = build_rows([*seeds(), *seeds("dual"), *seeds("linear", joint=True), *seeds("long", lessons=16)])
    figures = build_matrix_figures(rows)
    assert [f.title.split(":")[0] for f in figures] == ["dual", "l2p", "long"]  # joint training has none
    panels = [draw_figure(figure) for figure in figures]
    cells = panels[1].images[0].get_array()
    assert cells[2].tolist() == pytest.approx([62.0, 63.0, 64.0])
    assert [int(line.mask.sum()) for line in cells] == [2, 1, 0]  # the upper triangle is empty
    assert [t.get_text() for t in panels[1].texts] == ["82", "72", "73", "62", "63", "64"]
    assert not panels[2].texts  # 16 lessons have no room for numbers
    assert panels[1].images[0].get_clim() == (0, 100)


def test_the_use_of_prompts_is_of_one_seed():
    [figure] = build_prompt_figures(build_rows([*seeds(pool=4), stream("nearest_mean")]))
    assert figure.title == "l2p, seed 1: digits, class-incremental, 3 stages"
    assert figure.interactive["data"][0]["z"] == [[100, 0, 0, 0], [0, 100, 0, 0], [0, 0, 100, 0]]
    assert figure.table.rows[1] == ["2", "0.0", "100.0", "0.0", "0.0"]
    assert draw_figure(figure).images[0].get_array().tolist() == [[100, 0, 0, 0], [0, 100, 0, 0], [0, 0, 100, 0]]


def test_plot_draws_what_there_is(type_in, tmp_path):
    keep(tmp_path / "runs", *seeds(pool=4), *seeds("linear"))
    code, text = type_in("plot", "runs")
    assert (code, text) == (0, "wrote runs/stages.png wrote runs/matrix.png wrote runs/prompts.png")
    assert all((tmp_path / "runs" / f"{n}.png").read_bytes()[:4] == b"\x89PNG" for n in ("stages", "matrix", "prompts"))
    assert type_in("plot", "runs", "--figure", "my.png")[1].startswith("wrote my.png wrote runs/matrix.png")
    keep(tmp_path / "both", *seeds("linear"), few_shot())
    assert type_in("plot", "both", "--figure", "my.png")[1] == (
        "wrote my.png wrote both/stages.png wrote both/matrix.png"
    )


def test_a_stream_of_few_shots_is_no_few_shot_run(tmp_path):
    with pytest.raises(ValueError, match="expected few-shot runs, got none"):
        draw_all_plots([], tmp_path)
    assert build_shots_figures(build_rows([stream(shots=4)]), n_shots=1) == []
    assert [p.name for p in draw_all_plots([stream(shots=4)], tmp_path)] == ["stages.png", "matrix.png"]


@pytest.mark.parametrize(
    ("results", "told"),
    [
        ([], "expected few-shot runs, got none"),
        ([stream(joint=True)], "expected streams of at least two lessons, got none"),
    ],
)
def test_nothing_to_plot_is_told(tmp_path, results, told):
    with pytest.raises(ValueError, match=told):
        draw_all_plots(results, tmp_path)
    assert not list(tmp_path.iterdir())


KNOWN = load_reference()
STREAMS = [e for e in KNOWN.entries if e.task == "continual"]
RAW = {"mean": [0.0] * 3, "std": [1.0] * 3}
NPZ, IN21K = (f"timm:vit_base_patch16_224/{tag}" for tag in ("orig_in21k", "augreg_in21k"))
GOOD = {"dataset": "cifar100", "lessons": 10, "preprocess": RAW, "backbone": NPZ}


def set_beside(*results):
    """Pairs, by a recipe that our settings always agree with."""
    for r in results:
        r.config["train"]["precision"] = "fp32"
    return compare_results(results, KNOWN, lambda ours, theirs: ours.config)[0]


def reasons(title, *results):
    [found] = {p.reasons for p in set_beside(*results) if p.theirs.title == title}
    return found


def test_published_streams_have_their_protocol():
    own = {"cifar100", "imagenet_r_stream", "pilot_imagenet_r", "cub200", "core50", "domainnet", "five_datasets"}
    assert {e.dataset for e in STREAMS} == own | {"cddb"}
    paper = {e.method: e for e in STREAMS if e.dataset == "cifar100" and e.title in ("L2P", "DualPrompt", "CODA-P")
             and e.protocol["kind"] == "class_incremental"}  # fmt: skip
    assert paper["l2p"].metrics == {"accuracy": 83.83, "forgetting": 7.63}
    assert paper["l2p"].std == {"accuracy": 0.04, "forgetting": 0.30}
    assert paper["dualprompt"].metrics == {"accuracy": 86.51, "forgetting": 5.16}
    assert paper["coda_prompt"].metrics == {"accuracy": 86.25, "forgetting_step": 1.67}  # it defines another one
    assert [e.metrics for e in STREAMS if e.dataset == "core50" and e.method == "l2p"] == [
        {"overall": 78.33}, {"overall": 81.07}, {"overall": 82.15}]  # fmt: skip
    assert all(any("vote" in d for d in e.protocol["defects"]) for e in STREAMS if e.method == "l2p"
               and e.dataset in ("five_datasets", "imagenet_r_stream"))  # fmt: skip


def test_our_number_of_the_same_definition_is_compared():
    some = [stream("coda_prompt", s, **GOOD | {"backbone": IN21K}) for s in (1, 2, 3)]
    for i, r in enumerate(some):
        r.summary["forgetting_step"] = 2.0 + i
    found = {p.metric: p for p in set_beside(*some)}
    assert set(found) == {"accuracy", "forgetting_step"}
    assert found["forgetting_step"].our_value.mean == 3.0
    assert found["forgetting_step"].difference == pytest.approx(3.0 - 1.67)
    assert found["accuracy"].difference == pytest.approx(66.5 - 86.25)


def test_what_agrees_can_be_compared():
    good = GOOD | {"backbone": IN21K, "order": "seeded"}
    assert reasons("nearest class mean by RanPAC's authors", stream("nearest_mean", **good)) == ()
    assert reasons("nearest class mean by RanPAC's authors", stream("nearest_mean", mask=False, **good)) == ()


REASONS = {
    "weights": ({"backbone": IN21K}, f"backbone {IN21K}, theirs {NPZ}"),
    "stages": ({"lessons": 5}, "5 stages, theirs 10"),
    "order": ({"order": "seeded"}, "order seeded, theirs natural"),
    "given order": ({"order": [1, 0]}, "order 1, 0, theirs natural"),
    "mask": ({"mask": False}, "answers in training are all classes seen, theirs the lesson's classes"),
    "shots": ({"shots": 4}, "4 shots, theirs all"),
    "split": ({"split": "custom"}, "split not the literature's"),
    "normalisation": (
        {"preprocess": HALF}, "pixels normalised with mean 0.5 0.5 0.5, std 0.5 0.5 0.5; theirs with mean 0, std 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REASONS)
def test_every_difference_from_a_published_protocol_is_a_reason(case):
    changes, told = REASONS[case]
    always = {f"theirs: {d}" for e in STREAMS if e.title == "L2P, PyTorch port" for d in e.protocol["defects"]}
    assert set(reasons("L2P, PyTorch port", stream(**GOOD))) == always
    assert set(reasons("L2P, PyTorch port", stream(**GOOD | changes))) == always | {told}


def test_defects_of_theirs_and_what_they_do_not_tell():
    dual = reasons("DualPrompt, PyTorch port", stream("dualprompt", **GOOD))
    assert dual == (
        "theirs: the prompts are chosen by a vote over each test batch, which holds one lesson only",
        "theirs: keys and values of the prompts are mixed up by a reshape",
    )
    esn = reasons("ESN", stream("esn", **GOOD))
    assert "not told of theirs: order, normalisation, mask, which accuracy, which forgetting" in esn


def test_only_streams_of_one_kind_are_set_side_by_side():
    core = {"dataset": "core50", "kind": "domain_incremental", "lessons": 8}
    for more, theirs in (({}, 78.33), ({"buffer": 100}, 81.07), ({"joint": True}, 82.15)):
        assert {p.published_value for p in set_beside(stream(**core | more))} == {theirs}
    assert not set_beside(stream(**core | {"kind": "class_incremental"}))
    stages = {t: {p.published_value for p in set_beside(stream("coda_prompt", dataset="imagenet_r_stream", lessons=t))}
              for t in (5, 10, 20)}  # fmt: skip
    assert stages == {5: {76.51}, 10: {75.45}, 20: {72.37}}
    assert {p.published_value for p in set_beside(stream("coda_prompt", dataset="imagenet_r_stream", lessons=4))} == {
        76.51, 75.45, 72.37}  # fmt: skip


def test_what_the_protocol_speaks_of_is_no_other_setting():
    """The recipe has it from the card, ours by its setting; what the protocol does not speak of stays a reason."""
    mine = stream(**GOOD)
    mine.config["train"]["precision"] = "fp32"
    for more, told in (({"stages": None, "order": "seeded", "mask": False}, False), ({"augment": "crop"}, True)):
        recipe = mine.config | {"task": mine.config["task"] | more}
        found = compare_results([mine], KNOWN, lambda ours, theirs, recipe=recipe: recipe)[0]
        assert all(any(r.startswith("other settings") for r in p.reasons) == told for p in found), more


def test_the_recipe_is_that_of_their_backbone(monkeypatch):
    from vlprompt.config import resolve

    asked = []
    monkeypatch.setattr(
        resolve, "resolve_grid", lambda *given, **how: asked.append(how["backbone"]) or [SimpleNamespace(to_dict=dict)]
    )
    monkeypatch.setattr(resolve, "find_recipes", lambda *given: [given])
    [ours] = {id(p.ours): p.ours for p in set_beside(stream(**GOOD))}.values()
    [other] = {id(p.ours): p.ours for p in set_beside(stream("nearest_mean", **GOOD))}.values()
    for one, title in ((ours, "L2P, PyTorch port"), (other, "nearest class mean by RanPAC's authors")):
        [theirs] = [e for e in STREAMS if (e.title, e.dataset) == (title, "cifar100")]
        resolve_paper_config(one, theirs)
    assert asked == [NPZ, IN21K]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"weights": "x"}, "protocol: unknown key 'weights'; "),
        ({"kind": "online"}, "protocol.kind: expected one of .*, got 'online'"),
        ({"accuracy": "mean"}, "protocol.accuracy: expected .*, got 'mean'"),
        ({"joint": None}, "protocol.joint: expected .*, got None"),
        ({"mask": 1}, "protocol.mask: expected .*, got 1"),
        ({"stages": 0}, "protocol.stages: expected .*, got 0"),
        ({"order": [1]}, r"protocol.order: expected .*, got \[1\]"),
        ({"normalisation": [0.5]}, r"protocol.normalisation: expected .*, got \[0.5\]"),
        ({"defects": "none"}, "protocol.defects: expected .*, got 'none'"),
        (None, "protocol: the key 'accuracy' is missing. Write null"),
    ],
)
def test_a_broken_protocol_is_told(tmp_path, change, told):
    held = yaml.safe_load((find_configs_folder() / "reference" / "streams.yaml").read_text())
    held["published"] = held["published"][:1]
    held["protocol"] = {} if change is None else held["protocol"]
    held["published"][0]["protocol"] |= change or {}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(held))
    with pytest.raises(ValueError, match=told):
        read_reference(tmp_path)


def test_other_tasks_have_no_protocol(tmp_path):
    held = yaml.safe_load((find_configs_folder() / "reference" / "few_shot.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(held | {"protocol": {"stages": 5}}))
    with pytest.raises(ValueError, match="of the task continual or domain have one, got task few_shot"):
        read_reference(tmp_path)


def test_streams_against_published(type_in, tmp_path):
    results = [stream("l2p", s, **GOOD) for s in (1, 2, 3)] + [stream("zero_shot", **GOOD)]
    for r in results:
        r.config["train"]["precision"] = "fp32"
    keep(tmp_path / "runs", *results)
    code, text = type_in("table", "runs", "--against", "published", "--json", "j.json", "--markdown", "m.md")
    assert code == 0
    assert f"continual with {NPZ}, against published" in text
    assert "cifar100 (10 stages) l2p all accuracy 66.5±0.8 83.83±0.04 -17.3 [1]" in text
    assert "nothing published for: zero_shot (continual on cifar100)" in text
    row = json.loads((tmp_path / "j.json").read_text())[0]
    assert (row["metric"], row["published"], row["comparable"]) == ("accuracy", 83.83, False)
    assert row["difference"] == pytest.approx(66.5 - 83.83)
    assert any(reason.startswith("theirs: the prompts are chosen by a vote") for reason in row["reasons"])
    assert "arXiv:2112.08654" in (tmp_path / "m.md").read_text()
