"""Learned prompts in other programs: what each format gives there, and the refusal where it has no place."""
# ruff: noqa: F811  # fixtures are imported

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import small_models
import torch
from conformance import IMAGE_METHODS, REFUSED_BY_EXPORT, build_case, clip  # noqa: F401  # fixtures
from PIL import Image

from vlprompt.backbones import load_backbone
from vlprompt.backbones.glyph import build_tiny_clip
from vlprompt.cli.app import main
from vlprompt.config.build import build_method
from vlprompt.config.describe import describe
from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName
from vlprompt.core.images import Preprocessing, build_images
from vlprompt.core.stage import Lesson
from vlprompt.core.towers import find_input_tower, with_preprocessing
from vlprompt.data.images.decoding import build_memory_item
from vlprompt.experiments.export.formats import FORMATS, ExportOptions
from vlprompt.experiments.learned.prompt import LearnedPrompt
from vlprompt.experiments.learned.state import LearnedState
from vlprompt.experiments.provenance import describe_learned_state
from vlprompt.methods import PromptStyler
from vlprompt.runtime.seeding import make_generator
from vlprompt.tasks import Domain
from vlprompt.testing.images import build_digits_lesson

pytestmark = pytest.mark.filterwarnings("ignore:no confident pseudo-label for")  # a random CLIP knows no digits
TEXTS, WEIGHTS = {"classes", "open_clip"}, {"open_clip", "timm"}
EXPORTS = {  # the other methods on images: none of these formats
    **dict.fromkeys(("bitfit", "full", "lora", "lora_fa", "partial", "ssf"), WEIGHTS),
    **dict.fromkeys(("atprompt", "clap", "coop", "cross_modal", "dapl", "entropy", "kgcoop", "nearest_mean"), TEXTS),
    **dict.fromkeys(("prograd", "taskres", "tcp", "upl", "zero_shot", "gda", "lpplus"), TEXTS),
    **dict.fromkeys(("locoop", "nlprompt", "promptstyler"), TEXTS),
    **dict.fromkeys(("inflora", "sdlora"), WEIGHTS),
    "clip_lora": {"open_clip"},
    "clip_svd": {"open_clip"},
    "two_stage": {"open_clip"},
    "simplecil": TEXTS,
    "slca": WEIGHTS,
    "linear": TEXTS | WEIGHTS,
}
TWINS = (  # another method takes the same ways
    *("atprompt", "entropy", "kgcoop", "prograd", "upl", "clap", "taskres", "zero_shot", "dapl"),
    *("lora", "full", "partial", "s_prompts", "tip_adapter", "ranpac", "nearest_mean", "cross_modal"),
    *("simplecil", "aper", "fecam", "slca", "slcapp"),
    *("lpplus", "ape", "proker"),
    *("inflora", "sdlora", "lae", "hideprompt"),
    *("lora_fa", "bitfit", "adapter", "convpass", "coda_prompt", "dualprompt", "ivlp", "maple", "promptsrc"),
)


@pytest.fixture(scope="module")
def lesson():
    return build_digits_lesson()


def pictures(n=5):
    draw = np.random.default_rng(7)
    return [Image.fromarray(draw.integers(0, 256, (40, 50 + i, 3), dtype=np.uint8)) for i in range(n)]


def as_images():
    items = [build_memory_item(picture) for picture in pictures()]
    return build_images(items, [None] * len(items))


def shaken(method):
    """All that is trained moved, so that it shows where some of it was left out."""
    draw = make_generator("shaken")
    for p in method.parameters():
        p.data += 0.05 * torch.randn(p.shape, generator=draw)
    return method


def as_prompt(method, lesson, backbone="glyph/random"):
    config = {"backbone": backbone, "method": describe(method)}
    facts = describe_learned_state(find_input_tower(method.backbone).key, [lesson], config)
    return LearnedPrompt(method, LearnedState(method.state_dict(), facts, "runs/x"))


def by_matrix(folder, features):
    """As a reader of classes.npz computes it, by NumPy alone."""
    with np.load(folder / "classes.npz") as saved:
        x = features.numpy()
        if saved["normalize_images"]:
            x = x / np.linalg.norm(x, axis=1, keepdims=True)
        return torch.from_numpy(saved["scale"] * x @ saved["matrix"].T + saved["bias"])


def by_classes(folder, prompt):
    return by_matrix(folder, find_input_tower(prompt.method.backbone)(as_images()))


def by_open_clip(folder, prompt):
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    with torch.no_grad():
        return by_matrix(folder, model.eval().encode_image(torch.stack([preprocess(p) for p in pictures()])))


def by_timm(folder, prompt):
    import timm
    from timm.data import create_transform, resolve_data_config

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config(model=model))
    with torch.no_grad():
        return model(torch.stack([transform(p) for p in pictures()]))


READERS = {"classes": by_classes, "open_clip": by_open_clip, "timm": by_timm}


def gives_its_logits(to, folder, prompt, names=None):
    with torch.no_grad():
        expected = prompt.method(as_images(), prompt.prepare(names)).logits
    return (READERS[to](folder, prompt) - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)


def write(prompt, to, folder, **options):
    return FORMATS[to].load()(prompt, folder, ExportOptions(**options))


def refusal(prompt, to, folder):
    """The message of a refusal, which leaves nothing behind."""
    with pytest.raises(ValueError, match=f"^--to {to}: expected ") as refused:
        write(prompt, to, folder)
    assert not folder.exists()
    return str(refused.value)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in TWINS else ()) for n in IMAGE_METHODS])
def test_each_method_gives_its_logits_elsewhere_or_is_refused(name, build_case, clip, lesson, tmp_path):
    prompt, exports = as_prompt(shaken(build_case(name).train()[0]), lesson), EXPORTS.get(name, set())
    for to in READERS:
        if to in exports:
            write(prompt, to, tmp_path / to)
            assert gives_its_logits(to, tmp_path / to, prompt)
            continue
        message = refusal(prompt, to, tmp_path / to)
        assert f"got {name}: " in message
        if name in REFUSED_BY_EXPORT:
            assert "No format can" in message
            continue
        [nearest] = re.findall(r"Export it --to ([a-z_, ]+)\.$", message)
        named = set(re.split(r", | or ", nearest))
        assert named <= {*FORMATS, "onnx", "torch"} - {to}
        assert named & READERS.keys() <= exports  # none that refuses it too
    assert not list(tmp_path.glob(".*"))


def test_the_reason_is_what_was_observed(build_case, clip, lesson, tmp_path):
    reasons = {
        "cocoop": "its class texts depend on the image",
        "vpt": "what it has learned is in the image tower",
        "tip_adapter": "its logits are no linear function of the image feature",
        "side_tuning": "it reads more of an image than the pooled feature",
    }
    for name, reason in reasons.items():
        prompt = as_prompt(build_case(name).trained, lesson)
        assert f"got {name}: {reason}. Export it --to onnx or torch." in refusal(prompt, "classes", tmp_path / name)


def test_a_classifier_of_styles_that_saw_no_image(clip, tmp_path):
    """PromptStyler as it is run: a lesson without images, and the matrix is what it learned."""
    [stage] = Domain(source="none", target="digits", setting="generalise").stages()
    method = PromptStyler(clip, n_styles=3, style_steps=2, epochs=2)
    method.begin_lesson(stage.lesson, make_generator(1))
    prompt = as_prompt(method, stage.lesson)
    for to in ("classes", "open_clip"):
        write(prompt, to, tmp_path / to)
        assert gives_its_logits(to, tmp_path / to, prompt)
    with np.load(tmp_path / "classes" / "classes.npz") as saved:
        assert saved["matrix"].shape[0] == 10
    assert "its answer is a cosine" in refusal(prompt, "timm", tmp_path / "timm")


def test_the_classes_say_what_they_are(build_case, clip, lesson, tmp_path):
    from safetensors import safe_open

    prompt = as_prompt(shaken(build_case("coop").train()[0]), lesson)
    prompt = prompt.with_decision(replace(prompt.decision, temperature=1.5))
    [line] = write(prompt, "classes", tmp_path)
    assert "scale * x / |x| @ matrix.T + bias" in line
    facts = json.loads((tmp_path / "classes.json").read_text())
    assert facts["names"][:2] == ["zero", "one"]
    assert facts["ids"] == [str(i) for i in range(10)]
    assert facts["temperature"] == 1.5
    assert facts["backbone_key"] == clip.image.key
    assert facts["preprocessing"]["size"] == [32, 32]
    assert facts["scale"] == pytest.approx(clip.scale, rel=1e-6)
    with safe_open(str(tmp_path / "classes.safetensors"), "np") as file:
        matrix = file.get_tensor("matrix")
    with np.load(tmp_path / "classes.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["matrix"], matrix)
        assert list(arrays["names"]) == facts["names"]
    assert np.allclose(np.linalg.norm(matrix, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("to", ["classes", "open_clip"])
def test_other_class_names_where_the_method_reads_names(to, build_case, clip, lesson, tmp_path):
    prompt = as_prompt(shaken(build_case("coop").train()[0]), lesson)
    write(prompt, to, tmp_path / to, classes=("snow leopard", "three"))
    names = (ClassName("snow leopard", template=lesson.train.names[0].template), lesson.train.names[3])
    assert gives_its_logits(to, tmp_path / to, prompt, names)
    assert json.loads((tmp_path / to / "classes.json").read_text())["ids"] == ["snow leopard", "3"]


@pytest.mark.parametrize("to", READERS)
def test_classes_that_the_head_never_met(to, build_case, clip, lesson, tmp_path):
    prompt = as_prompt(build_case("linear").trained, lesson)
    with pytest.raises(ValueError, match="no weights for class 'snow leopard'"):
        write(prompt, to, tmp_path / to, classes=("snow leopard", "three"))
    write(prompt, to, tmp_path / to, classes=("three", "one"))
    assert gives_its_logits(to, tmp_path / to, prompt, (lesson.train.names[3], lesson.train.names[1]))


def begun_on(backbone, settings, lesson):
    method = build_method(settings, backbone)
    method.begin_lesson(replace(lesson, train=lesson.train.select_classes(range(4))), make_generator(0))
    return as_prompt(shaken(method), replace(lesson, train=lesson.train.select_classes(range(4))), backbone.spec)


LINEAR = {"name": "linear", "head": {"name": "linear"}, "solver": "fit"}
LORA = {"name": "lora", "head": {"name": "linear"}, "rank": 2, "sites": ["q", "v", "up"]}
SSF = {"name": "ssf", "head": {"name": "linear"}}


@pytest.mark.parametrize(
    ("spec", "settings"),
    [
        ("timm:test_vit/random", SSF),
        ("timm:test_vit/random", {"name": "full", "head": {"name": "linear"}}),
        ("timm:test_vit3/random", LORA),  # pooled by attention
        ("timm:test_vit4/random", LORA),
        ("timm:test_resnet/random", LINEAR),
        pytest.param("timm:test_vit2/random", SSF, marks=pytest.mark.slow),
        pytest.param("timm:vit_tiny_patch16_224/random", LORA, marks=pytest.mark.slow),
        ("glyph-vit/random", SSF),
        ("glyph", LORA),
    ],
)
def test_towers_in_timm(spec, settings, lesson, tmp_path):
    prompt = begun_on(load_backbone(spec, "cpu"), settings, lesson)
    write(prompt, "timm", tmp_path / "timm")
    assert gives_its_logits("timm", tmp_path / "timm", prompt)
    assert json.loads((tmp_path / "timm/config.json").read_text())["label_names"] == ["zero", "one", "two", "three"]


@pytest.mark.parametrize(("spec", "size"), [("glyph/random", (48, 48)), ("timm:test_vit/random", (96, 96))])
def test_another_size_of_images(spec, size, lesson, tmp_path):
    backbone = load_backbone(spec, "cpu")
    backbone = with_preprocessing(backbone, Preprocessing(size, (0.4,) * 3, (0.2,) * 3, "bilinear"))
    prompt = begun_on(backbone, LORA, lesson)
    for to in ("open_clip", "timm")[spec != "glyph/random" :]:
        write(prompt, to, tmp_path / to)
        assert gives_its_logits(to, tmp_path / to, prompt)


def test_the_text_tower_in_open_clip_has_learned_too(build_case, clip, lesson, tmp_path):
    import open_clip

    prompt = as_prompt(shaken(build_case("clip_lora").train()[0]), lesson)
    write(prompt, "open_clip", tmp_path / "x")
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'x'}")
    texts = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'x'}")([f"a photo of a {n}." for n in prompt.names])
    with torch.no_grad():
        features, frozen = model.eval().encode_text(texts), clip.text([f"a photo of a {n}." for n in prompt.names])[0]
        learned = prompt.prepare()
    assert (features - learned).abs().max() <= 1e-5 * learned.abs().max()
    assert (features - frozen).abs().max() > 1e-3


def test_a_cosine_head_is_no_head_of_timm(clip, lesson, tmp_path):
    prompt = begun_on(clip, {**LORA, "head": {"name": "texts", "template": None}}, lesson)
    assert "Export it --to open_clip, onnx or torch." in refusal(prompt, "timm", tmp_path / "timm")
    write(prompt, "open_clip", tmp_path / "open_clip")
    assert gives_its_logits("open_clip", tmp_path / "open_clip", prompt)


def test_an_image_tower_alone_is_no_clip(lesson, tmp_path):
    prompt = begun_on(load_backbone("glyph-vit/random", "cpu"), LORA, lesson)
    message = refusal(prompt, "open_clip", tmp_path / "x")
    assert "its backbone glyph-vit/random has no texts. Export it --to timm, onnx or torch." in message


def test_another_clip_than_two_plain_transformers(lesson, tmp_path):
    backbone = build_tiny_clip(vision_cfg={"layers": [1, 1, 1, 1], "width": 16, "head_width": 64})  # a ResNet
    prompt = begun_on(backbone, {"name": "zero_shot", "template": None, "descriptions": None}, lesson)
    message = refusal(prompt, "open_clip", tmp_path / "x")
    assert "its image tower is no ViT with known blocks. Export it --to classes, onnx or torch." in message
    write(prompt, "classes", tmp_path / "classes")
    assert gives_its_logits("classes", tmp_path / "classes", prompt)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    words = ["run", "coop", "digits", "--backbone", "glyph/random", "--shots", "1", "train.epochs=1", "method.n_ctx=2"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "-o", str(folder)])
    assert ended.value.code == 0
    [run] = folder.glob("coop-*")
    return run


def command(run, capsys, *words, status=0):
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["export", str(run), *map(str, words)])
    seen = capsys.readouterr()
    assert ended.value.code == status, seen.err
    return " ".join((seen.out + seen.err).split())


def test_the_command(run_folder, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("\ufeffsnow leopard\r\nred panda\n", "utf-8")
    words = "--to", "classes", "--classes", tmp_path / "names.txt"
    assert "wrote 2 classes x 64" in command(run_folder, capsys, tmp_path / "matrix", *words)
    facts = json.loads((tmp_path / "matrix/classes.json").read_text())
    assert facts["names"] == ["snow leopard", "red panda"]
    assert "a new or empty folder" in command(run_folder, capsys, tmp_path / "matrix", *words, status=2)
    assert "expected one of classes, open_clip" in command(run_folder, capsys, tmp_path / "x", "--to", "tf", status=2)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "No such file"),
        (b"", "expected class names, got none in"),
        (b" \n\n", "expected class names, got none in"),
        (b"cat\n\ndog\n", "got a blank line 2 in"),
        (b"cat\ndog\n cat\n", "got 'cat' in lines 1 and 3 of"),
        (b"\xff\xfe\x00", "expected a text file of class names"),
    ],
)
def test_a_file_of_classes_that_is_wrong(content, expected, run_folder, tmp_path, capsys):
    if content is not None:
        (tmp_path / "names.txt").write_bytes(content)
    words = "--to", "classes", "--classes", tmp_path / "names.txt"
    message = command(run_folder, capsys, tmp_path / "x", *words, status=2)
    assert message.startswith("error: --classes: expected ")
    assert expected in message
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("option", "to"), [("--int8", "classes"), ("--int8", "open_clip"), ("--classes", "peft")])
def test_an_option_that_the_format_does_not_read(option, to, run_folder, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("cat\n")
    words = [option, tmp_path / "names.txt"] if option == "--classes" else [option]
    message = command(run_folder, capsys, tmp_path / "x", "--to", to, *words, status=2)
    assert f"{option}: expected a format that reads it (" in message
    assert f"got --to {to}. Leave {option} out." in message


def test_a_prompt_of_a_language_model(tmp_path):
    folder = small_models.written("gpt2", tmp_path / "lm")
    lm = load_backbone(f"hf:{folder}", "cpu")
    settings = {"name": "lora", "head": {"name": "linear"}, "rank": 2, "sites": ["q"]}
    texts = Lesson(Split((), (), (ClassName("good"), ClassName("bad"))))
    method = build_method(settings, lm)
    method.begin_lesson(texts, make_generator(0))
    for to in READERS:
        message = refusal(as_prompt(method, texts, lm.spec), to, tmp_path / to)
        assert "it reads texts, not images. Export it --to peft or transformers." in message
