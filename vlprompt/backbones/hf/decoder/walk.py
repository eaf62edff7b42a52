"""A walk through the layers of a frozen decoder of the Llama kind: its own modules, with what stands between them.

Adapters are hooks on the modules of a layer and act as in the model's own forward pass. Between the modules nothing is
stored that the backward pass can do without, and behind the last attention only rows that are read go on.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from vlprompt.backbones.hf.forward import FrozenTransformer
from vlprompt.core.prompt import Prompt
from vlprompt.layers.blocks.attention import merge_heads
from vlprompt.layers.blocks.frozen_decoder import gate_silu, normalize_rms, rotate

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma")
FIXED_ROPE_TYPES = ("default", "linear", "yarn", "llama3")  # frequencies of others depend on the longest text
WHOLE_SUBLAYERS = ("attn", "attn+")  # sites whose adapters read the rows before a sub-layer and those behind it

# attention of a layer: its index, q (1, H, T, Dh), k and v (1, K, T, Dh), and the scale of the scores
LayerAttention: TypeAlias = Callable[[int, Tensor, Tensor, Tensor, float], Tensor]


def is_shared(prompt: Prompt) -> bool:
    """Whether all texts share the same tokens and prefixes."""
    return all(len(t) == 1 for t in prompt.tokens.values()) and all(len(k) == 1 for k, _ in prompt.prefix.values())


def is_walkable(tower: FrozenTransformer, prompt: Prompt, n_positions: int) -> bool:
    """Whether texts of at most n_positions, prefix included, can be walked with equal results.

    On a CPU alone: elsewhere many short texts, attended to one by one, would wait for their launches.
    """
    config, trunk = tower.net.config, tower.trunk
    if config.model_type not in FAMILIES or tower.kind != "causal" or tower.device.type != "cpu":
        return False
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") not in FIXED_ROPE_TYPES or not is_shared(prompt) or prompt.mixes_rows:
        return False
    modules = [trunk, *(m for layer in trunk.layers for m in (layer, layer.self_attn, layer.mlp))]
    return all(_is_plain(m) for m in modules) and all(
        n_positions <= _find_window(layer.self_attn, config) for layer in trunk.layers
    )


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is one of transformers, and nothing hooked to it, which calling its parts would leave out."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return type(module).__module__.startswith("transformers.models.") and not any(hooks)


def _find_window(attention: Any, config: Any) -> float:
    default = config.sliding_window if config.model_type == "mistral" else None
    window = getattr(attention, "sliding_window", default)
    return float("inf") if window is None else window


def walk_layers(
    tower: FrozenTransformer, x: Tensor, positions: Tensor, prompt: Prompt, attend: LayerAttention, read_rows: Tensor
) -> Tensor:
    """Run all layers and the last norm, with the prompt's adapters; prefixes are up to `attend`.

    Args:
        tower: the model.
        x: (1, T, D), embedded tokens.
        positions: (T,).
        prompt: whose adapters act.
        attend: attention of a layer.
        read_rows: (R,), the rows that are read.

    Returns:
        (R, D).
    """
    trunk, last = tower.trunk, tower.net.config.num_hidden_layers - 1
    position_embeddings = tuple(t[:, None] for t in trunk.rotary_emb(x, positions[None]))
    reads_late = any(f"{last}/{sublayer}" in prompt.adapters for sublayer in WHOLE_SUBLAYERS)
    is_checkpointed = tower.activation_checkpointing and torch.is_grad_enabled()
    prompt = Prompt(adapters=prompt.adapters)
    with tower.inject(prompt):
        for i, layer in enumerate(trunk.layers[: last + 1]):
            rows = read_rows if i == last and not reads_late else None
            run = partial(_run_layer, layer, position_embeddings, partial(attend, i), rows)
            x = tower.run_checkpointed(prompt, run, x) if is_checkpointed else run(x)
        x = x[:, read_rows] if reads_late else x
        return _normalize(trunk.norm, x)[0]


def _run_layer(
    layer: Any,
    position_embeddings: Sequence[Tensor],
    attend: Callable[[Tensor, Tensor, Tensor, float], Tensor],
    rows: Tensor | None,
    x: Tensor,
) -> Tensor:
    """Run one layer on x (1, T, D); behind its attention only `rows`, None: all."""
    attention, y = layer.self_attn, _normalize(layer.input_layernorm, x)
    q, k, v = (
        linear(y).unflatten(-1, (-1, attention.head_dim))
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    if hasattr(attention, "q_norm"):
        q, k = _normalize(attention.q_norm, q), _normalize(attention.k_norm, k)
    q, k = (rotate(t.transpose(1, 2), *position_embeddings).to(v.dtype) for t in (q, k))
    y = merge_heads(attend(q, k, v.transpose(1, 2), attention.scaling))
    if rows is not None:
        x, y = x[:, rows], y[:, rows]
    x = x + attention.o_proj(y)
    y, mlp = _normalize(layer.post_attention_layernorm, x), layer.mlp
    gate, up = mlp.gate_proj(y), mlp.up_proj(y)
    is_silu = isinstance(mlp.act_fn, nn.SiLU) or type(mlp.act_fn).__name__ == "SiLUActivation"
    return x + mlp.down_proj(gate_silu(gate, up) if is_silu else mlp.act_fn(gate) * up)


def _normalize(norm: Any, x: Tensor) -> Tensor:
    """Apply a norm; itself where an adapter is hooked to it, it is trained, or it is not in single precision."""
    if not _is_plain(norm) or norm.weight.requires_grad or {x.dtype, norm.weight.dtype} != {torch.float32}:
        return norm(x)
    if type(norm).__name__ == "GemmaRMSNorm":
        return normalize_rms(x, norm.weight + 1, norm.eps)
    return normalize_rms(x, norm.weight, norm.variance_epsilon)
