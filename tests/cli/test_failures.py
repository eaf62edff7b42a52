"""What fails, stops or warns at the command line: it is said in one line, by name, and nothing else is lost by it."""

import csv
import io
import json
import os
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
from forks import give

QUICK = ["--backbone", "glyph/random", "--shots", "1", "train.epochs=1", "train.warmup=0"]
FAILING = """
import os, signal
import torch
from torch import nn
from vlprompt.methods import CoOp, ZeroShot

class Raises(ZeroShot):
    def forward(self, inputs, prepared):
        {line}
        return super().forward(inputs, prepared)

class Refused(CoOp):
    def __init__(self, clip):
        super().__init__(clip, n_ctx=0)

class Stranger(nn.Module):
    pass
"""


@pytest.fixture
def write_method(tmp_path, monkeypatch, request):
    """Write a module with a method whose `forward` begins with this line; gives its name."""

    def write(line):
        name = f"mine_{abs(hash((request.node.name, line)))}"
        (tmp_path / f"{name}.py").write_text(FAILING.format(line=line))
        return name

    return write


@pytest.mark.parametrize("arguments", [["train.warmup=1"], ["train.warmup=3", "train.warmup_kind=linear"]])
def test_a_training_that_is_all_warm_up_says_so(type_in, arguments):
    code, text = type_in("run", "coop", "digits", *QUICK, "train.lr=0.5", *arguments)
    assert code == 0
    n = arguments[0][-1]
    assert f"train.warmup {n} epoch" in text
    assert "the whole training" in text
    assert "lr is never reached" in text
    assert ("at warmup_lr 1e-05" in text) == (n == "1")
    assert "train.warmup" not in type_in("run", "coop", "digits", *QUICK, "train.lr=0.5")[1]


@pytest.mark.parametrize(
    ("method", "settings", "owner"),
    [
        ("linear", [], "linear head"),
        ("vpt", ["method.head=cosine", "--backbone", "glyph-vit/random"], "cosine head"),
        ("coop", ["method.class_specific=true"], "a class-specific context"),
        ("kgcoop", ["method.method={name: coop, class_specific: true}"], "a class-specific context"),
        ("nearest_mean", [], "a nearest mean"),
        ("ranpac", [], "a ridge head"),
    ],
)
def test_methods_that_know_no_new_classes_are_refused_before_they_train(type_in, tmp_path, method, settings, owner):
    command = ["run", method, "digits", "--task", "base_to_new", *QUICK, *settings]
    code, text = type_in(*command)
    assert code == 2
    assert f"test 'new': {owner}: no weights for class '5'" in text
    assert "Set task.base_only=true for the accuracy on the base classes alone" in text
    assert not list(tmp_path.rglob("last.safetensors"))
    assert not any(file.read_text() for file in tmp_path.rglob("steps.jsonl"))


def test_the_base_accuracy_alone_can_be_asked_for(type_all, tmp_path):
    command = ["run", "linear,coop", "digits", "--task", "base_to_new", *QUICK, "task.base_only=true"]
    assert type_all(*command)[0] == 0
    results = [json.loads(file.read_text()) for file in tmp_path.rglob("result.json")]
    assert [list(result["summary"]) for result in results] == [["base"], ["base"]]
    assert type_all("run", "coop", "digits", "--task", "base_to_new", *QUICK)[0] == 0
    assert type_all("table", "--json", "t.json")[0] == 0
    rows = json.loads((tmp_path / "t.json").read_text())
    assert sorted(row["base"] is not None for row in rows) == [True] * 3
    bases = {row["base"] for row in rows if row["method"] == "coop"}
    assert len(bases) == 1  # the number is that of the whole protocol


def test_a_transfer_to_new_classes_is_refused_before_the_training(type_in, tmp_path):
    code, text = type_in("run", "linear", "digits", "--task", "transfer", "--targets", "glyphs", *QUICK)
    assert code == 2
    assert "test 'glyphs': linear head: no weights for class" in text
    assert "Use --task few_shot for the accuracy on the source alone." in text
    assert not list(tmp_path.rglob("last.safetensors"))


INTERRUPTS = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"


def test_ctrl_c_says_that_the_same_command_goes_on(tmp_path, write_method):
    """The method itself sends the signal, at its first answer."""
    words = ["run", f"{write_method(INTERRUPTS)}:Raises", "digits", *QUICK]
    status, said = give(*words, cwd=tmp_path)
    assert status == 130, said
    assert "stopped; the same command goes on from here" in said
    assert "Traceback" not in said


def test_ctrl_c_in_a_search_says_so_too(type_in, write_method):
    name = write_method(INTERRUPTS)
    code, text = type_in("search", f"{name}:Raises", "digits", "--backbone", "glyph/random")
    assert code == 130
    assert text.endswith("stopped; the same command goes on from here")


def test_ctrl_c_of_what_does_not_go_on_promises_nothing(type_in, monkeypatch):
    from vlprompt.cli import listing

    def interrupt(*arguments):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(listing, "list_entries", interrupt)
    code, text = type_in("list", "methods")
    assert (code, text) == (130, "stopped")
    from vlprompt.cli import data

    monkeypatch.setattr(data, "_prepare_files", interrupt)
    assert type_in("data", "prepare", "eurosat") == (130, "stopped; the same command goes on from here")


DAMAGED = {
    "cut": lambda path, whole: path.write_bytes(whole[: len(whole) // 2]),
    "a bit flipped": lambda path, whole: path.write_bytes(whole[:600] + bytes([whole[600] ^ 255]) + whole[601:]),
    "an array": lambda path, whole: np.save(path.open("wb"), np.zeros((4, 8, 8), np.uint8)),
    "nothing": lambda path, whole: path.write_bytes(b""),
    "a zip of something else": lambda path, whole: _write_zip(path),
}


def _write_zip(path):
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images", "no array")
        archive.writestr("labels.npy", "no array either")


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_archive_is_named(type_in, tmp_path, damage):
    images, labels = np.random.default_rng(0).integers(0, 255, (40, 8, 8)).astype(np.uint8), np.arange(40) % 2
    np.savez(tmp_path / "set.npz", images=images, labels=labels)
    DAMAGED[damage](tmp_path / "set.npz", (tmp_path / "set.npz").read_bytes())
    code, text = type_in("run", "nearest_mean", "set.npz", "--backbone", "pixels")
    assert code == 2
    assert "set.npz: expected a NumPy archive, got one that can't be read (" in text
    assert "Write it by numpy.savez" in text


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((0, 8, 8), np.uint8), "labels": np.zeros(0, int)}, "labels: expected one for each image"),
        ({"split": np.array(["train", "test"])}, "split: expected one text for each image, got an array of shape (2,)"),
        ({"names": np.array([["a"], ["b"]])}, "names: expected one text for each class, got an array of shape (2, 1)"),
        ({"labels": np.array(3)}, "labels: expected 40 whole numbers"),
    ],
)
def test_arrays_that_do_not_fit_are_named(type_in, tmp_path, arrays, message):
    whole = {"images": np.zeros((40, 8, 8), np.uint8), "labels": np.arange(40) % 2}
    np.savez(tmp_path / "set.npz", **whole | arrays)
    code, text = type_in("run", "nearest_mean", "set.npz", "--backbone", "pixels")
    assert code == 2
    assert f"set.npz: {message}" in text


@pytest.mark.parametrize(
    ("setting", "value", "minimum"), [("max_test_texts", 0, 1), ("max_test_texts", -1, 1), ("max_new_tokens", -1, 0)]
)
def test_numbers_of_a_text_task_out_of_their_range(type_in, tmp_path, setting, value, minimum):
    rows = [json.dumps({"text": f"text {i}", "label": "ab"[i % 2]}) for i in range(20)]
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    code, text = type_in("run", "zero_shot", "t.jsonl", "--task", "text", f"task.{setting}={value}")
    assert code == 2
    assert f"task.{setting}: expected at least {minimum}, got {value}. Set task.{setting}={minimum}" in text


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    from vlprompt.cli.app import main

    root = tmp_path_factory.mktemp("learned")
    with pytest.raises(SystemExit) as left:
        main(["run", "zero_shot", "digits", *QUICK, "--out", str(root)])
    assert left.value.code == 0
    return next(root.iterdir())


def test_broken_files_are_named_in_every_form(type_all, tmp_path, learned, pictures, capsys):
    (tmp_path / "bad.png").write_bytes(b"no image")
    good = pictures / "china" / "00.jpg"
    words = ["predict", learned, "bad.png", good]
    why = "expected an image, got a truncated file or another format"
    code, text, out = type_all(*words)
    assert code == 1
    assert "1 of 2 inputs could not be read" in text
    assert "left out: 'bad.png'" in text
    assert "bad.png" not in out
    assert "00.jpg: " in out
    records = json.loads(type_all(*words, "--format", "json")[2])
    assert [Path(record["path"]).name for record in records] == ["bad.png", "00.jpg"]
    assert why in records[0]["error"]
    assert "top" not in records[0]
    rows = list(csv.DictReader(io.StringIO(type_all(*words, "--format", "csv")[2])))
    assert (rows[0]["path"], rows[0]["prediction"]) == ("bad.png", "")
    assert why in rows[0]["error"]
    assert {row["error"] for row in rows[1:]} == {""}
    code, text, _ = type_all("predict", learned, "bad.png", "--figure", "p.png")
    assert code == 2
    assert why in text


def test_broken_files_of_a_test_are_named(type_in, tmp_path, learned, pictures):
    import shutil

    shutil.copytree(pictures, tmp_path / "set")
    (tmp_path / "set" / "china" / "00.jpg").write_bytes(b"no image")
    code, text = type_in("eval", learned, "set", "--skip-broken")
    assert code == 0
    assert "1 broken files left out (00.jpg)" in text


def test_a_sweep_goes_on_after_a_run_that_fails(type_in, tmp_path, write_method):
    name = write_method("raise ZeroDivisionError('of mine')")
    command = ["run", f"{name}:Raises,zero_shot", "digits", *QUICK, "--seed", "1,2"]
    code, text = type_in(*command)
    assert code == 1
    assert len(list(tmp_path.rglob("result.json"))) == 2
    assert "zero_shot" in text
    assert "2 failed; the same command tries them again, once what the message names is mended:" in text
    assert f"digits: {name}:Raises 1 shot, seed 2: Raises.forward ({tmp_path / name}.py, line 9)" in text
    assert type_in(*command)[0] == 1


def test_a_wrong_argument_of_a_sweep_is_still_a_wrong_argument(type_in, tmp_path):
    code, text = type_in("run", "coop,zero_shot", "digits", *QUICK, "method.nctx=4")
    assert code == 2
    code, text = type_in("run", "zero_shot,nearest_mean", "digitz", *QUICK)
    assert code == 2
    assert "did you mean 'digits'?" in text
    assert text.count("did you mean") == 1


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("raise ValueError('mine')", "got ValueError: mine."),
        ("1 / 0", "got ZeroDivisionError: division by zero."),
        ("self.no_such_thing", "got AttributeError: 'Raises' object has no attribute 'no_such_thing'."),
        ("torch.zeros(2) @ torch.zeros(3)", "got RuntimeError: inconsistent tensor size"),
    ],
)
def test_an_error_in_a_users_own_method_has_a_place(type_in, tmp_path, write_method, line, what, monkeypatch):
    name = write_method(line)
    code, text = type_in("run", f"{name}:Raises", "digits", *QUICK)
    assert code == 2
    assert f"error: Raises.forward ({tmp_path / name}.py, line 9): expected no error, {what}" in text
    assert "VLPROMPT_DEBUG=1 shows the traceback" in text
    assert "Traceback" not in text
    monkeypatch.setenv("VLPROMPT_DEBUG", "1")
    from vlprompt.cli.app import main

    with pytest.raises((ValueError, ArithmeticError, AttributeError, RuntimeError)):
        main(["run", f"{name}:Raises", "digits", *QUICK])


def test_classes_that_are_no_methods_are_refused_by_name(type_in, tmp_path, write_method):
    name = write_method("pass")
    code, text = type_in("run", f"{name}:Stranger", "digits", *QUICK)
    assert code == 2
    assert f"method: expected a subclass of vlprompt.Method, got '{name}:Stranger', a class of another kind" in text
    code, text = type_in("run", "vpt", "digits", f"method.head={name}:Stranger", *QUICK)
    assert code == 2
    assert f"head: expected a subclass of vlprompt.core.head.Head, got '{name}:Stranger'" in text
    code, text = type_in("run", "coop", "digits", "--task", f"{name}:Stranger", *QUICK)
    assert code == 2
    assert f"task: expected a class with the methods stages and summary, got '{name}:Stranger'" in text
    code, text = type_in("run", f"{name}:Refused", "digits", *QUICK)
    assert code == 2
    assert "method.n_ctx: expected at least 1 prompt token, got 0" in text
    (tmp_path / "syntax_of_mine.py").write_text("class Mine(:\n")
    code, text = type_in("run", "syntax_of_mine:Mine", "digits", *QUICK)
    assert code == 2
    assert f"got 'syntax_of_mine:Mine' with an error in {tmp_path / 'syntax_of_mine.py'}, line 1" in text
    (tmp_path / "import_of_mine.py").write_text("x = 1 / 0\n")
    code, text = type_in("run", "import_of_mine:Mine", "digits", *QUICK)
    assert code == 2
    assert f"({tmp_path / 'import_of_mine.py'}, line 1): expected no error, got ZeroDivisionError" in text


def test_a_class_that_does_not_store_its_arguments_is_named():
    from vlprompt.config.describe import describe
    from vlprompt.methods import ZeroShot

    class Forgetful(ZeroShot):
        def __init__(self, clip, n: int = 2):
            super().__init__(clip)

    with pytest.raises(ValueError, match=r"Forgetful: expected a constructor that stores its argument n.*self.n = n"):
        describe(Forgetful(None))


def test_warnings_of_libraries_are_one_line_once(type_in, write_method):
    line = "import warnings; [warnings.warn(f'{i}  lines\\n  of mine', RuntimeWarning) for i in 'ab' for _ in 'cd']"
    name = write_method(f"{line}; torch.nested.nested_tensor([torch.ones(1)]); torch.nested.nested_tensor([])")
    code, text = type_in("run", f"{name}:Raises", "digits", *QUICK)
    assert code == 0
    assert text.count("warning: a lines of mine") == 1
    assert text.count("warning: b lines of mine") == 1
    assert "RuntimeWarning" not in text
    assert "warnings.warn(" not in text


def test_a_regression_that_does_not_converge_is_told_in_one_sentence(type_in, monkeypatch):
    from vlprompt.methods import linear

    monkeypatch.setattr(linear, "MAX_ITERATIONS", 2)
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # as Python shows them where no test runner makes errors of them
        code, text = type_in("run", "linear", "digits", *QUICK)
    assert code == 0
    assert "warning: method.solver=lbfgs: expected the regression to converge in 2 iterations, got 13 of 13" in text
    assert text.count("warning:") == 1
    assert "ConvergenceWarning" not in text
    assert "method.normalize=true" in text


def test_a_pattern_that_matches_two_runs_is_told(type_in, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("seed: 1\n")
    code, text = type_in("eval", str(tmp_path / "one"), str(tmp_path / "two"), "digits")
    assert code == 2
    assert "run: expected one run, got 2 (" in text
    assert "Name one, or a longer pattern." in text
