"""Every family of timm's vision transformers and of open_clip's models, small, against the library's own forward."""

import copy
import json
import re
import sys

import open_clip
import pytest
import timm
import torch
from random_twins import shaken
from shared import images
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from written_out import near

from vlprompt.backbones.open_clip.towers import wrap_clip
from vlprompt.backbones.timm.loading import wrap_timm
from vlprompt.core.batch import Split
from vlprompt.core.images import Preprocessing
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.layers.adapters import LowRankAdapter
from vlprompt.layers.heads import LinearHead
from vlprompt.methods import SSF, BitFit

# the modules of timm whose models take the arguments of a vision transformer
MODULES = ("vision_transformer", "deit", "eva", "beit", "vision_transformer_relpos")
OPAQUE = {  # patterns of names -> why they are used as they are
    "distilled": "two heads",
    "_rpn_": "norms after attention and MLP",
    "_18x2_": "two parallel branches",
    "_pwee_|_dpwee_|_xp_": "attention and MLP side by side",
    "_dwee_|_dlittle_": "differential attention",
    "aimv2": "a patch embedding with a norm",
    "rope_mixed": "other angles in each layer",
    "relpos|^beit_|^beitv2_": "biases of relative positions",
    "eva02_enormous": "norms after attention and MLP",
    "sapiens2": "shared keys, norms of queries and keys",
}
OPTIONS = {"sapiens2": {"num_kv_heads": (2, 4)}, "_giant_": {"embed_dim": 96}}
QUICK = (
    *("test_vit", "vit_base_patch16_224", "deit3_small_patch16_224", "vit_base_patch14_reg4_dinov2"),
    *("vit_base_patch16_siglip_224", "eva02_base_patch14_224", "vit_base_patch16_rope_reg1_gap_256"),
    *(
        "vit_pwee_patch16_reg1_gap_256",
        "vit_huge_patch14_xp_224",
        "vit_small_patch16_18x2_224",
        "vit_base_patch16_rpn_224",
    ),
)
ALL = [name for module in MODULES for name in timm.list_models(module=module)]
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ALL]


def small_size(name):
    """The side of an image of 4 x 4 patches."""
    patch = re.search(r"patch(\d+)", name)
    return 4 * int(patch[1]) if patch else 64


def small(name):
    """timm's model with two narrow blocks, random weights and a grid of 4 x 4 patches, and its tower."""
    torch.manual_seed(0)
    size = small_size(name)
    options = {"embed_dim": 64, "depth": 2, "num_heads": 4, "num_classes": 0, "img_size": size}
    for part, changes in OPTIONS.items():
        options |= changes if part in name else {}
    model = shaken(timm.create_model(name, **options))
    return model, wrap_timm(model, Preprocessing((size, size)), "small#1", torch.device("cpu")), size


def is_opaque(name):
    return any(re.search(pattern, name) for pattern in OPAQUE)


def low_rank(tower):
    """LoRA at all queries and values, and its updates of the weights."""
    generator = torch.Generator().manual_seed(1)
    adapters = nn.ModuleDict(
        {
            site: LowRankAdapter(fans, 2, 1.0, 0.0, generator, tower.device)
            for site, fans in tower.sites("q", "v").items()
        }
    ).requires_grad_(False)
    for adapter in adapters.values():
        adapter.up.copy_(torch.randn(adapter.up.shape, generator=generator) * 0.05)
    return adapters


def with_updates(model, adapters):
    """A copy of timm's model with LoRA's updates in the weights of its own layers."""
    model = copy.deepcopy(model)
    for site, adapter in adapters.items():
        layer, kind = site.split("/")
        attn, update = model.blocks[int(layer)].attn, adapter.scale * adapter.up @ adapter.down
        if attn.qkv is None:
            getattr(attn, f"{kind}_proj").weight.data += update
        else:
            attn.qkv.weight.data.unflatten(0, (3, -1))[("q", "k", "v").index(kind)] += update
    return model


def with_tokens(model, tokens):
    """A copy of timm's model with prompt tokens: inserted before its first block, replaced before the second."""
    model, p = copy.deepcopy(model), tokens.shape[2]
    s = model.num_prefix_tokens

    def put_in(i):
        def hook(block, args):
            x, t = args[0], tokens[i]
            t, rest = (model.norm_pre(t), x[:, s:]) if i == 0 else (t, x[:, s + p :])
            return (torch.cat([x[:, :s], t.expand(len(x), -1, -1), rest], 1), *args[1:])

        return hook

    for i, block in enumerate(model.blocks):
        block.register_forward_pre_hook(put_in(i))
        if hasattr(block.attn, "num_prefix_tokens"):  # those that are not turned
            block.attn.num_prefix_tokens += p
    model.blocks[-1].register_forward_hook(lambda block, args, x: torch.cat([x[:, :s], x[:, s + p :]], 1))
    return model


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_family_of_timm(name):
    model, tower, size = small(name)
    pixels = torch.randn(2, 3, size, size)
    shown = images(pixels)
    near(tower(shown), model(pixels))
    assert tower.depth == (0 if is_opaque(name) else 2)
    if is_opaque(name):
        with pytest.raises(ValueError, match=r"expected a block-wise tower"):
            tower.require_blocks()
        return
    tokens = 0.5 * torch.randn(2, 1, 3, tower.dim)
    near(tower(shown, Prompt(tokens=dict(enumerate(tokens)))), with_tokens(model, tokens)(pixels))
    adapters = low_rank(tower)
    expected = with_updates(model, adapters)(pixels)
    near(tower(shown, Prompt(adapters=adapters)), expected)
    near(tower.merged(Prompt(adapters=adapters))(shown), expected)
    for method in (SSF(tower, LinearHead()), BitFit(tower, LinearHead())):
        check_merged(method, tower, shown)
    check_trainable_copy(model, tower, pixels)


def check_merged(method, tower, shown):
    method.begin_lesson(Lesson(Split((), (), ("a", "b"))), torch.Generator().manual_seed(2))
    for p in method.parameters():
        p.data += 0.1 * torch.randn_like(p)
    prompt = method.prompt(1)
    near(tower.merged(prompt)(shown), tower(shown, prompt))


def check_trainable_copy(model, tower, pixels):
    """It begins as the tower, and no two of its parameters have the same effect: each is one of timm's."""
    trained = tower.trainable_copy()
    near(trained(pixels), model(pixels))
    rows = {name: len(p) for name, p in trained.named_parameters() if name.endswith("position_embeddings")}
    positions = model.pos_embed
    assert rows == ({} if positions is None else {"position_embeddings": positions.shape[1]})


def test_no_other_module_of_timm_has_walked_blocks():
    """The classes that are walked are built by the modules of the sweep, and behind other patch embeddings."""
    entry_points = [timm.models.model_entrypoint(name) for name in timm.list_models()]
    modules = {
        f.__module__.rpartition(".")[2] for f in entry_points if {VisionTransformer, Eva} & names_in(f.__module__)
    }
    assert modules - set(MODULES) == {"vision_transformer_hybrid", "vitamin"}
    model = shaken(timm.create_model("vit_tiny_r_s16_p8_224", depth=2, num_classes=0, img_size=64))
    tower, pixels = wrap_timm(model, Preprocessing((64, 64)), "small#1", torch.device("cpu")), torch.randn(2, 3, 64, 64)
    assert tower.depth == 0
    near(tower(images(pixels)), model(pixels))


def names_in(module):
    return {value for value in vars(sys.modules[module]).values() if isinstance(value, type)}


# --- open_clip ---

SMALL_TRUNKS = {  # the beginnings of timm's names -> arguments of a small one
    "vit|eva": {"embed_dim": 96, "depth": 2, "num_heads": 4},
    "convnext": {"depths": (1, 1, 1, 1), "dims": (16, 16, 32, 32)},
    "swin": {"depths": (1, 1, 1, 1), "embed_dim": 16, "num_heads": (1, 2, 2, 4)},
}
FROM_THE_HUB = "roberta|mt5|nllb"  # text models of transformers, used as they are
TOO_LARGE = "ViTamin|MobileCLIP"  # no arguments make them small; used as they are


def shrink(config):
    """An open_clip configuration with the same options and two narrow layers, for its own tokenizer."""
    vision, text = dict(config["vision_cfg"]), dict(config["text_cfg"])
    if isinstance(vision.get("layers"), list):
        vision |= {"layers": [1, 1, 1, 1], "width": 16, "image_size": 64}
    elif "timm_model_name" in vision:
        name = vision["timm_model_name"]
        vision["image_size"] = small_size(name) if re.match("vit|eva", name) else 224
    else:
        vision |= {"layers": 2, "width": 64, "head_width": 32, "image_size": 4 * vision["patch_size"]}
    vision |= {key: 2 for key in ("attn_pooler_heads",) if key in vision}
    text |= {"width": 32, "heads": 2, "layers": 2, "vocab_size": 49408}
    text |= {"width": 96} if text.get("proj_type") == "none" else {}  # the joint width
    text |= {"eos_id": 49407} if "eos_id" in text or text.get("pool_type") == "eos" else {}
    for key in ("hf_tokenizer_name", "tokenizer_kwargs"):
        text.pop(key, None)
    small_config = config | {"embed_dim": 96, "vision_cfg": vision, "text_cfg": text}
    if "multimodal_cfg" in config:
        changes = {"width": 32, "heads": 2, "layers": 2, "dim_head": 16, "attn_pooler_heads": 2}
        small_config["multimodal_cfg"] = config["multimodal_cfg"] | changes
    return small_config


def shrunk_configs():
    """One name for each different small configuration."""
    names = [n for n in open_clip.list_models() if not re.search(f"{FROM_THE_HUB}|{TOO_LARGE}", n)]
    configs = {n: json.dumps(shrink(open_clip.get_model_config(n)), sort_keys=True) for n in names if "-j" not in n}
    return {config: name for name, config in reversed(configs.items())}


QUICK_CLIPS = ("RN50", "ViT-B-32", "ViT-B-32-quickgelu", "coca_ViT-B-32", "ViT-B-16-SigLIP")
CLIPS = [
    pytest.param(config, id=name, marks=[] if name in QUICK_CLIPS else pytest.mark.slow)
    for config, name in shrunk_configs().items()
]


@pytest.fixture
def small_trunks(monkeypatch):
    """Trunks of timm that open_clip builds are small."""
    create = timm.create_model

    def create_small(name, **options):
        for pattern, changes in SMALL_TRUNKS.items():
            options |= changes if re.match(pattern, name) else {}
        if re.match("vit|eva", name):
            options["img_size"] = small_size(name)
        return create(name, **options)

    monkeypatch.setattr("open_clip.timm_model.timm.create_model", create_small)


@pytest.mark.parametrize("config", CLIPS)
@torch.no_grad()
def test_a_configuration_of_open_clip(config, small_trunks, tmp_path, monkeypatch):
    (tmp_path / "small-sweep.json").write_text(config)
    open_clip.add_model_config(tmp_path / "small-sweep.json")
    torch.manual_seed(0)
    model, tokenizer = shaken(open_clip.create_model("small-sweep")), open_clip.get_tokenizer("small-sweep")
    clip, texts = wrap_clip(model, tokenizer, "x"), ["a photo of a dog.", "the cat"]
    pixels = torch.randn(2, 3, *clip.image.preprocessing.size)
    image, text, ids = clip.image(images(pixels)), clip.text(texts)[0], tokenizer(texts)
    near(image, model.encode_image(pixels, normalize=False))
    near(text, model.encode_text(ids, normalize=False))
    if hasattr(model, "get_logits"):
        near(clip.logits(image, text), model.get_logits(pixels, ids)[0], 1e-4)
    if clip.text.depth:
        words = clip.text.token_embeddings[torch.tensor(clip.text.tokenizer.encode("a photo of a"))][None]
        near(clip.text(["{4} dog."], Prompt(tokens={0: words})), clip.text(texts)[:, :1])
    if clip.image.depth:
        adapters = low_rank(clip.image)
        expected = with_clip_updates(model, adapters).encode_image(pixels, normalize=False)
        near(clip.image(images(pixels), Prompt(adapters=adapters)), expected)
        near(clip.image.merged(Prompt(adapters=adapters))(images(pixels)), expected)


def with_clip_updates(model, adapters):
    """A copy of open_clip's model with LoRA's updates in the weights of its own image tower."""
    model = copy.deepcopy(model)
    if hasattr(model.visual, "trunk"):
        model.visual.trunk = with_updates(model.visual.trunk, adapters)
        return model
    for site, adapter in adapters.items():
        layer, kind = site.split("/")
        weight = model.visual.transformer.resblocks[int(layer)].attn.in_proj_weight
        weight.data.unflatten(0, (3, -1))[("q", "k", "v").index(kind)] += adapter.scale * adapter.up @ adapter.down
    return model
