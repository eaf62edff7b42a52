"""Supported families of transformers models and their options; paths of linear maps and norms, never guessed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

HeadTransform = Callable[[Any], Any]  # model -> its head without the output embeddings, applied to states


@dataclass(frozen=True)
class LayerStack:
    """One stack of equal layers.

    Args:
        path: path of the layers in the model.
        attention: path of the attention module in a layer.
        maps: site -> path of its linear map or norm in a layer.
        prefix: prefix of the layers' names ("enc" in "enc/3").
        fused_qkv: path of the linear map that makes q, k and v together.
        is_post_norm: whether norms follow the residual sum (BERT) instead of preceding the sub-layer.
    """

    path: str
    attention: str
    maps: dict[str, str]
    prefix: str = ""
    fused_qkv: str = ""
    is_post_norm: bool = False


def _identity_transform(net: Any) -> Any:
    return lambda x: x


def _bert_transform(net: Any) -> Any:
    return net.cls.predictions.transform


def _roberta_transform(net: Any) -> Any:
    head = net.lm_head
    return lambda x: head.layer_norm(nn.functional.gelu(head.dense(x)))


def _distilbert_transform(net: Any) -> Any:
    return lambda x: net.vocab_layer_norm(net.activation(net.vocab_transform(x)))


@dataclass(frozen=True)
class Architecture:
    """A family of models.

    Args:
        stacks: its stacks of layers.
        norm: path of the final norm, "" without one.
        head_transform: the head without the output embeddings.
        position_offset: config -> position of the first token.
    """

    stacks: tuple[LayerStack, ...]
    norm: str = ""
    head_transform: HeadTransform = _identity_transform
    position_offset: Callable[[Any], int] = field(default=lambda config: 0)


LLAMA = LayerStack(
    "layers",
    "self_attn",
    {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "out": "self_attn.o_proj",
     "up": "mlp.up_proj", "gate": "mlp.gate_proj", "down": "mlp.down_proj",
     "norm1": "input_layernorm", "norm2": "post_attention_layernorm"},
)  # fmt: skip
GPT2 = LayerStack(
    "h",
    "attn",
    {"out": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj", "norm1": "ln_1", "norm2": "ln_2"},
    fused_qkv="attn.c_attn",
)
BERT = LayerStack(
    "encoder.layer",
    "attention.self",
    {"q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
     "out": "attention.output.dense", "norm1": "attention.output.LayerNorm", "up": "intermediate.dense",
     "down": "output.dense", "norm2": "output.LayerNorm"},
    is_post_norm=True,
)  # fmt: skip
DISTILBERT = LayerStack(
    "transformer.layer",
    "attention",
    {"q": "attention.q_lin", "k": "attention.k_lin", "v": "attention.v_lin", "out": "attention.out_lin",
     "norm1": "sa_layer_norm", "up": "ffn.lin1", "down": "ffn.lin2", "norm2": "output_layer_norm"},
    is_post_norm=True,
)  # fmt: skip


def _t5_stack(stack: str, prefix: str, attention_name: str, attention_index: int, mlp_index: int | None) -> LayerStack:
    maps = {"q": "q", "k": "k", "v": "v", "out": "o"}
    maps = {site: f"layer.{attention_index}.{attention_name}.{name}" for site, name in maps.items()} | {
        "norm1": f"layer.{attention_index}.layer_norm"
    }
    if mlp_index is not None:
        dense = f"layer.{mlp_index}.DenseReluDense"
        # in the gated variant wi_0 is the gate; find_submodule takes the path that exists
        maps |= {"up": f"{dense}.wi|{dense}.wi_1", "gate": f"{dense}.wi_0", "down": f"{dense}.wo"}
        maps["norm2"] = f"layer.{mlp_index}.layer_norm"
    return LayerStack(f"{stack}.block", f"layer.{attention_index}.{attention_name}", maps, prefix)


T5 = (
    _t5_stack("encoder", "enc", "SelfAttention", 0, 1),
    _t5_stack("decoder", "dec", "SelfAttention", 0, 2),
    _t5_stack("decoder", "cross", "EncDecAttention", 1, None),
)
_llama = Architecture((LLAMA,), "norm")
_bert = Architecture((BERT,), "", _bert_transform)
_roberta = Architecture((BERT,), "", _roberta_transform, lambda config: config.pad_token_id + 1)
ARCHITECTURES = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma"), _llama),
    "gpt2": Architecture((GPT2,), "ln_f"),
    "bert": _bert,
    "roberta": _roberta,
    "xlm-roberta": _roberta,
    "camembert": _roberta,
    "distilbert": Architecture((DISTILBERT,), "", _distilbert_transform),
    **dict.fromkeys(("t5", "mt5"), Architecture(T5)),
}

SLIDING_WINDOW_FAMILIES = ("mistral", "qwen2", "qwen3")
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
LAYER_TYPES = ("full_attention", "sliding_attention")
ABSENT_OPTIONS: tuple[str, ...] = (
    "is_decoder", "add_cross_attention", "use_bidirectional_attention", "attention_chunk_size", "quantization_config",
    "chunk_size_feed_forward", "attn_logit_softcapping", "final_logit_softcapping",
)  # fmt: skip


def find_submodule(module: Any, path: str) -> Any:
    """Return the submodule at the first existing of one or more paths ("a.b.0.c|a.d"), or None."""
    for alternative in path.split("|"):
        submodule = module
        for part in alternative.split("."):
            submodule = getattr(submodule, part, None) if not part.isdecimal() else submodule[int(part)]
            if submodule is None:
                break
        if submodule is not None:
            return submodule
    return None


@dataclass(frozen=True)
class LayerModules:
    """One layer's modules: attention, linear maps and norms by site, the fused q/k/v map."""

    attention: nn.Module
    maps: dict[str, nn.Module]
    fused_qkv: nn.Module | None
    is_post_norm: bool


def find_layer_modules(trunk: Any, architecture: Architecture) -> dict[int | str, LayerModules]:
    """Return the layers by name: 3, or "enc/3", "dec/3" and "cross/3" of an encoder-decoder."""
    layers: dict[int | str, LayerModules] = {}
    for stack in architecture.stacks:
        for i, layer in enumerate(find_submodule(trunk, stack.path)):
            maps = {
                site: linear for site, path in stack.maps.items() if (linear := find_submodule(layer, path)) is not None
            }
            fused = find_submodule(layer, stack.fused_qkv) if stack.fused_qkv else None
            layers[f"{stack.prefix}/{i}" if stack.prefix else i] = LayerModules(
                find_submodule(layer, stack.attention), maps, fused, stack.is_post_norm
            )
    return layers


def get_fans(module: Any) -> tuple[int, int]:
    """Return (fan_in, fan_out) of a linear map; of a norm its width, twice."""
    if hasattr(module, "in_features"):
        return module.in_features, module.out_features
    if hasattr(module, "nx"):  # Conv1D
        return module.nx, module.nf
    width = module.weight.shape[-1]
    return width, width


def count_positions(config: Any, architecture: Architecture) -> int | None:
    """Count the positions of a model; None without a limit.

    Rotary frequencies of the type longrope change at a length, for all texts of a pass: the positions up to there are
    counted, so that a text's states never depend on other texts.
    """
    n_positions = getattr(config, "max_position_embeddings", None)
    if n_positions is None:
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        n_positions = min(n_positions, rope.get("original_max_position_embeddings") or n_positions)
    return n_positions - architecture.position_offset(config)


def require_supported_options(config: Any, name: str) -> None:
    """Check that a family and every option of it that changes its arithmetic are supported.

    Args:
        config: transformers' configuration of the model.
        name: folder or name of the model, for errors.

    Raises:
        ValueError: for another family or option, by its name.
    """
    family = config.model_type
    if family not in ARCHITECTURES:
        raise ValueError(
            f"{name!r}: expected a model of type {', '.join(sorted(ARCHITECTURES))}, got {family!r}. Use one of these "
            "types."
        )
    for option, (is_supported, expected) in _supported_options(config).items():
        value = getattr(config, option, None)
        if not is_supported(value):
            raise ValueError(
                f"{name!r}: expected a {family} model with {option} {expected} in its config.json, got "
                f"{_describe(value)}. Use a model without this option."
            )


def _supported_options(config: Any) -> Mapping[str, tuple[Callable[[Any], bool], str]]:
    """Return, by option, a test of its value and a description of the values that pass."""
    family = config.model_type
    options: dict[str, tuple[Callable[[Any], bool], str]] = dict.fromkeys(ABSENT_OPTIONS, (_is_absent, "absent"))
    options["position_embedding_type"] = (lambda value: value in (None, "absolute"), "absolute")
    options["rope_parameters"] = (
        _is_supported_rope,
        f"of rope_type {', '.join(ROPE_TYPES)}, without partial_rotary_factor",
    )
    if family not in SLIDING_WINDOW_FAMILIES:
        options["sliding_window"] = (_is_absent, "absent")
    if family in ("qwen2", "qwen3"):
        options["layer_types"] = (lambda value: set(value or ()) <= set(LAYER_TYPES), f"of {' and '.join(LAYER_TYPES)}")
    else:  # all layers have one type
        options["layer_types"] = (_is_absent, "absent")
    if family in ("t5", "mt5"):
        options["is_encoder_decoder"] = (bool, "true")
    return options


def _is_absent(value: Any) -> bool:
    return not value


def _is_supported_rope(value: dict[str, Any] | None) -> bool:
    rope = value or {}
    return rope.get("rope_type", "default") in ROPE_TYPES and rope.get("partial_rotary_factor") in (None, 1)


def _describe(value: Any) -> str:
    if isinstance(value, dict) and "quant_method" in value:
        value = value["quant_method"]
    return ", ".join(sorted(set(map(str, value)))) if isinstance(value, list) else repr(value)
