"""VTAB-1k and FGVC: every card against its lists, every way the lists can be wrong, and the groups of the score."""

import json
import random
import shutil

import numpy as np
import pytest
from miniatures import FOLDERS, fgvc, pack, vtab_root
from scipy.io import loadmat, savemat

from vlprompt.core.class_names import class_ids
from vlprompt.core.images import Preprocessing
from vlprompt.data import dataset_groups as grouped
from vlprompt.data.cards import load_card, load_card_classes
from vlprompt.data.dataset_groups import list_benchmark_datasets, read_benchmarks
from vlprompt.data.loading import open_data
from vlprompt.tasks import FewShot

VTAB = {  # classes and test images of each task
    "vtab_cifar100": (100, 10000), "vtab_caltech101": (102, 6084), "vtab_dtd": (47, 1880), "vtab_flowers": (102, 6149),
    "vtab_pets": (37, 3669), "vtab_svhn": (10, 26032), "vtab_sun397": (397, 21750), "vtab_camelyon": (2, 32768),
    "vtab_eurosat": (10, 5400), "vtab_resisc45": (45, 6300), "vtab_retinopathy": (5, 42670),
    "vtab_clevr_count": (8, 15000), "vtab_clevr_distance": (6, 15000), "vtab_dmlab": (6, 22735),
    "vtab_kitti": (4, 711), "vtab_dsprites_location": (16, 73728), "vtab_dsprites_orientation": (16, 73728),
    "vtab_smallnorb_azimuth": (18, 12150), "vtab_smallnorb_elevation": (9, 12150),
}  # fmt: skip
LOOK = Preprocessing((8, 8))
FGVC = {"fgvc_cub": 200, "fgvc_nabirds": 555, "fgvc_flowers": 102, "fgvc_dogs": 120, "fgvc_cars": 196}


@pytest.fixture(scope="session")
def vtab(tmp_path_factory):
    return vtab_root(tmp_path_factory.mktemp("vtab"), per=1)


@pytest.fixture
def kitti(tmp_path, monkeypatch):
    """The folder of a small KITTI under a root that the environment names."""
    monkeypatch.setenv("VLPROMPT_DATA", str(tmp_path / "root"))
    return vtab_root(tmp_path / "root", ["vtab_kitti"]) / "vtab-1k" / "kitti"


@pytest.fixture
def birds(tmp_path, jpegs, monkeypatch):
    """The folder of a small CUB with the published lists."""
    monkeypatch.setenv("VLPROMPT_DATA", str(tmp_path / "root"))
    return fgvc("fgvc_cub", tmp_path / "root", jpegs)[0]


def rows(split):
    return [(item.name, label) for item, label in zip(split.items, split.labels, strict=True)]


def listed(path):
    return [(name, int(label)) for name, label in (line.split() for line in path.read_text().splitlines())]


def change(path, *pairs):
    text = path.read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text)


def test_groups_hold_every_task_once():
    told = read_benchmarks()
    assert {name: len(of_group) for name, of_group in told["vtab"].items()} == {
        "natural": 7,
        "specialized": 4,
        "structured": 8,
    }
    assert list_benchmark_datasets("vtab") == list(VTAB)
    assert list_benchmark_datasets("fgvc") == list(FGVC)
    assert list_benchmark_datasets("dtd") is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("mine: {all: [dtd, dtt]}", "mine: expected datasets with a card, got 'dtt'; did you mean 'dtd'"),
        ("mine: {one: [dtd], two: [dtd]}", "mine: expected each dataset once, got 'dtd' twice"),
        ("mine: [dtd]", r"mine: groups: expected {group: \[dataset, ...\]}, got \['dtd'\]"),
        ("[dtd]", r"expected {benchmark: {group: \[dataset, ...\]}}, got a list"),
        ("mine: [", "is not YAML"),
    ],
)
def test_wrong_groups(tmp_path, monkeypatch, text, told):
    (tmp_path / "groups.yaml").write_text(text)
    monkeypatch.setattr(grouped, "find_configs_folder", lambda: tmp_path)
    with pytest.raises(ValueError, match=told):
        read_benchmarks()


@pytest.mark.parametrize("name", VTAB)
def test_a_task_of_vtab_is_its_lists(vtab, name):
    card, (classes, test) = load_card(name), VTAB[name]
    assert (len(load_card_classes(card)), card.sizes) == (classes, {"train": 800, "val": 200, "test": test})
    data = open_data(name, root=vtab)
    folder = vtab / card.folder
    for part, file in (("train", "train800"), ("val", "val200"), ("test", "test")):
        assert rows(getattr(data, part)) == listed(folder / f"{file}.txt")
    assert [str(n) for n in data.train.names] == list(load_card_classes(card).values())
    assert data.train.augment == "none"
    assert f"lists of {classes}/{classes}/{2 * classes} images" in data.note  # what a result says of it
    assert data.test.items[0].pixels(LOOK, None).shape == (3, 8, 8)


def test_classes_stand_in_the_order_of_the_labels():
    def named(name, *labels):
        return [list(load_card_classes(load_card(f"vtab_{name}")).values())[label] for label in labels]

    assert named("caltech101", 0, 1, 4, 5, 101) == ["accordion", "airplane", "background", "barrel", "yin_yang"]
    assert named("cifar100", 0, 99) == ["apple", "worm"]
    assert named("clevr_count", 0, 7) == ["3 objects", "10 objects"]
    assert named("kitti", 3) == ["no vehicle"]
    assert named("smallnorb_azimuth", 1, 17) == ["20 degrees", "340 degrees"]
    assert named("sun397", 0, 396) == ["abbey", "youth_hostel"]
    assert named("dmlab", 5) == ["class 5"]


def test_the_published_lists_are_known_by_their_sizes(tmp_path, monkeypatch, type_in):
    folder = tmp_path / "root" / "vtab-1k" / "kitti"
    (folder / "images").mkdir(parents=True)
    lists = {"train800": 800, "val200": 200, "test": 711}
    for part, many in lists.items():
        lines = [f"images/{part}_{i}.jpg {i % 4}" for i in range(many)]
        for line in lines:
            (folder / line.split()[0]).touch()
        (folder / f"{part}.txt").write_text("\n".join(lines))
    monkeypatch.setenv("VLPROMPT_DATA", str(tmp_path / "root"))
    task = FewShot("vtab_kitti", shots=None)
    assert (task.protocol["split"], task.protocol["note"]) == ("literature", "the lists of VTAB-1k")
    code, text = type_in("data", "prepare", "vtab_kitti")
    assert (code, text.endswith("ready")) == (0, True)


@pytest.mark.parametrize(
    ("file", "pairs", "told"),
    [
        (
            "train800.txt",
            [(" 1\n", " 4\n")],
            "train800.txt, line 3: expected labels 0 to 3 as on the card, got 4. Correct",
        ),
        ("test.txt", [(" 0\n", " cat\n")], 'test.txt, line 1: expected "path label", .*, got .* cat.*Correct the line'),
        ("test.txt", [(" 0\n", " -1\n")], 'test.txt, line 1: expected "path label", .*, got .* -1.*Correct the line'),
        (
            "val200.txt",
            [("images/", "../")],
            "val200.txt, line 1: expected a path inside the folder of the list, got .*../",
        ),
        (
            "test.txt",
            [("000001", "000000")],
            "test.txt, line 2: expected each image once, got .* twice. Remove one line",
        ),
        (
            "val200.txt",
            [("val200/000000", "train800/000000")],
            "got .*train800/000000.jpg' in train800.txt and in val2",
        ),
        (
            "test.txt",
            [("test/000000", "val200/000000")],
            "got .* in val200.txt and in test.txt. Images to train on must not",
        ),
        (
            "train800val200.txt",
            [(" 0\n", " 1\n")],
            "expected the labels of train800.txt and val200.txt together, got others in train800val200.txt",
        ),
        ("test.txt", [("000001", "gone")], r"got 1 image that is not there \(images/test/gone.jpg\)"),
    ],
)
def test_wrong_lists(kitti, file, pairs, told):
    change(kitti / file, *pairs)
    with pytest.raises(ValueError, match=told):
        open_data("vtab_kitti")


def test_the_long_list_is_the_two_short_ones(kitti):
    """With copies of the files, as in the small root, or with the same files."""
    long = kitti / "train800val200.txt"
    assert "no copies" not in open_data("vtab_kitti").note
    (kitti / "images/train800val200/000003.jpg").write_bytes(b"another")
    assert (
        "files of train800val200.txt are no copies of those of train800.txt and val200" in open_data("vtab_kitti").note
    )
    good = (kitti / "train800.txt").read_text() + (kitti / "val200.txt").read_text()
    long.write_text(good)
    assert "no copies" not in open_data("vtab_kitti").note
    for old, new, told in (
        ("train800/000003", "new", "got 'images/new.jpg' in train800val200.txt but not in train800.txt and val200.txt"),
        (
            "images/train800/000003.jpg 1\n",
            "",
            "000003.jpg' in train800.txt and val200.txt but not in train800val200",
        ),
        (" 0\n", " 1\n", "expected the label 0 of .* as in train800.txt and val200.txt, got 1 in train800val200.txt"),
    ):
        assert old in good
        long.write_text(good.replace(old, new, 1))
        with pytest.raises(ValueError, match=told):
            open_data("vtab_kitti")


def test_lists_that_are_missing_or_empty(kitti, type_in):
    (kitti / "train800val200.txt").unlink()  # nobody needs it
    assert len(open_data("vtab_kitti").train) == 8
    (kitti / "val200.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"val200.txt: expected a line for each image, got none. Get it again"):
        open_data("vtab_kitti")
    (kitti / "val200.txt").unlink()
    code, text = type_in("data", "check", "vtab_kitti")
    assert code == 2
    assert f"'{kitti}': expected train800.txt, val200.txt, test.txt, got no val200.txt. Put them there" in text


def test_a_class_may_lack_training_images_but_not_all(kitti):
    for file in ("train800", "val200", "train800val200"):
        lines = [line for line in (kitti / f"{file}.txt").read_text().splitlines() if not line.endswith(" 2")]
        (kitti / f"{file}.txt").write_text("\n".join(lines))
    data = open_data("vtab_kitti")
    assert (data.train.count_per_class(), data.test.count_per_class()) == ([2, 2, 0, 2], [2, 2, 2, 2])
    lines = [line for line in (kitti / "test.txt").read_text().splitlines() if not line.endswith(" 2")]
    (kitti / "test.txt").write_text("\n".join(lines))
    with pytest.raises(
        ValueError, match=r"expected train images of all 4 classes, got none of 1 .*`vlprompt data prepare vtab_kitti"
    ):
        open_data("vtab_kitti")


def test_what_the_commands_say_of_a_task(kitti, type_in):
    code, text = type_in("data", "check", "vtab_kitti")
    assert (code, "wrong: the card has 800/200/711 images in train/val/test, here are 8/4/8" in text) == (1, True)
    code, text = type_in("data", "show", "vtab_kitti")
    assert (code, "here train 8, val 4, test 8" in text) == (0, True)
    code, text = type_in("run", "nearest_mean", "vtab_kitti", "--backbone", "pixels", "task.shots=null")
    assert code == 0, text
    shutil.rmtree(kitti)
    code, text = type_in("data", "prepare", "vtab_kitti")
    assert code == 1
    assert "train800.txt, val200.txt, train800val200.txt and test.txt" in text
    assert f"all into {kitti}" in text
    assert "Get the data by hand: the folder kitti of vtab-1k" in type_in("data", "check", "vtab_kitti")[1]


@pytest.mark.parametrize("name", FGVC)
def test_a_set_of_fgvc_is_its_published_lists(name, tmp_path, jpegs):
    folder, made = fgvc(name, tmp_path, jpegs)
    card = load_card(name)
    data = open_data(name, root=tmp_path, allow_missing_classes=True)
    for part, wanted in made.items():
        assert rows(getattr(data, part)) == wanted
    assert "the lists train.json, val.json, test.json" in data.note
    assert "not the literature's split" not in data.note
    assert data.train.augment == "shift-flip"
    assert len(load_card_classes(card)) == FGVC[name]
    if name in FOLDERS:
        assert class_ids(data.test.names) == FOLDERS[name]
    else:
        assert [str(n) for n in data.test.names] == list(load_card_classes(card).values())[:3]
    with pytest.raises(ValueError, match="classes"):
        open_data(name, root=tmp_path)
    assert folder.name == card.folder


def test_names_that_the_data_hold(tmp_path, jpegs):
    wanted = {
        "fgvc_cub": ["Black footed Albatross", "Laysan Albatross", "Common Yellowthroat"],
        "fgvc_nabirds": ["American Black Duck", "Oak Titmouse", "House Sparrow (Female/Juvenile)"],
        "fgvc_dogs": ["Chihuahua", "beagle", "African hunting dog"],
    }
    for name, names in wanted.items():
        fgvc(name, tmp_path, jpegs)
        assert [str(n) for n in open_data(name, root=tmp_path, allow_missing_classes=True).test.names] == names
    (tmp_path / "nabirds" / "images" / "0777").mkdir()
    with pytest.raises(
        ValueError, match=r"0777': expected a class of classes.txt, got another folder. Remove the folder"
    ):
        open_data("fgvc_nabirds", root=tmp_path)


@pytest.mark.parametrize("name", FGVC)
def test_without_them_the_authors_own_lists_are_read(name, tmp_path, jpegs, monkeypatch, type_in):
    monkeypatch.setenv("VLPROMPT_DATA", str(tmp_path))
    _, made = fgvc(name, tmp_path, jpegs, lists=False)
    data = open_data(name, allow_missing_classes=True)
    assert rows(data.test) == made["test"]
    assert sorted(rows(data.train) + rows(data.val)) == sorted(made["train"] + made["val"])
    assert (data.train.count_per_class(), data.val.count_per_class()) == ([7, 7, 7], [1, 1, 1])  # a tenth of 8 each
    assert "not the literature's split, which is train.json, val.json, test.json" in data.note
    assert ("a tenth of train is val" in data.note) == (name != "fgvc_flowers")  # which has a val of its own
    assert open_data(name, allow_missing_classes=True).hash() == data.hash()
    assert FewShot(data, shots=None).protocol["split"] == "custom"
    code, text = type_in("data", "check", name)
    assert (code, f"{FGVC[name] - 3} of {FGVC[name]} classes have no images" in text) == (1, True)
    assert type_in("data", "check", name, "--allow-missing-classes")[0] == 0


def test_labels_of_lists_are_places_in_their_order(tmp_path, jpegs):
    """As VPT reads them: from any number on and with gaps, where all classes are there."""
    folder, _ = fgvc("fgvc_flowers", tmp_path, jpegs)
    for part in ("train", "val", "test"):
        told = {f"jpg/{part}_{k}.jpg": 997 * k + 5 for k in random.Random(0).sample(range(102), 102)}
        for file in told:
            (folder / file).touch()
        (folder / f"{part}.json").write_text(json.dumps(told))
    data = open_data("fgvc_flowers", root=tmp_path)
    for part in (data.train, data.val, data.test):
        assert {int(file.split("_")[1][:-4]): label for file, label in rows(part)} == {k: k for k in range(102)}


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        (
            "val.json",
            '{"001.Black_footed_Albatross/a0.jpg": 0}',
            "got .* in train.json and in val.json. Get the lists again",
        ),
        (
            "val.json",
            '{"002.Laysan_Albatross/h1.jpg": 0}',
            "expected one class for the label 0, got .* and images of '001.Black_footed_Albatross'",
        ),
        ("val.json", '{"003.Ani/h1.jpg": 2}', "expected a folder '003.Ani' of a class, got none"),
        (
            "val.json",
            '{"001.Black_footed_Albatross/h0.jpg": true}',
            "expected labels that are whole numbers from 0, got True",
        ),
        ("val.json", '{"../h0.jpg": 0}', "expected paths inside the folder of images, got '../h0.jpg'"),
        ("val.json", "[]", r"expected {path: label}, got a list. Get it again"),
        ("val.json", "{", "expected JSON, got another format .*Get it again"),
        ("val.json", None, "expected val.json next to others of its lists, got no such file. Add it"),
    ],
)
def test_wrong_published_lists(birds, file, text, told):
    (birds / file).unlink() if text is None else (birds / file).write_text(text)
    with pytest.raises((ValueError, OSError), match=told):
        open_data("fgvc_cub", allow_missing_classes=True)


def test_more_labels_than_classes(tmp_path, jpegs):
    folder, made = fgvc("fgvc_cars", tmp_path, jpegs)
    (folder / "val.json").write_text(json.dumps({made["val"][0][0]: 196}))
    with pytest.raises(ValueError, match="expected 196 labels as on the card, got 4 in "):
        open_data("fgvc_cars", root=tmp_path, allow_missing_classes=True)


def test_wrong_lists_of_the_authors(tmp_path, jpegs):
    folder, _ = fgvc("fgvc_cub", tmp_path, jpegs, lists=False)
    table = folder / "image_class_labels.txt"
    good = table.read_text()
    for old, new, told in (
        ("\n2 1", "\n2 2", r"expected '001.*' in the class of its folder, got the class 2 in image_class_labels.txt"),
        ("\n2 1", "", "got none of the image 2. Get both again"),
        ("\n2 1", "\n2", "expected lines of a key and a value, got '2'"),
    ):
        table.write_text(good.replace(old, new, 1))
        with pytest.raises(ValueError, match=told):
            open_data("fgvc_cub", root=tmp_path, allow_missing_classes=True)
    table.write_text(good)
    for number in range(3, 201):
        (folder / "images" / f"{number:03}.More").mkdir()
    with pytest.raises(ValueError, match=r"expected 200 class folders as on the card, got 201. Remove the folders"):
        open_data("fgvc_cub", root=tmp_path, allow_missing_classes=True)
    folder, _ = fgvc("fgvc_dogs", tmp_path, jpegs, lists=False)
    savemat(folder / "test_list.mat", {"labels": loadmat(folder / "test_list.mat")["labels"]})
    with pytest.raises(ValueError, match=r"test_list.mat': expected a file_list, got none. Get it again"):
        open_data("fgvc_dogs", root=tmp_path, allow_missing_classes=True)


def test_a_set_is_fetched_and_its_lists_are_asked_for(tmp_path, jpegs, monkeypatch, type_in):
    monkeypatch.setenv("VLPROMPT_DATA", str(tmp_path / "root"))
    folder, _ = fgvc("fgvc_dogs", tmp_path / "made", jpegs, lists=False)
    (tmp_path / "served").mkdir()
    pack(tmp_path / "served" / "images.tar", [(folder / "Images", "Images")], "")
    mats = [(folder / f"{part}_list.mat", f"{part}_list.mat") for part in ("train", "test")]
    pack(tmp_path / "served" / "lists.tar", mats, "")
    assert "classes 120: the data name them" in type_in("data", "show", "fgvc_dogs")[1]
    words = ["data", "prepare", "fgvc_dogs", "--allow-missing-classes", "--download", "--from", tmp_path / "served"]
    code, text = type_in(*words)
    assert code == 0, text
    assert "by hand: the lists train.json, val.json and test.json are linked in the README" in text
    assert "train 21, val 3, test 6; 3 classes" in text
    assert (
        "classes 3: Chihuahua, beagle, African hunting dog"
        in type_in("data", "show", "fgvc_dogs", "--allow-missing-classes")[1]
    )


def test_the_pictures_of_the_small_root_can_be_told_apart(vtab):
    data = open_data("vtab_dmlab", root=vtab)
    mean = [np.asarray(split.items[k].pixels(LOOK, None).mean((1, 2))) for split in (data.train,) for k in range(6)]
    seen = [int(np.argmin([np.abs(m - np.asarray(i.pixels(LOOK, None).mean((1, 2)))).sum() for m in mean]))
            for i in data.test.items]  # fmt: skip
    assert seen == list(data.test.labels)
