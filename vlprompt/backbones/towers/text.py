"""Text towers: causal ones behind a shared prefix, others by the full pass, and any encoder as it is."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vlprompt.backbones.cache.memory import looked_up
from vlprompt.core.compute_options import PLAINLY, again
from vlprompt.core.prompt import NOTHING, Prompt
from vlprompt.layers.block import Block, check, everyone, find_sites, step, walk
from vlprompt.layers.cuda_graphs import Graphs
from vlprompt.layers.frozen_maps import Map
from vlprompt.layers.shared_prefix import Layout, Row, encode, lay_out

ROWS = 65536  # token rows of a pass without a gradient, as far as texts can be parted
WORTH = 1000  # token rows whose products take a GPU as long as the many small operations of one more group of texts
RECORDED = 2048  # texts of a pass, with those of all contexts, up to which starting its operations is what takes long
# a layout, its rows before the first block (1, T, D), and their queries, keys and values there (None: not constant)
Laid = tuple[Layout, Tensor, Tensor | None]
HOLE = re.compile(r"\{\{|\}\}|\s*\{(\d+)\}")


def bare(text: str) -> str:
    """The text without its holes, and with escaped braces as they are meant."""
    return HOLE.sub(lambda m: "" if m[1] else m[0][0], text)


@dataclass(frozen=True)
class Words:
    """A tokenizer: `encode` gives ids without special ones, which stand in `begin` and `end`; `pad` fills a context."""

    encode: Callable[[str], list[int]]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    pad: int = 0

    def row(self, text: str, tokens: int) -> Row:
        """Ids, and which prompt token stands in each place.

        "{4} dog" has 4 holes; without a hole they follow the beginning.
        """
        if tokens and not any(m[1] for m in HOLE.finditer(text)):
            text = f"{{{tokens}}} {text}"
        ids, k = list(self.encode(bare(text))), 0
        where = [-1] * len(ids)
        for hole in (m for m in HOLE.finditer(text) if m[1]):  # after as many tokens as the words before it have alone
            n, at = int(hole[1]), k + len(self.encode(bare(text[: hole.start()])))
            ids[at:at], where[at:at], k = [0] * n, range(k, k + n), k + n
        if k != tokens:
            raise ValueError(f"the text {text!r} has {k} holes for prompt tokens, but the prompt has {tokens} tokens")
        return [*self.begin, *ids, *self.end], [*[-1] * len(self.begin), *where, *[-1] * len(self.end)]


def whole_words(tokenizer: Any, clean: Callable[[str], str] = str) -> Words:
    """A tokenizer of Hugging Face as Words; clean: what is done to a text before it."""
    whole, middle = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False)
    at = next(i for i in range(len(whole)) if whole[i : i + len(middle)] == middle)
    begin, end = tuple(whole[:at]), tuple(whole[at + len(middle) :])
    pad = tokenizer.pad_token_id or 0
    return Words(lambda text: tokenizer.encode(clean(text), add_special_tokens=False), begin, end, pad)


def parted(prompt: Prompt, texts: int, most: int, own: bool) -> Iterator[tuple[int, Prompt]]:
    """Where each chunk of at most so many texts begins, and the prompt with its texts' own tokens."""
    for i in range(0, texts, most):
        tokens = {layer: t[:, i : i + most] if own else t for layer, t in prompt.tokens.items()}
        yield i, Prompt(tokens, prompt.prefix, prompt.beside)


class TextTower:
    """Texts -> features (R, C, E), un-normalised.

    table (V, D): token embeddings; positions (L, D); project: (.., D) -> (.., E). causal: rows see only what stands
    before them; read: which row is the text's ("end", "first" or "last" of the whole context). tail (D,): a row
    after the context (CoCa's class token), which is then the last; positions has one more row for it.
    """

    def __init__(self, blocks: Sequence[Block], *, words: Words, table: Tensor, positions: Tensor, norm: Map,
                 project: Map, causal: bool, read: str, width: int, key: str, device: torch.device,
                 tail: Tensor | None = None):  # fmt: skip
        self.blocks, self.words, self.table, self.positions = blocks, words, table, positions
        self.norm, self.project, self.causal, self.read, self.width, self.key = norm, project, causal, read, width, key
        self.depth, self.dim, self.heads, self.tail = len(blocks), table.shape[1], blocks[0].heads, tail
        self.length = len(positions) - (tail is not None)
        self.head_dim, self.device = self.dim // self.heads, device
        self.worth = WORTH if device.type == "cuda" else 0
        self.graphs = Graphs() if device.type == "cuda" else None
        self._layout, self.how = lru_cache(64)(self._lay_out), PLAINLY

    def sites(self, *names: str) -> dict[str, tuple[int, int]]:
        """{"0/q": (fan_in, fan_out), ...}.

        Kinds: norm, and per layer q k v out up down norm1 norm2 attn mlp attn+ mlp+.
        """
        return find_sites(self.blocks, names, {"norm": (self.dim, self.dim)})

    def context(
        self, n: int | None = None, init: str | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Initial tokens (P, D): the embeddings of the words of `init`, or n drawn from N(0, 0.02) on the CPU."""
        if init is None:
            if n is not None and n < 1:
                raise ValueError(f"n_ctx, the number of prompt tokens, must be at least 1, not {n}")
            return (torch.randn(16 if n is None else n, self.dim, generator=generator) * 0.02).to(self.device)
        ids = self.words.encode(init.replace("_", " "))
        if n is not None and n != len(ids):
            raise ValueError(
                f"the initial words {init!r} are {len(ids)} tokens, but n_ctx is {n}: "
                f"leave n_ctx out, set it to {len(ids)}, or begin without words (init=null)"
            )
        return self.table[torch.tensor(ids, device=self.device)].clone()

    @looked_up
    def __call__(self, texts: Sequence[str], prompt: Prompt = NOTHING, read: str = "pooled") -> Tensor:
        """C texts after each of R contexts -> (R, C, E). Holes like {4} are where the prompt's tokens stand."""
        if read != "pooled":
            raise ValueError(f"a text tower reads 'pooled', not {read!r}")
        if prompt.tokens and 0 not in prompt.tokens:
            raise ValueError(
                "the tokens of a text must begin at layer 0: later layers replace what stands in the holes"
            )
        check(prompt, self.depth)
        shapes = [t.shape[0] for t in prompt.tokens.values()] + [k.shape[0] for k, _ in prompt.prefix.values()]
        own = any(t.ndim == 4 and t.shape[1] > 1 for t in prompt.tokens.values())
        if own and {t.shape[1] for t in prompt.tokens.values() if t.ndim == 4} != {len(texts)}:
            raise ValueError(
                f"the prompt has tokens for {next(iter(prompt.tokens.values())).shape[1]} classes, "
                f"but there are {len(texts)} texts"
            )
        tokens = {i: t if own else t.flatten(1, 2) if t.ndim == 4 else t for i, t in prompt.tokens.items()}
        if own:
            tokens = {i: t if t.ndim == 4 else t[:, None].expand(-1, len(texts), -1, -1) for i, t in tokens.items()}
        prompt, contexts = Prompt(tokens, prompt.prefix, prompt.beside), max(shapes, default=1)
        packed = self.causal and self.read == "end" and not prompt.mixes_rows
        make, most, texts = (self._packed if packed else self._full), self._at_once(contexts, packed), tuple(texts)
        if len(texts) > most:
            x = torch.cat([again(make, texts[i : i + most], part, contexts, own)
                           for i, part in parted(prompt, len(texts), most, own)], 1)  # fmt: skip
        elif packed and self.graphs is not None and self.how == PLAINLY and contexts * len(texts) <= RECORDED:
            laid = self._laid(texts, prompt.length, own, contexts)  # held by what is recorded
            return self.graphs(lambda p: self._pooled(self._behind(laid, p, contexts, own), p), (texts, own), prompt)
        else:
            x = make(texts, prompt, contexts, own)
        return self._pooled(x, prompt)

    def _pooled(self, x: Tensor, prompt: Prompt) -> Tensor:
        return self.project(prompt.part("norm", x, self.norm(x)))

    def _at_once(self, contexts: int, packed: bool) -> int:
        """How many texts a pass takes: as many as asked for, or without a gradient what keeps it small."""
        rows = ROWS if self.device.type == "cpu" else 16 * ROWS
        least = max(16, rows // (contexts * (6 if packed else self.length)))
        found = self.how.chunk or len(self.table)
        return found if torch.is_grad_enabled() else min(found, least)

    def rows(self, texts: Sequence[str], tokens: int) -> list[Row]:
        rows = [self.words.row(text, tokens) for text in texts]
        for text, (ids, _) in zip(texts, rows, strict=True):
            if len(ids) > self.length:
                raise ValueError(
                    f"the text {bare(text)!r} with {tokens} prompt tokens fills {len(ids)} places, "
                    f"but the context has {self.length}: "
                    f"use at most {max(0, tokens - len(ids) + self.length)} prompt tokens (n_ctx) in all, or "
                    "shorter names"
                )
        return rows

    def _lay_out(self, texts: tuple[str, ...], tokens: int, own: bool, worth: int) -> Laid:
        """The layout, its rows before the first block (1, T, D), and their queries, keys and values there."""
        layout, first = lay_out(self.rows(texts, tokens), tokens, own, self.device, worth), self.blocks[0]
        x = (self.table[layout.ids] + self.positions[layout.places])[None]
        if not tokens or first.qkv is None:  # a pass without a prompt is made once
            return layout, x, None
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return layout, x, first.qkv(first.norm1(x))

    def _laid(self, texts: tuple[str, ...], tokens: int, own: bool, contexts: int) -> Laid:
        return self._layout(texts, tokens, own, self.worth // contexts)

    def _packed(self, texts: tuple[str, ...], prompt: Prompt, contexts: int, own: bool) -> Tensor:
        return self._behind(self._laid(texts, prompt.length, own, contexts), prompt, contexts, own)

    def _behind(self, laid: Laid, prompt: Prompt, contexts: int, own: bool) -> Tensor:
        """Texts behind what they share, as they are laid out."""
        layout, x, qkv = laid
        x = x.expand(contexts, -1, -1)
        if prompt.length:
            rows, which = layout.slot
            t = prompt.tokens[0].flatten(1, 2) if own else prompt.tokens[0]
            x = x.index_copy(
                1, rows, (t[:, which] + self.positions[layout.places[rows]]).to(x.dtype).expand(contexts, -1, -1)
            )
        return encode(self.blocks, x, layout, prompt, qkv, self.how.by(step))

    def _full(self, texts: tuple[str, ...], prompt: Prompt, contexts: int, own: bool) -> Tensor:
        """Every text by itself: without a causal mask, or where a part mixes rows."""
        found, c, p = self.rows(texts, prompt.length), len(texts), prompt.length
        tail, longest = self.tail is not None, max(len(ids) for ids, _ in found)
        whole = not self.causal or (self.read == "last" and not tail)
        n = self.length if whole else min(longest + tail, self.length)
        ids = torch.tensor([i + [self.words.pad] * (n - len(i)) for i, _ in found], device=self.device)
        x = (self.table[ids] + self.positions[:n]).repeat(contexts, 1, 1)  # (R * C, N, D)
        places = torch.tensor(
            [[j for j, w in enumerate(where) if w >= 0] for _, where in found], device=self.device
        ).long()
        places = places.repeat(contexts, 1)  # (R * C, P): where each text's tokens stand
        each = {
            i: (t if own else t[:, None].expand(-1, c, -1, -1)).expand(contexts, -1, -1, -1).flatten(0, 1)
            for i, t in prompt.tokens.items()
        }
        if p:
            t = (each[0] + self.positions[places]).to(x.dtype)
            x = x.scatter(1, places[..., None].expand_as(t), t)
        prefix = {
            i: tuple(t.expand(contexts, -1, -1, -1).repeat_interleave(c, 0) for t in kv)
            for i, kv in prompt.prefix.items()
        }
        prompt = Prompt(each, prefix, prompt.beside)  # type: ignore[arg-type]
        seen = None
        if self.tail is not None:
            x = torch.cat([x, (self.tail + self.positions[-1]).expand(len(x), 1, -1)], 1)
            seen = self._seen(ids, places[:c]).repeat(contexts, 1)
        x = walk(self.blocks, x, prompt, attention=everyone(self.causal, seen), slot=(places, places),
                 by=self.how.by(step))  # fmt: skip
        ends = torch.tensor([len(i) - 1 for i, _ in found], device=self.device).repeat(contexts)
        row = {"end": ends, "first": torch.zeros_like(ends), "last": torch.full_like(ends, x.shape[1] - 1)}[self.read]
        return x[torch.arange(len(x), device=x.device), row].unflatten(0, (contexts, c))

    def _seen(self, ids: Tensor, places: Tensor) -> Tensor:
        """Which of N + 1 rows CoCa lets be seen, (C, N + 1), for ids (C, N) with prompt tokens in places (C, P).

        Its mask of padding stands one row late, and its weights are trained with that: the row after a pad token is
        hidden, so the first pad is seen and the class token doesn't see itself.
        """
        kept = (ids != self.words.pad).scatter(1, places, True)
        return torch.cat([kept.new_ones(len(ids), 1), kept], 1)
