"""Load open_clip's models with the weights of a published tag or a file, or with random ones."""

import logging
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch

from vlprompt.backbones.open_clip.activations import describe_guess, find_activation, require_activation
from vlprompt.backbones.open_clip.torchscript import read_script_weights
from vlprompt.backbones.open_clip.towers import wrap_clip
from vlprompt.backbones.towers.image import ImageTower
from vlprompt.core.towers import Clip
from vlprompt.runtime.errors import suggest_nearest

OPENAI_METADATA_KEYS = ("input_resolution", "context_length", "vocab_size")  # beside the weights in OpenAI's files
NOT_ONLY_TENSORS = "holds more than tensors, and no code of it is run"
PREPROCESSING_KEYS = ("mean", "std", "interpolation", "resize_mode")


def load_open_clip(name: str, *, tag: str | None = None, path: Path | None = None, spec: str, device: str) -> Clip:
    """Load an open_clip model as a Clip.

    Args:
        name: open_clip's name of the model, "hf-hub:REPOSITORY" or "local-dir:FOLDER".
        tag: the published weights, or "random"; with a file those it holds, which decide activation and preprocessing.
        path: a file with the weights.
        spec: the backbone's full spec.
        device: the device of the towers.

    Raises:
        ValueError: for an unknown name or tag, or a file of another model.
        OSError: if weights or tokenizer are missing; the message says which files to put where.
    """
    import open_clip

    notes = dict[str, str]()
    if name.startswith(("hf-hub:", "local-dir:")):  # with configuration, tokenizer and weights
        model = _load_repository(name)
    elif name not in (names := open_clip.list_models()):
        raise ValueError(f"backbone: expected a model of open_clip, got {name!r}; {suggest_nearest(name, names)}")
    elif path is not None:
        model, notes = _load_file(name, path, tag or "")
    elif tag == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = _create_model(name, pretrained_text=False)
    else:
        model = _load_tag(name, tag or "")
    clip = wrap_clip(model, _load_tokenizer(name), spec, device)
    cast(ImageTower, clip.image).notes = notes
    return clip


def _load_repository(name: str) -> Any:
    try:
        return _create_model(name)
    except Exception as error:  # open_clip, torch and safetensors raise of many kinds for a file that is broken
        cause = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if isinstance(error, UnpicklingError):  # torch advises to run its code
            cause = f"its weights file {NOT_ONLY_TENSORS}"
        raise OSError(
            f"{name}: loading failed ({cause}). Put open_clip_config.json and the weights "
            "(open_clip_model.safetensors) of a repository into a folder, and use 'open_clip:local-dir:FOLDER'."
        ) from error


def _create_model(name: str, **options: Any) -> Any:
    import open_clip

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it warns of random weights, even if they are intended or replaced later
    try:
        return open_clip.create_model(name, **options)
    except OSError as error:
        text_model = (open_clip.get_model_config(name) or {}).get("text_cfg", {}).get("hf_model_name")
        if text_model is None or options.get("pretrained"):
            raise
        raise OSError(
            f"{name}: expected the configuration of its text model {text_model!r} from the Hugging Face hub, got none "
            f"({str(error).splitlines()[0]}). On a machine with network run `open_clip.get_tokenizer({name!r})` and "
            f"`transformers.AutoConfig.from_pretrained({text_model!r})`, and copy its Hugging Face cache folder "
            "(HF_HOME) here."
        ) from error
    finally:
        root.setLevel(level)


def _get_tokenizer_without_code(name: str) -> Any:
    """Return open_clip's tokenizer; the configuration of a repository may ask to run its code, and is not heard."""
    import open_clip

    if not name.startswith(("hf-hub:", "local-dir:")):
        return open_clip.get_tokenizer(name)
    try:
        return open_clip.get_tokenizer(name, trust_remote_code=False)
    except TypeError as error:  # a tokenizer without files, which takes no such option
        if not str(error).startswith("SimpleTokenizer"):
            raise
        return open_clip.get_tokenizer(name)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{name}: expected a tokenizer of transformers, got one with code of its own, which is not run. Take a "
            "repository whose tokenizer_config.json names a class of transformers."
        ) from error


def _load_tokenizer(name: str) -> Any:
    try:
        return _get_tokenizer_without_code(name)
    except OSError as error:
        raise OSError(
            f"tokenizer of {name}: download from the Hugging Face hub failed ({str(error).splitlines()[0]}). On a "
            f"machine with network run `open_clip.get_tokenizer({name!r})`, and copy its Hugging Face cache folder "
            "(HF_HOME) here."
        ) from error


def get_published_config(name: str, tag: str) -> dict[str, Any]:
    """Return open_clip's configuration of published weights; ValueError for an unknown tag."""
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags and tag.replace("-", "_") not in tags:
        raise ValueError(
            f"backbone: expected weights of {name} in open_clip, got {tag!r}; {suggest_nearest(tag, [*tags, 'random'])}"
        )
    return get_pretrained_cfg(name, tag)


def _load_tag(name: str, tag: str) -> Any:
    config = get_published_config(name, tag)
    is_quick = bool(config.get("quick_gelu"))
    require_activation(name, is_quick, f"weights {tag!r}", f"/{tag}")
    try:  # open_clip only warns if the weights are of QuickGELU and the name is not
        return _create_model(name, pretrained=tag, force_quick_gelu=is_quick)
    except (RuntimeError, OSError) as error:
        files = "open_clip_model.safetensors or open_clip_pytorch_model.bin"
        source = config.get("url") or f"{config.get('hf_hub', '')} on the Hugging Face hub ({files})"
        model_name = f"{name}-quickgelu" if is_quick and "quickgelu" not in name else name
        cause = str(error).splitlines()[0][:200]
        raise OSError(
            f"the weights {tag!r} of {name} are not here and could not be fetched ({cause}). "
            f"Without a network: get {source} on another machine, put the file anywhere and use "
            f'"open_clip:{model_name}@path/to/that/file"'
        ) from error


def _load_file(name: str, path: Path, tag: str) -> tuple[Any, dict[str, str]]:
    """Load a model with the weights of a file; return it and notes on what was guessed."""
    from open_clip.factory import load_checkpoint

    if not path.is_file():
        raise ValueError(
            f"backbone: expected a checkpoint file of {name}, got {str(path)!r}, and there is no such file. Check the "
            "path after '@'."
        )
    try:
        state = _read_openai_weights(path)
    except Exception as error:  # a damaged archive fails in many ways
        raise _make_file_error(name, path, error) from error
    is_quick, preprocessing, notes = _find_computation(name, path, tag, is_openai=state is not None)
    try:
        model = _create_model(
            name, force_quick_gelu=is_quick, force_preprocess_cfg=preprocessing, pretrained_text=False
        )
        if state is not None:
            model.load_state_dict(state)
        else:
            load_checkpoint(model, str(path))
    except OSError:  # of the text model's configuration
        raise
    except Exception as error:  # torch, safetensors and zip raise many kinds of errors for a wrong file
        raise _make_file_error(name, path, error) from error
    return model, notes


def _make_file_error(name: str, path: Path, error: Exception) -> ValueError:
    cause = " ".join(str(error).split())[:300]
    if isinstance(error, UnpicklingError) and "weights_only" in cause:  # torch advises to run the file's code
        cause = f"it {NOT_ONLY_TENSORS}"
    return ValueError(
        f"{str(path)!r}: expected a checkpoint of {name}, got another file ({cause}). Name the model whose "
        "weights the file holds before '@'."
    )


def _find_computation(name: str, path: Path, tag: str, is_openai: bool) -> tuple[bool, dict[str, Any], dict[str, str]]:
    """Return what a file's weights don't show: whether to force QuickGELU, the preprocessing, and notes on guesses."""
    config = get_published_config(name, tag) if tag else {}
    preprocessing = {k: config[k] for k in PREPROCESSING_KEYS if k in config} or _find_published_preprocessing(name)
    if is_openai:  # all of OpenAI's weights use QuickGELU, whatever the name says
        return True, preprocessing, {}
    is_quick = bool(config.get("quick_gelu")) if tag else find_activation(name, path)
    require_activation(name, is_quick, f"weights {tag!r}" if tag else repr(str(path)), f"@{path}")
    return bool(is_quick), preprocessing, describe_guess(name, path) if is_quick is None else {}


def _find_published_preprocessing(name: str) -> dict[str, Any]:
    """Return the preprocessing that all published weights of a model share, as files have none; {} if they differ."""
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    configs = [get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)]
    choices = [{key: config[key] for key in PREPROCESSING_KEYS if key in config} for config in configs]
    return choices[0] if choices and all(choice == choices[0] for choice in choices) else {}


def _read_openai_weights(path: Path) -> dict[str, torch.Tensor] | None:
    """Return the weights of OpenAI's files in float32: a TorchScript archive, or its state dict with three numbers.

    None for any other file.
    """
    if path.suffix in (".safetensors", ".npz"):
        return None
    state = read_script_weights(path)
    if state is None:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception:  # another format, or broken in one of many ways: the next reader reports it
            return None
        state = state.get("state_dict", state) if isinstance(state, dict) else {}
        if not all(key in state for key in OPENAI_METADATA_KEYS):
            return None
    return {k: v.float() for k, v in state.items() if k not in OPENAI_METADATA_KEYS}
