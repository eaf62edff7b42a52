"""The domain task on the folders of PACS, photo/dog/pic_001.jpg: every method of adaptation, and what is refused."""

import shutil

import numpy as np
import pytest
from PIL import Image

from vlprompt.data.cards import load_card, load_card_classes
from vlprompt.results.run_folder import RunFolder, find_run_folders
from vlprompt.tasks import Domain

DOMAINS, EACH = ("photo", "art_painting", "cartoon", "sketch"), 5
SHORT = ["train.epochs=1", "task.epoch_metrics=false", "--backbone", "glyph/random", "--seed", "1"]
SETTINGS = {
    "zero_shot": [],
    "coop": ["method.n_ctx=2"],
    "pda": ["method.threshold=0.1", "method.depth=2", "method.coupled_depth=1"],
    "damp": ["method.n_ctx=2", "method.width=16", "method.n_layers=1", "method.threshold=0.1"],
    "dapl": ["method.threshold=0.1"],
    "upl": ["method.method=coop"],
    "entropy": ["method.method=coop", "method.weight=1", "method.diversity=1"],
}
SLOW = ("damp", "dapl", "upl", "entropy")


@pytest.fixture
def pacs(root):
    """PACS in small: each class a colour, each domain a brightness."""
    for d, domain in enumerate(DOMAINS):
        for c, name in enumerate(load_card_classes(load_card("pacs"))):
            folder = root / "PACS" / domain / name
            folder.mkdir(parents=True)
            for i in range(EACH):
                noise = np.random.default_rng([d, c, i]).integers(0, 60, (40, 36 + i, 3), dtype=np.uint8)
                colour = np.array([30 * c, 20 * d, 25 * (6 - c)], dtype=np.uint8)
                Image.fromarray(noise + colour).save(folder / f"pic_{i:03}.jpg")
    return root / "PACS"


@pytest.mark.filterwarnings("ignore:no confident pseudo-label for")  # a random CLIP knows no dog
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in SETTINGS])
def test_every_method_adapts_to_the_domain_that_is_left_out(name, pacs, type_in, tmp_path):
    words = name, "pacs", "--task", "domain", "--source", "rest", "--target", "sketch", "--out", tmp_path / "runs"
    status, printed = type_in("run", *words, *SETTINGS[name], *SHORT)
    assert status == 0, printed
    [folder] = find_run_folders(tmp_path / "runs")
    protocol = RunFolder(folder).read_result().protocol
    assert (protocol["sources"], protocol["target"]) == ([*DOMAINS[:3]], "sketch")
    assert protocol["classes"] == ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"]
    assert protocol["transductive"]
    assert protocol["test_images"] == protocol["unlabelled_images"] == 7 * EACH
    assert protocol["train_images"] + protocol["val_images"] == 3 * 7 * EACH


def test_every_domain_is_left_out_in_turn(pacs, type_in, tmp_path):
    words = "zero_shot", "pacs", "--task", "domain", "task.setting=generalise", "--out", tmp_path / "runs"
    assert type_in("run", *words, *SHORT)[0] == 0
    results = [RunFolder(folder).read_result() for folder in find_run_folders(tmp_path / "runs")]
    assert {r.protocol["target"]: len(r.protocol["sources"]) for r in results} == dict.fromkeys(DOMAINS, 3)


def test_the_three_criteria_on_a_benchmark_without_a_test_of_its_own(pacs):
    search = {"source": "rest", "target": "sketch", "setting": "generalise", "phase": "search"}
    folds = list(Domain("pacs", **search, criterion="leave-one-domain-out").stages())
    assert [len(stage.tests["val"]) for stage in folds] == [7 * EACH] * 3
    folders = [{item.name.split("/")[0] for item in stage.tests["val"].items} for stage in folds]
    assert folders == [{name} for name in DOMAINS[:3]]
    for criterion, names in (("training-domain", {*DOMAINS[:3]}), ("test-domain", {"sketch"})):
        [stage] = Domain("pacs", **search, criterion=criterion).stages()
        assert {item.name.split("/")[0] for item in stage.tests["val"].items} == names


def test_a_domain_without_a_class_of_the_source_is_refused(pacs, type_in, tmp_path):
    shutil.rmtree(pacs / "sketch" / "giraffe")
    words = "zero_shot", "pacs", "--task", "domain", "--source", "photo", "--target", "sketch", "--out", tmp_path
    status, printed = type_in("run", *words, *SHORT)
    assert status != 0
    assert "giraffe" in printed


def test_a_target_without_a_class_that_the_source_has_in_common_is_refused(pacs, type_in, tmp_path):
    others = tmp_path / "others"
    for old, new in (("dog", "hound"), ("house", "building")):
        shutil.copytree(pacs / "photo" / old, others / new)
    source = tmp_path / "source"
    for name in ("dog", "house"):
        shutil.copytree(pacs / "photo" / name, source / name)
    words = "pda", "--source", source, "--target", others, "--out", tmp_path / "runs"
    status, printed = type_in("run", *words, *SETTINGS["pda"], *SHORT)
    assert status != 0
    assert "task.classes: expected classes with images in source, got 'building' and 1 more of the target" in printed
    status, printed = type_in("run", *words, *SETTINGS["pda"], *SHORT, "task.classes=shared")
    assert status != 0
    assert "task.classes: expected at least two classes that source and target share, got 0" in printed
