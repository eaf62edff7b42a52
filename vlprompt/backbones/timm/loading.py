"""Load timm's models by name, tag or file as image towers."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlprompt.backbones.timm.blocks import build_timm_tower
from vlprompt.backbones.timm.weights import CheckpointFile, infer_n_heads, load_model
from vlprompt.backbones.towers.freeze import count_parameters, freeze, identify
from vlprompt.backbones.towers.image import ImageTower
from vlprompt.core.images import Preprocessing
from vlprompt.layers.frozen_maps import identity
from vlprompt.runtime.errors import suggest_nearest

IMAGENET_NORMALIZATION = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF_NORMALIZATION = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
NORMALIZATION_BY_FORMAT = {
    "JAX": HALF_NORMALIZATION,
    "MoCo-v3": IMAGENET_NORMALIZATION,
    "MAE": IMAGENET_NORMALIZATION,
}


def load_timm(source: str, *, spec: str, device: str) -> ImageTower:
    """Load a timm model without its classifier: block-wise if it is a ViT, else opaque.

    The preprocessing is the tag's. For a file without a tag, mean and std follow from its format if that determines
    them (Google's .npz, MoCo-v3, MAE with its decoder), and the rest from timm's default tag of NAME.

    Args:
        source: NAME, NAME.TAG or NAME/TAG, either with @FILE, or NAME/random.
        spec: the backbone's full spec.
        device: the device of the tower.

    Raises:
        ValueError: for a name that is unknown, deprecated or ambiguous, or a file of another model.
        OSError: if weights are missing; the message says which file to put where.
    """
    source_model = read_timm_model(source)
    model, preprocessing = source_model.model, source_model.preprocessing
    file, notes = source_model.file, source_model.notes
    torch_device = torch.device(device)
    model = freeze(model.float(), torch_device, spec)
    exact_spec = f"timm:{source_model.published_name}" if source_model.published_name else spec
    tower = wrap_timm(model, preprocessing, f"{exact_spec}#{identify(model, preprocessing)}", torch_device)
    if file and file.image_size not in (0, tower.preprocessing.size[0]):
        notes["positions"] = f"for {file.image_size} pixels interpolated to {tower.preprocessing.size[0]}, by timm"
    tower.spec, tower.n_parameters, tower.notes = spec, count_parameters(model), notes
    if tower.preprocessing != preprocessing:
        tower = tower.with_preprocessing(preprocessing)
        tower.has_custom_preprocessing = False
    return tower


class SourceModel(NamedTuple):
    """A model of timm, before it is frozen.

    Args:
        model: without its classifier.
        name: timm's name of the architecture.
        published_name: NAME.TAG of published weights, "" for others.
        preprocessing: of its weights.
        file: the checkpoint that its weights are from, if any.
        notes: on what was guessed.
    """

    model: Any
    name: str
    published_name: str
    preprocessing: Preprocessing
    file: CheckpointFile | None
    notes: dict[str, str]


def read_timm_model(source: str) -> SourceModel:
    """Read a model; source and errors as in `load_timm`."""
    model_and_tag, has_file, path = source.partition("@")
    is_random = model_and_tag.endswith("/random") and not has_file
    name, tag = _parse_name(model_and_tag.removesuffix("/random") if is_random else model_and_tag)
    config = _find_pretrained_config(name, tag)
    preprocessing, notes, file = _read_preprocessing(config, name), dict[str, str](), None
    if has_file:
        file = CheckpointFile(Path(path))
        model = load_model(file, name, tag, config.classifier, preprocessing.size[0])
        if not tag:
            preprocessing, notes = _infer_preprocessing(preprocessing, file, name, config.tag)
            notes |= _describe_activation_guess(name, path)
        if infer_n_heads(file):
            notes["heads"] = f"{infer_n_heads(file)}, as MoCo-v3's ViT-S has them"
    else:
        model = _build_random(name, tag) if is_random else _load_published(name, config)
    published_name = "" if has_file or is_random or not config.tag else f"{name}.{config.tag}"  # timm's default tag
    return SourceModel(model, name, published_name, preprocessing, file, notes)


def find_published_config(source: str) -> Any:
    """Return timm's configuration of published weights; ValueError for those that there are not."""
    return _find_pretrained_config(*_parse_name(source))


def _parse_name(text: str) -> tuple[str, str]:
    """Return name and tag ("": timm's default); ValueError for those that timm does not know or silently replaces."""
    import timm
    from timm.models import get_deprecated_models

    name, _, tag = text.partition("/") if "/" in text else text.partition(".")
    deprecated = get_deprecated_models()
    if name in deprecated:
        raise ValueError(
            "backbone: expected a current name of timm, got the deprecated "
            f"{name!r}{_suggest_replacement(deprecated[name])}"
        )
    if not name or not timm.is_model(name):
        raise ValueError(
            f"backbone: expected a model of timm, got {name!r}; {suggest_nearest(name, timm.list_models())}"
        )
    if tag and tag not in (tags := _list_tags(name)):
        near = [t for t in tags if t.endswith(tag)]
        hint = suggest_nearest(tag, [*tags, "random"])
        if len(near) > 1:
            hint = f"several end with it: {' and '.join(near)}"
        raise ValueError(f"backbone: expected weights of {name} in timm, got {tag!r}; {hint}")
    return name, tag


def _list_tags(name: str) -> list[str]:
    from timm.models import get_arch_pretrained_cfgs

    return [full_name.partition(".")[2] for full_name in get_arch_pretrained_cfgs(name)]


def _suggest_replacement(replacement: str | None) -> str:
    """Return the remedy for a deprecated name: its replacement, and other weights of its training."""
    name, _, tag = (replacement or "").partition(".")
    if not name:
        return ". Use another model."
    training = tag.rpartition("_")[2]
    others = [t for t in _list_tags(name) if t.endswith(training) and t != tag] if training else []
    hint = f", or for other weights {' or '.join(f'timm:{name}.{t}' for t in others)}" if others else ""
    return f", which timm replaces by {replacement}. Write timm:{replacement}{hint}."


def _find_pretrained_config(name: str, tag: str) -> Any:
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(f"{name}.{tag}" if tag else name)
    if config is None:
        raise ValueError(f"timm:{name}: expected a preprocessing in timm's configuration, got none. Use another model.")
    return config


def _read_preprocessing(config: Any, name: str) -> Preprocessing:
    resize = {"center": "shortest", "squash": "squash"}.get(config.crop_mode)
    if resize is None or config.input_size[0] != 3:
        raise ValueError(
            f"timm:{name}: expected RGB images with crop mode 'center' or 'squash', got input size "
            f"{config.input_size} with {config.crop_mode!r}. Use another model."
        )
    size = (config.input_size[1], config.input_size[2])
    return Preprocessing(size, tuple(config.mean), tuple(config.std), config.interpolation, resize, config.crop_pct)


def _infer_preprocessing(
    preprocessing: Preprocessing, file: CheckpointFile, name: str, default_tag: str
) -> tuple[Preprocessing, dict[str, str]]:
    """Return the preprocessing of a file without a tag, and a note if it is a guess among several."""
    from timm.models import get_arch_pretrained_cfgs

    if file.format:
        return replace(preprocessing, **NORMALIZATION_BY_FORMAT[file.format]), {}
    others = [
        full_name
        for full_name, config in get_arch_pretrained_cfgs(name).items()
        if (tuple(config.mean), tuple(config.std)) != (preprocessing.mean, preprocessing.std)
    ]
    if not others:
        return preprocessing, {}
    values = f"mean {preprocessing.mean[0]:g}, std {preprocessing.std[0]:g}"
    note = f"of {name}.{default_tag}, as the file doesn't say: {values}"
    return preprocessing, {"preprocess": f"{note}; name a tag for another, such as timm:{others[0]}@{file.path}"}


def _describe_activation_guess(name: str, path: str) -> dict[str, str]:
    """Return a note that GELU was assumed, for a model that timm has with QuickGELU too; else nothing."""
    import timm

    twin = name.replace("_clip_", "_clip_quickgelu_")
    if twin == name or not timm.is_model(twin):
        return {}
    return {
        "activation": f"GELU, as {name} says and the file doesn't; for weights trained with QuickGELU (OpenAI's, "
        f"MetaCLIP's, DFN's) write timm:{twin}@{path}, for published weights timm:{name}.TAG@{path}"
    }


def _build_random(name: str, tag: str) -> Any:
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model(name, pretrained_cfg=tag or None, num_classes=0)


def _load_published(name: str, config: Any) -> Any:
    import timm

    full_name = f"{name}.{config.tag}" if config.tag else name
    if not config.has_weights:
        raise ValueError(
            f"backbone: expected weights that timm publishes, got {full_name}, which has none. Write "
            f"timm:{name}/random or timm:{name}@FILE."
        )
    try:
        return timm.create_model(full_name, pretrained=True, num_classes=0)
    except (RuntimeError, OSError) as error:
        cause, hub_id = " ".join(str(error).split())[:200], config.hf_hub_id
        source = f"model.safetensors of {hub_id} on the Hugging Face hub" if hub_id else config.url
        raise OSError(
            f"the weights {config.tag!r} of {name} are not here and could not be fetched ({cause}). Without a network: "
            f'get {source} on another machine, put the file anywhere and use "timm:{full_name}@path/to/that/file"'
        ) from error


def wrap_timm(model: Any, preprocessing: Preprocessing, key: str, device: torch.device) -> ImageTower:
    """Wrap a model as a block-wise tower for the image size it was built for, if possible, else as an opaque one."""
    built_size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    built_for = preprocessing if built_size is None else replace(preprocessing, size=tuple(built_size))
    vit = build_timm_tower(model, identity, model.num_features, built_for, key, device)
    return vit or ImageTower(model, _probe_width(model, preprocessing, key, device), preprocessing, key, device)


def _probe_width(model: Any, preprocessing: Preprocessing, key: str, device: torch.device) -> int:
    with torch.no_grad():
        features = model(torch.zeros(1, 3, *preprocessing.size, device=device))
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise ValueError(
            f"{key.split('#')[0]}: expected pooled features (B, E), got {getattr(features, 'shape', type(features))}. "
            "Use another model."
        )
    return features.shape[1]
