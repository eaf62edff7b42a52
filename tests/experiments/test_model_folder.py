"""Model folders: what was saved answers as before; what is half written, foreign, newer or changed is refused."""

import hashlib
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forks import give
from PIL import Image
from safetensors.torch import load_file, save_file

import vlprompt
from vlprompt.backbones.cache.segment_file import NODE
from vlprompt.data.images.decoding import build_file_item
from vlprompt.experiments.learned.decision import Decision
from vlprompt.experiments.learned.state import read_learned_state
from vlprompt.results.tensor_files import serialize_tensors

SMALLEST = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 40, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
QUICK = ["--backbone", "glyph/random", "train.epochs=1"]
RUNS = {  # of several kinds of state: nested methods, streams, domains, heads
    "coop": ["coop", "digits", "--shots", "2", *QUICK],
    "kgcoop": ["kgcoop", "digits", "--shots", "2", *QUICK],
    "l2p": ["l2p", "digits", "--task", "continual", "--shots", "1", "--backbone", "glyph-vit/random", "train.epochs=1"],
    "nearest_mean": ["nearest_mean", "digits", "--task", "continual", "--shots", "2", "--backbone", "pixels"],
}


class Runs(dict):
    """{name: folder} of finished runs, each made when it is first needed."""

    def __init__(self, root):
        self.root = root

    def __missing__(self, name):
        status, text = give("run", *RUNS[name], "--out", self.root / name, cwd=self.root)
        assert status == 0, text
        self[name] = next((self.root / name).iterdir())
        return self[name]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def model(runs, tmp_path):
    """A model folder of the run coop."""
    vlprompt.save_prompt(read_learned_state(runs["coop"]), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def images(tmp_path):
    torch.manual_seed(0)
    for i in range(3):
        Image.fromarray(torch.randint(0, 255, (32, 32, 3), dtype=torch.uint8).numpy()).save(tmp_path / f"{i}.png")
    return [build_file_item(tmp_path / f"{i}.png") for i in range(3)]


def edit(model, change):
    """Change the values of a config.json."""
    values = json.loads((model / "config.json").read_text())
    change(values)
    (model / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize("name", ["coop", "kgcoop", "nearest_mean", pytest.param("l2p", marks=pytest.mark.slow)])
def test_what_is_saved_answers_as_before(runs, name, tmp_path, images):
    before = vlprompt.load_prompt(runs[name])
    vlprompt.save_prompt(before, tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    after = vlprompt.load_prompt(tmp_path / "model")
    assert after.state.metadata == before.state.metadata
    assert after.state.tensors.keys() == before.state.tensors.keys()
    assert after.names == before.names
    assert torch.equal(after.answer(images).probabilities, before.answer(images).probabilities)


def test_an_unknown_number_of_lessons_stays_unknown(runs, tmp_path):
    state = read_learned_state(runs["nearest_mean"])
    state = replace(state, metadata={**state.metadata, "total": None, "has_task_boundaries": False})
    vlprompt.save_prompt(state, tmp_path / "model")
    [*_, lesson] = read_learned_state(tmp_path / "model").lessons
    assert (lesson.total, lesson.has_task_boundaries) == (None, False)


def test_the_decision_is_saved(runs, tmp_path, images):
    decision = Decision(2.5, "msp", 0.99, {"rule": "coverage 0.95", "images": "/home/jane/val"})
    prompt = vlprompt.load_prompt(runs["coop"]).with_decision(decision)
    vlprompt.save_prompt(prompt, tmp_path / "model")
    after = vlprompt.load_prompt(tmp_path / "model")
    assert after.decision == replace(decision, facts={"rule": "coverage 0.95", "images": "./val"})
    assert after.answer(images).is_unknown.all()
    assert torch.equal(after.answer(images).probabilities, prompt.answer(images).probabilities)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "temperature of the softmax: 2.5" in card
    assert "answers `unknown` where the score msp is below 0.99" in card
    assert "All are of the run, before the temperature and threshold below were chosen." in card
    assert "inputs of no class" not in card


def test_commands_read_a_model_folder(type_in, runs, tmp_path):
    code, text = type_in("save", runs["coop"], "model", "--license", "mit")
    assert (code, text) == (0, "wrote model: what was learned, its configuration and its card")
    assert type_in("eval", "model") == type_in("eval", runs["coop"])
    Image.new("RGB", (32, 32), (200, 10, 10)).save(tmp_path / "a.png")
    words = "a.png", "--format", "json"
    assert type_in("predict", "model", *words) == type_in("predict", runs["coop"], *words)
    code, text = type_in("export", "model", "out", "--to", "peft")
    assert code == 2
    assert "expected an adapter of a language model, got coop: it reads images." in text
    code, text = type_in("save", "model", "again")
    assert code == 0, text
    assert "licence" not in text
    old, new = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("model", "again"))
    assert old == new
    assert "license: mit" in (tmp_path / "again" / "README.md").read_text()


def test_a_language_model_is_saved_with_its_templates(tmp_path, folders):
    from vlprompt.core.class_names import ClassName
    from vlprompt.core.texts import TextItem

    rows = [{"text": f"{('bad', 'good')[i % 2]} thing {i}", "label": ("no", "yes")[i % 2]} for i in range(8)]
    (tmp_path / "toy").mkdir()
    for part in ("train", "test"):
        (tmp_path / "toy" / f"{part}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    words = ["prompt_tuning", tmp_path / "toy", "--task", "text", "--backbone", f"hf:{folders('llama')}"]
    status, text = give("run", *words, "train.epochs=1", "--out", "runs", cwd=tmp_path)
    assert status == 0, text
    [run] = (tmp_path / "runs").iterdir()
    before = read_learned_state(run)
    vlprompt.save_prompt(before, tmp_path / "model")
    after = read_learned_state(tmp_path / "model")
    assert after.text_protocol == before.text_protocol
    assert after.config["task"]["dataset"] == "./toy"
    for name in ("config.json", "README.md"):
        assert str(tmp_path) not in (tmp_path / "model" / name).read_text()
    with pytest.raises(ValueError, match="--backbone: expected where the weights of hf:llama are on this machine"):
        vlprompt.load_prompt(tmp_path / "model")
    item = TextItem(
        "x", {"text": "good"}, str(before.text_protocol["template"]), str(before.text_protocol["plain_template"])
    )
    probabilities = [
        vlprompt.load_prompt(source, f"hf:{folders('llama')}").answer([item]).probabilities
        for source in (run, tmp_path / "model")
    ]
    assert torch.equal(*probabilities)
    assert after.names == (ClassName("no"), ClassName("yes"))


def test_no_path_of_this_machine_is_saved(type_in, tmp_path, monkeypatch):
    """Neither the home nor the folders of data and weights; the prompt answers where these are named."""
    import open_clip

    home = tmp_path / "home" / "jane"
    for i, name in enumerate(("dark", "light")):
        (home / "secret" / "digits" / name).mkdir(parents=True)
        for j in range(3):
            Image.new("RGB", (32, 32), (200 * i + 9 * j,) * 3).save(home / "secret" / "digits" / name / f"{j}.png")
    monkeypatch.setenv("HOME", str(home))
    (tmp_path / "tiny-save.json").write_text(json.dumps(SMALLEST))
    open_clip.add_model_config(tmp_path / "tiny-save.json")
    save_file(open_clip.create_model("tiny-save").state_dict(), home / "secret" / "w.safetensors")
    spec = f"open_clip:tiny-save@{home}/secret/w.safetensors"
    code, text = type_in(
        "run", "coop", home / "secret" / "digits", "--shots", "1", "--backbone", spec, "train.epochs=1"
    )
    assert code == 0, text
    [run] = (tmp_path / "runs").iterdir()
    assert type_in("save", run, "model")[0] == 0
    for name in ("config.json", "README.md", "model.safetensors"):
        content = (tmp_path / "model" / name).read_bytes().decode("utf-8", "replace")
        assert not [word for word in (str(tmp_path), "jane", "secret") if word in content], name
    values = json.loads((tmp_path / "model" / "config.json").read_text())
    assert values["backbone"]["spec"] == "open_clip:tiny-save@w.safetensors"
    assert values["backbone"]["key"].startswith("open_clip:tiny-save@w.safetensors#")
    assert values["task"]["dataset"] == "./digits"  # which is not the card digits
    code, text = type_in("eval", "model", home / "secret" / "digits")
    assert code == 2
    assert "--backbone: expected where the weights of open_clip:tiny-save@w.safetensors are on this machine" in text
    assert type_in("eval", "model", home / "secret" / "digits", "--backbone", spec) == type_in("eval", run)
    code, text = type_in("eval", "model", "--backbone", spec)
    assert code == 2
    assert "got './digits'" in text
    card = (tmp_path / "model" / "README.md").read_text()
    assert "vlprompt predict model image.png --backbone open_clip:tiny-save@w.safetensors" in card
    assert "`./digits` stands for the path of the data." in card


def test_a_prompt_that_reads_a_file_is_not_saved(type_in, tmp_path):
    (tmp_path / "d.json").write_text(json.dumps({str(i): ["a digit"] for i in range(10)}))
    words = ["run", "zero_shot", "digits", "--shots", "1", "--backbone", "glyph/random"]
    code, text = type_in(*words, "method.descriptions=d.json")
    assert code == 0, text
    [run] = (tmp_path / "runs").iterdir()
    code, text = type_in("save", run, "model")
    assert code == 2
    assert "expected a prompt that answers without other files, got method.descriptions" in text
    assert not (tmp_path / "model").exists()


def half(model):
    (model / "model.safetensors").unlink()


def other_half(model):
    (model / "config.json").unlink()


def truncated(model):
    data = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(data[:-10])


def other_tensors(model):
    """Of the same size: one bit."""
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-3] ^= 1
    (model / "model.safetensors").write_bytes(data)


def newer(model):
    edit(model, lambda values: values.update(format_version=2, vlprompt_version="9.1", something="new"))


def foreign(model):
    (model / "config.json").write_text(json.dumps({"model_type": "clip", "architectures": ["CLIPModel"]}))


def broken_json(model):
    (model / "config.json").write_text((model / "config.json").read_text()[:-40])


def no_mapping(model):
    (model / "config.json").write_text("[1, 2]")


def nested(model):
    (model / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)


def nested_setting(model):
    edit(model, lambda values: values.update(task="TASK"))
    text = (model / "config.json").read_text().replace('"TASK"', '{"a":' * 400 + "1" + "}" * 400)
    (model / "config.json").write_text(text)


def huge(model):
    (model / "config.json").write_bytes(b" " * (33 * 2**20))


def long_name(model):
    edit(model, lambda values: values["lessons"][0]["classes"][0].update(name="x" * 5000))


def no_number(model):
    text = (model / "config.json").read_text().replace('"temperature": 1.0', '"temperature": NaN')
    (model / "config.json").write_text(text)


def unknown_key(model):
    edit(model, lambda values: values.update(trust_remote_code=True))


def missing_key(model):
    edit(model, lambda values: values.pop("lessons"))


def wrong_type(model):
    edit(model, lambda values: values.update(seed="1"))


def hot(model):
    edit(model, lambda values: values["decision"].update(temperature=1e-300))


def no_class(model):
    edit(model, lambda values: values["lessons"][0]["classes"].clear())


def nameless(model):
    edit(model, lambda values: values["lessons"][0]["classes"][0].update(name=""))


def one_id_twice(model):
    edit(model, lambda values: values["lessons"][0]["classes"][0].update(id="1"))


def no_task(model):
    edit(model, lambda values: values.update(task={}))


def no_template(model):
    edit(model, lambda values: values.update(text_protocol={"answer": "class"}))


def unknown_setting(model):
    edit(model, lambda values: values["method"].update(colour=1))


def whole_numbers(model):
    tensors = {name: tensor.long() for name, tensor in load_file(model / "model.safetensors").items()}
    data = serialize_tensors(tensors, {"format_version": 1})
    (model / "model.safetensors").write_bytes(data)
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    edit(model, lambda values: values.update(tensors=entry))


def unknown_stranger(model):
    edit(model, lambda values: values["method"].update(name="no_such_package.mine:Mine"))


def other_method(model):
    edit(model, lambda values: values["method"].update(n_ctx=3))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (half, "expected a model folder, got one without its model.safetensors, half of one. Save it again"),
        (other_half, "expected a model folder, got one without its config.json, half of one. Save it again"),
        (truncated, r"expected the model.safetensors that its config.json names \(\d+ bytes\), got another one or a"),
        (other_tensors, r"expected the model.safetensors that its config.json names \(\w{12}...\), got another one"),
        (newer, "expected a model folder of format version 1, got version '2', written by vlprompt 9.1. Install"),
        (foreign, "expected a model folder of vlprompt, got a config.json of another program."),
        (broken_json, "expected JSON in config.json, got a broken file"),
        (no_mapping, "expected a model folder of vlprompt, got a config.json of another program."),
        (nested, "expected JSON in config.json, got a broken file"),
        (nested_setting, "config.json"),
        (huge, "expected a config.json of at most 33554432 bytes, got 34603008."),
        (long_name, "config.json: lessons: expected a list of lessons"),
        (no_number, "expected JSON in config.json, got a broken file .NaN is no number of JSON"),
        (unknown_key, "config.json: unknown key 'trust_remote_code'"),
        (missing_key, "config.json: the key 'lessons' is missing"),
        (wrong_type, "config.json: seed: expected the seed of its training, a whole number, got '1'"),
        (hot, "config.json: decision: expected temperature, score, threshold and facts, got {'temperature': 1e-300"),
        (no_class, "config.json: lessons: expected at least one class, got none"),
        (nameless, "config.json: lessons: expected a list of lessons"),
        (one_id_twice, "classes: expected each id of a class once, got '1' twice"),
        (no_task, "config.json: task: expected the task's name, got 'None'"),
        (no_template, "config.json: text_protocol: expected template, plain_template, answer as texts, got 'answer'"),
        (unknown_setting, "got an error on loading it: .*unexpected keyword argument 'colour'"),
        (whole_numbers, r"got an error on loading it: \w+: expected torch.float32, got torch.int64"),
        (unknown_stranger, "method: expected module:Class that can be imported from here"),
        (other_method, "expected a learned state of the method coop, got an error on loading it"),
    ],
)
def test_a_folder_that_is_not_as_it_was_written_is_refused(model, damage, message):
    damage(model)
    with pytest.raises(ValueError, match=message) as error:
        vlprompt.load_prompt(model)
    assert len(str(error.value)) < 600


def test_another_backbone_is_refused_with_both_keys(type_in, model):
    code, text = type_in("eval", model, "--backbone", "glyph")
    assert code == 2
    key = json.loads((model / "config.json").read_text())["backbone"]["key"]
    assert key in text
    assert "got glyph with other weights (glyph#" in text


@pytest.mark.parametrize("content", ["", "photo"])
def test_a_folder_without_a_model_is_refused(tmp_path, content):
    (tmp_path / "x").mkdir()
    if content:
        (tmp_path / "x" / "a.png").write_text(content)
    with pytest.raises(ValueError, match=r"expected the folder of a run, got .*, which holds none"):
        vlprompt.load_prompt(tmp_path / "x")


def test_nothing_is_overwritten_unless_it_is_a_model_and_forced(type_in, runs, tmp_path):
    run = runs["coop"]
    assert type_in("save", run, "model")[0] == 0
    code, text = type_in("save", run, "model")
    assert code == 2
    assert "which holds a model. Name another folder, or replace it by --force." in text
    (tmp_path / "model" / "notes.txt").write_text("mine")
    assert type_in("save", run, "model", "--force", "--license", "mit")[0] == 0
    assert (tmp_path / "model" / "notes.txt").read_text() == "mine"
    assert "license: mit" in (tmp_path / "model" / "README.md").read_text()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "README.md").write_text("my photos")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "clip"}')
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "file").write_text("x")
    for folder, cause in (
        ("photos", "holds other files"),
        ("other", "that vlprompt wrote"),
        ("run", "holds other files"),
    ):
        before = {path: path.read_bytes() for path in (tmp_path / folder).iterdir()}
        code, text = type_in("save", run, folder, "--force")
        assert code == 2
        assert cause in text
        assert {path: path.read_bytes() for path in (tmp_path / folder).iterdir()} == before
    code, text = type_in("save", run, "file")
    assert "got the file" in text
    code, text = type_in("save", run, "new", "--license", "My own!")
    assert code == 2
    assert "--license: expected an identifier as the hub has them (mit" in text
    assert not (tmp_path / "new").exists()


def save_and_die(run, folder, force, n_files):
    """Save, and be killed before the content of a file is on the disk."""
    synced = []

    def sync(descriptor):
        synced.append(descriptor)
        if len(synced) == n_files:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = sync
    vlprompt.save_prompt(read_learned_state(run), folder, force=force)


@pytest.mark.parametrize("n_files", [1, 2, 3])
def test_a_killed_save_leaves_no_folder(runs, tmp_path, n_files):
    status, _ = give(act=lambda _: save_and_die(runs["coop"], tmp_path / "model", False, n_files))
    assert status == -signal.SIGKILL
    assert not (tmp_path / "model").exists()
    [left] = tmp_path.iterdir()
    alive, other = tmp_path / f".model.{NODE}-{os.getpid()}", tmp_path / f".other.{left.name.rpartition('.')[2]}"
    for folder in (alive, other):
        folder.mkdir()
    alive.rename(alive := alive.with_name(f".model.{NODE}-{os.getppid()}"))
    vlprompt.save_prompt(read_learned_state(runs["coop"]), tmp_path / "model")
    assert vlprompt.load_prompt(tmp_path / "model").names
    assert set(tmp_path.iterdir()) == {tmp_path / "model", alive, other}  # what another process writes stays


@pytest.mark.parametrize("n_files", [1, 2, 3])
def test_a_killed_replacement_is_known_as_half(runs, model, n_files):
    status, _ = give(act=lambda _: save_and_die(runs["kgcoop"], model, True, n_files))
    assert status == -signal.SIGKILL
    with pytest.raises(ValueError, match=r"got one without its config.json, half of one"):
        vlprompt.load_prompt(model)
    vlprompt.save_prompt(read_learned_state(runs["kgcoop"]), model, force=True)
    assert not [path for path in model.iterdir() if path.name.startswith(".")]
    assert vlprompt.load_prompt(model).state.config["method"]["name"] == "kgcoop"


def test_a_strangers_class_is_loaded_from_a_folder_where_it_can_be_imported(type_in, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from vlprompt.methods import CoOp\n\nclass Mine(CoOp):\n"
        "    def __init__(self, clip, n_ctx: int = 2):\n        super().__init__(clip, n_ctx)\n"
    )
    assert type_in("run", "mine:Mine", "digits", "--shots", "1", *QUICK)[0] == 0
    [run] = (tmp_path / "runs").iterdir()
    assert type_in("save", run, "model")[0] == 0
    assert type_in("eval", "model") == type_in("eval", run)
    assert "class: `mine:Mine`, of a package that must be installed" in Path("model/README.md").read_text()
