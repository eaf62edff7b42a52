"""Tokenize templated texts for transformers models: soft-token positions, answers and truncation."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vlprompt.backbones.hf.rendered_text import EncodedText, RenderedText
from vlprompt.core.templates import TemplatePiece
from vlprompt.core.texts import TextBatch, TextItem

LINE_END = "\n"
T5_SENTINEL = "<extra_id_0>"  # of T5: stands for the answer in the text, and starts the decoder's answer
CACHE_SIZE = 200_000


@dataclass(frozen=True)
class TokenizedText:
    """One text as tokens.

    Args:
        ids: token ids of the row; of a causal model with the answer.
        soft_positions: positions of the soft tokens; their ids are placeholders.
        token_types: segment of each token, for encoders with two segments.
        mask_position: position whose state predicts the answer, -1 without one.
        answer_ids: tokens of the response.
        answer_start: position in `ids` of the first answer token (causal models; otherwise the length of the row).
        word_positions: position of the first token of each word; of truncated words, the last position of the text.
        is_truncated: whether the text or the answer was truncated.
    """

    ids: list[int]
    soft_positions: list[int]
    token_types: list[int]
    mask_position: int = -1
    answer_ids: list[int] = field(default_factory=list)
    answer_start: int = -1
    word_positions: list[int] = field(default_factory=list)
    is_truncated: bool = False


class TemplateTokenizer:
    """Tokenize texts for one model, with a cache.

    Args:
        tokenizer: a fast tokenizer of transformers.
        kind: kind of the model: "causal", "encoder" or "seq2seq".
        max_length: number of positions of the model, None if unbounded.
        model_name: name of the model in error messages.
        has_segments: whether the model has embeddings for two segments.
        n_embeddings: of the model's tokens.

    Raises:
        ValueError: if the tokenizer gives no character offsets.
    """

    def __init__(
        self,
        tokenizer: Any,
        kind: str,
        max_length: int | None,
        model_name: str,
        has_segments: bool,
        n_embeddings: int,
    ):
        self.tokenizer, self.kind, self.max_length = tokenizer, kind, max_length
        self.model_name, self.has_segments, self.n_embeddings = model_name, has_segments, n_embeddings
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"{model_name}: expected a fast tokenizer, got {type(tokenizer).__name__}. Put a "
                "tokenizer.json into its folder."
            )
        self.cache: dict[tuple[Any, ...], TokenizedText] = {}

    def tokenize(self, inputs: TextBatch, i: int, n_soft: int, n_prefix: int) -> TokenizedText:
        """Tokenize one text of a batch.

        Args:
            inputs: the texts with their templates.
            i: index of the text.
            n_soft: number of soft tokens.
            n_prefix: positions to leave free, such as those of a prefix.

        Raises:
            ValueError: if the template does not suit the text or the model, the text is empty, or it can't fit.
        """
        item = inputs.items[i]
        key = (
            item.key,
            inputs.template_pieces(i),
            item.truncation_side,
            n_soft,
            n_prefix,
            inputs.response_at(i),
            inputs.responses is None,
            inputs.follows_prefix,
        )
        if (row := self.cache.get(key)) is None:
            if len(self.cache) > CACHE_SIZE:
                self.cache.clear()
            row = self.cache[key] = self._tokenize_template(inputs, i, n_soft, n_prefix)
        return row

    def _tokenize_template(self, inputs: TextBatch, i: int, n_soft: int, n_prefix: int) -> TokenizedText:
        rendered = self._render(inputs.items[i], inputs.template_pieces(i))
        row = self._tokenize_rendered(inputs, i, rendered, n_soft, n_prefix)
        self.require_embeddings([*row.ids, *row.answer_ids])
        return row

    def require_embeddings(self, ids: Sequence[int]) -> None:
        """Raise ValueError if a token has no embedding in the model."""
        if (last := max(ids, default=0)) >= self.n_embeddings:
            raise ValueError(
                f"tokenizer of {self.model_name}: expected tokens with ids below the model's {self.n_embeddings} "
                f"embeddings, got {self.tokenizer.convert_ids_to_tokens(last)!r} (id {last}) in a text. Remove it from "
                "the text, or use the tokenizer that belongs to the weights."
            )

    # rendering

    def _render(self, item: TextItem, pieces: Sequence[TemplatePiece]) -> RenderedText:
        """Fill the template in; of a causal model up to the answer."""
        rendered, follows_soft_tokens = RenderedText(), False
        for piece in pieces:
            if self.kind == "causal" and rendered.mask_offset >= 0:
                self._require_no_field(piece)
                continue
            if piece.kind == "words":
                rendered.append_words(piece.text, follows_soft_tokens)
            elif piece.kind == "tokens":
                rendered.soft_token_offsets.append((len(rendered.text), piece.n_soft_tokens))
            elif piece.kind == "mask":
                rendered.mask_offset = len(rendered.text)
                rendered.text += self._mask_text()
            elif piece.kind == "sep":
                rendered.text, rendered.separator_offset = self._append_separator(rendered.text)
            else:
                self._append_field(rendered, item, piece.text)
            follows_soft_tokens = piece.kind == "tokens"
        rendered.answer_space = rendered.text[len(rendered.text.rstrip(" \n\t")) :]
        if self.kind == "causal":
            rendered.text = rendered.text.rstrip(" ")  # the answer's first token includes its space
        if rendered.mask_offset < 0 and not rendered.is_chat:
            rendered.answer_space = rendered.answer_space or " "
        return rendered

    def _require_no_field(self, piece: TemplatePiece) -> None:
        if piece.kind == "field":
            raise ValueError(
                f"template: expected {{mask}} after all fields, as {self.model_name} reads from left to right, got "
                f"the field {piece.text!r} after it. Put {{mask}} at the end."
            )

    def _mask_text(self) -> str:
        if self.kind == "encoder" and not self.tokenizer.mask_token:
            raise ValueError(
                f"template: expected no {{mask}}, as the tokenizer of {self.model_name} has no mask token, got one. "
                "Leave {mask} out, or use a model with a mask token."
            )
        return {"encoder": self.tokenizer.mask_token or "", "seq2seq": T5_SENTINEL, "causal": ""}[self.kind]

    def _append_separator(self, text: str) -> tuple[str, int]:
        """Return the text with a separator, and the offset of the second segment (-1 without segments)."""
        if self.kind != "encoder" or not self.tokenizer.sep_token:
            return text.rstrip() + "\n", -1
        is_doubled = "roberta" in type(self.tokenizer).__name__.lower() or self.tokenizer.sep_token == "</s>"
        text = text.rstrip() + self.tokenizer.sep_token * (2 if is_doubled else 1)
        return text, len(text)

    def _append_field(self, rendered: RenderedText, item: TextItem, name: str) -> None:
        if name not in item.fields:
            raise ValueError(
                f"template: expected the fields {', '.join(item.fields)} of the text {item.name!r}, got {{{name}}}. "
                "Use one of them."
            )
        value = item.fields[name]
        spans = [(0, len(value))]
        if name == "messages":
            rendered.is_chat = True
            value, spans = self._render_chat(value)
        rendered.append_field(name, value, spans)

    def _render_chat(self, messages: str) -> tuple[str, list[tuple[int, int]]]:
        """Apply the tokenizer's chat template, up to the answer.

        Returns:
            The text, and the spans of the messages in it: these may be truncated, what the template adds may not.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            raise ValueError(
                f"tokenizer of {self.model_name}: expected a chat template to read messages, got none. Use the "
                "tokenizer of an instruction-tuned model, or rows with a prompt and a response."
            )
        turns, spans, end = json.loads(messages), list[tuple[int, int]](), 0
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        for content in (turn["content"].strip() for turn in turns):
            if (start := text.find(content, end)) >= 0:
                end = start + len(content)
                spans.append((start, end))
        return text, spans or [(0, len(text))]

    # tokens

    def _tokenize_rendered(
        self, inputs: TextBatch, i: int, rendered: RenderedText, n_soft: int, n_prefix: int
    ) -> TokenizedText:
        item, is_causal = inputs.items[i], self.kind == "causal"
        row = self._encode(item.name, rendered, inputs.follows_prefix)
        answer_ids = self._encode_response(inputs, i, rendered.answer_space)
        _require_soft_tokens(rendered.soft_token_offsets, n_soft)
        answer_limit = self._limit_answer(n_prefix + n_soft + len(row.ids))
        is_answer_truncated = answer_limit is not None and len(answer_ids) > answer_limit
        answer_ids = answer_ids[:answer_limit]
        n_reserved = n_prefix + n_soft + (len(answer_ids) if is_causal else 0)
        indices, is_text_truncated = self._truncate(item.name, row, rendered, n_reserved, item.truncation_side)
        row = row.select(indices)

        insertions = _locate_soft_tokens(row, rendered, n_soft)
        ids, soft_positions, positions = _insert_soft_tokens(row.ids, insertions)
        mask_position = -1
        if is_causal:
            mask_position = len(ids) - 1
        elif rendered.mask_offset >= 0:
            mask_position = positions[next(row.tokens_at(rendered.mask_offset))]
        word_positions = []
        if item.tags is not None:
            word_positions = _find_word_positions(item.fields["words"], row, rendered, positions)
        return TokenizedText(
            ids=[*ids, *answer_ids] if is_causal else ids,
            soft_positions=soft_positions,
            token_types=self._token_types(row, rendered, positions, len(ids) + len(answer_ids) * is_causal),
            mask_position=mask_position,
            answer_ids=answer_ids,
            answer_start=len(ids),
            word_positions=word_positions,
            is_truncated=is_text_truncated or is_answer_truncated,
        )

    def _encode(self, name: str, rendered: RenderedText, follows_prefix: bool) -> EncodedText:
        encoding = self.tokenizer(
            rendered.text,
            add_special_tokens=not (rendered.is_chat or follows_prefix),
            return_offsets_mapping=True,
            truncation=False,
            verbose=False,
        )
        is_text = [sequence is not None for sequence in encoding.sequence_ids(0)]
        if not any(is_text):
            raise ValueError(f"text {name!r}: expected a text, got an empty one. Remove it, or give it a text.")
        # an end-of-text token must not stand before a causal model's answer
        n = len(is_text) - is_text[::-1].index(True) if self.kind == "causal" else len(is_text)
        offsets = [tuple(offset) for offset in encoding["offset_mapping"][:n]]
        return EncodedText(rendered.text, list(encoding["input_ids"][:n]), offsets, is_text[:n])

    def _encode_response(self, inputs: TextBatch, i: int, space: str) -> list[int]:
        response = inputs.response_at(i)
        if response is None:
            return []
        ids, end_id = self.tokenize_answers([response], space)[0], self.tokenizer.eos_token_id
        return ids if inputs.responses is not None or end_id is None else [*ids, end_id]

    def _limit_answer(self, n_text: int) -> int | None:
        """Return the maximal number of answer tokens of a causal model: half of all positions, or what is left."""
        if self.max_length is None or self.kind != "causal":
            return None
        return max(self.max_length // 2, self.max_length - n_text)

    def _token_types(self, row: EncodedText, rendered: RenderedText, positions: list[int], n: int) -> list[int]:
        if rendered.separator_offset < 0 or not self.has_segments or self.kind == "causal":
            return [0] * n
        start = positions[min(row.count_before(rendered.separator_offset), len(positions) - 1)]
        return [int(k >= start) for k in range(n)]

    def _truncate(
        self, name: str, row: EncodedText, rendered: RenderedText, n_reserved: int, side: str
    ) -> tuple[list[int], bool]:
        """Truncate the longest field, token by token, until the row fits.

        Returns:
            The indices of the tokens that stay, and whether any was removed.
        """
        n = len(row.ids)
        if self.max_length is None or n + n_reserved <= self.max_length:
            return list(range(n)), False
        field_tokens = [row.tokens_within(start, stop) for start, stop, _ in rendered.field_spans]
        n_field_tokens = sum(map(len, field_tokens))
        excess = n + n_reserved - self.max_length
        if excess > n_field_tokens - 1:
            raise ValueError(
                f"text {name!r}: expected at most {self.max_length} positions of {self.model_name}, got "
                f"{n_reserved + n - n_field_tokens} for the prompt, the template and the response alone. Use fewer "
                "prompt tokens, a shorter template or a shorter response."
            )
        removed = set[int]()
        for _ in range(excess):
            longest = max(field_tokens, key=len)
            removed.add(longest.pop(-1 if side == "end" else 0))
        return [k for k in range(n) if k not in removed], True

    def tokenize_beginning(self, text: str, is_continuation: bool = False) -> list[int]:
        """Tokenize a text that another text follows, without special tokens at its end.

        Args:
            text: the text.
            is_continuation: whether it follows another text itself; then no special token begins it.
        """
        encoding = self.tokenizer(text, add_special_tokens=not is_continuation, verbose=False)
        is_text = [sequence is not None for sequence in encoding.sequence_ids(0)]
        ids = encoding["input_ids"][: len(is_text) - is_text[::-1].index(True)] if any(is_text) else []
        self.require_embeddings(ids)
        return ids

    def tokenize_words(self, text: str) -> list[int]:
        """Tokenize a text without special tokens; ValueError if a token has no embedding."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        self.require_embeddings(ids)
        return ids

    def tokenize_answers(self, answers: list[str], space: str | None = None) -> list[list[int]]:
        """Tokenize answers as continuations of a text.

        Args:
            answers: the answers.
            space: whitespace between the text and the answer; None: one space.

        Raises:
            ValueError: if an answer has no tokens.
        """

        def encode(text: str) -> list[int]:
            return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

        # without whitespace a line end takes its place: no token crosses it
        context = {"seq2seq": "", "encoder": "a "}.get(self.kind, "a " if space is None else f"a{space or LINE_END}")
        context_ids = encode(context.rstrip(" ")) if context else []
        answer_ids = list[list[int]]()
        for answer in answers:
            ids = encode(context + answer)
            is_continuation = ids[: len(context_ids)] == context_ids
            answer_ids.append(ids[len(context_ids) :] if is_continuation else encode(answer))
            self.require_embeddings(answer_ids[-1])
        if empty := [answer for answer, ids in zip(answers, answer_ids, strict=True) if not ids]:
            raise ValueError(f"answer {empty[0]!r}: expected tokens of {self.model_name}, got none. Use another word.")
        return answer_ids


def _require_soft_tokens(offsets: list[tuple[int, int]], n_soft: int) -> None:
    n_in_template = sum(n for _, n in offsets)
    if offsets and n_soft and n_in_template != n_soft:
        raise ValueError(
            f"template: expected {n_soft} soft tokens, as the method has, got places for {n_in_template}. Set "
            f"method.n_tokens={n_in_template}, or leave the places out to put all of them before the text."
        )


def _locate_soft_tokens(row: EncodedText, rendered: RenderedText, n_soft: int) -> list[tuple[int, int]]:
    """Return (index of the token that follows, number of soft tokens); without places in the template all go first."""
    if not n_soft:
        return []
    if not rendered.soft_token_offsets:
        return [(0, n_soft)]
    return [(row.count_before(offset), n) for offset, n in rendered.soft_token_offsets]


def _insert_soft_tokens(ids: list[int], insertions: list[tuple[int, int]]) -> tuple[list[int], list[int], list[int]]:
    """Insert placeholders for soft tokens.

    Returns:
        The new ids, the positions of the soft tokens, and the new position of each old token.
    """
    new_ids, soft_positions, positions = list[int](), list[int](), list[int]()
    for k in range(len(ids) + 1):
        for index, n in insertions:
            if index == k:
                soft_positions += range(len(new_ids), len(new_ids) + n)
                new_ids += [ids[0]] * n
        if k < len(ids):
            positions.append(len(new_ids))
            new_ids.append(ids[k])
    return new_ids, soft_positions, positions


def _find_word_positions(words: str, row: EncodedText, rendered: RenderedText, positions: list[int]) -> list[int]:
    offset = next((start for start, _, name in rendered.field_spans if name == "words"), None)
    if offset is None:
        raise ValueError("template: expected the field {words}, whose words are classified, got none. Add {words}.")
    last_token = max(k for k in range(len(row.ids)) if row.is_text[k])
    word_positions = list[int]()
    for word in words.split(" "):
        word_positions.append(positions[next(row.tokens_at(offset), last_token)])
        offset += len(word) + 1
    return word_positions
