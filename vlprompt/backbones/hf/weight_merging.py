"""Merge adapters into the weights of a transformers model."""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vlprompt.backbones.hf.forward import FrozenTransformer
from vlprompt.core.prompt import Prompt

T = TypeVar("T", bound=FrozenTransformer)


def copy_sharing_tensors(net: Any) -> Any:
    """Copy a model's modules but share its tensors, so that modules can be replaced in the copy."""
    tensors = [*net.parameters(), *net.buffers()]
    return copy.deepcopy(net, {id(t): t for t in tensors})


@torch.no_grad()
def build_merged_tower(tower: T, prompt: Prompt) -> T:
    """Return a tower with a prompt's adapters merged; all other weights are shared. Quantised maps are dequantised.

    Raises:
        ValueError: if the prompt has tokens, prefixes or adapters that can't be merged.
    """
    if len(prompt.tokens) or len(prompt.prefix):
        raise ValueError(
            "--to transformers: expected only adapters of linear maps and norms, got tokens or prefixes, which "
            "can't be merged into weights. Write --to peft."
        )
    merged = copy.copy(tower)
    merged.attach_model(copy_sharing_tensors(tower.net))
    names = {id(module): name for name, module in merged.net.named_modules()}
    for site in prompt.adapters:
        adapter = prompt.adapters[site]
        layer, _, kind = site.rpartition("/")
        modules = merged.layer_modules[int(layer) if layer.isdecimal() else layer] if layer else None
        fused = None if modules is None or kind not in ("q", "k", "v") else modules.fused_qkv
        module: Any = merged.norm if modules is None else modules.maps.get(kind, fused)
        if module is None or not hasattr(adapter, "merge"):
            raise ValueError(
                "--to transformers: expected updates of linear maps and norms such as LoRA and SSF, got "
                f"{type(adapter).__name__} (site {site}), which can't be merged into weights. Write --to peft."
            )
        qkv_index = None if modules is None or module is not modules.fused_qkv else "qkv".index(kind)
        merged_module = _merge_adapter(module, adapter, qkv_index, site)
        if merged_module is not module:
            merged.net.set_submodule(names[id(module)], merged_module)
            names[id(merged_module)] = names[id(module)]
            merged.attach_model(merged.net)
    merged.feature_cache = type(merged.feature_cache)()
    return merged


def _merge_adapter(module: Any, adapter: Any, qkv_index: int | None, site: str) -> Any:
    """Merge an adapter into a linear map or norm; return it, or a new linear map in place of a quantised one."""
    weight, bias = read_weights(module)
    is_transposed = hasattr(module, "nx")  # Conv1D stores (in, out)
    weight = weight.T if is_transposed else weight
    if qkv_index is None:
        weight, bias = adapter.merge(weight, bias)
    else:
        weights, biases = list(weight.chunk(3)), [None] * 3 if bias is None else list(bias.chunk(3))
        weights[qkv_index], biases[qkv_index] = adapter.merge(weights[qkv_index], biases[qkv_index])
        weight = torch.cat(weights)
        if any(b is not None for b in biases):
            bias = torch.cat([w.new_zeros(len(w)) if b is None else b for w, b in zip(weights, biases, strict=True)])
    if bias is not None and not hasattr(module, "bias"):
        raise ValueError(
            f"--to transformers: expected a norm with a bias at {site} for the adapter's shift, got one without, so it "
            "can't be merged. Write --to peft."
        )
    if is_quantized(module):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        _set_weights(linear, weight, bias, torch.float32)
        return linear.eval()
    _set_weights(module, weight.T.contiguous() if is_transposed else weight, bias, module.weight.dtype)
    return module


def _set_weights(module: Any, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
    module.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias.to(dtype), requires_grad=False)


def is_quantized(module: Any) -> bool:
    return type(module).__module__.startswith("bitsandbytes")


def read_weights(module: Any) -> tuple[Tensor, Tensor | None]:
    """Return the weight and the bias of a linear map in float32, dequantised if stored in 4 or 8 bits."""
    bias = getattr(module, "bias", None)
    if is_quantized(module):
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight

        weight = dequantize_bnb_weight(module.weight, getattr(module, "state", None))
    else:
        weight = module.weight
    return weight.detach().float(), None if bias is None else bias.detach().float()
