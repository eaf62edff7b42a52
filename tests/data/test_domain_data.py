"""Data with domains: the published sets as they lie on a disk, a user's folder domain/class/image, what is wrong."""

import shutil
from collections import Counter

import pytest
import yaml
from miniatures import domainnet

from vlprompt.core.class_names import class_ids
from vlprompt.core.images import Preprocessing
from vlprompt.data.cards import load_card, load_card_classes
from vlprompt.data.loading import open_data
from vlprompt.experiments.domain_pairs import expand_domain_pairs

PARTS = ("train", "val", "test")
CUT = {10: [5, 2, 3], 6: [3, 1, 2]}  # images of a class of a domain -> of its parts
SETS = {  # name of the card -> folders of its domains as the authors' archive has them, and the word for each
    "office31": {"amazon/images": "amazon", "dslr/images": "dslr", "webcam/images": "webcam"},
    "office_home": {"Art": "art", "Clipart": "clipart", "Product": "product", "Real World": "real_world"},
    "visda2017": {"train": "synthetic", "validation": "real"},
    "pacs": {"photo": "photo", "art_painting": "art_painting", "cartoon": "cartoon", "sketch": "sketch"},
    "vlcs": {"Caltech101": "caltech", "LabelMe": "labelme", "SUN09": "sun", "VOC2007": "pascal"},
}
CLASSES = {"office31": 31, "office_home": 65, "visda2017": 12, "pacs": 7, "vlcs": 5, "mini_domainnet": 126}
BARE = {"title": "Mine", "source": "me", "licence": "mine", "template": "a {name}.", "classes": ["cat", "dog"]}
OWN = BARE | {"layout": "domains", "folder": "own", "images": ".", "domains": {"day": "bright", "night": "dark"}}


@pytest.fixture
def lay(jpegs):
    """Writes folder/{domain}/{class}/{i}.jpg; `each` images of a class, in the first domain four fewer."""

    def write(folder, domains, classes, each=10):
        for n, domain in enumerate(domains):
            for k, name in enumerate(classes):
                (folder / domain / name).mkdir(parents=True, exist_ok=True)
                for i in range(each - 4 * (n == 0)):
                    own = f"{domain} {name} {i}".encode()  # behind the image: no two files are equal
                    (folder / domain / name / f"frame_{i:04}.jpg").write_bytes(
                        jpegs[(n + 3 * k + i) % len(jpegs)] + own
                    )
        return folder

    return write


@pytest.fixture
def own(tmp_path):
    """Writes a card of the user's; gives its path."""

    def write(**told):
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in (OWN | told).items() if v is not None}))
        return str(path)

    return write


def counted(data):
    """{domain: {class: images in train, val and test}}."""
    found = {}
    for part, name in enumerate(PARTS):
        split = getattr(data, name)
        for (label, k), n in Counter(zip(split.labels, split.domains, strict=True)).items():
            of_class = found.setdefault(split.info["domains"][k], {}).setdefault(
                class_ids(split.names)[label], [0, 0, 0]
            )
            of_class[part] = n
    return found


def names_of(data):
    return [[item.name for item in getattr(data, part).items] for part in PARTS]


def alike(domains, classes, counts):
    """What `counted` gives where each class of each domain has these counts."""
    return {domain: {name: list(counts) for name in classes} for domain in domains}


def labels_fit(data):
    """Every image has the class and the domain of its path."""
    for part in PARTS:
        split = getattr(data, part)
        for item, label, k in zip(split.items, split.labels, split.domains, strict=True):
            yield (
                item.name.split("/")[-2],
                class_ids(split.names)[label],
                item.name.split("/")[0],
                split.info["domains"][k],
            )


@pytest.mark.parametrize("name", SETS)
def test_published_sets_as_their_archives_have_them(name, root, lay, type_in):
    card = load_card(name)
    keys, domains = list(load_card_classes(card)), SETS[name]
    classes = [keys[0], keys[2], keys[-1]]
    lay(root / card.folder, domains, classes)
    data = open_data(name, allow_missing_classes=True)
    words = list(domains.values())
    assert data.test.info["domains"] == words
    assert [getattr(data, part).info["transductive"] for part in PARTS] == [True] * 3
    assert counted(data) == alike(words[:1], classes, CUT[6]) | alike(words[1:], classes, CUT[10])
    folders = {folder.split("/")[0]: word for folder, word in domains.items()}
    assert all(key == told and folders[folder] == word for key, told, folder, word in labels_fit(data))
    assert data.test.items[0].pixels(Preprocessing((8, 8)), None).shape == (3, 8, 8)
    code, text = type_in("data", "check", name, "--allow-missing-classes")
    assert code == 0, text
    assert f"{words[0]} 9/3/6, {words[1]} 15/6/9" in text
    assert "all images of a domain are adapted to and tested on" in text
    code, text = type_in("data", "show", name)
    assert (code, f"images of all {len(keys)} classes, got none of {len(keys) - 3} (" in text) == (2, True), text


@pytest.mark.parametrize("name", CLASSES)
def test_what_the_cards_say(name, root, type_in):
    card = load_card(name)
    assert (len(load_card_classes(card)), card.template) == (CLASSES[name], "a photo of a {name}.")
    if name in SETS:
        assert [word for word in card.domains.values() if word in card.sizes] == list(SETS[name].values())
        assert list(load_card_classes(card)) == sorted(load_card_classes(card))
        assert ", ".join(SETS[name].values()) in type_in("data", "show", name)[1]
    assert "by hand: the arch" in type_in("data", "prepare", name)[1]


def test_the_list_tells_how_many_images_the_domains_have(type_in):
    text = type_in("data", "list")[1]
    assert "office31 31 4,110 in 3 domains" in text
    assert "mini_domainnet 126 140,006 in 4 domains" in text


def test_the_cards_count_the_images_of_each_domain(root, lay, own, type_in):
    lay(root / "own", ("day", "night"), ("cat", "dog"))
    assert type_in("data", "check", own(sizes={"bright": 12, "dark": 20}))[0] == 0
    code, text = type_in("data", "check", own(sizes={"bright": 12, "dark": 21}))
    assert (code, "the card has 12/21 images in bright/dark, here are 12/20" in text) == (1, True), text


VARIANTS = {
    "pacs in kfold": ("pacs", "PACS/kfold", ("photo", "art_painting", "cartoon", "sketch")),
    "pacs in images, as Dassl": ("pacs", "PACS/images", ("photo", "art_painting", "cartoon", "sketch")),
    "office31 without images": ("office31", "office31", ("amazon", "dslr", "webcam")),
    "office_home, as Dassl": ("office_home", "office_home", ("art", "clipart", "product", "real_world")),
    "office_home, as TLlib": ("office_home", "office_home", ("Art", "Clipart", "Product", "Real_World")),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_common_variants_of_the_layouts(variant, root, lay):
    name, folder, domains = VARIANTS[variant]
    keys = list(load_card_classes(load_card(name)))[:2]
    lay(root / folder, domains, keys)
    (root / load_card(name).folder / "image_list").mkdir()
    data = open_data(name, allow_missing_classes=True)
    assert data.test.info["domains"] == list(SETS[name].values())
    assert [list(one) for one in counted(data).values()] == [keys] * len(domains)
    assert [len(getattr(data, part)) for part in PARTS] == [2 * (5 * len(domains) - 2), 2 * (2 * len(domains) - 1),
                                                            2 * (3 * len(domains) - 1)]  # fmt: skip


def test_other_folders_are_left_out(root, lay):
    folder = lay(root / "visda17", ("train", "validation", "test"), ("bus", "car"))
    (folder / "train" / "image_list.txt").write_text("bus/frame_0000.jpg 2\n")
    lay(folder / "validation", ("tractor",), ("old",))
    data = open_data("visda2017", allow_missing_classes=True)
    assert {item.split("/")[0] for part in names_of(data) for item in part} == {"train", "validation"}
    assert "folders that are not on the card are left out: tractor" in data.note


def test_the_cut_does_not_depend_on_the_place_or_the_machine(root, lay, tmp_path):
    lay(root / "PACS", ("photo", "art_painting", "cartoon", "sketch"), ("dog", "house"), each=20)
    here = open_data("pacs", allow_missing_classes=True)
    shutil.copytree(root / "PACS", tmp_path / "other" / "PACS")
    there = open_data("pacs", allow_missing_classes=True, root=tmp_path / "other")
    assert names_of(here) == names_of(there)
    assert here.hash() == there.hash() == "2e29cf-37018f-d52af6"  # results that are published rest on it
    joined = sorted(name for part in names_of(here) for name in part)
    files = sorted(f.relative_to(root / "PACS").as_posix() for f in (root / "PACS").rglob("*.jpg"))
    assert joined == files  # the domain task joins the parts again


def broken(change, folder):
    """What one does to the folder of a set."""
    match change:
        case "no domain":
            shutil.rmtree(folder / "Real World")
        case "no domains":
            shutil.rmtree(folder / "Real World")
            (folder / "Art").rename(folder / "Paintings")
        case "no class":
            shutil.rmtree(folder / "Product" / "Bed")
        case "empty class":
            for file in (folder / "Product" / "Bed").iterdir():
                file.unlink()
        case "empty domain":
            shutil.rmtree(folder / "Product")
            (folder / "Product").mkdir()
        case "two folders of a domain":
            shutil.copytree(folder / "Art", folder / "art")
        case "two folders of a class":
            shutil.copytree(folder / "Art" / "Bed", folder / "Art" / "bed")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            "no domain",
            "each of the domains Art, Clipart, Product, Real World, got no folder 'Real World'. Add it",
        ),
        ("no domains", "got no folder 'Art', 'Real World'. Add it"),
        (
            "no class",
            "'product' .*Product'.: expected a folder of the class 'Bed', got none. Every domain needs every class",
        ),
        ("empty class", "the domain 'product' .*Product'.: expected images of the class 'Bed', got none"),
        (
            "empty domain",
            "the domain 'product' .*Product'.: expected a folder for each class such as .*, got none. Add them",
        ),
        (
            "two folders of a domain",
            "expected the domain 'Art' once, got the folders 'Art' and 'art'. Keep one of them",
        ),
        (
            "two folders of a class",
            "the domain 'art' .* the class 'Bed': expected one folder, got 'Bed' and 'bed'. Put their images together",
        ),
    ],
)
def test_what_is_missing_is_named(change, told, root, lay, type_in):
    folder = lay(root / "office_home", SETS["office_home"], ("Alarm_Clock", "Bed"), each=6)
    broken(change, folder)
    with pytest.raises((ValueError, OSError), match=told):
        open_data("office_home", allow_missing_classes=True)
    code, text = type_in("data", "check", "office_home")
    assert (code, "Traceback" in text) == (2, False), text


def mini_domainnet(root, jpegs):
    """The folder of a small mini-DomainNet: DomainNet's, with the lists of four domains in splits_mini/."""
    folder = domainnet(root, jpegs, classes=(("zebra", 125), ("aircraft_carrier", 0), ("ant", 2)))
    (folder / "splits_mini").mkdir()
    for file in folder.glob("*_t*.txt"):
        if file.name.startswith(("infograph", "quickdraw")):
            shutil.rmtree(folder / file.name.split("_")[0], ignore_errors=True)
            file.unlink()
        else:
            file.rename(folder / "splits_mini" / file.name)
    return folder


def test_mini_domainnet_is_its_lists(root, jpegs, type_in):
    folder = mini_domainnet(root, jpegs)
    data = open_data("mini_domainnet", allow_missing_classes=True)
    assert data.test.info["domains"] == ["clipart", "painting", "real", "sketch"]
    assert "transductive" not in data.test.info  # it has a test of its own
    assert [str(name) for name in data.test.names] == ["aircraft carrier", "ant", "zebra"]  # by the labels
    assert counted(data) == alike(data.test.info["domains"], ("aircraft_carrier", "ant", "zebra"), (4, 1, 2))
    listed = [
        line.split()[0]
        for d in data.test.info["domains"]
        for line in (folder / "splits_mini" / f"{d}_test.txt").read_text().splitlines()
    ]
    assert [item.name for item in data.test.items] == listed
    code, text = type_in("data", "check", "mini_domainnet")
    assert (code, "123 of 126 classes have no images" in text) == (1, True), text
    with pytest.raises(OSError, match=r"domainnet': expected clipart_train.txt, got no such file. .*get it again"):
        open_data("domainnet", allow_missing_classes=True)
    (folder / "painting").rename(folder / "elsewhere")
    with pytest.raises(OSError, match=r"for each of the domains clipart, painting.*, got no folder 'painting'. Add it"):
        open_data("mini_domainnet", allow_missing_classes=True)
    (folder / "splits_mini" / "real_test.txt").unlink()
    with pytest.raises(OSError, match=r"splits_mini': expected real_test.txt, got no such file. .*get it again"):
        open_data("mini_domainnet", allow_missing_classes=True)


def test_the_lists_of_domainnet_may_lie_in_splits(root, jpegs):
    folder = domainnet(root, jpegs)
    before = open_data("domainnet", allow_missing_classes=True)
    (folder / "splits").mkdir()
    for file in folder.glob("*_t*.txt"):
        file.rename(folder / "splits" / file.name)
    after = open_data("domainnet", allow_missing_classes=True)
    assert (after.hash(), after.test.info) == (before.hash(), before.test.info)
    assert len(after.test.info["domains"]) == 6


def test_sets_of_one_domain_have_a_word_for_it(own):
    assert open_data("digits").train.info["domain"] == "handwritten"
    assert open_data("glyphs").test.info["domain"] == "rendered"
    path = own(layout=None, folder=None, images=None, domains=None, loader="digits", classes="digits", domain="inked")
    assert open_data(path).test.info["domain"] == "inked"


@pytest.mark.parametrize(
    ("told", "wrong"),
    [
        (
            {"domains": None},
            "domains: expected {folder: word} with the layout domains and no other, got .* without domains",
        ),
        (
            {"layout": "folders"},
            "expected {folder: word} with the layout domains and no other, got the layout 'folders' with",
        ),
        (
            {"domains": ["day", "night"]},
            r"domains: expected {folder: word}, texts, two of them or more, got \['day', 'night'\]",
        ),
        (
            {"domains": {"day": "day"}},
            "domains: expected {folder: word}, texts, two of them or more, got {'day': 'day'}",
        ),
        ({"domains": {"day": "day", "night": False}}, "texts, two of them or more, got {'day': 'day', 'night': False}"),
        ({"domains": {"day": "day", "night": " "}}, "texts, two of them or more, got {'day': 'day', 'night': ' '}"),
        (
            {"domains": {"Real World": "a", "real_world": "b"}},
            "domains: expected different folders, got the folder 'realworld' twice",
        ),
        ({"domains": {"day": "a", "night": "a"}}, "domains: expected different words, got the word 'a' twice"),
        (
            {"domains": {"x/day": "a", "night": "b"}},
            "domains: expected the names of folders, got the path 'x/day'. Move the rest to images",
        ),
        ({"domain": "day"}, "domain: expected no word for all images beside domains, got 'day'. Remove one"),
        (
            {"pairs": [["bright", "light"]]},
            r"pairs: expected a list of \[source, target\] of the domains bright, dark, got \['bright', 'light'\]",
        ),
        ({"pairs": ["bright"]}, r"pairs: expected a list of \[source, target\], got \['bright'\]"),
        ({"transductive": "yes please"}, "transductive: expected true or false.*, got 'yes please'"),
        (
            {"classes": ["Alarm Clock", "alarm_clock"]},
            "classes: expected names that differ .*, got 'Alarm Clock' and 'alarm_clock'. Rename one",
        ),
    ],
)
def test_wrong_domains_on_a_card(told, wrong, own, root, lay):
    lay(root / "own", ("day", "night"), ("cat", "dog"))
    with pytest.raises(ValueError, match=wrong):
        open_data(own(**told))


def test_a_folder_of_domains_is_seen_as_such(tmp_path, lay, type_in):
    lay(tmp_path / "mine", ("photo", "drawing"), ("cat", "Big Dog"))
    data = open_data(str(tmp_path / "mine"))
    assert data.train.info == {"domains": ["drawing", "photo"], "transductive": True}
    classes = ("Big Dog", "cat")
    assert counted(data) == alike(["drawing"], classes, CUT[10]) | alike(["photo"], classes, CUT[6])
    assert data.note == "its folders are domains; each class of each domain cut 50:20:30 into train, val and test"
    code, text = type_in("data", "check", "mine")
    assert (code, "domains: drawing 10/4/6, photo 6/2/4 in train/val/test" in text) == (0, True), text
    code, text = type_in("data", "show", "mine")
    assert (code, "classes 2: Big Dog, cat" in text, "domains drawing 10/4/6" in text) == (0, True, True), text
    code, text = type_in("data", "split", "mine", "--save", "mine.json")
    assert (code, "expected images without domains, got those of mine with domains" in text) == (2, True)
    (tmp_path / "mine").rename(tmp_path / "moved")
    assert open_data(str(tmp_path / "moved")).hash() == data.hash()


def test_classes_of_domains_are_matched_by_name(tmp_path, lay):
    lay(tmp_path / "mine", ("a",), ("alarm_clock", "zebra", "Mug"))
    lay(tmp_path / "mine", ("b/images",), ("Alarm Clock", "MUG", "zebra"))
    data = open_data(str(tmp_path / "mine"))
    assert [str(name) for name in data.test.names] == ["Mug", "alarm_clock", "zebra"]
    assert counted(data) == alike("ab", ("Mug", "alarm_clock", "zebra"), CUT[6])
    for key, told, _, _ in labels_fit(data):
        assert key.lower().replace(" ", "_") == told.lower()


@pytest.mark.parametrize("empty", [False, True])
def test_a_class_that_a_domain_lacks_is_named(tmp_path, lay, empty):
    lay(tmp_path / "mine", ("day", "dusk", "night"), ("cat", "dog"))
    shutil.rmtree(tmp_path / "mine" / "dusk" / "dog")
    if empty:
        (tmp_path / "mine" / "dusk" / "dog").mkdir()
    what = "images" if empty else "a folder"
    with pytest.raises(
        ValueError, match=f"the domain 'dusk' .*: expected {what} of the class 'dog', got none .* taken for domains"
    ):
        open_data(str(tmp_path / "mine"))


def test_domains_that_lack_a_class_each(tmp_path, lay):
    for domain, classes in {"day": ("cat", "dog"), "dusk": ("dog", "emu"), "night": ("cat", "emu")}.items():
        lay(tmp_path / "mine", (domain,), classes)
    with pytest.raises(ValueError, match=r"the domain 'day' .*: expected a folder of the class 'emu', got none"):
        open_data(str(tmp_path / "mine"))


@pytest.mark.parametrize(
    ("tops", "classes"),
    [
        ({"cat": ("indoors", "garden"), "dog": ("beach", "park")}, ["cat", "dog"]),  # nothing in common
        ({"cat": ("images",), "dog": ("images",)}, ["cat", "dog"]),  # one folder in each
        ({"cat": ("1", "2"), "dog": ("1", "2"), "emu": ("",)}, ["cat", "dog", "emu"]),  # no folders in one
        ({"cat": ("1", "2"), "dog": ("1", "2", "")}, ["cat", "dog"]),  # images straight in one
        ({"cat": ("1", "2"), "dog": ("2", "3"), **{name: (name,) for name in "abc"}}, [*"abc", "cat", "dog"]),  # a few
        ({"photo": ("cat", "dog")}, None),  # one domain only
    ],
)
def test_what_stays_a_folder_of_classes(tmp_path, lay, tops, classes):
    for top, inner in tops.items():
        lay(tmp_path / "mine", (top,), inner)
    if classes is None:
        with pytest.raises(ValueError, match="expected at least 2 classes, got only the class 'photo'"):
            open_data(str(tmp_path / "mine"))
        return
    layout = None
    if len(set(tops["cat"]) | set(tops["dog"])) > 2 and not {"emu", ""} & {*tops, *tops["dog"]}:  # only folders, others
        layout = "classes"
        with pytest.raises(
            ValueError, match=r"can be the classes .* or the classes .* in them. Choose by task.layout="
        ):
            open_data(str(tmp_path / "mine"))
    data = open_data(str(tmp_path / "mine"), layout=layout)
    assert ([str(name) for name in data.test.names], data.test.domains) == (classes, None)


def test_train_and_test_stay_parts(tmp_path, lay):
    lay(tmp_path / "mine", ("train", "test"), ("cat", "dog"))
    data = open_data(str(tmp_path / "mine"))
    assert (data.test.domains, len(data.test), len(data.train) + len(data.val)) == (None, 20, 12)


@pytest.mark.parametrize(("name", "each", "rest"), [("visda2017", 1, 2), ("office31", 6, 3)])
def test_a_card_may_say_which_pairs_there_are(name, each, rest, root, lay):
    card = load_card(name)
    lay(root / card.folder / card.images, SETS[name], load_card_classes(card).keys(), 7)
    task = {"name": "domain", "dataset": name}
    pairs = expand_domain_pairs(task)
    assert len(pairs) == each
    if each == 1:  # VisDA goes from renderings to photographs
        assert pairs == [['task.source="synthetic"', 'task.target="real"']]
    assert len(expand_domain_pairs(task, "rest")) == rest
