"""What a model has read once for everyone, and what it writes: keys and values as a prefix, and generation."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vlprompt.backbones.hf.forward import Passes
from vlprompt.backbones.hf.tokenization import Row
from vlprompt.core.prompt import KV, Prompt
from vlprompt.core.texts import Passages
from vlprompt.layers.attention import join


@torch.no_grad()
def past(tower: Passes, text: str, prompt: Prompt, after: bool = False) -> Prompt:
    """A text as the prefix (1, H, L, Dh) that it leaves in every layer of a causal model, after the prompt's own.

    What follows is read as if it stood behind the text (as `Passages.after` says): exact, and the text is read once.
    after: the prompt is itself such a prefix, so nothing begins the text.
    """
    from transformers import DynamicCache

    if tower.kind != "causal":
        raise ValueError(
            f"{tower.spec} reads from both sides, so what it makes of a text depends on what follows: a shared "
            "beginning is for causal models"
        )
    ids = torch.tensor([tower.writer.begun(text, after)], device=tower.device)
    x, shift = tower.net.get_input_embeddings()(ids), tower.shift(prompt)
    if prompt.length:
        x = torch.cat([prompt.tokens[0].to(x.dtype), x], 1)
    if tower.room is not None and shift + x.shape[1] >= tower.room:
        raise ValueError(
            f"{tower.spec} has {tower.room} positions, and the demonstrations take {shift + x.shape[1]}: take fewer of "
            "them, or shorter ones"
        )
    cache, places = DynamicCache(), torch.arange(shift, shift + x.shape[1], device=x.device)[None]
    with tower.within(prompt):
        tower.trunk(inputs_embeds=x, position_ids=places, past_key_values=cache, use_cache=True)
    layers: list[Any] = list(cache.layers)
    seen: dict[int | str, KV] = {i: join(prompt.prefix.get(i), one.keys, one.values) for i, one in enumerate(layers)}
    return Prompt(prefix=seen, beside=prompt.beside)


@torch.no_grad()
def generate(tower: Passes, inputs: Passages, prompt: Prompt, **settings: Any) -> list[str]:
    """What the model writes after each passage; settings: those of transformers' `generate`, greedy by default.

    Responses that the passages have are not looked at. A text is cut where max_new_tokens would not fit behind it, or
    half of all positions where they are more; then it is written up to the last position.
    """
    if tower.kind == "encoder":
        raise ValueError(f"{tower.spec} is an encoder and writes nothing: take a causal model or an encoder-decoder")
    settings = {"max_new_tokens": 64, **settings}
    asked = replace(inputs, items=tuple(replace(item, response=None) for item in inputs.items), responses=None)
    most, room = settings["max_new_tokens"], tower.room if tower.kind == "causal" else None
    rows = tower.rows(asked, prompt, 0 if room is None else min(most, room // 2))
    limits = [most if room is None else min(most, room - tower.shift(prompt) - len(row.ids)) for row in rows]
    like = [(end, row.mask >= 0) for end, row in zip(limits, rows, strict=True)]  # what one pass can do
    found, each = dict[int, list[str]](), settings.get("num_return_sequences", 1)
    for one in dict.fromkeys(like):
        places = [i for i in range(len(rows)) if like[i] == one]
        made = _written(tower, [rows[i] for i in places], prompt, {**settings, "max_new_tokens": one[0]})
        found |= {i: made[k * each : (k + 1) * each] for k, i in enumerate(places)}
    return [text for i in range(len(rows)) for text in found[i]]


def _written(tower: Passes, rows: list[Row], prompt: Prompt, settings: dict[str, Any]) -> list[str]:
    """What is written behind rows, no end of which is further than the model has positions for."""
    ids = [row.ids for row in rows]
    n, fill = max(map(len, ids)), 0
    left = tower.kind == "causal"
    pad = lambda one, value: [value] * (n - len(one)) + one if left else one + [value] * (n - len(one))  # noqa: E731
    tokens = torch.tensor([pad(one, fill) for one in ids], device=tower.device)
    mask = torch.tensor([pad([1] * len(one), 0) for one in ids], device=tower.device)
    x = tower.net.get_input_embeddings()(tokens)
    if prompt.length:
        soft = torch.tensor([[k + (n - len(one)) * left for k in row.soft] for row, one in zip(rows, ids, strict=True)])
        t = prompt.tokens[0].to(x.dtype).expand(len(x), -1, -1)
        x = x.scatter(1, soft.to(x.device)[..., None].expand_as(t), t)
    how: dict[str, Any] = {"do_sample": False, "pad_token_id": pad_id(tower), "eos_token_id": ends(tower), **settings}
    if "stop_strings" in how:
        how["tokenizer"] = tower.tokenizer
    if tower.kind == "seq2seq" and (began := tower.sentinel(rows[0])):
        start = [tower.net.config.decoder_start_token_id, *began]
        how["decoder_input_ids"] = torch.tensor([start] * len(rows), device=tower.device)
    with tower.within(prompt), moved(tower, tower.shift(prompt) if left else 0):
        made = tower.net.generate(inputs_embeds=x, attention_mask=mask, **how)
    return [text.strip() for text in tower.tokenizer.batch_decode(made, skip_special_tokens=True)]


def pad_id(tower: Passes) -> int:
    """A token to fill rows with: the tokenizer's, or any other, for what is filled is never read."""
    found = tower.tokenizer.pad_token_id
    return (tower.tokenizer.eos_token_id or 0) if found is None else found


def ends(tower: Passes) -> list[int] | None:
    """What ends a text that is written: the tokenizer's end, which responses are learned with, and the model's."""
    told = getattr(tower.net.generation_config, "eos_token_id", None)
    found = {tower.tokenizer.eos_token_id, *(told if isinstance(told, list) else [told])} - {None}
    return sorted(found) or None


@contextmanager
def moved(tower: Passes, shift: int) -> Iterator[None]:
    """Positions that transformers counts begin behind a prefix."""

    def hook(module: Any, given: Any, kwargs: dict[str, Any]) -> Any:
        places: Tensor | None = kwargs.get("position_ids")
        if places is None:
            x, cache = kwargs.get("inputs_embeds"), kwargs.get("past_key_values")
            x = kwargs["input_ids"] if x is None else x
            begin = 0 if cache is None else int(cache.get_seq_length())
            places = torch.arange(begin, begin + x.shape[1], device=x.device)[None]
        return given, {**kwargs, "position_ids": places + shift}

    if not shift:
        yield
        return
    handle = tower.trunk.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
