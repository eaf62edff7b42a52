"""Miniatures of the real datasets: their layouts with a few classes and five real pictures each, and as archives."""

import functools
import hashlib
import io
import json
import pickle
import re
import tarfile
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import yaml
from PIL import Image
from scipy.io import savemat

from vlprompt.data.cards import find_card, load_card, load_card_classes
from vlprompt.data.dataset_groups import list_benchmark_datasets
from vlprompt.data.download import read_download_steps

CHOSEN = {  # labels of the classes in a miniature, where the first three would hide a mistake
    "caltech101": (0, 4, 99),
    "eurosat": (9, 0, 3),
    "fgvc_aircraft": (0, 72, 99),
    "food101": (16, 17, 100),
    "imagenet": (657, 0, 744),  # two classes called missile
    "imagenet_a": (0, 5, 199),
    "imagenet_r": (0, 5, 199),
    "imagenet_sketch": (999, 2, 10),
    "imagenetv2": (2, 10, 100),  # sorted as text: 10, 100, 2
    "oxford_flowers": (0, 76, 101),
    "sun397": (0, 8, 392),
    "ucf101": (36, 83, 100),
}
EACH = 5  # pictures of a class: 0 and 1 train, 2 val, 3 and 4 test


def read_yaml(name):
    """The keys of a card as its file has them."""
    return yaml.safe_load(find_card(name).read_text("utf-8"))


class Miniature:
    """The folder of one dataset under `root`, as its authors lay it out; rows: (path, label) of each part.

    whole: with all classes, not a few.
    """

    def __init__(self, name, root, jpegs, whole=False):
        self.name, self.card = name, read_yaml(name)
        self.every = list(load_card_classes(load_card(name)).items())  # (id, name) in label order
        self.labels = list(range(len(self.every))) if whole else sorted(CHOSEN.get(name, (0, 1, 2)))
        self.folder = root / self.card["folder"]
        self.images = self.folder / self.card["images"]
        self.jpegs, self.rows = jpegs, {"train": [], "val": [], "test": []}
        getattr(self, f"lay_{self.card['layout']}")()
        if "split" in self.card:
            called = [name for _, name in self.every]
            told = {part: [[path, label, called[label]] for path, label in rows] for part, rows in self.rows.items()}
            (self.folder / self.card["split"]).write_text(json.dumps(told))

    @property
    def names(self):
        return [self.every[label][1] for label in self.labels]

    def picture(self, path, label, i):
        (self.images / path).parent.mkdir(parents=True, exist_ok=True)
        (self.images / path).write_bytes(self.jpegs[(label + i) % len(self.jpegs)])
        self.rows[("train", "train", "val", "test", "test")[i]].append((path, label))
        return path

    def write(self, path, text):
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_text(text)

    def all(self, path_of):
        """{(label, i): path} of all pictures; path_of(id, label, i)."""
        return {(k, i): self.picture(path_of(self.every[k][0], k, i), k, i) for k in self.labels for i in range(EACH)}

    def lists(self, made, train=(0, 1, 2), test=(3, 4), line=lambda path, label: path):
        return ["".join(line(made[k, i], k) + "\n" for k in self.labels for i in which) for which in (train, test)]

    def lay_folders(self):
        self.all(lambda key, k, i: f"{key}/{key}_{i}.jpg")
        if self.name == "caltech101":
            for strange in ("BACKGROUND_Google", "Faces_easy"):
                (self.images / strange).mkdir()
                (self.images / strange / "image_0001.jpg").write_bytes(self.jpegs[0])

    def lay_train_test_folders(self):
        self.all(lambda key, k, i: f"{'test' if i > 2 else 'train'}/{key}/{key}_{i}.jpg")

    def lay_imagenet(self):
        self.all(lambda key, k, i: f"{'val' if i > 2 else 'train'}/{key}/{key}_{i}.JPEG")

    def lay_numbered(self):
        self.all(lambda key, k, i: f"{k}/{key}{i}.jpeg")

    def lay_dtd(self):
        made = self.all(lambda key, k, i: f"{key}/{key}_{i:04}.jpg")
        for part, which in (("train", (0, 1)), ("val", (2,)), ("test", (3, 4))):
            self.write(f"labels/{part}1.txt", self.lists(made, which)[0])

    def lay_pets(self):
        made = self.all(lambda key, k, i: f"{key.title()}_{i}.jpg")
        train, test = self.lists(made, line=lambda path, k: f"{Path(path).stem} {k + 1} 1 1")
        self.write("annotations/trainval.txt", "#Image CLASS-ID SPECIES BREED ID\n" + train)
        self.write("annotations/test.txt", test)

    def lay_cars(self):
        made = self.all(lambda key, k, i: f"cars_{'test' if i > 2 else 'train'}/{k * EACH + i:05}.jpg")
        official = [" ".join([*name.split()[1:], name.split()[0]]) for _, name in self.every[: len(self.labels)]]
        (self.folder / "devkit").mkdir()
        savemat(self.folder / "devkit" / "cars_meta.mat", {"class_names": np.array(official, dtype=object)})
        for file, which in (("devkit/cars_train_annos.mat", (0, 1, 2)), ("cars_test_annos_withlabels.mat", (3, 4))):
            rows = [(1, 1, k + 1, Path(made[k, i]).name) for k in self.labels for i in which]
            kind = [("bbox_x1", object), ("bbox_y1", object), ("class", object), ("fname", object)]
            savemat(self.folder / file, {"annotations": np.array(rows, dtype=kind)})

    def lay_flowers(self):
        number = {(k, i): 100 * n + i + 1 for n, k in enumerate(self.labels) for i in range(EACH)}
        self.all(lambda key, k, i: f"image_{number[k, i]:05}.jpg")
        labels = np.ones(100 * len(self.labels) + 100, dtype=np.uint8)
        for (k, _), place in number.items():
            labels[place - 1] = k + 1
        savemat(self.folder / "imagelabels.mat", {"labels": labels[None]})
        sets = {"trnid": (0, 1), "valid": (2,), "tstid": (3, 4)}
        savemat(self.folder / "setid.mat", {key: np.array([[number[k, i] for k in self.labels for i in which]])
                                            for key, which in sets.items()})  # fmt: skip
        self.write("cat_to_name.json", json.dumps({str(k + 1): name for k, (_, name) in enumerate(self.every)}))

    def lay_food(self):
        made = self.all(lambda key, k, i: f"{key}/{1000 * k + i}.jpg")
        for part, which in (("train", (0, 1, 2)), ("test", (3, 4))):
            names = {self.every[k][0]: [made[k, i].removesuffix(".jpg") for i in which] for k in self.labels}
            self.write(f"meta/{part}.json", json.dumps(names))
            self.write(f"meta/{part}.txt", "\n".join(name for of_class in names.values() for name in of_class))

    def lay_aircraft(self):
        made = self.all(lambda key, k, i: f"{7 * (EACH * k + i):07}.jpg")
        self.write("variants.txt", "\n".join(self.names) + "\n")
        for part, which in (("train", (0, 1)), ("val", (2,)), ("test", (3, 4))):
            line = lambda path, k: f"{Path(path).stem} {self.every[k][1]}"  # noqa: E731
            self.write(f"images_variant_{part}.txt", self.lists(made, which, line=line)[0])

    def lay_sun(self):
        made = self.all(lambda key, k, i: f"{key[0]}/{key}/sun_{'abcde'[i]}{k}.jpg")
        self.write("ClassName.txt", "".join(f"/{self.every[k][0][0]}/{self.every[k][0]}\n" for k in self.labels))
        train, test = self.lists(made, line=lambda path, k: f"/{path}")
        self.write("Training_01.txt", train)
        self.write("Testing_01.txt", test)

    def lay_ucf(self):
        made = self.all(lambda key, k, i: f"{key}/v_{key.replace('_', '')}_g0{i}_c01.jpg")
        line = lambda path, k: f"{Path(path).parts[0].replace('_', '')}/{Path(path).stem}.avi {k + 1}"  # noqa: E731
        train, test = self.lists(made, line=line)
        self.write("ucfTrainTestlist/trainlist01.txt", train)
        self.write("ucfTrainTestlist/testlist01.txt", re.sub(r" \d+$", "", test, flags=re.M))  # the test has no labels

    def packed(self, where, address=None):
        """The archives and files that its card downloads, in the folder `where`."""
        found = read_download_steps(load_card(self.name))
        given = {Path(step.produces).parts[0] for step in found}
        rest = [path for path in self.folder.iterdir() if path.name not in given]
        last = [step for step in found if step.is_archive][-1]
        inner = None
        for step in found[::-1]:  # what lies in another archive is packed before it
            if not step.is_archive:
                (where / step.file).write_bytes((self.folder / step.produces).read_bytes())
                continue
            if step.produces.endswith(".gz"):
                sources = [(inner, step.produces)]
            else:
                sources = [(self.folder / step.produces, "" if step.extract_to != "." else step.produces)]
            sources += [(path, path.name) for path in rest] if step is last else []
            pack(where / step.file, sources, "/".join(["top", "data"][: step.strip_components]))
            inner = where / step.file
        return self.local(where, address)

    def local(self, where, address):
        """The card with the checksums, and where there is one the address, of this miniature's files."""
        card = self.card | {"downloads": [dict(told) for told in self.card["downloads"]]}
        for told, step in zip(card["downloads"], read_download_steps(load_card(self.name)), strict=True):
            if address is not None and "url" in told:
                told |= {"url": f"{address}/{step.file}"}
            if "md5" in told:
                told["md5"] = hashlib.md5((where / step.file).read_bytes()).hexdigest()
        path = where / f"{self.name}.yaml"
        path.write_text(yaml.safe_dump(card, sort_keys=False))
        return path


def pack(path, sources, top):
    members = []
    for source, name in sources:
        files = sorted(f for f in source.rglob("*") if f.is_file()) if source.is_dir() else [source]
        members += [
            (f, "/".join(filter(None, [top, name, f.relative_to(source).as_posix().strip(".")]))) for f in files
        ]
    if path.name.endswith(".zip"):
        with zipfile.ZipFile(path, "w") as archive:
            for file, name in members:
                archive.write(file, name)
    else:
        with tarfile.open(path, "w" if path.name.endswith(".tar") else "w:gz") as archive:
            for file, name in members:
                archive.add(file, name)


def small_jpegs():
    """Real photographs of 24 x 20, encoded: crops of the two that scikit-learn carries."""
    from sklearn.datasets import load_sample_images

    found = []
    for array in load_sample_images().images:
        for i in range(8):
            file = io.BytesIO()
            Image.fromarray(array[40 * i : 40 * i + 80 : 4, 60 * i : 60 * i + 96 : 4]).save(file, "JPEG", quality=90)
            found.append(file.getvalue())
    return found


def drawn(label, classes, seed):
    """A picture of 32 x 32 that tells its class by the colour of the ground and the place of a bar, with noise."""
    rng = np.random.default_rng((label, seed))
    hue, place = 2 * np.pi * label / classes, label * 26 // max(1, classes - 1)
    ground = 128 + 100 * np.cos(hue + np.array([0, 2, 4]) * np.pi / 3)
    array = np.broadcast_to(ground, (32, 32, 3)) + rng.normal(0, 8, (32, 32, 3))
    array[:, place : place + 6] = 255 - ground
    return Image.fromarray(array.clip(0, 255).astype(np.uint8))


def vtab_root(path, tasks=None, per=2):
    """VTAB-1k as NOAH writes it, for --root: all tasks or these cards, each with all its classes; gives `path`.

    A class has `per` drawn pictures to learn from, one for validation and two to test on.
    """
    for name in list_benchmark_datasets("vtab") if tasks is None else tasks:
        card = load_card(name)
        folder, classes = path / card.folder, len(load_card_classes(card))
        made = {"train800": [], "val200": [], "test": []}
        for first, (part, many) in enumerate((("train800", per), ("val200", 1), ("test", 2))):
            for label in range(classes):
                for i in range(many):
                    file = io.BytesIO()
                    drawn(label, classes, 1000 * first + i).save(file, "JPEG", quality=90)
                    made[part].append((file.getvalue(), label))
        made["train800val200"] = made["train800"] + made["val200"]  # copies, in a folder of their own
        for part, pictures in made.items():
            (folder / "images" / part).mkdir(parents=True)
            lines = []
            for i, (picture, label) in enumerate(pictures):
                (folder / f"images/{part}/{i:06}.jpg").write_bytes(picture)
                lines.append(f"images/{part}/{i:06}.jpg {label}")
            (folder / f"{part}.txt").write_text("\n".join(lines) + "\n")
    return path


FOLDERS = {  # of a few classes, as their authors call them
    "cub200": ("001.Black_footed_Albatross", "002.Laysan_Albatross", "200.Common_Yellowthroat"),
    "fgvc_cub": ("001.Black_footed_Albatross", "002.Laysan_Albatross", "200.Common_Yellowthroat"),
    "fgvc_nabirds": ("0295", "0817", "1010"),
    "fgvc_dogs": ("n02085620-Chihuahua", "n02088364-beagle", "n02116738-African_hunting_dog"),
}
BIRDS = {"0": "Birds", "295": "American Black Duck", "817": "Oak Titmouse", "1010": "House Sparrow (Female/Juvenile)"}


def fgvc(name, root, jpegs, lists=True):
    """A set of FGVC under `root` with three classes: of ten real pictures of each seven train, one val and two test.

    lists: with the split that VPT's authors published; without it the authors' own lists, where val is in train. Gives
    the folder and {part: [(path, label)]}, labels among the three.
    """
    card = load_card(name)
    folder = root / card.folder
    images, rows = folder / card.images, {"train": [], "val": [], "test": []}
    for k in range(3):
        for i in range(10):
            path = {
                "cub": lambda k, i: f"{FOLDERS[name][k]}/{'abcdefghij'[i]}{k}.jpg",
                "dogs": lambda k, i: f"{FOLDERS[name][k]}/{FOLDERS[name][k].split('-')[0]}_{i}.jpg",
                "flowers": lambda k, i: f"jpg/image_{10 * k + i + 1:05}.jpg",
                "cars": lambda k, i: f"cars_{'test' if i > 7 else 'train'}/{10 * k + i:05}.jpg",
            }[card.layout](k, i)
            (images / path).parent.mkdir(parents=True, exist_ok=True)
            (images / path).write_bytes(jpegs[(k + i) % len(jpegs)])
            rows["train" if i < 7 else "val" if i < 8 else "test"].append((path, k))
    if name == "fgvc_nabirds":
        (folder / "classes.txt").write_text("".join(f"{key} {called}\n" for key, called in BIRDS.items()))
    if lists:
        for part, of_part in rows.items():
            (folder / f"{part}.json").write_text(json.dumps(dict(of_part)))
        return folder, rows
    learnt, tested = sorted(rows["train"] + rows["val"]), rows["test"]
    if card.layout == "cub":
        tables = {"images": [], "image_class_labels": [], "train_test_split": []}
        for number, (path, _) in enumerate(learnt + tested, 1):
            key = f"{number:08}-uuid" if name == "fgvc_nabirds" else str(number)
            tables["images"].append(f"{key} {path}")
            tables["image_class_labels"].append(f"{key} {int(path.split('/')[0].split('.')[0])}")
            tables["train_test_split"].append(f"{key} {int(number <= len(learnt))}")
        for file, lines in tables.items():
            (folder / f"{file}.txt").write_text("\n".join(lines) + "\n")
    elif card.layout == "dogs":
        for file, of_part in (("train_list.mat", learnt), ("test_list.mat", tested)):
            paths = np.array([[path] for path, _ in of_part], dtype=object)
            savemat(folder / file, {"file_list": paths, "labels": np.array([[k + 1] for _, k in of_part])})
    elif card.layout == "flowers":
        every = {int(path[-9:-4]): k + 1 for of_part in rows.values() for path, k in of_part}
        savemat(folder / "imagelabels.mat", {"labels": np.array([[every[i + 1] for i in range(len(every))]])})
        numbers = {part: np.array([[int(path[-9:-4]) for path, _ in of_part]]) for part, of_part in rows.items()}
        savemat(folder / "setid.mat", dict(zip(("trnid", "valid", "tstid"), numbers.values(), strict=True)))
    else:
        names = [" ".join([*name.split()[1:], name.split()[0]]) for name in list(load_card_classes(card).values())[:3]]
        (folder / "devkit").mkdir()
        savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array(names, dtype=object)})
        for file, of_part in (("devkit/cars_train_annos.mat", learnt), ("cars_test_annos_withlabels.mat", tested)):
            kind = [("class", object), ("fname", object)]
            table = np.array([(k + 1, Path(path).name) for path, k in of_part], dtype=kind)
            savemat(folder / file, {"annotations": table})
    return folder, rows


STREAMS = ("core50", "cub200", "domainnet", "imagenet_r_stream", "notmnist")  # cards of folders that are met in turn
DOMAIN_SETS = ("mini_domainnet", "office31", "office_home", "pacs", "visda2017", "vlcs")  # cards of folders of domains
SESSIONS = [f"s{n}" for n in range(1, 12)]
DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")


def core50(root, jpegs, things=("o1", "o2", "o50"), each=5):
    """The folder of a small CORe50: all sessions, a few things, `each` frames."""
    folder = root / "core50"
    for session in SESSIONS:
        for k, thing in enumerate(things):
            (folder / "core50_128x128" / session / thing).mkdir(parents=True)
            for i in range(each):
                name = f"C_{int(session[1:]):02}_{int(thing[1:]):02}_{i:03}.png"
                picture = Image.open(io.BytesIO(jpegs[(k + i) % len(jpegs)]))
                picture.save(folder / "core50_128x128" / session / thing / name)
    return folder


def domainnet(root, jpegs, classes=(("zigzag", 344), ("aircraft_carrier", 0), ("The_Mona_Lisa", 299))):
    """The folder of a small DomainNet: six domains, three classes, of each five images to learn from and two tests."""
    folder = root / "domainnet"
    for n, domain in enumerate(DOMAINS):
        lines = {"train": [], "test": []}
        for name, label in classes:
            (folder / domain / name).mkdir(parents=True)
            for i in range(7):
                path = f"{domain}/{name}/{domain}_{label + 1:03}_{i:06}.jpg"
                (folder / path).write_bytes(jpegs[(n + i) % len(jpegs)])
                lines["train" if i < 5 else "test"].append(f"{path} {label}")
        for part, of_part in lines.items():
            (folder / f"{domain}_{part}.txt").write_text("\n".join(of_part) + "\n")
    return folder


def renditions(root, jpegs, classes=("n01443537", "n01498041", "n12267677")):
    """The folder of a small ImageNet-R: three classes of ten images."""
    folder = root / "imagenet-rendition"
    for k, name in enumerate(classes):
        (folder / "imagenet-r" / name).mkdir(parents=True)
        for i in range(10):
            (folder / "imagenet-r" / name / f"art_{i}.jpg").write_bytes(jpegs[(k + i) % len(jpegs)])
    return folder


def letters(root, jpegs):
    """notMNIST: ten folders of four images."""
    for k, name in enumerate("ABCDEFGHIJ"):
        (root / "notMNIST_small" / name).mkdir(parents=True)
        for i in range(4):
            (root / "notMNIST_small" / name / f"{i}.png").write_bytes(jpegs[(k + i) % len(jpegs)])
    return root / "notMNIST_small"


def idx(path, array):
    """An array in the form of MNIST's files: a magic number, the sizes, the bytes."""
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + array.astype(np.uint8).tobytes())


def mnist(folder, train=40, test=20):
    """The files of MNIST, or of a set that is like it, with drawn pictures."""
    rng = np.random.default_rng(0)
    for part, n in (("train", train), ("t10k", test)):
        idx(folder / f"{part}-images-idx3-ubyte", rng.integers(0, 255, (n, 28, 28)))
        idx(folder / f"{part}-labels-idx1-ubyte", np.arange(n) % 10)


def _kept(path, told):
    """Written as CIFAR's authors did; gives the checksum that torchvision wants to know."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(told))
    return hashlib.md5(path.read_bytes()).hexdigest()


def _thirty_two(labels, classes):
    """Drawn pictures of these labels in rows of 3072, as CIFAR has them."""
    drawings = [np.asarray(drawn(label, classes, i)) for i, label in enumerate(labels)]
    return np.stack([array.transpose(2, 0, 1).reshape(-1) for array in drawings])


def cifar100(root, patch):
    """All 100 classes, five images to learn from and two tests of each; `patch` tells torchvision their checksums."""
    from torchvision.datasets import CIFAR100

    names = list(load_card_classes(load_card("cifar100")).values())
    folder, sums = root / "cifar-100-python", {}
    for part, each in (("train", 5), ("test", 2)):
        labels = [k % 100 for k in range(100 * each)]
        sums[part] = _kept(folder / part, {"data": _thirty_two(labels, 100), "fine_labels": labels})
    meta = _kept(folder / "meta", {"fine_label_names": names})
    patch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    patch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    patch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": meta})
    return folder


def five_datasets(root, jpegs, patch):
    """The five members in their authors' files, four images to learn from and two tests of each of ten classes."""
    from torchvision.datasets import CIFAR10, SVHN

    mnist(root / "MNIST" / "raw")
    mnist(root / "FashionMNIST" / "raw")
    letters(root, jpegs)
    folder, labels = root / "cifar-10-batches-py", [k % 10 for k in range(20)]
    files = ("data_batch_1", "data_batch_2", "test_batch")
    sums = [[file, _kept(folder / file, {"data": _thirty_two(labels, 10), "labels": labels})] for file in files]
    names = list(load_card_classes(load_card("cifar10")).values())
    meta = _kept(folder / "batches.meta", {"label_names": names})
    patch.setattr(CIFAR10, "train_list", sums[:2])
    patch.setattr(CIFAR10, "test_list", sums[2:])
    patch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": meta})
    told = dict(SVHN.split_list)
    for part, n in (("train", 40), ("test", 20)):
        file = root / f"{part}_32x32.mat"
        pictures = np.stack([np.asarray(drawn(k % 10, 10, k)) for k in range(n)], -1)
        savemat(file, {"X": pictures, "y": np.array([[k % 10 or 10] for k in range(n)], np.uint8)})
        told[part] = [told[part][0], file.name, hashlib.md5(file.read_bytes()).hexdigest()]
    patch.setattr(SVHN, "split_list", told)
    return root


DIGITS = TemporaryDirectory(prefix="vlprompt-digits-")


@functools.cache
def small_digits():
    """A folder of real handwritten digits, whose name is digits: of each class 6 train, 4 val and 4 test images."""
    from sklearn.datasets import load_digits

    data, root = load_digits(), Path(DIGITS.name) / "digits"
    for split, places in (("train", slice(6)), ("val", slice(6, 10)), ("test", slice(10, 14))):
        for label in data.target_names:
            folder = root / split / f"digit {label}"
            folder.mkdir(parents=True)
            for i, array in enumerate(data.images[data.target == label][places]):
                Image.fromarray((array * 15).astype("uint8")).resize((32, 32)).save(folder / f"{i}.png")
    return str(root)
