"""CLIPModel and SiglipModel of transformers, written to folders as tiny random twins and loaded from there."""

import json
import shutil
import sys

import pytest
import torch
from random_twins import shaken
from shared import images
from written_out import Whole, near

from vlprompt.backbones import hf_clip, load
from vlprompt.core.prompt import Prompt

VISION = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
          "image_size": 32, "patch_size": 8}  # fmt: skip
TEXT = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 3,
        "max_position_embeddings": 40}  # fmt: skip
END = 517  # the last of the tiny CLIP vocabulary: bytes, bytes at the end of a word, four merges, start, end
TEXTS = ["a photo of a dog.", "cat", "the U.S. flag, in colour", "a!~ big photo", "ö and {{curly}}"]
PLAIN = [text.replace("{{", "{").replace("}}", "}") for text in TEXTS]
KINDS = ["clip", "clip, gelu", "clip, old end", "siglip"]


def clip_words(folder):
    """A byte-level tokenizer as CLIP's, with four merges, in the files that OpenAI's folders on the hub have."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters, merges = sorted(ByteLevel.alphabet()), ["d o", "do g</w>", "c a", "ca t</w>"]
    ends = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    words = [*letters, *(c + "</w>" for c in letters), *(m.replace(" ", "") for m in merges), *ends.values()]
    assert len(words) == END + 1
    told = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 40, "pad_token": "<|endoftext|>", **ends}
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(told))


def siglip_words(folder):
    """Words with an end, no beginning, and padding with the end's own token, as SigLIP has it."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "</s>", "a", "photo", "of", "dog", "cat", "the", "big", ".", ",", *map(chr, range(97, 123))]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(dict.fromkeys(words))}, unk_token="<unk>"))
    inner.normalizer, inner.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="</s>", eos_token="</s>", unk_token="<unk>", model_max_length=40
    ).save_pretrained(folder)


def write(folder, kind):
    """A tiny random model with all that belongs to it, in a folder; -> the model."""
    from transformers import (
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        SiglipConfig,
        SiglipImageProcessor,
        SiglipModel,
    )

    torch.manual_seed(0)
    if kind == "siglip":
        siglip_words(folder)
        text = TEXT | {"vocab_size": 50, "projection_size": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=VISION))
        processor = SiglipImageProcessor(size={"height": 32, "width": 32}, resample=2)
    else:
        clip_words(folder)
        act = {"hidden_act": "gelu" if kind == "clip, gelu" else "quick_gelu"}
        ends = {"bos_token_id": END - 1, "pad_token_id": END, "eos_token_id": 2 if kind == "clip, old end" else END}
        text = TEXT | {"vocab_size": END + 1} | act | ends
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION | act, projection_dim=40))
        processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    shaken(model).save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {kind: tmp_path_factory.mktemp("model") for kind in KINDS}
    return {kind: (folder, write(folder, kind)) for kind, folder in made.items()}


def features(found):
    return found if isinstance(found, torch.Tensor) else found.pooler_output  # transformers 4 gives the tensor


@pytest.mark.parametrize("kind", KINDS)
def test_the_walk_is_transformers_forward(folders, kind):
    from transformers import AutoTokenizer

    folder, model = folders[kind]
    clip, tokenizer = load(f"hf_clip:{folder}", "cpu"), AutoTokenizer.from_pretrained(folder)
    pixels, siglip = torch.randn(3, 3, 32, 32), kind == "siglip"
    ids = tokenizer(PLAIN, padding="max_length" if siglip else True, return_tensors="pt")
    ids = {"input_ids": ids["input_ids"]} if siglip else ids  # SigLIP's processor gives no mask
    with torch.no_grad():
        near(clip.image(images(pixels)), features(model.get_image_features(pixels)))
        near(clip.text(TEXTS)[0], features(model.get_text_features(**ids)))
        wanted = model(pixel_values=pixels, **ids).logits_per_image
        near(clip.logits(clip.image(images(pixels)), clip.text(TEXTS)[0]), wanted)
    assert (clip.bias != 0) == siglip
    assert clip.image.preprocessing.resize == ("squash" if siglip else "shortest")
    assert clip.image.preprocessing.interpolation == ("bilinear" if siglip else "bicubic")
    assert clip.image.preprocessing.mean == ((0.5,) * 3 if siglip else (0.48145466, 0.4578275, 0.40821073))
    assert clip.feature_dim == clip.text.feature_dim == (64 if siglip else 40)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_prompts_go_in(folders, kind):
    folder, model = folders[kind]
    clip = load(f"hf_clip:{folder}", "cpu")
    texts = ["{2} dog", "{2} cat.", "a {2} big dog", "{1} a photo {1}"]
    t = torch.randn(2, 2, 48, requires_grad=True)
    with torch.no_grad():
        words = clip.text.token_embeddings[torch.tensor(clip.text.tokenizer.encode("a photo of a"))][None]
        near(clip.text([f"{{{words.shape[1]}}} dog."], Prompt(tokens={0: words})), clip.text(["a photo of a dog."]))
    fast, slow = (clip.text(texts, Prompt({0: t, 1: t}, adapters=b)) for b in ({}, {"0/q": Whole()}))
    near(fast.detach(), slow.detach())
    direction = torch.randn_like(fast)
    near(*(torch.autograd.grad((f * direction).sum(), t)[0] for f in (fast, slow)))

    pixels, special = torch.randn(2, 3, 32, 32), 0 if kind == "siglip" else 1
    t = torch.randn(1, 3, 64)
    vision = model.vision_model
    with torch.no_grad():  # transformers' own modules, with the tokens put in by hand
        x = vision.embeddings(pixels)
        x = torch.cat([x[:, :special], t.expand(2, -1, -1), x[:, special:]], 1)
        x = x if kind == "siglip" else vision.pre_layrnorm(x)
        x = vision.post_layernorm(vision.encoder(inputs_embeds=x).last_hidden_state)
        wanted = vision.head(x[:, 3:]) if kind == "siglip" else model.visual_projection(x[:, 0])
        near(clip.image(images(pixels), Prompt(tokens={0: t})), wanted)
        near(clip.image(images(pixels), Prompt(tokens={0: t}), output="prompts"), x[:, special : special + 3])


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_tokens_from_a_later_layer(folders, kind):
    """They mix with what stands there; the towers are read twice in one pass."""
    folder, model = folders[kind]
    clip, special = load(f"hf_clip:{folder}", "cpu"), 0 if kind == "siglip" else 1
    pixels, t = torch.randn(2, 3, 32, 32), {i: torch.randn(1, 3, 64) for i in (1, 2)}
    vision, mine = model.vision_model, slice(special, special + 3)
    with torch.no_grad():
        x = vision.embeddings(pixels)
        x = x if kind == "siglip" else vision.pre_layrnorm(x)
        for i, layer in enumerate(vision.encoder.layers):
            if i == 1:
                x = torch.cat([x[:, :special], t[1].expand(2, -1, -1), x[:, special:]], 1)
            if i == 2:
                x = torch.cat([x[:, :special], 0.2 * x[:, mine] + 0.8 * t[2], x[:, special + 3 :]], 1)
            found = layer(x, attention_mask=None)
            x = found if isinstance(found, torch.Tensor) else found[0]  # transformers 4 gives a tuple
        x = vision.post_layernorm(x)
        wanted = vision.head(x[:, 3:]) if kind == "siglip" else model.visual_projection(x[:, 0])
        pooled, prompts = clip.image.read(images(pixels), Prompt(t, carry={2: 0.2}), ("pooled", "prompts"))
        near(pooled, wanted)
        near(prompts, x[:, mine])
    t = {1: torch.randn(1, 2, 48, requires_grad=True), 2: torch.randn(1, 4, 2, 48, requires_grad=True)}
    texts = ["dog", "a photo of a cat.", "a {2} big dog", "the"]
    fast, slow = (clip.text(texts, Prompt(t, carry={2: 0.3}, adapters=b)) for b in ({}, {"0/q": Whole()}))
    near(fast.detach(), slow.detach())
    direction = torch.randn_like(fast)
    for a, b in zip(*(torch.autograd.grad((f * direction).sum(), list(t.values())) for f in (fast, slow)), strict=True):
        near(a, b)


def changed(folder, tmp_path, name, change):
    """A copy of the folder with one JSON file changed."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    told = json.loads((copy / name).read_text())
    change(told)
    (copy / name).write_text(json.dumps(told))
    return f"hf_clip:{copy}"


WRONG = {  # family, file, the place in it, what is put there, what is told
    "a model that is not read": (
        *("siglip", "config.json", ("model_type",), "siglip2"),
        r"expected a model of type 'clip'.* got 'siglip2'. Use .*siglip2-base-patch16-224",
    ),
    "a tokenizer of another model": (
        *("clip", "config.json", ("text_config", "eos_token_id"), 300),
        r"expected texts that end with token 300.*got \[517\]. Use the tokenizer",
    ),
    "pixels that would be made another way": (
        *("clip", "preprocessor_config.json", ("size", "shortest_edge"), 40),
        r"expected the shortest edge.*got size \{'shortest_edge': 40\}.*Change preprocessor_config",
    ),
    "weights that are not whole": (
        *("clip", "config.json", ("vision_config", "num_hidden_layers"), 4),
        r"expected complete weights, but 'vision_model.*and 15 more are missing. Get",
    ),
    "weights of another shape": (
        *("clip", "config.json", ("vision_config", "intermediate_size"), 100),
        r"expected weights of its config.json, got others .*Get config.json and weights together",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_folder_that_does_not_fit_together(folders, tmp_path, case):
    family, file, (*above, key), value, told = WRONG[case]

    def other(held):
        for name in above:
            held = held[name]
        held[key] = value

    spec = changed(folders[family][0], tmp_path, file, other)
    with pytest.raises(ValueError, match=told):
        load(spec, "cpu")


def test_weights_that_are_cut_off(folders, tmp_path):
    torn = shutil.copytree(folders["clip"][0], tmp_path / "torn")
    (torn / "model.safetensors").write_bytes((torn / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(
        ValueError, match=r"expected weights of its config.json, got others .*Get config.json and weights together"
    ):
        load(f"hf_clip:{torn}", "cpu")


@pytest.mark.parametrize(("name", "wanted"), [("merges.txt", "must have"), ("config.json", "must have config.json")])
def test_a_folder_that_lacks_a_file(folders, tmp_path, name, wanted):
    copy = shutil.copytree(folders["clip"][0], tmp_path / "copy")
    (copy / name).unlink()
    with pytest.raises(OSError, match=rf"has no .*{name}.*{wanted}"):
        load(f"hf_clip:{copy}", "cpu")


def test_names_that_can_not_be_had(monkeypatch):
    import transformers

    with pytest.raises(
        ValueError,
        match=r"OWNER/NAME on the Hugging Face hub, got './clip', and there is no such folder. Check the path",
    ):
        load("hf_clip:./clip", "cpu")

    def unreachable(name, **options):
        raise OSError("We couldn't connect to 'https://huggingface.co'")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", unreachable)
    with pytest.raises(
        OSError, match=r"(?s)couldn't connect.*config.json, model.safetensors.*hf_clip:path/to/that/folder"
    ):
        load("hf_clip:openai/clip-vit-base-patch16", "cpu")


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        ValueError, match=r"'hf_clip:a/b': expected the package transformers, got none. Run pip install transformers"
    ):
        hf_clip.load_hf_clip("a/b", spec="hf_clip:a/b", device="cpu")
