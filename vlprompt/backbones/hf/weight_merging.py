"""Parts folded into the weights of a transformers model: the same answers from a plain model."""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vlprompt.backbones.hf.forward import Passes
from vlprompt.core.prompt import Prompt

T = TypeVar("T", bound=Passes)


def shared_copy(net: Any) -> Any:
    """The model's modules anew around the same tensors: they can be replaced, and the model stays as it is."""
    tensors = [*net.parameters(), *net.buffers()]
    return copy.deepcopy(net, {id(t): t for t in tensors})


@torch.no_grad()
def folded(tower: T, prompt: Prompt) -> T:
    """A tower with the parts of a prompt in its weights; what was quantised and has a part is dequantised first.

    Other weights are shared with the tower. ValueError for tokens, prefixes, and parts that can't be folded.
    """
    if len(prompt.tokens) or len(prompt.prefix):
        raise ValueError("tokens and prefixes can't be folded into weights; only what stands beside a map can")
    made = copy.copy(tower)
    made.moved(shared_copy(tower.net))
    names = {id(module): name for name, module in made.net.named_modules()}
    for site in prompt.beside:
        part = prompt.beside[site]
        layer, _, kind = site.rpartition("/")
        place = made.places[int(layer) if layer.isdecimal() else layer] if layer else None
        fused = None if place is None or kind not in ("q", "k", "v") else place.fused
        module: Any = made.norm if place is None else place.maps.get(kind, fused)
        if module is None or not hasattr(part, "merge"):
            raise ValueError(
                f"{type(part).__name__} can't be folded into weights (site {site}); only updates of linear maps and "
                "norms can be, such as LoRA, SSF"
            )
        third = None if place is None or module is not place.fused else "qkv".index(kind)
        fresh = _changed(module, part, third, site)
        if fresh is not module:
            made.net.set_submodule(names[id(module)], fresh)
            names[id(fresh)] = names[id(module)]
            made.moved(made.net)
    made.kept = type(made.kept)()
    return made


def _changed(module: Any, part: Any, third: int | None, site: str) -> Any:
    """The map with its part in it: itself, with new tensors, or a plain one instead of a quantised one."""
    weight, bias = weights(module)
    turned = hasattr(module, "nx")  # Conv1D holds (in, out)
    weight = weight.T if turned else weight
    if third is None:
        weight, bias = part.merge(weight, bias)
    else:
        each, shifts = list(weight.chunk(3)), [None] * 3 if bias is None else list(bias.chunk(3))
        each[third], shifts[third] = part.merge(each[third], shifts[third])
        weight = torch.cat(each)
        if any(b is not None for b in shifts):
            bias = torch.cat([w.new_zeros(len(w)) if b is None else b for w, b in zip(each, shifts, strict=True)])
    if bias is not None and not hasattr(module, "bias"):
        raise ValueError(f"the norm at {site} has no bias, so a shift can't be folded into it")
    if quantised(module):
        fresh = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        _set(fresh, weight, bias, torch.float32)
        return fresh.eval()
    _set(module, weight.T.contiguous() if turned else weight, bias, module.weight.dtype)
    return module


def _set(module: Any, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
    module.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias.to(dtype), requires_grad=False)


def quantised(module: Any) -> bool:
    return type(module).__module__.startswith("bitsandbytes")


def weights(module: Any) -> tuple[Tensor, Tensor | None]:
    """The weight and the bias of a map in float32, dequantised where it is held in 4 or 8 bits."""
    bias = getattr(module, "bias", None)
    if quantised(module):
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight

        weight = dequantize_bnb_weight(module.weight, getattr(module, "state", None))
    else:
        weight = module.weight
    return weight.detach().float(), None if bias is None else bias.detach().float()
