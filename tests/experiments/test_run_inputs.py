"""A run is its configuration and what it stood on: it is never taken for one on other data, texts or weights."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import vlprompt
from vlprompt.config.run_config import RunConfig
from vlprompt.data.readers.python_objects import from_torchvision
from vlprompt.experiments.inputs import describe_inputs
from vlprompt.methods import NearestMean
from vlprompt.results.run_inputs import list_differences
from vlprompt.runtime import file_index
from vlprompt.runtime.file_index import FileIndex, get_content_hash
from vlprompt.tasks import FewShot, Text

WORDS = ("run", "nearest_mean", "--backbone", "pixels", "--shots", "2", "--out")
SIDES = {"cat": 0, "dog": 8}  # where the bright half of an image of each class begins


def write_photos(folder, sides=SIDES, n=8, seed=0):
    """Images (16, 16) in a folder per class, one half of them bright."""
    stream = np.random.default_rng(seed)
    for name, side in sides.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            pixels = stream.integers(0, 30, (16, 16, 3)).astype(np.uint8)
            pixels[:, side : side + 8] += 200
            Image.fromarray(pixels).save(folder / name / f"{i}.bmp")
    return folder


def test_another_folder_of_the_same_name(type_all, tmp_path, monkeypatch):
    for place, sides in (("a", SIDES), ("b", dict.fromkeys(SIDES, 4))):
        write_photos(tmp_path / place / "photos", sides)
    monkeypatch.chdir(tmp_path / "a")
    assert type_all(*WORDS, "../out", "photos")[0] == 0
    monkeypatch.chdir(tmp_path / "b")
    status, text, _ = type_all(*WORDS, "../out", "photos")
    assert status == 2
    assert "content of the test items: 4 (" in text
    assert "--fresh" in text
    status, text, _ = type_all(*WORDS, "../out", "photos", "--fresh")
    assert status == 0
    assert len(list((tmp_path / "out").glob("*/result.json"))) == 2
    status, again, _ = type_all(*WORDS, "../out", "photos")  # finds its own folder without --fresh
    assert status == 0
    assert " 100.0 " not in again
    monkeypatch.chdir(tmp_path / "a")
    status, first, _ = type_all(*WORDS, "../out", "photos")
    assert status == 0
    assert " 100.0 " in first
    status, table, _ = type_all("table", "../out")
    assert " n=2" not in table
    assert "content" in table  # two rows, told apart


def test_a_copy_of_the_same_images_is_the_same_run(type_all, tmp_path, monkeypatch):
    write_photos(tmp_path / "a" / "photos")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for place in "ab":
        monkeypatch.chdir(tmp_path / place)
        assert type_all(*WORDS, "../out", "photos")[0] == 0
    assert len(list((tmp_path / "out").iterdir())) == 1


def relabel_folder(path):
    (path / "cat" / "0.bmp").rename(path / "dog" / "new.bmp")


def rename_class(path):
    (path / "cat").rename(path / "cats")


def relabel_table(path):
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *(line.replace("cat", "?").replace("dog", "cat") for line in lines[1:])]))
    path.write_text(path.read_text().replace("?", "dog"))


def write_table(tmp_path):
    write_photos(tmp_path / "photos")
    rows = [f"photos/{name}/{i}.bmp,{name}" for name in SIDES for i in range(8)]
    (tmp_path / "list.csv").write_text("\n".join(["path,class", *rows]))
    return tmp_path / "list.csv"


def write_npz(tmp_path):
    images = np.arange(16 * 8 * 8, dtype=np.uint8).reshape(16, 8, 8)
    np.savez(tmp_path / "list.npz", images=images, labels=np.arange(16) % 2)
    return tmp_path / "list.npz"


def change_npz(path):
    images = np.load(path)["images"].copy()
    images[:] = images[::-1]
    np.savez(path, images=images, labels=np.arange(16) % 2)


@pytest.mark.parametrize(
    ("write", "change", "name"),
    [
        (lambda tmp: write_photos(tmp / "photos"), relabel_folder, "names and labels of t"),
        (lambda tmp: write_photos(tmp / "photos"), lambda path: write_photos(path, seed=1), "content of the test"),
        (
            lambda tmp: write_photos(tmp / "photos"),
            lambda path: (path / "cat").rename(path / "lynx"),
            "classes[0]: cat",
        ),
        (write_table, relabel_table, "names and labels of t"),
        (write_npz, change_npz, "content of the test items"),
    ],
    ids=["moved", "changed", "renamed", "table", "arrays"],
)
def test_changed_data_are_refused(type_all, tmp_path, write, change, name):
    path = write(tmp_path)
    assert type_all(*WORDS, str(tmp_path / "out"), str(path))[0] == 0
    assert type_all(*WORDS, str(tmp_path / "out"), str(path))[0] == 0
    change(path)
    status, text, _ = type_all(*WORDS, str(tmp_path / "out"), str(path))
    assert status == 2
    assert name in text
    assert "--fresh" in text


def test_changed_descriptions_are_refused(type_all, tmp_path):
    write_photos(tmp_path / "photos")
    file = tmp_path / "texts.json"
    words = ("run", "zero_shot", str(tmp_path / "photos"), "--shots", "2", "--out", str(tmp_path / "out"))
    words += (f"method.descriptions={file}",)
    file.write_text(json.dumps({"cat": ["a dark square"], "dog": ["a bright square"]}))
    assert type_all(*words)[0] == 0
    file.write_text(json.dumps({"cat": ["a bright square"], "dog": ["a dark square"]}))
    status, text, _ = type_all(*words)
    assert status == 2
    assert "content of the file method.descriptions" in text


def test_changed_weights_are_refused(type_all, tmp_path):
    import timm

    write_photos(tmp_path / "photos")
    model, file = timm.create_model("test_vit", num_classes=0), tmp_path / "weights.pt"
    words = ("run", "nearest_mean", str(tmp_path / "photos"), "--shots", "2", "--out", str(tmp_path / "out"))
    words += ("--backbone", f"timm:test_vit@{file}")
    torch.save(model.state_dict(), file)
    assert type_all(*words)[0] == 0
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), file)
    status, text, _ = type_all(*words)
    assert status == 2
    assert "content of the file backbone" in text


def test_a_stopped_run_does_not_go_on_over_other_images(tmp_path):
    folder = write_photos(tmp_path / "photos")

    def stop(event):
        if type(event).__name__ == "StepDone":  # after the state was saved
            raise KeyboardInterrupt

    coop = vlprompt.methods.CoOp(vlprompt.load("glyph/random"), 2)
    with pytest.raises(KeyboardInterrupt):
        vlprompt.run(coop, FewShot(str(folder), 2), folder=tmp_path / "out", save_every=0, on_event=stop)
    write_photos(folder, n=9)
    with pytest.raises(vlprompt.results.run_inputs.ChangedInputsError, match="content of the test items"):
        vlprompt.run(coop, FewShot(str(folder), 2), folder=tmp_path / "out")


def test_files_exchanged_with_size_and_times_as_they_were(type_all, tmp_path, monkeypatch):
    """As rsync -t or tar leave them: the feature cache does not take one for the other."""
    monkeypatch.setenv("VLPROMPT_FEATURE_CACHE", str(tmp_path / "cache"))
    folder, accuracy = write_photos(tmp_path / "photos"), []
    for out in ("before", "after"):
        words = ("run", "nearest_mean", str(folder), "--backbone", "glyph-vit", "--shots", "2", "--out")
        assert type_all(*words, str(tmp_path / out))[0] == 0
        [result] = (tmp_path / out).glob("*/result.json")
        accuracy.append(json.loads(result.read_text())["summary"]["accuracy"])
        for i in range(4):  # half of the images of each class change sides
            files = folder / "cat" / f"{i}.bmp", folder / "dog" / f"{i}.bmp"
            contents, stats = [file.read_bytes() for file in files], [file.stat() for file in files]
            for file, content, stat in zip(files, reversed(contents), stats, strict=True):
                file.write_bytes(content)
                os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert accuracy[0] == 100
    assert accuracy[1] < 100


def test_data_of_python_are_compared_by_their_pixels(tmp_path):
    class Squares:
        classes = ("dark", "bright")

        def __init__(self, shade):
            self.targets = [i % 2 for i in range(20)]
            self.data = np.stack([np.full((8, 8), 20 + shade * t, np.uint8) for t in self.targets])

        def __len__(self):
            return 20

        def __getitem__(self, i):
            return Image.fromarray(self.data[i]), self.targets[i]

    method = NearestMean(vlprompt.load("glyph-vit"))
    vlprompt.run(method, FewShot(from_torchvision(Squares(200)), 2), folder=tmp_path / "out")
    vlprompt.run(method, FewShot(from_torchvision(Squares(200)), 2), folder=tmp_path / "out")
    with pytest.raises(ValueError, match="content of the test items"):
        vlprompt.run(method, FewShot(from_torchvision(Squares(0)), 2), folder=tmp_path / "out")


def test_a_table_marks_results_whose_data_have_changed(type_all, tmp_path):
    folder = write_photos(tmp_path / "photos")
    assert type_all(*WORDS, str(tmp_path / "out"), str(folder))[0] == 0
    assert "changed since" not in type_all("table", str(tmp_path / "out"))[1]
    (folder / "cat" / "new.bmp").write_bytes((folder / "cat" / "0.bmp").read_bytes())
    text = type_all("table", str(tmp_path / "out"))[1]
    assert "the data have changed since" in text
    assert "had 8 entries, has 9" in text.replace("\n", " ")
    shutil.rmtree(folder)  # what is not here says nothing
    assert "changed since" not in type_all("table", str(tmp_path / "out"))[1]


def test_the_index_reads_a_file_again_when_it_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(file_index, "SETTLE_NS", 0)  # else files as new as these are not written down
    file, path = tmp_path / "a", tmp_path / "index" / "files.sqlite"
    file.write_bytes(b"one")
    old = os.stat(file).st_mtime_ns - 10**10
    os.utime(file, ns=(old, old))
    index = FileIndex(path)
    first = index.get_content_hash(file)
    index.flush()
    with monkeypatch.context() as patch:
        patch.setattr(file_index, "hash_file", None)  # it is not read
        assert FileIndex(path).get_content_hash(file) == first
    file.write_bytes(b"two")
    os.utime(file, ns=(old, old))
    assert FileIndex(path).get_content_hash(file) != first
    path.write_bytes(b"no database")
    assert FileIndex(path).get_content_hash(file) != first


def test_a_folder_without_its_inputs_is_not_reused(type_all, tmp_path):
    folder = write_photos(tmp_path / "photos")
    assert type_all(*WORDS, str(tmp_path / "out"), str(folder))[0] == 0
    [inputs] = (tmp_path / "out").glob("*/inputs.json")
    inputs.write_text("{")
    status, text, _ = type_all(*WORDS, str(tmp_path / "out"), str(folder))
    assert status == 2
    assert "inputs.json: not to be read" in text


def test_a_process_that_died_at_the_very_end_leaves_nothing(type_all, tmp_path):
    folder = write_photos(tmp_path / "photos")
    words = (*WORDS, str(tmp_path / "out"), str(folder))
    assert type_all(*words)[0] == 0
    [run] = (tmp_path / "out").iterdir()
    whole = sorted(path.name for path in run.iterdir())
    (run / "last.safetensors").write_bytes(b"x")
    (run / ".lock").touch()
    assert type_all(*words)[0] == 0
    assert sorted(path.name for path in run.iterdir()) == whole


TWO = """
import sys
from vlprompt.cli.app import main
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_all_processes_end_on_changed_data(tmp_path):
    folder, script = write_photos(tmp_path / "photos", n=12), tmp_path / "two.py"
    script.write_text(TWO)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    command += ["run", "coop", folder, "--backbone", "glyph/random", "--shots", "2", "--out", tmp_path / "out"]
    command += ["train.epochs=2", "train.batch_size=2", "train.warmup=0"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}

    def start():
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=600)

    assert (first := start()).returncode == 0, first.stderr
    write_photos(folder, n=12, seed=1)
    again = start()
    assert again.returncode != 0
    assert "content of the test items" in again.stderr + again.stdout
    assert 'Traceback (most recent call last):\n  File "' + str(script) not in again.stderr


@pytest.mark.parametrize("field", ["label", "text"])
def test_changed_texts_are_told(tmp_path, field):
    file = tmp_path / "list.jsonl"
    rows = [{"text": f"{word} {i}", "label": word} for i in range(8) for word in ("good", "bad")]
    config = RunConfig("hf:nowhere", {"name": "lora"}, {"name": "text", "dataset": str(file)}, {}, 1)

    def describe():
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return json.loads(json.dumps(describe_inputs(Text(str(file), shots=2), config)))

    before = describe()
    assert list_differences(before, describe()) == []
    rows = [{**row, field: row[field].replace("good", "?").replace("bad", "good").replace("?", "bad")} for row in rows]
    told = "; ".join(list_differences(before, describe()))
    assert ("names and labels of test" if field == "label" else "content of the test items") in told


def test_changed_data_of_one_run_do_not_stop_the_others(type_all, tmp_path):
    folder = write_photos(tmp_path / "photos")
    words = ["run", "nearest_mean", str(folder), "--backbone", "pixels", "--shots", "2", "train.epochs=1"]
    words += ["--out", str(tmp_path / "out")]
    assert type_all(*words)[0] == 0
    write_photos(folder, seed=1)
    words[1] = "nearest_mean,linear"
    status, text, _ = type_all(*words)
    assert status == 1
    assert "content of the test items" in text
    assert "linear 2 shots, seed 1: accuracy" in text


@pytest.mark.parametrize("name", ["texts.json", "texts"])
def test_descriptions_are_compared_whatever_their_file_is_called(type_all, tmp_path, name):
    folder, file = write_photos(tmp_path / "photos"), tmp_path / name
    words = ("run", "zero_shot", str(folder), "--shots", "2", "--out", str(tmp_path / "out"))
    words += (f"method.descriptions={file}",)
    file.write_text(json.dumps({"cat": ["a dark square"], "dog": ["a bright square"]}))
    assert type_all(*words)[0] == 0
    file.write_text(json.dumps({"cat": ["a bright square"], "dog": ["a dark square"]}))
    status, text, _ = type_all(*words)
    assert (status, "content of the file method.descriptions" in text) == (2, True)


def test_a_changed_method_of_ones_own_is_refused(type_all, tmp_path):
    folder, file = write_photos(tmp_path / "photos"), tmp_path / "my_changed_method.py"
    code = "from vlprompt.methods import NearestMean\n\n\nclass Mine(NearestMean):\n    number = 1\n"
    file.write_text(code)
    words = ["run", "my_changed_method:Mine", str(folder), "--backbone", "pixels", "--shots", "2"]
    assert type_all(*words, "--out", str(tmp_path / "out"))[0] == 0
    file.write_text(code.replace("1", "2"))
    status, text, _ = type_all(*words, "--out", str(tmp_path / "out"))
    assert (status, "content of the file method.name" in text) == (2, True)


def test_the_words_of_classes_are_compared(tmp_path):
    config = RunConfig("hf:nowhere", {"name": "lora"}, {"name": "text", "dataset": "c.yaml"}, {}, 1)

    def describe(good):
        (tmp_path / "t.csv").write_text(
            "\n".join(["sentence,label", *(f"{w} {i},{w}" for w in "ab" for i in range(8))])
        )
        lines = ["title: T", "source: S", "licence: L", "classes: [a, b]", "file: t.csv"]
        lines += ["text: {fields: {text: sentence}, answer: class, label: label}", "template: '{text} {mask}'"]
        (tmp_path / "c.yaml").write_text("\n".join([*lines, f"words: {{a: ['{good}'], b: ['bad']}}"]))
        return json.loads(json.dumps(describe_inputs(Text(str(tmp_path / "c.yaml"), shots=2), config)))

    told = "; ".join(list_differences(describe("good"), describe("fine")))
    assert "class a" in told
    assert "fine" in told


def test_an_edited_result_is_left_out_of_tables(type_all, tmp_path):
    folder = write_photos(tmp_path / "photos")
    assert type_all(*WORDS, str(tmp_path / "out"), str(folder))[0] == 0
    [file] = (tmp_path / "out").glob("*/result.json")
    file.write_text(file.read_text().replace('"accuracy": 100.0', '"accuracy": 12.3', 1))
    text = type_all("table", str(tmp_path / "out"))[1]
    assert "it was edited after the run wrote it" in text
    assert "12.3" not in text


def test_seeds_on_other_labels_are_no_row_together(type_all, tmp_path, monkeypatch):
    for seed, place in ((1, "a"), (2, "b")):
        folder = write_photos(tmp_path / place / "photos" / "train")
        write_photos(tmp_path / place / "photos" / "test", seed=9)
        if place == "b":
            (folder / "cat" / "0.bmp").rename(folder / "dog" / "new.bmp")
        monkeypatch.chdir(tmp_path / place)
        assert type_all(*WORDS, "../out", "photos", "--seed", str(seed))[0] == 0
    assert type_all("table", "../out", "--json", "t.json")[0] == 0
    assert [row["n"] for row in json.loads((tmp_path / "b" / "t.json").read_text())] == [1, 1]


def test_one_seed_on_other_training_images_is_a_row_of_its_own(type_all, tmp_path):
    folder = write_photos(tmp_path / "photos" / "train").parent
    write_photos(folder / "test", seed=9)
    assert type_all(*WORDS, str(tmp_path / "out"), str(folder))[0] == 0
    write_photos(folder / "train", seed=1)
    assert type_all(*WORDS, str(tmp_path / "out"), str(folder), "--fresh")[0] == 0
    write_photos(folder / "train", dict.fromkeys(SIDES, 4), n=2, seed=2)
    text = type_all(*WORDS, str(tmp_path / "out"), str(folder))[1]
    assert text.count("content of the train items: 4 (") <= 1
    assert type_all("table", str(tmp_path / "out"), "--json", "t.json")[0] == 0
    rows = json.loads((tmp_path / "t.json").read_text())
    assert [row["n"] for row in rows] == [1, 1]
    assert "on other data" in rows[0]["variant"] + rows[1]["variant"]


@pytest.mark.parametrize(("style", "use"), [("cupl", "llm_texts"), ("waffle", "random_texts")])
def test_a_result_says_what_descriptions_it_used(type_all, tmp_path, style, use):
    file = tmp_path / "texts.json"
    content = {"descriptions": {"cat": ["dark"], "dog": ["bright"]}, "generator": {"style": style}}
    file.write_text(json.dumps(content))
    words = ["run", "zero_shot", str(write_photos(tmp_path / "photos")), "--shots", "2", "--out", str(tmp_path / "out")]
    for setting in (f"method.template={file}", f'method.template=["a {{name}}",{file}]', f"method.descriptions={file}"):
        status, text, _ = type_all(*words, setting)
        assert status == 0, text
    results = [json.loads(path.read_text())["protocol"] for path in (tmp_path / "out").rglob("result.json")]
    assert len(results) == 3
    hashes = {protocol["descriptions"]["texts.json"] for protocol in results}
    assert [protocol["uses"] for protocol in results] == [[use]] * 3
    assert hashes == {get_content_hash(file)}
    file.write_text(json.dumps({"cat": ["other"], "dog": ["bright"]}))
    for setting in (f"method.template={file}", f'method.template=["a {{name}}",{file}]'):
        status, text, _ = type_all(*words, setting)
        assert (status, "content of the file method.template" in text) == (2, True)
