"""The adapter of CLIP and SigLIP of transformers, from a folder or the Hugging Face hub."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from vlprompt.backbones.towers.freeze import (
    PROBE_TEXT,
    build_patch_unfold,
    convert_activation,
    count_parameters,
    freeze,
    identify,
)
from vlprompt.backbones.towers.text import TransformerTextTower
from vlprompt.backbones.towers.text_tokenizer import TextTokenizer, wrap_hf_tokenizer
from vlprompt.backbones.towers.vit import ViT
from vlprompt.core.images import Preprocessing
from vlprompt.core.towers import Clip
from vlprompt.layers.blocks.block import Block
from vlprompt.layers.frozen_maps import freeze_linear, identity

REQUIRED_FILES = (  # one file of each line must be in a folder
    ("config.json",),
    ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"),
    ("tokenizer.json", "vocab.json and merges.txt", "spiece.model", "tokenizer.model"),
    ("preprocessor_config.json", "processor_config.json"),
)
PIL_INTERPOLATION = {2: "bilinear", 3: "bicubic"}  # PIL's numbers


def load_hf_clip(name: str, *, spec: str, device: str) -> Clip:
    """Load a CLIPModel or SiglipModel (SigLIP 2 of one resolution is one too).

    Args:
        name: a folder, or a name on the hub such as "openai/clip-vit-base-patch16".
        spec: the backbone's full spec.
        device: the device of the towers.

    Raises:
        ValueError: for another kind of model, a folder that does not exist, or incomplete weights.
        OSError: if files are missing; the message says which files to put where.
    """
    try:
        import transformers
    except ImportError as error:
        raise ValueError(
            f"{spec!r}: expected the package transformers, got none. Run pip install transformers."
        ) from error
    check_source(name)
    try:
        model, missing, tokenizer, processor = _read_pretrained(transformers, name)
    except (RuntimeError, SafetensorError) as error:  # tensors of other shapes, a truncated file
        cause = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{name!r}: expected weights of its config.json, got others ({cause}). "
            "Get config.json and weights together."
        ) from error
    except OSError as error:
        raise OSError(_describe_load_failure(name, error)) from error
    if missing:
        raise ValueError(
            f"{name!r}: expected complete weights, but {missing[0]!r} and {len(missing) - 1} more are missing. "
            "Get the files again."
        )
    return wrap_hf_clip(model, tokenizer, processor, spec, device)


def _read_pretrained(transformers: Any, name: str) -> tuple[Any, list[str], Any, Any]:
    """Return model, names of missing weights, tokenizer and image processor; ValueError for another kind of model."""
    kind = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False).model_type
    if kind not in ("clip", "siglip"):
        hint = " or a SigLIP 2 of one resolution, such as google/siglip2-base-patch16-224" if kind == "siglip2" else ""
        raise ValueError(
            f"{name!r}: expected a model of type 'clip' (CLIPModel) or 'siglip' (SiglipModel), got {kind!r}. "
            f"Use such a model{hint}."
        )
    cls: Any = transformers.CLIPModel if kind == "clip" else transformers.SiglipModel
    model, info = cls.from_pretrained(name, output_loading_info=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    processor = transformers.AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    return model, sorted(info["missing_keys"]), tokenizer, processor


def _describe_load_failure(name: str, error: OSError) -> str:
    cause = " ".join(str(error).split())[:300]
    if Path(name).is_dir():
        return f"could not load {name} ({cause})"
    return (
        f"could not load {name} ({cause}). Without a network: get {_describe_required_files()} of "
        f"https://huggingface.co/{name} on another machine, put them into one folder and use "
        '"hf_clip:path/to/that/folder".'
    )


def _describe_required_files() -> str:
    return ", ".join(" or ".join(names[:2]) for names in REQUIRED_FILES)


def check_source(name: str) -> None:
    """Raise ValueError for an impossible name, OSError for a folder that lacks a file."""
    folder = Path(name)
    if folder.is_dir():
        for names in REQUIRED_FILES:
            if not any(_has_files(folder, files) for files in names):
                raise OSError(
                    f"the folder {name!r} has no {' or '.join(names)}. It must have {_describe_required_files()}."
                )
    elif name.count("/") != 1 or name[0] in "./~":
        raise ValueError(
            f"hf_clip: expected a folder or OWNER/NAME on the Hugging Face hub, got {name!r}, and there is no such "
            "folder. Check the path."
        )


def _has_files(folder: Path, files: str) -> bool:
    return all((folder / file).is_file() for file in files.split(" and "))


def wrap_hf_clip(model: Any, tokenizer: Any, processor: Any, spec: str, device: str | torch.device = "cpu") -> Clip:
    """Freeze a CLIPModel or SiglipModel in float32 and wrap it, its tokenizer and image processor as a Clip."""
    device = torch.device(device)
    model = freeze(model.float(), device, spec)
    is_siglip = model.config.model_type == "siglip"
    preprocessing = _read_preprocessing(processor, model.config.vision_config.image_size)
    facts = {"texts": tokenizer.encode(PROBE_TEXT), "kind": model.config.model_type}
    key = f"{spec}#{identify(model, preprocessing, **facts)}"
    image = _build_image_tower(model, is_siglip, preprocessing, key, device)
    n_projection_parameters = 0 if is_siglip else count_parameters(model.visual_projection)
    image.n_parameters = count_parameters(model.vision_model) + n_projection_parameters
    text, scale = _build_text_tower(model, is_siglip, tokenizer, key, device), float(model.logit_scale.exp())
    return Clip(image, text, scale, spec, float(model.logit_bias) if is_siglip else 0.0, count_parameters(model))


def _convert_block(b: Any) -> Block:
    attn, up, down = b.self_attn, b.mlp.fc1, b.mlp.fc2
    qkv_layers = [attn.q_proj, attn.k_proj, attn.v_proj]
    weight, bias = (torch.cat([getattr(layer, name).detach() for layer in qkv_layers]) for name in ("weight", "bias"))
    q, k, v = (freeze_linear(w, b) for w, b in zip(weight.chunk(3), bias.chunk(3), strict=True))
    return Block(
        attn.num_heads,
        up.in_features,
        up.out_features,
        b.layer_norm1,
        q,
        k,
        v,
        freeze_linear(attn.out_proj),
        b.layer_norm2,
        freeze_linear(up),
        convert_activation(b.mlp.activation_fn),
        freeze_linear(down),
        qkv=freeze_linear(weight, bias),
    )


def _read_preprocessing(processor: Any, image_size: int) -> Preprocessing:
    """Return what an image processor does; ValueError if it does anything that Preprocessing does not express."""
    config = processor.to_dict()
    size, crop = dict(config["size"]), dict(config.get("crop_size") or {})
    shortest, square = size.get("shortest_edge"), {"height": image_size, "width": image_size}
    if shortest:
        is_known = shortest == image_size and bool(config.get("do_center_crop")) and crop == square
    else:
        is_known = size == square and not config.get("do_center_crop")
    is_known = is_known and config.get("do_resize", True) and config.get("resample") in PIL_INTERPOLATION
    is_rescaled = config.get("do_rescale", True) and abs(255 * config.get("rescale_factor", 1 / 255) - 1) < 1e-6
    if not (is_known and is_rescaled):
        keys = ("size", "crop_size", "resample", "do_resize", "do_center_crop", "do_rescale", "rescale_factor")
        raise ValueError(
            f"image processor: expected the shortest edge and a centre crop of {image_size}, or height and width of "
            f"{image_size} as in config.json, bilinear (2) or bicubic (3), got "
            f"{', '.join(f'{key} {config.get(key)}' for key in keys)}. Change preprocessor_config.json."
        )
    is_normalized = config.get("do_normalize", True)
    mean = tuple(config["image_mean"]) if is_normalized else (0.0,) * 3
    std = tuple(config["image_std"]) if is_normalized else (1.0,) * 3
    interpolation, resize = PIL_INTERPOLATION[config["resample"]], "shortest" if shortest else "squash"
    return Preprocessing((image_size, image_size), mean, std, interpolation, resize)


def _build_image_tower(
    model: Any, is_siglip: bool, preprocessing: Preprocessing, key: str, device: torch.device
) -> ViT:
    vision = model.vision_model
    conv, positions = vision.embeddings.patch_embedding, vision.embeddings.position_embedding.weight.detach()
    if is_siglip and getattr(vision, "head", None) is None:
        raise ValueError(
            f"{key.split('#')[0]}: expected an image tower with a pooling head, got none. Use another model."
        )
    special = positions[:0] if is_siglip else vision.embeddings.class_embedding.detach()[None]
    patch, side = conv.kernel_size[0], preprocessing.size[0] // conv.kernel_size[0]

    def pool_class_token(x: Tensor) -> Tensor:
        return x[:, 0]

    return ViT(
        [_convert_block(b) for b in vision.encoder.layers],
        unfold=build_patch_unfold(patch),
        embed=freeze_linear(conv.weight.detach().flatten(1), None if conv.bias is None else conv.bias.detach()),
        special_tokens=special,
        position_embeddings=positions,
        pre_norm=identity if is_siglip else vision.pre_layrnorm,
        norm=vision.post_layernorm,
        pool=vision.head if is_siglip else pool_class_token,  # SigLIP's head attends to patches, not to prompts
        project=identity if is_siglip else freeze_linear(model.visual_projection),
        n_pooled_tokens=None if is_siglip else 1,
        is_norm_after_pool=False,
        feature_dim=positions.shape[1] if is_siglip else model.visual_projection.out_features,
        patch_size=patch,
        grid=(side, side),
        preprocessing=preprocessing,
        key=key,
        device=device,
    )


def _build_text_tower(
    model: Any, is_siglip: bool, tokenizer: Any, key: str, device: torch.device
) -> TransformerTextTower:
    text, text_tokenizer = model.text_model, wrap_hf_tokenizer(tokenizer)
    if not is_siglip:
        _check_end_token(text_tokenizer, tokenizer, model.config.text_config.eos_token_id)
    head = text.head if is_siglip else model.text_projection
    length = min(tokenizer.model_max_length, text.embeddings.position_embedding.num_embeddings)
    return TransformerTextTower(
        [_convert_block(b) for b in text.encoder.layers],
        tokenizer=text_tokenizer,
        token_embeddings=text.embeddings.token_embedding.weight.detach(),
        positions=text.embeddings.position_embedding.weight.detach()[:length],
        norm=text.final_layer_norm,
        project=freeze_linear(head),
        is_causal=not is_siglip,
        pooling="last" if is_siglip else "end",  # SigLIP's texts are padded to the context length, without a mask
        feature_dim=head.out_features,
        key=key,
        device=device,
    )


def _check_end_token(text_tokenizer: TextTokenizer, tokenizer: Any, eos_token_id: int) -> None:
    """Raise ValueError if texts do not end with the token that CLIPModel pools.

    That is the first `eos_token_id` of a text or, where the configuration says 2 (old files), its highest id.
    """
    pooled_id = max(tokenizer.get_vocab().values()) if eos_token_id == 2 else eos_token_id
    if text_tokenizer.end_ids != (pooled_id,):
        raise ValueError(
            f"tokenizer: expected texts that end with token {pooled_id}, which this CLIPModel pools (eos_token_id "
            f"{eos_token_id} in config.json), got {list(text_tokenizer.end_ids)}. "
            "Use the tokenizer that the model was trained with."
        )
