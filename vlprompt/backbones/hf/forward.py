"""Forward passes of a frozen transformers model with a Prompt: tokenized texts in, hidden states out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vlprompt.backbones.cache.memory import FeatureCache
from vlprompt.backbones.hf.architectures import (
    Architecture,
    count_positions,
    find_layer_modules,
    find_submodule,
    get_fans,
)
from vlprompt.backbones.hf.injection import inject_prompt
from vlprompt.backbones.hf.packing import PackedBatch
from vlprompt.backbones.hf.tokenization import T5_SENTINEL, TemplateTokenizer, TokenizedText
from vlprompt.core.prompt import Prompt
from vlprompt.core.texts import TextBatch
from vlprompt.layers.blocks.block import insert_tokens

ModelKind = Literal["causal", "encoder", "seq2seq"]
DEFAULT_POOLING = {
    "causal": "last",
    "encoder": "first",
    "seq2seq": "mean",
}  # without a configuration of sentence-transformers
SENTENCE_TRANSFORMERS_POOLING = {"mean": "mean_tokens", "first": "cls_token", "last": "lasttoken"}  # its names


@dataclass
class PaddedBatch:
    """Rows padded to one length: ids, attention mask and token types (B, N), positions of soft tokens (B, P)."""

    ids: Tensor
    attention_mask: Tensor
    token_types: Tensor
    soft_positions: Tensor


class FrozenTransformer:
    """A frozen model of transformers with its tokenizer.

    Args:
        net: the model, with its head.
        tokenizer: its fast tokenizer.
        architecture: paths of its layers and linear maps.
        kind: "causal", "encoder" or "seq2seq".
        spec: the backbone as the user writes it.
        key: identifies the weights.
        weight_precision: storage of the weights, a value of WEIGHT_PRECISIONS.
        pooling: tokens that make the pooled feature: "first", "last" or "mean"; "" for the default of the kind.
        has_lm_head: whether the weights include the head over the vocabulary.
    """

    is_cacheable = True  # whether the weights never change, so that features of a text are computed once
    activation_checkpointing = False  # whether activations are recomputed in the backward pass

    def __init__(
        self,
        net: Any,
        tokenizer: Any,
        architecture: Architecture,
        kind: ModelKind,
        *,
        spec: str,
        key: str,
        weight_precision: str = "fp32",
        pooling: str = "",
        has_lm_head: bool = True,
    ):
        self.tokenizer, self.architecture = tokenizer, architecture
        self.kind: ModelKind = kind
        self.spec, self.key, self.weight_precision, self.has_lm_head = spec, key, weight_precision, has_lm_head
        config = net.config
        self.attach_model(net)
        self.prefix_layers: tuple[int | str, ...] = tuple(self.layer_modules)
        self.depth = sum(isinstance(layer, int) or str(layer).startswith("enc/") for layer in self.prefix_layers)
        self.dim = self.feature_dim = net.get_input_embeddings().weight.shape[1]
        self.n_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        self.head_dim = (
            getattr(config, "head_dim", None) or getattr(config, "d_kv", 0) or self.dim // config.num_attention_heads
        )
        self.pooling = pooling or DEFAULT_POOLING[kind]
        self.max_positions = count_positions(config, architecture)
        if kind == "seq2seq":
            n_positions = tokenizer.model_max_length
            self.max_positions = n_positions if n_positions < 10**6 else None
        n_embeddings, has_segments = (
            net.get_input_embeddings().weight.shape[0],
            getattr(config, "type_vocab_size", 0) > 1,
        )
        self.template_tokenizer = TemplateTokenizer(
            tokenizer, kind, self.max_positions, spec, has_segments, n_embeddings
        )
        self.n_parameters = sum(p.numel() for p in net.parameters())
        # copies with an adapter have the same sites
        self.sites_with_bias, self.all_sites = self._find_biased_sites(), self._find_sites()
        self.feature_cache = FeatureCache()
        self.notes: dict[str, str] = {}  # copies for an adapter share it

    def attach_model(self, net: Any) -> None:
        """Replace the model by another one of the same shape."""
        self.net, self.trunk = net, net if self.kind == "seq2seq" else net.base_model
        self.layer_modules = find_layer_modules(self.trunk, self.architecture)
        self.norm = find_submodule(self.trunk, self.architecture.norm) if self.architecture.norm else None
        self.device: torch.device = net.get_input_embeddings().weight.device

    def tokenize(self, inputs: TextBatch, prompt: Prompt, n_reserved: int = 0) -> list[TokenizedText]:
        """Tokenize texts for a pass with a prompt.

        Args:
            inputs: the texts.
            prompt: the prompt; its tokens and prefix take positions.
            n_reserved: positions to leave free after each text.

        Raises:
            ValueError: if a template does not suit its text or the model, or a text can't fit.
        """
        rows = [
            self.template_tokenizer.tokenize(inputs, i, prompt.length, self.position_shift(prompt) + n_reserved)
            for i in range(len(inputs))
        ]
        self._note_truncation(rows, inputs)
        return rows

    def _pad_batch(self, rows: Sequence[TokenizedText], min_length: int = 0) -> PaddedBatch:
        n = max(min_length, *(len(row.ids) for row in rows))

        def pad(values: Iterable[list[int]]) -> Tensor:
            # any id will do where the attention mask is 0
            return torch.tensor([[*v, *[0] * (n - len(v))] for v in values], device=self.device)

        return PaddedBatch(
            pad(row.ids for row in rows),
            pad([1] * len(row.ids) for row in rows),
            pad(row.token_types for row in rows),
            torch.tensor([row.soft_positions for row in rows], device=self.device),
        )

    def _compute_hidden(self, rows: Sequence[TokenizedText], prompt: Prompt, min_length: int = 0) -> Tensor:
        """Compute states (B, N, D) after the last norm (of an encoder-decoder: of its encoder)."""
        padded = self._pad_batch(rows, min_length)
        x = self.net.get_input_embeddings()(padded.ids)
        if prompt.length:
            x = insert_tokens(x, (padded.soft_positions, padded.soft_positions), prompt.tokens[0])
        arguments: dict[str, Any] = {"inputs_embeds": x, "attention_mask": padded.attention_mask}
        if self.kind == "encoder" and bool(padded.token_types.any()):
            arguments["token_type_ids"] = padded.token_types
        if self.kind != "seq2seq" and (shift := self.position_shift(prompt)):
            first = shift + self.architecture.position_offset(self.net.config)
            arguments["position_ids"] = torch.arange(first, first + x.shape[1], device=x.device)[None].expand(
                len(x), -1
            )
        if self.kind == "causal":
            arguments["use_cache"] = False
        trunk = self.net.get_encoder() if self.kind == "seq2seq" else self.trunk
        with self.inject(prompt):
            return trunk(**arguments).last_hidden_state

    def _compute_packed_hidden(
        self, rows: Sequence[TokenizedText], prompt: Prompt, max_tokens: int
    ) -> tuple[Tensor, list[tuple[int, int]]]:
        """Compute states of packed rows (B, N, D) of a causal model, and the (bin, position) where each starts."""
        packed = PackedBatch(rows, max_tokens, self.device)
        x = self.net.get_input_embeddings()(packed.ids)
        if prompt.length:
            tokens = prompt.tokens[0].to(x.dtype).expand(len(rows), -1, -1)
            x = x.index_put(packed.find_soft_positions(rows), tokens.flatten(0, 1))
        positions = packed.positions + self.position_shift(prompt)
        with self.inject(prompt):
            output = self.trunk(
                inputs_embeds=x, attention_mask=packed.attention_mask, position_ids=positions, use_cache=False
            )
        return output.last_hidden_state, packed.starts

    def _compute_decoder_states(
        self, rows: Sequence[TokenizedText], prompt: Prompt, encoder_states: Tensor, output: str
    ) -> list[Tensor]:
        """Compute decoder states of the answer: that of its first token (mask), or one per token (response)."""
        config = self.net.config
        starts = [[config.decoder_start_token_id, *self.decoder_start_ids(row)] for row in rows]
        if output == "mask" and any(row.mask_position < 0 for row in rows):
            raise ValueError("template: expected a place {mask} for the answer, got none. Add {mask}.")
        answers = [row.answer_ids if output == "response" else [0] for row in rows]
        decoder_ids = [[*start, *answer[:-1]] for start, answer in zip(starts, answers, strict=True)]
        decoder_batch = self._pad_batch([TokenizedText(ids, [], [0] * len(ids)) for ids in decoder_ids])
        n = max(len(row.ids) for row in rows)
        encoder_mask = torch.tensor(
            [[1] * len(row.ids) + [0] * (n - len(row.ids)) for row in rows], device=encoder_states.device
        )
        with self.inject(prompt):
            states = self.net.get_decoder()(
                input_ids=decoder_batch.ids,
                attention_mask=decoder_batch.attention_mask,
                encoder_hidden_states=encoder_states,
                encoder_attention_mask=encoder_mask,
                use_cache=False,
            ).last_hidden_state
        if config.model_type == "t5" and config.scale_decoder_outputs:  # mT5 never does
            states = states * config.d_model**-0.5
        return [
            x[len(start) - 1 : len(start) - 1 + len(answer)]
            for x, start, answer in zip(states, starts, answers, strict=True)
        ]

    def decoder_start_ids(self, row: TokenizedText) -> list[int]:
        """Return the ids with which the decoder starts the answer of a text with a mask."""
        return [self.tokenizer.convert_tokens_to_ids(T5_SENTINEL)] if row.mask_position >= 0 else []

    @contextmanager
    def inject(self, prompt: Prompt) -> Iterator[None]:
        """Inject the prompt's prefixes and adapters inside the with-block, with activation checkpointing if set."""
        if not (self.activation_checkpointing and torch.is_grad_enabled()):
            with self._injection(prompt):
                yield
            return
        layers = [module for module in self.net.modules() if hasattr(type(module), "_can_checkpoint_with_cache")]
        try:
            for layer in layers:  # train mode of the layer alone: the dropout inside it stays off
                layer.training, layer.gradient_checkpointing = True, True
                layer._gradient_checkpointing_func = partial(self.run_checkpointed, prompt)
            with self._injection(prompt):
                yield
        finally:
            for layer in layers:
                layer.training, layer.gradient_checkpointing = False, False
                del layer._gradient_checkpointing_func

    def _injection(self, prompt: Prompt) -> AbstractContextManager[None]:
        return inject_prompt(self.layer_modules, self.norm, prompt)

    def run_checkpointed(self, prompt: Prompt, run: Callable[..., Any], *args: Any) -> Any:
        """Run a layer that stores nothing but its input, and runs again in the backward pass, with the prompt."""
        return checkpoint(run, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), self._injection(prompt)))

    def _note_truncation(self, rows: Sequence[TokenizedText], inputs: TextBatch) -> None:
        """Note in the result that texts were truncated."""
        truncated = [item for row, item in zip(rows, inputs.items, strict=True) if row.is_truncated]
        if truncated and "texts" not in self.notes:
            first = truncated[0]
            self.notes["texts"] = (
                f"longer than its {self.max_positions} positions, with prompt, template and response ({first.name} "
                f"and perhaps others), are cut at the {first.truncation_side} of their longest field "
                "(task.truncation_side), responses at half the room"
            )

    @staticmethod
    def position_shift(prompt: Prompt) -> int:
        """Return by how much a prefix shifts the positions of the text."""
        return max((k.shape[2] for k, _ in prompt.prefix.values()), default=0)

    def _find_biased_sites(self) -> frozenset[str]:
        sites = {"norm"} if getattr(self.norm, "bias", None) is not None else set[str]()
        for layer, modules in self.layer_modules.items():
            sites |= {f"{layer}/{kind}" for kind, m in modules.maps.items() if getattr(m, "bias", None) is not None}
            if modules.fused_qkv is not None and getattr(modules.fused_qkv, "bias", None) is not None:
                sites |= {f"{layer}/{kind}" for kind in "qkv"}
        return frozenset(sites)

    def _find_sites(self) -> dict[str, tuple[int, int]]:
        """Find all sites with their (fan_in, fan_out)."""
        sites = {} if self.norm is None else {"norm": get_fans(self.norm)}
        for layer, modules in self.layer_modules.items():
            sites |= {f"{layer}/{kind}": get_fans(module) for kind, module in modules.maps.items()}
            if modules.fused_qkv is not None:
                sites |= {f"{layer}/{kind}": (self.dim, get_fans(modules.fused_qkv)[1] // 3) for kind in "qkv"}
            sublayers = ("attn", "attn+", "mlp", "mlp+") if "up" in modules.maps else ("attn", "attn+")
            sites |= {f"{layer}/{sublayer}": (self.dim, self.dim) for sublayer in sublayers}
        return sites

    def require_blocks(self) -> None:
        """Do nothing: a transformer has blocks."""

    def sites(self, *kinds: str) -> dict[str, tuple[int, int]]:
        """Return {"0/q": (fan_in, fan_out), ...}; in an encoder-decoder "enc/0/q", "dec/0/q", "cross/0/q".

        Args:
            kinds: norm, and per layer q k v out up gate down norm1 norm2 attn mlp attn+ mlp+; none: all sites.

        Raises:
            ValueError: if the model has no site of a kind.
        """
        known_kinds = list(dict.fromkeys(site.split("/")[-1] for site in self.all_sites))
        if unknown := [kind for kind in kinds if kind not in known_kinds]:
            raise ValueError(
                f"{self.spec}: expected sites {', '.join(known_kinds)}, got {unknown[0]!r}. Use one of them."
            )
        return {site: fans for site, fans in self.all_sites.items() if not kinds or site.split("/")[-1] in kinds}
