"""What a user's folder or list is taken for: said, or refused where it can be two things; leftovers are no data."""

import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

import vlprompt
from vlprompt.backbones.cache.disk import FORMAT_VERSION
from vlprompt.core.images import Preprocessing
from vlprompt.data.cards import load_card
from vlprompt.data.images.decoding import open_image
from vlprompt.data.loading import open_data
from vlprompt.data.readers.python_objects import from_torchvision
from vlprompt.data.readers.split_file import SAVED_SPLIT_FILE
from vlprompt.tasks import Transfer

QUICK = ("--backbone", "pixels", "--shots", "1")


@pytest.fixture
def draw(tmp_path):
    """Draw n different images (8, 8) into each folder; give the folder of all."""
    count = iter(range(1, 10**6))

    def write(*folders, n=6, root="set"):
        for folder in folders:
            (tmp_path / root / folder).mkdir(parents=True, exist_ok=True)
            for i in range(n):
                pixels = np.full((8, 8, 3), next(count), np.uint32).view(np.uint8).reshape(8, 8, -1)[..., :3]
                Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / root / folder / f"{i}.png")
        return tmp_path / root

    return write


def sizes(data):
    return [None if split is None else len(split) for split in (data.train, data.val, data.test)]


def names_of(data):
    return {item.name for split in (data.train, data.val, data.test) for item in split.items}


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"),
        ("train_set", "test_set"),
        ("train2017", "test2017"),
        ("TRAIN", "Test-Data"),
        ("seg_train/seg_train", "seg_test/seg_test"),
    ],
)
def test_names_of_splits_have_synonyms(train, test, draw, type_in):
    draw(f"{train}/cat", f"{train}/dog", n=10)
    draw(f"{test}/cat", f"{test}/dog", n=3)
    data = open_data("set")
    assert sizes(data) == [16, 4, 6]
    assert all(item.name.startswith(test.split("/")[0]) for item in data.test.items)
    code, text = type_in("run", "nearest_mean", "set", *QUICK)
    assert code == 0
    assert "2 classes (cat, dog); train 16, val 4, test 6; layout splits" in text


@pytest.mark.parametrize(
    ("tops", "said"),
    [
        (
            ("train2017", "val2017"),
            "expected both train/ and test/, got train2017/, val2017/. Add the other, or rename",
        ),
        (("fold1", "fold2", "fold3"), "got the folds fold1, fold2, fold3, which are no such thing. Put the images of"),
        (("trainA", "trainB", "testA"), "got testA, trainA, trainB, which look like parts of splits. Rename them"),
        (("dogs_train", "dogs_test"), "got dogs_test, dogs_train, which look like parts of splits. Rename them"),
        (("train", "Training", "test"), "expected one train split, got 'Training' and 'train'. Rename or remove one."),
        (
            ("photo", "train"),
            "can be the domains photo, train or the splits train, of which test/ is missing. Choose by",
        ),
    ],
)
def test_folders_that_look_like_parts_are_no_domains(tops, said, draw, type_in):
    draw(*(f"{top}/{name}" for top in tops for name in ("cat", "dog")))
    for command in (("run", "nearest_mean", "set", *QUICK), ("data", "check", "set")):
        code, text = type_in(*command)
        assert (code, said in text) == (2, True), text
    if tops[0] == "train":
        return
    code, text = type_in("data", "check", "set", "--layout", "domains")
    assert (code, "layout domains: task.layout=domains" in text, f"domains: {sorted(tops)[0]} 6/" in text) == (
        0,
        True,
        True,
    )


def test_folders_in_folders_are_classes_or_groups(draw, type_in):
    draw("animals/dog", "animals/cat", "vehicles/car")
    code, text = type_in("run", "nearest_mean", "set", *QUICK)
    assert code == 2
    assert "can be the classes animals, vehicles or the classes car, cat, dog in them" in text
    assert "Choose by task.layout=classes or task.layout=groups (--layout of" in text
    for layout, classes in {"classes": "2 classes (animals, vehicles)", "groups": "3 classes (car, cat, dog)"}.items():
        code, text = type_in("run", "nearest_mean", "set", *QUICK, f"task.layout={layout}")
        assert (code, classes in text, f"layout {layout} (task.layout={layout})" in text) == (0, True, True), text
    draw("vehicles/dog")
    code, text = type_in("data", "check", "set", "--layout", "groups")
    assert (code, "got 'dog' in animals/ and in vehicles/. Rename one" in text) == (2, True)


def test_splits_inside_the_classes_are_no_domains(draw, type_in):
    draw("cat/train", "cat/test", "dog/train", "dog/test")
    code, text = type_in("run", "nearest_mean", "set", *QUICK)
    assert (code, "expected train/ and test/ above the class folders, got them inside" in text) == (2, True)
    assert sizes(open_data("set", layout="classes")) == [12, 4, 8]


def test_a_class_may_be_called_train(draw, type_in):
    draw("bus", "car", "train")
    code, text = type_in("run", "nearest_mean", "set", *QUICK)
    assert (code, "3 classes (bus, car, train); train 9" in text) == (0, True), text
    assert "so train/ is a class" in text
    draw("test")
    code, text = type_in("data", "check", "set")
    assert "can be the classes bus, car, test, train or the splits test/, train. Choose by task.layout=classes" in text
    assert len(open_data("set", layout="classes").test.names) == 4


def test_other_folders_beside_splits_are_told(draw, type_in):
    draw("train/cat", "train/dog", "test/cat", "test/dog", "extra/cat")
    code, text = type_in("run", "nearest_mean", "set", *QUICK)
    assert (code, "note: sub-folders that are no split are left out: extra" in text) == (0, True)


def test_a_layout_is_one_of_a_folder(draw, type_in):
    draw("cat", "dog")
    assert (
        "task.layout: expected one of classes (each"
        in type_in("run", "nearest_mean", "set", *QUICK, "task.layout=x")[1]
    )
    code, text = type_in("run", "nearest_mean", "digits", *QUICK, "task.layout=classes")
    assert (code, "expected none for a dataset that is no folder of images, got 'classes' for 'digits'" in text) == (
        2,
        True,
    )
    code, text = type_in("data", "check", "set", "--layout", "domains")
    assert (code, "task.layout=domains: expected two or more sub-folders" in text) == (2, True)
    draw("a/cat", "a/dog", "b/emu", root="other")
    with pytest.raises(ValueError, match=r"Choose by task.layout=classes or task.layout=groups"):
        Transfer("digits", ["other"], shots=1).target_data.values()
    assert len(Transfer("digits", ["other"], shots=1, layout="groups").target_data["other"].test.names) == 3


def test_eval_takes_a_layout(draw, type_in, tmp_path):
    draw("cat", "dog")
    draw("a/cat", "a/dog", "b/emu", "b/fox", root="other")
    assert type_in("run", "zero_shot", "set", "--backbone", "glyph/random", "--shots", "1")[0] == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert type_in("eval", run, "other")[0] == 2
    assert type_in("eval", run, "other", "--layout", "groups")[0] == 0
    assert type_in("eval", run)[0] == 0


def test_members_of_a_card_take_a_layout(draw, tmp_path, monkeypatch):
    draw("a/cat", "b/dog")
    told = {"title": "Both", "source": "me", "licence": "mine", "template": "a {name}.", "classes": 12}
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(told | {"members": {"one": "set", "two": "digits"}}))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"member one: .*Choose by task.layout=classes or task.layout=groups"):
        open_data("both.yaml")
    assert [str(name) for name in open_data("both.yaml", layout="groups").test.names[:3]] == ["cat", "dog", "zero"]


LEFTOVERS = (".ipynb_checkpoints/0-checkpoint.png", "._0.png", "__MACOSX/0.png", "@eaDir/0.png", ".hidden.png")


def leave(folder, source):
    for leftover in LEFTOVERS:
        (folder / leftover).parent.mkdir(exist_ok=True)
        shutil.copy(source, folder / leftover)
    (folder / "._9.png").write_bytes(b"resource fork")
    (folder / "Thumbs.db").write_bytes(b"thumbnails")


@pytest.mark.parametrize("folders", [("cat", "dog"), ("photo/cat", "photo/dog", "art/cat", "art/dog")])
def test_leftovers_of_systems_are_no_data(folders, draw, type_in):
    root = draw(*folders)
    before = open_data("set")
    for folder in (*folders, *{folder.split("/")[0] for folder in folders}, "."):
        leave(root / folder, root / folders[0] / "0.png")
    (root / "__MACOSX" / "cat").mkdir()
    after = open_data("set")
    assert (after.hash(), names_of(after)) == (before.hash(), names_of(before))
    assert type_in("data", "check", "set")[0] == 0


def test_nor_in_the_layouts_of_cards(root, draw, tmp_path):
    card = load_card("eurosat")
    folders = list(card.listed_classes())
    images = draw(*folders, n=4, root=f"root/{card.folder}/{card.images}")
    before = open_data("eurosat")
    for folder in (folders[0], "."):
        leave(images / folder, images / folders[0] / "0.png")
    assert open_data("eurosat").hash() == before.hash()
    assert open_data("eurosat").note == before.note


def test_nor_among_tables_of_texts(tmp_path, type_in):
    for part in ("train", "test", "._train"):
        rows = [f"text {part} {i},{'ab'[i % 2]}\n" for i in range(12)]
        (tmp_path / f"{part}.csv").write_text("".join(["text,label\n", *rows]))
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    assert len(open_data(str(tmp_path)).test) == 12


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["0,cat,", "1,dog,", "0,dog,"], "got 'set/cat/0.png' in row 2 (cat) and in row 4 (dog). Remove one of them."),
        (["0,cat,train", "1,dog,test", "0,cat,test"], "in row 2 (cat, train) and in row 4 (cat, test). Remove one"),
    ],
)
def test_an_image_is_listed_in_one_class_and_split(rows, said, draw, type_in, tmp_path):
    draw("cat", "dog")
    header = "path,class,split" if rows[0].endswith("train") else "path,class"
    lines = [f"set/cat/{row.rstrip(',').replace(',', '.png,', 1)}\n" for row in rows]
    (tmp_path / "data.csv").write_text("".join([f"{header}\n", *lines]))
    for command in (("run", "nearest_mean", "data.csv", *QUICK), ("data", "check", "data.csv")):
        code, text = type_in(*command)
        assert (code, said in text) == (2, True), text


def test_repeated_rows_are_told_and_counted_once(draw, type_in, tmp_path):
    draw("cat", "dog")
    lines = [f"set/{name}/{i}.png,{name}\n" for name in ("cat", "dog") for i in range(6)]
    (tmp_path / "data.csv").write_text("".join(["path,class\n", *lines]))
    before = open_data("data.csv")
    (tmp_path / "data.csv").write_text("".join(["path,class\n", *lines, lines[0].replace("set/", "set/./")]))
    assert open_data("data.csv").hash() == before.hash()
    code, text = type_in("run", "nearest_mean", "data.csv", *QUICK)
    assert (
        code,
        "note: 1 entries of data.csv repeat others and are counted once (row 14: set/./cat/0.png)" in text,
    ) == (
        0,
        True,
    )


def test_a_split_file_lists_an_image_once(draw, type_in, tmp_path):
    draw("cat", "dog")
    rows = [[f"set/{name}/{i}.png", label, name] for label, name in enumerate(("cat", "dog")) for i in range(6)]
    (tmp_path / "split.json").write_text(json.dumps({"train": rows, "test": rows[3:9]}))
    code, text = type_in("run", "nearest_mean", "split.json", *QUICK)
    assert (code, "in number 3 of train (cat, train) and in number 0 of test (cat, test)" in text) == (2, True), text


def test_check_finds_images_of_equal_content(draw, type_in):
    root = draw("train/cat", "train/dog", "test/cat", "test/dog")
    assert type_in("data", "check", "set")[0] == 0
    shutil.copy(root / "train" / "cat" / "0.png", root / "test" / "cat" / "copy.png")
    shutil.copy(root / "train" / "cat" / "1.png", root / "train" / "dog" / "copy.png")
    code, text = type_in("data", "check", "set")
    assert code == 1
    assert "wrong: 1 images of equal content are in several splits: train/cat/0.png (" in text
    assert "1 images of equal content are in several classes: train/cat/1.png (" in text
    for copy in ("test/cat/copy.png", "train/dog/copy.png"):
        (root / copy).unlink()
    shutil.copy(root / "test" / "cat" / "0.png", root / "test" / "cat" / "copy.png")
    code, text = type_in("data", "check", "set")
    assert (code, "1 images of equal content are repeated within a class of a split: test/cat/0.png" in text) == (
        0,
        True,
    )


@pytest.mark.parametrize("name", ["eurosat", "sst2"])
def test_a_folder_of_a_cards_name_is_told(name, root, draw, type_in):
    draw("cat", "dog", root=name)
    code, text = type_in("run", "nearest_mean", name, "--backbone", "pixels")
    assert (code, f"For the folder {name!r} that is here, write ./{name} instead." in text) == (2, True), text
    assert type_in("run", "nearest_mean", f"./{name}", *QUICK)[0] == 0


def test_and_where_the_card_is_here_too(root, draw, type_in):
    draw("cat", "dog", root="digits")
    code, text = type_in("run", "nearest_mean", "digits", *QUICK)
    assert (code, "note: the dataset is the card digits, not the folder 'digits' here; write ./digits" in text) == (
        0,
        True,
    )
    code, text = type_in("data", "show", "digits")
    assert (code, "remark the dataset is the card digits" in text) == (0, True)


def test_names_may_be_bytes(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (12, 8, 8), dtype=np.uint8)
    labels, parts = np.arange(12) % 2, np.array([b"train"] * 8 + [b"test"] * 4)
    np.savez(tmp_path / "a.npz", images=images, labels=labels, names=np.array([b"caf\xc3\xa9", b"dog"]), split=parts)
    data = open_data(str(tmp_path / "a.npz"))
    assert [str(name) for name in data.train.names] == ["café", "dog"]
    assert len(data.test) == 4
    pairs = [(Image.fromarray(image), int(label)) for image, label in zip(images, labels, strict=True)]
    assert [str(name) for name in from_torchvision(pairs, names=[b"cat", b"dog"]).train.names] == ["cat", "dog"]


def test_links_to_folders_are_followed(draw, type_in, tmp_path):
    root = draw("cat", "dog")
    draw("more", n=4, root="elsewhere")
    before = open_data("set")
    (root / "cat" / "linked").symlink_to(tmp_path / "elsewhere" / "more")
    (root / "cat" / "linked" / "back").symlink_to(root / "cat")  # a circle
    after = open_data("set")
    assert sum(sizes(after)) == sum(sizes(before)) + 4
    (root / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    code, text = type_in("run", "nearest_mean", "set", *QUICK)
    assert (code, "got 1 image that is not there (dog/gone.png)" in text) == (2, True), text


def test_new_images_beside_a_saved_split_are_told(draw, type_in):
    root = draw("cat", "dog")
    assert type_in("data", "split", "set", "--save", "set")[0] == 0
    before = open_data("set").hash()
    shutil.copy(root / "cat" / "0.png", root / "cat" / "new.png")
    assert open_data("set").hash() == before
    said = f"1 images are not in the saved split {SAVED_SPLIT_FILE} and are left out (cat/new.png)"
    for command in (("run", "nearest_mean", "set", *QUICK), ("data", "check", "set"), ("data", "show", "set")):
        code, text = type_in(*command)
        assert (code, said in text) == (0, True), text
    code, text = type_in("data", "check", "set", "--layout", "classes")
    assert (code, "task.layout: expected none beside the saved split" in text) == (2, True)


ORIENTATIONS = {  # EXIF orientation -> what a camera did to the upright image
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: np.rot90(image),
    7: lambda image: image[::-1, ::-1].transpose(1, 0, 2),
    8: lambda image: np.rot90(image, -1),
}


@pytest.mark.parametrize("suffix", ["png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_an_image_is_turned_as_its_exif_says(orientation, suffix, tmp_path):
    upright = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(ORIENTATIONS[orientation](upright)))
    stored.save(tmp_path / f"a.{suffix}", exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(np.asarray(open_image(tmp_path / f"a.{suffix}")), upright)


def test_pixels_and_features_are_those_of_the_upright_image(tmp_path):
    assert FORMAT_VERSION == 2  # features of turned files were others before
    upright = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(upright).save(tmp_path / "set" / name / f"{i}.png")
    Image.fromarray(np.ascontiguousarray(np.rot90(upright))).save(tmp_path / "set" / "cat" / "1.png", exif=exif)
    data = open_data(str(tmp_path / "set"))
    (turned,) = (i for split in (data.train, data.val, data.test) for i in split.items if i.name == "cat/1.png")
    (plain,) = (i for split in (data.train, data.val, data.test) for i in split.items if i.name == "dog/1.png")
    look = Preprocessing((8, 8))
    assert (turned.pixels(look, None) == plain.pixels(look, None)).all()
    tower = vlprompt.load("glyph-vit/random", "cpu")
    split = data.test.__class__((turned, plain), (0, 1), data.test.names)
    ((one, other),) = (tower(batch.inputs) for batch in split.batches(2))
    assert (one == other).all()


def test_broken_exif_says_nothing(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    assert np.array_equal(np.asarray(open_image(tmp_path / "a.png")), pixels)


def test_a_run_says_once_what_was_taken_for_the_dataset(draw, type_in):
    draw("photo/cat", "photo/dog", "art/cat", "art/dog")
    code, text = type_in("run", "nearest_mean", "set", *QUICK, "--seed", "1,2")
    line = (
        "the folder 'set': 2 classes (cat, dog); 2 domains (art, photo); train 12, val 4, test 8; layout domains "
        "(folders in them have the same names; else task.layout=classes)"
    )
    assert (code, text.count(line)) == (0, 1), text
    assert text.index(line) == 0
    transfer = ("--task", "transfer", "--targets", "set", "--backbone", "glyph/random", "--shots", "1")
    code, text = type_in("run", "zero_shot", "digits", *transfer)
    assert (code, line in text, "the card digits: 10 classes (zero," in text) == (0, True, True)


def test_a_table_and_texts_say_what_they_were_taken_for(draw, type_in, tmp_path):
    draw("cat", "dog")
    lines = [f"set/{name}/{i}.png,{name}\n" for name in ("cat", "dog") for i in range(6)]
    (tmp_path / "data.csv").write_text("".join(["path,class\n", *lines]))
    code, text = type_in("run", "nearest_mean", "data.csv", *QUICK)
    assert code == 0
    assert text.startswith(
        "the file 'data.csv': 2 classes (cat, dog); train 6, val 2, test 4; layout table (the columns"
    )
    rows = [f"text {i},{'ab'[i % 2]}\n" for i in range(20)]
    (tmp_path / "texts.csv").write_text("".join(["text,label\n", *rows]))
    code, text = type_in("data", "show", "texts.csv")
    assert (code, "classes 2: a, b" in text) == (0, True)


def test_check_names_formats_that_are_not_read(draw, type_in):
    root = draw("cat", "dog")
    (root / "cat" / "9.HEIC").write_bytes(b"an image of a telephone")
    code, text = type_in("data", "check", "set")
    assert (code, "images of formats that are not read are left out: .heic 1; convert them" in text) == (0, True)


def test_check_finds_equal_texts(type_in, tmp_path):
    rows = [f"text {i % 19},{'ab'[i % 2]}\n" for i in range(20)]
    (tmp_path / "texts.csv").write_text("".join(["text,label\n", *rows]))
    code, text = type_in("data", "check", "texts.csv")
    assert (code, "1 texts of equal content are in several classes: texts/2-" in text) == (0, True), text


def test_a_cards_metric_is_one_that_there_is(tmp_path, type_in):
    card = yaml.safe_load((load_card("docstrings").path).read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(card | {"metric": "mathews"}))
    code, text = type_in("data", "show", "mine.yaml")
    assert (code, "metric: expected a known name, got 'mathews'; did you mean 'matthews'?" in text) == (2, True), text


@pytest.mark.parametrize("inner", [("cat", "dog"), ("cat", "owl")])
def test_domains_or_groups_inside_splits_are_refused(draw, inner):
    folder = draw(
        *(f"{part}/{top}/{name}" for part in ("train", "test") for top in ("photo", "sketch") for name in inner)
    )
    with pytest.raises(ValueError, match=r"expected images in the class folders of train/, got .*task\.layout=splits"):
        open_data(str(folder))
    assert [str(name) for name in open_data(str(folder), layout="splits").train.names] == ["photo", "sketch"]


def test_a_test_that_is_a_link_to_train_is_refused(draw):
    folder = draw("train/cat", "train/dog")
    (folder / "test").symlink_to(folder / "train")
    with pytest.raises(ValueError, match=r"expected splits of different images, got .* in one folder by a link"):
        open_data(str(folder))


def test_a_path_that_is_written_absolutely_is_the_same_image(draw, tmp_path):
    draw("cat", "dog")
    rows = [f"set/{name}/{i}.png,{name},{'train' if i < 4 else 'test'}" for name in ("cat", "dog") for i in range(6)]
    rows.append(f"{tmp_path / 'set' / 'cat' / '0.png'},cat,test")
    (tmp_path / "d.csv").write_text("\n".join(["path,class,split", *rows]))
    with pytest.raises(ValueError, match=r"expected each image in one class and one split, got .*0\.png"):
        open_data(str(tmp_path / "d.csv"))


@pytest.mark.parametrize("names", [("Red", "red"), ("0", "0.0")])
def test_classes_that_differ_in_spelling_only_are_warned_of(draw, tmp_path, names):
    draw("a", "b")
    rows = [{"path": f"set/{f}/{i}.png", "label": name} for f, name in zip("ab", names, strict=True) for i in range(6)]
    (tmp_path / "g.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.warns(UserWarning, match="differ in their spelling only"):
        open_data(str(tmp_path / "g.jsonl"))


def test_the_source_is_no_target(draw):
    folder = draw("cat", "dog")
    with pytest.raises(ValueError, match=r"task\.targets: expected other datasets than the source"):
        Transfer(str(folder), targets=[f"{folder}/"])
