"""What an export leaves behind: whole folders or nothing, the decision, and class names of any kind."""

import json
import os
import resource
from dataclasses import replace

import numpy as np
import pytest
import torch

from vlprompt.backbones.glyph import build_tiny_clip
from vlprompt.backbones.pixels import load_pixels
from vlprompt.cli.app import main
from vlprompt.config.build import build_method
from vlprompt.config.describe import describe
from vlprompt.core.images import build_images
from vlprompt.core.towers import find_input_tower
from vlprompt.experiments.export.class_list import read_class_file
from vlprompt.experiments.export.formats import FORMATS, ExportOptions, export_prompt
from vlprompt.experiments.export.whole_folder import write_whole_folder
from vlprompt.experiments.learned.decision import Decision
from vlprompt.experiments.learned.model_folder import save_prompt
from vlprompt.experiments.learned.prompt import LearnedPrompt
from vlprompt.experiments.learned.state import LearnedState
from vlprompt.experiments.provenance import describe_learned_state
from vlprompt.layers.heads import LinearHead
from vlprompt.methods import Linear
from vlprompt.runtime.seeding import make_generator
from vlprompt.testing.images import build_digits_lesson

ZERO_SHOT = {"name": "zero_shot", "template": "a photo of a {name}.", "descriptions": None}


@pytest.fixture(scope="module")
def lesson():
    return build_digits_lesson()


def begun(settings, backbone, lesson):
    """A prompt whose parameters are all moved a little, so that it shows where one was left out."""
    method = build_method(settings, backbone)
    method.begin_lesson(lesson, make_generator(0))
    draw = make_generator("moved")
    for p in method.parameters():
        p.data += 0.05 * torch.randn(p.shape, generator=draw)
    config = {"backbone": backbone.spec, "method": describe(method), "task": {"name": "few_shot"}}
    facts = describe_learned_state(find_input_tower(backbone).key, [lesson], config)
    return LearnedPrompt(method, LearnedState(method.state_dict(), facts, "runs/x"))


@pytest.fixture(scope="module")
def model_folder(lesson, tmp_path_factory):
    """A model folder of a zero-shot CLIP, with a decision."""
    facts = {"config": {"train": {}, "seed": 1}}
    prompt = begun(ZERO_SHOT, build_tiny_clip(), lesson).with_decision(Decision(1.7, "msp", 0.4))
    metadata = {**prompt.state.metadata, "config": {**facts["config"], **prompt.state.config}}
    prompt = LearnedPrompt(prompt.method, replace(prompt.state, metadata=metadata))
    save_prompt(prompt, tmp_path_factory.mktemp("saved") / "model", license="mit")
    return next(tmp_path_factory.getbasetemp().glob("saved*/model"))


def answers(prompt, lesson):
    batch = build_images(lesson.train.items, [None] * len(lesson.train))
    return find_input_tower(prompt.method.backbone)(batch), prompt.answer(lesson.train.items)


def test_the_decision_of_a_model_folder(model_folder, lesson, tmp_path):
    """Class matrix, temperature and threshold give what the prompt gives."""
    from vlprompt import load_prompt

    export_prompt(model_folder, tmp_path / "x", "classes")
    facts, saved = json.loads((tmp_path / "x/classes.json").read_text()), np.load(tmp_path / "x/classes.npz")
    features, expected = answers(load_prompt(model_folder), lesson)
    x = torch.nn.functional.normalize(features).numpy()
    logits = torch.from_numpy(saved["scale"] * x @ saved["matrix"].T + saved["bias"])
    probabilities = (logits / facts["temperature"]).softmax(1)
    assert facts["temperature"] == 1.7
    assert torch.allclose(probabilities, expected.probabilities, atol=1e-5)
    assert facts["unknown"] == {"score": "msp", "threshold": 0.4}


def test_the_decision_beside_a_model_of_timm(lesson, tmp_path):
    linear = begun({"name": "linear", "head": {"name": "linear"}, "solver": "fit"}, build_tiny_clip(), lesson)
    lines = FORMATS["timm"].load()(linear.with_decision(Decision(2.0, "energy", 0.5)), tmp_path / "x", ExportOptions())
    assert "divide its logits by the temperature in" in lines[-1]
    facts = json.loads((tmp_path / "x/decision.json").read_text())
    assert facts == {"temperature": 2.0, "score": "energy", "threshold": 0.5}
    FORMATS["timm"].load()(linear.with_decision(Decision(2.0)), tmp_path / "warm", ExportOptions())
    assert json.loads((tmp_path / "warm/decision.json").read_text())["temperature"] == 2.0
    FORMATS["timm"].load()(linear, tmp_path / "plain", ExportOptions())
    assert not (tmp_path / "plain/decision.json").exists()


@pytest.mark.parametrize("begins", [0.0, 1e-3])
def test_a_barely_trained_bottleneck_is_no_matrix(begins, lesson, tmp_path):
    """Its logits differ from linear ones by less than the tolerance of exports, and only where it was trained."""
    backbone = load_pixels("4", "cpu")
    settings = {"name": "dann", "head": {"name": "linear"}, "bottleneck_dim": 4, "discriminator_dim": 4}
    prompt = begun(settings, backbone, lesson)
    for p in prompt.method.adapter.parameters():
        p.data *= begins
    if not begins:
        FORMATS["classes"].load()(prompt, tmp_path / "x", ExportOptions())
        assert (tmp_path / "x/classes.npz").exists()
        return
    with pytest.raises(ValueError, match="its logits are no linear function of the image feature"):
        FORMATS["classes"].load()(prompt, tmp_path / "x", ExportOptions())


class CoarseHead(LinearHead):
    """A head that computes in float32 whatever it is given."""

    def forward(self, features, prepared):
        return super().forward(features.float(), prepared)


def test_a_linear_method_of_float32_is_a_matrix(lesson, tmp_path):
    pixels = load_pixels("4", "cpu")
    prompt = begun({"name": "linear", "head": {"name": "linear"}, "solver": "fit"}, pixels, lesson)
    method = Linear(pixels.image, CoarseHead())
    method.begin_lesson(lesson, make_generator(0))
    [line] = FORMATS["classes"].load()(LearnedPrompt(method, prompt.state), tmp_path / "x", ExportOptions())
    assert "wrote 10 classes" in line


def test_the_nearest_format_has_a_place_for_it(lesson, tmp_path):
    """A CLIP that open_clip has no plain form for is not sent there."""
    clip = build_tiny_clip(text_cfg={"no_causal_mask": True})
    prompt = begun({"name": "clip_lora"}, clip, lesson)
    for to in ("classes", "open_clip"):
        with pytest.raises(ValueError, match=r"Export it --to onnx or torch\.$"):
            FORMATS[to].load()(prompt, tmp_path / "x", ExportOptions())


def test_what_pads_a_text_is_unseen(lesson, tmp_path):
    """A CLIP of transformers pads with the end of a text."""
    clip = build_tiny_clip()
    clip.text.tokenizer = replace(clip.text.tokenizer, pad_id=clip.text.tokenizer.end_ids[0])
    FORMATS["open_clip"].load()(begun(ZERO_SHOT, clip, lesson), tmp_path / "x", ExportOptions())
    clip.text.tokenizer = replace(clip.text.tokenizer, encode=lambda text: [5] * len(text.split()))
    with pytest.raises(ValueError, match="its tokenizer is not the byte-pair tokenizer of CLIP"):
        FORMATS["open_clip"].load()(begun(ZERO_SHOT, clip, lesson), tmp_path / "y", ExportOptions())


@pytest.mark.parametrize("to", ["classes", "open_clip", "torch", pytest.param("onnx", marks=pytest.mark.slow)])
def test_a_full_disk_leaves_nothing(to, model_folder, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # the bytes that a file may have
    try:
        with pytest.raises(OSError, match=r"export: expected a folder that can be written, got .*Free space"):
            export_prompt(model_folder, tmp_path / "new/folder", to)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_folders_that_are_there(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    monkeypatch.chdir(tmp_path / "empty")
    for folder in (tmp_path / "link", tmp_path / "empty", type(tmp_path)()):
        with write_whole_folder(folder) as temporary:
            (temporary / "a").write_text("a")
            assert os.listdir(tmp_path / "empty") != ["a"]
        assert os.listdir() == ["a"]  # the shell's folder is the same one
        os.unlink("a")
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("is_there", [True, False])
def test_two_exports_into_one_folder(is_there, tmp_path):
    folder = tmp_path / "x"
    if is_there:
        folder.mkdir()

    def write_after_another():
        with write_whole_folder(folder) as temporary:
            (temporary / "a").write_text("mine")
            folder.mkdir(exist_ok=True)
            (folder / "a").write_text("another's")

    with pytest.raises(OSError, match=r"a new or empty folder, got .*another command has written meanwhile"):
        write_after_another()
    assert (folder / "a").read_text() == "another's"
    assert [path.name for path in (*tmp_path.iterdir(), *folder.iterdir())] == ["x", "a"]


def test_folders_that_can_not_be(model_folder, tmp_path, capsys):
    (tmp_path / "file").write_text("text")
    for folder in (tmp_path / "file/x", tmp_path / ("n" * 300)):
        with pytest.raises(SystemExit, match="2"):
            main(["export", str(model_folder), str(folder), "--to", "classes"])
        assert "export: expected a folder that can be written, got '" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "file").read_text() == "text"


def test_class_names_of_any_kind(model_folder, tmp_path):
    names = ["a,b", "Ærø\u2028sea", "日本語", "tab\x0bx", "three"]
    (tmp_path / "names.txt").write_text("\r\n".join(names) + "\r\n", "utf-8", newline="")
    assert list(read_class_file(tmp_path / "names.txt")) == names
    export_prompt(model_folder, tmp_path / "x", "classes", ExportOptions(read_class_file(tmp_path / "names.txt")))
    facts = json.loads((tmp_path / "x/classes.json").read_text("utf-8"))
    assert facts["names"] == names
    assert facts["ids"] == [*names[:4], "3"]
    assert np.load(tmp_path / "x/classes.npz")["names"].tolist() == names
    export_prompt(model_folder, tmp_path / "one", "classes", ExportOptions(("only",)))
    assert np.load(tmp_path / "one/classes.npz")["matrix"].shape == (1, 64)


@pytest.mark.parametrize("to", ["classes", "torch"])
def test_a_class_by_its_name_and_its_id(to, model_folder, tmp_path):
    with pytest.raises(ValueError, match=r"each class once, got 'three' and '3', which are the same class. Remove"):
        export_prompt(model_folder, tmp_path / "x", to, ExportOptions(("three", "cat", "3")))
