"""Learned image prompts as networks of onnxruntime and torch.export: equal numbers, or a reason and the nearest way."""
# ruff: noqa: F811  # fixtures are imported

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from conformance import IMAGE_METHODS, REFUSED_BY_EXPORT, build_case, clip  # noqa: F401  # fixtures
from open_clip.model import CLIP
from PIL import Image
from shared import images
from written_out import library

from vlprompt import Method, Output, load
from vlprompt.backbones.open_clip.towers import wrap_clip
from vlprompt.backbones.pixels import load_pixels
from vlprompt.config.build import resolve_class
from vlprompt.core.class_names import as_class_name
from vlprompt.core.images import build_images
from vlprompt.data.images.decoding import build_file_item
from vlprompt.data.loading import open_data
from vlprompt.experiments.export.formats import ExportOptions, export_prompt
from vlprompt.experiments.export.network import onnx_file, torch_program
from vlprompt.experiments.export.network.image_model import build_image_model, trace
from vlprompt.experiments.export.network.onnx_file import write_onnx
from vlprompt.experiments.export.network.onnx_runtime import OnnxPrompt, run_session
from vlprompt.experiments.export.network.torch_program import write_program
from vlprompt.experiments.learned.decision import Decision, LabelDecision
from vlprompt.experiments.learned.prompt import LearnedPrompt, load_prompt
from vlprompt.experiments.learned.state import LearnedState
from vlprompt.layers.heads import LinearHead
from vlprompt.methods import Linear, ZeroShot
from vlprompt.runtime.seeding import make_generator
from vlprompt.testing import MethodCase
from vlprompt.testing.images import build_digits_lesson
from vlprompt.testing.stream_checks import build_stream, learn_stream

pytestmark = pytest.mark.filterwarnings("ignore:no confident pseudo-label for")
PLAIN = ExportOptions()
RN = {"vision_cfg": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 16, "patch_size": None}}


@pytest.fixture(scope="module")
def lesson():
    return build_digits_lesson()


def prompt_of(method, name, backbone, names):
    """A learned prompt of a method in memory."""
    stored = [[str(n), n.id, n.template, list(n.words)] for n in map(as_class_name, names)]
    config = {"method": {"name": name}, "task": {"name": "few_shot", "dataset": "nowhere"}, "backbone": backbone.spec}
    return LearnedPrompt(method, LearnedState({}, {"config": config, "backbone_key": "#", "lessons": [stored]}, "here"))


@pytest.fixture(scope="module")
def linear(lesson):
    """A linear head on 8 x 8 pixels, the smallest network."""
    pixels = load_pixels("8", "cpu")
    method = Linear(pixels.image, LinearHead())
    method.begin_lesson(lesson, make_generator(0))
    return prompt_of(method, "linear", pixels, lesson.train.names)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of coop on a tiny random CLIP and real digits, and a picture."""
    from vlprompt.cli.app import main

    root = tmp_path_factory.mktemp("run")
    words = ["run", "coop", "digits", "--backbone", "glyph/random", "--shots", "1", "train.epochs=1", "method.n_ctx=2"]
    with pytest.raises(SystemExit) as left:
        main([*words, "--out", str(root / "runs")])
    assert not left.value.code
    [folder] = (root / "runs").iterdir()
    grey = np.linspace(0, 255, 40 * 25).reshape(40, 25).astype(np.uint8)
    Image.fromarray(np.stack([grey, grey.T.reshape(40, 25), 255 - grey], -1)).save(root / "picture.png")
    return folder, root / "picture.png"


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """The folder of an ONNX file of that run and its lines."""
    folder = tmp_path_factory.mktemp("exported") / "network"
    return folder, export_prompt(run[0], folder, "onnx", ExportOptions(int8=True))


def test_an_onnx_file_answers_as_predict_does(run, exported):
    prompt, network = load_prompt(run[0]), OnnxPrompt(exported[0])
    expected = prompt.answer([build_file_item(run[1])]).probabilities.numpy()
    assert np.abs(network.predict_proba([run[1]]) - expected).max() < 1e-4
    pictures = [Image.open(run[1]).rotate(90 * k, expand=True) for k in range(3)] * 11  # of two batches
    probabilities = network.predict_proba(pictures)
    assert probabilities.shape == (33, 10)
    assert np.abs(probabilities[[0, 30]] - expected).max() < 1e-4
    assert network.predict(pictures) == prompt.predict(pictures)


def test_an_onnx_file_rejects_as_predict_does(run, exported):
    """Below the threshold of each score that logits have."""
    prompt, network = load_prompt(run[0]), OnnxPrompt(exported[0])
    pictures = [Image.open(run[1]).rotate(45 * k, expand=True) for k in range(8)]
    for score, temperature in (("msp", 0.5), ("maxlogit", 1.0), ("energy", 2.0), ("mcm", 1.0)):
        scores = prompt.with_decision(Decision(temperature, score)).answer(prompt.build_items(pictures)).scores
        decision = Decision(temperature, score, float(scores.sort().values[3:5].mean()))
        network.decision = decision
        answers = prompt.with_decision(decision).predict(pictures)
        assert answers.count("unknown") == 4
        assert network.predict(pictures) == answers
    network.decision = Decision(score="gl-mcm", threshold=0.1)
    with pytest.raises(ValueError, match=r"expected a threshold of a score of logits .*got one of gl-mcm. Take pred"):
        network.predict(pictures)


@pytest.mark.parametrize("reading", ["sigmoid", pytest.param("contrastive", marks=pytest.mark.slow)])
def test_networks_give_several_labels_as_the_prompt_does(reading, linear, tmp_path):
    pictures = [Image.fromarray(np.random.default_rng(k).integers(0, 256, (9, 9, 3), np.uint8)) for k in range(8)]
    prompt = linear.with_decision(Decision(labels=LabelDecision(reading)))
    odds = prompt.answer(prompt.build_items(pictures)).probabilities.logit()
    threshold = float(odds.flatten().sort().values[39:41].mean())
    prompt = linear.with_decision(Decision(labels=LabelDecision(reading, threshold, 7)))
    expected = prompt.answer(prompt.build_items(pictures))
    assert int(expected.is_given.sum()) == 40
    write_onnx(prompt, tmp_path / "onnx", PLAIN)
    network = OnnxPrompt(tmp_path / "onnx")
    assert network.decision == prompt.decision
    assert network.predict(pictures) == prompt.predict(pictures)
    assert np.abs(network.predict_proba(pictures) - expected.probabilities.numpy()).max() < 1e-6
    write_program(prompt, tmp_path / "torch", PLAIN)
    program = torch.export.load(tmp_path / "torch" / "model.pt2").module()
    probabilities = program(torch.from_numpy(network.decode(pictures)))[1]
    assert (probabilities - expected.probabilities).abs().max() < 1e-6
    facts = json.loads((tmp_path / "torch" / "model.json").read_text())["labels"]
    assert ((probabilities > facts["probability"]) == expected.is_given).all()


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("classes", "3", "metadata: classes: expected the names of the classes, got 3"),
        ("classes", "not JSON", "metadata: classes: expected the names"),
        ("preprocessing", "{}", "expected a preprocessing with size, mean"),
        ("preprocessing", "[1]", "metadata: preprocessing: expected size"),
        ("temperature", "0", "metadata: temperature: expected a number above 0"),
        ("labels", '{"reading": "louder"}', "metadata: the key 'labels.threshold' is missing"),
    ],
)
def test_metadata_that_another_program_changed(key, value, expected, exported, tmp_path):
    model = onnx.load(exported[0] / "model.onnx")
    onnx.helper.set_model_props(model, {entry.key: entry.value for entry in model.metadata_props} | {key: value})
    onnx.save(model, tmp_path / "changed.onnx")
    with pytest.raises(ValueError, match=f"changed.onnx': {re.escape(expected)}"):
        OnnxPrompt(tmp_path / "changed.onnx")


def test_pixels_of_another_shape(exported):
    with pytest.raises(ValueError, match=r"pixels: expected \[.*, 3, 32, 32\].*got \[1, 3, 8, 8\]"):
        run_session(OnnxPrompt(exported[0]).session, np.zeros((1, 3, 8, 8), np.float32))


@pytest.mark.slow
def test_the_lessons_of_a_stream(lesson, tmp_path):
    """Each image by the head of its own lesson, also where a batch has none of another lesson."""
    pixels = load_pixels("8", "cpu")
    settings = {"head": {"name": "linear"}, "prompt_length": 0, "n_centroids": 1}
    case = MethodCase(resolve_class("method", "s_prompts"), settings, pixels, lesson)
    prompt = prompt_of(learn_stream(case, build_stream(case, True)), "s_prompts", pixels, lesson.train.names)
    write_onnx(prompt, tmp_path / "out", PLAIN)
    batch = build_images(lesson.train.items, [None] * len(lesson.train))
    with torch.no_grad():
        expected = prompt.method(batch, prompt.prepare())
    assert expected.predicted_lesson.unique().tolist() == [0, 1]
    x, session = batch.pixels(pixels.image.preprocessing).numpy(), OnnxPrompt(tmp_path / "out").session
    for rows in (slice(None), slice(0, 1), slice(-1, None)):
        logits = run_session(session, x[rows])[0]
        assert np.allclose(logits, expected.logits[rows].numpy(), rtol=0, atol=1e-5)
        assert np.isinf(logits).any()


def test_the_metadata_of_an_onnx_file(run, exported):
    prompt, network = load_prompt(run[0]), OnnxPrompt(exported[0] / "model.onnx")
    assert network.names == tuple(map(str, prompt.names))
    assert network.preprocessing == prompt.method.backbone.image.preprocessing
    facts = network.metadata
    assert (facts["method"], facts["backbone"]) == ("coop", "glyph/random")
    assert (facts["backbone_key"], facts["template"]) == (prompt.state.backbone_key, "{ctx} {name}.")
    assert (facts["temperature"], facts["threshold"]) == (1.0, None)
    model = onnx.load(exported[0] / "model.onnx")
    assert {o.domain: o.version for o in model.opset_import}[""] == 20
    assert [i.name for i in model.graph.input] == ["pixels"]
    assert [o.name for o in model.graph.output] == ["logits", "probabilities"]
    assert not model.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")


def test_8_bits_say_what_they_lose(exported):
    folder, lines = exported
    network, coarse = OnnxPrompt(folder), OnnxPrompt(folder / "model.int8.onnx")
    loss = coarse.metadata["quantization"]
    assert loss["images"] == "896 test images of digits"
    assert f"{loss['agreement']:.1f}% have the same best class" in lines[-1]
    assert (folder / "model.int8.onnx").stat().st_size < 0.5 * (folder / "model.onnx").stat().st_size
    for name in ("model.onnx", "model.int8.onnx"):
        assert b".py" not in (folder / name).read_bytes(), "a file to publish names no path of this machine"
    test = open_data("digits").test
    pixels = np.stack([item.pixels(network.preprocessing, None).numpy() for item in test.items[:100]])
    ours, theirs = (
        np.concatenate([run_session(n.session, x[None])[0] for x in pixels[::9]]) for n in (network, coarse)
    )
    assert 0 < np.abs(ours - theirs).max() <= loss["max_logit_difference"]
    labels = np.array(test.labels)
    every = np.stack([item.pixels(network.preprocessing, None).numpy() for item in test.items])
    right = 100 * (run_session(network.session, every)[0].argmax(1) == labels).mean()
    assert loss["accuracy_float32"] == pytest.approx(right)


@pytest.mark.slow
def test_a_program_runs_without_vlprompt(linear, tmp_path):
    """In a fresh process, on other batches than it was traced with."""
    prompt = linear.with_decision(Decision(temperature=2.0, threshold=0.3))
    lines = write_program(prompt, tmp_path / "program", PLAIN)
    assert "logits and probabilities of 10 classes" in lines[0]
    pixels = torch.randn(5, 3, 8, 8, generator=make_generator("program"))
    np.save(tmp_path / "pixels.npy", pixels.numpy())
    code = (
        "import sys, numpy as np, torch\n"
        "program = torch.export.load('program/model.pt2').module()\n"
        "out = program(torch.from_numpy(np.load('pixels.npy')))\n"
        "assert 'vlprompt' not in sys.modules\n"
        "np.savez('out.npz', *[t.detach().numpy() for t in out])\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env={"PATH": "/usr/bin:/bin"})
    out = np.load(tmp_path / "out.npz")
    with torch.no_grad():
        expected = prompt.method(images(pixels, "program"), prompt.prepare()).logits
    assert np.abs(out["arr_0"] - expected.numpy()).max() < 1e-5 * float(expected.abs().max())
    assert np.abs(out["arr_1"] - (expected / 2).softmax(1).numpy()).max() < 1e-5
    facts = json.loads((tmp_path / "program/model.json").read_text())
    assert (facts["temperature"], facts["threshold"], facts["classes"][3]) == (2.0, 0.3, "three")


def test_a_context_for_each_image(build_case, clip, lesson):
    """For any number of images, and again in the same process."""
    prompt = prompt_of(build_case("cocoop").trained, "cocoop", clip, lesson.train.names)
    model, names = build_image_model(prompt, PLAIN, "torch")
    programs = [trace(model, prompt, "torch").module() for _ in range(2)]
    pixels = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = prompt.method(images(pixels, "own"), prompt.prepare(names)).logits
    assert all(torch.allclose(program(pixels)[0], expected, atol=1e-4) for program in programs)


@pytest.mark.slow
def test_other_classes(build_case, clip, lesson, linear, tmp_path):
    """Where the method reads names."""
    coop = prompt_of(build_case("coop").trained, "coop", clip, lesson.train.names)
    write_program(coop, tmp_path / "other", ExportOptions(classes=("letter a", "three")))
    assert json.loads((tmp_path / "other/model.json").read_text())["class_ids"] == ["letter a", "3"]
    pixels = torch.randn(4, 3, 32, 32)
    names = coop.resolve_classes(("letter a", "three"))
    with torch.no_grad():
        expected = coop.method(images(pixels, "other"), coop.prepare(names)).logits
    logits, _ = torch.export.load(tmp_path / "other/model.pt2").module()(pixels)
    assert torch.allclose(logits, expected, atol=1e-5)
    with pytest.raises(ValueError, match="linear head: no weights for class 'letter a'"):
        write_program(linear, tmp_path / "no", ExportOptions(classes=("letter a", "three")))


class Counting(Method):
    """A method of a user that counts its inputs, and one that decides by a value."""

    def __init__(self, tower, decides):
        super().__init__()
        self.tower, self.decides = tower, decides

    def forward(self, inputs, prepared):
        features = self.tower(inputs)
        if self.decides and features.mean() > 1e9:
            return Output(-features)
        return Output(features + torch.zeros(len(inputs), 1))


def test_methods_of_users(tmp_path):
    pixels = load_pixels("4", "cpu")
    write_program(prompt_of(Counting(pixels.image, False), "mine:C", pixels, ("a",)), tmp_path / "counts", PLAIN)
    logits, _ = torch.export.load(tmp_path / "counts/model.pt2").module()(torch.zeros(7, 3, 4, 4))
    assert len(logits) == 7
    with pytest.raises(ValueError, match=r"can trace for any number of images, got mine:C .*Use vlprompt predict"):
        write_program(prompt_of(Counting(pixels.image, True), "mine:C", pixels, ("a",)), tmp_path / "no", PLAIN)


class Airy(Linear):
    """A method with a function that ONNX lacks."""

    def compute_features(self, inputs, tower):
        return torch.special.airy_ai(tower(inputs))


@pytest.mark.slow
def test_operations_that_onnx_lacks(lesson, tmp_path):
    pixels = load_pixels("4", "cpu")
    method = Airy(pixels.image, LinearHead())
    method.begin_lesson(lesson, make_generator(0))
    with pytest.raises(ValueError, match=r"operations that ONNX has, got mine:A .*airy_ai.*Take --to torch"):
        write_onnx(prompt_of(method, "mine:A", pixels, lesson.train.names), tmp_path / "out", PLAIN)
    assert list(tmp_path.iterdir()) == []


def test_bfloat16_is_refused_before_onnxruntime(lesson, tmp_path):
    half = load("glyph-bf16", "cpu")
    method = ZeroShot(half)
    method.begin_lesson(lesson, make_generator(0))
    message = (
        r"expected a network in float32, got one on glyph-bf16, .*Take --to torch, or .*float32 backbone \(glyph\)"
    )
    with pytest.raises(ValueError, match=message):
        write_onnx(prompt_of(method, "zero_shot", half, lesson.train.names), tmp_path / "out", PLAIN)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ["onnx", "torch"])
def test_what_is_refused(build_case, clip, lesson, to, tmp_path):
    write = {"onnx": write_onnx, "torch": write_program}[to]
    tpt = prompt_of(build_case("tpt").trained, "tpt", clip, lesson.train.names)
    with pytest.raises(ValueError, match=r"from the pixels alone, got tpt .*can't be augmented.*such as coop"):
        write(tpt, tmp_path / "out", PLAIN)
    tda = prompt_of(build_case("tda").trained, "tda", clip, lesson.train.names)
    with pytest.raises(ValueError, match=r"from the pixels alone, got tda, whose answers depend.*such as coop"):
        write(tda, tmp_path / "out", PLAIN)
    assert list(tmp_path.iterdir()) == []


def test_a_language_model_is_refused(lm, tmp_path):
    method = torch.nn.Module()
    method.backbone = lm("gpt2")
    prompt = prompt_of(method, "lora", method.backbone, ("a",))
    for write in (write_onnx, write_program):
        with pytest.raises(ValueError, match=r"expected a prompt for images, got lora .*--to transformers"):
            write(prompt, tmp_path / "out", PLAIN)


def test_8_bits_of_a_program_are_refused(run, tmp_path):
    with pytest.raises(ValueError, match=r"--int8: expected a format that reads it \(onnx\), got --to torch"):
        export_prompt(run[0], tmp_path / "out", "torch", ExportOptions(int8=True))


@pytest.mark.parametrize(
    ("module", "write"), [(torch_program, write_program), pytest.param(onnx_file, write_onnx, marks=pytest.mark.slow)]
)
def test_a_difference_leaves_nothing(module, write, linear, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_DIFFERENCE", -1.0)
    with pytest.raises(ValueError, match=r"got a (program|network) that differs by"):
        write(linear, tmp_path / "out", PLAIN)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_onnx_file_without_its_data(run, linear, tmp_path):
    lines = write_onnx(linear, tmp_path / "out", PLAIN, max_inline_bytes=1000)
    assert "move both files together" in lines[1]
    expected = OnnxPrompt(tmp_path / "out").predict_proba([run[1]])
    shutil.move(tmp_path / "out", tmp_path / "there")
    assert np.array_equal(OnnxPrompt(tmp_path / "there").predict_proba([run[1]]), expected)
    shutil.copy(tmp_path / "there/model.onnx", tmp_path / "alone.onnx")
    with pytest.raises(ValueError, match=r"alone.onnx': expected its weights in 'model.onnx.data' beside it .*no such"):
        OnnxPrompt(tmp_path / "alone.onnx")
    data = tmp_path / "there/model.onnx.data"
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"expected its weights .*bytes\), got \d+ bytes. Move both"):
        OnnxPrompt(tmp_path / "there")


def test_files_that_are_no_export(exported, run, tmp_path):
    with pytest.raises(ValueError, match="expected an ONNX file, got no such file"):
        OnnxPrompt(tmp_path)
    for content in (run[1].read_bytes(), b"", (exported[0] / "model.onnx").read_bytes()[:5000]):
        (tmp_path / "a.onnx").write_bytes(content)
        with pytest.raises(ValueError, match=r"a.onnx': expected an ONNX file"):
            OnnxPrompt(tmp_path / "a.onnx")
    model = onnx.load(exported[0] / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "plain.onnx")
    with pytest.raises(ValueError, match=r"expected metadata of vlprompt .*got a file without classes"):
        OnnxPrompt(tmp_path / "plain.onnx")
    with pytest.raises(ValueError, match="expected an image, got no such file"):
        OnnxPrompt(exported[0]).predict_proba([tmp_path / "none.png"])


def require_equal(prompt, folder, size):
    """Both formats give the logits of the method, which computes them by its own path."""
    write_program(prompt, folder / "torch", PLAIN)
    write_onnx(prompt, folder / "onnx", PLAIN)
    program = torch.export.load(folder / "torch/model.pt2").module()
    session = OnnxPrompt(folder / "onnx").session
    for n in (1, 3):
        pixels = torch.randn(n, 3, size, size, generator=make_generator("test", n))
        with torch.no_grad():
            expected = prompt.method(images(pixels, f"{folder} {n}"), prompt.prepare()).logits
            ours = program(pixels)[0]
        scale = float(expected[expected.isfinite()].abs().max().clamp(min=1))
        assert torch.allclose(ours, expected, rtol=0, atol=1e-5 * scale)  # infinite ones are equal
        theirs = run_session(session, pixels.numpy())
        assert np.allclose(theirs[0], expected.numpy(), rtol=0, atol=1e-4 * scale)
        assert np.abs(theirs[1] - expected.softmax(1).numpy()).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in IMAGE_METHODS if name not in REFUSED_BY_EXPORT]
)  # those are refused above
def test_every_image_method(name, build_case, clip, lesson, tmp_path):
    require_equal(prompt_of(build_case(name).trained, name, clip, lesson.train.names), tmp_path, 32)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("l2p", "dualprompt", "coda_prompt", "s_prompts", "ranpac", "nearest_mean", "ease", "mos", "tuna"),
        *("aper", "fecam", "slca", "slcapp"),
    ],
)
def test_a_stream_of_two_lessons(name, build_case, clip, lesson, tmp_path):
    case = build_case(name)
    require_equal(prompt_of(learn_stream(case, build_stream(case, True)), name, clip, lesson.train.names), tmp_path, 32)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["texts", "linear"])
def test_an_opaque_tower(head, lesson, tmp_path):
    resnet = wrap_clip(*library(RN, CLIP), "resnet")
    method = ZeroShot(resnet, "a {name}.") if head == "texts" else Linear(resnet.image, LinearHead())
    method.begin_lesson(lesson, make_generator(0))
    prompt = prompt_of(method.eval(), head, resnet, lesson.train.names)
    require_equal(prompt, tmp_path, 64)
    lines = write_onnx(prompt, tmp_path / "int8", ExportOptions(int8=True))
    assert "64 random images (the run's dataset did not open)" in lines[-1]
