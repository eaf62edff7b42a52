"""A Prompt inside a transformers model, for the time of one pass: prefixes through its attention interface, parts by
hooks on its maps. Nothing stays behind."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.backbones.hf.architectures import Place
from vlprompt.core.prompt import KV, Part, Prompt
from vlprompt.layers.attention import join

ATTENTION = "vlprompt"


def register() -> None:
    """Makes our attention known to transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def attend(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, prefix: KV | None = None,
           position_bias: Tensor | None = None, **kwargs: Any) -> tuple[Tensor, None]:  # fmt: skip
    """torch's attention, with keys and values (R, H, P, Dh) that everyone sees before the model's own."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if prefix is not None:
        n, own, p = q.shape[2], k.shape[2], prefix[0].shape[2]
        if mask is None and n > 1 and getattr(module, "is_causal", False):
            mask = torch.ones(1, 1, n, own, dtype=torch.bool, device=q.device).tril(own - n)
        k, v = join(prefix, k, v)
        if mask is not None:
            mask = F.pad(mask, (p, 0), value=True if mask.dtype == torch.bool else 0.0)
        if position_bias is not None:
            position_bias = F.pad(position_bias, (p, 0))
    if position_bias is not None:
        kwargs["position_bias"] = position_bias
    return sdpa_attention_forward(module, q, k, v, mask, **kwargs)


def beside(part: Part, given: Tensor, made: Tensor) -> Tensor:
    """What a part makes; where the frozen model is in half precision the part still reckons in its own."""
    if made.dtype in (torch.bfloat16, torch.float16) and not torch.is_autocast_enabled(made.device.type):
        return part(given.float(), made.float()).to(made.dtype)
    return part(given, made)


@contextmanager
def injected(layers: Mapping[int | str, Place], norm: Any, prompt: Prompt) -> Iterator[None]:
    """The model takes the prompt's prefixes and parts while this lasts."""
    with ExitStack() as hooks:
        for layer, kv in prompt.prefix.items():
            hooks.enter_context(_hook(layers[layer].attention.register_forward_pre_hook(_seen(kv), with_kwargs=True)))
        by_layer: dict[int | str, dict[str, Part]] = {}
        for site in prompt.beside:
            layer, _, kind = site.rpartition("/")
            if not layer:
                hooks.enter_context(_hook(norm.register_forward_hook(_after(prompt.beside[site]))))
                continue
            by_layer.setdefault(int(layer) if layer.isdecimal() else layer, {})[kind] = prompt.beside[site]
        for layer, parts in by_layer.items():
            for handle in _on(layers[layer], parts):
                hooks.enter_context(_hook(handle))
        yield


@contextmanager
def _hook(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _seen(kv: KV) -> Callable[..., Any]:
    return lambda module, given, kwargs: (given, {**kwargs, "prefix": kv})


def _after(part: Part) -> Callable[..., Any]:
    return lambda module, given, made: beside(part, given[0], made)


def _on(place: Place, parts: Mapping[str, Part]) -> Iterator[Any]:
    """Hooks for the parts of one layer: its maps, then what stands beside whole sub-layers."""
    for kind in ("norm1", "q", "k", "v", "out", "norm2", "up", "gate", "down"):
        if kind in parts and kind in place.maps:
            yield place.maps[kind].register_forward_hook(_after(parts[kind]))
    mine = [parts.get(kind) for kind in "qkv"]
    if place.fused is not None and any(mine):
        yield place.fused.register_forward_hook(_three(mine))
    for sub, first, last, norm in (("attn", "q", "out", "norm1"), ("mlp", "up", "down", "norm2")):
        if sub not in parts and f"{sub}+" not in parts:
            continue
        kept: dict[str, Tensor] = {}
        entry = place.fused if first == "q" and place.fused is not None else place.maps[first]
        yield entry.register_forward_pre_hook(_keep(kept, sub))
        stream = entry if place.post else place.maps[norm]
        yield stream.register_forward_pre_hook(_keep(kept, f"{sub}+"))
        for name in (sub, f"{sub}+"):
            if name in parts:
                yield place.maps[last].register_forward_hook(_whole(parts[name], kept, name))


def _three(parts: list[Part | None]) -> Callable[..., Any]:
    def hook(module: Any, given: tuple[Tensor], made: Tensor) -> Tensor:
        each = made.chunk(3, -1)
        return torch.cat([m if p is None else beside(p, given[0], m) for p, m in zip(parts, each, strict=True)], -1)

    return hook


def _keep(kept: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(module: Any, given: tuple[Tensor, ...]) -> None:
        kept[name] = given[0]

    return hook


def _whole(part: Part, kept: dict[str, Tensor], name: str) -> Callable[..., Any]:
    return lambda module, given, made: beside(part, kept[name], made)
