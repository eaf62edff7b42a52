"""Inject a Prompt into a transformers model for one pass: prefixes by its attention interface, adapters by hooks."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from vlprompt.backbones.hf.architectures import LayerModules
from vlprompt.core.prompt import KV, AdapterFn, Prompt
from vlprompt.layers.blocks.attention import prepend_prefix

ATTENTION_NAME = "vlprompt"


def register_attention() -> None:
    """Register the attention with prefixes at transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION_NAME, attend_with_prefix)
    AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)


def attend_with_prefix(
    module: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    *,
    prefix: KV | None = None,
    position_bias: Tensor | None = None,
    position_ids: Tensor | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute transformers' sdpa attention with a prefix, keys and values (B, H, P, Dh) at the first P positions.

    Every token sees the whole prefix; in a layer with a sliding window, as in PEFT, what lies in its window.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    window = None if sliding_window is None or position_ids is None else (position_ids, sliding_window)
    if window is not None and mask is not None:
        mask = _limit_packed_rows(mask, *window)
    if prefix is not None:
        n, n_keys, p = q.shape[2], k.shape[2], prefix[0].shape[2]
        if window is not None and n_keys + p <= window[1]:
            window = None
        if mask is None and (n > 1 or window is not None) and getattr(module, "is_causal", False):
            mask = torch.ones(1, 1, n, n_keys, dtype=torch.bool, device=q.device).tril(n_keys - n)
        k, v = prepend_prefix(prefix, k, v)
        if mask is not None:
            mask = F.pad(mask, (p, 0), value=True if mask.dtype == torch.bool else 0.0)
            if window is not None:
                mask = _limit_prefix(mask, *window, p)
        if position_bias is not None:
            position_bias = F.pad(position_bias, (p, 0))
    if position_bias is not None:
        kwargs["position_bias"] = position_bias
    return sdpa_attention_forward(module, q, k, v, mask, **kwargs)


def _limit_packed_rows(mask: Tensor, positions: Tensor, window: int) -> Tensor:
    """Apply a sliding window to a mask (B, 1, N, N) of packed rows, which transformers takes as it is."""
    n, n_keys = mask.shape[2:]
    if n != n_keys or n <= window or positions.shape[1] != n:
        return mask
    return mask & (positions[:, None, :, None] - positions[:, None, None] < window)


def _limit_prefix(mask: Tensor, positions: Tensor, window: int, n_prefix: int) -> Tensor:
    """Hide from a mask (B, 1, N, P + N) the part of a prefix at positions 0 to P - 1 that lies before the window."""
    is_near = positions[:, None, :, None] - torch.arange(n_prefix, device=mask.device) < window  # (B, 1, N, P)
    return mask & F.pad(is_near, (0, mask.shape[3] - n_prefix), value=True)


def apply_adapter(adapter: AdapterFn, inputs: Tensor, outputs: Tensor) -> Tensor:
    """Apply an adapter, in float32 even if the frozen model is in half precision."""
    if outputs.dtype in (torch.bfloat16, torch.float16) and not torch.is_autocast_enabled(outputs.device.type):
        return adapter(inputs.float(), outputs.float()).to(outputs.dtype)
    return adapter(inputs, outputs)


@contextmanager
def inject_prompt(layers: Mapping[int | str, LayerModules], norm: Any, prompt: Prompt) -> Iterator[None]:
    """Add the prompt's prefixes and adapters to the model inside the with-block."""
    with ExitStack() as hooks:
        for handle in _register_hooks(layers, norm, prompt):
            hooks.callback(handle.remove)
        yield


def _register_hooks(layers: Mapping[int | str, LayerModules], norm: Any, prompt: Prompt) -> Iterator[RemovableHandle]:
    for layer, kv in prompt.prefix.items():
        yield layers[layer].attention.register_forward_pre_hook(_make_prefix_hook(kv), with_kwargs=True)
    by_layer: dict[int | str, dict[str, AdapterFn]] = {}
    for site in prompt.adapters:
        layer, _, kind = site.rpartition("/")
        if layer:
            by_layer.setdefault(int(layer) if layer.isdecimal() else layer, {})[kind] = prompt.adapters[site]
        else:
            yield norm.register_forward_hook(_make_adapter_hook(prompt.adapters[site]))
    for layer, adapters in by_layer.items():
        yield from _register_layer_hooks(layers[layer], adapters)


def _make_prefix_hook(kv: KV) -> Callable[..., Any]:
    return lambda module, args, kwargs: (args, {**kwargs, "prefix": kv})


def _make_adapter_hook(adapter: AdapterFn) -> Callable[..., Any]:
    return lambda module, args, output: apply_adapter(adapter, args[0], output)


def _register_layer_hooks(layer: LayerModules, adapters: Mapping[str, AdapterFn]) -> Iterator[RemovableHandle]:
    """Register the adapters of one layer: those of its linear maps, then those of whole sub-layers."""
    for kind in ("norm1", "q", "k", "v", "out", "norm2", "up", "gate", "down"):
        if kind in adapters and kind in layer.maps:
            yield layer.maps[kind].register_forward_hook(_make_adapter_hook(adapters[kind]))
    qkv_adapters = [adapters.get(kind) for kind in "qkv"]
    if layer.fused_qkv is not None and any(qkv_adapters):
        yield layer.fused_qkv.register_forward_hook(_make_fused_qkv_hook(qkv_adapters))
    for sub, first, last, norm in (("attn", "q", "out", "norm1"), ("mlp", "up", "down", "norm2")):
        if sub not in adapters and f"{sub}+" not in adapters:
            continue
        recorded: dict[str, Tensor] = {}
        entry = layer.fused_qkv if first == "q" and layer.fused_qkv is not None else layer.maps[first]
        yield entry.register_forward_pre_hook(_make_recording_hook(recorded, sub))
        stream = entry if layer.is_post_norm else layer.maps[norm]
        yield stream.register_forward_pre_hook(_make_recording_hook(recorded, f"{sub}+"))
        for name in (sub, f"{sub}+"):
            if name in adapters:
                yield layer.maps[last].register_forward_hook(_make_sublayer_hook(adapters[name], recorded, name))


def _make_fused_qkv_hook(adapters: list[AdapterFn | None]) -> Callable[..., Any]:
    def hook(module: Any, args: tuple[Tensor], output: Tensor) -> Tensor:
        qkv = zip(adapters, output.chunk(3, -1), strict=True)
        return torch.cat([x if adapter is None else apply_adapter(adapter, args[0], x) for adapter, x in qkv], -1)

    return hook


def _make_recording_hook(recorded: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(module: Any, args: tuple[Tensor, ...]) -> None:
        recorded[name] = args[0]

    return hook


def _make_sublayer_hook(adapter: AdapterFn, recorded: dict[str, Tensor], name: str) -> Callable[..., Any]:
    return lambda module, args, output: apply_adapter(adapter, recorded[name], output)
