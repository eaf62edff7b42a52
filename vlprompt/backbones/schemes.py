"""The table of backbone schemes, the source of `load`, its errors, the help and `vlprompt list backbones`."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlprompt.runtime.errors import suggest_nearest
from vlprompt.runtime.settings import SETTINGS

if TYPE_CHECKING:
    from vlprompt.core.towers import Backbone

HALF_FEATURES = "-bf16"  # behind the scheme of an image backbone
# their operations are so small that more threads than one only slow them
SINGLE_THREADED_BACKBONES = ("glyph", "glyph/random", "glyph-vit", "glyph-vit/random", "pixels")


@dataclass(frozen=True)
class Scheme:
    """One way to name a backbone: SCHEME or SCHEME:ARGUMENT.

    Args:
        names: the parts before the colon.
        forms: spec with placeholders -> what it loads, one line each.
        load: (scheme name, argument, full spec, device) -> backbone.
        takes_argument: whether an argument is required (True), optional (None) or not allowed (False).
    """

    names: tuple[str, ...]
    forms: dict[str, str]
    load: "Callable[[str, str, str, str], Backbone]"
    takes_argument: bool | None = True

    def accepts(self, name: str, argument: str) -> bool:
        return name in self.names and self.takes_argument in (None, bool(argument))


def _load_glyph(name: str, argument: str, spec: str, device: str) -> "Backbone":
    from vlprompt.backbones.glyph import build_tiny_clip, load_glyph, load_glyph_vit

    if name.startswith("glyph-vit"):
        return load_glyph_vit(device, random=name.endswith("/random"))
    return build_tiny_clip(device) if name.endswith("/random") else load_glyph(device)


def _load_pixels(name: str, argument: str, spec: str, device: str) -> "Backbone":
    from vlprompt.backbones.pixels import load_pixels

    return load_pixels(argument, device)


def _load_open_clip(name: str, argument: str, spec: str, device: str) -> "Backbone":
    from vlprompt.backbones.open_clip.weights import load_open_clip

    if argument.startswith(("hf-hub:", "local-dir:")):
        return load_open_clip(argument, spec=spec, device=device)
    model, separator, path = argument.partition("@")
    if separator:
        name, _, tag = model.partition("/")
        return load_open_clip(name, tag=tag, path=Path(path), spec=spec, device=device)
    model, _, tag = argument.rpartition("/")
    if not model:
        raise ValueError(
            f"backbone: expected a model with weights, got {spec!r} with no weights. "
            f"Write open_clip:{argument}/TAG, open_clip:{argument}@FILE or open_clip:{argument}/random."
        )
    return load_open_clip(model, tag=tag, spec=spec, device=device)


def _load_hf_clip(name: str, argument: str, spec: str, device: str) -> "Backbone":
    from vlprompt.backbones.hf_clip import load_hf_clip

    return load_hf_clip(argument, spec=spec, device=device)


def _load_timm(name: str, argument: str, spec: str, device: str) -> "Backbone":
    from vlprompt.backbones.timm.loading import load_timm

    return load_timm(argument, spec=spec, device=device)


def _load_language_model(name: str, argument: str, spec: str, device: str) -> "Backbone":
    from vlprompt.backbones.hf.loading import load_language_model
    from vlprompt.core.towers import WEIGHT_PRECISIONS

    return load_language_model(argument, spec=spec, device=device, base=WEIGHT_PRECISIONS[name])


SCHEMES = (
    Scheme(
        ("glyph", "glyph/random", "glyph-vit", "glyph-vit/random", "glyph-bf16", "glyph-vit-bf16"),
        {
            "glyph": "the embedded CLIP: 1.4 M parameters, knows digits, letters and symbols",
            "glyph/random": "a tiny CLIP with random weights, for tests",
            "glyph-vit": "the image tower of the embedded CLIP alone, without texts: a small ViT",
            "glyph-vit/random": "the image tower of the tiny CLIP with random weights",
            "glyph-bf16": "the embedded CLIP with frozen image features in bfloat16; so is glyph-vit-bf16",
        },
        _load_glyph,
        takes_argument=False,
    ),
    Scheme(
        ("pixels",),
        {
            "pixels": "no network: the features are the pixels, 8 x 8, for linear and nearest_mean",
            "pixels:16": "the same with 16 x 16 pixels, or any other number",
        },
        _load_pixels,
        takes_argument=None,
    ),
    Scheme(
        ("open_clip", "open_clip-bf16"),
        {
            "open_clip:NAME/TAG": "any model and weights of open_clip, for example open_clip:ViT-B-16/openai",
            "open_clip:NAME@FILE": "the same with weights from a file, open_clip's or OpenAI's",
            "open_clip:NAME/TAG@FILE": "the same with the activation and preprocessing of published weights",
            "open_clip:NAME/random": "the same with random weights",
            "open_clip:local-dir:PATH": "a folder with open_clip_config.json and weights",
            "open_clip:hf-hub:REPOSITORY": "the same from the Hugging Face hub",
            "open_clip-bf16:...": "each of these with frozen image features in bfloat16",
        },
        _load_open_clip,
    ),
    Scheme(
        ("hf_clip", "hf_clip-bf16"),
        {
            "hf_clip:OWNER/NAME": "CLIP or SigLIP of transformers, as hf_clip:openai/clip-vit-base-patch16",
            "hf_clip:FOLDER": "the same from a folder: configuration, weights, tokenizer and preprocessor",
            "hf_clip-bf16:...": "the same with frozen image features in bfloat16",
        },
        _load_hf_clip,
    ),
    Scheme(
        ("timm", "timm-bf16"),
        {
            "timm:NAME/TAG": "any image model of timm, as timm:vit_base_patch16_224/orig_in21k; ViTs take prompts",
            "timm:NAME": "the same with timm's default weights",
            "timm:NAME@FILE": "the same with weights from a file: timm's, Google's .npz, MAE, MoCo-v3, DINO, DINOv2",
            "timm:NAME/random": "the same with random weights",
            "timm-bf16:...": "each of these with frozen image features in bfloat16",
        },
        _load_timm,
    ),
    Scheme(
        ("hf", "hf-bf16", "hf-int8", "hf-nf4"),
        {
            "hf:OWNER/NAME": "a language model of transformers (with --task text)",
            "hf:FOLDER": "the same from a folder",
            "hf-bf16:...": "the same in bfloat16",
            "hf-int8:...": "the same in 8 bits",
            "hf-nf4:...": "the same in NF4 with double quantisation, as QLoRA has it",
        },
        _load_language_model,
    ),
)


def split_half_features(name: str) -> tuple[str, bool]:
    """Return the scheme that loads the weights, and whether frozen image features are computed in bfloat16."""
    has_half = name.endswith(HALF_FEATURES) and not name.startswith("hf-")
    return (name.removesuffix(HALF_FEATURES), True) if has_half else (name, False)


def choose_threads(backbone: str) -> int | None:
    """Return the threads of torch for a backbone: those asked for, one for a small one, None for torch's own choice."""
    is_small = split_half_features(backbone.partition(":")[0])[0] in SINGLE_THREADED_BACKBONES
    return SETTINGS.threads or (1 if is_small else None)


def expand_home(argument: str) -> str:
    """Return a scheme's argument with "~" at the beginning of its path expanded."""
    for separator in ("@", "local-dir:"):
        if separator in argument:
            name, _, path = argument.partition(separator)
            return f"{name}{separator}{os.path.expanduser(path)}"
    return os.path.expanduser(argument)


def list_forms() -> dict[str, str]:
    """Return each form of a backbone's spec -> what it loads, in one line."""
    return {form: description for scheme in SCHEMES for form, description in scheme.forms.items()}


def find_scheme(spec: str) -> Scheme:
    """Return the scheme of a spec; ValueError with the nearest form if there is none."""
    name, _, argument = spec.partition(":")
    for scheme in SCHEMES:
        if scheme.accepts(name, argument):
            return scheme
    raise ValueError(f"backbone: expected a known form, got {spec!r}; {suggest_nearest(spec, list(list_forms()))}")
