"""Export for other programs: a Prompt as an adapter in PEFT's files, or a model with the adapters merged."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vlprompt.backbones.hf import peft_format
from vlprompt.backbones.hf.forward import DEFAULT_POOLING, SENTENCE_TRANSFORMERS_POOLING, FrozenTransformer
from vlprompt.backbones.hf.logging import silence_transformers
from vlprompt.backbones.hf.weight_merging import build_merged_tower, copy_sharing_tensors, is_quantized, read_weights
from vlprompt.core.prompt import Prompt

MERGE_TOLERANCE = 1e-3  # largest difference between merged model and adapters, relative to the largest logit


class Mergeable(Protocol):
    """A model with an adapter of PEFT that `save_merged_adapter` rebuilds on a copy of its base."""

    lm: FrozenTransformer
    net: Any
    config: Any
    peft_type: str
    seed: int
    requested_config: Mapping[str, Any]
    trainable_parameters: Mapping[str, nn.Parameter]

    def __init__(self, lm: FrozenTransformer, config: Mapping[str, Any], seed: int): ...


@torch.no_grad()
def save_prompt(lm: FrozenTransformer, prompt: Prompt, folder: Path, metadata: Mapping[str, Any]) -> None:
    """Save soft tokens, a prefix or low-rank updates in PEFT's files.

    Args:
        lm: the model of the prompt.
        prompt: the prompt.
        folder: the folder of the files.
        metadata: written to a file of ours in the folder.

    Raises:
        ValueError: if the prompt has several kinds of parts, or adapters that PEFT has no format for.
        OSError: if the folder can't be written.
    """
    peft_format.import_peft()
    kinds = [name for name in ("tokens", "prefix", "adapters") if len(getattr(prompt, name))]
    if len(kinds) != 1:
        raise ValueError(
            f"PEFT adapter: expected tokens, a prefix or low-rank updates, got {' and '.join(kinds) or 'nothing'}. "
            "Export a prompt of one kind."
        )
    convert = {"tokens": _convert_tokens, "prefix": _convert_prefix, "adapters": _convert_low_rank_updates}[kinds[0]]
    config, tensors = convert(lm, prompt)
    peft_format.write_adapter(folder, peft_format.complete_config(lm, config), tensors, metadata)


def _convert_tokens(lm: FrozenTransformer, prompt: Prompt) -> tuple[Any, dict[str, Tensor]]:
    from peft import PromptTuningConfig

    tokens = prompt.tokens[0][0]  # (P, D)
    config = PromptTuningConfig(
        num_virtual_tokens=len(tokens), token_dim=lm.dim, num_layers=lm.depth, num_attention_heads=lm.n_heads
    )
    return config, {"prompt_embeddings": tokens}


def _convert_prefix(lm: FrozenTransformer, prompt: Prompt) -> tuple[Any, dict[str, Tensor]]:
    from peft import PrefixTuningConfig

    if lm.kind != "seq2seq" and (lacking := [layer for layer in lm.prefix_layers if layer not in prompt.prefix]):
        raise ValueError(
            f"PEFT adapter: expected a prefix in every layer, got none in layer {lacking[0]}. Use prefix_tuning."
        )
    # keys and values of each layer, (P, H * Dh)
    key_values = [x[0].transpose(0, 1).flatten(1) for layer in lm.prefix_layers for x in prompt.prefix[layer]]
    return PrefixTuningConfig(num_virtual_tokens=len(key_values[0])), {"prompt_embeddings": torch.cat(key_values, 1)}


def _convert_low_rank_updates(lm: FrozenTransformer, prompt: Prompt) -> tuple[Any, dict[str, Tensor]]:
    from peft import LoraConfig

    updates_by_module = _group_updates(lm, prompt)
    tensors, ranks, alphas = dict[str, Tensor](), dict[str, int](), dict[str, float]()
    for name, updates in updates_by_module.items():
        down, up, scale = _join_updates(updates)
        prefix = f"base_model.model.{name}"
        tensors |= {f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": up}
        ranks[name], alphas[name] = len(down), scale * len(down)
    rank, alpha = min(ranks.values()), min(alphas.values())
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]  # PEFT takes fractions, too
        target_modules=_shorten_module_names(lm, set(updates_by_module)),
        rank_pattern={name: r for name, r in ranks.items() if r != rank},
        alpha_pattern={name: a for name, a in alphas.items() if a != alpha},
        fan_in_fan_out=any(hasattr(lm.net.get_submodule(name), "nx") for name in updates_by_module),
    )
    return config, tensors


def _group_updates(lm: FrozenTransformer, prompt: Prompt) -> dict[str, list[tuple[int | None, Any]]]:
    """Group low-rank updates by the module they change, with the index of q, k or v in a fused module."""
    names = {id(module): name for name, module in lm.net.named_modules()}
    updates_by_module: dict[str, list[tuple[int | None, Any]]] = {}
    for site in prompt.adapters:
        adapter, (layer, _, kind) = prompt.adapters[site], site.rpartition("/")
        if not all(hasattr(adapter, name) for name in ("down", "up", "scale")):
            raise ValueError(
                f"PEFT adapter: expected tokens, prefixes or low-rank updates, got {type(adapter).__name__} at "
                f"{site}. Export lora, lora_fa, qlora, peft, prompt_tuning, p_tuning or prefix_tuning, or, if its "
                "parts can be merged, a whole model by --to transformers."
            )
        modules = lm.layer_modules[int(layer) if layer.isdecimal() else layer]
        module = modules.maps.get(kind)
        qkv_index = None if module is not None else "qkv".index(kind)
        name = names[id(modules.fused_qkv if module is None else module)]
        updates_by_module.setdefault(name, []).append((qkv_index, adapter))
    return updates_by_module


def _join_updates(updates: list[tuple[int | None, Any]]) -> tuple[Tensor, Tensor, float]:
    """Join the updates of one module into (down, up, scale); those of a fused module become blocks of one update."""
    down, scale = torch.cat([adapter.down for _, adapter in updates]), updates[0][1].scale
    if updates[0][0] is None:
        return down, updates[0][1].up, scale
    fan_out = len(updates[0][1].up)
    up, column = down.new_zeros(3 * fan_out, len(down)), 0
    for qkv_index, adapter in updates:
        rank, row = len(adapter.down), (qkv_index or 0) * fan_out
        up[row : row + fan_out, column : column + rank] = adapter.up * (adapter.scale / scale)
        column += rank
    return down, up, scale


def _shorten_module_names(lm: FrozenTransformer, module_names: set[str]) -> list[str]:
    """Return the last parts of the names if these match no other modules, else the full names."""
    ends = {name.rpartition(".")[2] for name in module_names}
    matched = {name for name, _ in lm.net.named_modules() if name.rpartition(".")[2] in ends}
    return sorted(ends if matched == module_names else module_names)


# merged models


def to_float32(lm: FrozenTransformer) -> FrozenTransformer:
    """Return the model in float32; a copy if it is quantised or in half precision."""
    if lm.weight_precision == "fp32":
        return lm
    net = copy_sharing_tensors(lm.net) if lm.weight_precision in ("int8", "nf4") else copy.deepcopy(lm.net).float()
    for name, module in list(net.named_modules()):
        if is_quantized(module):
            weight, bias = read_weights(module)
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
            linear.weight = nn.Parameter(weight, requires_grad=False)
            if bias is not None:
                linear.bias = nn.Parameter(bias, requires_grad=False)
            net.set_submodule(name, linear.eval())
    for flag in ("is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit", "hf_quantizer", "quantization_method"):
        if flag in vars(net):
            delattr(net, flag)
    if hasattr(net.config, "quantization_config"):
        del net.config.quantization_config
    net.config.dtype = torch.float32
    float_lm = copy.copy(lm)
    float_lm.weight_precision, float_lm.feature_cache = "fp32", type(lm.feature_cache)()
    float_lm.attach_model(net)
    return float_lm


@torch.no_grad()
def save_merged_model(lm: FrozenTransformer, prompt: Prompt, folder: Path) -> None:
    """Save the model in float32 with the prompt's adapters merged, and its tokenizer.

    A quantised model is dequantised first: 4 bits would round the merged updates away.

    Raises:
        ValueError: if an adapter can't be merged, or the merged model differs from the one with adapters.
        OSError: if the folder can't be written.
    """
    base = to_float32(lm)
    merged = build_merged_tower(base, prompt)
    with base.inject(prompt):
        expected = _probe_outputs(base, base.net)
    _check_outputs_match(expected, _probe_outputs(merged, merged.net))
    _write_model(merged, merged.net, folder)


@torch.no_grad()
def save_merged_adapter(adapted: Mergeable, folder: Path) -> None:
    """Like `save_merged_model` for an adapter of PEFT, merged by PEFT."""
    if adapted.config.is_prompt_learning:
        raise ValueError(
            "--to transformers: expected updates of weights, got tokens or prefixes, which can't be merged into "
            "weights. Write --to peft."
        )
    base = to_float32(adapted.lm)
    rebuilt = type(adapted)(base, adapted.requested_config, adapted.seed)
    for name, p in rebuilt.trainable_parameters.items():
        p.copy_(adapted.trainable_parameters[name])
    expected = _probe_outputs(base, rebuilt.net.get_base_model())
    try:
        net = copy.deepcopy(rebuilt.net).merge_and_unload(safe_merge=True)
    except (ValueError, AttributeError, TypeError, NotImplementedError) as error:
        raise ValueError(
            f"--to transformers: expected an adapter that PEFT can merge into {adapted.lm.spec}, got "
            f"{adapted.peft_type} ({error}). Write --to peft."
        ) from error
    _check_outputs_match(expected, _probe_outputs(base, net))
    _write_model(base, net, folder)


def _probe_outputs(lm: FrozenTransformer, net: Any) -> Tensor:
    """Compute logits of a few rows of random tokens; the last states of a model without its head."""
    n_vocabulary = net.get_input_embeddings().weight.shape[0]
    ids = torch.randint(n_vocabulary, (2, 16), generator=torch.Generator().manual_seed(0)).to(lm.device)
    decoder_arguments = {"decoder_input_ids": ids[:, :8]} if lm.kind == "seq2seq" else {}
    if not lm.has_lm_head:
        return net.base_model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.float()
    return net(input_ids=ids, attention_mask=torch.ones_like(ids), **decoder_arguments).logits.float()


def _check_outputs_match(expected: Tensor, merged: Tensor) -> None:
    difference = float((expected - merged).abs().max() / expected.abs().max())
    if not difference <= MERGE_TOLERANCE:
        raise ValueError(
            "--to transformers: expected a merged model with the adapter's answers, got a relative difference of "
            f"{difference:.1e}, so it was not written. Write --to peft and load the adapter together with its base."
        )


def _write_model(lm: FrozenTransformer, net: Any, folder: Path) -> None:
    try:
        saved_net = net if lm.has_lm_head else net.base_model  # a head that was not loaded is not saved
        with silence_transformers():
            saved_net.save_pretrained(str(folder))
        lm.tokenizer.save_pretrained(str(folder))
        if lm.pooling != DEFAULT_POOLING[lm.kind]:
            (folder / "1_Pooling").mkdir(exist_ok=True)
            modes = {f"pooling_mode_{key}": pool == lm.pooling for pool, key in SENTENCE_TRANSFORMERS_POOLING.items()}
            (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes), "utf-8")
    except OSError as error:
        raise OSError(f"{str(folder)!r}: writing failed ({error}). Make room or name another folder.") from error
