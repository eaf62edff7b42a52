"""What several test files share: the golden CLIP, tiny twins, images as values, a folder of real pictures."""

import copy
import functools
import itertools
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import small_models
import torch
from browsers import browser  # noqa: F401  # a fixture
from miniatures import small_jpegs
from PIL import Image
from written_out import clip_tokenizer, double  # noqa: F401  # double is a fixture

import vlprompt
from vlprompt.backbones.glyph import build_tiny_clip
from vlprompt.backbones.open_clip.towers import wrap_clip
from vlprompt.backbones.timm.blocks import build_timm_tower
from vlprompt.cli.app import main
from vlprompt.core.images import Images, Preprocessing
from vlprompt.layers.frozen_maps import identity
from vlprompt.results.run_folder import RunFolder
from vlprompt.results.run_scan import read_runs
from vlprompt.runtime.settings import SETTINGS

LEFT, EACH = TemporaryDirectory(prefix="vlprompt-features-"), itertools.count()
os.environ["VLPROMPT_FEATURE_CACHE"] = LEFT.name  # nothing of the suite goes into the user's cache
torch.set_num_threads(1)  # the passes are tiny: more threads only wait for each other
OWN_GOLDEN = Path(__file__).parent / "golden"  # twins are built on its models
GOLDEN = Path(os.environ.get("VLPROMPT_GOLDEN") or OWN_GOLDEN)  # other vectors of the same kinds, for the same tests


def golden(name, folder=GOLDEN):
    """The json and the arrays of one golden vector."""
    with np.load(folder / f"{name}.npz") as arrays:
        return json.loads((folder / f"{name}.json").read_text()), {k: torch.from_numpy(arrays[k]) for k in arrays.files}


def golden_cases(*kinds, suits=lambda told: True):
    """The names of all golden vectors of some kinds: what stands before the first hyphen."""
    paths = [path for path in sorted(GOLDEN.glob("*.json")) if path.stem.partition("-")[0] in kinds]
    return [path.stem for path in paths if suits(json.loads(path.read_text()))]


@functools.cache
def golden_model_of(folder):
    """open_clip's own CLIP with the golden weights."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    told, weights = golden("clip-tiny", folder)
    config = told["open_clip_config"]
    model = CLIP(
        config["embed_dim"],
        CLIPVisionCfg(**config["vision_cfg"]),
        CLIPTextCfg(**config["text_cfg"]),
        quick_gelu=told["quick_gelu"],
    )
    model.load_state_dict(weights, strict=True)
    return model.eval()


@functools.cache
def golden_clip_of(folder):
    return wrap_clip(golden_model_of(folder), clip_tokenizer(), "golden")


def golden_vit_of(folder):
    """timm's own ViT with the golden weights."""
    from timm.models.vision_transformer import VisionTransformer

    told, weights = golden("vit-tiny", folder)
    trunk = VisionTransformer(**told["timm_config"], num_classes=0, qkv_bias=True)
    trunk.load_state_dict(weights, strict=True)
    return trunk.eval()


def vit_tower_of(trunk, key):
    """A tower of a copy of a ViT."""
    height, width = trunk.patch_embed.img_size
    frozen = copy.deepcopy(trunk).requires_grad_(False)
    return build_timm_tower(frozen, identity, trunk.embed_dim, Preprocessing((height, width)), key, torch.device("cpu"))


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
    """What twins are written out on."""
    return golden_model_of(OWN_GOLDEN)


@pytest.fixture(scope="session")
def golden_clip():
    return golden_clip_of(OWN_GOLDEN)


@pytest.fixture(scope="session")
def authors_clip():
    """The CLIP on which the authors' code computed the golden vectors."""
    return golden_clip_of(GOLDEN)


@pytest.fixture(scope="session")
def authors_tower():
    """The image tower on which the authors' code computed the golden vectors."""
    return vit_tower_of(golden_vit_of(GOLDEN), "authors-vit")


def keep(root, *results):
    """As runs leave them on the disk."""
    for result in results:
        folder = RunFolder(root / f"run{len(list(root.glob('run*')))}")
        with folder.open(result.config, {}):
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


def run_command(*words):
    """The exit status of `vlprompt WORDS`."""
    with pytest.raises(SystemExit) as exit_info:
        main([str(word) for word in words])
    return exit_info.value.code or 0


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


@pytest.fixture(scope="session")
def slow_method_folder(tmp_path_factory):
    """A folder with the module of a method whose steps take time."""
    from sweep_commands import METHOD

    folder = tmp_path_factory.mktemp("methods")
    (folder / "slow_method.py").write_text(METHOD)
    return folder


@pytest.fixture
def slow_method(slow_method_folder, monkeypatch):
    """Commands can import that module."""
    monkeypatch.setenv("PYTHONPATH", str(slow_method_folder), prepend=os.pathsep)


@pytest.fixture
def type_in(type_all):
    """The same; gives (exit status, what it printed in one line)."""
    return lambda *words: type_all(*words)[:2]
