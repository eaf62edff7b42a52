"""Where the maps of a transformers model stand, family by family: named by a recipe, never guessed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

Ready = Callable[[Any], Any]  # a model's head without its last map: states as the vocabulary's rows read them


@dataclass(frozen=True)
class Layers:
    """One stack of like layers: where it is, and the paths of its maps in a layer.

    prefix: of the layers' names ("enc" in "enc/3"); attention: the module that attends; fused: q, k and v in one map;
    post: norms follow the sum (BERT) instead of standing before the sub-layer.
    """

    path: str
    attention: str
    maps: dict[str, str]
    prefix: str = ""
    fused: str = ""
    post: bool = False


def _same(net: Any) -> Any:
    return lambda x: x


def _bert_ready(net: Any) -> Any:
    return net.cls.predictions.transform


def _roberta_ready(net: Any) -> Any:
    head = net.lm_head
    return lambda x: head.layer_norm(nn.functional.gelu(head.dense(x)))


def _distilbert_ready(net: Any) -> Any:
    return lambda x: net.vocab_layer_norm(net.activation(net.vocab_transform(x)))


@dataclass(frozen=True)
class Family:
    """A family of models: its stacks, its final norm, and how rows are made ready for the vocabulary."""

    stacks: tuple[Layers, ...]
    norm: str = ""
    ready: Ready = _same
    offset: Callable[[Any], int] = field(default=lambda config: 0)  # the position of the first token


LLAMA = Layers(
    "layers",
    "self_attn",
    {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "out": "self_attn.o_proj",
     "up": "mlp.up_proj", "gate": "mlp.gate_proj", "down": "mlp.down_proj",
     "norm1": "input_layernorm", "norm2": "post_attention_layernorm"},
)  # fmt: skip
GPT2 = Layers(
    "h",
    "attn",
    {"out": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj", "norm1": "ln_1", "norm2": "ln_2"},
    fused="attn.c_attn",
)
BERT = Layers(
    "encoder.layer",
    "attention.self",
    {"q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
     "out": "attention.output.dense", "norm1": "attention.output.LayerNorm", "up": "intermediate.dense",
     "down": "output.dense", "norm2": "output.LayerNorm"},
    post=True,
)  # fmt: skip
DISTILBERT = Layers(
    "transformer.layer",
    "attention",
    {"q": "attention.q_lin", "k": "attention.k_lin", "v": "attention.v_lin", "out": "attention.out_lin",
     "norm1": "sa_layer_norm", "up": "ffn.lin1", "down": "ffn.lin2", "norm2": "output_layer_norm"},
    post=True,
)  # fmt: skip


def _t5(stack: str, prefix: str, attend: str, at: int, feed: int | None) -> Layers:
    maps = {"q": "q", "k": "k", "v": "v", "out": "o"}
    maps = {site: f"layer.{at}.{attend}.{name}" for site, name in maps.items()} | {"norm1": f"layer.{at}.layer_norm"}
    if feed is not None:
        dense = f"layer.{feed}.DenseReluDense"
        # of the gated form wi_0 is the gate; `places` takes what is there
        maps |= {"up": f"{dense}.wi|{dense}.wi_1", "gate": f"{dense}.wi_0", "down": f"{dense}.wo"}
        maps["norm2"] = f"layer.{feed}.layer_norm"
    return Layers(f"{stack}.block", f"layer.{at}.{attend}", maps, prefix)


T5 = (
    _t5("encoder", "enc", "SelfAttention", 0, 1),
    _t5("decoder", "dec", "SelfAttention", 0, 2),
    _t5("decoder", "cross", "EncDecAttention", 1, None),
)
_llama = Family((LLAMA,), "norm")
_bert = Family((BERT,), "", _bert_ready)
_roberta = Family((BERT,), "", _roberta_ready, lambda config: config.pad_token_id + 1)
FAMILIES = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma"), _llama),
    "gpt2": Family((GPT2,), "ln_f"),
    "bert": _bert,
    "roberta": _roberta,
    "xlm-roberta": _roberta,
    "camembert": _roberta,
    "distilbert": Family((DISTILBERT,), "", _distilbert_ready),
    **dict.fromkeys(("t5", "mt5"), Family(T5)),
}


def at(module: Any, path: str) -> Any:
    """The submodule at a path ("a.b.0.c"), or at the first of several (with |) that is there; else None."""
    for one in path.split("|"):
        found = module
        for part in one.split("."):
            found = getattr(found, part, None) if not part.isdecimal() else found[int(part)]
            if found is None:
                break
        if found is not None:
            return found
    return None


@dataclass(frozen=True)
class Place:
    """One layer's sub-layers: the module that attends, its maps by kind, the fused one, and whether norms follow."""

    attention: nn.Module
    maps: dict[str, nn.Module]
    fused: nn.Module | None
    post: bool


def places(trunk: Any, family: Family) -> dict[int | str, Place]:
    """Every layer by its name: 3, or "enc/3", "dec/3" and "cross/3" of an encoder-decoder."""
    found: dict[int | str, Place] = {}
    for stack in family.stacks:
        for i, layer in enumerate(at(trunk, stack.path)):
            maps = {site: made for site, path in stack.maps.items() if (made := at(layer, path)) is not None}
            fused = at(layer, stack.fused) if stack.fused else None
            found[f"{stack.prefix}/{i}" if stack.prefix else i] = Place(
                at(layer, stack.attention), maps, fused, stack.post
            )
    return found


def fans(module: Any) -> tuple[int, int]:
    """Widths of what a map is given and of what it makes; of a norm its width, twice."""
    if hasattr(module, "in_features"):
        return module.in_features, module.out_features
    if hasattr(module, "nx"):  # Conv1D
        return module.nx, module.nf
    width = module.weight.shape[-1]
    return width, width
