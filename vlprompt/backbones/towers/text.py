"""Block-wise text towers: causal ones behind a shared prefix, others by the full pass."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from vlprompt.backbones.cache.memory import cache_fixed_texts
from vlprompt.backbones.towers.divided_texts import divide_texts
from vlprompt.backbones.towers.text_tokenizer import TextTokenizer
from vlprompt.core.compute_options import DEFAULT_COMPUTE_OPTIONS, recompute_in_backward
from vlprompt.core.prompt import NOTHING, Prompt
from vlprompt.core.templates import as_templated_text
from vlprompt.core.towers import WeightedMap
from vlprompt.layers.blocks.attention import select_positions
from vlprompt.layers.blocks.block import (
    Block,
    find_sites,
    insert_tokens,
    make_attention,
    run_block,
    validate_prompt_layers,
    walk,
)
from vlprompt.layers.blocks.cuda_graphs import CudaGraphCache
from vlprompt.layers.blocks.shared_prefix import (
    FEWEST_ROWS,
    EmbeddedLayout,
    PackingRule,
    TokenPlan,
    TokensAndSlots,
    encode_packed,
    plan_phases,
    run_unchanged_blocks,
)
from vlprompt.layers.frozen_maps import FrozenMap
from vlprompt.layers.weight_merging import find_frozen_map, merge_adapter, merge_into_blocks

TOKENS_PER_PASS = 65536  # token rows of a pass without gradients, as far as texts can be split
# of an attention of all packed rows under one mask, rows² x width x contexts that take as long as the operations of
# attention by groups which it saves; and token rows whose products take a GPU as long as one more group of texts
MASKED_PRODUCTS, GROUP_OVERHEAD_TOKENS = {"cpu": 8e6, "cuda": 5e8}, {"cuda": 1000}
OUTPUTS = ("pooled", "rows")
# texts of a pass, over all contexts, up to which launching its operations is what takes long
MAX_RECORDED_TEXTS = 2048


def iter_text_micro_batches(prompt: Prompt, n_texts: int, size: int) -> Iterator[tuple[int, Prompt]]:
    """Yield the first text of each micro-batch, and the prompt with its texts' tokens."""
    for i in range(0, n_texts, size):
        yield i, prompt.select_texts(i, i + size)


class TransformerTextTower:
    """Texts -> features (R, C, E), not normalised.

    Args:
        blocks: the blocks.
        tokenizer: of the texts.
        token_embeddings: (V, D).
        positions: (L, D), with one more row for a class token.
        norm: the last norm.
        project: (.., D) -> (.., E).
        is_causal: whether rows see only the rows before them.
        pooling: the row that is read: the "end" of a text, the "first", or the "last" of the context.
        feature_dim: E.
        key: identifies the weights.
        device: of the weights.
        class_token: (D,), a row behind the context (CoCa), which then is the last.
    """

    on_prompt: Callable[[Prompt], object] = bool  # does nothing

    def __init__(
        self,
        blocks: Sequence[Block],
        *,
        tokenizer: TextTokenizer,
        token_embeddings: Tensor,
        positions: Tensor,
        norm: FrozenMap,
        project: FrozenMap,
        is_causal: bool,
        pooling: str,
        feature_dim: int,
        key: str,
        device: torch.device,
        class_token: Tensor | None = None,
    ):
        self.blocks, self.tokenizer = blocks, tokenizer
        self.token_embeddings, self.positions, self.class_token = token_embeddings, positions, class_token
        self.norm, self.project, self.is_causal, self.pooling = norm, project, is_causal, pooling
        self.feature_dim, self.key, self.device = feature_dim, key, device
        self.depth, self.dim, self.n_heads = len(blocks), token_embeddings.shape[1], blocks[0].n_heads
        self.head_dim = self.dim // self.n_heads
        self.context_length = len(positions) - (class_token is not None)
        max_masked_rows = int((MASKED_PRODUCTS.get(device.type, 0) / self.dim) ** 0.5)
        self.packing_rule = PackingRule(GROUP_OVERHEAD_TOKENS.get(device.type, 0), max_masked_rows)
        self.cuda_graphs = CudaGraphCache() if device.type == "cuda" else None
        self._cached_layout, self.compute_options = lru_cache(64)(self._build_layout), DEFAULT_COMPUTE_OPTIONS

    def with_prompt_listener(self, on_prompt: Callable[[Prompt], object]) -> "TransformerTextTower":
        """Return the same tower, which hands each call's prompt to a listener."""
        (tower := copy(self)).on_prompt = on_prompt
        return tower

    def require_blocks(self) -> None:
        """Do nothing: a transformer has blocks."""

    def sites(self, *kinds: str) -> dict[str, tuple[int, int]]:
        """Return {"0/q": (fan_in, fan_out), ...}.

        Kinds: norm, and per layer q k v out up down norm1 norm2 attn mlp attn+ mlp+ block.
        """
        return find_sites(self.blocks, kinds, {"norm": (self.dim, self.dim)})

    def frozen_map(self, site: str) -> WeightedMap:
        """Return the linear map or norm at a site such as "3/q", to read its weights; ValueError for other sites."""
        return find_frozen_map(self.blocks, site, {"norm": self.norm})

    def merged(self, prompt: Prompt) -> "TransformerTextTower":
        """Return a tower with the adapters of a prompt in its weights; ValueError for tokens, prefixes and others."""
        tower = copy(self)
        tower.blocks = merge_into_blocks(self.blocks, prompt)
        if "norm" in prompt.adapters:
            tower.norm = merge_adapter("norm", self.norm, prompt.adapters["norm"])
        tower.cuda_graphs = None if self.cuda_graphs is None else CudaGraphCache()
        tower._cached_layout = lru_cache(64)(tower._build_layout)
        vars(tower).pop("disk_namespace", None)  # it has features of other weights
        return tower

    def init_context(
        self,
        n_tokens: int | None = None,
        init: str | None = None,
        generator: torch.Generator | None = None,
        std: float = 0.02,
    ) -> Tensor:
        """Return initial soft tokens (P, D): embeddings of the words of `init`, or draws from N(0, std) on the CPU.

        Words have no begin or end token here: every text has its own before the first soft token and at its end.
        """
        if init is None:
            n = 16 if n_tokens is None else n_tokens
            if n < 1:
                raise ValueError(f"method.n_ctx: expected at least 1 prompt token, got {n}. Set a larger value.")
            return (torch.randn(n, self.dim, generator=generator) * std).to(self.device)
        ids = self.tokenizer.encode(init.replace("_", " "))
        if n_tokens is not None and n_tokens != len(ids):
            raise ValueError(
                f"method.n_ctx: expected {len(ids)}, as the initial words {init!r} are {len(ids)} tokens, got "
                f"{n_tokens}. Leave n_ctx out, set it to {len(ids)}, or begin without words (init_text=null)."
            )
        return self.token_embeddings[torch.tensor(ids, device=self.device)].clone()

    @cache_fixed_texts
    @divide_texts
    def __call__(self, texts: Sequence[str], prompt: Prompt = NOTHING, output: str = "pooled") -> Tensor:
        """Encode C texts behind each of R contexts -> (R, C, E); soft tokens stand at places like {4}.

        output: "pooled", or "rows": (R, C, N, E) of all rows, each projected as the one that is read; N is the longest.
        """
        if output not in OUTPUTS:
            raise ValueError(f"output: expected one of {OUTPUTS} of a text tower, got {output!r}. Leave it out.")
        self.on_prompt(prompt)
        prompt, n_contexts = self._normalize_prompt(prompt, len(texts))
        if output == "rows":
            rows = self._project_features(self._run_padded(tuple(texts), prompt, n_contexts)[0], prompt)
            return rows.unflatten(0, (n_contexts, len(texts)))
        is_packed = self.is_causal and self.pooling == "end" and not prompt.mixes_rows
        size, texts = self._max_texts_per_pass(n_contexts, is_packed), tuple(texts)
        is_divided = len(texts) > size
        # the backward pass recomputes micro-batches with the options of now, when self may have others
        tower = copy(self) if is_divided else self
        encode = tower._encode_packed if is_packed else tower._encode_padded
        if is_divided:
            micro_batches = iter_text_micro_batches(prompt, len(texts), size)
            parts = [recompute_in_backward(encode, texts[i : i + size], part, n_contexts) for i, part in micro_batches]
            return self._project_features(torch.cat(parts, 1), prompt)
        if is_packed and self.cuda_graphs is not None and self.compute_options == DEFAULT_COMPUTE_OPTIONS:
            return self._encode_recorded(texts, prompt, n_contexts)
        return self._project_features(encode(texts, prompt, n_contexts), prompt)

    def _normalize_prompt(self, prompt: Prompt, n_texts: int) -> tuple[Prompt, int]:
        """The prompt with tokens (R, C, P, D) from the first layer on where texts have their own, else (R, P, D); R."""
        validate_prompt_layers(prompt, self.depth)
        n_contexts = [t.shape[0] for t in prompt.tokens.values()] + [k.shape[0] for k, _ in prompt.prefix.values()]
        n_classes = {t.shape[1] for t in prompt.tokens.values() if t.ndim == 4} - {1}
        if n_classes - {n_texts}:
            raise ValueError(
                f"Prompt.tokens: expected tokens for {n_texts} texts, got tokens for "
                f"{min(n_classes - {n_texts})} classes. Give each text its tokens."
            )
        tokens, class_specific = dict[int, Tensor](), False
        for i, t in sorted(prompt.tokens.items()):
            class_specific = class_specific or (t.ndim == 4 and t.shape[1] > 1)
            t = t if t.ndim == 4 else t[:, None]
            tokens[i] = t.expand(-1, n_texts, -1, -1) if class_specific else t.flatten(1, 2)
        return replace(prompt, tokens=tokens), max([prompt.n_contexts, *n_contexts])

    def _plan_tokens(self, prompt: Prompt) -> TokenPlan:
        """What decides the layout, of a prompt with tokens of the tower's form."""
        specific = min((i for i, t in prompt.tokens.items() if t.ndim == 4), default=None)
        return TokenPlan(prompt.length, prompt.first_layer or 0, prompt.entry_layer, specific)

    def _encode_recorded(self, texts: tuple[str, ...], prompt: Prompt, n_contexts: int) -> Tensor:
        """Encode packed texts through recorded CUDA graphs."""
        assert self.cuda_graphs is not None
        embedded = self._get_layout(texts, prompt, n_contexts)  # the recorded pass refers to it

        def encode(prompt: Prompt) -> tuple[Tensor, ...]:
            return (self._project_features(self._encode_layout(embedded, prompt, n_contexts), prompt),)

        size = n_contexts * len(texts) / MAX_RECORDED_TEXTS
        [features] = self.cuda_graphs(encode, (texts, self._plan_tokens(prompt)), prompt, size=size)
        return features

    def _project_features(self, x: Tensor, prompt: Prompt) -> Tensor:
        return self.project(prompt.apply_adapter("norm", x, self.norm(x)))

    def _max_texts_per_pass(self, n_contexts: int, is_packed: bool) -> int:
        """The text micro-batch, limited to a small one without gradients."""
        rows = TOKENS_PER_PASS if self.device.type == "cpu" else 16 * TOKENS_PER_PASS
        limit = max(16, rows // (n_contexts * (6 if is_packed else self.context_length)))
        size = self.compute_options.text_micro_batch or len(self.token_embeddings)
        is_one_pass = torch.is_grad_enabled() or torch.compiler.is_exporting()  # a traced batch has no number yet
        return size if is_one_pass else min(size, limit)

    def tokenize(self, texts: Sequence[str], n_tokens: int, has_positions: bool = True) -> list[TokensAndSlots]:
        """Tokenize texts with n_tokens soft tokens each; ValueError for one that exceeds the context.

        has_positions: whether soft tokens take positions of the context.
        """
        rows = [self.tokenizer.tokenize(text, n_tokens) for text in texts]
        for text, (ids, _) in zip(texts, rows, strict=True):
            n_positions = len(ids) - (0 if has_positions else n_tokens)
            if n_positions > self.context_length:
                max_tokens = max(0, n_tokens - n_positions + self.context_length)
                remedy = f"Use at most {max_tokens} prompt tokens (n_ctx) in all, or shorter names."
                raise ValueError(
                    f"text: expected at most {self.context_length} tokens, got {n_positions} for "
                    f"{as_templated_text(text, n_tokens).words!r} with {n_tokens} prompt tokens"
                    f"{'. ' + remedy if has_positions else ', which take no positions. Use shorter names.'}"
                )
        if n_tokens:  # the features of fixed texts may come from a cache: they are compared instead
            _warn_of_equal_tokens([as_templated_text(text, n_tokens).words for text in texts], rows)
        return rows

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of fixed texts, with those of begin and end: their rows in the output "rows"."""
        return [len(ids) for ids, _ in self.tokenize(texts, 0)]

    def _build_layout(self, texts: tuple[str, ...], plan: TokenPlan, rule: PackingRule) -> EmbeddedLayout:
        rows, first_layer = self.tokenize(texts, plan.n_tokens, plan.entry_layer is None), plan.first_layer
        phases = plan_phases(rows, plan, self.device, rule)
        layout = phases[0].layout
        positions = self.positions[layout.positions]
        x = (self.token_embeddings[layout.token_ids] + positions)[None]
        slot_positions = positions[layout.prompt_slots[0]]
        if not plan.n_tokens and not first_layer:  # fixed texts are encoded once, so there is nothing to reuse
            return EmbeddedLayout(phases, x, None, slot_positions)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            x, phases = run_unchanged_blocks(self.blocks, x, phases, first_layer)
            first = self.blocks[first_layer]
            qkv = None if first.qkv is None else first.qkv(first.norm1(x))
        return EmbeddedLayout(phases, x, qkv, slot_positions)

    def _get_layout(self, texts: tuple[str, ...], prompt: Prompt, n_contexts: int) -> EmbeddedLayout:
        plan, (min_saved_rows, max_masked_rows) = self._plan_tokens(prompt), self.packing_rule  # of one context
        if torch.compiler.is_exporting():  # a traced batch has no number yet, and traced tensors no values to be kept
            return self._build_layout(texts, plan, FEWEST_ROWS)
        rule = PackingRule(min_saved_rows // n_contexts, int(max_masked_rows / n_contexts**0.5))
        return self._cached_layout(texts, plan, rule)

    def _encode_packed(self, texts: tuple[str, ...], prompt: Prompt, n_contexts: int) -> Tensor:
        return self._encode_layout(self._get_layout(texts, prompt, n_contexts), prompt, n_contexts)

    def _encode_layout(self, embedded: EmbeddedLayout, prompt: Prompt, n_contexts: int) -> Tensor:
        """Encode texts behind their shared prefix -> (R, C, D)."""
        phases, x, qkv, slot_positions = embedded
        x = x.expand(n_contexts, -1, -1)
        if 0 in prompt.tokens and prompt.is_embedded:
            rows, token_indices = phases[0].layout.prompt_slots
            tokens = prompt.tokens[0].flatten(1, -2)
            placed = (tokens if token_indices is None else tokens[:, token_indices]) + slot_positions
            x = x.index_copy(1, rows, placed.to(x.dtype).expand(n_contexts, -1, -1))
        return encode_packed(self.blocks, x, phases, prompt, qkv, self.compute_options.wrap_block_fn(run_block))

    def _encode_padded(self, texts: tuple[str, ...], prompt: Prompt, n_contexts: int) -> Tensor:
        """Encode every text by itself -> (R, C, D): without a causal mask, or if an adapter mixes rows."""
        x, ends = self._run_padded(texts, prompt, n_contexts)
        return self._pool(x, ends).unflatten(0, (n_contexts, len(texts)))

    def _run_padded(self, texts: tuple[str, ...], prompt: Prompt, n_contexts: int) -> tuple[Tensor, Tensor]:
        """Run the blocks on padded texts -> (R * C, N, D), and the row (R * C,) of each one's end."""
        n_texts, p, entry = len(texts), prompt.length, prompt.entry_layer
        rows = self.tokenize(texts, p, entry is None)
        n_rows = self._padded_length(max(len(ids) for ids, _ in rows), 0 if entry is None else p)
        padded = [ids + [self.tokenizer.pad_id] * (n_rows - len(ids)) for ids, _ in rows]
        ids = torch.tensor(padded, device=self.device)
        slots = [[j for j, w in enumerate(slots) if w >= 0] for _, slots in rows]
        slot_rows = torch.tensor(slots, device=self.device).long()  # (C, P)
        positions = torch.arange(n_rows, device=self.device).expand_as(ids)
        if entry is not None:  # of the text without soft tokens
            is_slot = torch.zeros_like(ids).scatter(1, slot_rows, 1)
            positions = positions - is_slot.cumsum(1)
        x = (self.token_embeddings[ids] + self.positions[positions]).repeat(n_contexts, 1, 1)  # (R * C, N, D)
        visible = None
        if self.class_token is not None:
            x = torch.cat([x, (self.class_token + self.positions[-1]).expand(len(x), 1, -1)], 1)
            visible = self._visible_positions(ids, slot_rows).repeat(n_contexts, 1)
        prompt, slot_rows = _repeat_per_text(prompt, n_contexts, n_texts), slot_rows.repeat(n_contexts, 1)
        if entry is not None:
            x = self._run_below_entry(x, prompt, slot_rows, visible)
            x = insert_tokens(x, (slot_rows, slot_rows), prompt.tokens[entry])
        elif p:
            x = insert_tokens(x, (slot_rows, slot_rows), prompt.tokens[0] + self.positions[slot_rows])
        x = walk(
            self.blocks,
            x,
            prompt,
            attention=make_attention(self.is_causal, visible),
            slot=(slot_rows, slot_rows),
            block_fn=self.compute_options.wrap_block_fn(run_block),
            first_block=entry or 0,
        )
        return x, torch.tensor([len(ids) - 1 for ids, _ in rows], device=self.device).repeat(n_contexts)

    def _run_below_entry(self, x: Tensor, prompt: Prompt, slot_rows: Tensor, visible: Tensor | None) -> Tensor:
        """Run the blocks below the layer at which tokens come in, on the words (B, N, D) alone."""
        is_slot = torch.zeros(x.shape[:2], device=x.device).scatter(1, slot_rows, 1.0)
        word_rows = is_slot.argsort(dim=1, stable=True)[:, : x.shape[1] - slot_rows.shape[1]]
        words = walk(
            self.blocks[: prompt.entry_layer],
            select_positions(x, word_rows),
            replace(prompt, tokens={}, carry={}),
            attention=make_attention(self.is_causal, None if visible is None else visible.gather(1, word_rows)),
            block_fn=self.compute_options.wrap_block_fn(run_block),
        )
        return x.scatter(1, word_rows[..., None].expand_as(words), words)

    def _padded_length(self, max_length: int, n_new: int) -> int:
        """The rows of a text before a class token; n_new of them have no position."""
        has_class_token, n_context = self.class_token is not None, self.context_length + n_new
        if not self.is_causal or (self.pooling == "last" and not has_class_token):
            return n_context
        return min(max_length + has_class_token, n_context)

    def _pool(self, x: Tensor, ends: Tensor) -> Tensor:
        """Rows (B, N, D) -> the one that is read (B, D)."""
        last = torch.full_like(ends, x.shape[1] - 1)
        row = {"end": ends, "first": torch.zeros_like(ends), "last": last}[self.pooling]
        return x[torch.arange(len(x), device=x.device), row]

    def _visible_positions(self, ids: Tensor, slot_rows: Tensor) -> Tensor:
        """Which of N + 1 rows CoCa lets be seen, (C, N + 1), for ids (C, N) with soft tokens at slot_rows (C, P).

        Its padding mask stands one row late, and its weights are trained with that: the row after a pad token is
        hidden, so the first pad is seen and the class token doesn't see itself.
        """
        is_text = (ids != self.tokenizer.pad_id).scatter(1, slot_rows, True)
        return torch.cat([is_text.new_ones(len(ids), 1), is_text], 1)


def _warn_of_equal_tokens(texts: Sequence[str], rows: Sequence[TokensAndSlots]) -> None:
    """Warn of different texts that are the same tokens, whose classes can't be told apart."""
    first_text = dict[tuple[tuple[int, ...], ...], str]()
    for text, (ids, slots) in zip(texts, rows, strict=True):
        other = first_text.setdefault((tuple(ids), tuple(slots)), text)
        if other != text:
            warnings.warn(
                f"text: {other!r} and {text!r} are the same tokens, so their classes get equal logits and no prompt "
                "tells them apart. Rename one of them.",
                stacklevel=3,
            )
            return


def _repeat_per_text(prompt: Prompt, n_contexts: int, n_texts: int) -> Prompt:
    """A prompt of R contexts for R * C sequences."""

    def repeat_tokens(tokens: Tensor) -> Tensor:
        per_text = tokens if tokens.ndim == 4 else tokens[:, None].expand(-1, n_texts, -1, -1)
        return per_text.expand(n_contexts, -1, -1, -1).flatten(0, 1)

    def repeat_prefix(x: Tensor) -> Tensor:
        return x.expand(n_contexts, -1, -1, -1).repeat_interleave(n_texts, 0)

    tokens = {i: repeat_tokens(t) for i, t in prompt.tokens.items()}
    prefix = {i: (repeat_prefix(k), repeat_prefix(v)) for i, (k, v) in prompt.prefix.items()}
    return replace(prompt, tokens=tokens, prefix=prefix)
