"""Frozen backbones, loaded by name; each library has one adapter, and nothing else touches its internals."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlprompt.core.images import Preprocessing
    from vlprompt.core.towers import Backbone


def load(
    spec: str,
    device: str | None = None,
    preprocess: "Preprocessing | None" = None,
    cache_folder: "str | Path | None" = None,
) -> "Backbone":
    """Load a frozen backbone by name: a CLIP, an image tower or a language model.

    Args:
        spec: one of the forms of `backbones.schemes.SCHEMES` (`vlprompt list backbones` prints them), such as "glyph",
            "open_clip:ViT-B-16/openai", "timm:NAME@FILE" or "hf:FOLDER".
        device: "cpu", "cuda", ...; default: a GPU where there is one.
        preprocess: another size, crop or normalisation than that of the weights. For another size the position
            embeddings of a ViT are interpolated, with a warning.
        cache_folder: a folder of the feature cache, shared with later runs and other processes; default: memory only.

    Returns:
        A `Clip`, a `VisionTower` or a `LanguageTower`.

    Raises:
        ValueError: for an unknown spec, or a preprocessing that the tower does not accept.
        OSError: if weights are missing; the message says which file to put where.
    """
    import warnings

    from vlprompt.backbones.feature_cache import attach_disk_cache
    from vlprompt.core.towers import find_input_tower, with_preprocessing

    backbone = attach_disk_cache(load_backbone(spec, device), cache_folder)
    if preprocess is not None:
        backbone = with_preprocessing(backbone, preprocess)
    for subject, note in find_input_tower(backbone).notes.items():
        warnings.warn(f"{spec}: {subject} {note}", stacklevel=2)
    return backbone


def load_backbone(spec: str, device: str | None = None) -> "Backbone":
    """Load a backbone as `load` does, without its warnings, for callers who report the notes of a tower themselves."""
    from vlprompt.backbones.schemes import expand_home, find_scheme, split_half_features

    device = _check_device(device)
    scheme = find_scheme(spec)
    name, _, argument = spec.partition(":")
    name, has_half_features = split_half_features(name)
    backbone = scheme.load(name, expand_home(argument), spec, device)
    if has_half_features:
        from vlprompt.backbones.half_features import with_half_features

        return with_half_features(backbone, spec)
    return backbone


def _check_device(device: str | None) -> str:
    """Return the device's name, by default a GPU if there is one; ValueError for one that does not exist."""
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(0, device=device)
    except (RuntimeError, AssertionError) as error:
        cause = str(error).splitlines()[0]
        raise ValueError(
            f"--device: expected a device of this machine, got {device!r} ({cause}). Leave --device out, or use cpu."
        ) from error
    return device
