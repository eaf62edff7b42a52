"""Image towers without texts: timm's models by tag and file, other input sizes, and runs that stand on them."""

import json
import os
from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from random_twins import PLAIN, shaken, walked
from safetensors.torch import load_file, save_file
from shared import images
from timm.models.vision_transformer import VisionTransformer
from written_out import near

from vlprompt.backbones import load
from vlprompt.core.images import Images, Preprocessing
from vlprompt.core.method import Method
from vlprompt.core.prompt import Prompt
from vlprompt.engine.train_config import TrainConfig
from vlprompt.experiments.events import StepDone
from vlprompt.experiments.learned.prompt import load_prompt
from vlprompt.experiments.runner import run
from vlprompt.layers.heads import LinearHead
from vlprompt.methods import VPT
from vlprompt.tasks import FewShot

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALVES = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def random_of(name, **options):
    torch.manual_seed(7)
    return shaken(timm.create_model(name, num_classes=10, **options))


def features(model, pixels):
    with torch.no_grad():
        return model.forward_head(model.forward_features(pixels), pre_logits=True)


def jax(model):
    """A ViT's weights under the names and in the shapes of Google's files."""
    d, heads = model.embed_dim, model.blocks[0].attn.num_heads
    found = {"cls": model.cls_token, "Transformer/posembed_input/pos_embedding": model.pos_embed}
    found |= {"embedding/kernel": model.patch_embed.proj.weight.permute(2, 3, 1, 0)}
    found |= {"embedding/bias": model.patch_embed.proj.bias, "head/kernel": model.head.weight.T}
    found |= {"head/bias": model.head.bias, "pre_logits/kernel": torch.eye(d), "pre_logits/bias": torch.zeros(d)}
    norms = {"Transformer/encoder_norm": model.norm}
    for i, block in enumerate(model.blocks):
        at = f"Transformer/encoderblock_{i}/"
        norms |= {f"{at}LayerNorm_0": block.norm1, f"{at}LayerNorm_2": block.norm2}
        qkv = zip(block.attn.qkv.weight.chunk(3), block.attn.qkv.bias.chunk(3), strict=True)
        for name, (weight, bias) in zip(("query", "key", "value"), qkv, strict=True):
            found[f"{at}MultiHeadDotProductAttention_1/{name}/kernel"] = weight.T.reshape(d, heads, -1)
            found[f"{at}MultiHeadDotProductAttention_1/{name}/bias"] = bias.reshape(heads, -1)
        found[f"{at}MultiHeadDotProductAttention_1/out/kernel"] = block.attn.proj.weight.T.reshape(heads, -1, d)
        found[f"{at}MultiHeadDotProductAttention_1/out/bias"] = block.attn.proj.bias
        for r, layer in enumerate((block.mlp.fc1, block.mlp.fc2)):
            found[f"{at}MlpBlock_3/Dense_{r}/kernel"] = layer.weight.T
            found[f"{at}MlpBlock_3/Dense_{r}/bias"] = layer.bias
    found |= {f"{name}/{k}": t for name, n in norms.items() for k, t in (("scale", n.weight), ("bias", n.bias))}
    return {name: tensor.detach().numpy() for name, tensor in found.items()}


def mae(model):
    inner = {k: v for k, v in model.state_dict().items() if not k.startswith("head")}
    inner |= {"mask_token": torch.zeros(1, 1, 32), "decoder_pos_embed": torch.zeros(1, 101, 32)}
    inner |= {"decoder_embed.weight": torch.zeros(32, 64), "decoder_blocks.0.norm1.weight": torch.ones(32)}
    return {"model": inner, "epoch": 800, "args": Namespace(mask_ratio=0.75)}


def moco(model, arch="vit_base"):
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("head")}
    found = {f"module.base_encoder.{k}": v for k, v in state.items()}
    found |= {f"module.momentum_encoder.{k}": v + 1 for k, v in state.items()}
    heads = {"base_encoder.head.0.weight", "momentum_encoder.head.0.weight", "predictor.0.weight"}
    found |= {f"module.{name}": torch.zeros(8, model.embed_dim) for name in heads}
    return {"epoch": 300, "arch": arch, "state_dict": found}


def dino(model):
    state = {f"backbone.{k}": v for k, v in model.state_dict().items() if not k.startswith("head")}
    return {"student": {}, "teacher": state | {"head.last_layer.weight_g": torch.ones(4, 1)}}


@pytest.fixture(scope="module")
def vit():
    return random_of("test_vit")


@pytest.fixture(scope="module")
def file(vit, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(vit.state_dict(), path)
    return path


# --- names and files ---


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_vit3", "test_vit4"])
def test_a_file_of_each_layout_is_timms_forward(name, tmp_path):
    model = random_of(name)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    tower = load(f"timm:{name}@{tmp_path / 'w.safetensors'}", "cpu")
    pixels = torch.randn(2, 3, 160, 160)
    found = tower(images(pixels))
    near(found, features(model, pixels), 1e-5)
    assert tower.feature_dim == found.shape[1]
    assert tower.n_parameters == sum(p.numel() for k, p in model.named_parameters() if not k.startswith("head"))
    assert (tower.preprocessing.mean, tower.preprocessing.crop, tower.preprocessing.resize) == (
        HALVES[0],
        0.95,
        "shortest",
    )
    t = torch.randn(1, 5, tower.dim)
    prompted = [tower(images(pixels), Prompt(tokens={0: x})) for x in (t, t.flip(1))]
    near(*prompted, 1e-5)  # no position, so that their order is nothing
    assert not torch.allclose(prompted[0], found)


@pytest.mark.parametrize("pool", ["avgmax", "avg"])
def test_pools_that_read_all_patches(pool):
    torch.manual_seed(0)
    trunk = shaken(VisionTransformer(**PLAIN | {"global_pool": pool, "reg_tokens": 2}))
    pixels = torch.randn(2, 3, 32, 32)
    near(walked(trunk)(images(pixels)), trunk(pixels), 1e-5)


FORMATS = {
    "safetensors": (lambda m, p: save_file(m.state_dict(), p), "w.safetensors", HALVES),
    "state dict": (lambda m, p: torch.save(m.state_dict(), p), "w.bin", HALVES),
    "training": (lambda m, p: torch.save({"state_dict": m.state_dict(), "args": Namespace()}, p), "w.pth", HALVES),
    "Google": (lambda m, p: np.savez(p, **jax(m)), "w.npz", HALVES),
    "Google, with optimizer": (
        lambda m, p: np.savez(p, **{f"opt/target/{k}": v for k, v in jax(m).items()}),
        "w.npz",
        HALVES,
    ),
    "MAE": (lambda m, p: torch.save(mae(m), p), "w.pth", IMAGENET),
    "MoCo-v3": (lambda m, p: torch.save(moco(m), p), "w.pth.tar", IMAGENET),
    "DINO": (lambda m, p: torch.save(dino(m), p), "w.pth", HALVES),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_of_files(name, vit, tmp_path):
    write, called, normal = FORMATS[name]
    write(vit, tmp_path / called)
    tower = load(f"timm:test_vit@{tmp_path / called}", "cpu")
    pixels = torch.randn(2, 3, 160, 160)
    near(tower(images(pixels)), features(vit, pixels), 1e-5)
    assert (tower.preprocessing.mean, tower.preprocessing.std) == normal
    assert not tower.notes


def test_only_the_momentum_encoder_is_left(vit, tmp_path):
    told = moco(vit)
    told["state_dict"] = {k: v for k, v in told["state_dict"].items() if "momentum" in k}
    torch.save(told, tmp_path / "w.pth")
    tower = load(f"timm:test_vit@{tmp_path / 'w.pth'}", "cpu")
    assert torch.equal(tower.position_embeddings, vit.pos_embed[0] + 1)


@pytest.mark.slow
def test_moco_vit_s_has_twelve_heads(tmp_path):
    model = random_of("vit_small_patch16_224", num_heads=12)
    told = moco(model, "vit_small")
    told["state_dict"] = {k: v for k, v in told["state_dict"].items() if "momentum" not in k}
    torch.save(told, tmp_path / "w.pth.tar")
    with pytest.warns(UserWarning, match="heads 12, as MoCo-v3's ViT-S has them"):
        tower = load(f"timm:vit_small_patch16_224@{tmp_path / 'w.pth.tar'}", "cpu")
    pixels = torch.randn(1, 3, 224, 224)
    near(tower(images(pixels)), features(model, pixels), 1e-5)
    assert tower.n_heads == 12


@pytest.mark.slow
def test_dinov2_with_registers_at_another_size(tmp_path):
    """The authors' file: class and patches share one table of positions, registers have none."""
    name = "vit_small_patch14_reg4_dinov2"
    state = random_of(name).state_dict()
    state = {k: v for k, v in state.items() if not k.startswith("head")}
    first, official = torch.randn(1, 1, 384), dict(state)
    official["register_tokens"] = official.pop("reg_token")
    official |= {"cls_token": state["cls_token"] - first, "pos_embed": torch.cat([first, state["pos_embed"]], 1)}
    torch.save(official | {"mask_token": torch.zeros(1, 384)}, tmp_path / "w.pth")
    with pytest.warns(UserWarning, match="of 37x37 patches interpolated to 4x3, as timm does"):
        tower = load(f"timm:{name}@{tmp_path / 'w.pth'}", "cpu", Preprocessing((56, 42), *IMAGENET))
    theirs = timm.create_model(name, True, pretrained_cfg_overlay={"state_dict": state}, num_classes=0,
                               img_size=(56, 42))  # fmt: skip
    pixels = torch.randn(2, 3, 56, 42)
    near(tower(images(pixels)), features(theirs.eval(), pixels), 1e-5)
    assert (tower.n_special_tokens, tower.grid, tower.preprocessing.mean) == (5, (4, 3), IMAGENET[0])


def test_a_tag_says_how_a_file_is_looked_at(tmp_path):
    model = random_of("vit_tiny_patch16_224")
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    spec = f"timm:vit_tiny_patch16_224/augreg_in21k@{tmp_path / 'w.safetensors'}"
    tower = load(spec, "cpu")
    assert (tower.preprocessing.mean, tower.preprocessing.crop, tower.spec) == (HALVES[0], 0.9, spec)


@pytest.mark.slow
def test_a_file_that_does_not_say_its_look_is_told(tmp_path):
    name = "vit_small_patch16_224"  # published with both normalisations
    save_file(timm.create_model(name, num_classes=0).state_dict(), tmp_path / "w.safetensors")
    with pytest.warns(UserWarning, match=r"preprocess of .*the file doesn't say: mean 0.5, std 0.5; .*\.dino@"):
        tower = load(f"timm:{name}@{tmp_path / 'w.safetensors'}", "cpu")
    assert tower.preprocessing.mean == HALVES[0]
    assert "preprocess" in tower.notes
    tower = load(f"timm:{name}.dino@{tmp_path / 'w.safetensors'}", "cpu")
    assert tower.preprocessing.mean == IMAGENET[0]
    assert not tower.notes


def wrong_files(vit, path):
    state = vit.state_dict()
    deeper = random_of("test_vit", depth=8)
    return {
        "another width": (random_of("test_vit3").state_dict(), "size mismatch", "width 96, 9 blocks and patches of 16"),
        "fewer blocks": ({k: v for k, v in state.items() if ".5." not in k}, "Missing key", "5 blocks"),
        "more blocks": (deeper.state_dict(), "Unexpected key", "8 blocks"),
        "other patches": (random_of("test_vit", patch_size=8).state_dict(), "stretch", "patches of 8"),
        "a ResNet": (timm.create_model("test_resnet").state_dict(), "Missing key", "got what looks like a ResNet"),
        "deeper, Google's": (jax(deeper), "it has 8 blocks, the model 6", "8 blocks"),
        "shallower, Google's": ({k: v for k, v in jax(vit).items() if "block_5" not in k}, "block_5", "5 blocks"),
        "without class token": ({k: v for k, v in jax(vit).items() if k != "cls"}, "cls", "6 blocks"),
    }


@pytest.mark.filterwarnings("ignore:.*interpolated")
def test_files_of_other_models_are_refused(vit, tmp_path):
    for i, (case, (held, *said)) in enumerate(wrong_files(vit, tmp_path).items()):
        path = tmp_path / (f"{i}.npz" if "Google" in case or "class" in case else f"{i}.pth")
        np.savez(path, **held) if path.suffix == ".npz" else torch.save(held, path)
        with pytest.raises(ValueError, match=f"{i}.*: expected a checkpoint of test_vit, got what looks like ") as told:
            load(f"timm:test_vit@{path}", "cpu")
        assert all(part in str(told.value) for part in said), (case, str(told.value))
        assert len(str(told.value)) < 800


def test_siglip_without_its_pool_is_held_to_its_depth(tmp_path):
    name = "vit_base_patch16_siglip_gap_224"  # timm leaves what it doesn't know out here, and says nothing
    save_file(timm.create_model(name, num_classes=0, depth=1).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="it has 1 blocks, the model 12"):
        load(f"timm:{name}@{tmp_path / 'w.safetensors'}", "cpu")


def test_registers_and_layer_scale_are_not_in_googles_files(tmp_path):
    np.savez(tmp_path / "w.npz", **jax(random_of("test_vit", depth=8)))
    with pytest.raises(ValueError, match=r"it has nothing for reg_token, blocks\.0\.ls1\.gamma"):
        load(f"timm:test_vit2@{tmp_path / 'w.npz'}", "cpu")


class Code:
    def __reduce__(self):
        return os.system, ("touch harm",)


def test_broken_files_are_told(vit, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(vit.state_dict(), "whole.pth")
    np.savez("whole.npz", **jax(vit))
    for whole, half in ((file, "half.safetensors"), ("whole.pth", "half.pth"), ("whole.npz", "half.npz")):
        data = Path(whole).read_bytes()
        Path(half).write_bytes(data[: len(data) // 2])
        with pytest.raises(
            ValueError, match=f"'{half}': expected a checkpoint, got a truncated or another file .*Get it again"
        ):
            load(f"timm:test_vit@{half}", "cpu")
    torch.save({"model": Code()}, "code.pth")
    with pytest.raises(ValueError, match=r"expected only tensors, got other objects.*Save its weights alone"):
        load("timm:test_vit@code.pth", "cpu")
    assert not Path("harm").exists()
    torch.save({"step": 3}, "empty.pth")
    with pytest.raises(ValueError, match=r"expected weights, got none. Use"):
        load("timm:test_vit@empty.pth", "cpu")
    with pytest.raises(ValueError, match=r"expected a checkpoint file, got 'none.pth', .*Check the path after '@'"):
        load("timm:test_vit@none.pth", "cpu")


ORIGINAL = "vit_base_patch16_224.augreg_in21k, or for other weights timm:vit_base_patch16_224.orig_in21k"
NAMES = {
    "timm:vit_base_patch16_224_in21k": f"Write timm:{ORIGINAL}",
    "timm:vit_base_patch16_224_in21k@ViT-B_16.npz": f"Write timm:{ORIGINAL}",
    "timm:vit_base_patch16_224/in21k": "several end with it: orig_in21k and augreg_in21k",
    "timm:vit_base_patch16_224.maee": "did you mean 'mae'",
    "timm:vit_base_patch16": "backbone: expected a model of timm, got 'vit_base_patch16'; did you mean",
    "timm:test_vit4": "got test_vit4.r160_in1k, which has none. Write timm:test_vit4/random",
    "timm:": "backbone: expected a known form, got 'timm:'",
}


@pytest.mark.parametrize("spec", NAMES)
def test_a_name_never_stands_for_other_weights(spec):
    with pytest.raises(ValueError, match="timm") as told:
        load(spec, "cpu")
    assert NAMES[spec] in str(told.value)


def test_without_a_network_it_says_which_file_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # what HF_HUB_OFFLINE=1 comes to
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match="'augreg_in21k_ft_in1k' of vit_tiny_patch16_224 are not here") as told:
        load("timm:vit_tiny_patch16_224", "cpu")
    assert "get model.safetensors of timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k" in str(told.value)
    assert '"timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k@path/to/that/file"' in str(told.value)


# --- what is no ViT ---


@pytest.mark.parametrize("name", [pytest.param("swin_tiny_patch4_window7_224", marks=pytest.mark.slow), "test_resnet"])
def test_other_models_give_features_and_take_no_prompts(name):
    tower = load(f"timm:{name}/random", "cpu")
    side = tower.preprocessing.size[0]
    assert tower(images(torch.randn(2, 3, side, side))).shape == (2, tower.feature_dim)
    assert (tower.depth, tower.n_special_tokens) == (0, 0)
    with pytest.raises(ValueError, match=f"image tower of timm:{name}/random: expected a block-wise tower for tokens"):
        tower(images(torch.randn(1, 3, side, side)), Prompt(tokens={0: torch.zeros(1, 2, 8)}))
    with pytest.raises(ValueError, match=r"expected a block-wise tower .*Use a ViT"):
        tower.sites("q")
    other = replace(tower.preprocessing, size=(96, 96), mean=(0.0,) * 3)
    if name == "test_resnet":
        assert tower.with_preprocessing(other)(images(torch.randn(2, 3, 96, 96))).shape == (2, tower.feature_dim)
    else:
        with pytest.raises(ValueError, match=r"got 96x96 with no features. Leave preprocess.size out"):
            tower.with_preprocessing(other)
        assert tower.with_preprocessing(replace(other, size=(224, 224))).preprocessing.mean == (0.0,) * 3


# --- looks ---


def test_another_size_is_timms_model_of_that_size(vit, file):
    look = Preprocessing((96, 128), *HALVES)
    with pytest.warns(UserWarning, match="positions of 10x10 patches interpolated to 6x8, as timm does"):
        tower = load(f"timm:test_vit@{file}", "cpu", look)
    told = {"state_dict": {k: v for k, v in vit.state_dict().items() if "head" not in k}, "num_classes": 0}
    theirs = timm.create_model("test_vit", True, pretrained_cfg_overlay=told, num_classes=0, img_size=look.size).eval()
    assert torch.equal(tower.position_embeddings, theirs.pos_embed[0])
    assert torch.equal(tower.position_embeddings[0], vit.pos_embed[0, 0])
    pixels = torch.randn(2, 3, 96, 128)
    near(tower(images(pixels)), features(theirs, pixels), 1e-5)
    assert tower.notes == {"positions": "of 10x10 patches interpolated to 6x8, as timm does"}
    back = tower.with_preprocessing(replace(look, size=(160, 160)))
    assert torch.equal(back.position_embeddings, vit.pos_embed[0])
    assert not back.notes


def test_a_file_of_another_size_is_interpolated_once(tmp_path):
    model = random_of("test_vit", img_size=224)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    np.savez(tmp_path / "w.npz", **jax(model))
    for name in ("w.safetensors", "w.npz"):
        with pytest.warns(UserWarning, match="of 14x14 patches interpolated to 10x10"):
            tower = load(f"timm:test_vit@{tmp_path / name}", "cpu")
        assert (tower.preprocessing.size, tower.has_custom_preprocessing) == ((160, 160), False)
        assert torch.equal(
            tower.with_preprocessing(replace(tower.preprocessing, size=(224, 224))).position_embeddings,
            model.pos_embed[0],
        )
        model160 = random_of("test_vit", img_size=224)
        model160.set_input_size((160, 160))
        assert torch.equal(tower.position_embeddings, model160.pos_embed[0])


@pytest.mark.parametrize("spec", ["glyph-vit/random", "glyph/random"])
@pytest.mark.filterwarnings("ignore:.*interpolated")
def test_towers_of_open_clip_take_other_sizes(spec):
    backbone = load(spec, "cpu", Preprocessing((48, 40)))
    tower = getattr(backbone, "image", backbone)
    pixels = torch.randn(2, 3, 48, 40)
    assert tower(images(pixels), Prompt(tokens={0: torch.zeros(1, 2, 64)})).shape == (2, 64)
    assert (tower.grid, tower.spec) == ((6, 5), spec)
    for size in ((44, 40), (4, 8), (0, 8)):
        with pytest.raises(ValueError, match=f"expected multiples of 8, .* got {size[0]}x{size[1]}. Set"):
            load(spec, "cpu", Preprocessing(size))


def test_rotary_positions_are_not_interpolated():
    tower = load("timm:vit_small_patch16_rope_224/random", "cpu")
    if tower.depth:
        with pytest.raises(
            ValueError, match=r"expected 224x224 for the rotary positions of .*got 96x96. Leave preprocess out"
        ):
            tower.with_preprocessing(replace(tower.preprocessing, size=(96, 96)))
    tower.with_preprocessing(replace(tower.preprocessing, mean=(0.0,) * 3))


def test_features_of_two_looks_are_not_mixed():
    first = load("glyph-vit/random", "cpu")
    picture = torch.rand(1, 3, 32, 32)
    shown = Images(lambda look, places: picture - look.mean[0], ["one"])
    second = first.with_preprocessing(replace(first.preprocessing, mean=(5.0,) * 3))
    before = first(shown)
    assert not torch.allclose(second(shown), before)
    assert torch.equal(first(shown), before)


# --- glyph-vit ---


def test_glyph_vit_is_the_clips_tower_without_its_projection():
    clip, tower = load("glyph", "cpu"), load("glyph-vit", "cpu")
    pixels = torch.randn(2, 3, 32, 32)
    near(clip.image.project(tower(images(pixels))), clip.image(images(pixels)), 1e-5)
    assert tower.feature_dim == tower.dim == 128
    assert tower.key.startswith("glyph-vit#")
    assert tower.n_parameters == clip.image.n_parameters - 128 * clip.feature_dim
    assert 0 < clip.image.n_parameters < clip.n_parameters


# --- runs ---


def vpt(spec="glyph-vit/random", look=None):
    return VPT(load(spec, "cpu", look), LinearHead(), n_tokens=2, dropout=0.1)


FIVE = TrainConfig(epochs=5, batch_size=5, lr=0.1)


@pytest.mark.filterwarnings("ignore:.*interpolated")
def test_results_of_a_bare_tower(tmp_path):
    method = vpt()
    result = run(method, FewShot("digits", shots=1), FIVE, tmp_path / "run")
    assert result.config["backbone"] == "glyph-vit/random"
    assert "preprocess" not in result.config
    assert result.protocol["backbone_key"] == method.backbone.key
    assert result.protocol["preprocess"]["size"] == [32, 32]
    assert len(result.protocol["preprocess"]) == len(asdict(Preprocessing((1, 1))))
    trained = 3 * 2 * 64 + 64 * 10 + 10
    assert result.cost["trained_parameters"] == trained
    assert result.cost["trained_percent"] == pytest.approx(100 * trained / method.tower.n_parameters)
    assert result.cost["stored_bytes"] == (tmp_path / "run/prompt.safetensors").stat().st_size
    other = run(vpt(look=Preprocessing((48, 48))), FewShot("digits", shots=1), FIVE)
    assert other.config["preprocess"]["size"] == [48, 48]
    assert other.protocol["clipped_settings"] == {"positions": "of 4x4 patches interpolated to 6x6, as timm does"}
    assert other.summary != result.summary


def test_a_run_that_was_stopped_goes_on_with_the_same_bits(tmp_path):
    def stop(event):
        if isinstance(event, StepDone) and event.step == 6:
            raise KeyboardInterrupt

    task = FewShot("digits", shots=1)
    with pytest.raises(KeyboardInterrupt):
        run(vpt(), task, FIVE, tmp_path / "a", save_every=0, on_event=stop)
    assert (tmp_path / "a/last.safetensors").exists()
    run(vpt(), task, FIVE, tmp_path / "a")
    run(vpt(), task, FIVE, tmp_path / "b")
    states = [load_file(tmp_path / f"{name}/prompt.safetensors") for name in "ab"]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[1])


def test_the_command_line_on_a_timm_vit(type_in, type_all, file, pictures, tmp_path):
    words = ["run", "vpt", pictures, "--shots", "2", "method.head=linear", "method.n_tokens=2", "train.epochs=2"]
    words += ["train.warmup=0", "train.lr=0.01", "preprocess.size=[48,64]"]
    code, text = type_in(*words, "--backbone", f"timm:test_vit@{file}")
    assert code == 0, text
    assert "positions of 10x10 patches interpolated to 3x4, as timm does" in text
    [folder] = (tmp_path / "runs").iterdir()
    told = json.loads((folder / "result.json").read_text())
    assert told["config"]["preprocess"]["size"] == [48, 64]
    assert told["config"]["preprocess"]["crop"] == 0.95
    before = (folder / "result.json").stat().st_mtime_ns
    assert type_in(*words, "--backbone", f"timm:test_vit@{file}")[0] == 0
    assert (folder / "result.json").stat().st_mtime_ns == before
    code, text = type_in("eval", folder, pictures)
    assert code == 0, text
    assert f"accuracy {told['summary']['accuracy']:.2f}" in text
    assert load_prompt(folder, device="cpu").method.tower.preprocessing.size == (48, 64)
    code, text = type_in("predict", folder, next(pictures.glob("china/*")), "--format", "json")
    assert code == 0
    assert "china" in text
    code, text = type_in("eval", folder, pictures, "--backbone", "timm:test_vit/random")
    assert code == 2
    assert "was trained on (timm:test_vit@" in text
    assert "got timm:test_vit/random with other weights (timm:test_vit/random#" in text
    assert "Name the right ones by --backbone." in text
    assert type_in(*words, "--backbone", "timm:test_vit/random", "preprocess.size=[32,32]")[0] == 0
    assert type_in("table", "runs", "--json", "t.json", "--csv", "t.csv")[0] == 0
    rows = json.loads((tmp_path / "t.json").read_text())
    assert len(rows) == 2
    assert all(0 < row["trained_percent"] < 5 and row["stored_bytes"] > 1000 for row in rows)
    assert "trained_percent,stored_bytes" in (tmp_path / "t.csv").read_text()


@pytest.mark.slow
def test_looks_are_variants_in_a_table(type_in, tmp_path):
    words = ["run", "vpt", "digits", "--shots", "1", "--backbone", "glyph-vit/random", "method.head=linear"]
    words += ["train.epochs=1", "train.warmup=0"]
    assert type_in(*words)[0] == 0
    code, text = type_in(*words, "preprocess={size: [48, 48]}")
    assert code == 0, text
    text = type_in("table", "runs")[1]
    assert "vpt (size=[48, 48])" in text
    assert "vpt (size=[32, 32])" in text
    code, text = type_in(*words, "preprocess.sise=[48,48]")
    assert code == 2
    assert "sise" in text
    assert len(list((tmp_path / "runs").iterdir())) == 2


@pytest.mark.parametrize("method", ["coop", "zero_shot", "vpt"])
def test_a_method_that_needs_texts_says_so(type_in, method):
    reader = ["method.head=texts"] if method == "vpt" else []
    code, text = type_in("run", method, "digits", *reader, "--shots", "1", "--backbone", "timm:test_vit/random")
    assert code == 2
    named = "texts" if method == "vpt" else method
    expected = (
        f"{named}: expected a CLIP, with an image and a text tower, got timm:test_vit/random, which has no texts. "
    )
    assert f"{expected}Choose --backbone glyph" in text


@pytest.mark.parametrize("backbone", ["glyph-vit", "glyph-vit/random", "timm:test_vit/random"])
def test_recipes_of_a_kind_of_backbone(backbone, tmp_path, monkeypatch):
    from vlprompt.config import resolve

    kind = backbone.partition(":")[0].removesuffix("/random")
    (tmp_path / "few_shot" / kind).mkdir(parents=True)
    (tmp_path / "few_shot" / kind / "vpt.yaml").write_text("train: {epochs: 3}\n")
    monkeypatch.setattr(resolve, "find_configs_folder", lambda: tmp_path)
    [plan] = resolve.resolve_grid(
        ["vpt"], [1], [1], dataset="digits", backbone=backbone, overrides=["method.head=linear"]
    )
    assert plan.train["epochs"] == 3


def test_methods_inside_readers_and_methods_know_their_backbone():
    tower = load("glyph-vit/random", "cpu")
    whole = Method()
    whole.inner = VPT(tower, LinearHead())
    assert whole.backbone is tower


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    state = timm.create_model("test_vit", num_classes=0).state_dict()
    state["blocks.0.attn.qkv.weight"][0] = torch.nan
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(
        ValueError, match=r"got NaN or infinite values in 'blocks\.0\.attn\.qkv\.weight'\. Its weights are"
    ):
        load(f"timm:test_vit@{tmp_path / 'weights.pt'}")
