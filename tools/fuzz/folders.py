"""Folders of images: names, links, hidden files, nesting, splits; and data that change between two commands."""

import os
import random
import shutil
import unicodedata
from pathlib import Path

from fuzz.draw import COLOURS, STRANGE_NAMES, draw_names, paint
from fuzz.oracle import Facts, check_counts, check_result, mentions, read_results, row_of
from fuzz.sandbox import Sandbox, chance

SPLIT_SPELLINGS = (  # a pair of folders for train and test, as people call them
    ("train", "test"), ("TRAIN", "Test"), ("Training", "Testing"), ("train_set", "test_set"), ("train2017", "test2017"),
    ("training_set", "test_set"), ("Train", "Test"), ("train-images", "test-images"), ("seg_train", "seg_test"),
)  # fmt: skip
METHOD = ("nearest_mean", "--backbone", "pixels:2")
COMMAND = ("run", *METHOD, "task.shots=null")


def clean(name: str) -> str:
    """Return a folder's name as a class."""
    return unicodedata.normalize("NFC", name).strip()


def fill(folder: Path, names: list[str], stream: random.Random, low: int = 4, high: int = 7) -> dict[str, int]:
    """Write class folders, each with pictures of its colour; return the counts by class."""
    counts = dict[str, int]()
    for name, colour in zip(names, COLOURS, strict=False):
        n = stream.randrange(low, high)
        for i in range(n):
            paint(folder / name / f"{i}.png", colour, stream)
        if not name.startswith("."):  # what is hidden is no data
            counts[clean(name)] = n
    return counts


def pick_names(stream: random.Random, count: int = 3) -> list[str]:
    """Return names for class folders that stay different when they are cleaned."""
    while True:
        names = draw_names(stream, count, 0.5)
        names = [name for name in names if len(os.fsencode(name)) < 250 and "/" not in name]
        if len(names) == count == len({clean(name) for name in names}):
            return names


def plain(folder: Path, stream: random.Random) -> tuple[Facts, list[str]]:
    """Class folders alone."""
    return Facts({"all": fill(folder, pick_names(stream, stream.randrange(2, 6)), stream)}), []


def hidden(folder: Path, stream: random.Random) -> tuple[Facts, list[str]]:
    """Hidden files and folders, and what systems leave, which are no data."""
    facts, _ = plain(folder, stream)
    classes = sorted(path for path in folder.iterdir())
    for name in stream.sample((".ipynb_checkpoints", ".git", "__MACOSX", ".cache", ".Trash-0", "@eaDir"), 2):
        home = stream.choice([*classes, folder])
        source = stream.choice(sorted(classes[0].glob("*.png")))
        target = home / name / source.name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(source, target)
    for name in stream.sample(("._0.png", "Thumbs.db", ".DS_Store", "desktop.ini", "notes.txt", "._1.jpg"), 2):
        (stream.choice([*classes, folder]) / name).write_bytes(stream.randbytes(50))
    return facts, []


def splits(folder: Path, stream: random.Random) -> tuple[Facts, list[str]]:
    """Folders of splits above the classes, as many people call them."""
    names = pick_names(stream)
    train, test = stream.choice(SPLIT_SPELLINGS)
    parts = {"train": train, "test": test}
    if chance(stream, 0.4):
        parts["val"] = stream.choice(("val", "valid", "validation", "dev", "Val", "val2017"))
    deep = chance(stream, 0.2)
    return Facts({p: fill(folder / s / s if deep else folder / s, names, stream) for p, s in parts.items()}), []


def linked(folder: Path, stream: random.Random) -> tuple[Facts, list[str]]:
    """Links to classes, files and sub-folders, some of them to nowhere or in a circle."""
    facts = plain(folder, stream)[0]
    counts, words = facts.splits["all"], list[str]()
    paths = {clean(path.name): path for path in folder.iterdir() if not path.name.startswith(".")}
    name = stream.choice(sorted(paths))
    kind, path, away = stream.randrange(5), paths[name], folder.parent / "elsewhere"
    if kind == 0:  # the whole class
        shutil.move(path, away)
        path.symlink_to(away)
    elif kind == 1:
        (path / "new.png").symlink_to(paint(away / "x.png", _colour_of(path), stream))
        counts[name] += 1
    elif kind == 2:
        paint(away / "y.png", _colour_of(path), stream)
        (path / "more").symlink_to(away)
        counts[name] += 1
        words = ["/more", "link"]
    elif kind == 3:
        (path / "gone.png").symlink_to(folder / "nowhere.png")
        words = ["gone.png"]
    else:
        (path / "loop").symlink_to(path)
    return facts, words


def _colour_of(folder: Path) -> tuple[int, int, int]:
    from PIL import Image

    with Image.open(sorted(folder.glob("*.png"))[0]) as image:
        pixel = image.convert("RGB").resize((1, 1)).getpixel((0, 0))
    return min(COLOURS, key=lambda colour: sum(abs(a - b) for a, b in zip(colour, pixel, strict=True)))


def nested(folder: Path, stream: random.Random) -> tuple[Facts, list[str]]:
    """Images in sub-folders of a class, or the classes one floor lower."""
    if chance(stream, 0.5):
        facts, _ = plain(folder, stream)
        path = sorted(folder.iterdir())[-1]
        paint(path / "more" / "deep" / "z.png", _colour_of(path), stream)
        facts.splits["all"][clean(path.name)] += 1
        return facts, []
    groups = (("animals", ["cat", "dog"]), ("vehicles", ["car", "bus"]))
    counts = dict[str, int]()
    for group, names in groups:
        counts |= fill(folder / group, names, stream)
    return Facts({"all": counts}, separable=False), []


def called_split(folder: Path, stream: random.Random) -> tuple[Facts, list[str]]:
    """A class that is called like a split."""
    names = ["cat", "dog", stream.choice(("train", "test", "val", "Train", "dev"))]
    return Facts({"all": fill(folder, names, stream)}), []


def copied(folder: Path, stream: random.Random) -> tuple[Facts, list[str]]:
    """The same picture twice: in one class, in two, or in train and test."""
    facts, _ = splits(folder, stream) if chance(stream, 0.5) else plain(folder, stream)
    files = sorted(path for path in folder.rglob("*.png") if not path.parent.name.startswith("."))
    source, other = stream.sample(files, 2)
    target = other.with_name("copy-of-it.png")
    shutil.copy(source, target)
    part = "all" if "all" in facts.splits else _part_of(facts, folder, target)
    facts.splits[part][clean(target.parent.name)] += 1
    facts.separable = False
    return facts, ["copy-of-it.png", source.name]


def _part_of(facts: Facts, folder: Path, path: Path) -> str:
    top = path.relative_to(folder).parts[0].lower()
    return next((part for part in facts.splits if top.startswith((part, f"seg_{part}"))), "val")


def odd_files(folder: Path, stream: random.Random) -> tuple[Facts, list[str]]:
    """Things in a class that are no files: folders and pipes with the names of images."""
    facts, _ = plain(folder, stream)
    for path in sorted(folder.iterdir())[:2]:
        if chance(stream, 0.5):
            os.mkfifo(path / "pipe.png")
        else:
            (path / "folder.png").mkdir()
    return facts, []


LAYOUTS = (plain, hidden, splits, linked, nested, called_split, copied, odd_files)


def run_case(stream: random.Random, box: Sandbox) -> None:
    """Make a folder, check it, run on it; perhaps change it and give the same command again."""
    name = stream.choice(STRANGE_NAMES) if chance(stream, 0.4) else "photos"
    if len(os.fsencode(name)) > 250 or name.startswith("-") or "=" in name:
        name = "photos"
    folder = box.work / name
    layout = stream.choice(LAYOUTS)
    facts, words = layout(folder, stream)
    box.commands.append(f"# a folder of images: {layout.__name__}")
    check = box.call("data", "check", name, statuses=(0, 1, 2))
    is_named = bool(words) and mentions(check.text, words)
    if words and "/more" not in words and check.status == 0 and not is_named:
        box.violate("in silence", f"none of {words} is named")
    if not ("/more" in words and is_named):  # a link that is left out is named
        check_counts(box, check, facts)
    outcome = box.call(*COMMAND, name, "-o", box.out, "--seed", stream.choice(("1", "2")))
    if not ("/more" in words and mentions(outcome.text, words)):
        check_result(box, outcome, facts)
    box.check_leftovers(box.out)
    if outcome.status == 0 and chance(stream, 0.35):
        change_and_repeat(stream, box, folder)


def change_and_repeat(stream: random.Random, box: Sandbox, folder: Path) -> None:
    """Change the data; the same command must refuse, or come to what a fresh run comes to."""
    words = [*COMMAND, folder.name, "-o", box.out]
    box.call(*words)
    kind = stream.choice(("swap", "swap with times", "add", "remove", "other folder"))
    work = box.work
    if kind == "other folder":
        work = box.root / "other"
        shutil.copytree(box.work, work, symlinks=True, ignore=shutil.ignore_patterns("pipe.png"))
        folder = work / folder.name
    change_files(stream, folder, kind)
    box.commands.append(f"# {kind}")
    again = box.call(*words, folder=work)
    if again.status or again.is_interrupted:
        return
    box.writable.append(box.root / "fresh")
    fresh = box.call(*COMMAND, folder.name, "-o", box.root / "fresh", folder=work, fresh=True)
    if row_of(again.output, "nearest_mean") != row_of(fresh.output, "nearest_mean"):
        box.violate(
            "wrong number",
            f"{kind}: {row_of(again.output, 'nearest_mean')}, fresh {row_of(fresh.output, 'nearest_mean')}",
        )
    [result, *_] = read_results(box.root / "fresh") or [None]
    if result and result["protocol"]["test"] not in [one["protocol"]["test"] for one in read_results(box.out)]:
        box.violate("wrong data", f"{kind}: no result was tested on the images that are there")


def change_files(stream: random.Random, folder: Path, kind: str) -> None:
    """Swap the contents of pictures, perhaps with their size and time kept; add or remove some."""
    files = sorted(path for path in folder.rglob("*.png") if path.is_file() and not path.is_symlink())
    if kind == "remove":
        for path in stream.sample(files, max(1, len(files) // 5)):
            path.unlink()
    elif kind == "add":
        for path in stream.sample(files, max(1, len(files) // 3)):
            paint(path.with_name(f"more-{path.name}"), stream.choice(COLOURS), stream)
    elif files:
        order = stream.sample(files, len(files))
        contents = [path.read_bytes() for path in order]
        size = max(map(len, contents))
        for path, data in zip(files, contents, strict=True):
            stat = path.stat()
            path.write_bytes(data + bytes(size - len(data)) if kind == "swap with times" else data)
            if kind == "swap with times":
                os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
