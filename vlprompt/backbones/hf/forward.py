"""Passes of a frozen transformers model with a Prompt: rows of tokens in, hidden rows out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vlprompt.backbones.cache.memory import Kept
from vlprompt.backbones.hf.architectures import Family, at, fans, places
from vlprompt.backbones.hf.injection import injected
from vlprompt.backbones.hf.packing import Packed
from vlprompt.backbones.hf.tokenization import SENTINEL, Row, Writer
from vlprompt.core.prompt import Prompt
from vlprompt.core.texts import Passages
from vlprompt.layers.block import insert

Kind = Literal["causal", "encoder", "seq2seq"]
POOLS = {"causal": "last", "encoder": "first", "seq2seq": "mean"}  # where a folder says nothing of it
POOLING = {"mean": "mean_tokens", "first": "cls_token", "last": "lasttoken"}  # as sentence-transformers calls them


@dataclass
class Padded:
    """Rows side by side: ids, mask and types (B, N), soft (B, P) places of soft tokens."""

    ids: Tensor
    mask: Tensor
    types: Tensor
    soft: Tensor


class Passes:
    """A model, its tokenizer and where its maps are.

    base: how its weights are held; pool: which rows make the pooled feature, "first", "last" or "mean".
    """

    lookup = True  # whether it never changes, so that the features of a text are computed once
    checkpointing = False  # whether what a layer made is made again going back, instead of being kept

    def __init__(self, net: Any, tokenizer: Any, family: Family, kind: Kind, *, spec: str, key: str, base: str = "fp32",
                 pool: str = "", answers: bool = True):  # fmt: skip
        self.tokenizer, self.family = tokenizer, family
        self.kind: Kind = kind
        self.spec, self.key, self.base, self.answers = spec, key, base, answers
        config = net.config
        self.moved(net)
        self.layers: tuple[int | str, ...] = tuple(self.places)
        self.depth = sum(isinstance(layer, int) or str(layer).startswith("enc/") for layer in self.layers)
        self.dim = self.width = net.get_input_embeddings().weight.shape[1]
        self.heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        self.head_dim = (
            getattr(config, "head_dim", None) or getattr(config, "d_kv", 0) or self.dim // config.num_attention_heads
        )
        self.pool = pool or POOLS[kind]
        bound = getattr(config, "max_position_embeddings", None)
        self.room = None if bound is None else bound - family.offset(config)
        if kind == "seq2seq":
            bound = tokenizer.model_max_length
            self.room = bound if bound < 10**6 else None
        self.writer = Writer(tokenizer, kind, self.room, spec, getattr(config, "type_vocab_size", 0) > 1)
        self.size = sum(p.numel() for p in net.parameters())
        self.biases, self.every = self._biases(), self._every()  # copies with an adapter have the same
        self.kept = Kept()
        self.notes: dict[str, str] = {}  # copies for an adapter share it

    def moved(self, net: Any) -> None:
        """Onto another model of the same shape."""
        self.net, self.trunk = net, net if self.kind == "seq2seq" else net.base_model
        self.places = places(self.trunk, self.family)
        self.norm = at(self.trunk, self.family.norm) if self.family.norm else None
        self.device: torch.device = net.get_input_embeddings().weight.device

    def rows(self, inputs: Passages, prompt: Prompt, reserved: int = 0) -> list[Row]:
        """reserved: positions that stay free behind each."""
        rows = [self.writer.row(inputs, i, prompt.length, self.shift(prompt) + reserved) for i in range(len(inputs))]
        self._tell(rows, inputs)
        return rows

    def _padded(self, rows: Sequence[Row], width: int = 0) -> Padded:
        n = max(width, *(len(row.ids) for row in rows))
        # any id does where the mask says that nothing stands
        fill = lambda of: torch.tensor([[*of(row), *[0] * (n - len(row.ids))] for row in rows], device=self.device)  # noqa: E731
        soft = torch.tensor([row.soft for row in rows], device=self.device)
        return Padded(
            fill(lambda row: row.ids), fill(lambda row: [1] * len(row.ids)), fill(lambda row: row.types), soft
        )

    def _hidden(self, rows: Sequence[Row], prompt: Prompt, width: int = 0) -> Tensor:
        """Rows (B, N, D) after the last norm (of an encoder-decoder: of its encoder)."""
        padded = self._padded(rows, width)
        x = self.net.get_input_embeddings()(padded.ids)
        if prompt.length:
            x = insert(x, (padded.soft, padded.soft), prompt.tokens[0])
        how: dict[str, Any] = {"inputs_embeds": x, "attention_mask": padded.mask}
        if self.kind == "encoder" and bool(padded.types.any()):
            how["token_type_ids"] = padded.types
        if self.kind != "seq2seq" and (shift := self.shift(prompt)):
            first = shift + self.family.offset(self.net.config)
            how["position_ids"] = torch.arange(first, first + x.shape[1], device=x.device)[None].expand(len(x), -1)
        if self.kind == "causal":
            how["use_cache"] = False
        trunk = self.net.get_encoder() if self.kind == "seq2seq" else self.trunk
        with self.within(prompt):
            return trunk(**how).last_hidden_state

    def _together(self, rows: Sequence[Row], prompt: Prompt, room: int) -> tuple[Tensor, list[tuple[int, int]]]:
        """Packed rows (B, N, D) of a causal model, and where each begins."""
        packed = Packed(rows, room, self.device)
        x = self.net.get_input_embeddings()(packed.ids)
        if prompt.length:
            tokens = prompt.tokens[0].to(x.dtype).expand(len(rows), -1, -1)
            x = x.index_put(packed.soft(rows), tokens.flatten(0, 1))
        places = packed.places + self.shift(prompt)
        with self.within(prompt):
            made = self.trunk(inputs_embeds=x, attention_mask=packed.mask, position_ids=places, use_cache=False)
        return made.last_hidden_state, packed.begins

    def _decoded(self, rows: Sequence[Row], prompt: Prompt, x: Tensor, read: str) -> list[Tensor]:
        """States of an encoder-decoder's answer: at the place of the first word (mask), or before each token."""
        config = self.net.config
        begins = [[config.decoder_start_token_id, *self.sentinel(row)] for row in rows]
        if read == "mask" and any(row.mask < 0 for row in rows):
            raise ValueError("the template has no {mask}, so there is no place for the answer: give one")
        answers = [row.answer if read == "response" else [0] for row in rows]
        given = [Row([*begin, *answer[:-1]], [], [0]) for begin, answer in zip(begins, answers, strict=True)]
        given = [replace(row, types=[0] * len(row.ids)) for row in given]
        ours = self._padded(given)
        n = max(len(row.ids) for row in rows)
        seen = torch.tensor([[1] * len(row.ids) + [0] * (n - len(row.ids)) for row in rows], device=x.device)
        with self.within(prompt):
            made = self.net.get_decoder()(input_ids=ours.ids, attention_mask=ours.mask, encoder_hidden_states=x,
                                          encoder_attention_mask=seen, use_cache=False).last_hidden_state  # fmt: skip
        if getattr(config, "scale_decoder_outputs", config.tie_word_embeddings):
            made = made * config.d_model**-0.5
        ends = zip(made, begins, answers, strict=True)
        return [one[len(begin) - 1 : len(begin) - 1 + len(answer)] for one, begin, answer in ends]

    def sentinel(self, row: Row) -> list[int]:
        """How the decoder begins an answer that has a place in the text."""
        return [self.tokenizer.convert_tokens_to_ids(SENTINEL)] if row.mask >= 0 else []

    @contextmanager
    def within(self, prompt: Prompt) -> Iterator[None]:
        """The prompt's prefixes and parts are in the model; with `checkpointing` its layers keep nothing."""
        inside = lambda: injected(self.places, self.norm, prompt)  # noqa: E731
        if not (self.checkpointing and torch.is_grad_enabled()):
            with inside():
                yield
            return
        again = lambda run, *given: checkpoint(  # noqa: E731
            run, *given, use_reentrant=False, context_fn=lambda: (nullcontext(), inside())
        )
        layers = [module for module in self.net.modules() if hasattr(type(module), "_can_checkpoint_with_cache")]
        try:
            for layer in layers:  # the layer alone: what is in it drops nothing out
                layer.training, layer.gradient_checkpointing, layer._gradient_checkpointing_func = True, True, again
            with inside():
                yield
        finally:
            for layer in layers:
                layer.training, layer.gradient_checkpointing = False, False
                del layer._gradient_checkpointing_func

    def _tell(self, rows: Sequence[Row], inputs: Passages) -> None:
        """Notes, for the result, that texts are cut."""
        cut = [item for row, item in zip(rows, inputs.items, strict=True) if row.cut]
        if cut and "texts" not in self.notes:
            self.notes["texts"] = (
                f"longer than its {self.room} positions, with prompt, template and response ({cut[0].name} and perhaps "
                f"others), are cut at the {cut[0].cut} of their longest field (task.cut), responses at half the room"
            )

    @staticmethod
    def shift(prompt: Prompt) -> int:
        """How far a prefix moves the positions of what follows it."""
        return max((k.shape[2] for k, _ in prompt.prefix.values()), default=0)

    def _biases(self) -> frozenset[str]:
        """The sites whose maps have a bias."""
        found = set[str]()
        for layer, place in self.places.items():
            found |= {f"{layer}/{kind}" for kind, m in place.maps.items() if getattr(m, "bias", None) is not None}
            if place.fused is not None and getattr(place.fused, "bias", None) is not None:
                found |= {f"{layer}/{kind}" for kind in "qkv"}
        return frozenset(found | ({"norm"} if getattr(self.norm, "bias", None) is not None else set()))

    def _every(self) -> dict[str, tuple[int, int]]:
        """All sites, with the widths of what a part there is given and of what was made."""
        found = {} if self.norm is None else {"norm": fans(self.norm)}
        for layer, place in self.places.items():
            found |= {f"{layer}/{kind}": fans(module) for kind, module in place.maps.items()}
            if place.fused is not None:
                found |= {f"{layer}/{kind}": (self.dim, fans(place.fused)[1] // 3) for kind in "qkv"}
            subs = ("attn", "attn+", "mlp", "mlp+") if "up" in place.maps else ("attn", "attn+")
            found |= {f"{layer}/{sub}": (self.dim, self.dim) for sub in subs}
        return found

    def sites(self, *names: str) -> dict[str, tuple[int, int]]:
        """{"0/q": (fan_in, fan_out), ...} of the kinds asked for; in an encoder-decoder "enc/0/q", "dec/0/q" ...

        Kinds: norm, and per layer q k v out up gate down norm1 norm2 attn mlp attn+ mlp+. ValueError for others.
        """
        every = self.every
        names = names or tuple({site.split("/")[-1] for site in every})
        kinds = list(dict.fromkeys(site.split("/")[-1] for site in every))
        if unknown := [name for name in names if name not in kinds]:
            raise ValueError(f"{self.spec} has no site {unknown[0]!r}; it has {', '.join(kinds)}")
        return {site: fan for site, fan in every.items() if site.split("/")[-1] in names}
