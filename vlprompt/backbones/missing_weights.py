"""What a backbone lacks on this machine, as far as it is seen without loading it."""

from collections.abc import Sequence
from pathlib import Path

from vlprompt.backbones.schemes import expand_home, find_scheme, split_half_features
from vlprompt.core.towers import WEIGHT_PRECISIONS
from vlprompt.runtime.errors import suggest_nearest

OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def describe_missing_weights(spec: str) -> str:
    """Return where the weights of a backbone come from if they are not on this machine; "" for those that are.

    Raises:
        ValueError: for a form, a model, weights or a file that there is not.
        OSError: for a folder that lacks a file.
    """
    find_scheme(spec)
    scheme, _, argument = spec.partition(":")
    scheme, _ = split_half_features(scheme)
    argument = expand_home(argument)
    _, has_file, path = argument.partition("@")
    if has_file and not Path(path).is_file():
        raise ValueError(
            f"backbone: expected a file of weights, got {path!r}, and there is no such file. Check the path after '@'."
        )
    if has_file or argument.endswith("/random"):
        return ""
    if scheme == "open_clip":
        return _find_open_clip(argument)
    if scheme == "timm":
        return _find_timm(argument)
    if scheme == "hf_clip" or scheme in WEIGHT_PRECISIONS:
        return _find_transformers(scheme, argument)
    return ""


def _find_open_clip(argument: str) -> str:
    import open_clip

    from vlprompt.backbones.open_clip.weights import get_published_config

    if argument.startswith("local-dir:"):
        folder = argument.removeprefix("local-dir:")
        if not Path(folder).is_dir():
            raise ValueError(f"backbone: expected a folder, got {folder!r}, and there is none. Check the path.")
        return ""
    if argument.startswith("hf-hub:"):
        return _find_on_hub(argument.removeprefix("hf-hub:"), OPEN_CLIP_FILES)
    name, _, tag = argument.rpartition("/")
    if name and name not in (names := open_clip.list_models()):
        raise ValueError(f"backbone: expected a model of open_clip, got {name!r}; {suggest_nearest(name, names)}")
    config = get_published_config(name, tag) if name else {}
    repository, _, file = config.get("hf_hub", "").rpartition("/")
    return _find_on_hub(repository, [file] if file else OPEN_CLIP_FILES) if repository else ""


def _find_timm(argument: str) -> str:
    from vlprompt.backbones.timm.loading import find_published_config

    config = find_published_config(argument)
    return _find_on_hub(config.hf_hub_id, ["model.safetensors", "pytorch_model.bin"]) if config.hf_hub_id else ""


def _find_transformers(scheme: str, name: str) -> str:
    from vlprompt.backbones import hf_clip
    from vlprompt.backbones.hf import loading

    (hf_clip if scheme == "hf_clip" else loading).check_source(name)
    return "" if Path(name).is_dir() else _find_on_hub(name, ["config.json"])


def _find_on_hub(repository: str, files: Sequence[str]) -> str:
    """Return the name of a repository of which no file is in the cache of the hub; "" where one is."""
    from huggingface_hub import try_to_load_from_cache

    has_file = any(isinstance(try_to_load_from_cache(repository, file), str) for file in files)
    return "" if has_file else f"{repository} on the Hugging Face hub"
