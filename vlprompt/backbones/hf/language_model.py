"""A frozen language model as a tower: texts and a Prompt in, pooled features or hidden states out."""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.backbones.hf import export, generation
from vlprompt.backbones.hf.decoder.packed import compute_packed_states
from vlprompt.backbones.hf.decoder.walk import is_shared, is_walkable
from vlprompt.backbones.hf.forward import FrozenTransformer
from vlprompt.backbones.hf.peft_adapter import PeftAdapter
from vlprompt.backbones.hf.peft_format import is_plain_module
from vlprompt.backbones.hf.tokenization import TokenizedText
from vlprompt.backbones.hf.weight_merging import build_merged_tower
from vlprompt.core.prompt import NOTHING, Prompt
from vlprompt.core.texts import TextBatch
from vlprompt.runtime import collectives

OUTPUTS = ("pooled", "mask", "response", "words")
PASS_BATCH_SIZE = 16  # rows of similar length in one pass without gradients
LENGTH_MULTIPLE = 32  # row lengths of cached features are multiples of this


class LanguageModel(FrozenTransformer):
    """A language model of transformers; implements core.towers.LanguageTower."""

    def __call__(self, inputs: TextBatch, prompt: Prompt = NOTHING, output: str = "pooled") -> Tensor:
        """Compute what a head reads of each text.

        Args:
            inputs: B texts.
            prompt: soft tokens, prefixes and adapters.
            output: "pooled" feature, state of the "mask", of each "response" token, or of the first token of "words".

        Returns:
            (B, E) for pooled and mask; (R, E) for response and words, one text after the other.

        Raises:
            ValueError: if the model can't take the prompt or has no such output.
        """
        self._check_prompt(prompt, output)
        if output == "words":
            _require_tags(inputs)
        rows = self.tokenize(inputs, prompt)
        if not prompt and output == "pooled" and self.is_cacheable:
            return self._look_up_features(inputs, rows)
        x = torch.cat(self._compute_outputs(rows, prompt, output, inputs.allows_packing))
        is_half = x.dtype in (torch.bfloat16, torch.float16) and not torch.is_autocast_enabled(self.device.type)
        return x.float() if is_half else x

    def _compute_outputs(
        self, rows: Sequence[TokenizedText], prompt: Prompt, output: str, is_packed: bool
    ) -> list[Tensor]:
        """Compute the outputs of each row; without gradients in batches of similar length."""
        if is_packed and (self.kind != "causal" or output != "response"):
            raise ValueError(
                f"method.head.packing: expected responses of a causal model, got output {output!r} of a model of kind "
                f"{self.kind!r}. Set method.head.packing=false."
            )
        compute = self._choose_pass(rows, prompt, output, is_packed)
        if torch.is_grad_enabled() or len(rows) <= PASS_BATCH_SIZE or not is_shared(prompt):
            return compute(rows, prompt, output)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
        outputs: list[Tensor] = [torch.empty(0)] * len(rows)
        for begin in range(0, len(order), PASS_BATCH_SIZE):
            indices = order[begin : begin + PASS_BATCH_SIZE]
            for i, x in zip(indices, compute([rows[i] for i in indices], prompt, output), strict=True):
                outputs[i] = x
        return outputs

    def _choose_pass(
        self, rows: Sequence[TokenizedText], prompt: Prompt, output: str, is_packed: bool
    ) -> Callable[[Sequence[TokenizedText], Prompt, str], list[Tensor]]:
        """Return the cheapest way to exact outputs."""
        n_positions = self.position_shift(prompt) + max((len(row.ids) for row in rows), default=0)
        reads_some = output in ("mask", "response") or (output == "pooled" and self.pooling == "last")
        if rows and reads_some and is_walkable(self, prompt, n_positions):
            return self._compute_walked_pass
        return self._compute_packed_pass if is_packed else self.compute_pass

    def _compute_walked_pass(self, rows: Sequence[TokenizedText], prompt: Prompt, output: str) -> list[Tensor]:
        """Compute the output of each row with all texts in one row of tokens."""
        positions = [[row.answer_start - 1] if output == "pooled" else _output_positions(row, output) for row in rows]
        states = compute_packed_states(self, rows, prompt, positions)
        return [self.architecture.head_transform(self.net)(x) for x in states] if output == "mask" else states

    def _compute_packed_pass(self, rows: Sequence[TokenizedText], prompt: Prompt, output: str) -> list[Tensor]:
        """Compute the states of responses with several texts packed in one row, under a mask."""
        longest = max(len(row.ids) for row in rows)
        # attention grows with the square of the length: bins no longer than it takes to fill them well
        max_tokens = max(
            longest, min(2 * max(longest, 128), (self.max_positions or 1024) - self.position_shift(prompt))
        )
        x, starts = self._compute_packed_hidden(rows, prompt, max_tokens)
        outputs = list[Tensor]()
        for row, (b, start) in zip(rows, starts, strict=True):
            first = start + row.answer_start - 1
            outputs.append(x[b, first : first + len(row.answer_ids)])
        return outputs

    def _look_up_features(self, inputs: TextBatch, rows: Sequence[TokenizedText]) -> Tensor:
        """Return cached features (B, E). Passes have a fixed size, so bits don't depend on the batch."""
        keys = [f"{item.key}|{inputs.template_pieces(i)}|{item.truncation_side}" for i, item in enumerate(inputs.items)]
        row_of = dict(zip(keys, rows, strict=True))
        collectives.compute_missing_features(
            self.feature_cache, keys, lambda missing: self._compute_and_cache({key: row_of[key] for key in missing})
        )
        features = self.feature_cache.get_many(keys)
        features |= self._compute_and_cache({key: row for key, row in row_of.items() if key not in features})
        return torch.stack([features[key] for key in keys])

    def _compute_and_cache(self, rows: Mapping[str, TokenizedText]) -> dict[str, Tensor]:
        """Compute the features of rows, add them to the cache and return them by key."""
        features, rows_by_length = dict[str, Tensor](), dict[int, dict[str, TokenizedText]]()
        for key, row in rows.items():
            # at least one padding token, so that there always is an attention mask
            length = LENGTH_MULTIPLE * (len(row.ids) // LENGTH_MULTIPLE + 1)
            length = length if self.max_positions is None else min(length, self.max_positions)
            rows_by_length.setdefault(length, {})[key] = row
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            for length, group in rows_by_length.items():
                keys = list(group)
                for begin in range(0, len(keys), PASS_BATCH_SIZE):
                    batch_keys = keys[begin : begin + PASS_BATCH_SIZE]
                    batch = [group[key] for key in batch_keys]
                    batch += [batch[-1]] * (PASS_BATCH_SIZE - len(batch))
                    x = self._pool(batch, self._compute_hidden(batch, NOTHING, length)).float()
                    for key, feature in zip(batch_keys, x, strict=False):
                        features[key] = feature.clone()
                        self.feature_cache.add_computed(key, features[key])
        return features

    def _check_prompt(self, prompt: Prompt, output: str) -> None:
        if output not in OUTPUTS:
            raise ValueError(f"output: expected one of {', '.join(OUTPUTS)}, got {output!r}. Pass one of them.")
        if any(layer != 0 for layer in prompt.tokens):
            raise ValueError(
                f"Prompt.tokens: expected tokens at layer 0 of a language model, got layers {sorted(prompt.tokens)}. "
                "Use a prefix for later layers (prefix_tuning)."
            )
        if prompt.entry_layer is not None or prompt.carry:
            raise ValueError(
                "Prompt: expected embedded tokens that nothing mixes with, as a language model takes, got is_embedded="
                f"{prompt.is_embedded} and carry at layers {sorted(prompt.carry)}. Leave both out."
            )
        if unknown := [layer for layer in prompt.prefix if layer not in self.layer_modules]:
            raise ValueError(
                f"{self.spec}: expected a prefix of the layers {', '.join(map(str, self.prefix_layers))}, got one of "
                f"layer {unknown[0]!r}. Use one of them."
            )
        if unknown := [site for site in prompt.adapters if site not in self.all_sites]:
            raise ValueError(
                f"{self.spec}: expected an adapter at one of its sites, got {unknown[0]!r}. See sites() for its sites."
            )
        if output == "mask" and not self.has_lm_head:
            raise ValueError(
                f"{self.spec}: expected a head over the vocabulary to fill {{mask}}, got none. Set method.head=linear "
                "to classify its pooled feature, or use a model with such a head."
            )

    def compute_pass(self, rows: Sequence[TokenizedText], prompt: Prompt, output: str) -> list[Tensor]:
        """Compute the output of each row in one pass: (1, E), or (r, E) of a response or of words."""
        x = self._compute_hidden(rows, prompt)
        if self.kind == "seq2seq" and output in ("mask", "response"):
            return self._compute_decoder_states(rows, prompt, x, output)
        if output == "pooled":
            return list(self._pool(rows, x).split(1))
        if output == "mask" and any(row.mask_position < 0 for row in rows):
            raise ValueError(
                "template: expected a place {mask} for the answer, got none. Add one, such as '{text} It is {mask}.'"
            )
        if output == "response" and self.kind != "causal":
            raise ValueError(
                f"{self.spec}: expected a model that writes responses, got an encoder. Use a causal model or an "
                "encoder-decoder."
            )
        positions = [_output_positions(row, output) for row in rows]
        counts = [len(row_positions) for row_positions in positions]
        columns = torch.tensor([k for row_positions in positions for k in row_positions], device=x.device)
        row_indices = torch.arange(len(rows), device=x.device)
        states = x[torch.repeat_interleave(row_indices, torch.tensor(counts, device=x.device)), columns]
        if output == "mask":
            states = self.architecture.head_transform(self.net)(states)
        return list(states.split(counts))

    def _pool(self, rows: Sequence[TokenizedText], x: Tensor) -> Tensor:
        """Pool states (B, N, D) to (B, E), without soft tokens."""
        if self.pooling == "mean":
            weights = torch.zeros(x.shape[:2], device=x.device)
            for i, row in enumerate(rows):
                weights[i, : len(row.ids)] = 1
                weights[i, row.soft_positions] = 0
            return (x * weights[..., None]).sum(1).div(weights.sum(1, keepdim=True)).to(x.dtype)
        positions = [row.answer_start - 1 if self.kind == "causal" else len(row.ids) - 1 for row in rows]
        if self.pooling == "first":
            positions = [next(k for k in range(len(row.ids)) if k not in set(row.soft_positions)) for row in rows]
        return x[torch.arange(len(rows), device=x.device), torch.tensor(positions, device=x.device)]

    # vocabulary

    def tokenize_answers(self, words: Sequence[str], template: str | None = None) -> list[list[int]]:
        """Tokenize answers as continuations of a text.

        Args:
            words: the answers.
            template: its text before {mask} decides about the space before an answer.

        Raises:
            ValueError: if an answer has no tokens.
        """
        context = "" if template is None else template.partition("{mask}")[0]
        space = context[len(context.rstrip()) :] if context else None
        return self.template_tokenizer.tokenize_answers(list(words), space)

    def get_output_embeddings(self, ids: Sequence[int] | None = None) -> tuple[Tensor, Tensor | None]:
        """Return rows (n, E) of the output embeddings and their biases (n,) or None.

        Args:
            ids: the tokens, None for all.

        Raises:
            ValueError: if the model has no head over its vocabulary.
        """
        if not self.has_lm_head:
            raise ValueError(
                f"{self.spec}: expected a head over the vocabulary, got none. Set method.head=linear, or use a model "
                "with one."
            )
        head = self.net.get_output_embeddings()
        head = getattr(head, "base_layer", getattr(head, "original_module", head))
        rows = slice(None) if ids is None else torch.as_tensor(ids, device=self.device)
        bias = getattr(head, "bias", None)
        return head.weight[rows], None if bias is None else bias[rows]

    def vocabulary_logits(self, states: Tensor, ids: Sequence[int] | None = None) -> Tensor:
        """Map states (R, E) to logits (R, n) of these tokens; None: of all."""
        head = self.net.get_output_embeddings() if self.has_lm_head else None
        if head is None or is_plain_module(head):
            weight, bias = self.get_output_embeddings(ids)
            return F.linear(states.to(weight.dtype), weight, bias)
        logits = head(states)  # it has an adapter
        return logits if ids is None else logits[:, torch.as_tensor(ids, device=self.device)]

    def response_tokens(self, inputs: TextBatch, prompt: Prompt = NOTHING) -> list[list[int]]:
        """Return the tokens of each response."""
        return [row.answer_ids for row in self.tokenize(inputs, prompt)]

    def embed_text(self, text: str) -> Tensor:
        """Return the embeddings (N, D) of a text's own tokens, in the scale of the model's first layer.

        Without special tokens: PEFT's start from a text begins with [CLS] or BOS and may end with [SEP] or EOS.
        """
        return self._embed(torch.tensor(self.template_tokenizer.tokenize_words(text), dtype=torch.long))

    def sample_token_embeddings(self, n: int, generator: torch.Generator) -> Tensor:
        """Sample embeddings (n, D) of random tokens of the vocabulary, in the scale of the model's first layer."""
        n_embeddings = self.net.get_input_embeddings().weight.shape[0]
        return self._embed(torch.randint(n_embeddings, (n,), generator=generator))

    @torch.no_grad()
    def _embed(self, ids: Tensor) -> Tensor:
        """Embed tokens as a pass does; Gemma scales its embeddings."""
        return self.net.get_input_embeddings()(ids.to(self.device)).float().clone()

    def encode_prefix(self, text: str, prompt: Prompt = NOTHING, follows_prefix: bool = False) -> Prompt:
        """Encode a text as a prefix of every layer, for all texts of a causal model.

        Args:
            text: the text.
            prompt: the prompt with which it is encoded.
            follows_prefix: whether the prompt is such a prefix itself.
        """
        return generation.encode_shared_text(self, text, prompt, follows_prefix)

    def generate(self, inputs: TextBatch, prompt: Prompt = NOTHING, **settings: Any) -> list[str]:
        """Generate after each text; settings: those of transformers (max_new_tokens, num_beams ...)."""
        return generation.generate(self, inputs, prompt, **settings)

    def merged(self, prompt: Prompt) -> "LanguageModel":
        """Return a tower with the prompt's adapters merged into its weights; ValueError if that is impossible."""
        self._check_prompt(prompt, "pooled")
        return build_merged_tower(self, prompt)

    def with_peft_adapter(self, config: Mapping[str, Any], seed: int) -> PeftAdapter:
        """Return the model with an adapter of PEFT; ValueError if PEFT or this model can't make it."""
        return PeftAdapter(self, config, seed)

    def save_as_peft(self, prompt: Prompt, folder: Path, metadata: Mapping[str, Any]) -> None:
        """Save a prompt as an adapter in PEFT's files; ValueError if PEFT has no format for it."""
        export.save_prompt(self, prompt, folder, metadata)

    def save_merged(self, prompt: Prompt, folder: Path) -> None:
        """Save the model in float32 with the prompt's adapters merged, in the files of transformers."""
        self._check_prompt(prompt, "pooled")
        export.save_merged_model(self, prompt, folder)

    def trainable_copy(self) -> nn.Module:
        """Return a trainable copy in float32, called like the tower."""
        return TrainableLanguageModel(self)


def _require_tags(inputs: TextBatch) -> None:
    """Raise the error of `TextBatch.tags` for texts without tags."""
    _ = inputs.tags


def _output_positions(row: TokenizedText, output: str) -> Sequence[int]:
    if output == "mask":
        return [row.mask_position]
    if output == "words":
        return row.word_positions
    first = row.answer_start - 1
    return range(first, first + len(row.answer_ids))


class TrainableLanguageModel(nn.Module):
    """A trainable copy of all weights of a language model."""

    def __init__(self, tower: LanguageModel):
        super().__init__()
        self.tower: LanguageModel
        if tower.weight_precision not in ("fp32", "bf16"):
            raise ValueError(
                f"{tower.spec}: expected unquantised weights to train, got {tower.weight_precision}. Use hf: instead."
            )
        net = copy.deepcopy(tower.net).float().requires_grad_(True)
        # by name, each tensor once: models may use one tensor in two modules
        self.weights = nn.ParameterDict({name.replace(".", "/"): p for name, p in net.named_parameters()})
        trainable_tower = copy.copy(tower)
        trainable_tower.is_cacheable = False
        trainable_tower.attach_model(net)
        object.__setattr__(self, "tower", trainable_tower)

    def forward(self, inputs: TextBatch, prompt: Prompt = NOTHING, output: str = "pooled") -> Tensor:
        return self.tower(inputs, prompt, output)
