"""Files that are datasets: CSV, TSV, JSON lines, npz archives and split files, of images and of texts."""

import csv
import io
import json
import os
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from fuzz.draw import COLOURS, damage, draw_names, draw_scalar, paint
from fuzz.oracle import TEXT_CUT, Facts, check_counts, check_result, mentions, row_of
from fuzz.sandbox import Sandbox, chance

Rows = list[dict[str, Any]]
SPLITS = {"train": ("train", "Train", " train "), "val": ("val", "valid", "dev"), "test": ("test", "TEST")}
CELLS: tuple[Any, ...] = ("", " ", "x", 0, 1, -1, 1.0, 1.5, None, True, [], {}, [1], {"a": 1}, "1", "01", "1.0", "nan",
                          float("nan"), 10**30, "é", "a,b", 'a "b"', "a\nb", "\ufeff", "x" * 140000, "../x",
                          "/etc/passwd", "photos", "nowhere.png", "train", "NULL")  # fmt: skip


def draw_rows(folder: Path, stream: random.Random) -> tuple[Rows, Facts]:
    """Write pictures; return a row for each, by class names, labels or both, perhaps with splits."""
    names = [name.strip() for name in draw_names(stream, stream.randrange(2, 5), 0.4)]
    names = list(dict.fromkeys(names)) if len(set(names)) > 1 else ["a", "b"]
    numbered, has_splits = chance(stream, 0.3), chance(stream, 0.5)
    column = stream.choice(("class", "name", "label")) if not numbered else "class"
    rows, splits = Rows(), dict[str, Counter[str]]()
    for label, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        for i in range(stream.randrange(5, 8)):
            path = paint(folder / "photos" / f"{label}-{i}.png", colour, stream)
            part = ("train", "test", "train", "val", "test")[i % 5] if has_splits else "all"
            row: dict[str, Any] = {"path": f"photos/{path.name}", column: name}
            row |= {"label": label} if numbered else {}
            row |= {"split": stream.choice(SPLITS[part])} if has_splits else {}
            rows.append(row)
            splits.setdefault(part, Counter())[name] += 1
    stream.shuffle(rows)
    return rows, Facts({part: dict(counts) for part, counts in splits.items()})


def draw_text_rows(stream: random.Random) -> tuple[Rows, Facts]:
    """Return rows of texts with classes."""
    names, rows = draw_names(stream, 3, 0.2), Rows()
    has_splits, splits = chance(stream, 0.5), dict[str, Counter[str]]()
    for name in names:
        for i in range(6):
            part = ("train", "test", "train", "val", "test", "train")[i] if has_splits else "all"
            row = {"text": f"text {i} {stream.choice(names)} {stream.randrange(1000)}", "label": name.strip()}
            rows.append(row | ({"split": part} if has_splits else {}))
            splits.setdefault(part, Counter())[name.strip()] += 1
    return rows, Facts({part: dict(counts) for part, counts in splits.items()}, cut=TEXT_CUT)


def spoil(rows: Rows, stream: random.Random) -> str:
    """Change some cells, columns or rows; return what was done."""
    row = stream.choice(rows)
    kind = stream.choice(("cell", "cell", "cell", "drop", "extra", "rename", "remove column", "few", "none"))
    if kind == "cell":
        row[stream.choice(list(row))] = stream.choice(CELLS)
    elif kind == "drop":
        del row[stream.choice(list(row))]
    elif kind == "extra":
        row[stream.choice(("x", "domain", "labels", "", "Path", " split"))] = stream.choice(CELLS)
    elif kind == "few":
        del rows[stream.randrange(4) :]
    elif kind == "none":
        rows.clear()
    else:
        old, new = stream.choice(list(row)), stream.choice(("image", "Label", "PATH", "text", "class", "filename", ""))
        for one in rows:
            if old in one and kind == "rename":
                one[new] = one.pop(old)
            else:
                one.pop(old, None)
    return kind


def duplicate(rows: Rows, stream: random.Random, facts: Facts) -> list[str]:
    """Name one image twice: in its class, in another one, or in another split; return what must be named."""
    row = dict(stream.choice(rows))
    other = stream.choice(rows)
    if chance(stream, 0.7):
        row |= {key: value for key, value in other.items() if key != "path"}
    rows.append(row)
    part = next((p for p, words in SPLITS.items() if row.get("split") in words), "all")
    name = str(row.get("class", row.get("name", row.get("label"))))
    if "text" in row:  # an image that is named twice in its class and split counts once, elsewhere it is refused
        facts.splits[part][name] = facts.splits[part].get(name, 0) + 1
    facts.separable = False
    return [Path(str(row.get("path", row.get("text")))).name]


def encode(rows: Rows, suffix: str, stream: random.Random) -> bytes:
    """Return a table in a form that means the same."""
    if suffix == ".jsonl":
        end = stream.choice(("\n", "\n\n", "\r\n"))
        text = end.join(json.dumps(row, ensure_ascii=chance(stream, 0.5)) for row in rows) + end
        return (b"\xef\xbb\xbf" if chance(stream, 0.1) else b"") + text.encode("utf-8", "replace")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    buffer = io.StringIO()
    delimiter = "\t" if suffix == ".tsv" else stream.choice((",", ",", ";", "\t"))
    quoting = stream.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    writer = csv.DictWriter(buffer, columns, delimiter=delimiter, quoting=quoting, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    text = buffer.getvalue() if chance(stream, 0.5) else buffer.getvalue().replace("\r\n", "\n")
    encoding = stream.choice(("utf-8", "utf-8", "utf-8-sig", "utf-8", "utf-16", "latin-1"))
    try:
        return text.encode(encoding)
    except UnicodeEncodeError:
        return text.encode("utf-8")


def write_npz(path: Path, stream: random.Random) -> Facts | None:
    """Write arrays, often of wrong names, shapes or types; return the facts of right ones."""
    import numpy as np

    names = ["cat", "dog", "owl"]
    labels = np.array([i % 3 for i in range(18)])
    images = np.zeros((18, 5, 5, 3), np.uint8)
    for i, label in enumerate(labels):
        images[i] = np.array(COLOURS[label], np.uint8) - i
    arrays: dict[str, Any] = {"images": images, "labels": labels, "names": np.array(names)}
    if chance(stream, 0.4):
        arrays["split"] = np.array([("train", "test", "train")[i // 3 % 3] for i in range(18)])
    facts = Facts({"all": dict.fromkeys(names, 6)})
    if "split" in arrays:
        facts = Facts({"train": dict.fromkeys(names, 4), "test": dict.fromkeys(names, 2)})
    if chance(stream, 0.2):
        arrays["names"] = np.array([name.encode() for name in names])
        arrays |= {"split": arrays["split"].astype("S")} if "split" in arrays else {}
    elif chance(stream, 0.6):
        facts = None if spoil_arrays(arrays, path, stream) else facts
    np.savez(path, **arrays)
    return facts


class Bomb:
    """Code that a pickle would run: it writes the canary."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.canary}'",)


def spoil_arrays(arrays: dict[str, Any], path: Path, stream: random.Random) -> bool:
    """Change one array; whether that makes it another dataset."""
    import numpy as np

    images, labels = arrays["images"], arrays["labels"]
    changes = {
        "images": (images[:, :, :, :2], images.astype(float), images[:3], images[:0], images.reshape(18, -1), images[0],
                   np.zeros((18, 0, 5, 3), np.uint8), np.array(None), images[..., None]),
        "labels": (labels.astype(float), labels[:3], labels - 1, labels + 5, labels[:, None], labels * 0, labels > 0,
                   labels.astype("U1"), labels.astype("u8") + 2**63, np.array(1), labels[:0]),
        "names": (np.array([1, 2, 3]), np.array([["a", "b", "c"]]), np.array("abc"), np.array(["a", "a", "b"]),
                  np.array([""] * 3), np.array(["a"]), np.array([1.5, 2, 3]), np.array([b"\xff", b"a", b"b"])),
        "split": (np.array(["x"] * 18), np.arange(18), np.array(["train"] * 18), np.array(["train", "test"])),
        "other": (images,),
        "bomb": (np.array([Bomb(path.parents[1] / "canary")] * 18, dtype=object),),
    }  # fmt: skip
    name = stream.choice(list(changes))
    arrays["labels" if name == "bomb" else name] = stream.choice(changes[name])
    return True


def run_case(stream: random.Random, box: Sandbox) -> None:
    """Write a file, whole or spoiled; check it and run on it."""
    suffix = stream.choice((".csv", ".csv", ".tsv", ".jsonl", ".jsonl", ".npz", ".json"))
    path, words = box.work / f"table{suffix}", list[str]()
    if suffix == ".npz":
        facts = write_npz(path, stream)
    elif suffix == ".json":
        facts = write_split_file(path, stream)
    else:
        is_text = chance(stream, 0.25)
        rows, facts = draw_text_rows(stream) if is_text else draw_rows(box.work, stream)
        if chance(stream, 0.2) and not is_text:
            words = duplicate(rows, stream, facts)
        elif chance(stream, 0.5):
            box.commands.append(f"# {spoil(rows, stream)}")
            facts = None
        path.write_bytes(encode(rows, suffix, stream))
    if chance(stream, 0.15):
        data, how = damage(path.read_bytes(), stream)
        path.write_bytes(data)
        box.commands.append(f"# {how}")
        facts = None
    box.commands.append(f"# {path.name}: {path.read_bytes()[:200]!r}")
    hold(stream, box, path, facts, words)


def hold(stream: random.Random, box: Sandbox, path: Path, facts: Facts | None, words: list[str]) -> None:
    """Hold counts, classes and what must be named."""
    check = box.call("data", "check", path.name, statuses=(0, 1, 2))
    if facts is not None:
        check_counts(box, check, facts)
        if words and check.status == 0 and not mentions(check.text, words):
            box.violate("in silence", f"{words[0]} is there twice, and not named")
    if b"text" in path.read_bytes()[:30]:
        return
    outcome = box.call("run", "nearest_mean", path.name, "--backbone", "pixels:2", "task.shots=null", "-o", box.out)
    if facts is not None:
        check_result(box, outcome, facts)
    box.check_leftovers(box.out)
    if outcome.status == 0 and path.suffix in (".csv", ".jsonl") and facts is not None and chance(stream, 0.3):
        relabel(stream, box, path)


def relabel(stream: random.Random, box: Sandbox, path: Path) -> None:
    """Swap the cells of a table's lines; the same command must refuse or come to what a fresh one comes to."""
    words = ["run", "nearest_mean", path.name, "--backbone", "pixels:2", "task.shots=null", "-o"]
    photos = sorted((path.parent / "photos").iterdir())
    names = stream.sample(photos, len(photos))
    copy = box.root / "copy"
    shutil.copytree(path.parent / "photos", copy)
    text = path.read_bytes()
    for old, new in zip(photos, names, strict=True):
        text = text.replace(old.name.encode(), b"<" + new.name.encode())
    path.write_bytes(text.replace(b"<", b""))
    box.commands.append("# the labels were changed")
    again = box.call(*words, box.out)
    if again.status or again.is_interrupted:
        return
    box.writable.append(box.root / "fresh")
    fresh = box.call(*words, box.root / "fresh", fresh=True)
    numbers = [row_of(one.output, "nearest_mean")[:4] for one in (again, fresh)]
    if numbers[0] != numbers[1]:
        box.violate("wrong number", f"after relabelling {numbers[0]}, fresh {numbers[1]}")


def write_split_file(path: Path, stream: random.Random) -> Facts | None:
    """Write a split file as CoOp has it, perhaps spoiled."""
    parts, counts = {"train": [], "val": [], "test": []}, dict[str, dict[str, int]]()
    for label, name in enumerate(("cat", "dog")):
        for i in range(6):
            part = ("train", "test", "val")[i % 3]
            picture = paint(path.parent / "photos" / f"{name}{i}.png", COLOURS[label], stream)
            parts[part].append([f"photos/{picture.name}", label, name])
            counts.setdefault(part, {}).setdefault(name, 0)
            counts[part][name] += 1
    value: Any = parts
    facts: Facts | None = Facts(counts)
    if chance(stream, 0.6):
        facts = None
        row = stream.choice(parts[stream.choice(list(parts))])
        kind = stream.randrange(5)
        if kind < 2:
            row[stream.randrange(3)] = stream.choice(CELLS)
        elif kind == 2:
            parts[stream.choice(list(parts))] = stream.choice(CELLS)
        elif kind == 3:
            parts[stream.choice(("x", "all", ""))] = parts.pop(stream.choice(list(parts)))
        else:
            value = stream.choice((*CELLS, draw_scalar(stream)))
    path.write_text(json.dumps(value), "utf-8", "replace")
    return facts
