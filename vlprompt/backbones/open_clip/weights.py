"""Weights for open_clip's models: a published tag, a file, or random ones."""

import logging
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from vlprompt.backbones.open_clip.towers import wrap
from vlprompt.core.towers import Clip
from vlprompt.runtime.errors import nearest

NUMBERS = ("input_resolution", "context_length", "vocab_size")  # stand beside the weights in OpenAI's files


def pretrained(name: str, *, tag: str | None = None, path: Path | None = None, spec: str, device: str) -> Clip:
    """An open_clip model with the weights of a tag ("random": none) or of a file, as a Clip."""
    import open_clip

    whole = name.startswith(
        ("hf-hub:", "local-dir:")
    )  # a repository or a folder with configuration, tokenizer and weights
    if not whole and name not in (known := open_clip.list_models()):
        raise ValueError(f"open_clip has no model {name!r}; {nearest(name, known)}")
    if whole:
        model = _whole(name)
    elif path is not None:
        model = _from_file(name, path)
    elif tag == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = _create(name)
    else:
        model = _from_tag(name, tag or "")
    return wrap(model, _tokenizer(name), spec, device)


def _whole(name: str) -> Any:
    try:
        return _create(name)
    except (RuntimeError, OSError, ValueError) as error:
        cause = " ".join(str(error).split())[:300]
        raise OSError(
            f"could not load {name}: {cause}. A folder for 'local-dir:' has open_clip_config.json and the weights "
            "(open_clip_model.safetensors), as a download of the repository has them"
        ) from error


def _create(name: str, **options: Any) -> Any:
    import open_clip

    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)  # it warns of a random start that was asked for, and of weights that are loaded later
    try:
        return open_clip.create_model(name, **options)
    finally:
        root.setLevel(before)


def _tokenizer(name: str) -> Any:
    import open_clip

    try:
        return open_clip.get_tokenizer(name)
    except OSError as error:
        raise OSError(
            f"the tokenizer of {name} is kept on the Hugging Face hub and could not be fetched "
            f"({str(error).splitlines()[0]}); on a machine with network run `open_clip.get_tokenizer(...)` once "
            "and copy its Hugging Face cache folder (HF_HOME) here"
        ) from error


def _from_tag(name: str, tag: str) -> Any:
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags and tag.replace("-", "_") not in tags:
        raise ValueError(f"open_clip has no weights {tag!r} for {name}; {nearest(tag, [*tags, 'random'])}")
    found = get_pretrained_cfg(name, tag)
    quick = bool(found.get("quick_gelu"))
    if "quickgelu" in name and not quick:
        raise ValueError(
            f"the weights {tag!r} were trained with GELU, but {name} uses QuickGELU; "
            f"ask for open_clip:{name.removesuffix('-quickgelu')}/{tag}"
        )
    try:  # open_clip only warns when the weights want QuickGELU and the name does not say so
        return _create(name, pretrained=tag, force_quick_gelu=quick)
    except (RuntimeError, OSError) as error:
        source = (
            found.get("url")
            or f"{found.get('hf_hub', '')} on the Hugging Face hub "
            "(open_clip_model.safetensors or open_clip_pytorch_model.bin)"
        )
        cause = str(error).splitlines()[0][:200]
        raise OSError(
            f"the weights {tag!r} of {name} are not here and could not be fetched ({cause}). "
            f"Without a network: get {source} on another machine, put the file anywhere and use "
            f'"open_clip:{name}{"-quickgelu" * (quick and "quickgelu" not in name)}@path/to/that/file"'
        ) from error


def _from_file(name: str, path: Path) -> Any:
    from open_clip.factory import load_checkpoint

    if not path.is_file():
        raise ValueError(f"there is no checkpoint file {str(path)!r} for {name}; check the path after '@'")
    try:
        look = {"force_preprocess_cfg": _published_look(name)}
        if state := _openai(path):  # all that OpenAI published uses QuickGELU, whatever the name says
            model = _create(name, force_quick_gelu=True, **look)
            model.load_state_dict(state)
        else:
            model = _create(name, **look)
            load_checkpoint(model, str(path))
    except Exception as error:  # torch, safetensors and zip raise many kinds for a file that is not what was wanted
        cause = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{str(path)!r} is not a checkpoint of {name}: {cause}. "
            "Name the model whose weights the file holds before '@'"
        ) from error
    return model


def _published_look(name: str) -> dict[str, Any]:
    """How all published weights of this model want their pixels, which a file doesn't say; {} where they differ."""
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    told = [get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)]
    looks = [{k: t[k] for k in ("mean", "std", "interpolation", "resize_mode") if k in t} for t in told]
    return looks[0] if looks and all(look == looks[0] for look in looks) else {}


def _openai(path: Path) -> dict[str, torch.Tensor] | None:
    """The weights, in float32, of a file as OpenAI made them: a TorchScript archive, or its state dict with three
    numbers in it. None for any other file."""
    if path.suffix not in (".pt", ".pth", ".jit", ".bin"):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch wants nobody to make such files any more; these exist
        try:
            state = torch.jit.load(str(path), map_location="cpu").state_dict()
        except RuntimeError:
            try:
                state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except (RuntimeError, UnpicklingError):  # not such a file, or a broken one: whoever reads it next says so
                return None
            state = state.get("state_dict", state) if isinstance(state, dict) else {}
            if not all(number in state for number in NUMBERS):
                return None
    return {k: v.float() for k, v in state.items() if k not in NUMBERS}
