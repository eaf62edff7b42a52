"""Each family of backbones as a tiny random twin: its walk is the library's own forward, and prompts go in."""

import json
import pickle
import warnings
import zipfile

import open_clip
import pytest
import timm
import torch
from open_clip.coca_model import CoCa
from open_clip.hf_model import HFTextEncoder
from open_clip.model import CustomTextCLIP
from random_twins import PLAIN, shaken, walked
from shared import images
from timm.layers import GluMlp, RmsNorm, SwiGLU, SwiGLUPacked
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from written_out import clip_tokenizer, config, library, near

from vlprompt.backbones import load
from vlprompt.backbones.open_clip import weights
from vlprompt.backbones.open_clip.torchscript import read_script_weights
from vlprompt.backbones.open_clip.towers import wrap_clip
from vlprompt.backbones.timm.blocks import build_timm_tower
from vlprompt.core.images import Preprocessing
from vlprompt.core.prompt import Prompt
from vlprompt.layers.frozen_maps import identity

LOOK = Preprocessing((32, 32))
VITS = {
    "class token": {},
    "average": {"global_pool": "avg"},
    "average, norm first": {"global_pool": "avg", "fc_norm": False},
    "average of all rows": {"global_pool": "avg", "pool_include_prefix": True},
    "maximum": {"global_pool": "max", "class_token": False},
    "siglip": {"global_pool": "map", "class_token": False, "act_layer": "gelu_tanh"},
    "attention pool beside a class token": {"global_pool": "map", "qkv_bias": False},
    "registers": {"reg_tokens": 3, "no_embed_class": True},
    "registers with positions": {"reg_tokens": 3},
    "pre-norm": {"pre_norm": True},
    "no positions": {"pos_embed": "none"},
    "layer scale": {"init_values": 0.3},
    "packed SwiGLU": {"mlp_layer": SwiGLUPacked},
    "gate last": {"mlp_layer": GluMlp},
    "SwiGLU": {"mlp_layer": SwiGLU, "norm_layer": RmsNorm},
    "inner norms": {"scale_attn_norm": True, "scale_mlp_norm": True},
    "no biases": {"proj_bias": False, "qkv_bias": False},
    "odd size": {"img_size": 36},
    "any size": {"dynamic_img_size": True},
}
EVAS = {
    "eva01": {"global_pool": "token"},
    "eva02 clip": {"global_pool": "token", "qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True,
                   "scale_attn_inner": True, "use_rot_pos_emb": True, "ref_feat_shape": (3, 3)},
    "eva02, packed": {"swiglu_mlp": True, "use_rot_pos_emb": True},
    "perception encoder": {"global_pool": "map", "attn_type": "rope", "use_pre_transformer_norm": True,
                           "use_rot_pos_emb": True, "rope_grid_offset": 1.0, "rope_grid_indexing": "xy",
                           "attn_pool_num_heads": 2, "attn_pool_mlp_ratio": 2.0},
    "dinov3": {"class_token": True, "num_reg_tokens": 2, "use_rot_pos_emb": True, "rope_type": "dinov3",
               "rope_rotate_half": True, "use_abs_pos_emb": False, "attn_type": "rope", "init_values": 0.3,
               "global_pool": "avg"},
}  # fmt: skip
CASES = [("vit", name) for name in VITS] + [("eva", name) for name in EVAS]


def trunk_of(kind, name):
    torch.manual_seed(0)
    made = VisionTransformer(**PLAIN | VITS[name]) if kind == "vit" else Eva(**PLAIN | EVAS[name])
    return shaken(made).double()


@pytest.mark.parametrize(("kind", "name"), CASES, ids=lambda x: x)
def test_the_walk_is_timms_forward(kind, name):
    trunk = trunk_of(kind, name)
    tower = walked(trunk)
    pixels = torch.randn(3, 3, *tower.preprocessing.size).double()
    with torch.no_grad():
        near(tower(images(pixels, name)), trunk(pixels), 1e-12)
        if not tower.is_norm_after_pool:
            rows = trunk.forward_features(pixels)[:, trunk.num_prefix_tokens :]
            near(
                tower(images(pixels, name), Prompt(adapters={"norm": lambda given, made: made}), output="tokens"),
                rows,
                1e-12,
            )


def inserted(trunk, tokens):
    """The trunk with tokens (1, P, D) after its class and register rows, through timm's own modules."""
    s, blocks = trunk.num_prefix_tokens, trunk.blocks
    p = tokens.shape[1]

    def forward(pixels):
        x, rope = trunk.patch_embed(pixels), None
        x = trunk._pos_embed(x)
        if isinstance(x, tuple):
            x, rope = x
        x = trunk.norm_pre(torch.cat([x[:, :s], tokens.expand(len(x), -1, -1), x[:, s:]], 1))
        for block in blocks:
            if rope is None:
                x = block(x)
            else:
                before, block.attn.num_prefix_tokens = block.attn.num_prefix_tokens, s + p
                x, block.attn.num_prefix_tokens = block(x, rope=rope), before
        x = trunk.norm(x)
        return trunk.head(trunk.fc_norm(trunk.pool(torch.cat([x[:, :s], x[:, s + p :]], 1)))), x[:, s : s + p]

    return forward


@pytest.mark.parametrize(("kind", "name"), CASES, ids=lambda x: x)
def test_tokens_in_timms_trunks(kind, name):
    trunk = trunk_of(kind, name)
    tower = walked(trunk)
    pixels = torch.randn(2, 3, *tower.preprocessing.size).double()
    t = torch.randn(1, 2, 64).double().requires_grad_()
    found = tower(images(pixels), Prompt(tokens={0: t}))
    wanted, prompts = inserted(trunk, t)(pixels)
    near(found, wanted, 1e-12)
    direction = torch.randn_like(found)
    near(*(torch.autograd.grad((f * direction).sum(), t)[0] for f in (found, wanted)), 1e-11)
    if not tower.is_norm_after_pool:
        near(tower(images(pixels), Prompt(tokens={0: t}), output="prompts"), prompts, 1e-12)
    every = tower.sites(*{site.split("/")[-1] for site in tower.blocks[0].sites(0)})
    parts = {site: _Checked(fan) for site, fan in every.items()}
    deep = {i: torch.randn(2, 3, 64).double() for i in range(3)}
    kv = {1: (torch.randn(1, 4, 2, 16).double(), torch.randn(1, 4, 2, 16).double())}
    assert tower(images(pixels), Prompt(deep, kv, parts)).shape == (2, 24)
    assert all(part.called for part in parts.values())


class _Checked:
    """A part that holds the widths it was promised against what it gets."""

    def __init__(self, fan):
        self.fan, self.called = fan, False

    def __call__(self, given, made):
        assert (given.shape[-1], made.shape[-1]) == self.fan
        self.called = True
        return made


@pytest.mark.parametrize("case", ["queries normalised", "attention pool without blocks", "mixed rope", "shared keys"])
def test_other_trunks_are_not_walked(case):
    trunk = {
        "queries normalised": lambda: VisionTransformer(**PLAIN, qk_norm=True),
        "attention pool without blocks": lambda: VisionTransformer(**PLAIN, global_pool="prr"),
        "mixed rope": lambda: Eva(**PLAIN, use_rot_pos_emb=True, rope_type="mixed"),
        "shared keys": lambda: Eva(**PLAIN, attn_type="rope", qkv_fused=False, num_kv_heads=2),
    }[case]()
    assert build_timm_tower(trunk, identity, 24, LOOK, "timm", torch.device("cpu")) is None
    assert build_timm_tower(timm.create_model("resnet10t"), identity, 24, LOOK, "timm", torch.device("cpu")) is None


# --- open_clip's families, with their own proportions ---

TWO = {"layers": 2, "context_length": 40}


def vit(patch, head_width, text_width, text_heads, **more):
    """A ViT layout: patch, width of a head and text width as in the family, two layers and two heads."""
    vision = {"image_size": 2 * patch, "patch_size": patch, "width": 2 * head_width, "head_width": head_width}
    text = {"width": text_width, "heads": text_heads}
    return {"vision_cfg": vision | {"layers": 2}, "text_cfg": TWO | text} | more


LAYOUTS = {
    "ViT-B-32": vit(32, 64, 64, 1),
    "ViT-B-16, openai": vit(16, 64, 64, 1, quick_gelu=True),
    "ViT-L-14": vit(14, 64, 96, 3),
    "ViT-L-14, openai": vit(14, 64, 96, 3, quick_gelu=True),
    "ViT-H-14": vit(14, 80, 128, 2),
    "ViT-g-14": vit(14, 88, 128, 2),
    "RN50": {"vision_cfg": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 16, "patch_size": None}},
    "RN50, openai": {
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
        "quick_gelu": True,
    },
}


def whole(clip, model, tokenizer, taken):
    """Features are the library's; soft words are those words; a prompt of the image is taken or refused."""
    pixels, texts = torch.randn(3, 3, *clip.image.preprocessing.size), ["a photo of a dog.", "cat", "C++", "a!! photo"]
    with torch.no_grad():
        plain = {"normalize": False}
        image = model.encode_image(pixels, **plain)
        near(clip.image(images(pixels)), image[0] if isinstance(image, tuple) else image)
        text = clip.text(texts)
        near(text[0], model.encode_text(tokenizer(texts), **plain))
        words = clip.text.token_embeddings[torch.tensor(clip.text.tokenizer.encode("a photo of a"))][None]
        near(clip.text(["{4} dog."], Prompt(tokens={0: words})), text[:, :1])
        apart, unit = clip.logits(clip.image(images(pixels)), text[0]), torch.nn.functional.normalize
        wanted = model.logit_scale.exp() * unit(clip.image(images(pixels)), dim=-1) @ unit(text[0], dim=-1).T
        near(apart, wanted + (0.0 if model.logit_bias is None else model.logit_bias))
        near(clip.logits(clip.image(images(pixels)), text[0], scale=clip.scale), wanted)
    t = torch.randn(1, 3, clip.text.dim, requires_grad=True)
    clip.text(["{3} dog", "cat {3}"], Prompt(tokens={0: t})).sum().backward()
    assert t.grad.abs().sum() > 0
    if not taken:
        with pytest.raises(ValueError, match=r"expected a block-wise tower .*Use a ViT"):
            clip.image(images(pixels), Prompt(tokens={0: torch.zeros(1, 2, 64)}))
        return
    t = torch.randn(1, 3, clip.image.dim, requires_grad=True)
    deep = Prompt(dict.fromkeys(range(clip.image.depth), t), adapters={"0/q": lambda given, made: made + given})
    assert not torch.allclose(clip.image(images(pixels), deep).detach(), clip.image(images(pixels)))
    clip.image(images(pixels), deep).sum().backward()
    assert t.grad.abs().sum() > 0


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_open_clip(name):
    model, tokenizer = library(LAYOUTS[name])
    clip = wrap_clip(shaken(model), tokenizer, "x")
    whole(clip, model, tokenizer, taken=not name.startswith("RN"))


SIGLIP_TEXT = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True, "norm_kwargs": {"eps": 1e-6}}
TIMM = {
    "SigLIP": (VisionTransformer, VITS["siglip"], "none", SIGLIP_TEXT),
    "SigLIP2": (VisionTransformer, VITS["siglip"], "none", SIGLIP_TEXT | {"act_kwargs": {"approximate": "tanh"}}),
    "EVA01": (Eva, EVAS["eva01"], None, {}),
    "EVA02": (Eva, EVAS["eva02 clip"], None, {}),
    "PE-Core": (Eva, EVAS["perception encoder"], None, {}),
    "projected": (VisionTransformer, {"global_pool": "avg"}, "mlp", {}),
}


@pytest.mark.parametrize("name", TIMM)
def test_open_clips_models_with_a_timm_trunk(name):
    cls, changes, proj, text = TIMM[name]
    vision = {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": proj, "image_size": 32}
    torch.manual_seed(0)
    told = config({"text_cfg": text, "init_logit_bias": -10} if name.startswith("SigLIP") else {"text_cfg": text})
    model = CustomTextCLIP(**told | {"vision_cfg": vision})
    classes = 64 if proj is None else 0
    model.visual.trunk = cls(**PLAIN | changes | {"num_classes": classes})  # open_clip's smallest trunk is not small
    tokenizer = clip_tokenizer(40)
    clip = wrap_clip(shaken(model), tokenizer, "x")
    assert clip.bias == (float(model.logit_bias) if name.startswith("SigLIP") else 0.0)
    whole(clip, model, tokenizer, taken=True)


def coca():
    torch.manual_seed(0)
    vision = {"attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True}
    told = config({"vision_cfg": vision, "text_cfg": {"context_length": 39, "embed_cls": True, "output_tokens": True}})
    model = CoCa(**told, multimodal_cfg={"width": 64, "heads": 4, "layers": 1, "context_length": 39})
    return shaken(model), clip_tokenizer(39)


def test_coca():
    model, tokenizer = coca()
    clip = wrap_clip(model, tokenizer, "x")
    assert clip.text.context_length == 39
    whole(clip, model, tokenizer, taken=True)
    with torch.no_grad():
        full = ["a " * 36 + "dog", "a " * 35 + "dog", "a!~ cat"]  # the whole context; token 0, which is also the pad
        assert tokenizer(full)[0, -1] == tokenizer.eot_token_id
        assert 0 in tokenizer.encode(full[-1])
        near(clip.text(full)[0], model.encode_text(tokenizer(full), normalize=False))


def test_tokens_in_coca_are_tokens_of_the_library():
    model, tokenizer = coca()
    clip = wrap_clip(model.double(), tokenizer, "x")
    t = torch.randn(2, 3, 48).double()
    texts = ["{3} dog", "a {3} big cat"]
    found = clip.text(texts, Prompt(tokens={0: t}))
    free = [40000, 40001, 40002]  # words nobody uses, given the tokens as their embeddings
    ids = torch.zeros(2, 39, dtype=torch.long)
    for i, text in enumerate(texts):
        row, where = clip.text.tokenizer.tokenize(text, 3)
        ids[i, : len(row)] = torch.tensor([free[w] if w >= 0 else k for k, w in zip(row, where, strict=True)])
    for context in range(2):
        model.text.token_embedding.weight.data[free] = t[context]
        near(found[context], model.encode_text(ids, normalize=False), 1e-12)


@pytest.fixture(scope="module")
def bert_words(tmp_path_factory):
    """A folder with a tokenizer of a few words, as transformers saves one."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("words")
    words = ["<pad>", "<s>", "</s>", "<unk>", "a", "photo", "of", "dog", "cat", "the", "big", "."]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
    )
    made.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["roberta, mean", "bert, class token", "bert, last hidden state"])
def test_text_towers_of_hugging_face(kind, bert_words):
    from transformers import BertConfig, RobertaConfig

    made = RobertaConfig if kind.startswith("roberta") else BertConfig
    told = made(
        vocab_size=12, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=44, pad_token_id=0,
    )  # fmt: skip
    pool = {"mean": "mean_pooler", "class token": "cls_pooler", "last hidden state": "cls_last_hidden_state_pooler"}
    torch.manual_seed(0)
    model = CustomTextCLIP(**config({}))
    model.text = HFTextEncoder("", 64, told, pool[kind.split(", ")[1]], "mlp")
    tokenizer = open_clip.tokenizer.HFTokenizer(str(bert_words), context_length=40)
    clip, texts = wrap_clip(shaken(model), tokenizer, "open_clip:roberta/x"), ["a photo of the dog", "big cat"]
    with torch.no_grad():
        near(clip.text(texts)[0], model.encode_text(tokenizer(texts)))
    for refused in (
        lambda: clip.text(["a dog"], Prompt(tokens={0: torch.zeros(1, 2, 48)})),
        lambda: clip.text.init_context(4),
        lambda: clip.text.sites("q"),
    ):
        with pytest.raises(
            ValueError, match=r"text tower of open_clip:roberta/x: .* got one that only encodes fixed texts. Use a CLIP"
        ):
            refused()


@pytest.mark.parametrize(
    "pool", ["argmax", "eos", "last", "argmax, not causal", "eos, not causal", "first, not causal"]
)
def test_pools_of_a_text(pool):
    changes = {"pool_type": pool.split(", ")[0], "eos_id": 49407, "no_causal_mask": "not causal" in pool}
    model, tokenizer = library({"text_cfg": changes}, CustomTextCLIP)
    whole(wrap_clip(shaken(model), tokenizer, "x"), model, tokenizer, taken=True)


# --- files ---


def tiny_name(folder, name, told):
    """A configuration that open_clip then knows by name."""
    (folder / f"{name}.json").write_text(json.dumps(config(told)))
    open_clip.add_model_config(folder / f"{name}.json")
    return name


def as_openai(model):
    """What `torch.save(model.state_dict())` of openai/CLIP holds: maps in half precision, norms not, three numbers."""
    half = {"weight": (nn.Linear, nn.Conv2d), "bias": (nn.Linear, nn.Conv2d)}
    state = dict(model.state_dict())
    for name, module in model.named_modules():
        for part, kinds in half.items():
            if isinstance(module, kinds) and f"{name}.{part}" in state:
                state[f"{name}.{part}"] = state[f"{name}.{part}"].half()
    for name in ("visual.proj", "text_projection", *(n for n in state if "in_proj" in n)):
        if name in state:
            state[name] = state[name].half()
    return state | {
        "input_resolution": torch.tensor(64),
        "context_length": torch.tensor(40),
        "vocab_size": torch.tensor(9),
    }


class Tree(nn.Module):
    """Modules that hold tensors under the names of a state dict, as a TorchScript archive does."""

    def __init__(self, state):
        super().__init__()
        for name in dict.fromkeys(name.partition(".")[0] for name in state):
            inner = {k.partition(".")[2]: v for k, v in state.items() if k.startswith(name + ".")}
            if inner:
                self.add_module(name, Tree(inner))
            else:
                self.register_buffer(name, state[name])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


OPENAI = {"ViT": vit(32, 64, 64, 1), "RN": LAYOUTS["RN50"]}


@pytest.mark.parametrize("form", ["state dict", "under a key", "torchscript"])
@pytest.mark.parametrize("kind", OPENAI)
def test_openais_files(kind, form, tmp_path):
    name = tiny_name(tmp_path, f"tiny-openai-{kind}", OPENAI[kind])
    model, tokenizer = library(OPENAI[kind] | {"quick_gelu": True})
    state = as_openai(shaken(model))
    assert state["visual.conv1.weight"].dtype == torch.float16
    model.load_state_dict({k: v.float() for k, v in state.items() if k not in weights.OPENAI_METADATA_KEYS})
    if form == "torchscript":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the files that were made so are not gone
            torch.jit.save(torch.jit.script(Tree(state)), tmp_path / "w.pt")
    else:
        torch.save(state if form == "state dict" else {"state_dict": state}, tmp_path / "w.pt")
    clip = load(f"open_clip:{name}@{tmp_path / 'w.pt'}", "cpu")
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        near(clip.image(images(pixels)), model.encode_image(pixels))
        near(clip.text(["a dog"])[0], model.encode_text(tokenizer(["a dog"])))
    other = tiny_name(tmp_path, f"tiny-other-{kind}", vit(32, 64, 96, 3))
    with pytest.raises(
        ValueError, match=rf"w.pt': expected a checkpoint of {other}, got another file .*Name the model whose weights"
    ):
        load(f"open_clip:{other}@{tmp_path / 'w.pt'}", "cpu")


class Writer(nn.Module):
    """A module whose TorchScript makes a file when torch.jit.load opens it."""

    def __init__(self, path: str):
        super().__init__()
        self.path = path
        self.proj = nn.Parameter(torch.ones(2, 2))

    @torch.jit.export
    def __getstate__(self) -> tuple[str, torch.Tensor, bool]:
        return self.path, self.proj, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, torch.Tensor, bool]) -> None:
        self.path = state[0]
        self.proj = state[1] + torch.from_file(state[0], True, 4).view(2, 2)
        self.training = state[2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_the_code_in_a_torchscript_archive_is_not_run(tmp_path):
    name, made = tiny_name(tmp_path, "tiny-hostile", OPENAI["ViT"]), tmp_path / "made"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Writer(str(made))), tmp_path / "code.pt")
        with pytest.raises(ValueError, match=f"code.pt': expected a checkpoint of {name}, got another file"):
            load(f"open_clip:{name}@{tmp_path / 'code.pt'}", "cpu")
        assert not made.exists()
        torch.jit.load(tmp_path / "code.pt")
    assert made.exists()  # the file is one that would have done it
    with zipfile.ZipFile(tmp_path / "pickle.pt", "w") as archive:
        archive.writestr("w/constants.pkl", pickle.dumps(()))
        archive.writestr("w/data.pkl", b"cposix\nsystem\n(S'touch " + str(tmp_path / "touched").encode() + b"'\ntR.")
    with pytest.raises(ValueError, match=r"pickle.pt': expected .* got posix.system"):
        load(f"open_clip:{name}@{tmp_path / 'pickle.pt'}", "cpu")
    assert not (tmp_path / "touched").exists()


def test_the_code_of_a_folders_tokenizer_is_not_run(tmp_path):
    model, _ = library(OPENAI["ViT"])
    text = config(OPENAI["ViT"])["text_cfg"] | {
        "hf_tokenizer_name": "x",
        "tokenizer_kwargs": {"trust_remote_code": True},
    }
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config(OPENAI["ViT"]) | {"text_cfg": text}, "preprocess_cfg": {}})
    )
    torch.save(model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "zz", "auto_map": {"AutoConfig": "evil.C"}}))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["evil.T", None]}})
    )
    (tmp_path / "evil.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\n"
        "from transformers import PretrainedConfig, PreTrainedTokenizer\n"
        "class T(PreTrainedTokenizer): pass\nclass C(PretrainedConfig): model_type = 'zz'\n"
    )
    with pytest.raises(ValueError, match="expected a tokenizer of transformers, got one with code of its own"):
        load(f"open_clip:local-dir:{tmp_path}", "cpu")
    assert not (tmp_path / "ran").exists()


def test_torchscript_weights_are_those_that_torch_reads(tmp_path):
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            whole = torch.randn(6, 6)
            self.turned, self.cut = nn.Parameter(whole.t()), nn.Parameter(whole[2:4])
            self.low, self.empty = nn.Parameter(torch.randn(3, 4).half()), nn.Parameter(torch.empty(0))
            self.layers, self.attention = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), nn.MultiheadAttention(8, 2)
            self.neither, self.numbers = torch.ones(2), [1, 2]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.neither.sum() + self.numbers[0]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for make in (torch.jit.script, lambda module: torch.jit.trace(module, torch.ones(2))):
            torch.jit.save(make(Parts()), tmp_path / "parts.pt")
            expected, read = (
                torch.jit.load(tmp_path / "parts.pt").state_dict(),
                read_script_weights(tmp_path / "parts.pt"),
            )
            assert read.keys() == expected.keys()
            assert all(torch.equal(read[key], expected[key]) for key in expected)
            assert all(read[key].dtype == expected[key].dtype for key in expected)
    torch.save(expected, tmp_path / "plain.pt")
    assert read_script_weights(tmp_path / "plain.pt") is None


@pytest.mark.parametrize("agree", [True, False], ids=["one look", "several"])
def test_a_file_is_looked_at_as_the_published_weights_are(agree, tmp_path, monkeypatch):
    """Weights in a file don't say how their pixels were made; SigLIP's are not made as OpenAI's are."""
    from open_clip import pretrained

    name = tiny_name(tmp_path, f"tiny-look-{agree}", LAYOUTS["ViT-B-32"])
    half = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    other = half if agree else half | {"mean": (0.1,) * 3}
    monkeypatch.setitem(pretrained._PRETRAINED, name, {"a": {"url": "x"} | half, "b": {"url": "y"} | other})
    torch.save(shaken(library(LAYOUTS["ViT-B-32"])[0]).state_dict(), tmp_path / "w.pt")
    look = load(f"open_clip:{name}@{tmp_path / 'w.pt'}", "cpu").image.preprocessing
    openai = Preprocessing((64, 64), (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    assert look == (Preprocessing((64, 64), (0.5,) * 3, (0.5,) * 3, "bilinear", "squash") if agree else openai)
    assert weights._find_published_preprocessing("ViT-B-16-SigLIP") == half | {"interpolation": "bicubic"}


TOKENIZED = {
    "first": ({"no_causal_mask": True, "pool_type": "first"}, {}),
    "CLIPA": ({"no_causal_mask": True, "pool_type": "last"}, {"strip_sep_token": True}),
    "worldwide": ({"pool_type": "eos", "eos_id": 2}, {}),
}
NOT_FOUND = {
    "the highest token is no end": ({}, {}),
    "another end": ({"pool_type": "eos", "eos_id": 3}, {}),
    "ends and classes put in by hand": ({"pool_type": "first"}, {"tokenizer_mode": "clips"}),
}


@pytest.mark.parametrize("name", [*TOKENIZED, *NOT_FOUND])
def test_tokenizers_of_hugging_face(name, bert_words):
    changes, options = (TOKENIZED | NOT_FOUND)[name]
    tokenizer = open_clip.tokenizer.HFTokenizer(str(bert_words), context_length=40, **options)
    tokenizer.tokenizer.cls_token = "<s>"
    model, _ = library({"text_cfg": changes}, CustomTextCLIP)
    clip, texts = wrap_clip(shaken(model), tokenizer, "x"), ["a photo of a dog.", "the cat"]
    with torch.no_grad():
        near(clip.text(texts)[0], model.encode_text(tokenizer(texts)))
    prompt = Prompt(tokens={0: torch.randn(1, 3, 48)})
    if name in NOT_FOUND:
        with pytest.raises(ValueError, match="got one that only encodes fixed texts"):
            clip.text(texts, prompt)
    else:
        words = clip.text.token_embeddings[torch.tensor(clip.text.tokenizer.encode("a photo of a"))][None]
        near(clip.text(["{4} dog."], Prompt(tokens={0: words})).detach(), clip.text(texts)[:, :1].detach())


BROKEN_WEIGHTS = {
    "empty": ("open_clip_pytorch_model.bin", lambda file: file.write_bytes(b"")),
    "junk": ("open_clip_model.safetensors", lambda file: file.write_bytes(b"x" * 40)),
    "pickle": ("open_clip_pytorch_model.bin", lambda file: file.write_bytes(pickle.dumps([1, 2], protocol=4))),
    "list": ("open_clip_pytorch_model.bin", lambda file: torch.save([1, 2], file)),
}


@pytest.mark.parametrize("kind", BROKEN_WEIGHTS)
def test_broken_weights_in_a_folder_are_one_error(type_in, tmp_path, kind):
    name, write = BROKEN_WEIGHTS[kind]
    vision = {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8}
    text = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"model_cfg": {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    write(tmp_path / name)
    status, printed = type_in("run", "zero_shot", "digits", "--backbone", f"open_clip:local-dir:{tmp_path}")
    assert status == 2
    assert f"local-dir:{tmp_path}: loading failed" in printed
    assert "open_clip_model.safetensors" in printed
    assert "Traceback" not in printed
    assert "weights_only=False" not in printed
