"""The messages that the page on troubleshooting quotes are those that the commands give."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlprompt.backbones.glyph import build_tiny_clip
from vlprompt.data.loading import open_data
from vlprompt.layers.class_texts import encode_class_texts
from vlprompt.results.run_folder import lock_folder
from vlprompt.runtime.errors import NonFiniteError, explain_error

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "troubleshooting.md"
QUOTES = [" ".join(block.split()) for block in re.findall(r"```text\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)]
RANDOM = ("--backbone", "glyph/random")

COMMANDS = {  # what provokes the message, with the folders and files that `files` writes
    "unknown method": "run kop digits",
    "unknown setting": "run coop digits method.n_ctxx=4",
    "unknown training setting": "run coop digits train.batchsize=4",
    "wrong type": "run coop digits method.n_ctx=four",
    "unknown choice": "run coop digits train.precision=fp8",
    "no file of settings": "run -c mine.yaml",
    "no number": "run coop digits --shots x",
    "class of nobody": "run my.mine:Mine digits",
    "two datasets": "run coop digits glyphs",
    "unknown dataset": "run coop digit",
    "missing data": "run coop dtd",
    "two ways": "run coop nested",
    "no images": "run coop empty",
    "one class": "run coop one",
    "classes that differ": "run linear lst",
    "image in two classes": "run linear dup.csv",
    "image not there": "run linear missing.csv",
    "broken image": "run linear bad_images --shots 2 --backbone glyph/random",
    "no domains": "run dapl digits",
    "unknown backbone": "run coop digits --backbone glpyh",
    "no texts": "run coop digits --backbone glyph-vit",
    "opaque tower": "run vpt digits --backbone pixels --shots 1",
    "layers": "run lora digits --backbone glyph method.layers=[99]",
    "too many tokens": "run coop digits --shots 4 method.n_ctx=200",
    "no place for the class": "run zero_shot digits method.template='a photo of a {nam}' --shots 1",
    "size": "run vpt digits --backbone glyph-vit preprocess.size=[30,30] --shots 1",
    "new classes": "run linear digits --task base_to_new --shots 1",
    "no run": "predict runs/nothing x.png",
    "no runs": "table nothing",
}


def is_quoted(message):
    """Whether the page has the message; "..." in a quote stands for any text."""
    patterns = [".*".join(re.escape(part) for part in quote.split("...")) for quote in QUOTES]
    return any(re.fullmatch(pattern, message) for pattern in patterns)


def write_images(root, *classes, n=4):
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(n):
            pixels = np.random.default_rng([number, i]).integers(0, 255, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")


@pytest.fixture
def files(tmp_path):
    write_images(tmp_path / "nested", "animals/cat", "animals/dog", "vehicles/bus", "vehicles/car", n=1)
    write_images(tmp_path / "one", "cat", n=1)
    write_images(tmp_path / "lst", "train/cat", "train/dog", "test/cat", "test/bird", n=1)
    write_images(tmp_path / "dup", "cats", "dogs", n=2)
    write_images(tmp_path / "bad_images", "cat", "dog", n=6)
    (tmp_path / "bad_images" / "cat" / "3.png").write_bytes(b"no picture")
    (tmp_path / "empty").mkdir()
    rows = "path,class\ndup/cats/0.png,cat\n"
    (tmp_path / "dup.csv").write_text(f"{rows}dup/cats/0.png,dog\ndup/dogs/1.png,dog\n")
    (tmp_path / "missing.csv").write_text(f"{rows}dup/dogs/9.png,dog\n")


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_quoted_error_is_the_one_that_comes(type_in, files, monkeypatch, command):
    monkeypatch.delenv("VLPROMPT_DATA", raising=False)
    words = [word.replace("'", "") for word in re.findall(r"(?:[^\s']|'[^']*')+", command)]
    code, text = type_in(*words)
    message = "error: " + text.partition("error: ")[2]
    assert code == 2
    assert is_quoted(message), f"{message}\nstands not in {PAGE.name}"


def test_changed_inputs_several_runs_and_an_edited_result(type_in, tmp_path):
    write_images(tmp_path / "photos", "cat", "dog", n=6)
    command = ("run", "zero_shot", "photos", *RANDOM, "--shots", "1", "-o", "r1")
    assert type_in(*command)[0] == 0
    [run] = (tmp_path / "r1").iterdir()
    for path in (tmp_path / "photos").rglob("*.png"):
        Image.new("RGB", (8, 8), "red").save(path)
    changed = type_in(*command)[1].partition("expected a run on the same inputs, got one on others (")[2]
    assert re.search(r"content of the test items: 4 \(\w{8}\) then, 4 \(\w{8}\) now", changed)
    remedy = changed.partition("). ")[2]
    assert any(remedy in quote for quote in QUOTES if "same inputs" in quote)

    assert type_in(*command, "--fresh")[0] == 0
    several = type_in("predict", "r1", "x.png")[1].replace("'r1', which holds 2", "'runs', which holds 4")
    assert several.partition(" r1/")[0] in {quote.partition(" runs/")[0] for quote in QUOTES}
    result = run / "result.json"
    result.write_text(result.read_text().replace('"accuracy": ', '"accuracy": 1', 1))
    left_out = type_in("table", "r1")[1].partition("left out: ")[2].partition("expected a result")[2]
    assert left_out
    assert any(f"expected a result{left_out}" in quote for quote in QUOTES)


def test_a_locked_folder(tmp_path):
    (tmp_path / "run").mkdir()
    with lock_folder(tmp_path / "run"), pytest.raises(ValueError) as raised, lock_folder(tmp_path / "run"):
        pass
    text = str(raised.value).partition("': ")[2]
    assert any(text in quote for quote in QUOTES)


def test_memory_and_numbers(type_in):
    assert is_quoted(explain_error(MemoryError()))
    full = explain_error(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert full.replace(" (CUDA out of memory. Tried to allocate 2.00 GiB)", "") == explain_error(MemoryError())
    options = ("--shots", "2", "train.lr=1e30", "train.iterations=20", "train.schedule_unit=iteration")
    text = type_in("run", "vpt", "digits", "--backbone", "glyph-vit", *options)[1].partition("error: ")[2]
    assert any(text.partition("; the parameters")[2] in quote for quote in QUOTES if "got terms" in quote)
    assert issubclass(NonFiniteError, ArithmeticError)


def test_warnings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "samewords", "cat", "Cat ", n=4)
    with pytest.warns(UserWarning, match="differ in their spelling") as spelling:
        open_data("samewords")
    with pytest.warns(UserWarning, match="equal logits") as text:
        encode_class_texts(build_tiny_clip(), ["Cat", "cat"], "a {name}")
    assert f"warning: {spelling[0].message}" in QUOTES
    assert f"warning: {text[0].message}" in QUOTES


def test_processes(type_in, monkeypatch):
    monkeypatch.setattr("sys.argv", ["vlprompt", "run", "coop", "digits", "--processes", "2"])
    assert is_quoted(type_in("run", "coop", "digits", "--processes", "2")[1])
    monkeypatch.setattr("sys.argv", ["vlprompt", "run", "coop", "digits"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert is_quoted(type_in("run", "coop", "digits")[1])
