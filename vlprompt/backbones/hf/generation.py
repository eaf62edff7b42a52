"""Generate text, and encode shared texts as prefixes of keys and values."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vlprompt.backbones.hf.decoder.greedy import generate_greedily, is_greedy
from vlprompt.backbones.hf.decoder.walk import is_walkable
from vlprompt.backbones.hf.forward import FrozenTransformer
from vlprompt.backbones.hf.tokenization import TokenizedText
from vlprompt.core.prompt import KV, Prompt
from vlprompt.core.texts import TextBatch
from vlprompt.layers.blocks.attention import prepend_prefix


@torch.no_grad()
def encode_shared_text(tower: FrozenTransformer, text: str, prompt: Prompt, is_continuation: bool = False) -> Prompt:
    """Encode a text as a prefix (1, H, L, Dh) of every layer of a causal model, after the prompt's own prefix.

    Texts that follow it (`TextBatch.follows_prefix`) get the states that they would have behind the text: exact.

    Args:
        tower: the model.
        text: the shared text.
        prompt: the prompt with which it is encoded.
        is_continuation: whether the prompt is such a prefix itself, so that no special token begins the text.

    Raises:
        ValueError: if the model is not causal or has too few positions.
    """
    from transformers import DynamicCache

    if tower.kind != "causal":
        raise ValueError(
            f"{tower.spec}: expected a causal model to encode shared demonstrations once, got one whose texts also "
            "depend on what follows. Use a causal model."
        )
    ids = torch.tensor([tower.template_tokenizer.tokenize_beginning(text, is_continuation)], device=tower.device)
    x, shift = tower.net.get_input_embeddings()(ids), tower.position_shift(prompt)
    if prompt.length:
        x = torch.cat([prompt.tokens[0].to(x.dtype), x], 1)
    if tower.max_positions is not None and shift + x.shape[1] >= tower.max_positions:
        raise ValueError(
            f"{tower.spec}: expected demonstrations within {tower.max_positions} positions, got {shift + x.shape[1]}. "
            "Use fewer or shorter ones."
        )
    cache, positions = DynamicCache(), torch.arange(shift, shift + x.shape[1], device=x.device)[None]
    with tower.inject(prompt):
        tower.trunk(inputs_embeds=x, position_ids=positions, past_key_values=cache, use_cache=True)
    layers: list[Any] = list(cache.layers)
    prefix: dict[int | str, KV] = {
        i: prepend_prefix(prompt.prefix.get(i), layer.keys, layer.values) for i, layer in enumerate(layers)
    }
    return Prompt(prefix=prefix, adapters=prompt.adapters)


@torch.no_grad()
def generate(tower: FrozenTransformer, inputs: TextBatch, prompt: Prompt, **settings: Any) -> list[str]:
    """Generate after each text.

    A text is truncated so that max_new_tokens fit behind it, or half of all positions if that is less; generation
    stops at the last position.

    Args:
        tower: the model.
        inputs: the texts; their responses are ignored.
        prompt: the prompt.
        settings: those of transformers' `generate`; greedy by default.

    Raises:
        ValueError: if the model is an encoder.
    """
    if tower.kind == "encoder":
        raise ValueError(
            f"{tower.spec}: expected a model that generates text, got an encoder. Use a causal model or an "
            "encoder-decoder."
        )
    settings = {"max_new_tokens": 64, **settings}
    unanswered = replace(inputs, items=tuple(replace(item, response=None) for item in inputs.items), responses=None)
    n_new, n_positions = settings["max_new_tokens"], tower.max_positions if tower.kind == "causal" else None
    rows = tower.tokenize(unanswered, prompt, 0 if n_positions is None else min(n_new, n_positions // 2))
    shift = tower.position_shift(prompt)
    limits = [n_new if n_positions is None else min(n_new, n_positions - shift - len(row.ids)) for row in rows]
    # rows of one pass have the same limit and the same start of the answer
    groups = [(limit, row.mask_position >= 0) for limit, row in zip(limits, rows, strict=True)]
    texts_by_row, n_texts = dict[int, list[str]](), settings.get("num_return_sequences", 1)
    for group in dict.fromkeys(groups):
        indices = [i for i in range(len(rows)) if groups[i] == group]
        texts = _generate_texts(tower, [rows[i] for i in indices], prompt, {**settings, "max_new_tokens": group[0]})
        texts_by_row |= {i: texts[k * n_texts : (k + 1) * n_texts] for k, i in enumerate(indices)}
    return [text for i in range(len(rows)) for text in texts_by_row[i]]


def _generate_texts(
    tower: FrozenTransformer, rows: list[TokenizedText], prompt: Prompt, settings: dict[str, Any]
) -> list[str]:
    """Generate after rows in one pass; the model has positions for max_new_tokens."""
    settings = {
        "do_sample": False,
        "pad_token_id": get_pad_id(tower),
        "eos_token_id": get_end_ids(tower),
        **settings,
    }
    n_positions = tower.position_shift(prompt) + max(len(row.ids) for row in rows) + settings["max_new_tokens"]
    if is_walkable(tower, prompt, n_positions) and is_greedy(tower, settings):
        output_ids: Any = generate_greedily(tower, rows, prompt, settings)
    else:
        output_ids = _generate_by_transformers(tower, rows, prompt, settings)
    return [text.strip() for text in tower.tokenizer.batch_decode(output_ids, skip_special_tokens=True)]


def _generate_by_transformers(
    tower: FrozenTransformer, rows: list[TokenizedText], prompt: Prompt, arguments: dict[str, Any]
) -> Tensor:
    n, is_causal = max(len(row.ids) for row in rows), tower.kind == "causal"

    def pad(values: list[int]) -> list[int]:
        padding = [0] * (n - len(values))
        return padding + values if is_causal else values + padding

    ids = torch.tensor([pad(row.ids) for row in rows], device=tower.device)
    mask = torch.tensor([pad([1] * len(row.ids)) for row in rows], device=tower.device)
    x = tower.net.get_input_embeddings()(ids)
    if prompt.length:
        soft = torch.tensor([[k + (n - len(row.ids)) * is_causal for k in row.soft_positions] for row in rows])
        t = prompt.tokens[0].to(x.dtype).expand(len(x), -1, -1)
        x = x.scatter(1, soft.to(x.device)[..., None].expand_as(t), t)
    if "stop_strings" in arguments:
        arguments["tokenizer"] = tower.tokenizer
    if tower.kind == "seq2seq" and (start_ids := tower.decoder_start_ids(rows[0])):
        start = [tower.net.config.decoder_start_token_id, *start_ids]
        arguments["decoder_input_ids"] = torch.tensor([start] * len(rows), device=tower.device)
    with tower.inject(prompt), shift_positions(tower, tower.position_shift(prompt) if is_causal else 0):
        return tower.net.generate(inputs_embeds=x, attention_mask=mask, **arguments)


def get_pad_id(tower: FrozenTransformer) -> int:
    """Return the padding token; without one, or without an embedding of it, any other will do: padding is masked."""
    pad_id, n_embeddings = tower.tokenizer.pad_token_id, tower.net.get_input_embeddings().weight.shape[0]
    return (tower.tokenizer.eos_token_id or 0) if pad_id is None or pad_id >= n_embeddings else pad_id


def get_end_ids(tower: FrozenTransformer) -> list[int] | None:
    """Return the tokens that end a text: the tokenizer's, with which responses are trained, and the model's."""
    model_ids = getattr(tower.net.generation_config, "eos_token_id", None)
    end_ids = {tower.tokenizer.eos_token_id, *(model_ids if isinstance(model_ids, list) else [model_ids])} - {None}
    return sorted(end_ids) or None


@contextmanager
def shift_positions(tower: FrozenTransformer, shift: int) -> Iterator[None]:
    """Shift the positions that transformers counts, inside the with-block."""

    def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        positions: Tensor | None = kwargs.get("position_ids")
        if positions is None:
            x, cache = kwargs.get("inputs_embeds"), kwargs.get("past_key_values")
            x = kwargs["input_ids"] if x is None else x
            start = 0 if cache is None else int(cache.get_seq_length())
            positions = torch.arange(start, start + x.shape[1], device=x.device)[None]
        return args, {**kwargs, "position_ids": positions + shift}

    if not shift:
        yield
        return
    handle = tower.trunk.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
