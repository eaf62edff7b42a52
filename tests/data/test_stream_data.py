"""Data that are met in turn: stages and domains on cards, datasets made of others, and what an item leads to."""

import csv
import functools
import hashlib
import http.server
import itertools
import threading
import types
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from miniatures import (
    DOMAINS,
    cifar100,
    core50,
    domainnet,
    fgvc,
    five_datasets,
    letters,
    mnist,
    pack,
    read_yaml,
    renditions,
)
from PIL import Image

from vlprompt.core.class_names import class_ids
from vlprompt.core.images import ImageItem, Preprocessing
from vlprompt.data.builtin import digits as handwritten
from vlprompt.data.cards import load_card, load_card_classes
from vlprompt.data.inspection import is_available
from vlprompt.data.loading import open_data
from vlprompt.data.readers.python_objects import from_torchvision

PARTS = ("train", "val", "test")
BARE = {"title": "Mine", "source": "me", "licence": "mine", "template": "a {name}."}


@pytest.fixture
def mine(tmp_path):
    """Writes a card of the user's; gives its path."""

    def write(**told):
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(BARE | told))
        return str(path)

    return write


def per_domain(split):
    return Counter(split.info["domains"][k] for k in split.domains)


def sizes(data):
    return [len(getattr(data, part)) for part in PARTS]


def test_stages_of_the_cards_that_ship():
    for name, stages in (("digits", 5), ("glyphs", 5)):
        data = open_data(name)
        assert [getattr(data, part).info["stages"] for part in PARTS] == [stages] * 3
    told = {"cifar100": 10, "imagenet_r_stream": 10, "cub200": 10}
    assert {name: load_card(name).stages for name in told} == told
    assert {name: len(load_card_classes(load_card(name))) for name in told} == {
        "cifar100": 100,
        "imagenet_r_stream": 200,
        "cub200": 200,
    }


def test_stages_by_the_ids_of_classes(mine):
    path = mine(loader="digits", classes="digits", stages=[["9", 0], ["3"], [1, 2, 4]])
    assert open_data(path).test.info["stages"] == [["9", "0"], ["3"], ["1", "2", "4"]]  # and 5 to 8 are never met


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        (0, ": expected from 1 stage up to one for each of its 10 classes, got 0"),
        (11, ": expected from 1 stage up to one for each of its 10 classes, got 11"),
        (True, ": expected a number, or a list with a list of class ids for each stage, got True"),
        ("five", ": expected a number, .*, got 'five'"),
        ([], r": expected a number, .*, got \[\]"),
        ([["0"], "1"], r": expected a number, or a list with a list of class ids for each stage, got \[\['0'\], '1'\]"),
        ([["0"], []], ": expected classes in each stage, got none in number 1. Give"),
        ([["0", "1"], ["2", "1"]], ": expected each class once, got '1' in number 0 and 1. Keep one of them"),
        ([["0", "0"]], ": expected each class once, got '0' in number 0 and 0. Keep"),
        ([["0"], ["ten"]], ": expected ids of its classes, got 'ten'; "),
    ],
)
def test_wrong_stages(mine, stages, told):
    with pytest.raises(ValueError, match=f"^mine: the card's stages{told}"):
        open_data(mine(loader="digits", classes="digits", stages=stages))


def test_digits_in_six_domains():
    data, plain = open_data("digit_domains"), open_data("digits")
    labels = handwritten.load_digit_arrays()[1]
    assert data.train.info["domains"] == ["handwritten", "negative", "rotated", "noisy", "blurred", "rendered"]
    assert class_ids(data.train.names) == class_ids(plain.train.names)
    for part in PARTS:
        split, rendered = getattr(data, part), {"train": 200, "val": 50, "test": 200}[part]
        real = [item.name.split("/") for item in split.items if not item.name.startswith("rendered/")]
        indices = [int(index) for _, index in real]
        assert sorted(indices) == sorted(handwritten.split_indices()[part])  # each once, in its part
        counts = per_domain(split)
        assert counts.pop("rendered") == rendered
        assert max(counts.values()) - min(counts.values()) <= 1
        for item, label in zip(split.items, split.labels, strict=True):
            domain, *rest = item.name.split("/")
            assert label == (labels[int(rest[0])] if domain != "rendered" else int(rest[1]) // (rendered // 10))
        for k in range(6):
            of_class = Counter(label for label, domain in zip(split.labels, split.domains, strict=True) if domain == k)
            assert max(of_class.values()) - min(of_class.values()) <= 2
    assert data.hash() == "85d4d6-cee463-2a5aed"  # the draw is fixed: results that are published rest on it


def test_what_the_domains_do_to_a_digit():
    data, look = open_data("digit_domains"), Preprocessing((32, 32))

    def shown(domain):
        item = next(item for item in data.test.items if item.name.startswith(domain))
        again = item.pixels(look, None)
        assert again.equal(item.pixels(look, None))
        own = Image.fromarray(handwritten.load_digit_arrays()[0][int(item.name.split("/")[1])]).convert("RGB")
        return again[0], torch.from_numpy(np.asarray(own.resize((32, 32), Image.Resampling.BICUBIC)) / 255)[..., 0]

    def same(made, wanted):
        return float((made - wanted).abs().mean())

    made, own = shown("handwritten")
    assert same(made, own) < 0.01
    made, own = shown("negative")
    assert same(made, 1 - own) < 0.01
    made, own = shown("noisy")
    assert 0.02 < same(made, own) < 0.2
    made, own = shown("blurred")
    assert made.diff().abs().max() < own.diff().abs().max() / 2
    made, own = shown("rotated")
    turned = Image.fromarray((own.numpy() * 255).round().astype(np.uint8)).rotate(30, Image.Resampling.BILINEAR)
    assert same(made, torch.from_numpy(np.asarray(turned) / 255)) < 0.02 < same(made, own)
    glyph = next(item for item in open_data("glyphs").test.items if item.name == "glyphs/test/7")
    mine = next(item for item in data.test.items if item.name == "rendered/test/7")
    assert mine.pixels(look, None).equal(glyph.pixels(look, None))


def test_a_dataset_made_of_others(mine, root, type_in):
    data = open_data(mine(members={"a": "digits", "b": "glyphs"}, classes=85))
    one, two = open_data("digits"), open_data("glyphs")
    assert data.train.info["domains"] == ["a", "b"]
    assert data.train.info["stages"] == [
        [f"a/{key}" for key in class_ids(one.test.names)],
        [f"b/{key}" for key in class_ids(two.test.names)],
    ]
    assert class_ids(data.test.names) == tuple(itertools.chain(*data.test.info["stages"]))
    look = Preprocessing((8, 8))
    for part in PARTS:
        split, first, second = (getattr(d, part) for d in (data, one, two))
        assert split.labels == (*first.labels, *(label + 10 for label in second.labels))
        assert per_domain(split) == {"a": len(first), "b": len(second)}
        assert [item.name for item in split.items[-2:]] == [f"b/{item.name}" for item in second.items[-2:]]
        assert split.items[3].pixels(look, None).equal(first.items[3].pixels(look, None))
        assert split.items[-1].pixels(look, None).equal(second.items[-1].pixels(look, None))
    assert data.test.names[0].template == one.template  # each member's own
    assert "a: half of each class" in data.note
    assert open_data(mine(members={"a": "digits", "b": "glyphs"}, classes=85, stages=17)).test.info["stages"] == 17
    code, text = type_in("data", "check", "mine.yaml")
    assert (code, "domains: a 722/179/896, b 1,500/375/1,500 in train/val/test" in text) == (0, True), text
    assert "stages: 17, of 85 classes in all" in text
    code, text = type_in("data", "show", "mine.yaml")
    assert code == 0
    assert "members a: digits, b: glyphs" in text
    assert type_in("data", "prepare", "mine.yaml")[0] == 0
    assert "got 'mine.yaml'. Choose such a dataset." in type_in("data", "split", "mine.yaml", "--save", "x.json")[1]


def test_members_with_equal_names_stay_apart(mine):
    with pytest.warns(UserWarning, match="several classes are called 'eight', 'five'"):
        data = open_data(mine(members={"plain": "digits", "hard": "digit_domains"}, classes=20))
    assert len(set(class_ids(data.test.names))) == 20
    assert set(data.test.info["domains"]) == {"plain", "hard"}
    assert sizes(data) == [722 + 922, 179 + 229, 896 + 1096]


def test_a_member_of_torchvision_and_a_folder(mine, root, pictures):
    root.mkdir()
    mnist(root / "MNIST" / "raw")
    (root / "photos").symlink_to(pictures)
    data = open_data(mine(members={"numbers": "torchvision:MNIST", "views": "photos"}, classes=12))
    assert class_ids(data.test.names)[:2] == ("numbers/0", "numbers/1")
    assert class_ids(data.test.names)[10:] == ("views/china", "views/red_flower")
    assert data.test.names[10].template == "a {name}."
    assert per_domain(data.train) == {"numbers": 30, "views": 12}


def test_a_member_in_the_working_folder_is_here(mine, root, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photos").symlink_to(pictures)
    card = mine(members={"numbers": "digits", "views": "photos"}, classes=12)
    assert is_available(load_card(card))
    Path("photos").unlink()
    assert not is_available(load_card(card))


@pytest.mark.parametrize(
    ("told", "error"),
    [
        (
            {"members": {"a": "digits", "b": "nowhere"}},
            "mine, member b: expected a card, torchvision:NAME or a folder .*, got 'nowhere'",
        ),
        ({"members": {"a": "digits", "b": "dtd"}}, "mine, member b: dtd: expected its images, but there is no folder"),
        ({"members": {"a": "torchvision:MNIST"}}, "mine, member a: torchvision:MNIST: expected its files under"),
        (
            {"members": {"a": "torchvision:MNISTT"}},
            "mine, member a: dataset: expected a dataset of torchvision, got 'MNISTT'",
        ),
        (
            {"members": {"a": "five_datasets"}},
            "mine, member a: expected a card of images, got 'five_datasets', which has members itself",
        ),
        ({"members": {"a/b": "digits"}}, "members: expected names without /, .*, got 'a/b'"),
        (
            {"members": {"a": "digits", "b": "glyphs"}, "classes": 84},
            "expected 84 classes as on the card, got 85 of the members",
        ),
        (
            {"members": {"a": "digits", "b": "glyphs"}, "classes": 86},
            "mine: expected all 86 classes, got only 85 of 86 classes",
        ),
        ({"members": ["digits"]}, r"members: expected {name: a card, torchvision:NAME or a folder}, got \['digits'\]"),
        (
            {"members": {"a": "digits"}, "classes": "digits"},
            "classes: expected the number of classes of all members together, got 'digits'",
        ),
        (
            {"members": {"a": "digits"}, "loader": "digits"},
            "expected one of the keys .*, got loader and members. Remove one",
        ),
        ({"hub": "torchvision:MNIST"}, "the key 'folder' is missing"),
        ({"hub": "huggingface:a/b", "folder": "x"}, "hub: expected torchvision:NAME, got 'huggingface:a/b'"),
    ],
)
def test_wrong_members(mine, root, told, error):
    with pytest.raises((ValueError, OSError), match=error):
        open_data(mine(**({"classes": 10} | told)))


def test_a_member_that_is_missing_is_named_by_the_commands(root, type_in):
    code, text = type_in("data", "show", "five_datasets")
    assert (code, "here no: vlprompt data prepare five_datasets --download" in text) == (0, True)
    code, text = type_in("data", "prepare", "five_datasets")
    assert code == 1
    assert f"missing: {root}/cifar-10-batches-py <- torchvision:CIFAR10" in text
    assert "by hand: notMNIST_small.tar.gz" in text
    code, text = type_in("data", "check", "five_datasets")
    assert (code, "five_datasets, member cifar10: torchvision:CIFAR10: expected its files under" in text) == (2, True)
    assert "five_datasets 50 a photo of a {name}. no" in type_in("data", "list")[1]


@pytest.mark.filterwarnings("ignore:five_datasets. several classes are called")
def test_five_datasets(root, jpegs, monkeypatch, type_in):
    five_datasets(root, jpegs, monkeypatch)
    data = open_data("five_datasets")
    members = ["cifar10", "mnist", "fashion_mnist", "svhn", "notmnist"]
    assert data.train.info["domains"] == members
    assert [key.split("/")[0] for stage in data.train.info["stages"] for key in stage] == [
        member for member in members for _ in range(10)
    ]
    four = dict.fromkeys(members, 30)
    assert per_domain(data.train) == four | {"notmnist": 20}
    assert per_domain(data.test) == dict.fromkeys(members, 20) | {"notmnist": 10}
    names = dict(zip(class_ids(data.test.names), data.test.names, strict=True))
    told = {
        key: (str(names[key]), names[key].template)
        for key in ("svhn/0", "mnist/0", "fashion_mnist/ankle boot", "notmnist/A")
    }
    assert told == {
        "svhn/0": ("zero", "a photo of the digit {name} on a house."),
        "mnist/0": ("zero", "a photo of the handwritten digit {name}."),
        "fashion_mnist/ankle boot": ("ankle boot", "a photo of a {name}."),
        "notmnist/A": ("A", "a picture of the letter {name}."),
    }
    mnist_zero = next(i for i, key in enumerate(class_ids(data.test.names)) if key == "mnist/0")
    assert data.test.labels.count(mnist_zero) == 2
    code, text = type_in("data", "check", "five_datasets")
    assert code == 0, text
    assert "stages: 5, of 10, 10, 10, 10, 10 classes" in text
    assert "svhn 30/10/20" in text
    assert "five_datasets 50 a photo of a {name}. yes" in type_in("data", "list")[1]
    (root / "test_32x32.mat").unlink()
    with pytest.raises(OSError, match="five_datasets, member svhn: torchvision:SVHN: expected its files under"):
        open_data("five_datasets")


def test_cifar100_as_torchvision_reads_it(root, monkeypatch, type_in):
    code, text = type_in("data", "prepare", "cifar100")
    assert code == 1
    assert "Fetch with: vlprompt data prepare cifar100 --download" in text
    assert "stages 10 here no: vlprompt data prepare cifar100 --download" in type_in("data", "show", "cifar100")[1]
    cifar100(root, monkeypatch)
    data = open_data("cifar100")
    assert sizes(data) == [400, 100, 200]
    assert (data.train.names[1], class_ids(data.train.names)[1], data.train.info["stages"]) == (
        "aquarium_fish",
        "aquarium_fish",
        10,
    )
    red = [split.items[0].pixels(Preprocessing((32, 32)), None).mean((1, 2)) for split in (data.train, data.val)]
    assert torch.allclose(red[0], red[1], atol=0.05) == (data.train.labels[0] == data.val.labels[0])
    code, text = type_in("data", "check", "cifar100")
    assert (code, "wrong: the card has 50,000/10,000 images in train/test, here are 500/200" in text) == (1, True)
    assert "cifar100 100 50,000 / - / 10,000 a photo of a {name}. yes" in type_in("data", "list")[1]
    (root / "cifar-100-python" / "test").write_bytes(b"broken")
    with pytest.raises(OSError, match="torchvision:CIFAR100: expected its files under"):
        open_data("cifar100")


def test_cifar100_is_fetched(tmp_path, root, monkeypatch, type_in):
    from torchvision.datasets import CIFAR100

    pack(tmp_path / "cifar-100-python.tar.gz", [(cifar100(tmp_path, monkeypatch), "cifar-100-python")], "")
    served = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), served)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(CIFAR100, "url", f"http://127.0.0.1:{server.server_port}/cifar-100-python.tar.gz")
    monkeypatch.setattr(CIFAR100, "tgz_md5", hashlib.md5((tmp_path / CIFAR100.filename).read_bytes()).hexdigest())
    code, text = type_in("data", "prepare", "cifar100", "--download", "--from", tmp_path)
    assert (code, "--from: expected no mirror for cifar100, which torchvision downloads" in text) == (2, True)
    assert "Leave --from out." in text
    text = type_in("data", "prepare", "cifar100", "--download")[1]
    server.shutdown()
    server.server_close()
    assert "cifar100: train 400, val 100, test 200; 100 classes" in text
    assert (root / "cifar-100-python" / "meta").is_file()


def test_a_card_of_a_hub_that_counts_other_classes(mine, root):
    mnist(root / "MNIST" / "raw")
    path = mine(hub="torchvision:MNIST", folder="MNIST/raw", classes=["a", "b"])
    with pytest.raises(
        ValueError, match=r"torchvision:MNIST: expected 2 classes as on the card, got 10. Correct the card"
    ):
        open_data(path)


def test_core50_is_its_sessions(root, jpegs, type_in):
    folder = core50(root, jpegs)
    data = open_data("core50", allow_missing_classes=True)
    assert data.train.info["domains"] == [f"s{n}" for n in range(1, 12)]
    assert per_domain(data.train) == {f"s{n}": 12 for n in (1, 2, 4, 5, 6, 8, 9, 11)}
    assert per_domain(data.val) == {f"s{n}": 3 for n in (1, 2, 4, 5, 6, 8, 9, 11)}
    assert per_domain(data.test) == {f"s{n}": 15 for n in (3, 7, 10)}
    assert [str(name) for name in data.test.names] == ["plug adapter 1", "plug adapter 2", "remote control 5"]
    for item, label, domain in zip(data.train.items, data.train.labels, data.train.domains, strict=True):
        session, thing, _ = item.name.split("/")
        assert (session, thing) == (data.train.info["domains"][domain], class_ids(data.train.names)[label])
    code, text = type_in("data", "check", "core50", "--allow-missing-classes")
    assert (code, "s1 12/3/0" in text, "s3 0/0/15" in text) == (0, True, True), text
    code, text = type_in("data", "split", "core50", "--save", folder, "--allow-missing-classes")
    assert (code, "expected images without domains, got those of core50 with domains" in text) == (2, True)
    names = list(load_card_classes(load_card("core50")).values())
    assert (len(set(names)), names[10], names[44]) == (50, "scissors 1", "cup 5")
    (folder / "core50_128x128" / "s7" / "o2").rename(folder / "elsewhere")
    with pytest.raises(ValueError, match=r"s7': expected the files that other sessions have, got no o2. Get it again"):
        open_data("core50", allow_missing_classes=True)
    (folder / "core50_128x128" / "s10").rename(folder / "s10")
    with pytest.raises(OSError, match=r"expected the sessions s1 to s11 .*, got no s10. Unpack the archive again"):
        open_data("core50", allow_missing_classes=True)


def test_domainnet_is_its_lists(root, jpegs, type_in):
    folder = domainnet(root, jpegs)
    data = open_data("domainnet", allow_missing_classes=True)
    assert data.train.info["domains"] == list(DOMAINS)
    assert [str(name) for name in data.test.names] == ["aircraft carrier", "The Mona Lisa", "zigzag"]  # by the labels
    for part, each in zip(PARTS, (12, 3, 6), strict=True):
        assert per_domain(getattr(data, part)) == dict.fromkeys(DOMAINS, each)
        assert getattr(data, part).count_per_class() == [each * 2] * 3
    listed = [line.split()[0] for d in DOMAINS for line in (folder / f"{d}_test.txt").read_text().splitlines()]
    assert [item.name for item in data.test.items] == listed
    code, text = type_in("data", "check", "domainnet")
    assert (code, "342 of 345 classes have no images" in text) == (1, True), text
    with pytest.raises(ValueError, match=r"expected all 345 classes, got only 3 of 345 classes. Get the rest"):
        open_data("domainnet")


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        ("real_test.txt", "real_001_000005", "gone", r"got 1 image that is not there \(real/aircraft_carrier/gone"),
        (
            "real_test.txt",
            "real/zig",
            "sketch/zig",
            "expected paths real/CLASS/FILE, got .*sketch/zig.*Take the list of that domain",
        ),
        (
            "real_test.txt",
            "real_001_000005",
            "real_001_000000",
            "got .* in real_train.txt and in real_test.txt. Get the lists again",
        ),
        (
            "real_test.txt",
            " 344",
            " 0",
            "expected a label for each class, got the same for .* and images of 'aircraft_carrier'",
        ),
        ("real_test.txt", " 344", " 5", "got two for images of 'zigzag'. Take lists"),
        ("real_test.txt", " 344", " x", 'line 1: expected "path label", .*, got .* x\'. Correct'),
        ("sketch_train.txt", None, None, "expected sketch_train.txt, got no such file"),
    ],
)
def test_wrong_lists_of_domainnet(root, jpegs, file, old, new, told):
    path = domainnet(root, jpegs) / file
    if old is None:
        path.unlink()
    else:
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises((ValueError, OSError), match=told):
        open_data("domainnet", allow_missing_classes=True)


def test_imagenet_r_is_cut_or_listed(root, jpegs):
    folder = renditions(root, jpegs)
    data = open_data("imagenet_r_stream", allow_missing_classes=True)
    assert sizes(data) == [18, 6, 6]
    assert [str(name) for name in data.test.names] == ["goldfish", "stingray", "acorn"]
    assert "cut 80:20 into train and test, not the literature's split" in data.note
    classes = ("n01443537", "n01498041", "n12267677")
    lists = {"train": [f"./imagenet-r/{key}/art_{i}.jpg 7" for key in classes for i in range(1, 10)],
             "test": [f"{key}/art_0.jpg" for key in classes]}  # fmt: skip
    for part, lines in lists.items():
        (folder / f"{part}.txt").write_text("\n".join(lines))
    listed = open_data("imagenet_r_stream", allow_missing_classes=True)
    assert [item.name for item in listed.test.items] == lists["test"]
    assert len(listed.train) + len(listed.val) == 27
    assert "the lists train.txt and test.txt" in listed.note
    assert "not the literature's split" not in listed.note
    assert listed.hash() != data.hash()
    for text, told in (
        ("n01443537/art_1.jpg", "got .* in train.txt and in test.txt. Take lists"),
        ("n01443537/none.jpg", r"got 1 image that is not there \(n01443537/none.jpg\)"),
        ("art_0.jpg", "expected lines CLASS/FILE .*, got"),
        ("n00000001/art_0.jpg", "expected the 200 classes of the dataset, got the class 'n00000001'"),
        (None, "expected test.txt, got no such file"),
    ):
        (folder / "test.txt").unlink() if text is None else (folder / "test.txt").write_text(text)
        with pytest.raises((ValueError, OSError), match=told):
            open_data("imagenet_r_stream", allow_missing_classes=True)


def test_cub200_has_its_authors_parts(tmp_path, jpegs):
    _, made = fgvc("cub200", tmp_path, jpegs, lists=False)
    data = open_data("cub200", root=tmp_path, allow_missing_classes=True)
    assert [item.name for item in data.test.items] == [path for path, _ in made["test"]]
    assert sizes(data) == [18, 6, 6]
    assert data.train.info["stages"] == 10
    assert [str(name) for name in data.test.names][2] == "Common Yellowthroat"


def test_stages_keep_to_the_classes_that_are_there(root, jpegs, mine):
    letters(root, jpegs)
    for gone in ("B", "J"):
        for file in (root / "notMNIST_small" / gone).iterdir():
            file.unlink()
    told = read_yaml("notmnist") | {"stages": [["A", "B"], ["J"], ["C"]]}
    assert open_data(mine(**told), allow_missing_classes=True).test.info["stages"] == [["A"], ["C"]]


def reached(item):
    """Whatever can be had from an item by its attributes, closures and arguments; no modules, no function's globals."""
    left, seen = [item], {}
    while left:
        one = left.pop()
        if id(one) in seen or isinstance(one, types.ModuleType | type):
            continue
        seen[id(one)] = one
        left += list(vars(one).values()) if hasattr(one, "__dict__") else []
        left += [getattr(one, slot) for kind in type(one).__mro__ for slot in _slots(kind) if hasattr(one, slot)]
        if isinstance(one, functools.partial):
            left += [one.func, one.args, one.keywords]
        if isinstance(one, types.FunctionType):
            left += [cell.cell_contents for cell in one.__closure__ or ()]
            left += [*(one.__defaults__ or ()), *(one.__kwdefaults__ or {}).values()]
        if isinstance(one, types.MethodType):
            left += [one.__self__, one.__func__]
        if isinstance(one, dict):
            left += [*one.keys(), *one.values()]
        if isinstance(one, list | tuple | set | frozenset):
            left += list(one)
        if isinstance(one, np.ndarray | torch.Tensor):
            left.append(one.base if isinstance(one, np.ndarray) else one._base)
    return list(seen.values())


def _slots(kind):
    slots = getattr(kind, "__slots__", ())
    return [slots] if isinstance(slots, str) else list(slots)


def held(item):
    """The most that any array, text or container which the item leads to has in it."""
    most = {"values": 0, "in a container": 0}
    for one in reached(item):
        if isinstance(one, np.ndarray | torch.Tensor):
            most["values"] = max(most["values"], one.nbytes)
        elif isinstance(one, dict | list | tuple | set | frozenset | bytes):
            most["in a container"] = max(most["in a container"], len(one))
    return most


def test_the_walk_finds_what_is_hidden():
    images, labels = np.zeros((50, 8, 8), np.uint8), list(range(50))
    assert (
        held(ImageItem("a", functools.partial(lambda look, view, one: one, one=images[3])))["values"] == images.nbytes
    )
    assert held(ImageItem("a", lambda look, view: labels[3]))["in a container"] == 50
    tensor = torch.zeros(50, 8)
    assert held(ImageItem("a", functools.partial(torch.add, tensor[1])))["values"] == tensor.nbytes


@pytest.fixture
def opened(tmp_path, pictures, root, monkeypatch, jpegs, mine):
    """Opens a dataset of a kind."""

    def table():
        for name in ("china", "red_flower"):
            (tmp_path / name).symlink_to(pictures / name)
        with (tmp_path / "data.csv").open("w", newline="") as file:
            rows = [(f"{name}/{i:02}.jpg", name) for name in ("china", "red_flower") for i in range(6)]
            csv.writer(file).writerows([("path", "class"), *rows])
        return tmp_path / "data.csv"

    def arrays():
        rng = np.random.default_rng(0)
        np.savez(tmp_path / "set.npz", images=rng.integers(0, 255, (24, 20, 16, 3), np.uint8), labels=np.arange(24) % 3)
        return tmp_path / "set.npz"

    def kept():
        from vlprompt.data.readers.split_file import write_split_file

        write_split_file(open_data(str(pictures)), tmp_path / "split.json")
        (tmp_path / "split.json").rename(tmp_path / "china.json")
        for name in ("china", "red_flower"):
            (tmp_path / name).symlink_to(pictures / name)
        return tmp_path / "china.json"

    def of_library():
        cifar100(root, monkeypatch)
        return "cifar100"

    made = {
        "folder": lambda: pictures,
        "csv": table,
        "npz": arrays,
        "split": kept,
        "cifar100": of_library,
        "members": lambda: mine(members={"a": "digits", "b": "glyphs"}, classes=85),
    }
    return lambda kind: open_data(str(made.get(kind, lambda: kind)()))


KINDS = {"digits": 0, "glyphs": 0, "digit_domains": 0, "members": 0, "folder": 0, "csv": 0, "split": 0,
         "npz": 20 * 16 * 3, "cifar100": 3072}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_an_item_leads_to_no_other_image_and_no_label(opened, kind):
    """Bytes of pixels that it may hold: those of its own image."""
    data = opened(kind)
    for split in (data.train, data.test):
        for item in (split.items[0], split.items[-1]):
            item.pixels(Preprocessing((8, 8)), None)  # nor after it was looked at
            assert held(item)["values"] == KINDS[kind]
            assert held(item)["in a container"] <= 3  # arguments


def test_a_dataset_of_torchvision_with_a_transform_holds_itself(root, pictures):
    """As from_torchvision says; its pictures are what the transform makes, so they can't be kept."""
    from torchvision.datasets import MNIST
    from torchvision.transforms import ToTensor

    mnist(root / "MNIST" / "raw")
    plain = from_torchvision(MNIST(str(root)))
    assert held(plain.train.items[0])["values"] == 28 * 28
    changed = from_torchvision(MNIST(str(root), transform=ToTensor()))
    assert held(changed.train.items[0])["values"] >= 40 * 28 * 28
    look = Preprocessing((28, 28))
    assert plain.train.items[3].pixels(look, None).allclose(changed.train.items[3].pixels(look, None), atol=1e-6)
