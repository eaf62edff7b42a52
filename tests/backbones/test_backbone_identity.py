"""What tells backbones apart: weights, architecture, activation and preprocessing, but no name and no place."""

import hashlib
import json
import shutil

import open_clip
import pytest
import small_models
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from vlprompt.backbones import load

CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 40, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def identity(backbone):
    return getattr(backbone, "image", backbone).key.partition("#")[2]


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """Two configurations of open_clip that differ in the activation, and a file with weights of either."""
    root = tmp_path_factory.mktemp("twins")
    for name, changes in (("twin-j", {}), ("twin-j-quickgelu", {"quick_gelu": True})):
        (root / f"{name}.json").write_text(json.dumps(CONFIG | changes))
        open_clip.add_model_config(root / f"{name}.json")
    torch.manual_seed(3)
    save_file(open_clip.create_model("twin-j").state_dict(), root / "w.safetensors")
    return root / "w.safetensors"


@pytest.fixture
def few(tmp_path):
    for i, name in enumerate(("dark", "light")):
        (tmp_path / "few" / name).mkdir(parents=True)
        for j in range(3):
            Image.new("RGB", (32, 32), (200 * i + 9 * j,) * 3).save(tmp_path / "few" / name / f"{j}.png")
    return tmp_path / "few"


@pytest.mark.slow
def test_another_model_of_the_same_weights_is_refused(type_in, few, tmp_path):
    torch.manual_seed(1)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=12)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    shutil.copy(tmp_path / "w.safetensors", tmp_path / "moved.safetensors")
    words = [
        "run",
        "nearest_mean",
        few,
        "--shots",
        "1",
        "--backbone",
        f"timm:vit_tiny_patch16_224@{tmp_path}/w.safetensors",
    ]
    code, text = type_in(*words)
    assert code == 0, text
    [folder] = (tmp_path / "runs").iterdir()
    for other in ("deit_tiny_patch16_224", "vit_tiny_patch16_384"):
        code, text = type_in("eval", folder, few, "--backbone", f"timm:{other}@{tmp_path}/w.safetensors")
        assert code == 2, text
        assert "--backbone: expected the architecture, activation, image size and preprocessing that" in text
        assert f"got timm:{other}@" in text
        assert "Name the same model" in text
    code, text = type_in("eval", folder, few, "--backbone", f"timm:vit_tiny_patch16_224@{tmp_path}/moved.safetensors")
    assert code == 0, text


def test_pixels_of_another_size_are_another_backbone(type_in, few, tmp_path):
    assert type_in("run", "nearest_mean", few, "--shots", "1", "--backbone", "pixels:8")[0] == 0
    [folder] = (tmp_path / "runs").iterdir()
    code, text = type_in("eval", folder, few, "--backbone", "pixels:16")
    assert code == 2
    assert "expected the architecture, activation, image size" in text
    assert type_in("eval", folder, few, "--backbone", "pixels")[0] == 0


def test_the_key_knows_the_activation(twins):
    with pytest.warns(UserWarning, match="activation GELU"):
        plain = load(f"open_clip:twin-j@{twins}", "cpu")
    quick = load(f"open_clip:twin-j-quickgelu@{twins}", "cpu")
    weights = [identity(clip).partition(".")[0] for clip in (plain, quick)]
    assert weights[0] == weights[1]
    assert identity(plain) != identity(quick)
    random = [load(f"open_clip:{name}/random", "cpu") for name in ("twin-j", "twin-j-quickgelu")]
    assert identity(random[0]) != identity(random[1])


def test_a_file_that_does_not_say_its_activation_is_warned_of(type_in, twins, few, tmp_path):
    code, text = type_in("run", "zero_shot", few, "--shots", "1", "--backbone", f"open_clip:twin-j@{twins}")
    assert code == 0, text
    assert f"activation GELU, as open_clip:twin-j@{twins} says" in text
    assert f"open_clip:twin-j-quickgelu@{twins}" in text
    [folder] = (tmp_path / "runs").iterdir()
    code, text = type_in("eval", folder, few, "--backbone", f"open_clip:twin-j-quickgelu@{twins}")
    assert code == 2, text
    assert "expected the architecture, activation" in text


@pytest.mark.parametrize(("is_quick", "length"), [(True, 64), (True, 8), (False, 8)])
def test_published_files_are_known_by_their_hash(twins, is_quick, length, monkeypatch, recwarn):
    from vlprompt.backbones.open_clip import activations

    digest = hashlib.sha256(twins.read_bytes()).hexdigest()[:length]
    address = f"https://a.b/models/{digest}/x.pt" if length == 64 else f"https://a.b/x-{digest}.pt"
    config = {"url": address, "quick_gelu": is_quick}
    monkeypatch.setattr("open_clip.pretrained.list_pretrained_tags_by_model", lambda name: ["t"])
    monkeypatch.setattr("open_clip.list_pretrained_tags_by_model", lambda name: ["t"])
    monkeypatch.setattr("open_clip.pretrained.get_pretrained_cfg", lambda name, tag: config)
    assert activations.find_activation("twin-j", twins) is is_quick
    for spec in (f"open_clip:twin-j@{twins}", f"open_clip:twin-j/t@{twins}"):
        clip = load(spec, "cpu")
        assert type(clip.text.blocks[0].act).__name__ == ("function" if is_quick else "GELU")
    assert not [w for w in recwarn if "activation" in str(w.message)]
    if is_quick:
        load(f"open_clip:twin-j-quickgelu@{twins}", "cpu")
    else:
        with pytest.raises(ValueError, match="expected a model with GELU, got twin-j-quickgelu with QuickGELU"):
            load(f"open_clip:twin-j-quickgelu@{twins}", "cpu")


def test_home_is_expanded(type_in, twins, few, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(twins, tmp_path / "mine.safetensors")
    (tmp_path / "d.json").write_text(json.dumps({"dark": ["night"], "light": ["day"]}))
    words = ["run", "zero_shot", few, "--shots", "1", "--backbone", "open_clip:twin-j-quickgelu@~/mine.safetensors"]
    code, text = type_in(*words, "method.descriptions=~/d.json")
    assert code == 0, text
    for spec in ("open_clip:local-dir:~/none", "hf_clip:~/none", "hf:~/none"):
        with pytest.raises((OSError, ValueError), match=str(tmp_path)):
            load(spec, "cpu")


def test_random_weights_are_random_in_text_models_of_transformers_too(tmp_path, monkeypatch):
    folder = small_models.written("roberta", tmp_path / "roberta")
    text = {"hf_model_name": str(folder), "hf_tokenizer_name": str(folder), "hf_proj_type": "mlp", "context_length": 40}
    (tmp_path / "roberta-j.json").write_text(json.dumps(CONFIG | {"text_cfg": text}))
    open_clip.add_model_config(tmp_path / "roberta-j.json")
    published = open_clip.create_model("roberta-j").text.transformer.embeddings.word_embeddings.weight
    seen = []
    from vlprompt.backbones.open_clip import weights

    inner = weights.wrap_clip
    monkeypatch.setattr(weights, "wrap_clip", lambda model, *rest: seen.append(model) or inner(model, *rest))
    load("open_clip:roberta-j/random", "cpu")
    assert not torch.equal(seen[0].text.transformer.embeddings.word_embeddings.weight, published)


def test_a_text_model_that_is_not_here_is_named(tmp_path):
    text = {"hf_model_name": str(tmp_path / "none"), "hf_tokenizer_name": str(tmp_path / "none")}
    (tmp_path / "absent-j.json").write_text(json.dumps(CONFIG | {"text_cfg": text}))
    open_clip.add_model_config(tmp_path / "absent-j.json")
    with pytest.raises(OSError, match=r"expected the configuration of its text model .*copy its Hugging Face cache"):
        load("open_clip:absent-j/random", "cpu")


@pytest.mark.slow
def test_a_timm_file_that_does_not_say_its_activation_is_warned_of(tmp_path):
    torch.manual_seed(1)
    save_file(timm.create_model("vit_base_patch32_clip_224", num_classes=0).state_dict(), tmp_path / "w.safetensors")
    with pytest.warns(UserWarning, match=r"activation GELU, as vit_base_patch32_clip_224 says and the file doesn't"):
        plain = load(f"timm:vit_base_patch32_clip_224@{tmp_path / 'w.safetensors'}", "cpu")
    quick = load(f"timm:vit_base_patch32_clip_quickgelu_224@{tmp_path / 'w.safetensors'}", "cpu")
    assert identity(plain) != identity(quick)
