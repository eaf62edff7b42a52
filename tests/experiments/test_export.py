"""Learned prompts in other programs: what each format gives there, and the refusal where it has no place."""

import re

import numpy as np
import pytest
import torch
from conformance import IMAGE_METHODS, clip, learned, lesson  # noqa: F401  # fixtures
from PIL import Image

from vlprompt.config.describe import describe
from vlprompt.core.images import build_images
from vlprompt.data.images.decoding import build_memory_item
from vlprompt.experiments.export.formats import FORMATS, ExportOptions
from vlprompt.experiments.learned.prompt import LearnedPrompt
from vlprompt.experiments.learned.state import LearnedState
from vlprompt.experiments.provenance import describe_learned_state

pytestmark = pytest.mark.filterwarnings("ignore:no confident pseudo-label for")  # a random CLIP knows no digits
TOWERS_CLASSES = {"classes", "open_clip"}
EXPORTS = {  # of the other methods, none of these formats
    "clap": TOWERS_CLASSES,
    "clip_lora": {"open_clip"},
}
OTHERS = {*FORMATS, "onnx", "torch"}


def pictures(n=5):
    draw = np.random.default_rng(7)
    return [Image.fromarray(draw.integers(0, 256, (40, 50 + i, 3), dtype=np.uint8)) for i in range(n)]


def logits(prompt, names=None):
    items = [build_memory_item(picture) for picture in pictures()]
    with torch.no_grad():
        return prompt.method.eval()(build_images(items, [None] * len(items)), prompt.prepare(names)).logits


def as_prompt(method, lesson, backbone="glyph/random"):  # noqa: F811
    config = {"backbone": backbone, "method": describe(method)}
    key = getattr(method.backbone, "image", method.backbone).key
    return LearnedPrompt(method, LearnedState(method.state_dict(), describe_learned_state(key, [lesson], config), "x"))


def by_matrix(folder, features):
    """As a reader of classes.npz computes it, by NumPy alone."""
    with np.load(folder / "classes.npz") as saved:
        x = features.numpy()
        if saved["normalize_images"]:
            x = x / np.linalg.norm(x, axis=1, keepdims=True)
        return torch.from_numpy(saved["scale"] * x @ saved["matrix"].T + saved["bias"])


def by_classes(folder, prompt):
    items, tower = [build_memory_item(picture) for picture in pictures()], prompt.method.backbone
    tower = getattr(tower, "image", tower)
    return by_matrix(folder, tower(build_images(items, [None] * len(items))))


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


def close(given, prompt, names=None):
    expected = logits(prompt, names)
    return (given - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("name", IMAGE_METHODS)
def test_each_method_gives_its_numbers_elsewhere_or_is_refused(name, learned, lesson, tmp_path):  # noqa: F811
    prompt, exported = as_prompt(learned(name), lesson), set()
    for to, read in READERS.items():
        try:
            FORMATS[to].load()(prompt, tmp_path / to, ExportOptions())
        except ValueError as error:
            assert not (tmp_path / to).exists()
            named = re.findall(r"--to (.*?)\.", str(error).split(": ", 1)[1])
            words = {word for part in named for word in re.split(r", | or ", part)}
            assert (words and words <= OTHERS - {to}) or "No format can" in str(error), error
            assert "dimension" not in str(error), error
            print("REFUSED", name, to, error)
        else:
            exported.add(to)
            assert close(read(tmp_path / to, prompt), prompt), (name, to)
    print("EXPORTED", name, exported)
