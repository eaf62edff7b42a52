"""Images with several labels in tables, and in the layouts of VOC2007, COCO 2014 and NUS-WIDE, on tiny files."""

import json
import re

import pytest
from PIL import Image

from vlprompt.data.cards import load_card
from vlprompt.data.inspection import inspect_dataset, sample_images
from vlprompt.data.loading import open_data
from vlprompt.data.readers.split_file import SAVED_SPLIT_FILE


def write_image(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (shade % 256, shade // 256, 7)).save(path)


def rows_of(data, split):
    part = getattr(data, split)
    return {one.name: row for one, row in zip(part.items, part.labels, strict=True)}


def write_table(folder, name, lines):
    for i in range(6):
        write_image(folder / f"{i}.png", i)
    (folder / name).write_text("\n".join(lines) + "\n")
    return str(folder / name)


SPLITS = ("train", "train", "val", "test", "test", "test")


def test_a_list_of_labels_in_each_row(tmp_path):
    labels = [["dog", "cat"], [], ["cat"], ["dog"], [], ["cat", "dog"]]
    rows = [{"path": f"{i}.png", "labels": labels[i], "split": SPLITS[i]} for i in range(6)]
    data = open_data(write_table(tmp_path, "a.jsonl", map(json.dumps, rows)))
    assert data.test.names == ("cat", "dog")
    assert rows_of(data, "train") == {"0.png": (1, 1), "1.png": (0, 0)}
    assert rows_of(data, "test") == {"3.png": (0, 1), "4.png": (0, 0), "5.png": (1, 1)}
    assert data.remarks == ("2 images have no label",)
    table = [f"{i}.png,{'|'.join(labels[i])},{SPLITS[i]}" for i in range(6)]
    same = open_data(write_table(tmp_path, "a.csv", ["path,labels,split", *table]))
    assert same.hash() == data.hash()


def test_a_column_for_each_class(tmp_path):
    cells = ["1,0,0", "0,?,0", ",1,0", "0,-1,0", "1,1,0", "0,0,0"]
    table = [f"{i}.png,{SPLITS[i]},{cells[i]}" for i in range(6)]
    data = open_data(write_table(tmp_path, "b.csv", ["path,split,dog,cat,never", *table]))
    assert data.test.names == ("dog", "cat", "never")  # in the order of the columns
    assert rows_of(data, "train") == {"0.png": (1, 0, 0), "1.png": (0, -1, 0)}
    assert rows_of(data, "val") == {"2.png": (-1, 1, 0)}
    assert data.test.count_per_class() == [1, 1, 0]


@pytest.mark.filterwarnings("ignore:.*differ in their spelling only")
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_columns_of_classes_keep_their_capitals(tmp_path, suffix):
    header = ["Path", "SPLIT", "Dog", "Polish", "polish"]
    cells = [(f"{i}.png", SPLITS[i], i % 2, i % 3 == 0, i % 3 == 1) for i in range(6)]
    rows = [[str(int(c)) if isinstance(c, bool | int) else c for c in row] for row in cells]
    lines = [("," if suffix == "csv" else "\t").join(row) for row in (header, *rows)]
    if suffix == "jsonl":
        lines = [json.dumps(dict(zip(["path", "split", *header[2:]], row, strict=True))) for row in rows]
    data = open_data(write_table(tmp_path, f"e.{suffix}", lines))
    assert data.test.names == ("Dog", "Polish", "polish")
    assert rows_of(data, "train") == {"0.png": (0, 1, 0), "1.png": (1, 0, 1)}


@pytest.mark.parametrize(
    ("header", "column"),
    [("path,split,cat,dog,cat", "cat"), ("path,Path,split,cat,dog", "path"), ("path,split,cat,dog, cat", "cat")],
)
def test_two_columns_of_one_name(tmp_path, header, column):
    lines = [header, *(f"{i}.png,{SPLITS[i]},1,0,0" for i in range(6))]
    with pytest.raises(ValueError, match=rf"f\.csv: expected one column '{column}', got two.*\. Rename or remove"):
        open_data(write_table(tmp_path, "f.csv", lines))


def test_no_split_is_saved(tmp_path, type_in):
    lines = ["path,labels,split", *(f"{i}.png,cat|dog,{SPLITS[i]}" for i in range(6))]
    path = write_table(tmp_path, "g.csv", lines)
    status, said = type_in("data", "split", path, "--save", tmp_path / "split.json")
    assert status == 2
    assert "split file: expected images with one label each, got" in said
    assert "Keep its own table or lists." in said
    assert not (tmp_path / "split.json").exists()


def test_a_saved_split_has_no_sets_of_labels(tmp_path):
    write_voc(tmp_path)
    (tmp_path / "voc2007" / SAVED_SPLIT_FILE).write_text("{}")
    with pytest.raises(
        ValueError, match=r"split_vlprompt\.json: expected no saved split where images may have several"
    ):
        open_data("voc2007", root=tmp_path)


def test_tables_are_cut_and_inspected(tmp_path):
    rows = [{"path": f"{i}.png", "labels": ["cat", "dog"][: i % 3]} for i in range(6)]
    path = write_table(tmp_path, "c.jsonl", map(json.dumps, rows))
    data = open_data(path)
    assert [len(data.train), len(data.val), len(data.test)] == [3, 1, 2]
    assert "cut 50:20:30" in data.note
    assert inspect_dataset(path).problems == []
    write_image(tmp_path / "1.png", 0)  # the same picture as 0.png
    found = inspect_dataset(path)
    assert any("of equal content" in line for line in [*found.problems, *found.remarks])
    assert set(sample_images(data)[1]) <= {"0 cat", "1 dog"}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"path": "0.png", "labels": [1, 2]}'], r"row 1: labels: expected class names, got 1. Write names"),
        (
            ['{"path": "0.png", "labels": "a,b"}'],
            r'row 1: labels: expected a list of class names, got "a,b". Write one',
        ),
        (
            ['{"path": "0.png", "labels": null}'],
            r"row 1: labels: expected a list of .*, got null. .* \[\] for an image",
        ),
        (['{"path": "0.png", "labels": {"a": 1}}'], r'row 1: labels: expected a list of class names, got {"a": 1}'),
        (['{"path": "0.png", "labels": 7}'], r"row 1: labels: expected a list of class names, got 7"),
        (['{"path": "0.png", "labels": ["a", "b"]}', '{"path": "1.png"}'], "row 2: expected the column 'labels' in"),
        (['{"path": "0.png", "labels": ["a"]}'], r"expected at least 2 classes, got \['a'\]"),
        (['{"path": "", "labels": ["a"]}'], "row 1: expected a path, got an empty one"),
        (
            ['{"path": "0.png", "labels": ["a"], "weight": 1}'],
            "expected no column beside labels, path, split and domain",
        ),
        (
            ['{"path": "0.png", "labels": ["a"]}', '{"path": "0.png", "labels": ["b"]}'],
            "row 2: expected one set of labels for '0.png', got another before",
        ),
    ],
)
def test_bad_rows(tmp_path, lines, message):
    with pytest.raises(ValueError, match=message):
        open_data(write_table(tmp_path, "d.jsonl", lines))


@pytest.mark.parametrize(
    ("name", "lines", "remedy"),
    [
        ("d.csv", ["path,labels", "0.png,", "1.png, "], r"Fill in the column labels, such as cat\|dog where an image"),
        (
            "d.jsonl",
            ['{"path": "0.png", "labels": []}', '{"path": "1.png", "labels": []}'],
            r'such as \["cat", "dog"\]',
        ),
        (
            "d.csv",
            ["path,cat,dog", "0.png,0,0", "1.png,-1,"],
            "Write 1 in the column of a class where an image shows it",
        ),
    ],
)
def test_a_table_without_labels(tmp_path, name, lines, remedy):
    with pytest.raises(ValueError, match=rf"expected images with labels, got 2 of which none has one\. .*{remedy}"):
        open_data(write_table(tmp_path, name, lines))


def test_labels_with_another_separator(tmp_path):
    cells = ["cat", "dog", '"cat, dog"', "cat", "dog", "cat"]
    lines = ["path,labels,split", *(f"{i}.png,{cells[i]},{SPLITS[i]}" for i in range(6))]
    with pytest.raises(ValueError, match=r"got 'cat, dog', whose parts are classes too. Write cat\|dog\."):
        open_data(write_table(tmp_path, "h.csv", lines))
    lines[3] = '2.png,"cat, big",val'
    assert open_data(write_table(tmp_path, "i.csv", lines)).test.names == ("cat", "cat, big", "dog")


@pytest.mark.parametrize("cell", ["2", "0.5", "yes"])
def test_a_cell_that_is_no_state(tmp_path, cell):
    lines = ["path,split,cat,dog", *(f"{i}.png,{SPLITS[i]},{cell if i == 3 else 1},0" for i in range(6))]
    message = f"j.csv, row 5: cat: expected 1 (present), 0 (absent), or -1, ? or nothing (unknown), got '{cell}'. Corre"
    with pytest.raises(ValueError, match=re.escape(message)):
        open_data(write_table(tmp_path, "j.csv", lines))


def voc_xml(*objects):
    parts = (f"<object><name>{n}</name><difficult>{d}</difficult></object>" for n, d in objects)
    return f"<annotation>{''.join(parts)}</annotation>"


def write_voc(root, test_object="person"):
    folder = root / "voc2007" / "VOCdevkit" / "VOC2007"
    objects = {
        "000001": [("dog", 0), ("person", 1)],
        "000002": [("person", 0), ("person", 1)],
        "000003": [("tvmonitor", 1)],
        "000004": [("cat", 0), ("dog", 0)],
        "000005": [(test_object, 0)],
    }
    for i, (name, parts) in enumerate(objects.items()):
        write_image(folder / "JPEGImages" / f"{name}.jpg", i)
        (folder / "Annotations").mkdir(exist_ok=True)
        (folder / "Annotations" / f"{name}.xml").write_text(voc_xml(*parts))
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "trainval.txt").write_text("000001\n000002\n000003\n000004\n")
    (folder / "ImageSets" / "Main" / "test.txt").write_text("000005\n")


def present(data, *splits):
    return {
        one.name: {str(n) for n, v in zip(part.names, row, strict=True) if v}
        for part in (getattr(data, split) for split in splits)
        for one, row in zip(part.items, part.labels, strict=True)
    }


def test_voc2007(tmp_path):
    write_voc(tmp_path)
    data = open_data("voc2007", root=tmp_path)
    assert len(data.test.names) == 20
    assert present(data, "train", "val") == {
        "000001.jpg": {"dog"},
        "000002.jpg": {"person"},
        "000003.jpg": set(),
        "000004.jpg": {"cat", "dog"},
    }
    assert present(data, "test") == {"000005.jpg": {"person"}}


def test_a_label_that_the_card_does_not_list(tmp_path):
    write_voc(tmp_path, "spoon")
    with pytest.raises(ValueError, match="voc2007: expected the 20 classes of the dataset, got the class 'spoon'"):
        open_data("voc2007", root=tmp_path)


def test_coco2014(tmp_path):
    root = tmp_path / "coco2014"
    for name, first in (("train2014", 1), ("val2014", 7)):
        files = [{"id": first + i, "file_name": f"COCO_{first + i}.jpg"} for i in range(3)]
        categories = [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}]
        pairs = [(first, 1), (first, 90), (first, 1), (first + 1, 90)]
        annotations = [{"image_id": i, "category_id": c} for i, c in pairs]
        content = {"images": files, "categories": categories, "annotations": annotations}
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        (root / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))
        for file in files:
            write_image(root / name / file["file_name"], file["id"])
    data = open_data("coco2014", root=tmp_path)
    assert len(data.test.names) == 80
    assert present(data, "test") == {
        "val2014/COCO_7.jpg": {"person", "toothbrush"},
        "val2014/COCO_8.jpg": {"toothbrush"},
        "val2014/COCO_9.jpg": set(),
    }
    assert len(data.train) + len(data.val) == 3
    assert "2 images without an object are in it" in data.note
    (root / "annotations" / "instances_val2014.json").write_text("{}")
    with pytest.raises(ValueError, match="expected COCO's categories, images and annotations, got other content"):
        open_data("coco2014", root=tmp_path)


def test_nus_wide(tmp_path):
    root, concepts = tmp_path / "nus_wide", load_card("nus_wide").listed_classes()
    (root / "ImageList").mkdir(parents=True)
    labels = root / "Groundtruth" / "TrainTestLabels"
    labels.mkdir(parents=True)
    for part, n in (("Train", 4), ("Test", 2)):
        names = [f"actor\\{part}_{i}.jpg" for i in range(n)]
        (root / "ImageList" / f"{part}Imagelist.txt").write_text("\n".join(names))
        for key in concepts:
            column = ["1" if (key, i) in {("sky", 0), ("zebra", 0), ("sky", 1)} else "0" for i in range(n)]
            (labels / f"Labels_{key}_{part}.txt").write_text("\n".join(column))
        for i in range(n):
            write_image(root / "Flickr" / "actor" / f"{part}_{i}.jpg", 10 * n + i)
    data = open_data("nus_wide", root=tmp_path)
    assert len(data.test.names) == 81
    assert present(data, "test") == {"actor/Test_0.jpg": {"sky", "zebra"}, "actor/Test_1.jpg": {"sky"}}
    assert len(data.train) + len(data.val) == 4
    (labels / "Labels_sky_Test.txt").write_text("1\n")
    with pytest.raises(ValueError, match=r"Labels_sky_Test\.txt: expected 0 or 1 for each of 2 images, got 1 lines"):
        open_data("nus_wide", root=tmp_path)
