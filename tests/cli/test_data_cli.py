"""A user's own data, in every form and every way it can be wrong, and the commands that look at data."""

import csv
import json
import warnings

import numpy as np
import pytest
from miniatures import idx
from PIL import Image

import vlprompt
from vlprompt.core.images import Preprocessing
from vlprompt.data.images.decoding import open_image
from vlprompt.data.loading import open_data
from vlprompt.data.readers.python_objects import from_huggingface, from_torchvision
from vlprompt.data.readers.split_file import SAVED_SPLIT_FILE
from vlprompt.runtime.installation import find_version
from vlprompt.tasks import BaseToNew, FewShot

QUICK = ["--backbone", "glyph/random", "--shots", "1", "train.epochs=1"]


@pytest.fixture
def table(tmp_path, pictures):
    """Writes rows as data.csv or data.jsonl beside links to the pictures, by default 12 rows of two classes."""
    for name in ("china", "red_flower"):
        (tmp_path / name).symlink_to(pictures / name)

    def plain():
        return [{"path": f"{name}/{i:02}.jpg", "class": name} for name in ("red_flower", "china") for i in range(6)]

    def write(change=lambda rows: rows, form="csv", delimiter=","):
        rows = plain()
        rows = change(rows) or rows
        path = tmp_path / f"data.{form}"
        if form == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            with path.open("w", newline="", encoding="utf-8-sig") as file:
                writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
                writer.writeheader()
                writer.writerows(rows)
        return path

    return write


def each(rows, **columns):
    """A column for all rows: its values by the row's number."""
    for i, row in enumerate(rows):
        row.update({key: value(i, row) for key, value in columns.items()})


@pytest.mark.parametrize("form", ["csv", "jsonl", "tabs"])
def test_a_table_is_a_dataset(table, form):
    path = table(form="jsonl") if form == "jsonl" else table(delimiter="\t" if form == "tabs" else ",")
    data = open_data(str(path))
    assert [str(name) for name in data.train.names] == ["china", "red_flower"]
    assert [split.count_per_class() for split in (data.train, data.val, data.test)] == [[3, 3], [1, 1], [2, 2]]
    assert {item.name for item in data.train.items} <= {row["path"] for row in csv_rows()}
    assert data.template == "a photo of a {name}."
    assert open_data(str(path), template="a sketch of {name}.").train.names[0].template == "a sketch of {name}."


def csv_rows():
    return [{"path": f"{name}/{i:02}.jpg"} for name in ("china", "red_flower") for i in range(6)]


def test_a_table_with_labels_splits_and_domains(table):
    def whole(rows):
        each(
            rows,
            label=lambda i, row: int(row["class"] == "china"),
            split=lambda i, row: ("train", "train", "train", "valid", "test", "test")[i % 6],
            domain=lambda i, row: "day" if i % 2 else "night",
        )

    data = open_data(str(table(whole)))
    assert [str(name) for name in data.train.names] == ["red_flower", "china"]  # the labels order them
    assert [split.count_per_class() for split in (data.train, data.val, data.test)] == [[3, 3], [1, 1], [2, 2]]
    assert data.train.info["domains"] == ["day", "night"]
    assert data.train.domains == (1, 0, 1, 1, 0, 1)
    assert next(data.test.batches(9)).domains.tolist() == [1, 0, 1, 0]


def test_numbers_alone_are_classes_in_their_order(table):
    def numbers(rows):
        each(rows, label=lambda i, row: 10 if row["class"] == "china" else 9)
        for row in rows:
            del row["class"]

    assert [str(name) for name in open_data(str(table(numbers))).train.names] == ["9", "10"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda rows: each(rows, colour=lambda i, row: "red"),
            "row 2: expected known columns, got 'colour'; the choices are",
        ),
        (lambda rows: each(rows, lable=lambda i, row: 0), "expected known columns, got 'lable'; did you mean 'label'?"),
        (lambda rows: [{"path": row["path"]} for row in rows], "expected the columns path and label or class"),
        (lambda rows: [{"class": row["class"]} for row in rows], "expected the columns path and label or class"),
        (
            lambda rows: each(rows, label=lambda i, row: "x"),
            "row 2: label: expected a whole number from 0, got 'x'. Put names into the class column",
        ),
        (lambda rows: each(rows, label=lambda i, row: -1), "label: expected a whole number from 0, got '-1'"),
        (
            lambda rows: each(rows, label=lambda i, row: 2 * (i // 6)),
            "without gaps, got no class name of the label 1. Correct the labels",
        ),
        (lambda rows: each(rows, label=lambda i, row: i % 2), "row 8: expected one name for the label 0, got"),
        (lambda rows: rows[3].update({"class": " "}), "row 5: expected a class, got an empty one. Fill it in"),
        (
            lambda rows: each(rows, split=lambda i, row: "later"),
            "row 2: split: expected train, val (valid, validation, dev) or test, got 'later'",
        ),
        (
            lambda rows: each(rows, split=lambda i, row: "train"),
            "split: expected both train and test, got train. Add rows of the other split",
        ),
        (
            lambda rows: rows[0].update(path="gone.jpg"),
            "expected all listed images, got 1 image that is not there (gone.jpg)",
        ),
        (lambda rows: rows[:6], "expected at least 2 classes, got only the class 'red_flower'"),
        (lambda rows: rows[:7], "expected test images of all 2 classes, got none of 1 ('china')"),
    ],
)
def test_a_wrong_table(table, type_in, change, told):
    code, text = type_in("data", "check", table(change))
    if told.startswith("expected test images"):  # check takes the classes that are there, and one class is none
        assert (code, "got images of 1 class. Add" in text) == (2, True)
        code, text = type_in("run", "coop", "data.csv", *QUICK)
    assert code == 2
    assert told in text


def test_broken_tables(table, type_in, tmp_path):
    path = table()
    path.write_text(path.read_text("utf-8-sig").replace("china/00.jpg,china", "china/00.jpg"))
    assert (
        "expected as many values as columns, got more or fewer. Quote texts with commas"
        in type_in("data", "check", path)[1]
    )
    path.write_bytes("path,class\nä,ö\n".encode("latin-1"))
    assert "row 2: expected UTF-8, got another encoding" in type_in("data", "check", path)[1]
    path.write_text("path,class\n")
    assert "expected a row for each image, got no rows. Add some" in type_in("data", "check", path)[1]
    (tmp_path / "data.jsonl").write_text('{"path": 1\n')
    assert "row 1: expected JSON, got another format" in type_in("data", "check", "data.jsonl")[1]
    (tmp_path / "data.txt").write_text("x")
    assert (
        "dataset: expected a card, a folder with one sub-folder of images per class, or a file"
        in type_in("data", "check", "data.txt")[1]
    )


def arrays(**changed):
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 3
    images = rng.integers(0, 80, (24, 20, 16, 3), dtype=np.uint8)
    images[labels == 1, :10] += 150
    return {"images": images, "labels": labels, "names": np.array(["low", "top", "other"])} | changed


def test_an_archive_of_arrays_is_a_dataset(tmp_path, type_in):
    held = arrays()
    np.savez(tmp_path / "set.npz", **held)
    data = open_data(str(tmp_path / "set.npz"))
    assert [str(name) for name in data.train.names] == ["low", "top", "other"]
    assert [len(split) for split in (data.train, data.val, data.test)] == [12, 6, 6]
    for item, label in zip(data.train.items, data.train.labels, strict=True):
        assert held["labels"][int(item.name)] == label
        seen = item.pixels(Preprocessing((16, 16), resize="squash", interpolation="bilinear"), None)
        assert abs(float(seen.mean()) - held["images"][int(item.name)].mean() / 255) < 0.02
    grey = arrays(images=held["images"][..., 0], split=np.array(["train"] * 12 + ["test"] * 12))
    np.savez(tmp_path / "grey.npz", **grey)
    data = open_data(str(tmp_path / "grey.npz"))
    assert (len(data.train) + len(data.val), len(data.test)) == (12, 12)
    code, text = type_in("run", "coop", "set.npz", *QUICK)
    assert (code, "few_shot on set.npz" in text) == (0, True)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"labels": np.arange(24) % 4}, "expected labels 0 to 2, as there are 3 class names, got 3. Correct the label"),
        ({"labels": np.arange(24) % 3 - 1}, "expected labels 0 to 2, as there are 3 class names, got -1"),
        ({"labels": np.arange(24) / 2}, "labels: expected 24 whole numbers, got float64 (24,)"),
        ({"labels": np.arange(5)}, "labels: expected 24 whole numbers, got int64 (5,)"),
        (
            {"images": np.zeros((24, 4, 4), np.float32)},
            "images: expected uint8 (N, H, W) or (N, H, W, 3), got float32 (24, 4, 4)",
        ),
        ({"pictures": np.zeros(3)}, "expected known arrays, got 'pictures'"),
        (
            {"split": np.array(["later"] * 24)},
            "array split at 0: split: expected train, val (valid, validation, dev) or test, got 'later'",
        ),
        ({"names": np.array(["a", " ", "c"])}, "expected a name of the class '1', got an empty one. Name it"),
    ],
)
def test_wrong_arrays(tmp_path, type_in, changed, told):
    np.savez(tmp_path / "set.npz", **arrays(**changed))
    code, text = type_in("data", "check", "set.npz")
    assert code == 2
    assert told in text


def test_what_is_no_archive(tmp_path, type_in):
    (tmp_path / "set.npz").write_bytes(b"no archive")
    assert "expected a NumPy archive, got one that can't be read" in type_in("data", "check", "set.npz")[1]
    np.savez(tmp_path / "set.npz", images=np.zeros((2, 4, 4), np.uint8))
    assert "expected the arrays images and labels, got images. Add" in type_in("data", "check", "set.npz")[1]


def test_a_torchvision_dataset_in_one_line(pictures):
    from torchvision.datasets import FakeData, ImageFolder
    from torchvision.transforms import ToTensor

    data = from_torchvision(ImageFolder(str(pictures)), template="a picture of {name}.")
    assert [str(name) for name in data.train.names] == ["china", "red_flower"]
    assert {name.template for name in data.test.names} == {"a picture of {name}."}
    assert data.train.count_per_class() == [6, 6]
    plain, tensors = data, from_torchvision(ImageFolder(str(pictures), transform=ToTensor()))
    look = Preprocessing((32, 32))
    assert plain.train.items[0].pixels(look, None).equal(tensors.train.items[0].pixels(look, None))
    assert plain.train.items[0].key != tensors.train.items[0].key
    fake = FakeData(size=30, image_size=(3, 8, 8), num_classes=3)
    both = from_torchvision(fake, fake, names=["a", "b", "c"])
    assert (len(both.train) + len(both.val), len(both.test)) == (30, 30)
    with pytest.raises(ValueError, match=r"expected the `classes` of .* or names=\[...\], got none. Pass names="):
        from_torchvision(fake)
    with pytest.raises(ValueError, match=r"expected labels below 2, .*, got 2 in train. Name all classes"):
        from_torchvision(fake, names=["a", "b"])
    with pytest.raises(ValueError, match=r"has no \{name\}"):
        from_torchvision(fake, names=["a", "b", "c"], template="a photo")
    shifted = ImageFolder(str(pictures), transform=lambda picture: ToTensor()(picture) - 0.5)
    with pytest.raises(ValueError, match=r"expected an image, got .*Make the dataset without a transform"):
        from_torchvision(shifted).train.items[0].pixels(look, None)


class Columns:
    """As much of a Hugging Face dataset as is used: columns by name, rows by number, features."""

    def __init__(self, pictures, labels, names):
        self.columns = {"image": pictures, "label": labels}
        self.features = {"image": object(), "label": type("ClassLabel", (), {"names": names})()}

    def __getitem__(self, key):
        return self.columns[key] if isinstance(key, str) else {name: kept[key] for name, kept in self.columns.items()}


def test_a_hugging_face_dataset_in_one_line(pictures):
    files = sorted(pictures.rglob("*.jpg"))
    shown, labels = [Image.open(path) for path in files], [int(path.parent.name != "china") for path in files]
    whole = Columns(shown, labels, ["china", "red flower"])
    data = from_huggingface(whole)
    assert [str(name) for name in data.train.names] == ["china", "red flower"]
    assert [split.count_per_class() for split in (data.train, data.val, data.test)] == [[6, 6], [2, 2], [4, 4]]
    parts = from_huggingface({"train": whole, "validation": whole, "test": whole})
    assert [len(split) for split in (parts.train, parts.val, parts.test)] == [24, 24, 24]
    with pytest.raises(ValueError, match=r"expected a column 'picture', got the columns image, label. Name one"):
        from_huggingface(whole, image="picture")
    with pytest.raises(
        ValueError, match=r"expected the splits train, val \(valid, validation, dev\) or test, got 'unsupervised'"
    ):
        from_huggingface({"unsupervised": whole})
    whole.features["label"] = object()
    with pytest.raises(
        ValueError, match=r"expected a column 'label' that names its classes, got no names. Pass names="
    ):
        from_huggingface(whole)


def test_a_task_takes_data_and_tells_its_name_and_hash(pictures):
    from torchvision.datasets import ImageFolder

    data = from_torchvision(ImageFolder(str(pictures)), name="mine")
    task = FewShot(data, shots=1, augment="none")
    result = vlprompt.run(
        vlprompt.methods.CoOp(vlprompt.load("glyph/random"), n_ctx=2), task, vlprompt.TrainConfig(epochs=1)
    )
    assert result.config["task"]["dataset"] == f"mine#{data.hash()}"
    assert json.loads(json.dumps(result.config)) == result.config
    assert result.protocol["augment"] == "none"
    assert BaseToNew(data).dataset == task.dataset
    with pytest.raises(ValueError, match=r"got .*, the name and hash of an object in Python. Open it there again"):
        open_data(task.dataset)


def test_every_kind_of_picture_is_shown_in_rgb(tmp_path, pictures):
    photo = Image.open(pictures / "china" / "00.jpg")
    grey = photo.convert("L")
    see_through = photo.convert("RGBA")
    see_through.putalpha(Image.new("L", photo.size, 0))
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    kinds = {
        "grey.png": (grey, grey),
        "cmyk.jpg": (photo.convert("CMYK"), photo),
        "palette.png": (photo.quantize(256), photo),
        "rgba.png": (photo.convert("RGBA"), photo),
        "see_through.png": (see_through, Image.new("RGB", photo.size, "white")),
        "deep.png": (deep, grey),
        "deep.tif": (deep, grey),
        "float.tif": (Image.fromarray(np.asarray(grey).astype(np.float32) / 255), grey),
        "bits.png": (grey.convert("1"), grey.convert("1")),
        "grey_alpha.png": (grey.convert("LA"), grey),
    }
    for name, (kept, wanted) in kinds.items():
        kept.save(tmp_path / name)
        seen = open_image(tmp_path / name)
        assert (seen.mode, seen.size) == ("RGB", photo.size)
        error = np.abs(np.asarray(seen).astype(int) - np.asarray(wanted.convert("RGB")).astype(int)).mean()
        assert error < 6, (name, error)


def test_pictures_too_large_to_open(tmp_path, monkeypatch, pictures, type_in):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with (
        pytest.raises(
            ValueError, match=r"00.jpg': expected an image that fits into memory, got too many pixels .*--skip-broken"
        ),
        warnings.catch_warnings(),
    ):
        open_image(pictures / "china" / "00.jpg")


def test_check_names_what_is_wrong(tmp_path, pictures, type_in):
    import shutil

    shutil.copytree(pictures, tmp_path / "set")
    code, text = type_in("data", "check", "set", "--figure", "grid.png")
    assert code == 0
    assert "set: train 12, val 4, test 8; 2 classes" in text
    assert text.endswith("every image can be opened")
    assert (tmp_path / "grid.png").read_bytes()[:4] == b"\x89PNG"
    (tmp_path / "set" / "china" / "03.jpg").write_bytes(b"no image")
    code, text = type_in("data", "check", "set")
    assert code == 1
    assert "wrong: 1 images can't be decoded: china/03.jpg" in text
    with warnings.catch_warnings(action="ignore"):
        (tmp_path / "set" / "empty").mkdir()
        assert "the class folder 'set/empty': expected images" in type_in("data", "check", "set")[1]


def test_two_classes_of_one_name_are_told_apart(tmp_path, pictures, type_in):
    train, test = (
        [[f"{name}/{i:02}.jpg", label, "thing"] for label, name in enumerate(("china", "red_flower")) for i in part]
        for part in (range(4), range(4, 8))
    )
    for name in ("china", "red_flower"):
        (tmp_path / name).symlink_to(pictures / name)
    (tmp_path / "twins.json").write_text(json.dumps({"train": train, "test": test}))
    with pytest.warns(UserWarning, match="several classes are called 'thing'"):
        data = open_data(str(tmp_path / "twins.json"))
    assert [(str(name), name.id) for name in data.train.names] == [("thing", "thing#0"), ("thing", "thing#1")]
    assert data.train.count_per_class() == [4, 4]
    with warnings.catch_warnings():
        warnings.simplefilter("always")  # which the suite has as errors
        code, text = type_in("data", "check", "twins.json")
    assert "warning: twins.json: several classes are called 'thing'" in text
    assert (code, "several classes are called thing; they are told apart by their ids" in text) == (0, True)


def test_a_folder_keeps_its_split(tmp_path, pictures, type_in):
    import shutil

    shutil.copytree(pictures, tmp_path / "set")
    before = open_data("set")
    assert type_in("data", "split", "set", "--save", "set")[0] == 0
    assert (tmp_path / "set" / SAVED_SPLIT_FILE).is_file()
    (tmp_path / "set").rename(tmp_path / "moved")
    after = open_data("moved")
    assert (after.hash(), after.note) == (before.hash(), before.note)
    shutil.copy(tmp_path / "moved" / "china" / "00.jpg", tmp_path / "moved" / "china" / "new.jpg")
    assert open_data("moved").hash() == before.hash()  # what is added later is not in the split
    assert "got 'digits'. Choose such a dataset." in type_in("data", "split", "digits", "--save", "x.json")[1]
    (tmp_path / "far.csv").write_text("".join(f"{line}\n" for line in ["path,class", *absolute(pictures)]))
    assert (
        "expected a path inside the folder of images, got '/"
        in type_in("data", "split", "far.csv", "--save", "x.json")[1]
    )


def absolute(pictures):
    return [f"{path},{path.parent.name}" for path in sorted(pictures.rglob("*.jpg"))]


def test_show_and_list(type_in, tmp_path, pictures, monkeypatch):
    monkeypatch.delenv("VLPROMPT_DATA", raising=False)
    code, text = type_in("data", "list")
    assert code == 0
    assert "dtd 47 2,820 / 1,128 / 1,692 {name} texture. no" in text
    assert "digits 10 a photo of the digit {name}. yes" in text
    code, text = type_in("data", "show", "imagenet_a")
    assert code == 0
    assert "classes 200: stingray, goldfinch" in text
    assert "vlprompt data prepare imagenet_a --download" in text
    code, text = type_in("data", "show", pictures, "--figure", "grid.png")
    assert code == 0
    assert "classes 2: china, red_flower" in text
    assert "here train 12, val 4, test 8" in text
    assert Image.open(tmp_path / "grid.png").size[0] > 300
    code, text = type_in("data", "prepare", "imagenet", "--download")
    assert (code, "by hand: from https://image-net.org" in text) == (1, True)
    assert "comes with vlprompt" in type_in("data", "prepare", "digits")[1]
    assert "expected a dataset with a card, got" in type_in("data", "prepare", pictures)[1]
    assert "did you mean 'dtd'?" in type_in("data", "show", "dtt")[1]


def test_a_dataset_of_torchvision_by_its_name(tmp_path, type_in):
    drawn = np.random.default_rng(0)
    for part, n in (("train", 60), ("t10k", 20)):
        idx(tmp_path / "MNIST/raw" / f"{part}-images-idx3-ubyte", drawn.integers(0, 255, (n, 28, 28)))
        idx(tmp_path / "MNIST/raw" / f"{part}-labels-idx1-ubyte", np.arange(n) % 10)
    data = open_data("torchvision:MNIST", root=tmp_path, template="the digit {name}")
    assert [len(data.train), len(data.val), len(data.test)] == [50, 10, 20]
    assert data.train.names[3] == "3 - three"
    assert data.train.names[3].template == "the digit {name}"
    words = ["run", "nearest_mean", "torchvision:MNIST", *QUICK, "--root", tmp_path]
    assert type_in(*words)[0] == 0
    status, told = type_in("data", "prepare", "torchvision:MNIST", "--root", tmp_path)
    assert (status, "50 images to learn from" in told) == (0, True)
    with pytest.raises(OSError, match="Get them by `vlprompt data prepare torchvision:KMNIST --download`"):
        open_data("torchvision:KMNIST", root=tmp_path)
    with pytest.raises(ValueError, match="expected a dataset of torchvision, got 'MNISTT'; did you mean 'MNIST'"):
        open_data("torchvision:MNISTT", root=tmp_path)


def test_a_dataset_of_hugging_face_by_its_name(tmp_path, pictures):
    """With the real package where it is installed; without it, what to install."""
    if find_version("datasets") is None:
        with pytest.raises(ValueError, match="pip install 'vlprompt\\[huggingface\\]'"):
            open_data("huggingface:some/thing")
        return
    data = open_data(f"huggingface:{pictures}")
    assert data.train.names == ("china", "red_flower")
    assert len(data.train) + len(data.val) + len(data.test) == 24
