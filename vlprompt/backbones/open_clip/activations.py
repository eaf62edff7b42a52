"""Decide between GELU and QuickGELU, which the weights of a CLIP do not show."""

import hashlib
from pathlib import Path
from urllib.parse import urlparse

QUICK_SUFFIX = "-quickgelu"


def find_activation(name: str, path: Path) -> bool | None:
    """Return whether the weights of a file were trained with QuickGELU, by the hash of the file.

    open_clip's addresses of published weights contain hashes: all of it in a folder's name (OpenAI's), or its first
    eight digits at the end of the file's name.

    Args:
        name: open_clip's name of the model.
        path: a checkpoint file.

    Returns:
        None for a file that is not among the published ones.
    """
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    hashes = dict[str, bool]()
    for model in dict.fromkeys((name.removesuffix(QUICK_SUFFIX), _add_suffix(name))):
        for tag in list_pretrained_tags_by_model(model):
            config = get_pretrained_cfg(model, tag)
            address = Path(urlparse(config.get("url") or "").path)
            for text in (address.parent.name, address.stem.rpartition("-")[2]):
                if len(text) in (8, 64) and set(text) <= set("0123456789abcdef"):
                    hashes[text] = bool(config.get("quick_gelu"))
    if not hashes:
        return None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return next((is_quick for prefix, is_quick in hashes.items() if digest.startswith(prefix)), None)


def require_activation(name: str, is_quick: bool | None, weights: str, rest: str) -> None:
    """Raise ValueError if a model's name says QuickGELU, but its weights are known to be trained with GELU.

    Args:
        name: open_clip's name of the model.
        is_quick: whether the weights need QuickGELU; None if unknown.
        weights: what they are called in the message.
        rest: the spec behind the name, for the remedy.
    """
    if name.endswith(QUICK_SUFFIX) and is_quick is False:
        plain = name.removesuffix(QUICK_SUFFIX)
        raise ValueError(
            f"{weights}: expected a model with GELU, got {name} with QuickGELU. Use open_clip:{plain}{rest}."
        )


def describe_guess(name: str, path: Path) -> dict[str, str]:
    """Return a note that GELU was assumed, for a model that open_clip has with both activations; else nothing."""
    import open_clip

    if name.endswith(QUICK_SUFFIX) or _add_suffix(name) not in open_clip.list_models():
        return {}
    return {
        "activation": f"GELU, as open_clip:{name}@{path} says and the file doesn't; for weights trained with QuickGELU "
        f"(OpenAI's, MetaCLIP's, DFN's) write open_clip:{_add_suffix(name)}@{path}, for published weights "
        f"open_clip:{name}/TAG@{path}"
    }


def _add_suffix(name: str) -> str:
    return name if name.endswith(QUICK_SUFFIX) else f"{name}{QUICK_SUFFIX}"
