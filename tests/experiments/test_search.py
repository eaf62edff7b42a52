"""Grids on validation images: settings side by side are settings one by one, and no search sees a test image."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kills import killed_when
from miniatures import small_digits, vtab_root
from torch import nn

from vlprompt.core.images import ImageItem
from vlprompt.core.method import Method, Output
from vlprompt.engine.loop import fit
from vlprompt.engine.train_config import TrainConfig, compute_learning_rate
from vlprompt.engine.vmap_training import count_vmapped_runs, fit_vmapped
from vlprompt.experiments.searches.grid import run_search
from vlprompt.experiments.searches.study import build_study
from vlprompt.layers.heads import LinearHead as Columns
from vlprompt.methods import VPT, CoOp, Linear
from vlprompt.results.run_folder import Result
from vlprompt.results.tables import benchmarks
from vlprompt.runtime.errors import NonFiniteError
from vlprompt.runtime.seeding import make_generator
from vlprompt.tasks import VTAB, FewShot

COMMAND = Path(sys.executable).parent / "vlprompt"
VPTS = {"schedule": "cosine-after-warmup", "warmup": 2, "warmup_kind": "linear", "warmup_lr": 0.0, "drop_last": False}
RATES = [(0.5, 0.01), (0.1, 0.0), (0.02, 0.001)]


class Hidden(Method):
    """A head with a hidden layer, batch norm and dropout."""

    max_vmap_images = 10**6

    def __init__(self, clip, dtype=torch.float32):
        super().__init__()
        self.clip, self.dtype, self.head = clip, dtype, Columns()

    def begin_lesson(self, lesson, generator):
        wide = self.clip.feature_dim
        self.head.begin_lesson(lesson, generator, wide, self.clip.device)
        self.net = nn.Sequential(nn.Linear(wide, wide), nn.ReLU(), nn.BatchNorm1d(wide), nn.Dropout(0.1))
        self.net[0].weight.data = torch.randn(wide, wide, generator=generator) * wide**-0.5
        self.net[0].bias.data.zero_()
        self.to(self.dtype)

    def forward(self, inputs, prepared):
        return Output(self.head(self.net(self.clip.image(inputs).to(self.dtype)), prepared))

    def loss_terms(self, batch, fixed):
        out = self(batch.inputs, self.prepare(batch.names, fixed))
        return {"ce": (nn.functional.cross_entropy(out.logits, batch.labels), len(batch.labels))}, out


MADE = {
    "linear": lambda clip: Linear(clip.image, Columns(), solver="fit"),
    "vpt": lambda clip: VPT(clip.image, Columns(), 3, True, 0.0),
    "shallow, dropped": lambda clip: VPT(clip.image, Columns(), 3, False, 0.3),
}


def lesson_of(shots=2):
    lesson = FewShot("digits", shots=shots, augment="none").lesson
    return replace(lesson, train=replace(lesson.train, augment="none"))


def begun(method, lesson, seed):
    method.begin_lesson(lesson, make_generator(seed, "begin", 0))
    return method


def both_ways(make, lesson, trains, seeds):
    """The same settings one by one and side by side."""
    alone = [begun(make(), lesson, seed) for seed in seeds]
    for method, train, seed in zip(alone, trains, seeds, strict=True):
        list(fit(method, lesson, train, seed))
    beside = [begun(make(), lesson, seed) for seed in seeds]
    list(fit_vmapped(beside, lesson, trains, seeds))
    return alone, beside


def apart(a, b):
    """The greatest difference of two states, relative to the greatest number in each tensor."""
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return max(float((x - y).abs().max() / x.abs().max().clamp(min=1e-3)) for x, y in pairs)


QUICK_PAIRS = [("linear", "adamw"), ("vpt", "sgd"), ("shallow, dropped", "adam")]
PAIRS = [pytest.param(name, optimizer, marks=[pytest.mark.slow] * ((name, optimizer) not in QUICK_PAIRS))
         for name in MADE for optimizer in ("sgd", "adam", "adamw")]  # fmt: skip


@pytest.mark.parametrize(("name", "optimizer"), PAIRS)
def test_side_by_side_is_one_by_one(tiny, name, optimizer):
    """Also where seeds differ, gradients are clipped and the last batch is short; dropout draws the same."""
    scale = 1.0 if optimizer == "sgd" else 0.05
    trains = [
        TrainConfig(epochs=5, batch_size=8, optimizer=optimizer, lr=lr * scale, weight_decay=wd, grad_clip=1.0, **VPTS)
        for lr, wd in [*RATES[:2], *RATES[1:]]
    ]
    alone, beside = both_ways(lambda: MADE[name](tiny), lesson_of(), trains, [1, 1, 2, 2])
    assert max(apart(a, b) for a, b in zip(alone, beside, strict=True)) < 1e-5
    assert apart(beside[0], beside[1]) > 1e-2  # they did learn otherwise
    assert apart(beside[1], beside[2]) > 1e-2  # and from other images


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_batch_norm_and_dropout_are_each_settings_own(tiny, optimizer):
    """eps: where a gradient is zero but for rounding, as before a batch norm, a smaller one makes steps of rounding."""
    trains = [TrainConfig(epochs=10, batch_size=8, optimizer=optimizer, lr=lr / 10, weight_decay=wd, eps=1e-3, **VPTS)
              for lr, wd in RATES]  # fmt: skip
    alone, beside = both_ways(lambda: Hidden(tiny, torch.float64), lesson_of(), trains, [1, 1, 1])
    assert max(apart(a, b) for a, b in zip(alone, beside, strict=True)) < 1e-9
    assert apart(beside[0], beside[1]) > 1e-2
    if optimizer == "sgd":
        trains = [replace(train, epochs=4, batch_size=20) for train in trains]
        alone, beside = both_ways(lambda: Hidden(tiny), lesson_of(), trains, [1, 1, 1])
        assert max(apart(a, b) for a, b in zip(alone, beside, strict=True)) < 1e-5


def test_what_may_not_train_side_by_side(tiny):
    lesson, train = lesson_of(), TrainConfig(epochs=1)
    two = [begun(Linear(tiny.image, Columns(), solver="fit"), lesson, 1) for _ in range(2)]
    with pytest.raises(ValueError, match=r"configs that differ in lr, weight_decay and seed only, .* Use fit"):
        next(fit_vmapped(two, lesson, [train, replace(train, batch_size=4)], [1, 1]))
    with pytest.raises(ValueError, match=r"max_vmap_images above 0, got CoOp\. Use fit"):
        next(fit_vmapped([CoOp(tiny)], lesson, [train], [1]))
    assert count_vmapped_runs(two[0], TrainConfig(batch_size=128)) > 1000
    assert count_vmapped_runs(MADE["vpt"](tiny), TrainConfig(batch_size=4)) == 32
    assert count_vmapped_runs(MADE["vpt"](tiny), TrainConfig(batch_size=64)) == 1  # where it would be slower


def fit_one_vmapped(method, lesson, config, seed):
    return fit_vmapped([method], lesson, [config], [seed])


@pytest.mark.parametrize("train", [fit, fit_one_vmapped])
def test_a_loss_that_the_method_does_not_ask_for_is_refused(tiny, train):
    """Alone and side by side alike."""
    lesson, config = lesson_of(), TrainConfig(epochs=1, batch_size=8, loss="gce")
    with pytest.raises(ValueError, match=r"train\.loss=gce: expected a method that learns from labels .* got Hidden"):
        next(train(begun(Hidden(tiny), lesson, 1), lesson, config, 1))
    next(train(begun(Linear(tiny.image, Columns(), solver="fit"), lesson, 1), lesson, config, 1))


def test_settings_side_by_side_go_on_with_the_same_bits(tiny):
    lesson, seeds = lesson_of(), [1, 1, 2]
    trains = [
        TrainConfig(epochs=4, batch_size=8, lr=lr, weight_decay=wd, model_selection="val", **VPTS) for lr, wd in RATES
    ]
    whole, standings = [begun(Hidden(tiny), lesson, s) for s in seeds], []
    for step in fit_vmapped(whole, lesson, trains, seeds):
        standings.append(step.trainer.state())
    for stop in (1, 2, 5):
        again = [begun(Hidden(tiny), lesson, s) for s in seeds]
        left = list(fit_vmapped(again, lesson, trains, seeds, standings[stop]))
        assert len(left) == len(standings) - stop - 1
        for a, b in zip(whole, again, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_setting_that_is_not_finite_is_out_and_the_others_go_on(tiny):
    lesson, train = lesson_of(), TrainConfig(epochs=5, batch_size=8, warmup=0, lr=0.1)
    trains = [train, replace(train, lr=1e30), replace(train, lr=0.01)]
    methods = [begun(Hidden(tiny), lesson, 1) for _ in trains]
    steps = list(fit_vmapped(methods, lesson, trains, [1, 1, 1]))
    assert steps[-1].trainer.failed == {1}
    assert [math.isnan(loss) for loss in steps[-1].losses] == [False, True, False]
    alone = begun(Hidden(tiny), lesson, 1)
    list(fit(alone, lesson, trains[2], 1))
    assert apart(alone, methods[2]) < 1e-5


def test_the_schedule_of_vpt():
    train = TrainConfig(
        epochs=100, lr=2.5, schedule="cosine-after-warmup", warmup=10, warmup_kind="linear", warmup_lr=0.0
    )
    for e in range(100):
        wanted = e / 10 if e < 10 else 0.5 * (1 + math.cos(math.pi * (e - 10) / (100 - 10)))
        assert math.isclose(
            compute_learning_rate(train, e, 8 * e, 100, 800), 2.5 * wanted, rel_tol=1e-12, abs_tol=1e-15
        )
    assert compute_learning_rate(train, 0, 0, 100, 800) == 0.0


def test_the_images_of_a_search_and_of_the_final_runs(pictures):
    data = VTAB(str(pictures)).data
    [final], [hunt] = VTAB(data).stages(), VTAB(data, "search").stages()
    assert data.train.augment == "none"
    assert final.lesson.train.items == data.train.items + data.val.items
    assert final.lesson.train.labels == data.train.labels + data.val.labels
    assert final.lesson.val is hunt.lesson.val is None
    assert hunt.lesson.train == data.train
    assert final.tests == {"test": data.test}
    assert hunt.tests == {"val": data.val}
    bare = replace(data, val=None)
    [final], [hunt] = VTAB(bare).stages(), VTAB(bare, "search").stages()
    assert final.lesson.train == data.train
    assert hunt.tests["val"].count_per_class() == [1, 1]  # a tenth of six of each
    assert {*hunt.lesson.train.items} | {*hunt.tests["val"].items} == {*data.train.items}
    assert hunt.tests["val"] == VTAB(bare, "search", seed=7).splits[1]
    assert "a tenth of each class of train is held out" in VTAB(bare).protocol["note"]
    with pytest.raises(ValueError, match=r"task.phase: expected 'search' or 'final', got 'test'"):
        VTAB(bare, "test")


def mine(tmp_path, name="linear", *more, dataset=None, **how):
    """A study of a few settings, and its folder."""
    given = [
        "train.epochs=3",
        "train.batch_size=64",
        "search.train.lr=[1.0,0.25]",
        "search.train.weight_decay=[0.01,0]",
    ]
    about = build_study(name, dataset or small_digits(), overrides=[*given, *more], backbone="glyph/random", **how)
    return about, about.get_folder(tmp_path)


def test_the_last_epoch_on_validation_images_chooses(tiny, tmp_path):
    about, place = mine(tmp_path)
    assert [(s.values["train.lr"], s.config.train["lr"]) for s in about.settings[::2]] == [
        (1.0, 0.25),
        (0.25, 0.0625),
    ]
    chosen = run_search(about, place, tiny)
    lines = place.read_entries()
    assert len(lines) == 4
    assert {line["vmapped"] for line in lines.values()} == {4}
    for s in about.settings:
        task, method = VTAB(small_digits(), "search"), Linear(tiny.image, Columns("kaiming", -4.595), solver="fit")
        [stage] = task.stages()
        list(fit(begun(method, stage.lesson, s.config.seed), stage.lesson, s.config.train_config, s.config.seed))
        from vlprompt.engine.evaluate import evaluate

        wanted = evaluate(method, stage.tests["val"]).metrics["accuracy"]
        assert lines[s.key]["accuracy"] == pytest.approx(wanted)
    assert chosen["accuracy"] == max(line["accuracy"] for line in lines.values())
    plans = about.build_final_configs(chosen)
    assert [p.seed for p in plans] == [p.task["seed"] for p in plans] == [42, 44, 82, 100, 800]
    assert {p.task["phase"] for p in plans} == {"final"}
    assert run_search(about, place, None) == chosen  # only read


def test_of_equally_good_settings_the_smaller_ones(tiny, tmp_path):
    about, place = mine(tmp_path)
    place.path.mkdir()
    for accuracies, wanted in (([9, 8, 9, 9], (0.25, 0)), ([9, 9, 8, None], (1.0, 0)), ([8, 8, 9, 8], (0.25, 0.01))):
        place.grid_path.write_text("")
        place.chosen_path.unlink(missing_ok=True)
        place.add_entries(
            [{"key": s.key, "accuracy": a, "seconds": 0.0} for s, a in zip(about.settings, accuracies, strict=True)]
        )
        values = run_search(about, place, tiny)["values"]
        assert (values["train.lr"], values["train.weight_decay"]) == wanted


def test_one_setting_that_is_not_finite_does_not_end_a_search(tiny, tmp_path):
    for n_epochs, n_failed in ((12, 2), (3, 1)):  # in a loss, and in the weights that the last step leaves
        more = ["search.train.lr=[1.0e+38,0.25]", "method.normalize=true", f"train.epochs={n_epochs}"]
        about, place = mine(tmp_path, "linear", *more)
        chosen = run_search(about, place, tiny)
        failed = sum(line["accuracy"] is None for line in place.read_entries().values())
        assert chosen["non_finite"] == failed == n_failed
        assert n_failed == 1 or chosen["values"]["train.lr"] == 0.25
    about, place = mine(tmp_path, "coop", "search.train.lr=[1.0e+38]", "train.warmup=0", "train.epochs=4")
    with pytest.raises(
        NonFiniteError, match=r"at least one of \d+ settings on .*digits, got none\. Set smaller learning rates"
    ):
        run_search(about, place, tiny)


def test_what_is_the_same_is_trained_once(tiny, tmp_path, monkeypatch):
    about, place = mine(tmp_path, "linear", "search.train.lr=[0.1,0.1,1.0e-1]")
    assert len(about.settings) == 2
    about, place = mine(tmp_path, "linear", "method.solver=lbfgs")  # it knows neither of the two
    solved = []
    monkeypatch.setattr(Linear, "_solve", lambda self, lesson, head: solved.append(1))
    assert run_search(about, place, tiny)["n_settings"] == 4
    assert len(place.read_entries()) == 4
    assert len(solved) == 2  # one to see that it trains nothing, one to be judged


def test_other_settings_than_rates_are_searched_one_by_one(tiny, tmp_path):
    more = ["search.method.n_tokens=[1,2]", "search.train.weight_decay=[0.0]", "train.epochs=1", "train.batch_size=512"]
    about, place = mine(tmp_path, "vpt", *more)
    assert sorted(s.config.method["n_tokens"] for s in about.settings) == [1, 1, 2, 2]
    run_search(about, place, tiny)
    assert {line["vmapped"] for line in place.read_entries().values()} == {1}
    assert sorted(p.name for p in place.path.iterdir()) == ["chosen.json", "grid.jsonl", "search.yaml"]


@pytest.mark.parametrize("name", ["search.yaml", "grid.jsonl", "chosen.json"])
@pytest.mark.parametrize("content", [b"a: [", b"[1]", b"\xff", b'"x"'])
def test_a_broken_file_of_a_search_is_named(tmp_path, name, content):
    _, place = mine(tmp_path)
    place.path.mkdir()
    (place.path / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        print(place.read_config(), place.read_entries(), place.read_chosen())
    assert f"{name}': expected a file of a search, got a broken one" in str(error.value)
    assert f"Remove the folder {str(place.path)!r} to search again." in str(error.value)


def test_mistakes_in_a_grid(tmp_path):
    with pytest.raises(ValueError, match=r"got search.lr. Write search.train.NAME"):
        mine(tmp_path, "linear", "search.lr=[1]")
    with pytest.raises(ValueError, match=r"search.train.lr: expected a list of numbers, got 'high'. Write search"):
        mine(tmp_path, "linear", "search.train.lr=[high]")
    with pytest.raises(ValueError, match=r"unknown key 'train.lrr'; did you mean 'lr'"):
        mine(tmp_path, "linear", "search.train.lrr=[1]")
    with pytest.raises(ValueError, match=r"train.lr: expected a value above 0, got 0.0"):
        mine(tmp_path, "linear", "search.train.lr=[0]")


def test_a_search_never_decodes_a_test_image(tiny, tmp_path, monkeypatch):
    def broken(look, view):
        raise AssertionError("a test image was looked at")

    opened = VTAB(small_digits()).data
    test = replace(opened.test, items=tuple(ImageItem(i.key, broken, i.name) for i in opened.test.items))
    monkeypatch.setattr(VTAB, "data", replace(opened, test=test))
    about, place = mine(tmp_path)
    assert run_search(about, place, tiny)["accuracy"] > 0
    [final] = VTAB(small_digits()).stages()
    with pytest.raises(AssertionError, match="a test image was looked at"):
        tiny.image(next(final.tests["test"].batches(2)).inputs)


def test_a_grid_of_linear_heads_encodes_each_image_once(tiny, tmp_path):
    images, net = [], tiny.image.net
    tiny.image.net = lambda pixels: images.append(len(pixels)) or net(pixels)
    wide = ["search.train.lr=[50,25,10,5,2.5,1,0.5,0.25,0.1,0.05]", "search.train.weight_decay=[0.01,0.001,0.0001,0]"]
    about, place = mine(tmp_path, "linear", *wide, "train.epochs=20", "train.batch_size=512", dataset="digits")
    run_search(about, place, tiny)
    train, val, _ = VTAB("digits").splits
    naive = 40 * (20 * len(train) + len(val))  # every setting encodes every image at every epoch
    assert sum(images) < len(train) + len(val) + 20 * tiny.image.pass_size
    assert naive > 300 * sum(images)


TASKS = ["vtab_svhn", "vtab_camelyon"]
SETTINGS = [
    "--seed",
    "1,2",
    "--backbone",
    "glyph",
    "--save-every",
    "0",
    "train.epochs=4",
    "train.batch_size=16",
    "search.train.lr=[10,1]",
]


def command(root, out):
    return ["search", "linear", ",".join(TASKS), "--root", str(root), "--out", str(out), *SETTINGS]


def outcome(out):
    """Everything that was learned and chosen, but for seconds."""
    found = {}
    for path in sorted(out.glob("*/*")):
        if path.name == "grid.jsonl":
            lines = map(json.loads, path.read_text().splitlines())
            found[path.relative_to(out)] = [(line["key"], line["accuracy"]) for line in lines]
        elif path.name == "prompt.safetensors":
            found[path.relative_to(out)] = path.read_bytes()
        elif path.suffix == ".json" and path.name != "inputs.json":
            told = json.loads(path.read_text())
            found[path.relative_to(out)] = told.get("values") or (told["scores"], told["summary"])
    return found


@pytest.mark.slow
def test_a_killed_grid_goes_on_with_the_same_bits(tmp_path, type_all, monkeypatch):
    monkeypatch.setenv("VLPROMPT_DATA", "")  # --root writes it
    root = vtab_root(tmp_path / "root", TASKS)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for file in ("vmap_state", "last"):  # in a search, and in a final run
        killed_when(killed, f'any(folder.glob("*/{file}.safetensors"))', COMMAND, *command(root, killed))
    assert type_all(*command(root, killed))[0] == 0
    assert type_all(*command(root, whole))[0] == 0
    assert outcome(whole) == outcome(killed)


def test_one_command_searches_trains_and_scores(tmp_path, type_all, monkeypatch):
    monkeypatch.setenv("VLPROMPT_DATA", "")  # --root writes it
    root, whole = vtab_root(tmp_path / "root", TASKS), tmp_path / "whole"
    code, text, printed = type_all(*command(root, whole))
    assert code == 0
    assert len(outcome(whole)) == len(TASKS) * (2 + 2 * 2)
    assert "natural lacks vtab_cifar100, vtab_caltech101" in text
    assert type_all(*command(root, whole))[2].splitlines()[-20:] == printed.splitlines()[-20:]
    assert type_all("table", whole, "--benchmark", "vtab", "--json", "t.json", "--markdown", "t.md")[0] == 0
    [row] = json.loads((tmp_path / "t.json").read_text())
    assert row["mean_natural"] is row["mean_of_group_means"] is row["mean_of_19_tasks"] is None
    scores = [json.loads(p.read_text())["summary"]["accuracy"] for p in whole.glob("linear-vtab_svhn-*/result.json")]
    assert row["vtab_svhn"] == pytest.approx(sum(scores) / 2)
    assert (
        "| method | natural | specialized | structured | mean of group means | mean of 19 tasks |"
        in (tmp_path / "t.md").read_text()
    )


GROUPS = {"near": ["a", "b", "c"], "far": ["d"]}


def results_of(accuracies, method="linear", seeds=(1, 2), **settings):
    """Final runs of these datasets; the second seed is one better."""
    for name, accuracy in accuracies.items():
        for i, seed in enumerate(seeds):
            config = {"backbone": "glyph", "method": {"name": method, **settings}, "seed": seed,
                      "task": {"name": "vtab", "dataset": f"/data/{name}", "phase": "final", "seed": seed},
                      "train": {"lr": accuracy / 100}}  # fmt: skip
            cost = {"seconds": 1.0, "trained_parameters": 10, "peak_memory_mb": 5.0, "trained_percent": 0.5}
            yield Result(config, [], {"accuracy": accuracy + i}, cost, {}, {})


def test_means_of_groups():
    """VTAB's score is the mean of the means of groups, which is not that of the tasks."""
    whole = {"a": 10.0, "b": 20.0, "c": 30.0, "d": 80.0}
    [score] = benchmarks.score_benchmark([*results_of(whole)], "set", GROUPS)
    assert {k: c.mean for k, c in score.group_means.items()} == {"near": 20.5, "far": 80.5}
    assert (score.mean_of_group_means.mean, score.mean_of_group_means.std, score.mean_of_group_means.n) == (
        50.5,
        0.5,
        2,
    )
    assert score.mean_of_tasks.mean == 35.5
    told = json.loads(benchmarks.render_benchmark([score], "set", GROUPS, "json"))[0]
    assert (told["mean_of_group_means"], told["mean_of_4_tasks"], told["trained_percent"]) == (50.5, 35.5, 0.5)
    assert told["stored_bytes"] is None


def test_runs_with_other_looks_are_not_mixed():
    """One task seen in two ways by the same settings and seed."""
    from dataclasses import replace as changed

    two = [*results_of({"a": 10.0, "b": 20.0, "c": 30.0, "d": 80.0})]
    two += [changed(r, config={**r.config, "preprocess": {"size": [16, 16]}}) for r in results_of({"a": 10.0})]
    found = {score.variant: score for score in benchmarks.score_benchmark(two, "set", GROUPS)}
    assert {variant: len(score.task_accuracies) for variant, score in found.items()} == {"size=": 4, "size=[16, 16]": 1}


def test_fgvc_trains_on_train_alone():
    both, train = VTAB("digits", "final"), VTAB("digits", "final", with_val=False)
    assert both.protocol["trained_on"] == "train+val"
    assert train.protocol["trained_on"] == "train"
    assert train.lesson.train.hash() == VTAB("digits", "search").lesson.train.hash()
    assert len(both.lesson.train) > len(train.lesson.train)


def test_a_group_that_lacks_a_task_has_no_mean():
    some = [*results_of({"a": 10.0, "c": 30.0, "d": 80.0})]
    [score] = benchmarks.score_benchmark(some, "set", GROUPS)
    assert score.group_means["near"] is score.mean_of_group_means is score.mean_of_tasks is None
    assert score.group_means["far"].mean == 80.5
    assert benchmarks.explain_missing_means([score]) == ["linear: near lacks b"]
    assert "linear: near lacks b" in benchmarks.render_benchmark([score], "set", GROUPS, "markdown")


def test_settings_that_were_not_chosen_apart_are_not_mixed():
    """VPT shallow and deep are two rows, though the number of tokens was searched; two learning rates are nobody's."""
    deep = [*results_of({"a": 10.0, "b": 20.0, "c": 30.0}, "vpt", deep=True, n_tokens=5)]
    deep += results_of({"d": 40.0}, "vpt", deep=True, n_tokens=10)
    flat = [*results_of({"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}, "vpt", deep=False, n_tokens=10)]
    found = benchmarks.score_benchmark([*deep, *flat], "set", GROUPS)
    assert [(s.label, s.mean_of_group_means.mean) for s in found] == [
        ("vpt (deep=true)", 30.5),
        ("vpt (deep=false)", 3.5),
    ]
    [score] = benchmarks.score_benchmark([*results_of({"a": 1.0, "d": 2.0}), *results_of({"a": 5.0})], "set", GROUPS)
    assert score.ambiguous_tasks == ["a"]
    assert "a" not in score.task_accuracies
    assert "runs of several settings, or on other images, on a" in benchmarks.explain_missing_means([score])[1]


def test_other_images_than_those_of_the_search_are_told(tmp_path, type_all, monkeypatch):
    """A list that changed since: neither what was chosen nor what was tested on the old images is mixed in."""
    monkeypatch.setenv("VLPROMPT_DATA", "")  # --root writes it
    root, out = tmp_path / "data", tmp_path / "out"
    vtab_root(root, ["vtab_svhn"])
    words = ["search", "linear", "vtab_svhn", "--root", str(root), "--out", str(out), "--seed", "1", *SETTINGS]
    words = [w for w in words if w]
    status, text, _ = type_all(*words)
    assert status == 0, text
    assert "where VTAB-1k has 800" in text  # stand-ins are told as such
    [lists] = root.rglob("val200.txt")
    for name in ("val200.txt", "test.txt"):
        path = lists.parent / name
        path.write_text("".join(path.read_text().splitlines(True)[:-1]))
    (lists.parent / "train800val200.txt").unlink(missing_ok=True)
    status, text, _ = type_all(*words)
    assert status == 2
    assert "expected a search of vtab_svhn on the same inputs, got one on others" in text
    assert "content of the test items: 10 (" in text or "content of the train items:" in text
    assert "--fresh" in text
    next(out.glob("search-*/chosen.json")).unlink()  # one that was stopped before it had chosen
    status, text, _ = type_all(*words)
    assert status == 2
    assert "expected a search of vtab_svhn on the same inputs, got one on others" in text
    assert "content of the test items: 10 (" in text or "content of the train items:" in text
    assert "--fresh" in text


def test_results_on_other_test_images_are_rows_of_their_own():
    from vlprompt.results.tables.summary import build_rows

    config = {"backbone": "glyph", "method": {"name": "coop"}, "train": {}, "seed": 1,
              "task": {"name": "few_shot", "dataset": "a", "shots": 1, "seed": 1}}  # fmt: skip
    cost = {"seconds": 1.0, "trained_parameters": 10, "peak_memory_mb": 5.0}
    two = [Result({**config, "seed": seed}, [], {"accuracy": 10.0 * seed}, cost, {}, {"test": test})
           for seed, test in ((1, "old"), (2, "new"))]  # fmt: skip
    assert sorted((row.variant, row.metrics["accuracy"].mean) for row in build_rows(two)) == [
        ("test=new", 20.0),
        ("test=old", 10.0),
    ]
    two[1].protocol["test"] = "old"
    [row] = build_rows(two)
    assert (row.variant, row.metrics["accuracy"].mean) == ("", 15.0)
