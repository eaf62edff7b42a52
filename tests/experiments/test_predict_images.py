"""Images on the command line: every kind of input, several prompts, files of rows that a killed command continues."""

import csv
import io
import json
import os
import shutil
import struct
import tarfile
import zipfile
import zlib
from dataclasses import replace

import numpy as np
import pytest
from kills import killed_when
from PIL import Image
from sklearn.datasets import load_digits

from vlprompt.cli.app import main
from vlprompt.cli.display.prediction_formats import format_line
from vlprompt.core.introspection import feature_caches
from vlprompt.data.images.decoding import build_file_item
from vlprompt.experiments.learned.decision import Decision
from vlprompt.experiments.learned.prompt import load_prompt
from vlprompt.experiments.predict.inputs import iter_image_inputs
from vlprompt.experiments.predict.prediction_input import describe_stamp
from vlprompt.experiments.predict.prompts import Ensemble, load_prompts
from vlprompt.experiments.predict.read_ahead import iter_opened_batches
from vlprompt.experiments.predict.rows import RowLayout, predict_batch
from vlprompt.runtime import installation

DIGITS = load_digits().images


def array_of(i):
    return np.kron(DIGITS[i] * 15, np.ones((4, 4))).astype(np.uint8)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{name: folder} of finished runs: two seeds, another backbone, a head for its own classes, other classes."""
    root = tmp_path_factory.mktemp("runs")
    few = root / "few"
    for name in ("zero", "one"):
        (few / name).mkdir(parents=True)
        for i in range(5):
            Image.fromarray(array_of(i)).save(few / name / f"{i}.png")
    for name, (method, dataset, *more) in {
        "one": ("coop", "digits"),
        "two": ("coop", "digits", "--seed", "2"),
        "random": ("coop", "digits", "--backbone", "glyph/random"),
        "head": ("linear", "digits"),
        "few": ("coop", str(few)),
    }.items():
        words = ["run", method, dataset, "--shots", "1", *more, "--out", str(root / "all" / name)]
        with pytest.raises(SystemExit) as left:
            main([*words, *["train.epochs=2"] * (method == "coop")])
        assert not left.value.code
    return {path.name: next(path.iterdir()) for path in (root / "all").iterdir()}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of 24 digits in two folders, with a hidden file and one that is no image by its name."""
    root = tmp_path_factory.mktemp("photos")
    for i in range(24):
        folder = root / ("a", "b")[i % 2]
        folder.mkdir(exist_ok=True)
        Image.fromarray(array_of(i)).save(folder / f"{i:02}.png")
    (root / ".hidden.png").write_bytes(b"")
    (root / "notes.md").write_text("")
    return root


@pytest.fixture
def predict(type_all, runs):
    """Predict by the run "one"; gives (exit status, what was said, rows)."""

    def typed(*words, prompt="one"):
        code, said, out = type_all("predict", runs[prompt], *words, "--format", "jsonl")
        return code, said, [json.loads(line) for line in out.splitlines()]

    return typed


@pytest.fixture(scope="module")
def ensemble(runs):
    return load_prompts([str(runs["one"])])


@pytest.fixture
def answer(ensemble, tmp_path, monkeypatch):
    """Predict as the command does, with a backbone that is loaded once; gives (notes, rows)."""
    monkeypatch.chdir(tmp_path)

    def answered(*words, stdin=None):
        notes = []
        inputs = iter_image_inputs([str(word) for word in words], stdin, notes.append)
        batches = iter_opened_batches(inputs, ensemble.build_items, 100)
        return notes, [row for batch in batches for row in predict_batch(ensemble, batch, RowLayout())]

    return answered


def tops(rows):
    return [[(one["class"], pytest.approx(one["probability"], abs=1e-5)) for one in row["top"]] for row in rows]


def write_shard(path, members):
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def test_a_folder_is_predicted_as_its_files_are_by_the_prompt(predict, runs, photos):
    code, _, rows = predict(photos)
    paths = sorted(photos.rglob("[0-9]*.png"))
    assert code == 0
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    prompt = load_prompt(runs["one"])
    probabilities = prompt.answer([build_file_item(path) for path in paths]).probabilities
    for row, expected in zip(rows, probabilities, strict=True):
        by_name = dict(zip(map(str, prompt.names), expected.tolist(), strict=True))
        assert {one["class"]: one["probability"] for one in row["top"]}.items() <= {
            name: pytest.approx(value, abs=1e-5) for name, value in by_name.items()
        }.items()
        assert row["prediction"] == max(by_name, key=lambda name: by_name[name])
        assert len(row["top"]) == 3


@pytest.fixture
def packed(photos, tmp_path):
    """The words that name the images of a folder in other ways, and their paths."""
    paths = sorted((photos / "a").iterdir())
    relative = [path.relative_to(photos) for path in paths]
    (photos / "list.csv").write_text("number,image\n" + "".join(f"{i},{path}\n" for i, path in enumerate(relative)))
    (photos / "only.tsv").write_text("".join(f"{path}\n" for path in relative))
    (photos / "list.jsonl").write_text("".join(f"{json.dumps({'file': str(path), 'n': 1})}\n" for path in relative))
    (photos / "names.txt").write_text("".join(f"{path}\r\n" for path in relative))
    arrays = np.stack([np.array(Image.open(path)) for path in paths])
    np.savez_compressed(tmp_path / "bytes.npz", images=arrays, labels=np.arange(len(arrays)))
    np.savez(tmp_path / "unit.npz", arrays[..., None].repeat(3, 3) / 255)
    np.savez(tmp_path / "bright.npz", images=arrays.astype(np.float32))
    members = [m for p in paths for m in ((f"x/{p.stem}.json", b"{}"), (f"x/{p.stem}.png", p.read_bytes()))]
    write_shard(tmp_path / "s-0000.tar", members[:8])
    write_shard(tmp_path / "s-0001.tar", members[8:])
    write_shard(tmp_path / "all.tar.gz", members)
    lists = (photos / name for name in ("list.csv", "only.tsv", "list.jsonl", "names.txt"))
    packs = "bytes.npz", "unit.npz", "bright.npz", "s-{0000..0001}.tar", "all.tar.gz"
    return [photos / "a", f"{photos}/a/*.png", f"{photos}/**/[012][02468].png", *lists, *packs], paths


def test_every_kind_of_input_gives_the_same_answers(answer, packed):
    words, paths = packed
    expected = tops(answer(*paths)[1])
    for word in words:
        notes, rows = answer(word)
        assert tops(rows) == expected, (word, notes)
    for separator in (b"\n", b"\0"):
        assert tops(answer("-", stdin=io.BytesIO(separator.join(bytes(p) for p in paths)))[1]) == expected
    shards = answer("s-{0000..0001}.tar")[1]
    assert [row["path"] for row in shards][3:5] == ["s-0000.tar/x/06.png", "s-0001.tar/x/08.png"]
    notes, rows = answer("unit.npz")
    assert rows[5]["path"] == "unit.npz[5]"
    assert notes == ["unit.npz: floats from 0 to 1 are taken as black to white"]
    assert answer("bright.npz")[0] == ["bright.npz: floats from 0 to 255 are taken as black to white"]


def test_standard_input_and_notes_of_the_command(predict, packed, monkeypatch):
    _, paths = packed
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n".join(bytes(p) for p in paths))))
    code, said, rows = predict("-", "unit.npz")
    assert code == 0
    assert "unit.npz: floats from 0 to 1 are taken as black to white" in said
    assert tops(rows[:12]) == tops(rows[12:])


@pytest.mark.parametrize(("name", "content", "told"), [
    ("none.png", None, "'none.png': expected an image, got no such file. Check the path."),
    ("text.png", b"hello", "'text.png': expected an image, got a truncated file or another format"),
    ("none.npz", None, "'none.npz': expected a NumPy archive of images, got an error"),
    ("list.csv", b"a,b\n1,2\n", "expected a column path, image, file, or only one column, got a, b"),
    ("list.csv", b"path,b\n,2\n", "'list.csv:2': expected a path and 2 columns, got an empty path"),
    ("list.jsonl", b'{"path": 3}\n', "expected a path in 'path', got 3"),
    ("list.jsonl", b"[]\n", "'list.jsonl:1': expected a path, or an object with one"),
    ("list.txt", b"\xff\xfe\n", "'list.txt': expected a list of images in UTF-8, got an error"),
    ("deep.jsonl", b"[" * 100_000 + b"\n", "'deep.jsonl:1': expected a path, or an object with one, got an error"),
    ("x.png/../" * 600 + "a.png", None, "'x.png/../x.png/.."),
    ("a.csv", ",".join(f"c{i}" for i in range(10_000)).encode() + b"\n", "got c0, c1, c2, c3, c4, c5, c6, c7, c8, c9 "),
    ("x.tar", b"no tar at all", "'x.tar': expected a whole tar file, got an error"),
])  # fmt: skip
def test_what_is_broken_has_an_error_in_its_row(answer, tmp_path, name, content, told):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    _, [row] = answer(name)
    assert told in row["error"]
    assert len(row["error"]) < 1100
    assert "--skip-broken" not in row["error"]


@pytest.mark.parametrize(("arrays", "told"), [
    ({"images": np.full((2, 8, 8), 300.0)}, "expected floats from 0 to 1 or from 0 to 255, got 300 to 300"),
    ({"images": -np.ones((2, 8, 8))}, "expected floats from 0 to 1 or from 0 to 255, got -1 to -1"),
    ({"images": np.ones((2, 8, 8), int)}, "expected uint8 or float images (N, H, W) or (N, H, W, 3) in C's order, got"),
    ({"images": np.ones((2, 3, 8, 8))}, "got float64 (2, 3, 8, 8)"),
    ({"a": np.ones(2), "b": np.ones(2)}, "expected an array 'images' or only one array, got a.npy, b.npy"),
    ({"images": np.ones((5, 8, 3), np.uint8)}, "got (5, 8, 3), which may be one image (H, W, 3)"),
    ({}, "expected an array 'images', got no array"),
    ({"images": np.array([{}], object)}, "got object (1,)"),
    ({"images": np.full((2, 8, 8), np.nan)}, "expected numbers, got NaN or infinity"),
])  # fmt: skip
def test_arrays_that_are_no_images(answer, tmp_path, arrays, told):
    np.savez(tmp_path / "x.npz", **arrays)
    assert all(told in row["error"] for row in answer("x.npz")[1])


@pytest.mark.parametrize(("shape", "told"), [
    ((1, 2**40, 2**40, 3), "expected images of at most 536870912 bytes, got"),
    ((-1, 8, 8), "expected uint8 or float images"),
    ((10**12, 8, 8), "expected as many values as its header says, got fewer"),
])  # fmt: skip
def test_an_array_whose_header_lies(answer, tmp_path, shape, told):
    header = io.BytesIO()
    np.lib.format.write_array_header_2_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue() + b"x" * 40)
    [row] = answer("x.npz")[1]
    assert told in row["error"]


def test_links_and_a_member_without_an_end_in_a_shard(answer, photos, tmp_path):
    content = (photos / "a" / "00.png").read_bytes()
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, kind in (("up/../../a.png", tarfile.REGTYPE), ("b.png", tarfile.SYMTYPE), ("c.png", tarfile.LNKTYPE),
                           ("d", tarfile.DIRTYPE), ("e.txt", tarfile.SYMTYPE)):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd" * (kind in (tarfile.SYMTYPE, tarfile.LNKTYPE))
            member.size = len(content) if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(content))
    first, *links = answer("x.tar")[1]
    assert first["prediction"] == "zero"
    assert [row["path"] for row in links] == ["x.tar/b.png", "x.tar/c.png"]
    assert all("expected an image, got a link to '/etc/passwd'. Pack the file itself." in row["error"] for row in links)
    member = tarfile.TarInfo("big.png")
    member.size = 2**60  # tarfile itself looks for the next member for ever
    (tmp_path / "endless.tar").write_bytes(member.tobuf() + b"\0" * 1024)
    big, end = answer("endless.tar")[1]
    assert "expected at most 536870912 bytes, got 1152921504606846976." in big["error"]
    assert "expected a whole tar file, got an error (unexpected end of data)" in end["error"]


def test_a_row_that_can_not_be_read_loses_no_other(answer, photos, tmp_path):
    (tmp_path / "x.csv").write_text(f"path\n{'x' * 200_000}\n{photos / 'a' / '00.png'}\n")
    broken, row = answer("x.csv")[1]
    assert "'x.csv:2': expected a row of a table, got an error (field larger than field limit" in broken["error"]
    assert row["prediction"] == "zero"


def test_a_link_to_itself_and_a_folder_that_can_not_be_read(answer, photos, tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        (tmp_path / "x" / name).mkdir(parents=True)
        (tmp_path / "x" / name / "1.png").write_bytes((photos / "a" / "00.png").read_bytes())
    (tmp_path / "x" / "loop").symlink_to("loop")
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr("os.scandir", refuse)
    one, two, broken = answer("x")[1]
    assert [one["path"], two["path"], broken["path"]] == ["x/a/1.png", "x/c/1.png", "x/b"]
    assert "'x/b': expected a folder that can be read, got an error (Permission denied)." in broken["error"]


def test_what_is_broken_in_a_shard_or_an_archive_loses_nothing_else(predict, photos, tmp_path):
    good = [path.read_bytes() for path in sorted((photos / "a").iterdir())]
    write_shard(tmp_path / "a.tar", [("1.png", good[0]), ("2.png", b"no"), ("3.json", b"{}"), ("4.png", good[1])])
    content = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(content[: 512 + 50])
    floats = np.stack([np.array(Image.open(io.BytesIO(one))) for one in good[:3]]) / 255
    floats[1, 0, 0] = np.nan
    np.savez(tmp_path / "x.npz", images=floats)
    code, said, rows = predict("cut.tar", "a.tar", "x.npz")
    assert code == 1
    assert [row["path"] for row in rows] == [
        *("cut.tar", "a.tar/1.png", "a.tar/2.png", "a.tar/3.json", "a.tar/4.png"),
        *(f"x.npz[{i}]" for i in range(3)),
    ]
    errors = {row["path"]: row["error"] for row in rows if "error" in row}
    assert set(errors) == {"cut.tar", "a.tar/2.png", "a.tar/3.json", "x.npz[1]"}
    assert "expected an image of this key, got none" in errors["a.tar/3.json"]
    assert tops([rows[-3]]) == tops([row for row in rows if row["path"] == "a.tar/1.png"])
    assert f"4 of {len(rows)} inputs could not be read" in said


@pytest.mark.slow
def test_files_that_are_no_images_in_the_middle_of_a_thousand(type_all, runs, tmp_path):
    (tmp_path / "many").mkdir()
    content = io.BytesIO()
    Image.fromarray(array_of(0)).save(content, "png")
    for i in range(1000):
        (tmp_path / "many" / f"{i:04}.png").write_bytes(content.getvalue())
    for i in (3, 500, 501, 640, 800, 999):
        path = tmp_path / "many" / f"{i:04}.png"
        path.write_bytes(b"no image" if i % 2 else path.read_bytes()[:60])
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 20000, 20000, 1, 0, 0, 0, 0)), (b"IDAT", b""))
    parts = (struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks)
    (tmp_path / "many" / "0007.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    code, said, _ = type_all("predict", runs["one"], "many", "--out", "rows.csv")
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert code == 1
    assert "7 of 1,000 inputs could not be read; 2 further errors stand in their rows" in said
    assert said.count("left out: ") == 5
    assert [int(row["path"][5:9]) for row in rows] == list(range(1000))
    broken = {int(row["path"][5:9]) for row in rows if row["error"]}
    assert broken == {3, 7, 500, 501, 640, 800, 999}
    assert "too many pixels" in rows[7]["error"]
    assert all((row["prediction"] == "") == bool(row["error"]) for row in rows)


@pytest.mark.parametrize("options", [["--workers", "0"], ["--workers", "3", "--batch-size", "5"]])
def test_answers_do_not_depend_on_threads_and_batches(predict, photos, options):
    assert tops(predict(photos / "a", *options)[2]) == tops(predict(photos / "a")[2])


def test_a_batch_of_one_has_the_same_answers_to_the_last_digit(ensemble, photos):
    def predicted(batch_size):
        inputs = iter_image_inputs([str(photos / "a")], None, print)
        batches = iter_opened_batches(inputs, ensemble.build_items, batch_size)
        return [row for batch in batches for row in predict_batch(ensemble, batch, RowLayout(top_k=10))]

    for one, many in zip(predicted(1), predicted(12), strict=True):  # a processor may have other kernels for one row
        assert (one["path"], one["prediction"]) == (many["path"], many["prediction"])
        assert one["probability"] == pytest.approx(many["probability"], rel=1e-5)
        chances = [{row["class"]: row["probability"] for row in rows["top"]} for rows in (one, many)]
        assert chances[0] == pytest.approx(chances[1], rel=1e-5)


def test_each_image_is_opened_once_and_its_features_do_not_stay(runs, photos, monkeypatch):
    counts = {}
    ensemble = load_prompts([str(runs["one"]), str(runs["two"])])
    for one in iter_image_inputs([str(photos)], None, print):
        counts[one.path] = 0

    def count(inputs):
        for one in inputs:

            def open_counted(one=one):
                counts[one.path] += 1
                return one.open()

            yield replace(one, open=open_counted)

    inputs = count(iter_image_inputs([str(photos)], None, print))
    for batch in iter_opened_batches(inputs, ensemble.build_items, 7):
        predict_batch(ensemble, batch, RowLayout())
    assert set(counts.values()) == {1}
    (cache,) = {id(c): c for p in ensemble.prompts.values() for c in feature_caches(p.method)}.values()
    assert (len(cache), cache.counts.misses) == (0, 24)  # two prompts on one backbone encode an image once


@pytest.mark.slow
def test_seeds_and_backbones_are_averaged(type_all, predict, runs, photos):
    names = ("one", "two", "random")
    words = [runs[name] for name in names]
    code, said, out = type_all("predict", *words, photos / "a", "--each", "--top-k", "10", "--format", "jsonl")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert "ensemble of 3 prompts" in said
    alone = [predict(photos / "a", "--top-k", "10", prompt=name)[2] for name in names]
    for row, *singles in zip(rows, *alone, strict=True):
        values = [{one["class"]: one["probability"] for one in single["top"]} for single in singles]
        mean = {name: pytest.approx(sum(v[name] for v in values) / 3, abs=1e-5) for name in values[0]}
        assert {one["class"]: one["probability"] for one in row["top"]} == mean
        assert [own["prediction"] for own in row["each"].values()] == [single["prediction"] for single in singles]
    assert list(rows[0]["each"]) == [path.name for path in words]
    table = type_all("predict", *words, photos / "a", "--each", "--format", "csv")[2]
    assert f"prediction:{words[2].name},probability:{words[2].name}" in table.splitlines()[0]


def test_prompts_and_inputs_that_do_not_go_together(type_all, runs, photos, tmp_path):
    (tmp_path / "x.txt").write_text("a.png\n")
    (tmp_path / "latin.txt").write_bytes("grün\nblau\n".encode("latin-1"))
    for words, told in (
        ([runs["one"], runs["few"], photos], "expected the 10 classes of"),
        ([runs["one"], runs["few"], photos], "got 2 with no 'two', no 'three'"),
        ([runs["one"], photos, runs["two"]], "predict: expected prompts before inputs, got"),
        ([photos, runs["two"]], "predict: expected prompts before inputs, got"),
        ([runs["one"], runs["one"], photos], "expected each prompt once, got"),
        ([runs["one"]], "predict: expected image files or texts, got none"),
        ([runs["one"], "--text", "a"], "expected image files for a run on images, got texts"),
        ([runs["one"], "https://example.org/x.png"], "expected files and folders, got 'https://example.org/x.png'"),
        ([runs["one"], "-", "-"], "predict: expected - once"),
        ([runs["one"], "."], "predict: expected images or texts, got none in the inputs"),
        ([photos, photos / "a" / "00.png"], "run: expected the folder of a run, got"),
        ([runs["one"], photos, "--format", "xml"], "--format: expected lines, json, jsonl, csv, got 'xml'"),
        ([runs["one"], photos, "--format", "parquet"], "Name a file by --out."),
        ([runs["one"], photos, "--out", "x.xml"], "--out: expected a file .jsonl, .json, .csv, .parquet, got 'x.xml'"),
        ([runs["one"], photos, "--out", "x", "--format", "lines"], "--format: expected jsonl, json, csv, parquet"),
        ([runs["one"], photos, "--classes", "cat"], "--classes: expected a file, or at least 2 names"),
        ([runs["one"], photos, "--out", "-"], "--out: expected a file, got '-'. Leave --out out"),
        ([runs["one"], photos, "--out", ".", "--format", "csv", "--fresh"], "expected a file, got the folder '.'"),
        ([runs["one"], "x.txt", "--out", "x.txt", "--format", "csv", "--fresh"], "expected a file that is no input"),
        ([runs["one"], photos, "--out", "x.txt/y.csv"], "'x.txt/y.csv': expected a file that can be written"),
        ([runs["one"], photos, "--figure", "x.txt"], "--figure: expected a file .png, got 'x.txt'. Name one."),
        ([runs["one"], "x-{5..3}.tar"], "expected a range of at most 1,000,000 numbers, the smaller first, got {5..3}"),
        ([runs["one"], "x-{0..99999999999}.png"], "got {0..99999999999}. Correct it."),
        ([runs["one"], photos, "--classes", "latin.txt"], "--classes: expected a file in UTF-8, got 'latin.txt'"),
        ([runs["one"], photos, "--classes", "cat,cat"], "--classes: expected each class once, got 'cat' twice"),
    ):  # fmt: skip
        code, said, _ = type_all("predict", *words)
        assert code == 2, words
        assert told in said, said


def test_refused_classes_are_answered_with_the_names_of_the_learned(type_in, tmp_path, photos):
    words = "run", "linear", "digits", "--shots", "1", "--backbone", "glyph/random", "train.epochs=1"
    assert type_in(*words, "-o", tmp_path / "named")[0] == 0
    [result] = (tmp_path / "named").rglob("result.json")
    status, said = type_in("predict", result.parent, photos, "--classes", "one,two,apple")
    assert status
    assert "no weights for class 'apple'" in said
    assert "By name the classes are zero, one, two, three, four, five, six, seven, eight, nine." in said


def test_other_classes_where_the_method_reads_names(type_all, predict, tmp_path, photos):
    (tmp_path / "names.txt").write_text("zero\nhouse\n\nsix\n", "utf-8-sig")
    rows = predict(photos / "a", "--classes", "names.txt")[2]
    assert all({one["class"] for one in row["top"]} == {"zero", "house", "six"} for row in rows)
    assert rows == predict(photos / "a", "--classes", "zero, house, six")[2]
    code, said, _ = predict(photos / "a", "--classes", "zero,house", prompt="head")
    assert code == 2
    assert "house" in said
    assert type_all("predict", "nowhere", photos)[0] == 2


def test_what_is_rejected_is_unknown(runs, photos):
    ensemble = load_prompts([str(runs["one"]), str(runs["two"])])
    (one, two), inputs = ensemble.prompts.values(), list(iter_image_inputs([str(photos / "a")], None, print))
    strict = one.with_decision(Decision(threshold=1.1))
    [batch] = iter_opened_batches(inputs, ensemble.build_items, 100)
    single = [opened._replace(items=opened.items[:1]) for opened in batch]

    def predicted(items, *prompts, **layout):
        named = {str(k): prompt for k, prompt in enumerate(prompts)}
        return predict_batch(Ensemble(named, [one.names] * len(prompts), ()), items, RowLayout(**layout))

    [row, *_] = predicted(single, strict)
    assert (row["prediction"], row["score"]) == ("unknown", pytest.approx(row["top"][0]["probability"]))
    assert "score" not in predicted(single, one)[0]
    assert {row["prediction"] for row in predicted(batch, strict, strict)} == {"unknown"}
    half = predicted(batch, strict, two, has_each=True)  # one of two does not outvote the other
    assert "unknown" not in {row["prediction"] for row in half}
    assert {row["each"]["0"]["prediction"] for row in half} == {"unknown"}


SCRIPT = "from vlprompt.cli.app import main\nmain()\n"


@pytest.mark.parametrize("suffix", [".jsonl", *(pytest.param(s, marks=pytest.mark.slow) for s in (".csv", ".parquet"))])
def test_a_killed_command_goes_on(type_all, runs, photos, tmp_path, suffix):
    (tmp_path / "script.py").write_text(SCRIPT)
    words = ["predict", runs["one"], photos, "--batch-size", "3", "--workers", "0", "--out", tmp_path / f"rows{suffix}"]
    partial = tmp_path / f"rows{suffix}.partial"
    condition = (
        f"sum(1 for _ in (folder / {partial.name!r}).open('rb')) >= 9 if (folder / {partial.name!r}).exists() else 0"
    )
    killed_when(tmp_path, condition, tmp_path / "script.py", *words)
    lines = partial.read_bytes().splitlines(keepends=True)
    assert 9 <= len(lines) < 24
    partial.write_bytes(b"".join(lines)[:-20])  # as a kill in the middle of a row leaves it
    code, said, _ = type_all(*words)
    assert code == 0
    assert f"{len(lines) - 1} of 24 were done before" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["script.py", f"rows{suffix}"])
    assert read_paths(tmp_path / f"rows{suffix}") == sorted(map(str, photos.rglob("[0-9]*.png")))
    if suffix == ".jsonl":  # other batches may round the last digit otherwise
        assert type_all(*words[:-1], "whole.jsonl")[0] == 0
        rows, expected = (
            [json.loads(line) for line in (tmp_path / name).open()] for name in ("rows.jsonl", "whole.jsonl")
        )
        assert tops(rows) == tops(expected)


def read_paths(path):
    if path.suffix == ".parquet":
        from pyarrow import parquet

        return parquet.read_table(path)["path"].to_pylist()
    with path.open(newline="") as file:
        return [row["path"] for row in (csv.DictReader(file) if path.suffix == ".csv" else map(json.loads, file))]


def test_new_files_are_added_and_other_settings_are_refused(type_all, runs, photos, tmp_path):
    words = ["predict", runs["one"], *sorted((photos / "a").iterdir())[:4]]
    assert type_all(*words, "--out", "rows.jsonl")[0] == 0
    code, said, _ = type_all(*words, "--out", "rows.jsonl")
    assert code == 2
    assert "--out: expected a new file, got 'rows.jsonl', which is there" in said
    rows = (tmp_path / "rows.jsonl").read_bytes()
    assert type_all(*words, "--out", "again.jsonl")[0] == 0
    (tmp_path / "again.jsonl").rename(tmp_path / "again.jsonl.partial")  # as if it had been killed at the end
    code, said, _ = type_all(*words, "--out", "again.jsonl")
    assert "expected rows of the same command, got others: prompts was null" in said
    (tmp_path / "again.jsonl.partial").unlink()
    killed = tmp_path / "more.jsonl.partial"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vlprompt.experiments.predict.output.RowFile.finish", stop)
        assert type_all(*words, "--out", "more.jsonl")[0] == 130
    before = killed.read_bytes()
    assert len(before.splitlines()) == 4
    code, said, _ = type_all(*words, "--out", "more.jsonl", "--top-k", "2")
    assert code == 2
    assert "got others: top_k was 3, is 2. Give the command as before, or begin anew by --fresh" in said
    assert killed.read_bytes() == before
    code, said, _ = type_all("predict", runs["two"], *words[2:], photos, "--out", "more.jsonl")
    assert "others: prompts was" in said
    assert "inputs was [], is [" in said
    code, said, _ = type_all(*words, photos / "b" / "01.png", "--out", "more.jsonl")
    assert code == 0
    assert "4 of 5 were done before" in said
    assert (tmp_path / "more.jsonl").read_bytes().startswith(rows)
    assert len(read_paths(tmp_path / "more.jsonl")) == 5
    assert type_all(*words, "--out", "more.jsonl", "--fresh")[0] == 0
    assert (tmp_path / "more.jsonl").read_bytes() == rows


def test_an_input_that_was_changed_is_not_taken_for_the_old_one(type_all, runs, photos, tmp_path):
    content = (photos / "a" / "00.png").read_bytes()
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "list.txt").write_text("b.png\n")
    np.savez(tmp_path / "arrays.npz", images=np.stack([array_of(i) for i in range(2)]))
    words = ["predict", runs["one"], "a.png", "list.txt", "arrays.npz", "--out", "rows.jsonl"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vlprompt.experiments.predict.output.RowFile.finish", stop)
        assert type_all(*words)[0] == 130
    for changed, told in (
        ("list.txt", "got others: files was"),
        ("arrays.npz", "got others: files was"),
        ("a.png", "'a.png': expected the file that its row was made of, got another one"),
    ):
        before, stat = (tmp_path / changed).read_bytes(), (tmp_path / changed).stat()
        shutil.copyfile(tmp_path / changed, tmp_path / "copy")  # of the same size and time, but another file
        os.utime(tmp_path / "copy", ns=(stat.st_atime_ns, stat.st_mtime_ns))
        (tmp_path / changed).rename(tmp_path / "old")
        (tmp_path / "copy").rename(tmp_path / changed)
        code, said, _ = type_all(*words)
        assert (code, told in said, "--fresh" in said) == (2, True, True), said
        assert (tmp_path / changed).read_bytes() == before
        sidecar = tmp_path / "rows.jsonl.partial.json"
        settings = json.loads(sidecar.read_text())
        settings["files"] = {name: describe_stamp(name) for name in settings["files"]}  # the next change alone
        sidecar.write_text(json.dumps(settings))
    assert type_all(*words, "--fresh")[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").open()]
    assert [row["path"] for row in rows] == ["a.png", "b.png", "arrays.npz[0]", "arrays.npz[1]"]
    assert "stamp" not in rows[0]


def test_a_closed_standard_input(type_all, runs, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    code, said, _ = type_all("predict", runs["one"], "-")
    assert code == 2
    assert "predict: expected images or texts, got none in the inputs" in said


def test_a_line_has_no_control_characters():
    row = {"path": "a\n.png", "prediction": "x", "top": [{"class": "x\x1b[31m", "probability": 1.0}]}
    assert format_line(row) == "a\\x0a.png: x; x\\x1b[31m 1.000\n"


@pytest.fixture(scope="module")
def saved(runs, tmp_path_factory):
    """Model folders with a threshold and a temperature that were chosen on validation images."""
    root = tmp_path_factory.mktemp("saved")
    for name in ("one", "two"):
        with pytest.raises(SystemExit) as left:
            main(["save", str(runs[name]), str(root / name), "--reject", "0.95", "--calibrate", "--score", "msp"])
        assert not left.value.code
    return root


@pytest.mark.slow
def test_a_saved_threshold_answers_unknown(type_all, saved, photos, tmp_path):
    """A grey image is below the threshold that was chosen for the coverage 0.95, and most digits are above it."""
    from pyarrow import parquet

    decision = json.loads((saved / "one" / "config.json").read_text())["decision"]
    Image.new("L", (32, 32), 128).save(tmp_path / "grey.png")
    inputs = ["grey.png", *sorted((photos / "a").iterdir())]
    for suffix in ("jsonl", "csv", "parquet"):
        assert type_all("predict", saved / "one", *inputs, "--out", f"x.{suffix}")[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").open()]
    assert rows[0]["prediction"] == "unknown"
    assert rows[0]["score"] == pytest.approx(rows[0]["probability"])
    for row in rows:
        is_rejected = row["score"] < decision["threshold"]
        assert row["prediction"] == ("unknown" if is_rejected else row["top"][0]["class"])
    assert sum(row["prediction"] == "unknown" for row in rows) <= len(rows) // 2
    with (tmp_path / "x.csv").open(newline="") as file:
        assert [(row["prediction"], float(row["score"])) for row in csv.DictReader(file)] == [
            (row["prediction"], row["score"]) for row in rows
        ]
    table = parquet.read_table(tmp_path / "x.parquet").to_pylist()
    assert [(row["prediction"], row["score"]) for row in table] == [(row["prediction"], row["score"]) for row in rows]
    out = type_all("predict", saved / "one", saved / "two", "grey.png", "--each", "--format", "jsonl")[2]
    [row] = map(json.loads, out.splitlines())
    each = [own["prediction"] for own in row["each"].values()]
    assert row["prediction"] == ("unknown" if each == ["unknown", "unknown"] else row["top"][0]["class"])
    assert "unknown" in each
    assert "score" not in row
    assert "grey.png: unknown; " in type_all("predict", saved / "one", "grey.png")[2]


def test_a_threshold_holds_only_for_its_classes(type_all, saved, tmp_path):
    Image.new("L", (32, 32), 128).save(tmp_path / "grey.png")
    names = list(map(str, load_prompt(saved / "one").names))
    for classes, is_rejected in ((names[::-1], True), (names[1:], False), (["cat", "dog"], False)):
        code, text, out = type_all("predict", saved / "one", "grey.png", "--classes", ",".join(classes))
        assert code == 0
        assert ("grey.png: unknown; " in out) == is_rejected
        assert ("nothing is answered unknown: the threshold was chosen among" in text) != is_rejected


def stop(*words):
    raise KeyboardInterrupt


def test_a_damaged_row_and_two_writers(type_all, runs, photos, tmp_path):
    from filelock import FileLock

    words = ["predict", runs["one"], photos / "a", "--out", "rows.jsonl"]
    with FileLock(tmp_path / ".rows.jsonl.lock"):
        code, said, _ = type_all(*words)
    assert code == 2
    assert "--out: expected a file that no process writes, got 'rows.jsonl', which another one writes" in said
    (tmp_path / "rows.jsonl.partial").write_text("{}\n")
    code, said, _ = type_all(*words)
    assert code == 2
    assert "'rows.jsonl.partial': expected rows as JSON, got b'{}\\n'. Begin anew by --fresh." in said


def test_all_broken_leaves_no_file(type_all, runs, tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_text("no")
    code, said, _ = type_all("predict", runs["one"], "a.png", "b.png", "--out", "rows.csv")
    assert code == 2
    assert "predict: expected inputs that can be read, got 2 that can't, the first of them: 'a.png': expected" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_a_path_that_is_named_twice_is_done_once(predict, photos):
    code, said, rows = predict(photos / "a", photos / "a" / "00.png", photos)
    assert code == 0
    assert len(rows) == 24
    assert "13 inputs were named more than once, and predicted once" in said


def test_parquet_without_its_library(type_all, runs, photos, monkeypatch):
    monkeypatch.setattr(installation, "import_module", no_module)
    code, said, _ = type_all("predict", runs["one"], photos, "--out", "x.parquet")
    assert code == 2
    assert 'expected pyarrow.parquet, got no such package. Install it by: pip install "vlprompt[parquet]".' in said


def no_module(name):
    raise ImportError(name)


@pytest.mark.slow
def test_a_name_that_is_no_utf8(type_all, runs, photos, tmp_path):
    name = b"\xff.png".decode("utf-8", "surrogateescape")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / name).write_bytes((photos / "a" / "00.png").read_bytes())
    for suffix in ("jsonl", "csv", "parquet", "json"):
        assert type_all("predict", runs["one"], "odd", "--out", f"x.{suffix}")[0] == 0
    assert json.loads((tmp_path / "x.jsonl").read_text())["path"] == f"odd/{name}"
    assert b"odd/\xff.png,zero" in (tmp_path / "x.csv").read_bytes()
    assert read_paths(tmp_path / "x.parquet") == ["odd/\\xff.png"]


def test_nothing_of_predicted_images_goes_to_the_disk_cache(type_all, runs, photos, tmp_path):
    assert type_all("predict", runs["one"], photos, "--feature-cache", tmp_path / "cache")[0] == 0
    metadata = [json.loads(path.read_text())["of"] for path in (tmp_path / "cache").rglob("metadata.json")]
    assert "images" not in metadata
