"""Backbones: `load` names one and gives it as a Clip, or as an image tower where it has no texts.

Each library has one adapter, nothing else touches its internals.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from vlprompt.runtime.errors import nearest

if TYPE_CHECKING:
    from vlprompt.core.images import Look
    from vlprompt.core.towers import Backbone


FORMS = (
    "glyph",
    "glyph/random",
    "glyph-vit",
    "glyph-vit/random",
    "pixels",
    "open_clip:NAME/TAG",
    "open_clip:NAME@path/to/file",
    "open_clip:NAME/random",
    "open_clip:local-dir:PATH",
    "open_clip:hf-hub:REPOSITORY",
    "hf_clip:OWNER/NAME",
    "hf_clip:path/to/folder",
    "timm:NAME",
    "timm:NAME/TAG",
    "timm:NAME@path/to/file",
    "timm:NAME/random",
    "hf:OWNER/NAME",
    "hf:path/to/folder",
    "hf-bf16:...",
    "hf-int8:...",
    "hf-nf4:...",
)


def load(
    spec: str, device: str | None = None, look: "Look | None" = None, features: "str | Path | None" = None
) -> "Backbone":
    """A frozen backbone by name: a CLIP, an image tower or a language model.

    spec: "glyph" (the embedded CLIP), "glyph/random" (a tiny one with random weights, for tests), "pixels" (features
    are the pixels, 8 x 8; a control), "open_clip:NAME/TAG", "open_clip:NAME@path/to/file", "open_clip:NAME/random",
    "hf_clip:OWNER/NAME" or "hf_clip:path/to/folder" (CLIPModel and SiglipModel of transformers). Image towers alone:
    "glyph-vit" and "glyph-vit/random" (those of the two CLIPs, without their projection), "timm:NAME/TAG", "timm:NAME"
    (timm's default weights of it), "timm:NAME@path/to/file" and "timm:NAME/random". Language models of transformers:
    "hf:OWNER/NAME" or "hf:path/to/folder"; the same in bfloat16 "hf-bf16:...", in 8 bits "hf-int8:..." and in NF4 with
    double quantisation, as QLoRA has it, "hf-nf4:...".
    device: "cpu", "cuda", ...; by default a GPU where there is one. look: another size, crop or normalisation than its
    weights were trained with; where the size is another one, the positions of a ViT are interpolated, with a warning.
    features: a folder in which frozen features are kept, for later and for other processes; default: in memory only.
    Raises ValueError for a name that is not known or a look that it can't take, and OSError where weights can't be had,
    saying which file to put where.
    """
    import warnings

    from vlprompt.backbones.feature_cache import shelved
    from vlprompt.core.towers import seen, tower_of

    found = shelved(opened(spec, device), features)
    found = found if look is None else seen(found, look)
    for what, how in tower_of(found).notes.items():
        warnings.warn(f"{spec}: {what} {how}", stacklevel=2)
    return found


def opened(spec: str, device: str | None = None) -> "Backbone":
    """As `load`, for those who tell themselves what its notes say."""
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(0, device=device)
    except (RuntimeError, AssertionError) as error:
        cause = str(error).splitlines()[0]
        raise ValueError(f"there is no device {device!r} here ({cause}); leave --device out or name cpu") from error
    kind, _, rest = spec.partition(":")
    if kind in ("glyph", "glyph/random") and not rest:
        from vlprompt.backbones.glyph import embedded, twin

        return embedded(device) if kind == "glyph" else twin(device)
    if kind in ("glyph-vit", "glyph-vit/random") and not rest:
        from vlprompt.backbones.glyph import vit

        return vit(device, random=kind != "glyph-vit")
    if kind == "timm" and rest:
        from vlprompt.backbones.timm.loading import trunk

        return trunk(rest, spec=spec, device=device)
    if kind == "pixels":
        from vlprompt.backbones.pixels import pixels

        return pixels(rest, device)
    if kind == "open_clip" and rest:
        from vlprompt.backbones.open_clip.weights import pretrained

        if rest.startswith(("hf-hub:", "local-dir:")):
            return pretrained(rest, spec=spec, device=device)
        name, at, path = rest.partition("@")
        if at:
            return pretrained(name, path=Path(path), spec=spec, device=device)
        name, _, tag = rest.rpartition("/")
        if not name:
            raise ValueError(
                f"backbone {spec!r} names no weights: write open_clip:{rest}/TAG, open_clip:{rest}@FILE "
                f"or open_clip:{rest}/random"
            )
        return pretrained(name, tag=tag, spec=spec, device=device)
    if kind == "hf" or kind.startswith("hf-"):
        from vlprompt.core.towers import HELD

        if kind in HELD and rest:
            from vlprompt.backbones.hf.loading import language

            return language(rest, spec=spec, device=device, base=HELD[kind])
    if kind == "hf_clip" and rest:
        from vlprompt.backbones.hf_clip import hf_clip

        return hf_clip(rest, spec=spec, device=device)
    raise ValueError(f"there is no backbone {spec!r}; {nearest(spec, FORMS)}")
