"""What was learned, for other programs: a Prompt as an adapter in PEFT's files, or a whole model with the parts in."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vlprompt.backbones.hf import peft_format
from vlprompt.backbones.hf.forward import POOLING, POOLS, Passes
from vlprompt.backbones.hf.logging import quiet
from vlprompt.backbones.hf.weight_merging import folded, quantised, shared_copy, weights
from vlprompt.core.prompt import Prompt

NEAR = 1e-3  # of the greatest logit: as far as the merged model may be from the one with parts beside its maps


class Mergeable(Protocol):
    """A model with an adapter of PEFT that `save_merged_adapter` makes again on a copy of its base."""

    lm: Passes
    net: Any
    config: Any
    kind: str
    seed: int
    asked: Mapping[str, Any]
    trained: Mapping[str, nn.Parameter]

    def __init__(self, lm: Passes, config: Mapping[str, Any], seed: int): ...


@torch.no_grad()
def save(lm: Passes, prompt: Prompt, folder: Path, told: Mapping[str, Any]) -> None:
    """Soft tokens, a prefix or low-rank updates as PEFT's files; ValueError for what PEFT has no form for."""
    peft_format.library()
    kinds = [name for name in ("tokens", "prefix", "beside") if len(getattr(prompt, name))]
    if len(kinds) != 1:
        raise ValueError(
            f"an adapter of PEFT is tokens, a prefix or updates of maps; here is {' and '.join(kinds) or 'nothing'}"
        )
    make = {"tokens": _tokens, "prefix": _prefix, "beside": _updates}[kinds[0]]
    config, tensors = make(lm, prompt)
    peft_format.write(folder, peft_format.fitted(lm, config), tensors, told)


def _tokens(lm: Passes, prompt: Prompt) -> tuple[Any, dict[str, Tensor]]:
    from peft import PromptTuningConfig

    made = prompt.tokens[0][0]  # (P, D)
    config = PromptTuningConfig(num_virtual_tokens=len(made), token_dim=lm.dim, num_layers=lm.depth,
                                num_attention_heads=lm.heads)  # fmt: skip
    return config, {"prompt_embeddings": made}


def _prefix(lm: Passes, prompt: Prompt) -> tuple[Any, dict[str, Tensor]]:
    from peft import PrefixTuningConfig

    if lm.kind != "seq2seq" and (lacking := [layer for layer in lm.layers if layer not in prompt.prefix]):
        raise ValueError(f"a prefix of PEFT's stands in every layer, and this one has none in layer {lacking[0]}")
    each = [one[0].transpose(0, 1).flatten(1) for layer in lm.layers for one in prompt.prefix[layer]]  # (P, H * Dh)
    return PrefixTuningConfig(num_virtual_tokens=len(each[0])), {"prompt_embeddings": torch.cat(each, 1)}


def _updates(lm: Passes, prompt: Prompt) -> tuple[Any, dict[str, Tensor]]:
    """Low-rank updates; those of q, k and v that are one map in the model are one update, block by block."""
    from peft import LoraConfig

    names = {id(module): name for name, module in lm.net.named_modules()}
    by_map: dict[str, list[tuple[int | None, Any]]] = {}
    for site in prompt.beside:
        part, (layer, _, kind) = prompt.beside[site], site.rpartition("/")
        if not all(hasattr(part, name) for name in ("down", "up", "scale")):
            raise ValueError(
                f"PEFT's files have no form for a {type(part).__name__} (at {site}): export lora, lora_fa, qlora, "
                "peft, prompt_tuning, p_tuning or prefix_tuning, or, where its parts can be folded, a whole model by "
                "--merge"
            )
        place = lm.places[int(layer) if layer.isdecimal() else layer]
        whole = place.maps.get(kind)
        third = None if whole is not None else "qkv".index(kind)
        by_map.setdefault(names[id(place.fused if whole is None else whole)], []).append((third, part))
    tensors, ranks, alphas = dict[str, Tensor](), dict[str, int](), dict[str, float]()
    for name, parts in by_map.items():
        down, scale = torch.cat([part.down for _, part in parts]), parts[0][1].scale
        if parts[0][0] is None:
            up = parts[0][1].up
        else:
            out = len(parts[0][1].up)
            up, at = down.new_zeros(3 * out, len(down)), 0
            for third, part in parts:
                rank = len(part.down)
                block = slice((third or 0) * out, ((third or 0) + 1) * out)
                up[block, at : at + rank] = part.up * (part.scale / scale)
                at += rank
        prefix = f"base_model.model.{name}"
        tensors |= {f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": up}
        ranks[name], alphas[name] = len(down), scale * len(down)
    rank, alpha = min(ranks.values()), min(alphas.values())
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]  # a fraction does as well
        target_modules=_short(lm, set(by_map)),
        rank_pattern={name: r for name, r in ranks.items() if r != rank},
        alpha_pattern={name: a for name, a in alphas.items() if a != alpha},
        fan_in_fan_out=any(hasattr(lm.net.get_submodule(name), "nx") for name in by_map),
    )
    return config, tensors


def _short(lm: Passes, wanted: set[str]) -> list[str]:
    """The maps by the ends of their names where these mean no others, else by their whole names."""
    ends = {name.rpartition(".")[2] for name in wanted}
    meant = {name for name, _ in lm.net.named_modules() if name.rpartition(".")[2] in ends}
    return sorted(ends if meant == wanted else wanted)


# whole models


def whole(lm: Passes) -> Passes:
    """The model in float32, with weights of its own where it was quantised or in half precision."""
    if lm.base == "fp32":
        return lm
    net = shared_copy(lm.net) if lm.base in ("int8", "nf4") else copy.deepcopy(lm.net).float()
    for name, module in list(net.named_modules()):
        if quantised(module):
            weight, bias = weights(module)
            fresh = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
            fresh.weight = nn.Parameter(weight, requires_grad=False)
            if bias is not None:
                fresh.bias = nn.Parameter(bias, requires_grad=False)
            net.set_submodule(name, fresh.eval())
    for flag in ("is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit", "hf_quantizer", "quantization_method"):
        if flag in vars(net):
            delattr(net, flag)
    if hasattr(net.config, "quantization_config"):
        del net.config.quantization_config
    net.config.dtype = torch.float32
    made = copy.copy(lm)
    made.base, made.kept = "fp32", type(lm.kept)()
    made.moved(net)
    return made


@torch.no_grad()
def save_merged(lm: Passes, prompt: Prompt, folder: Path) -> None:
    """The whole model in float32 with the parts in its weights, and its tokenizer; ValueError where that is not exact.

    A quantised model is dequantised first: what is folded into 4 bits would be rounded away.
    """
    base = whole(lm)
    made = folded(base, prompt)
    with base.within(prompt):
        wanted = _probed(base, base.net)
    _checked(wanted, _probed(made, made.net))
    _written(made, made.net, folder)


@torch.no_grad()
def save_merged_adapter(adapted: Mergeable, folder: Path) -> None:
    """As `save_merged`, of an adapter of PEFT's, by PEFT's own merging."""
    if adapted.config.is_prompt_learning:
        raise ValueError("tokens and prefixes can't be folded into weights: leave --merge out")
    base = whole(adapted.lm)
    again = type(adapted)(base, adapted.asked, adapted.seed)
    for name, p in again.trained.items():
        p.copy_(adapted.trained[name])
    wanted = _probed(base, again.net.get_base_model())
    try:
        net = copy.deepcopy(again.net).merge_and_unload(safe_merge=True)
    except (ValueError, AttributeError, TypeError, NotImplementedError) as error:
        raise ValueError(
            f"PEFT can't merge {adapted.kind} into {adapted.lm.spec}: {error}; leave --merge out"
        ) from error
    _checked(wanted, _probed(base, net))
    _written(base, net, folder)


def _probed(lm: Passes, net: Any) -> Tensor:
    """Logits of a few rows of drawn tokens; of a model without its head the last states."""
    many = net.get_input_embeddings().weight.shape[0]
    ids = torch.randint(many, (2, 16), generator=torch.Generator().manual_seed(0)).to(lm.device)
    how = {"decoder_input_ids": ids[:, :8]} if lm.kind == "seq2seq" else {}
    if not lm.answers:
        return net.base_model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.float()
    return net(input_ids=ids, attention_mask=torch.ones_like(ids), **how).logits.float()


def _checked(wanted: Tensor, made: Tensor) -> None:
    far = float((wanted - made).abs().max() / wanted.abs().max())
    if not far <= NEAR:
        raise ValueError(
            f"the merged model's answers differ by {far:.1e} of their size from the adapter's, so it was not written: "
            "leave --merge out and load the adapter beside its base"
        )


def _written(lm: Passes, net: Any, folder: Path) -> None:
    try:
        with quiet():
            (net if lm.answers else net.base_model).save_pretrained(str(folder))  # what it came without it goes without
        lm.tokenizer.save_pretrained(str(folder))
        if lm.pool != POOLS[lm.kind]:
            (folder / "1_Pooling").mkdir(exist_ok=True)
            told = {f"pooling_mode_{key}": pool == lm.pool for pool, key in POOLING.items()}
            (folder / "1_Pooling" / "config.json").write_text(json.dumps(told), "utf-8")
    except OSError as error:
        raise OSError(f"could not write into {str(folder)!r} ({error}); make room or name another folder") from error
