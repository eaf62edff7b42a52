"""tools/reproduce.py: plans of the literature's tables, runs on a tiny backbone, a kill in the middle, failures."""

import importlib.util
import io
import json
from pathlib import Path

import pytest
from kills import killed_when
from miniatures import Miniature
from PIL import Image

from vlprompt.config.resolve import resolve_grid
from vlprompt.data.cards import load_card, load_card_classes
from vlprompt.experiments.paper_recipes import compare_with_published, load_reference
from vlprompt.experiments.planning.bilinear_cost import CostModel
from vlprompt.experiments.planning.cost_model import (
    DatasetSize,
    MeasuredCosts,
    compute_workload,
    find_dataset_size,
    has_trainable_parameters,
    measure_costs,
)
from vlprompt.results.run_scan import read_runs
from vlprompt.runtime.settings import SETTINGS

TOOL = Path(__file__).parents[2] / "tools" / "reproduce.py"

ELEVEN = load_reference().averaged_datasets["base_to_new"]
TINY = ["--backbone", "glyph/random", "--methods", "zero_shot", "coop", "--shots", "2", "--seeds", "1,2"]
QUICK = ["--set", "train.epochs=1", "--out", "runs"]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("reproduce", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def reproduce(tool, tmp_path, monkeypatch, capsys):
    """Call the tool in an empty folder; gives (exit status, what it printed in one line)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("VLPROMPT_DATA", raising=False)
    monkeypatch.setattr(tool, "console", tool.Console(width=200))

    def called(*words):
        status = tool.main([str(w) for w in words])
        return status, " ".join(capsys.readouterr().out.split())

    return called


@pytest.fixture(scope="module")
def eleven(tmp_path_factory, pictures):
    """Folders called as the eleven datasets, of four classes of eight crops of real photographs."""
    root, crops = tmp_path_factory.mktemp("eleven"), sorted(pictures.rglob("*.jpg"))
    for d, dataset in enumerate(ELEVEN):
        for c in range(4):
            (root / dataset / f"class {c}").mkdir(parents=True)
            with Image.open(crops[6 * c + d % 3]) as picture:
                for i in range(8):
                    part = picture.crop((8 * i, 4 * i, 8 * i + 64, 4 * i + 64))
                    part.save(root / dataset / f"class {c}" / f"{i}.png")
    return [root / dataset for dataset in ELEVEN]


def laid_out(names, root, pictures):
    """The datasets of these cards as their authors lay them out, with all classes and five small pictures of each."""
    jpegs = []
    for path in sorted(pictures.rglob("*.jpg"))[::3]:
        with Image.open(path) as picture, io.BytesIO() as made:
            picture.resize((24, 24)).save(made, "jpeg")
            jpegs.append(made.getvalue())
    return [Miniature(name, root, jpegs, whole=True) for name in names]


def laid_out_and_run(reproduce, names, tmp_path, pictures, monkeypatch):
    """Base-to-new by the names of the cards: everything is done, and only named reasons make it incomparable."""
    laid_out(names, tmp_path / "data", pictures)
    monkeypatch.setenv("VLPROMPT_DATA", str(tmp_path / "data"))
    words = ["--table", "base-to-new", *TINY, "--seeds", "1", "--shots", "1", *QUICK, "--datasets", *names]
    status, text = reproduce(*words)
    assert status == 0, text
    results, left = read_runs(tmp_path / "runs")
    assert (len(results), left) == (2 * len(names), [])
    for result in results:
        assert result.protocol["split"] == "custom"  # a miniature does not have the literature's sizes
        assert len(result.class_accuracy[0]["joint"]) == len(load_card_classes(load_card(result.protocol["dataset"])))
    return text


@pytest.mark.slow
def test_layouts_of_real_datasets(reproduce, tmp_path, pictures, monkeypatch):
    names = ["eurosat", "oxford_pets", "fgvc_aircraft"]
    text = laid_out_and_run(reproduce, names, tmp_path, pictures, monkeypatch)
    assert "split not the literature's" in text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*several classes")
def test_layouts_of_all_eleven_make_the_whole_table(reproduce, tmp_path, pictures, monkeypatch):
    laid_out_and_run(reproduce, list(ELEVEN), tmp_path, pictures, monkeypatch)
    assert {row[0] for row in shown(tmp_path / "runs")} == {*ELEVEN, "average"}


def shown(root):
    """The comparison without what differs from run to run."""
    found = [p.to_flat_dict() for p in compare_with_published(read_runs(root)[0])[0]]
    return [(p["dataset"], p["method"], p["metric"], p["ours"], p["ours_std"], p["n"], p["published"]) for p in found]


def test_plan_run_and_run_again(reproduce, eleven, tmp_path):
    words = ["--table", "base-to-new", *TINY, "--seeds", "1", *QUICK, "--datasets", *eleven]
    status, text = reproduce(*words, "--plan")
    assert status == 0
    assert "eurosat coop 2 1 0 4 1 16 ? ?" in text  # shots, runs, done, images, steps, tested
    assert "22 runs, 0 done, 22 left (0 of them begun), 11 steps; time and memory are not known" in text
    assert not (tmp_path / "runs").exists()
    status, text = reproduce(*words)
    assert status == 0
    assert "base_to_new with glyph/random, against published" in text
    average = [row for row in shown(tmp_path / "runs") if row[0] == "average"]
    assert [row[1] for row in average] == ["zero_shot"] * 3 + ["coop"] * 10
    assert [row[6] for row in average[3:6]] == [82.69, 63.22, 71.66]
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    status, text = reproduce(*words)
    assert "22 runs, 22 done, 0 left" in text
    assert stamps == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_a_failure_loses_no_other_run(reproduce, eleven, tmp_path):
    words = ["--table", "few-shot", *TINY, *QUICK, "--datasets", tmp_path / "ucf101", eleven[0], eleven[1]]
    status, text = reproduce(*words)
    assert status == 1
    assert "missing: ucf101: dataset: expected a card or a folder" in text
    assert "failed: zero_shot-ucf101-2shot-seed1-" in text
    assert text.count("ValueError: dataset: expected a card or a folder") == 1  # four runs, one reason
    assert "8 of 12 runs are done; the same command tries the others again" in text
    assert len(list(tmp_path.rglob("result.json"))) == 8
    (tmp_path / "ucf101").symlink_to(eleven[2])
    status, text = reproduce(*words)
    assert status == 0
    assert "failed" not in text
    assert len(list(tmp_path.rglob("result.json"))) == 12


def test_transfer_is_trained_once(reproduce, eleven, tmp_path):
    """Cross-dataset: one training on the source, tests on all ten targets, and their average."""
    words = ["--table", "cross-dataset", *TINY, *QUICK, "--source", eleven[0], "--datasets", *eleven[1:]]
    status, text = reproduce(*words)
    assert status == 0
    assert "imagenet coop 2 2 0 8 1 88 ? ?" in text
    assert "transfer with glyph/random, against published" in text
    assert len(list(tmp_path.rglob("result.json"))) == 4
    numbers = {row[2] for row in shown(tmp_path / "runs") if row[1] == "coop"}
    assert numbers == {"source", "average", *ELEVEN[1:]}


def test_what_is_wrong_is_told(reproduce):
    words = ["--table", "base-to-new", "--backbone", "glyph/random", "--plan"]
    assert reproduce(*words, "--methods", "coopp") == (
        2,
        "error: method: expected a known name, got 'coopp'; did you mean 'coop'?",
    )
    status, text = reproduce(*words, "--seeds", "one")
    assert (status, "--seeds: expected whole numbers" in text) == (2, True)
    status, text = reproduce(*words, "--set", "train.epoch=1")
    assert (status, "did you mean 'epochs'?" in text) == (2, True)


@pytest.mark.slow
def test_a_kill_in_the_middle(reproduce, eleven, tmp_path):
    """Killed while a prompt learns, after other runs were done; the same command ends with the same table."""
    words = ["--table", "base-to-new", *TINY, "--datasets", str(eleven[0])]
    words += ["--set", "train.epochs=25", "--set", "train.lr=0.1", "--set", "train.batch_size=2"]
    assert reproduce(*words, "--out", "whole")[0] == 0
    killed = tmp_path / "killed"
    condition = 'any(folder.glob("*/last.safetensors")) and len(list(folder.glob("*/result.json"))) >= 2'
    killed_when(killed, condition, TOOL, *words, "--out", "killed", "--save-every", "0", cwd=tmp_path)
    done = {p: p.stat().st_mtime_ns for p in killed.glob("*/result.json")}
    assert 2 <= len(done) < 4
    begun = len(list(killed.glob("*/last.safetensors")))
    text = reproduce(*words, "--out", "killed", "--plan")[1]
    assert f"4 runs, {len(done)} done, {4 - len(done)} left ({begun} of them begun)" in text
    status, text = reproduce(*words, "--out", "killed")
    assert status == 0
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in done.items())
    assert shown(killed) == shown(tmp_path / "whole")
    learned = [
        {p.parent.name: p.read_bytes() for p in r.glob("*/prompt.safetensors")} for r in (killed, tmp_path / "whole")
    ]
    assert learned[0] == learned[1]


def planned(method, dataset, task="base_to_new", shots=16, more=()):
    backbone = "open_clip:ViT-B-16/openai"
    return resolve_grid([method], [shots], [1], dataset=dataset, task=task, backbone=backbone, overrides=more)[0]


STEPS = [  # iterations, not epochs, with short last batches dropped
    ("coop", "eurosat", 80, 200 * 2),
    ("kgcoop", "eurosat", 80, 100),
    ("coop", "oxford_pets", 304, 200 * 9),
    ("coop", "imagenet", 8000, 50 * 250),
    ("cocoop", "dtd", 384, 10 * 384),
]


@pytest.mark.parametrize(("method", "dataset", "images", "steps"), STEPS)
def test_steps_are_counted(method, dataset, images, steps):
    found = compute_workload(planned(method, dataset), {dataset: find_dataset_size(dataset)}, has_training=True)
    assert (found.images, found.steps) == (images, steps)


def test_images_are_counted():
    """Classes with few images, halves of an odd number, bases by name, all images, targets."""
    size = DatasetSize(5, 50, (3, 20, 20, 20, 20), ("a", "b", "c", "d", "e"))
    found = compute_workload(planned("coop", "x"), {"x": size}, has_training=True)
    assert (found.images, found.classes, found.tests) == (3 + 16 + 16, 3, ((50, 5), (30, 3), (20, 2)))
    found = compute_workload(planned("coop", "x", more=["task.base_classes=[a, e]"]), {"x": size}, has_training=False)
    assert (found.images, found.steps, found.tests) == (3 + 16, 0, ((50, 5), (20, 2), (30, 3)))
    every = compute_workload(
        planned("coop", "x", "few_shot", more=["task.shots=null", "train.epochs=2", "train.batch_size=80"]),
        {"x": size},
        has_training=True,
    )
    assert (every.images, every.steps) == (83, 2)
    sizes = {"x": size, "y": DatasetSize(7, 70)}
    assert compute_workload(
        planned("coop", "x", "transfer", more=["task.targets=[y]"]), sizes, has_training=True
    ).tests == (
        (50, 5),
        (70, 7),
    )
    unknown = compute_workload(planned("coop", "z"), {"z": find_dataset_size("z")}, has_training=True)
    assert (unknown.images, unknown.steps) == (0, 0)
    assert "per class, got 'z'" in find_dataset_size("z").missing_reason
    assert find_dataset_size("digits").classes == 10


def test_prices(tiny):
    """A line through two measured points; a step and a test that were measured; what is not trained has no steps."""
    assert CostModel.fit({(10, 1): 1.0, (40, 1): 4.0})(70) == pytest.approx(7.0)
    assert CostModel.fit({(10, 1): 4.0, (40, 1): 1.0})(70) == pytest.approx(
        4.0
    )  # noise of the clock is no negative price
    plan = planned("coop", "eurosat")
    found = compute_workload(plan, {"eurosat": find_dataset_size("eurosat")}, has_training=True)
    flat = [CostModel(x) for x in (2.0, 3.0, 0.5, 100.0)]
    assert MeasuredCosts(*flat).estimate_seconds(found) == 400 * 2.0 + 3 * 3.0 + 2 * 8100 * 0.5
    assert MeasuredCosts(*flat).estimate_megabytes(found) == 100.0
    cost = measure_costs(plan, tiny)
    assert cost.step(10) > 0
    assert cost.image(10) > 0
    assert cost.estimate_megabytes(found) > 10
    assert [has_trainable_parameters({"name": m}, tiny) for m in ("zero_shot", "coop", "nearest_mean")] == [
        False,
        True,
        False,
    ]
    assert measure_costs(planned("zero_shot", "eurosat"), tiny).step(40) == 0.0


def test_a_calibrated_plan(reproduce):
    words = ["--table", "base-to-new", "--backbone", "glyph/random", "--plan", "--methods", "coop", "zero_shot"]
    status, text = reproduce(*words, "--datasets", "eurosat", "--calibrate", "--root", "nowhere")
    assert status == 0
    assert "measuring a step of coop" in text
    assert " here time = steps x" in text
    assert SETTINGS.data_root == Path("nowhere")
    assert json.dumps("eurosat coop 16 3 0 80 400 16,200")[1:-1] in text
    assert "?" not in text.partition(" here time =")[0]
