"""Every card against a miniature of the real layout: fetched, unpacked, read; and every way files can be wrong."""

import functools
import hashlib
import http.server
import itertools
import json
import os
import shutil
import threading
import warnings
from pathlib import Path

import pytest
import yaml
from miniatures import DOMAIN_SETS, STREAMS, Miniature, read_yaml

from vlprompt.cli.app import main
from vlprompt.core.class_names import class_ids
from vlprompt.core.images import Preprocessing
from vlprompt.data.cards import list_cards, load_card, load_card_classes
from vlprompt.data.dataset import build_class_names
from vlprompt.data.dataset_groups import list_benchmark_datasets
from vlprompt.data.loading import open_data
from vlprompt.data.readers.split_file import SAVED_SPLIT_FILE
from vlprompt.data.splits.sampling import sample_few_shot

OTHERS = (
    "vtab_",
    "pilot_",
    *list_benchmark_datasets("fgvc"),
    *STREAMS,
    *DOMAIN_SETS,
)  # test_benchmarks, _stream_data and _domain_data read them
LABEL_SETS = {"voc2007", "coco2014", "nus_wide"}  # several labels an image: test_label_sets.py
LAID_OUT = [name for name in list_cards() if load_card(name).kind == "layout" and not name.startswith(OTHERS)]
REAL = [name for name in LAID_OUT if name not in LABEL_SETS]
DOWNLOADED = [name for name in REAL if load_card(name).downloads]
SPLIT = [name for name in REAL if load_card(name).split]
TEST_ONLY = [name for name in REAL if set(load_card(name).sizes) == {"test"}]
TEMPLATES = {
    "oxford_pets": "a photo of a {name}, a type of pet.",
    "oxford_flowers": "a photo of a {name}, a type of flower.",
    "fgvc_aircraft": "a photo of a {name}, a type of aircraft.",
    "dtd": "{name} texture.",
    "eurosat": "a centered satellite photo of {name}.",
    "food101": "a photo of {name}, a type of food.",
    "ucf101": "a photo of a person doing {name}.",
}
SIZES = {  # classes of each set, as its paper says
    "imagenet": 1000, "caltech101": 100, "oxford_pets": 37, "stanford_cars": 196, "oxford_flowers": 102, "food101": 101,
    "fgvc_aircraft": 100, "sun397": 397, "dtd": 47, "eurosat": 10, "ucf101": 101, "imagenetv2": 1000,
    "imagenet_sketch": 1000, "imagenet_a": 200, "imagenet_r": 200,
}  # fmt: skip


@pytest.fixture
def mini(tmp_path, jpegs, monkeypatch):
    """Makes a miniature under a root that the environment names."""
    monkeypatch.setenv("VLPROMPT_DATA", str(tmp_path / "root"))
    return lambda name: Miniature(name, tmp_path / "root", jpegs)


@pytest.fixture
def type_in(capsys, monkeypatch):
    """Type a command; gives (exit status, what it printed, in one line)."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("VLPROMPT_DATA", os.environ.get("VLPROMPT_DATA", "data"))  # --root sets it; put back afterwards

    def typed(*words):
        with warnings.catch_warnings(action="ignore"), pytest.raises(SystemExit) as left:
            main([str(w) for w in words])
        printed = capsys.readouterr()
        return left.value.code, " ".join((printed.out + printed.err).split())

    return typed


@pytest.fixture
def served(tmp_path):
    """A folder and the address at which it can be fetched; knows ranges, counts requests, and can break off."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        asked, breaks = [], False

        def do_GET(self):
            body = (folder / self.path.strip("/")).read_bytes()
            begin = int(self.headers.get("Range", "bytes=0-")[6:].strip("-"))
            self.asked.append((self.path, begin))
            if begin >= len(body):
                self.send_error(416)
                return
            self.send_response(206 if begin else 200)
            self.send_header("Content-Length", str(len(body) - begin))
            self.end_headers()
            self.wfile.write(body[begin : begin + 500 if Handler.breaks else None])

        def log_message(self, *words):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}", Handler
    server.shutdown()
    server.server_close()


def opened(name, **how):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two classes of ImageNet have one name
        return open_data(name, allow_missing_classes=True, **how)


def rows(split):
    return [(item.name, split.names[label]) for item, label in zip(split.items, split.labels, strict=True)]


def test_every_set_of_the_literature_has_a_card():
    assert set(LAID_OUT) == set(SIZES) | LABEL_SETS
    for name in REAL:
        card = load_card(name)
        classes = load_card_classes(card)
        assert len(classes) == SIZES[name]
        assert card.template == TEMPLATES.get(name, "a photo of a {name}.")
        assert all(str(text).strip() for text in classes.values())


def test_classes_stand_in_the_literatures_order():
    def first(name, n=4):
        return list(load_card_classes(load_card(name)).values())[:n]

    assert first("caltech101") == ["face", "leopard", "motorbike", "accordion"]
    assert first("stanford_cars", 2) == ["2000 AM General Hummer SUV", "2012 Acura RL Sedan"]
    assert first("oxford_flowers", 2) == ["pink primrose", "hard-leaved pocket orchid"]
    assert first("eurosat", 1) == ["Annual Crop Land"]
    assert "outdoor apartment_building" in first("sun397", 9)
    imagenet = list(load_card_classes(load_card("imagenet")).items())
    assert imagenet == sorted(imagenet)
    assert [key for key, name in imagenet if name == "missile"] == ["n03773504", "n04008634"]
    with pytest.warns(UserWarning, match="several classes are called 'missile', 'sunglasses'"):
        assert len(set(class_ids(build_class_names(dict(imagenet), "the card")))) == 1000
    assert dict(imagenet)["n02123045"] == "tabby cat"
    assert load_card_classes(load_card("imagenetv2")) == dict(imagenet)
    assert load_card_classes(load_card("imagenet_r")).items() <= dict(imagenet).items()


@pytest.mark.parametrize("name", DOWNLOADED)
def test_prepare_fetches_unpacks_and_checks(name, tmp_path, jpegs, type_in, served):
    """Archives as the authors pack them, on a server; the folder that comes out holds what the miniature held."""
    made = Miniature(name, tmp_path / "made", jpegs)
    folder, address, handler = served
    card = made.packed(folder, address)
    root = tmp_path / "root"
    words = ["data", "prepare", card, "--root", root]
    code, text = type_in(*words)
    assert (code, "missing: " in text, handler.asked) == (1, True, [])  # nothing is fetched that was not asked for
    code, text = type_in(*words, "--download", "--allow-missing-classes")
    assert code == 0, text
    n = SIZES[name]
    assert f"{n - 3} of {n} classes have no images: " in text
    assert text.endswith("ready")
    asked = len(handler.asked)
    for archive in (root / made.card["folder"]).glob("*.*z*"):
        archive.unlink()  # what they gave is there
    code, text = type_in(*words)  # all is there, so nothing is fetched; but most classes are missing
    assert (code, len(handler.asked)) == (1, asked)
    assert f"wrong: {n - 3} of {n} classes have no images" in text
    there = {p.relative_to(made.folder).as_posix() for p in made.folder.rglob("*") if p.is_file()}
    came = {p.relative_to(root / made.card["folder"]).as_posix() for p in (root / made.card["folder"]).rglob("*")}
    assert there <= came
    assert not [path for path in came if path.endswith((".part", ".unpacking"))]
    data = opened(str(card), root=root)
    assert [str(text) for text in data.test.names] == made.names
    too_few = pytest.raises(
        ValueError, match=rf"expected \w+ images of all {n} classes, got none of {n - 3} .*--allow-missing-classes"
    )
    with warnings.catch_warnings(action="ignore"), too_few:
        open_data(str(card), root=root)


@pytest.mark.parametrize("name", SPLIT)
def test_the_literatures_split_is_taken_as_it_is(name, mini):
    made = mini(name)
    path = made.folder / made.card["split"]
    told = json.loads(path.read_text())
    told["train"] = told["train"][::-1]  # the order decides which shots are drawn, so it must stay
    path.write_text(json.dumps(told))
    data = opened(name)
    for part in ("train", "val", "test"):
        assert rows(getattr(data, part)) == [(file, text) for file, _, text in told[part]]
    assert [str(text) for text in data.train.names] == made.names
    assert {text.template for text in data.train.names} == {data.template} == {made.card["template"]}
    assert data.note == f"the split of {path.name}; only the 3 of {SIZES[name]} classes that have images"
    assert data.test.items[0].pixels(Preprocessing((16, 16)), None).shape == (3, 16, 16)


@pytest.mark.parametrize("name", REAL)
def test_without_it_the_datas_own_lists_are_read(name, mini):
    made = mini(name)
    if "split" in made.card:
        (made.folder / made.card["split"]).unlink()
    data = opened(name)
    if not load_card(name).is_counted:  # else classes have the names of their folders
        assert [str(text) for text in data.test.names] == made.names
    every = {row for part in made.rows.values() for row in part}
    whose = {path: made.every[label][1] for path, label in every}
    found = [rows(split) for split in (data.train, data.val, data.test) if split is not None]
    if not load_card(name).is_counted:
        assert {path: text for part in found for path, text in part} == whose
    if name in TEST_ONLY:
        assert (len(data.train), data.val, len(data.test)) == (0, None, 15)
        with pytest.raises(
            ValueError, match=r"expected training images, got a dataset for testing only. .*`vlprompt eval`"
        ):
            sample_few_shot(data.train, data.val, 1, 1)
        return
    cut_or_theirs = [len(data.train), 0 if data.val is None else len(data.val), len(data.test)]
    assert cut_or_theirs == ([9, 0, 6] if name == "imagenet" else [6, 3, 6])
    if load_card(name).layout != "folders" and not load_card(name).is_counted:  # with lists, the test is the authors'
        assert set(rows(data.test)) == {(path, made.every[label][1]) for path, label in made.rows["test"]}
    assert ("not the literature's split" in data.note) == ("split" in made.card)
    assert opened(name).hash() == data.hash()


def test_the_literatures_shots_come_out_of_a_split_file(tmp_path):
    """The runs of labels of the real split, as files of a folder, read and drawn."""
    published = json.loads((Path(__file__).parents[1] / "fewshot.json").read_text())["oxford_pets"]
    names = list(load_card_classes(load_card("oxford_pets")).values())
    folder = tmp_path / "oxford_pets"
    (folder / "images").mkdir(parents=True)
    told = {}
    for part, runs in {**published["labels"], "test": [[k, 1] for k in range(37)]}.items():
        labels = list(itertools.chain.from_iterable([label] * n for label, n in runs))
        told[part] = [[f"{part}_{i}.jpg", label, names[label]] for i, label in enumerate(labels)]
        for file, *_ in told[part]:
            (folder / "images" / file).touch()
    (folder / "split_zhou_OxfordPets.json").write_text(json.dumps(told))
    data = open_data("oxford_pets", root=tmp_path)
    assert (len(data.train), len(data.val)) == (2944, 736)
    for case, expected in published["hashes"].items():
        drawn = sample_few_shot(data.train, data.val, *map(int, case.split("-")))
        places = {
            part: [int(item.name.split("_")[1][:-4]) for item in split.items]
            for part, split in zip(("train", "val"), drawn, strict=True)
        }
        assert hashlib.sha256(json.dumps(places, sort_keys=True).encode()).hexdigest()[:16] == expected


def test_a_split_means_the_same_wherever_the_folder_lies(tmp_path, jpegs):
    first, second = (Miniature("dtd", tmp_path / where, jpegs) for where in ("here", "there"))
    data, again = (opened("dtd", root=made.folder.parent) for made in (first, second))
    assert data.hash() == again.hash()
    assert [item.key for item in data.train.items] != [item.key for item in again.train.items]
    views = [next(d.train.batches(6, seed=1)).inputs for d in (data, again)]
    assert views[0].pixels(Preprocessing((16, 16))).equal(views[1].pixels(Preprocessing((16, 16))))


def test_our_own_split_is_written_and_read_back_exactly(mini, type_in, tmp_path):
    made = mini("eurosat")
    (made.folder / made.card["split"]).unlink()
    cut = opened("eurosat")
    code, text = type_in("data", "split", "eurosat", "--save", made.folder, "--allow-missing-classes")
    assert (code, "hash" in text) == (0, True)
    told = json.loads((made.folder / SAVED_SPLIT_FILE).read_text())
    assert told["hash"] in text
    assert not [row for row in told["train"] if Path(row[0]).is_absolute()]
    back = opened("eurosat")
    assert back.hash() == cut.hash()
    assert "not the literature's split" in back.note
    told["train"].pop()
    (made.folder / SAVED_SPLIT_FILE).write_text(json.dumps(told))
    code, text = type_in("data", "check", "eurosat")
    assert (code, "was changed since it was written" in text) == (2, True)


def test_a_wrong_split_file(mini, type_in):
    made = mini("dtd")
    path = made.folder / made.card["split"]
    good = json.loads(path.read_text())

    def told(change):
        bad = json.loads(json.dumps(good))
        change(bad)
        path.write_text(json.dumps(bad))
        code, text = type_in("data", "check", "dtd", "--allow-missing-classes")
        assert code == 2
        return text

    assert "got 1 image that is not there (banded/x.jpg)" in told(
        lambda d: d["train"][0].__setitem__(0, "banded/x.jpg")
    )
    assert "the order of the classes is mixed up" in told(
        lambda d: [row.__setitem__(1, 2 - row[1]) for p in d.values() for row in p]
    )
    assert "got 'blotchy' and 'banded' (at " in told(lambda d: d["train"][0].__setitem__(2, "blotchy"))
    assert "expected a class name of the label 0, got ''" in told(lambda d: d["train"][0].__setitem__(2, ""))
    assert "expected a label that is a whole number from 0, got '0'" in told(
        lambda d: d["train"][0].__setitem__(1, "0")
    )
    assert "expected labels 0 to 46, the places in the list of classes, got 47 ('new')" in told(
        lambda d: d["val"].append(["a.jpg", 47, "new"])
    )
    assert "expected [path, label, class name], got 'a.jpg'" in told(lambda d: d["test"].append("a.jpg"))
    assert "expected a path inside the folder of images, got '../../x.jpg'" in told(
        lambda d: d["test"][0].__setitem__(0, "../../x.jpg")
    )
    assert "lists of [path, label, class name], got another format. Get the split file again" in told(
        lambda d: d.pop("test")
    )
    path.write_text('{"train": [')
    assert "expected a split file, got no valid JSON (" in type_in("data", "check", "dtd")[1]


def test_labels_of_the_data_that_disagree_with_the_card(mini):
    made = mini("oxford_flowers")
    (made.folder / made.card["split"]).unlink()
    told = json.loads((made.folder / "cat_to_name.json").read_text())
    (made.folder / "cat_to_name.json").write_text(json.dumps(told | {"1": told["2"], "2": told["1"]}))
    with pytest.raises(ValueError, match=r"expected class 1 to be 'pink primrose' .*, got 'hard-leaved pocket orchid'"):
        opened("oxford_flowers")
    made = mini("fgvc_aircraft")
    lines = (made.folder / "variants.txt").read_text().split("\n")
    (made.folder / "variants.txt").write_text("\n".join(lines[::-1]))
    with pytest.raises(ValueError, match=r"in the order of the card, got another order. Get it again"):
        opened("fgvc_aircraft")
    made = mini("stanford_cars")
    (made.folder / made.card["split"]).unlink()
    (made.folder / "cars_test_annos_withlabels.mat").write_bytes(b"not a mat file")
    with pytest.raises(ValueError, match=r"expected a MATLAB file, got one that can't be read .*Get it again"):
        opened("stanford_cars")
    made = mini("sun397")
    (made.folder / made.card["split"]).unlink()
    (made.folder / "Testing_01.txt").unlink()
    with pytest.raises(OSError, match=r"expected Testing_01.txt, got no such file"):
        opened("sun397")


def test_a_folder_that_is_not_there(type_in, tmp_path):
    for words in (("run", "coop", "dtd"), ("data", "check", "dtd")):
        code, text = type_in(*words, "--root", tmp_path / "nowhere")
        assert code == 2
        assert f"there is no folder '{tmp_path}/nowhere/dtd'" in text
        assert "vlprompt data prepare dtd --download" in text
        assert "https://www.robots.ox.ac.uk" in text


def test_a_run_on_a_card_does_not_know_where_the_data_lie(mini, type_in, tmp_path):
    made = mini("oxford_pets")
    card = tmp_path / "small_pets.yaml"
    few = [made.every[label][1] for label in made.labels]
    card.write_text(yaml.safe_dump(made.card | {"classes": few}))
    run = [
        "run",
        "coop",
        str(card),
        "--shots",
        "1",
        "--backbone",
        "glyph/random",
        "train.epochs=1",
        "-o",
        tmp_path / "runs",
    ]
    code, text = type_in(*run, "--root", made.folder.parent)
    assert code == 0, text
    [config] = (tmp_path / "runs").rglob("config.yaml")
    assert str(made.folder.parent) not in config.read_text().replace(str(card), "")
    assert class_ids(opened(str(card)).train.names) == tuple(few)


def test_what_can_go_wrong_with_a_download(tmp_path, jpegs, type_in, served):
    made = Miniature("dtd", tmp_path / "made", jpegs)
    folder, address, handler = served
    card, root = made.packed(folder), tmp_path / "root"
    words = ["data", "prepare", card, "--root", root, "--download", "--allow-missing-classes", "--from"]
    code, text = type_in(*words, "http://127.0.0.1:9")
    assert code == 2
    assert f"another way to '{root}/dtd/dtd-r1.0.1.tar.gz' and run the command again" in text
    handler.breaks = True
    code, text = type_in(*words, address)
    assert code == 2
    assert "download failed" in text
    assert (root / "dtd" / "dtd-r1.0.1.tar.gz.part").stat().st_size == 500
    handler.breaks = False
    code, text = type_in(*words, address)
    assert code == 0, text
    assert ("/dtd-r1.0.1.tar.gz", 500) in handler.asked  # it went on where it was
    (root / "dtd" / "images").rename(root / "dtd" / "gone")
    (root / "dtd" / "dtd-r1.0.1.tar.gz").write_bytes(b"other bytes")
    code, text = type_in(*words, address)
    assert (code, "the file is broken or another version. Remove it" in text) == (2, True)
    (root / "dtd" / "dtd-r1.0.1.tar.gz").unlink()
    code, text = type_in(*words, folder)  # a folder that holds the files does as well
    assert code == 0, text
    shutil.rmtree(root / "dtd")
    (root / "dtd").mkdir()  # killed with all of the file in its part
    shutil.copy(folder / "dtd-r1.0.1.tar.gz", root / "dtd" / "dtd-r1.0.1.tar.gz.part")
    code, text = type_in(*words, address)
    assert code == 0, text


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"layout": "dtt"}, "layout: expected a known name, got 'dtt'; did you mean 'dtd'?"),
        ({"colour": 1}, "unknown key 'colour'"),
        ({"title": None, "images": ...}, "the key 'images' is missing"),
        ({"classes": ["banded", "banded"]}, "classes: expected classes with different ids, got 'banded' twice"),
        ({"names": "imagenet"}, "classes: expected ImageNet's 1000 WordNet ids, got 'banded'"),
        (
            {"downloads": [{"link": "x"}]},
            "unknown key 'downloads.0.link'; downloads is a list of {produces, url or file,",
        ),
    ],
)
def test_a_wrong_card(tmp_path, type_in, changed, told):
    card = {key: value for key, value in (read_yaml("dtd") | changed).items() if value is not ...}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(card))
    code, text = type_in("data", "prepare", tmp_path / "mine.yaml", "--root", tmp_path)
    if code == 1:  # nothing is there to be read, so the classes have not been looked at
        code, text = type_in("data", "check", tmp_path / "mine.yaml")
    assert code == 2
    assert told in text
    (tmp_path / "mine.yaml").write_text("classes: [")
    assert "is not YAML" in type_in("data", "check", tmp_path / "mine.yaml")[1]


def test_archives_that_would_write_elsewhere(tmp_path, type_in):
    import io
    import tarfile
    import zipfile

    for file, suffix in (("evil.tar.gz", "tar"), ("evil.zip", "zip")):
        card = read_yaml("dtd") | {"downloads": [{"url": f"http://nowhere/{file}", "produces": "images"}]}
        (tmp_path / "card.yaml").write_text(yaml.safe_dump(card))
        (tmp_path / "root" / "dtd").mkdir(parents=True, exist_ok=True)
        path = tmp_path / "root" / "dtd" / file
        if suffix == "zip":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("../../outside.txt", "x")
        else:
            with tarfile.open(path, "w:gz") as archive:
                archive.addfile(tarfile.TarInfo("../../outside.txt"), io.BytesIO())
        code, text = type_in("data", "prepare", tmp_path / "card.yaml", "--root", tmp_path / "root")
        assert (code, "expected paths inside its folder, got one outside (" in text) == (2, True), text
        assert not list(tmp_path.rglob("outside.txt"))
        assert not list(tmp_path.rglob("*.unpacking"))
        path.write_bytes(b"no archive")
        code, text = type_in("data", "prepare", tmp_path / "card.yaml", "--root", tmp_path / "root")
        assert (code, "got a broken file or another format" in text) == (2, True), text
        path.unlink()
