"""Write an image tower and a linear head as timm's own model, and read it back by timm."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlprompt.backbones.timm.loading import read_timm_model
from vlprompt.backbones.towers.image import ImageTower
from vlprompt.backbones.towers.plain_weights import (
    BLOCK_MAPS,
    describe_unknown_tower,
    read_block_settings,
    read_blocks,
    read_eps,
    read_map,
    read_patch_weights,
    read_projection,
)
from vlprompt.backbones.towers.vit import ViT

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
ARCHITECTURE_BY_EPS = {1e-5: "vit_base_patch16_clip_224", 1e-6: "vit_base_patch16_224"}  # their norms differ in eps
TIMM_MAPS = {
    "norm1": "norm1",
    "qkv": "attn.qkv",
    "out": "attn.proj",
    "norm2": "norm2",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}
CROP_MODES = {"shortest": "center", "squash": "squash"}


def write_timm(tower: ImageTower, weight: Tensor, bias: Tensor, class_names: Sequence[str], folder: Path) -> None:
    """Write a model that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads.

    Args:
        tower: a tower that came from timm, or a plain ViT with a class token.
        weight: (C, E) of the head on the tower's features.
        bias: (C,).
        class_names: of the rows.
        folder: where to write.

    Raises:
        ValueError: with the reason, for a tower that has no such form.
    """
    from safetensors.torch import save

    build = _rebuild_timm_model if tower.spec.startswith("timm:") else _build_plain_vit
    model, architecture, arguments = build(tower, len(weight))
    if not tower.preprocessing.antialias:
        raise ValueError("its preprocessing does not smooth, as timm does")
    head = model.get_classifier()
    if not isinstance(head, nn.Linear):
        raise ValueError(f"its classifier in timm is a {type(head).__name__}, no linear map of the pooled feature")
    projection = read_projection(tower.project, tower.dim) if isinstance(tower, ViT) and tower.dim else None
    head.weight.copy_(weight if projection is None else weight @ projection)
    head.bias.copy_(bias)
    config = _describe(model, architecture, arguments, tower, class_names)
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()}
    (folder / WEIGHTS_FILE).write_bytes(save(tensors, {"format": "pt"}))
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", "utf-8")


def read_timm(folder: Path, device: torch.device) -> Callable[[Sequence[Any]], Tensor]:
    """Load a folder by plain timm: PIL images -> logits (B, C), by the preprocessing of its configuration."""
    import timm
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval().to(device)
    transform: Any = create_transform(**resolve_data_config(model=model))

    def answer(pictures: Sequence[Any]) -> Tensor:
        with torch.no_grad():
            return model(torch.stack([transform(picture) for picture in pictures]).to(device))

    return answer


def _rebuild_timm_model(tower: ImageTower, n_classes: int) -> tuple[Any, str, dict[str, Any]]:
    """Return timm's model of a tower with its weights and a new classifier, its name and its arguments."""
    source = read_timm_model(tower.spec.partition(":")[2])
    model, arguments = source.model.float().eval(), dict[str, Any]()
    if isinstance(tower, ViT):
        if tower.native_geometry[0] != tower.preprocessing.size or _has_other_size(source.name, tower):
            arguments["img_size"] = list(tower.preprocessing.size)
        if source.file is not None:
            arguments["num_heads"] = tower.n_heads
        rebuilt: Any = _create(source.name, n_classes, arguments)
        state = {name: t for name, t in model.state_dict().items() if name not in ("pos_embed",)}
        missing = set(rebuilt.load_state_dict(state, strict=False).missing_keys)
        head = {name for name in missing if rebuilt.get_classifier() is not None and name.startswith("head.")}
        if missing - head - {"pos_embed"}:
            raise ValueError(f"timm has other parameters for this size: {', '.join(sorted(missing - head))}")
        _fill_vit(rebuilt, tower, source.name)
        return rebuilt, source.name, arguments
    model.reset_classifier(n_classes)
    return model, source.name, arguments


def _has_other_size(name: str, tower: ViT) -> bool:
    from timm.models import get_pretrained_cfg

    config: Any = get_pretrained_cfg(name)
    return tuple(config.input_size[1:]) != tower.preprocessing.size


def _build_plain_vit(tower: ImageTower, n_classes: int) -> tuple[Any, str, dict[str, Any]]:
    """Return timm's ViT with the weights of a plain one and a new classifier, its name and its arguments."""
    if (reason := describe_unknown_tower(tower)) is not None or not isinstance(tower, ViT):
        raise ValueError(reason or "its image tower is no ViT with known blocks")
    if tower.n_pooled_tokens != 1 or tower.is_norm_after_pool:
        raise ValueError("its image tower pools other tokens than the class token")
    settings = read_block_settings(tower.blocks)
    architecture = ARCHITECTURE_BY_EPS.get(settings.eps)
    if architecture is None or read_eps(tower.norm) != settings.eps:
        raise ValueError(f"its norms have an eps of {settings.eps:g}, which timm's architectures don't have")
    arguments = {
        "img_size": list(tower.preprocessing.size),
        "patch_size": tower.patch_size,
        "embed_dim": tower.dim,
        "depth": tower.depth,
        "num_heads": settings.n_heads,
        "mlp_ratio": settings.mlp_ratio,
        "act_layer": settings.activation,
        "pre_norm": isinstance(tower.pre_norm, nn.LayerNorm),
        "init_values": 1.0 if settings.has_layer_scale else None,
    }
    model = _create(architecture, n_classes, arguments)
    _fill_vit(model, tower, architecture)
    return model, architecture, arguments


def _create(architecture: str, n_classes: int, arguments: dict[str, Any]) -> Any:
    import timm

    with torch.random.fork_rng(devices=[]):
        return timm.create_model(architecture, num_classes=n_classes, **arguments).eval().requires_grad_(False)


def _fill_vit(model: Any, tower: ViT, architecture: str) -> None:
    """Copy a tower's weights into timm's ViT; ValueError for one that has no parameter there."""
    if type(model).__module__ != "timm.models.vision_transformer":
        return  # no other design is merged, and the comparison shows where one was
    patches, bias, positions = read_patch_weights(tower)
    state = read_blocks(tower.blocks, _name_parameters())
    state |= {"patch_embed.proj.weight": patches, **_read_norms(model, tower)}
    known = model.state_dict()
    state |= _read_special_tokens(model, tower)
    if bias is not None and "patch_embed.proj.bias" in known:
        state["patch_embed.proj.bias"] = bias
    elif bias is not None:
        positions = torch.cat([positions[: tower.n_special_tokens], positions[tower.n_special_tokens :] + bias])
    if "pos_embed" in known:
        state["pos_embed"] = positions[None, len(positions) - known["pos_embed"].shape[1] :]
    unknown = [name for name, tensor in state.items() if name not in known and bool(tensor.any())]
    if unknown:
        raise ValueError(f"{architecture} of timm has no parameter {unknown[0]}")
    model.load_state_dict({name: t.to(known[name].dtype) for name, t in state.items() if name in known}, strict=False)


def _read_special_tokens(model: Any, tower: ViT) -> dict[str, Tensor]:
    """Return the class token and the register tokens, of which timm has each or not."""
    n_class_tokens, tokens = int(model.cls_token is not None), tower.special_tokens.detach()[None]
    parts = {"cls_token": tokens[:, :n_class_tokens], "reg_token": tokens[:, n_class_tokens:]}
    return {name: part for name, part in parts.items() if part.shape[1]}


def _read_norms(model: Any, tower: ViT) -> dict[str, Tensor]:
    name = "fc_norm" if tower.is_norm_after_pool else "norm"
    norms = read_map(tower.norm, name)
    if isinstance(tower.pre_norm, nn.LayerNorm):
        norms |= read_map(tower.pre_norm, "norm_pre")
    return norms


def _name_parameters() -> dict[str, str]:
    """Return timm's names of the parameters of blocks, by ours."""
    names = {f"{m}.{p}": f"blocks.{{i}}.{TIMM_MAPS[m]}.{p}" for m in BLOCK_MAPS for p in ("weight", "bias")}
    return names | {f"scale{number}": f"blocks.{{i}}.ls{number}.gamma" for number in (1, 2)}


def _describe(
    model: Any, architecture: str, arguments: dict[str, Any], tower: ImageTower, class_names: Sequence[str]
) -> dict[str, Any]:
    """Return timm's configuration of a repository."""
    preprocessing, defaults = tower.preprocessing, model.pretrained_cfg
    pretrained = {
        "input_size": [3, *preprocessing.size],
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "interpolation": preprocessing.interpolation,
        "crop_pct": preprocessing.crop,
        "crop_mode": CROP_MODES[preprocessing.resize],
        "num_classes": len(class_names),
        "pool_size": None,
        "fixed_input_size": isinstance(tower, ViT),
        "first_conv": defaults.get("first_conv"),
        "classifier": defaults.get("classifier"),
    }
    return {
        "architecture": architecture,
        "num_classes": len(class_names),
        "num_features": model.num_features,
        "label_names": list(class_names),
        "model_args": arguments,
        "pretrained_cfg": pretrained,
    }
