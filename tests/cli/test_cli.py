"""The command line as a user types it: every command end to end, and every kind of bad input with its remedy."""

import csv
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import warnings
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
from forks import give
from safetensors.torch import save_file

from vlprompt.cli.app import main

COMMAND = Path(sys.executable).parent / "vlprompt"
SMALLEST = {  # an open_clip configuration
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 40, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
QUICK = ["--backbone", "glyph/random", "train.epochs=2"]


@pytest.fixture
def type_in(type_all):
    return type_all


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A finished run on digits, made once."""
    root = tmp_path_factory.mktemp("learned")
    with pytest.raises(SystemExit) as left:
        main(["run", "coop", "digits", "--shots", "1", *QUICK, "--out", str(root), "method.n_ctx=4"])
    assert left.value.code == 0
    return next(root.iterdir())


def test_run_and_what_comes_after(type_in, tmp_path):
    assert type_in("run", "coop,zero_shot", "digits", "--shots", "1,2", "--seed", "1,2", *QUICK)[0] == 0
    assert len(list((tmp_path / "runs").iterdir())) == 8
    code, text, _ = type_in("table", "runs", "--markdown", "t.md", "--csv", "t.csv", "--json", "t.json")
    assert code == 0
    assert "few_shot on digits" in text
    rows = json.loads((tmp_path / "t.json").read_text())
    assert [(r["method"], r["shots"], r["n"]) for r in rows] == [
        ("zero_shot", 1, 2),
        ("zero_shot", 2, 2),
        ("coop", 1, 2),
        ("coop", 2, 2),
    ]
    results = [json.loads(p.read_text()) for p in (tmp_path / "runs").glob("coop-digits-1shot-*/result.json")]
    scores = [r["summary"]["accuracy"] for r in results]
    assert rows[2]["accuracy"] == pytest.approx(sum(scores) / 2)
    assert rows[2]["accuracy_std"] == pytest.approx(abs(scores[0] - scores[1]) / 2)
    assert rows[2]["trained_parameters"] == 16 * 48
    table = list(csv.DictReader(io.StringIO((tmp_path / "t.csv").read_text())))
    assert float(table[2]["accuracy"]) == pytest.approx(rows[2]["accuracy"])
    assert f"| coop | {sum(scores) / 2:.1f}±" in (tmp_path / "t.md").read_text()
    assert type_in("plot", "runs", "--figure", "p.png")[0] == 0
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"


def test_a_second_time_does_nothing_but_print_the_table(type_in, tmp_path):
    command = ["run", "coop", "digits", "--shots", "1", "--seed", "1", *QUICK]
    first = type_in(*command)[2]
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    second = type_in(*command)[2]
    assert "few_shot on digits" in second
    assert first.endswith(second)
    assert stamps == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}


def test_a_table_of_several_folders(type_in, tmp_path):
    for seed, folder in ((1, "a"), (2, "b/inner")):
        assert type_in("run", "zero_shot", "digits", "--shots", "1", "--seed", seed, "--out", folder)[0] == 0
    assert type_in("table", "a", "b", "a", "--json", "t.json")[0] == 0
    [row] = json.loads((tmp_path / "t.json").read_text())
    assert row["n"] == 2
    status, said, _ = type_in("table", "a", "c")
    assert status == 2
    assert "runs: expected a folder of runs, got 'c', which does not exist" in said


def test_base_to_new(type_in, tmp_path):
    assert type_in("run", "coop", "digits", "--task", "base_to_new", "--shots", "2", "--seed", "1,2", *QUICK)[0] == 0
    type_in("table", "--json", "t.json")
    [row] = json.loads((tmp_path / "t.json").read_text())
    base, new = row["base"], row["new"]
    assert row["harmonic"] == pytest.approx(2 * base * new / (base + new))


def test_yaml_and_overrides(type_in, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "backbone: glyph/random\nmethod: {name: coop, n_ctx: 3}\ntask: {dataset: digits, shots: 1}\n"
        "train: {epochs: 1}\nseed: 7\n"
    )
    assert type_in("run", "-c", "mine.yaml", "method.n_ctx=2", "method.context_template={name} {ctx}.")[0] == 0
    [folder] = (tmp_path / "runs").iterdir()
    told = yaml.safe_load((folder / "config.yaml").read_text())
    assert told["method"] == {
        "name": "coop",
        "n_ctx": 2,
        "init_text": None,
        "context_template": "{name} {ctx}.",
        "class_specific": False,
    }
    assert (told["seed"], told["task"]["seed"], told["train"]["epochs"], told["train"]["lr"]) == (7, 7, 1, 0.002)


def test_a_strangers_method(tmp_path):
    (tmp_path / "stranger_one.py").write_text(
        "from vlprompt.methods import CoOp\n\n\nclass Mine(CoOp):\n"
        "    def __init__(self, clip, n_ctx: int = 2):\n        super().__init__(clip, n_ctx)\n"
    )

    def told(*words):
        return give("run", *words, "digits", "--shots", "1", *QUICK, cwd=tmp_path)

    status, said = told("stranger_one:Mine", "method.n_ctx=3")
    assert status == 0, said
    [folder] = (tmp_path / "runs").glob("Mine-digits-1shot-seed1-*")
    assert yaml.safe_load((folder / "config.yaml").read_text())["method"] == {"name": "stranger_one:Mine", "n_ctx": 3}
    assert "method: expected module:Class that can be imported from here, got 'stranger_one:Yours'" in " ".join(
        told("stranger_one:Yours")[1].split()
    )


def test_an_image_folder(type_in, tmp_path, pictures):
    assert type_in("run", "coop", "--dataset", pictures, "--shots", "2", *QUICK)[0] == 0
    [folder] = (tmp_path / "runs").iterdir()
    told = json.loads((folder / "result.json").read_text())
    assert told["protocol"]["note"] == "each class cut 50:20:30 into train, val and test"
    assert told["protocol"]["augment"] == "crop-flip"
    code, text, _ = type_in("eval", folder, "digits")
    assert code == 0
    assert "accuracy" in text


def test_predict(type_in, tmp_path, learned, pictures):
    files = sorted((pictures / "china").iterdir())[:2]
    code, text, _ = type_in("predict", learned, *files)
    assert code == 0
    assert "00.jpg: " in text
    found = json.loads(type_in("predict", learned, *files, "--format", "json")[2])
    assert [Path(f["path"]).name for f in found] == ["00.jpg", "01.jpg"]
    assert len(found[0]["top"]) == 3
    found = json.loads(type_in("predict", learned, *files, "--format", "json", "--top-k", "100")[2])
    digits = {"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"}
    assert {c["class"] for c in found[0]["top"]} == digits
    assert sum(c["probability"] for c in found[0]["top"]) == pytest.approx(1, abs=1e-4)
    table = list(csv.DictReader(io.StringIO(type_in("predict", learned, *files, "--format", "csv")[2])))
    assert len(table) == 2
    assert table[0]["prediction"] == found[0]["top"][0]["class"]
    assert type_in("predict", learned, *files, "--figure", "p.png")[0] == 0
    assert (tmp_path / "p.png").stat().st_size > 3000


@pytest.mark.slow
def test_eval_draws_test_images(type_in, tmp_path, learned):
    code, text, _ = type_in("eval", learned, "digits", "--figure", "e.png")
    told = json.loads((learned / "result.json").read_text())["summary"]
    assert code == 0
    assert f"accuracy {told['accuracy']:.2f}" in text
    assert (tmp_path / "e.png").stat().st_size > 10000


@pytest.mark.parametrize("what", ["methods", "tasks", "datasets", "backbones"])
def test_list(type_in, what):
    code, text, _ = type_in("list", what)
    assert code == 0
    assert {"methods": "cocoop", "tasks": "base_to_new", "datasets": "glyphs", "backbones": "open_clip:NAME/TAG"}[
        what
    ] in text


def test_show(type_in):
    code, text, _ = type_in("show", "coop")
    assert code == 0
    for part in ("arXiv:2109.01134", "n_ctx: int | None = None", "73.45", "Recipe configs/few_shot/coop.yaml"):
        assert part in text


HELP = """
import sys
from vlprompt.cli.app import main
for command in sys.argv[1:]:
    try:
        main([*command.split(), "--help"])
    except SystemExit as end:
        assert not end.code, command
"""


def test_help():
    """It is quick because it imports nothing heavy; tools/bench measures it."""
    commands = ["", "run", "table", "plot", "show", "list", "eval", "predict"]
    words = [sys.executable, "-X", "importtime", "-c", HELP, *commands]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "120"})
    assert done.stdout.count("Usage:") == len(commands)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & {"torch", "numpy", "matplotlib", "transformers", "open_clip", "timm", "peft"}


def test_the_version(type_in):
    code, text, _ = type_in("--version")
    assert (code, text.strip()) == (0, f"vlprompt {version('vlprompt')}")


BAD = {
    "method": (["run", "coopp", "digits"], "error: method: expected a known name, got 'coopp'; did you mean 'coop'?"),
    "dataset": (["run", "coop", "digitz"], "sub-folder of images per class, got 'digitz'", "did you mean 'digits'?"),
    "no dataset": (["run", "coop"], "the command line: task.dataset: expected a value, got nothing"),
    "task": (
        ["run", "coop", "digits", "--task", "fewshot"],
        "task: expected a known name, got 'fewshot'; did you mean 'few_shot'?",
    ),
    "backbone": (
        ["run", "coop", "digits", "--backbone", "glyphs"],
        "backbone: expected a known form, got 'glyphs'; did you mean 'glyph'?",
    ),
    "open_clip name": (
        ["run", "coop", "digits", "--backbone", "open_clip:ViT-B-61/openai"],
        "backbone: expected a model of open_clip, got 'ViT-B-61'; did you mean 'ViT-B-16'?",
    ),
    "open_clip tag": (
        ["run", "coop", "digits", "--backbone", "open_clip:ViT-B-16/opnai"],
        "expected weights of ViT-B-16 in open_clip, got 'opnai'; did you mean 'openai'?",
    ),
    "no tag": (
        ["run", "coop", "digits", "--backbone", "open_clip:ViT-B-16"],
        "no weights. Write open_clip:ViT-B-16/TAG",
    ),
    "checkpoint": (
        ["run", "coop", "digits", "--backbone", "open_clip:ViT-B-16@no.pt"],
        "expected a checkpoint file of ViT-B-16, got 'no.pt'",
    ),
    "key": (
        ["run", "coop", "digits", "method.nctx=4"],
        "the option 'method.nctx=4': unknown key 'method.nctx'; did you mean 'n_ctx'?",
    ),
    "section": (
        ["run", "coop", "digits", "metod.n_ctx=4"],
        "the option 'metod.n_ctx=4': unknown key 'metod'; did you mean 'method'?",
    ),
    "unknown classes of another task": (
        ["run", "coop", "digits", "--unknown", "glyphs"],
        "the command line: unknown key 'task.unknown'; it is a setting of the task open_set. Set --task open_set, or",
    ),
    "targets of another task": (
        ["run", "coop", "digits", "--targets", "glyphs"],
        "unknown key 'task.targets'; it is a setting of the task transfer. Set --task transfer, or leave it out.",
    ),
    "train key": (["run", "coop", "digits", "train.epoch=4"], "unknown key 'train.epoch'; did you mean 'epochs'?"),
    "type": (
        ["run", "coop", "digits", "train.lr=fast"],
        "the option 'train.lr=fast': train.lr: expected a valid number",
        "got 'fast'. Set train.lr to one.",
    ),
    "choice": (
        ["run", "coop", "digits", "train.optimizer=lion"],
        "train.optimizer: expected 'sgd', 'adam', 'adamw' or 'paged_adamw', got 'lion'",
    ),
    "shots": (
        ["run", "coop", "digits", "--shots", "many"],
        "--shots: expected whole numbers separated by commas, got 'many'. Write --shots 1,2,4.",
    ),
    "n_ctx": (
        ["run", "coop", "digits", *QUICK, "method.n_ctx=60"],
        "expected at most 40 tokens, got",
        "Use at most",
        "prompt tokens (n_ctx)",
    ),
    "init": (
        ["run", "coop", "digits", *QUICK, "method.n_ctx=3", "method.init_text=a photo of a"],
        "method.n_ctx: expected 4, as the initial words 'a photo of a' are 4 tokens, got 3",
    ),
    "template": (
        ["run", "zero_shot", "digits", *QUICK, "method.template=a digit"],
        "expected a place for the class, {name}, got 'a digit'",
    ),
    "pixels have no text": (
        ["run", "coop", "digits", "--backbone", "pixels"],
        "text tower of pixels:8: expected a block-wise tower for soft tokens, got one that only encodes fixed texts",
    ),
    "no tokens": (
        ["run", "coop", "digits", *QUICK, "method.n_ctx=0"],
        "method.n_ctx: expected at least 1 prompt token, got 0",
    ),
    "no shots": (
        ["run", "coop", "digits", *QUICK, "--shots", "0"],
        "task.shots: expected at least 1, got 0. Set task.shots=1 or more",
    ),
    "no rate": (
        ["run", "coop", "digits", *QUICK, "train.lr=-1"],
        "train.lr: expected a value above 0, got -1.0. Set a higher train.lr.",
    ),
    "no batch": (
        ["run", "coop", "digits", *QUICK, "train.batch_size=0"],
        "train.batch_size: expected at least 1, got 0. Set train.batch_size=1 or more.",
    ),
    "method as a number": (
        ["run", "coop", "digits", "train=3"],
        "train: expected settings, got 3. Write them as train.NAME=VALUE.",
    ),
    "no class": (
        ["run", "os:path", "digits"],
        "method: expected module:Class that can be imported from here, got 'os:path' (path is not a class)",
    ),
    "a key of the noise": (
        ["run", "nlprompt", "digits", *QUICK, "task.noise.rat=0.5"],
        "unknown key 'task.noise.rat'; did you mean 'rate'?",
    ),
    "no key of the noise": (
        ["run", "nlprompt", "digits", *QUICK, "task.noise.xyz=0.5"],
        "unknown key 'task.noise.xyz'; the choices are kind, rate, flips",
    ),
    "no unknown dataset": (
        ["run", "coop", "digits", *QUICK, "--task", "open_set", "--unknown", ""],
        "--unknown: expected a dataset, got an empty name in ''. Name one, or leave it out",
    ),
    "half a list of targets": (
        ["run", "coop", "digits", *QUICK, "--task", "transfer", "--targets", "glyphs,"],
        "--targets: expected a dataset, got an empty name in 'glyphs,'",
    ),
    "an empty dataset": (["run", "coop", "--dataset", ""], "--dataset: expected a dataset, got an empty name"),
    "no source": (["run", "zero_shot", "digits", "--source", ""], "--source: expected a domain, got an empty name"),
    "no target": (["run", "zero_shot", "digits", "--target", ""], "--target: expected a domain, got an empty name"),
    "eval on nothing": (["eval", "{learned}", ""], "dataset: expected a dataset, got an empty name"),
    "eval against nothing": (
        ["eval", "{learned}", "--unknown", ""],
        "--unknown: expected a dataset, got an empty name",
    ),
    "device": (
        ["run", "coop", "digits", *QUICK, "--device", "gpu9"],
        "--device: expected a device of this machine, got 'gpu9'",
    ),
    "option": (["run", "coop", "digits", "--shot", "4"], "No such option"),
    "command": (["runn", "coop"], "No such command 'runn'"),
    "argument": (["list"], "Missing argument"),
    "folder": (["predict", "{learned}", "nothing"], "'nothing': expected an image, got no such file. Check the path"),
    "runs": (["table", "nowhere"], "runs: expected a folder of runs, got 'nowhere'"),
    "list": (["list", "method"], "got 'method'; did you mean 'methods'?"),
    "show": (["show", "coocop"], "method: expected a known name, got 'coocop'; did you mean 'cocoop'?"),
    "eval": (["eval", "nowhere", "digits"], "run: expected the folder of a run, got 'nowhere'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_in_one_line_with_its_remedy(type_in, case, learned, tmp_path):
    command, *parts = BAD[case]
    code, text, _ = type_in(*(str(learned) if word == "{learned}" else word for word in command))
    assert code == 2
    assert not list(tmp_path.rglob("config.yaml"))  # a run that can't be leaves no folder
    for part in parts:
        assert part in text
    assert "Traceback" not in text


def test_a_recipe_without_these_shots(type_in):
    code, text, _ = type_in("run", "coop", "digits", "--shots", "3", "--backbone", "open_clip:ViT-B-16/random")
    assert code == 2
    assert "coop.yaml: train.epochs: expected one of the shots 1, 2, 4, 8, 16, got 3. Set train.epochs" in text


def test_a_wrong_type_in_a_file_names_file_and_key(type_in, tmp_path):
    (tmp_path / "my.yaml").write_text("method: {name: coop, n_ctx: [1, 2]}\n")
    code, text, _ = type_in("run", "-c", "my.yaml", "digits")
    assert code == 2
    assert "my.yaml: method.n_ctx: expected a valid integer, got [1, 2]" in text
    (tmp_path / "my.yaml").write_text("method: {name: coop\n")
    assert "my.yaml: expected YAML, got an error" in type_in("run", "-c", "my.yaml", "digits")[1]
    assert (
        "--config: expected a YAML file, got 'your.yaml', which does not exist"
        in type_in("run", "-c", "your.yaml", "digits")[1]
    )


@pytest.mark.slow
def test_no_network_says_which_file_to_put_where(tmp_path):
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "COLUMNS": "200"}
    words = ["run", "coop", "digits", "--backbone", "open_clip:ViT-B-16/openai"]
    done = subprocess.run([COMMAND, *words], cwd=tmp_path, capture_output=True, text=True, env=offline, check=False)
    text = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 2
    assert "the weights 'openai' of ViT-B-16 are not here and could not be fetched" in text
    assert 'use "open_clip:ViT-B-16-quickgelu@path/to/that/file"' in text
    assert "Traceback" not in text


def test_local_checkpoints_are_loaded(type_in, tmp_path, pictures):
    """The real loading path: a model of open_clip with weights in a file, as safetensors and as torch saves them."""
    import open_clip

    (tmp_path / "tiny-test.json").write_text(json.dumps(SMALLEST))
    open_clip.add_model_config(tmp_path / "tiny-test.json")
    torch.manual_seed(3)
    model = open_clip.create_model("tiny-test")
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pt")
    for file in ("w.safetensors", "w.pt"):
        assert (
            type_in("run", "zero_shot", pictures, "--backbone", f"open_clip:tiny-test@{file}", "--out", f"runs-{file}")[
                0
            ]
            == 0
        )
    results = [
        json.loads(next(tmp_path.glob(f"runs-{file}/*/result.json")).read_text()) for file in ("w.safetensors", "w.pt")
    ]
    assert results[0]["summary"] == results[1]["summary"]
    assert (
        results[0]["protocol"]["backbone_key"].partition("#")[2]
        == results[1]["protocol"]["backbone_key"].partition("#")[2]
    )
    whole = tmp_path / "whole"
    whole.mkdir()
    told = {"model_cfg": SMALLEST, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}}
    (whole / "open_clip_config.json").write_text(json.dumps(told))
    save_file(model.state_dict(), whole / "open_clip_model.safetensors")
    assert type_in("run", "zero_shot", pictures, "--backbone", f"open_clip:local-dir:{whole}", "--out", "w")[0] == 0
    code, text, _ = type_in("run", "zero_shot", pictures, "--backbone", "open_clip:local-dir:/nowhere")
    assert code == 2
    assert "local-dir:/nowhere: loading failed (" in text
    code, text, _ = type_in("run", "zero_shot", pictures, "--backbone", "open_clip:ViT-B-16@w.safetensors")
    assert code == 2
    assert "'w.safetensors': expected a checkpoint of ViT-B-16, got another file" in text
    (tmp_path / "w.safetensors").write_bytes(b"half of")
    code, text, _ = type_in("run", "zero_shot", pictures, "--backbone", "open_clip:tiny-test@w.safetensors")
    assert code == 2
    assert "expected a checkpoint of tiny-test, got another file" in text


def test_a_torchscript_archive_is_loaded_with_quick_gelu(tmp_path):
    """The form in which OpenAI published its weights; all of them use QuickGELU."""
    import open_clip

    from vlprompt.backbones.open_clip.weights import load_open_clip
    from vlprompt.core.images import Images

    class Archive(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            for name, child in model.named_children():
                self.add_module(name, child)
            for name, parameter in model.named_parameters(recurse=False):
                self.register_parameter(name, parameter)

        def forward(self, pixels):
            return self.visual(pixels)

    (tmp_path / "tiny-script.json").write_text(json.dumps(SMALLEST))
    open_clip.add_model_config(tmp_path / "tiny-script.json")
    model = open_clip.create_model("tiny-script", force_quick_gelu=True).eval()
    x = torch.randn(2, 3, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated; the files that were made so are not gone
        torch.jit.trace(Archive(model), x, check_trace=False).save(tmp_path / "w.pt")
    clip = load_open_clip("tiny-script", path=tmp_path / "w.pt", spec="x", device="cpu")
    found = clip.image(Images(lambda look, places: x[list(places)], [None, None]))
    assert torch.allclose(found, model.encode_image(x), atol=1e-5)


def test_a_prompt_of_another_backbone_method_or_shape(type_in, tmp_path, learned, pictures):
    picture = pictures / "china" / "00.jpg"
    code, text, _ = type_in("predict", learned, picture, "--backbone", "glyph")
    assert code == 2
    assert "got glyph with other weights (" in text
    other = tmp_path / "other"
    shutil.copytree(learned, other)
    from vlprompt.results.run_folder import RunFolder
    from vlprompt.results.tensor_files import read_tensors, serialize_tensors

    def write_learned(content):
        """Write it as if the run had learned it."""
        run = RunFolder(other)
        run.finish(run.read_result(), content)

    state, told = read_tensors(learned / "prompt.safetensors")
    write_learned(serialize_tensors({"ctx": state["ctx"][:2]}, told))
    assert (
        "expected a learned state of the method coop, got an error on loading it: Error(s) in loading state_dict"
        in type_in("predict", other, picture)[1]
    )
    told["config"]["method"] = {
        "name": "cocoop",
        "n_ctx": 4,
        "init_text": None,
        "context_template": "{ctx} {name}.",
        "reduction": 16,
    }
    write_learned(serialize_tensors(state, told))
    assert "expected a learned state of the method cocoop, got" in type_in("predict", other, picture)[1]
    write_learned(b"half")
    assert "expected a complete safetensors file, got a broken one" in type_in("predict", other, picture)[1]


def test_a_run_folder_that_is_half_written(type_in, tmp_path, learned, pictures):
    root = tmp_path / "runs"
    shutil.copytree(learned, root / "half")
    (root / "half" / "result.json").unlink()
    code, text, _ = type_in("table")
    assert code == 0
    assert "not finished, give the same command again: half" in text
    assert (
        "expected a finished run, got an unfinished one. Give its command again"
        in type_in("predict", root / "half", pictures / "china" / "00.jpg")[1]
    )
    (root / "half" / "result.json").write_text('{"config": ')
    code, text, _ = type_in("table")
    assert code == 2
    assert "result.json': expected a result, got a broken file" in text


def test_images_that_can_not_be_read(type_in, tmp_path, learned, pictures):
    (tmp_path / "bad.jpg").write_bytes((pictures / "china" / "00.jpg").read_bytes()[:900])
    code, text, _ = type_in("predict", learned, "bad.jpg")
    assert code == 2
    assert "'bad.jpg': expected an image, got a truncated file or another format" in text
    assert (
        "'none.jpg': expected an image, got no such file. Check the path" in type_in("predict", learned, "none.jpg")[1]
    )
    assert type_in("predict", learned, "bad.jpg", pictures / "china" / "00.jpg")[0] == 1
    root = tmp_path / "set"
    shutil.copytree(pictures, root)
    for i in range(12):
        (root / "china" / f"{i:02}.jpg").write_bytes((tmp_path / "bad.jpg").read_bytes())
    code, text, _ = type_in("run", "coop", root, "--shots", "2", *QUICK)
    assert code == 2
    assert "expected an image, got a truncated file or another format" in text


def give_limited(limit, words):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    main(words)


@pytest.mark.parametrize("limit", [pytest.param(1000, marks=pytest.mark.slow), 100])
def test_no_space_left_loses_nothing(tmp_path, limit):
    """A limit on file sizes stands for a full disk; afterwards the same command ends the run."""
    words = ["run", "coop", "digits", "--shots", "1", *QUICK, "--out", "runs"]
    status, said = give(*words, act=partial(give_limited, limit), cwd=tmp_path)
    told = " ".join(said.split())
    assert status == 2, told
    assert "expected a file that can be written, got an error" in told
    assert "Free space" in told
    assert not list(tmp_path.rglob("result.json"))
    assert not list(tmp_path.rglob(".*.*"))
    assert give(*words, cwd=tmp_path)[0] == 0
    assert len(list(tmp_path.rglob("result.json"))) == 1
