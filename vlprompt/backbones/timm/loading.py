"""timm's models by name, tag or file, as image towers without texts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlprompt.backbones.timm.blocks import timm_image
from vlprompt.backbones.timm.weights import File, heads, model_of
from vlprompt.backbones.towers.freeze import count, fingerprint, freeze
from vlprompt.backbones.towers.image import ImageTower
from vlprompt.core.images import Look
from vlprompt.layers.frozen_maps import same
from vlprompt.runtime.errors import nearest

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALVES = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
TRAINED = {"JAX": HALVES, "MoCo-v3": IMAGENET, "MAE": IMAGENET}  # how pixels were normalised, by the format of a file


def trunk(rest: str, *, spec: str, device: str) -> ImageTower:
    """NAME, NAME.TAG or NAME/TAG with published weights, either with @FILE, or NAME/random; no classifier.

    The look is the tag's. Of a file without a tag: mean and std by its format where that tells them (Google's .npz,
    MoCo-v3, MAE with its decoder), the rest that of timm's default tag of NAME. A ViT is walked, any other model gives
    its pooled features only. Raises ValueError for a name that is not known, is out of date or could mean two sets of
    weights, and for a file of another model; OSError where weights can't be had.
    """
    named, at, path = rest.partition("@")
    random = named.endswith("/random") and not at
    name, tag = _named(named.removesuffix("/random") if random else named)
    cfg = _cfg(name, tag)
    look, notes, file = _look(cfg, name), dict[str, str](), None
    if at:
        file = File(Path(path))
        model = model_of(file, name, tag, cfg.classifier, look.size[0])
        if not tag:
            look, notes = _by_file(look, file, name, cfg.tag)
        if heads(file):
            notes["heads"] = f"{heads(file)}, as MoCo-v3's ViT-S has them"
    elif random:
        model = _random(name, tag)
    else:
        model = _published(name, cfg)
    where = torch.device(device)
    model = freeze(model.float(), where)
    said = spec if at or random or not cfg.tag else f"timm:{name}.{cfg.tag}"  # which weights timm's default are
    tower = _tower(model, look, f"{said}#{fingerprint(model)}", where)
    if file and file.side not in (0, tower.look.size[0]):
        notes["positions"] = f"for {file.side} pixels interpolated to {tower.look.size[0]}, by timm"
    tower.spec, tower.size, tower.notes = spec, count(model), notes
    if tower.look != look:
        tower = tower.at(look)
        tower.asked = False
    return tower


def _named(text: str) -> tuple[str, str]:
    """Name and tag ("": timm's default); ValueError for what timm does not know or would silently replace."""
    import timm
    from timm.models import get_arch_pretrained_cfgs, get_deprecated_models

    name, _, tag = text.partition("/") if "/" in text else text.partition(".")
    tags_of = lambda n: [full.partition(".")[2] for full in get_arch_pretrained_cfgs(n)]  # noqa: E731
    if name in (old := get_deprecated_models()):
        now, _, means = (old[name] or "").partition(".")
        end = means.rpartition("_")[2]
        others = [t for t in tags_of(now) if t.endswith(end) and t != means] if end else []
        hint = f", or for other weights {' or '.join(f'timm:{now}.{t}' for t in others)}" if others else ""
        hint = f"; it takes it for {old[name]}: write timm:{old[name]}{hint}" if now else ""
        raise ValueError(f"{name!r} is a name that timm has given up{hint}")
    if not name or not timm.is_model(name):
        raise ValueError(f"timm has no model {name!r}; {nearest(name, timm.list_models())}")
    if tag and tag not in (tags := tags_of(name)):
        near = [t for t in tags if t.endswith(tag)]
        hint = f"several are called so: {' and '.join(near)}" if len(near) > 1 else nearest(tag, [*tags, "random"])
        raise ValueError(f"timm has no weights {tag!r} for {name}; {hint}")
    return name, tag


def _cfg(name: str, tag: str) -> Any:
    from timm.models import get_pretrained_cfg

    found = get_pretrained_cfg(f"{name}.{tag}" if tag else name)
    if found is None:
        raise ValueError(f"timm says nothing of how {name} wants its images, so it can't be taken")
    return found


def _look(cfg: Any, name: str) -> Look:
    resize = {"center": "shortest", "squash": "squash"}.get(cfg.crop_mode)
    if resize is None or cfg.input_size[0] != 3:
        raise ValueError(f"{name} wants images of {cfg.input_size} by {cfg.crop_mode!r}, which vlprompt can't make")
    size = (cfg.input_size[1], cfg.input_size[2])
    return Look(size, tuple(cfg.mean), tuple(cfg.std), cfg.interpolation, resize, cfg.crop_pct)


def _by_file(look: Look, file: File, name: str, default: str) -> tuple[Look, dict[str, str]]:
    """The look of a file without a tag; a note where the format does not tell it and published weights differ."""
    from timm.models import get_arch_pretrained_cfgs

    if file.kind:
        return replace(look, **TRAINED[file.kind]), {}
    every = get_arch_pretrained_cfgs(name)
    others = [full for full, cfg in every.items() if (tuple(cfg.mean), tuple(cfg.std)) != (look.mean, look.std)]
    if not others:
        return look, {}
    how = f"of {name}.{default}, as the file doesn't say: mean {look.mean[0]:g}, std {look.std[0]:g}"
    return look, {"look": f"{how}; name a tag for another, such as timm:{others[0]}@{file.path}"}


def _random(name: str, tag: str) -> Any:
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model(name, pretrained_cfg=tag or None, num_classes=0)


def _published(name: str, cfg: Any) -> Any:
    import timm

    full = f"{name}.{cfg.tag}" if cfg.tag else name
    if not cfg.has_weights:
        raise ValueError(f"timm has no published weights for {full}; write timm:{name}/random or timm:{name}@FILE")
    try:
        return timm.create_model(full, pretrained=True, num_classes=0)
    except (RuntimeError, OSError) as error:
        cause = " ".join(str(error).split())[:200]
        source = f"model.safetensors of {cfg.hf_hub_id} on the Hugging Face hub" if cfg.hf_hub_id else cfg.url
        raise OSError(
            f"the weights {cfg.tag!r} of {name} are not here and could not be fetched ({cause}). Without a network: "
            f'get {source} on another machine, put the file anywhere and use "timm:{full}@path/to/that/file"'
        ) from error


def _tower(model: Any, look: Look, key: str, device: torch.device) -> ImageTower:
    """Walked where it can be, for the images that the model is made for; else its pooled features."""
    made = getattr(getattr(model, "patch_embed", None), "img_size", None)
    own = look if made is None else replace(look, size=tuple(made))
    walked = timm_image(model, same, model.num_features, own, key, device)
    return walked or ImageTower(model, _wide(model, look, key, device), look, key, device)


def _wide(model: Any, look: Look, key: str, device: torch.device) -> int:
    with torch.no_grad():
        found = model(torch.zeros(1, 3, *look.size, device=device))
    if not isinstance(found, Tensor) or found.ndim != 2:
        raise ValueError(f"{key.split('#')[0]} gives no pooled feature (1, E), so it is no image tower")
    return found.shape[1]
