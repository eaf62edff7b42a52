"""Tokenizers of a CLIP's texts, which put soft tokens between words."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vlprompt.core.templates import TemplatePiece, as_templated_text
from vlprompt.layers.blocks.shared_prefix import TokensAndSlots


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer of a CLIP's texts.

    Args:
        encode: text -> ids without special tokens.
        begin_ids: special tokens in front.
        end_ids: special tokens behind.
        decode: id -> the token as the vocabulary writes it.
        pad_id: fills a context.
    """

    encode: Callable[[str], list[int]]
    begin_ids: tuple[int, ...]
    end_ids: tuple[int, ...]
    decode: Callable[[int], str]
    pad_id: int = 0

    def tokenize(self, text: str, n_tokens: int) -> TokensAndSlots:
        """Tokenize a text as one string and put soft tokens in, each after the words before it.

        Args:
            text: a text with places of soft tokens ("{4} dog."); without one they follow the beginning.
            n_tokens: soft tokens of the prompt.

        Returns:
            Token ids, and the index of the soft token at each position (-1: none).
        """
        pieces = as_templated_text(text, n_tokens).pieces
        if n_tokens and all(piece.kind == "words" for piece in pieces):
            pieces = (TemplatePiece("tokens", n_soft_tokens=n_tokens), TemplatePiece("words", " "), *pieces)
        words, slots, n_placed = "", list[tuple[int, int]](), 0
        for piece in pieces:
            if piece.kind == "words":
                words += piece.text
            else:  # after as many tokens as the words before it have alone
                words = words.rstrip()
                slots.append((n_placed + len(self.encode(words)), piece.n_soft_tokens))
                n_placed += piece.n_soft_tokens
        if n_placed != n_tokens:
            raise ValueError(
                f"text: expected places for {n_tokens} prompt tokens, got {n_placed} in {str(text)!r}. Write for "
                f"example '{{{n_tokens}}} dog.'"
            )
        ids, n_placed = list(self.encode(words)), 0
        indices = [-1] * len(ids)
        for position, n in slots:
            ids[position:position], indices[position:position] = [0] * n, range(n_placed, n_placed + n)
            n_placed += n
        begin, end = self.begin_ids, self.end_ids
        return [*begin, *ids, *end], [*[-1] * len(begin), *indices, *[-1] * len(end)]


def wrap_hf_tokenizer(tokenizer: Any, clean: Callable[[str], str] = str) -> TextTokenizer:
    """Wrap a Hugging Face tokenizer; `clean` is applied to a text before it."""
    full, word = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False)
    start = next(i for i in range(len(full)) if full[i : i + len(word)] == word)
    begin, end = tuple(full[:start]), tuple(full[start + len(word) :])
    pad = tokenizer.pad_token_id or 0
    decode = tokenizer.convert_ids_to_tokens
    return TextTokenizer(lambda text: tokenizer.encode(clean(text), add_special_tokens=False), begin, end, decode, pad)
