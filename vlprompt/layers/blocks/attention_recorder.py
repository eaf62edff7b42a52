"""What attention looked at in a pass: its weights in every layer, and their rollout through the layers."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vlprompt.core.prompt import KV, Prompt
from vlprompt.layers.blocks.attention import Rows
from vlprompt.layers.blocks.block import AttentionFn, mix_tokens


@dataclass(frozen=True)
class LayerAttention:
    """The attention of one layer.

    Args:
        weights: (B, H, r, K), rows add up to 1; columns are keys in front, then the rows of the layer's input.
        n_front: keys in front: prefixes, and prompt tokens that no row of this layer stands for.
        positions: (r,) or a slice, the rows of the layer's input that are computed; None for all.
    """

    weights: Tensor
    n_front: int
    positions: Rows


@dataclass
class RecordedPass:
    """One pass of an image tower.

    Args:
        prompt: of the pass.
        output: what was asked of the tower.
        n_special: class and register tokens, before which nothing and behind which prompt tokens stand.
        n_patches: patches (N).
        layers: the attention of each layer.
    """

    prompt: Prompt
    output: str
    n_special: int
    n_patches: int
    layers: list[LayerAttention] = field(default_factory=list)

    def attention_over_image(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the attention of the rows that the last layer computes, mean over heads.

        Returns:
            Over the patches in the last layer (B, r, N), over the patches by rollout (B, r, N), and on prompts in the
            last layer (B, r). Rows are the class token alone, or the prompt tokens, as the pass read them.
        """
        last, s = self.layers[-1], self.n_special
        weights = last.weights.mean(1)
        n_rows = weights.shape[-1] - last.n_front
        n_prompts = n_rows - s - self.n_patches
        on_prompts = weights[..., : last.n_front].sum(-1)
        on_prompts = on_prompts + weights[..., last.n_front + s : last.n_front + s + n_prompts].sum(-1)
        rollout = roll_out(self.layers, self.prompt, s, self.n_patches)
        return weights[..., -self.n_patches :], rollout[..., s : s + self.n_patches], on_prompts


class AttentionRecorder:
    """Records the attention of each pass of a tower.

    The outputs of the tower are computed by the same operations as without it, so their bits do not change.
    """

    def __init__(self) -> None:
        self.passes = list[RecordedPass]()

    def record(
        self, attention: AttentionFn, prompt: Prompt, output: str, n_special: int, n_patches: int
    ) -> AttentionFn:
        """Begin another pass, and return its attention: the same one, which adds the weights of each call."""
        recorded = RecordedPass(prompt, output, n_special, n_patches)
        self.passes.append(recorded)

        def attend_and_record(q: Tensor, k: Tensor, v: Tensor, prefix: KV | None, positions: Rows) -> Tensor:
            with torch.no_grad():
                recorded.layers.append(_compute_weights(attention, q, k, prefix, positions))
            return attention(q, k, v, prefix, positions)

        return attend_and_record


def _compute_weights(
    attention: AttentionFn, q: Tensor, k: Tensor, prefix: KV | None, positions: Rows
) -> LayerAttention:
    """Compute the weights of any attention: its output where the values are the rows of an identity matrix."""
    n_front, n_rows = 0 if prefix is None else prefix[0].shape[2], k.shape[2]
    identity = torch.eye(n_front + n_rows, dtype=k.dtype, device=k.device)
    front = None if prefix is None else (prefix[0], identity[:n_front].expand(*prefix[0].shape[:2], -1, -1))
    weights = attention(q, k, identity[n_front:].expand(*k.shape[:2], -1, -1), front, positions)
    return LayerAttention(weights, n_front, positions)


def roll_out(layers: list[LayerAttention], prompt: Prompt, n_special: int, n_patches: int) -> Tensor:
    """Multiply attention through the layers (Abnar and Zuidema, 2020, arXiv:2005.00928).

    A layer passes on half of each row and half of what the row attends to, mean over heads. Prompt tokens are sources
    where they are put in.

    Args:
        layers: the attention of each layer.
        prompt: its tokens replace those of the layer before, or mix with them.
        n_special: class and register tokens (S).
        n_patches: patches (N).

    Returns:
        (B, r, S + N + 1): from special tokens, patches, and prompts in all; rows add up to 1.
    """
    n_fixed = n_special + n_patches
    n_images, like = len(layers[0].weights), layers[0].weights
    sources = torch.eye(n_fixed, n_fixed + 1, dtype=like.dtype, device=like.device).expand(n_images, -1, -1)
    of_prompt = torch.zeros(n_fixed + 1, dtype=like.dtype, device=like.device)
    of_prompt[-1] = 1
    for i, layer in enumerate(layers):
        weights = layer.weights.mean(1)
        n_tokens = weights.shape[-1] - layer.n_front - n_fixed
        entered = of_prompt.expand(n_images, prompt.length, -1)
        if sources.shape[1] > n_fixed and (i in prompt.tokens or not n_tokens):  # the tokens of the layer before go
            if i in prompt.carry:
                before = sources[:, n_special : n_special + prompt.length]
                entered = mix_tokens(before, entered, prompt.carry[i])
            sources = torch.cat([sources[:, :n_special], sources[:, n_special + prompt.length :]], 1)
        if sources.shape[1] == n_fixed and n_tokens:
            sources = torch.cat([sources[:, :n_special], entered, sources[:, n_special:]], 1)
        front = of_prompt.expand(n_images, layer.n_front, -1)
        if i in prompt.carry and not n_tokens:  # tokens that are keys only stand behind those of a prefix
            front = torch.cat([front[:, prompt.length :], entered], 1)
        from_front = weights[..., : layer.n_front] @ front
        attended = from_front + weights[..., layer.n_front :] @ sources
        residual = sources if layer.positions is None else sources[:, layer.positions]
        sources = (attended + residual) / 2
    return sources
