"""CLIP's byte-pair tokenizer, from the vocabulary in open_clip's folder; open_clip itself, slow to import, is not."""

import gzip
import html
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import ftfy
import regex
import torch
from torch import Tensor

VOCABULARY_FILE = "bpe_simple_vocab_16e6.txt.gz"
N_MERGES = 48894  # of the file's lines, after the first one
BEGIN, END = "<start_of_text>", "<end_of_text>"
WORDS = regex.compile(
    rf"{BEGIN}|{END}|'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+", regex.IGNORECASE
)
WORD_END = "</w>"


@cache
def map_bytes() -> dict[int, str]:
    """Return a visible character for each byte, in the order of the vocabulary."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


@cache
def read_merges() -> list[str]:
    """Return the pairs "FIRST SECOND" that become one token, the most frequent first."""
    spec = find_spec("open_clip")  # finds the folder without importing what is in it
    folders = spec.submodule_search_locations if spec is not None else None
    if not folders or not (path := Path(folders[0]) / VOCABULARY_FILE).is_file():
        raise OSError(f"open_clip: expected {VOCABULARY_FILE} in its folder, got none. Reinstall open_clip_torch.")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return file.read().split("\n")[1 : N_MERGES + 1]


@cache
def build_vocabulary() -> tuple[dict[str, int], dict[int, str], dict[str, int]]:
    """Return the id of each token, the token of each id, and the rank of each merge; all tokenizers share them."""
    characters, merges = [*map_bytes().values()], read_merges()
    tokens = [*characters, *(c + WORD_END for c in characters), *(m.replace(" ", "") for m in merges), BEGIN, END]
    ids = {token: i for i, token in enumerate(tokens)}
    return ids, dict(enumerate(tokens)), {merge: i for i, merge in enumerate(merges)}


class BytePairTokenizer:
    """The tokenizer of OpenAI's CLIP, with the interface of open_clip's `SimpleTokenizer`.

    Args:
        context_length: to which `__call__` pads texts.
    """

    def __init__(self, context_length: int):
        self.context_length = context_length
        self.ids, self.decoder, self.ranks = build_vocabulary()
        self.sot_token_id, self.eot_token_id = self.ids[BEGIN], self.ids[END]
        self._cache: dict[str, list[int]] = {BEGIN: [self.sot_token_id], END: [self.eot_token_id]}

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text without special tokens in front and behind."""
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
        return [i for word in WORDS.findall(" ".join(text.split()).lower()) for i in self._encode_word(word)]

    def _encode_word(self, word: str) -> list[int]:
        if word not in self._cache:
            characters = [map_bytes()[byte] for byte in word.encode("utf-8")]
            symbols = self._merge([*characters[:-1], characters[-1] + WORD_END])
            self._cache[word] = [self.ids[symbol] for symbol in symbols]
        return self._cache[word]

    def _merge(self, symbols: list[str]) -> list[str]:
        """Join pairs of neighbours, everywhere in the word, the most frequent pair first, until no pair is known."""
        while len(symbols) > 1:
            pairs = [f"{a} {b}" for a, b in pairwise(symbols)]
            pair = min(pairs, key=lambda pair: self.ranks.get(pair, N_MERGES))
            if pair not in self.ranks:
                break
            joined, i = list[str](), 0
            while i < len(symbols):
                is_pair = i < len(pairs) and f"{symbols[i]} {symbols[i + 1]}" == pair
                joined.append(pair.replace(" ", "") if is_pair else symbols[i])
                i += 2 if is_pair else 1
            symbols = joined
        return symbols

    def __call__(self, texts: list[str]) -> Tensor:
        """Return ids (len(texts), context_length) with special tokens; too long texts are cut before the last one."""
        rows = torch.zeros(len(texts), self.context_length, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            ids = [self.sot_token_id, *self.encode(text), self.eot_token_id]
            if len(ids) > self.context_length:
                ids = [*ids[: self.context_length - 1], self.eot_token_id]
            row[: len(ids)] = torch.tensor(ids)
        return rows
