"""Read a library's model as frozen maps: what the adapters of all libraries share."""

import hashlib
import json
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from vlprompt.core.images import Preprocessing
from vlprompt.layers.blocks.quick_gelu import quick_gelu
from vlprompt.layers.frozen_maps import FrozenMap
from vlprompt.runtime.errors import is_finite

# attributes of modules, by the names of all libraries, that change what they compute but no weight
ARITHMETIC_ATTRIBUTES = (
    *("num_heads", "n_head", "head_dim", "scale", "eps", "approximate", "negative_slope", "temperature"),
    *("kernel_size", "stride", "padding", "dilation", "groups", "window_size", "shift_size", "patch_size"),
    *("global_pool", "pool_type", "text_pool_type", "final_ln_after_pool", "num_prefix_tokens", "no_embed_class"),
    *("rotate_half", "rope_type", "eos_id", "text_eos_id", "pad_id", "use_pad_mask", "correct_cls_mask"),
)
PROBE_TEXT = "A photo of a Dog,  2 caf\u00e9s."  # shows how a tokenizer cleans, begins, ends and pads texts
MODULES_WITHOUT_EFFECT = ("Identity", "Dropout", "DropPath", "PatchDropout", "Sequential", "ModuleList", "ModuleDict")


def convert_activation(act: Any) -> FrozenMap:
    """Return a library's activation, with the QuickGELU of open_clip and transformers replaced by the faster form."""
    return quick_gelu if type(act).__name__ in ("QuickGELU", "QuickGELUActivation") else act


def build_patch_unfold(patch_size: int) -> FrozenMap:
    """Return the map from pixels (B, 3, h, w) to patches (B, N, 3 * size²), in the order of a convolution's weight."""
    return lambda pixels: nn.functional.unfold(pixels, patch_size, stride=patch_size).transpose(1, 2)


def freeze(model: Any, device: torch.device, spec: str) -> Any:
    """Put a model on the device, in eval mode, without gradients, and return it.

    Raises:
        ValueError: that names the backbone, for weights that are not finite.
    """
    for name, parameter in model.named_parameters():
        is_computed = not name.startswith("text_decoder.")  # CoCa's decoder is part of no tower
        if is_computed and parameter.is_floating_point() and not is_finite(parameter):
            raise ValueError(
                f"{spec}: expected finite weights, got NaN or infinite values in {name!r}. Its weights are broken: get "
                "the file again."
            )
    return model.eval().requires_grad_(False).to(device)


def count_parameters(model: nn.Module) -> int:
    """Count the parameters of a model, without its buffers."""
    return sum(p.numel() for p in model.parameters())


def fingerprint(model: nn.Module) -> str:
    """Hash all weights of a model, to distinguish towers of one architecture."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def identify(model: nn.Module, preprocessing: Preprocessing, **facts: Any) -> str:
    """Return what distinguishes a tower's features: a hash of its weights, ".", and one of what it does with them.

    The second hash covers activations, heads, norms, strides, pools and the preprocessing, but no name of a model or a
    file: another name of the same computation has the same identity.

    Args:
        model: the library's model.
        preprocessing: of the weights.
        facts: what else the features depend on, as JSON has it.
    """
    arithmetic = [entry for module in model.modules() if (entry := _describe_arithmetic(module))]
    description = {"modules": arithmetic, "preprocessing": asdict(preprocessing), **facts}
    text = json.dumps(description, sort_keys=True)
    return f"{fingerprint(model)}.{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _describe_arithmetic(module: nn.Module) -> list[str]:
    """Return what a module computes beside its weights: its name if it has none (activations), and its settings."""
    kind, is_leaf = type(module).__name__, not any(True for _ in module.children())
    is_function = is_leaf and not any(True for _ in module.parameters()) and kind not in MODULES_WITHOUT_EFFECT
    values = {name: getattr(module, name, None) for name in ARITHMETIC_ATTRIBUTES}
    settings = [f"{name}={v}" for name, v in values.items() if isinstance(v, bool | int | float | str | tuple | list)]
    return [kind.removesuffix("Activation"), *settings] if is_function else settings
