"""CLIP and SigLIP of transformers as towers, from a folder or the Hugging Face hub; only here are they touched."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from vlprompt.backbones.towers.freeze import activation, count, fingerprint, freeze, patches
from vlprompt.backbones.towers.image import ViT
from vlprompt.backbones.towers.text import TextTower, Words, whole_words
from vlprompt.core.images import Look
from vlprompt.core.towers import Clip
from vlprompt.layers.block import Block
from vlprompt.layers.frozen_maps import linear, same

FILES = (  # what a folder must have: one of each line
    ("config.json",),
    ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
    ("tokenizer.json", "vocab.json and merges.txt", "spiece.model", "tokenizer.model"),
    ("preprocessor_config.json", "processor_config.json"),
)
INTERPOLATION = {2: "bilinear", 3: "bicubic"}  # of PIL


def hf_clip(name: str, *, spec: str, device: str) -> Clip:
    """A CLIPModel or SiglipModel by its folder or its name on the hub ("openai/clip-vit-base-patch16").

    SigLIP 2 of one resolution is a SiglipModel too. Raises ValueError for another kind of model, for a folder that is
    not there or for weights that are not whole, and OSError where files can't be had, saying which to put where.
    """
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f"{spec!r} needs transformers: pip install transformers") from error
    _check_place(name)
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        kind = config.model_type
        if kind not in ("clip", "siglip"):
            naflex = "; SigLIP 2 with one resolution, such as google/siglip2-base-patch16-224, is read"
            raise ValueError(
                f"{name!r} is a model of type {kind!r}, but hf_clip reads 'clip' (CLIPModel) and 'siglip' "
                f"(SiglipModel){naflex if kind == 'siglip2' else ''}"
            )
        cls: Any = transformers.CLIPModel if kind == "clip" else transformers.SiglipModel
        model, told = cls.from_pretrained(name, output_loading_info=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        processor = transformers.AutoImageProcessor.from_pretrained(name)
    except (RuntimeError, SafetensorError) as error:  # tensors of other shapes, a file that is cut off
        cause = " ".join(str(error).split())[:300]
        raise ValueError(f"the weights of {name!r} are not those of its config.json: {cause}") from error
    except OSError as error:
        cause = " ".join(str(error).split())[:300]
        remedy = f"get {_wanted()} of https://huggingface.co/{name} on another machine, put them into one folder"
        remedy = f'. Without a network: {remedy} and use "hf_clip:path/to/that/folder"'
        raise OSError(f"could not load {name} ({cause}){'' if Path(name).is_dir() else remedy}") from error
    if missing := sorted(told["missing_keys"]):
        raise ValueError(
            f"the weights of {name!r} are not whole: {missing[0]!r} and {len(missing) - 1} more are missing"
        )
    return wrap(model, tokenizer, processor, spec, device)


def _wanted() -> str:
    return ", ".join(" or ".join(names[:2]) for names in FILES)


def _check_place(name: str) -> None:
    """ValueError for what can be no name, OSError for a folder that lacks a file."""
    folder = Path(name)
    if folder.is_dir():
        if lacking := [names for names in FILES if not any(_there(folder, n) for n in names)]:
            raise OSError(f"the folder {name!r} has no {' or '.join(lacking[0])}; it must have {_wanted()}")
    elif name.count("/") != 1 or name[0] in "./~":
        raise ValueError(f"there is no folder {name!r}, and a name on the Hugging Face hub is OWNER/NAME")


def _there(folder: Path, files: str) -> bool:
    return all((folder / file).is_file() for file in files.split(" and "))


def wrap(model: Any, tokenizer: Any, processor: Any, spec: str, device: str | torch.device = "cpu") -> Clip:
    """A CLIPModel or SiglipModel, its tokenizer and its image processor as a Clip; the model is frozen, in float32."""
    device = torch.device(device)
    model = freeze(model.float(), device)
    key, siglip = f"{spec}#{fingerprint(model)}", model.config.model_type == "siglip"
    bias = float(model.logit_bias) if siglip else 0.0
    image = _image(model, siglip, _look(processor, model.config.vision_config.image_size), key, device)
    image.size = count(model.vision_model) + (0 if siglip else count(model.visual_projection))
    text, scale = _text(model, siglip, tokenizer, key, device), float(model.logit_scale.exp())
    return Clip(image, text, scale, spec, bias, count(model))


def _block(b: Any) -> Block:
    a, up, down = b.self_attn, b.mlp.fc1, b.mlp.fc2
    each = [a.q_proj, a.k_proj, a.v_proj]
    weight, bias = (torch.cat([getattr(f, part).detach() for f in each]) for part in ("weight", "bias"))
    q, k, v = (linear(*one) for one in zip(weight.chunk(3), bias.chunk(3), strict=True))
    return Block(a.num_heads, up.in_features, up.out_features, b.layer_norm1, q, k, v, linear(a.out_proj),
                 b.layer_norm2, linear(up), activation(b.mlp.activation_fn), linear(down),
                 qkv=linear(weight, bias))  # fmt: skip


def _look(processor: Any, side: int) -> Look:
    """What the image processor does, as a Look; ValueError where it does anything else."""
    told = processor.to_dict()
    size, crop = dict(told["size"]), dict(told.get("crop_size") or {})
    shortest = size.get("shortest_edge")
    if shortest:
        known, resize = told.get("do_center_crop") and crop == {"height": shortest, "width": shortest}, "shortest"
    else:
        known, resize = size == {"height": side, "width": side} and not told.get("do_center_crop"), "squash"
    known = known and told.get("do_resize", True) and told.get("resample") in INTERPOLATION
    known = known and told.get("do_rescale", True) and abs(255 * told.get("rescale_factor", 1 / 255) - 1) < 1e-6
    if not known or (shortest or side) != side:
        keys = ("size", "crop_size", "resample", "do_resize", "do_center_crop", "do_rescale", "rescale_factor")
        raise ValueError(
            f"the image processor of this model is not one that vlprompt knows: "
            f"{', '.join(f'{key} {told.get(key)}' for key in keys)}; it knows the shortest edge and a centre cut "
            f"of that size, or height and width, {side} as in config.json, bilinear (2) or bicubic (3)"
        )
    normal = told.get("do_normalize", True)
    mean, std = (tuple(told["image_mean"]), tuple(told["image_std"])) if normal else ((0.0,) * 3, (1.0,) * 3)
    return Look((side, side), mean, std, INTERPOLATION[told["resample"]], resize)


def _image(model: Any, siglip: bool, look: Look, key: str, device: torch.device) -> ViT:
    vision = model.vision_model
    conv, positions = vision.embeddings.patch_embedding, vision.embeddings.position_embedding.weight.detach()
    if siglip and getattr(vision, "head", None) is None:
        raise ValueError(f"the image tower of {key.split('#')[0]} has no pooling head, so it makes no feature")
    special = positions[:0] if siglip else vision.embeddings.class_embedding.detach()[None]
    patch, side = conv.kernel_size[0], look.size[0] // conv.kernel_size[0]

    def class_row(x: Tensor) -> Tensor:
        return x[:, 0]

    return ViT(
        [_block(b) for b in vision.encoder.layers],
        unfold=patches(patch),
        embed=linear(conv.weight.detach().flatten(1), None if conv.bias is None else conv.bias.detach()),
        special=special,
        positions=positions,
        pre=same if siglip else vision.pre_layrnorm,
        norm=vision.post_layernorm,
        pool=vision.head if siglip else class_row,  # SigLIP's head attends to all patches, and to no prompt row
        project=same if siglip else linear(model.visual_projection),
        read=None if siglip else 1,
        norm_last=False,
        width=positions.shape[1] if siglip else model.visual_projection.out_features,
        patch=patch,
        grid=(side, side),
        look=look,
        key=key,
        device=device,
    )


def _text(model: Any, siglip: bool, tokenizer: Any, key: str, device: torch.device) -> TextTower:
    text, words = model.text_model, whole_words(tokenizer)
    if not siglip:
        _check_end(words, tokenizer, model.config.text_config.eos_token_id)
    head = text.head if siglip else model.text_projection
    length = min(tokenizer.model_max_length, text.embeddings.position_embedding.num_embeddings)
    return TextTower(
        [_block(b) for b in text.encoder.layers],
        words=words,
        table=text.embeddings.token_embedding.weight.detach(),
        positions=text.embeddings.position_embedding.weight.detach()[:length],
        norm=text.final_layer_norm,
        project=linear(head),
        causal=not siglip,
        read="last" if siglip else "end",  # SigLIP's texts are filled up to the whole context, without a mask
        width=head.out_features,
        key=key,
        device=device,
    )


def _check_end(words: Words, tokenizer: Any, eos: int) -> None:
    """CLIPModel reads the first `eos` of a text, and where its configuration says 2 (old files) the highest id."""
    wanted = max(tokenizer.get_vocab().values()) if eos == 2 else eos
    if words.end != (wanted,):
        raise ValueError(
            f"this CLIPModel reads a text where token {wanted} stands (eos_token_id {eos} in config.json), but its "
            f"tokenizer ends a text with {list(words.end)}: take the tokenizer that the model was trained with"
        )
