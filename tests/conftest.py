"""What several test files share: the golden CLIP, tiny twins, images as values, a folder of real pictures."""

import itertools
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.pop("COLUMNS", None)  # several test processes are given one, and a console keeps that for good

import numpy as np
import pytest
import small_models
import torch
from miniatures import small_jpegs
from PIL import Image
from written_out import double  # noqa: F401  # a fixture

import vlprompt
from vlprompt.backbones.glyph import build_tiny_clip
from vlprompt.backbones.open_clip.towers import wrap_clip
from vlprompt.cli.app import main
from vlprompt.core.images import Images
from vlprompt.results.run_folder import RunFolder, read_runs
from vlprompt.runtime.settings import SETTINGS

LEFT, EACH = TemporaryDirectory(prefix="vlprompt-features-"), itertools.count()
os.environ["VLPROMPT_FEATURE_CACHE"] = LEFT.name  # nothing of the suite goes into the user's cache
torch.set_num_threads(1)  # the passes are tiny: more threads only wait for each other
GOLDEN = Path(__file__).parent / "golden"


def golden(name):
    """The json and the arrays of one golden vector."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return json.loads((GOLDEN / f"{name}.json").read_text()), {k: torch.from_numpy(arrays[k]) for k in arrays.files}


def images(pixels, tag="image"):
    """Pixels (B, 3, h, w) as Images with keys; another view is the same picture, rolled."""
    keys = [f"{tag}/{i}" for i in range(len(pixels))]
    again = lambda kind, k: images(pixels.roll(k + 1, -1), f"{tag}/{kind}{k}")  # noqa: E731
    return Images(lambda look, places: pixels[list(places)], keys, again)


def relative(mine, gold):
    assert mine.shape == gold.shape, (mine.shape, gold.shape)
    mine, gold = mine.detach(), gold.detach()
    return float((mine - gold).abs().max() / gold.abs().max().clamp(min=1e-12))


@pytest.fixture(autouse=True)
def own_features(monkeypatch):
    """No test finds features of another one."""
    monkeypatch.setenv("VLPROMPT_FEATURE_CACHE", f"{LEFT.name}/{next(EACH)}")


@pytest.fixture(autouse=True)
def own_settings():
    """What a command sets for its process goes with the test."""
    before = dict(vars(SETTINGS))
    yield
    vars(SETTINGS).update(before)


@pytest.fixture(scope="session")
def golden_model():
    """open_clip's own CLIP with the golden weights."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    told, weights = golden("clip-tiny")
    config = told["open_clip_config"]
    model = CLIP(
        config["embed_dim"], CLIPVisionCfg(**config["vision_cfg"]), CLIPTextCfg(**config["text_cfg"]), quick_gelu=True
    )
    model.load_state_dict(weights, strict=True)
    return model.eval()


@pytest.fixture(scope="session")
def golden_clip(golden_model):
    from open_clip.tokenizer import SimpleTokenizer

    return wrap_clip(golden_model, SimpleTokenizer(), "golden")


def keep(root, *results):
    """As runs leave them on the disk."""
    for result in results:
        folder = RunFolder(root / f"run{len(list(root.glob('run*')))}")
        with folder.open(result.config):
            folder.finish(result, b"")
    return read_runs(root)[0]


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    made = {}

    def folder(family):
        if family not in made:
            made[family] = small_models.written(family, tmp_path_factory.mktemp("lm") / family)
        return made[family]

    return folder


@pytest.fixture(scope="session")
def lm(folders):
    made = {}

    def model(family):
        if family not in made:
            made[family] = vlprompt.load(f"hf:{folders(family)}", "cpu")
        return made[family]

    return model


@pytest.fixture(scope="session")
def jpegs():
    return small_jpegs()


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Where datasets lie, as the environment says."""
    monkeypatch.setenv("VLPROMPT_DATA", str(tmp_path / "root"))
    return tmp_path / "root"


@pytest.fixture
def tiny():
    return build_tiny_clip()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of real photographs: crops of the two pictures that scikit-learn carries, as two classes of 12."""
    from sklearn.datasets import load_sample_images

    root = tmp_path_factory.mktemp("pictures")
    for name, array in zip(("china", "red_flower"), load_sample_images().images, strict=True):
        (root / name).mkdir()
        for i in range(12):
            y, x = 100 * (i // 4), 150 * (i % 4)
            Image.fromarray(array[y : y + 120, x : x + 140]).save(root / name / f"{i:02}.jpg")
    return root


@pytest.fixture
def type_all(capsys, tmp_path, monkeypatch):
    """Type a command in an empty folder; gives (exit status, what it printed in one line, standard output)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def typed(*words):
        with pytest.raises(SystemExit) as left:
            main([str(w) for w in words])
        printed = capsys.readouterr()
        return left.value.code, " ".join((printed.out + printed.err).split()), printed.out

    return typed


@pytest.fixture
def type_in(type_all):
    """The same; gives (exit status, what it printed in one line)."""
    return lambda *words: type_all(*words)[:2]
