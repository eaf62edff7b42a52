"""What answers with one class refuses a run on several labels, and a run on one label refuses such a dataset."""

import pytest
from PIL import Image
from shared import run_command


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A table of several labels, a run on it, and a run on digits."""
    folder = tmp_path_factory.mktemp("several labels")
    rows = [(f"{i}.png", (*("train",) * 4, "val", "val", *("test",) * 4)[i], i % 2, i % 3 == 0) for i in range(10)]
    for i, (name, *_) in enumerate(rows):
        Image.new("RGB", (32, 32), (20 * i, 7, 9)).save(folder / name)
    lines = ["path,split,Dog,Cat", *(f"{name},{part},{dog},{int(cat)}" for name, part, dog, cat in rows)]
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    where = ["--backbone", "glyph/random", "--seed", "1", "--out"]
    table = folder / "table.csv"
    assert run_command("run", "zero_shot", table, "--task", "multi_label", *where, folder / "several") == 0
    assert run_command("run", "zero_shot", "digits", "--shots", "1", *where, folder / "single") == 0
    [several], [single] = ([p.parent for p in (folder / k).rglob("result.json")] for k in ("several", "single"))
    return {"table": table, "image": folder / "0.png", "several": several, "single": single}


@pytest.mark.parametrize(
    "words",
    [
        ["eval", "several"],
        ["eval", "several", "digits"],
        ["eval", "several", "table"],
        ["predict", "several", "image"],
        ["predict", "single", "several", "image", "--classes", "a,b"],
        ["look", "several"],
        ["serve", "several", "--port", "0"],
        ["serve", "single", "several", "--port", "0"],
        *(["export", "several", "exported", "--to", to] for to in ("onnx", "torch", "classes", "open_clip")),
    ],
    ids=" ".join,
)
def test_a_run_on_several_labels_answers_with_no_class(words, places, type_in):
    status, said = type_in(*(places.get(word, word) for word in words))
    assert status == 2, said
    assert said.count("expected a prompt that answers with one class, got one of several labels") == 1
    assert str(places["several"]) in said
    assert "Traceback" not in said


def test_a_run_on_one_label_is_not_tested_on_several(places, type_in):
    status, said = type_in("eval", places["single"], places["table"])
    assert status == 2, said
    assert "dataset: expected items with one label each, got 'table.csv'" in said
