"""Passages to rows of tokens: templates, soft tokens' places, answers, and what is cut where a text is too long."""

import json
from dataclasses import dataclass, field
from typing import Any

from vlprompt.core.texts import Passages

LINE = "\n"
SENTINEL = "<extra_id_0>"  # of T5: where the answer stands in the text, and how the decoder begins to give it


@dataclass(frozen=True)
class Row:
    """One passage as tokens. soft: where soft tokens stand (their ids mean nothing); mask: the place of the answer.

    types: of the two segments of an encoder; answer: the tokens of the response; begin: in `ids`, where they begin (in
    a causal model; an encoder-decoder has them apart); words: the first token of each word, the last one read of
    those that were cut.
    """

    ids: list[int]
    soft: list[int]
    types: list[int]
    mask: int = -1
    answer: list[int] = field(default_factory=list)
    begin: int = -1
    words: list[int] = field(default_factory=list)
    cut: bool = False


class Writer:
    """Writes passages as rows for one model; what was written once is remembered.

    room: tokens that the model has positions for, None where it has no bound.
    """

    def __init__(self, tokenizer: Any, kind: str, room: int | None, what: str, segments: bool):
        self.tokenizer, self.kind, self.room, self.what, self.segments = tokenizer, kind, room, what, segments
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"the tokenizer of {what} does not tell where its tokens stand: its folder needs a tokenizer.json"
            )
        self.done: dict[tuple[Any, ...], Row] = {}

    def row(self, inputs: Passages, i: int, soft: int, taken: int) -> Row:
        """The i-th passage with so many soft tokens; taken: positions that a prefix needs."""
        item = inputs.items[i]
        response = inputs.response(i)
        key = (item.key, inputs.shown(i), item.cut, soft, taken, response, inputs.responses is None, inputs.after)
        if (found := self.done.get(key)) is None:
            if len(self.done) > 200_000:
                self.done.clear()
            found = self.done[key] = self._write(inputs, i, soft, taken)
        return found

    def _write(self, inputs: Passages, i: int, soft: int, taken: int) -> Row:
        item, tokenizer = inputs.items[i], self.tokenizer
        text, spans, holes, mask, seam = "", list[tuple[int, int, str]](), list[tuple[int, int]](), -1, -1
        chat, after_hole, ended = False, False, False
        for piece in inputs.shown(i):
            if ended and piece.kind == "field":
                raise ValueError(
                    f"the template has the field {piece.text!r} after {{mask}}, and {self.what} reads from left to "
                    "right: put {mask} at the end"
                )
            if ended:
                continue
            if piece.kind == "words":
                lone = after_hole and piece.text.startswith(" ") and (not text or text[-1].isspace())
                text += piece.text[1:] if lone else piece.text
            elif piece.kind == "tokens":
                holes.append((len(text), piece.n))
            elif piece.kind == "mask":
                mask = len(text)
                ended = self.kind == "causal"
                text += {"encoder": tokenizer.mask_token or "", "seq2seq": SENTINEL, "causal": ""}[self.kind]
                if self.kind == "encoder" and not tokenizer.mask_token:
                    raise ValueError(
                        f"the tokenizer of {self.what} has no mask token, so the template can't have {{mask}}"
                    )
            elif piece.kind == "sep":
                text, seam = self._seam(text)
            else:
                if piece.text not in item.fields:
                    raise ValueError(
                        f"the template has {{{piece.text}}}, but the text {item.name!r} has the fields "
                        f"{', '.join(item.fields)}"
                    )
                value, inside = item.fields[piece.text], [(0, len(item.fields[piece.text]))]
                if piece.text == "messages":
                    chat, (value, inside) = True, self._said(value)
                spans += [(len(text) + begin, len(text) + end, piece.text) for begin, end in inside]
                text += value
            after_hole = piece.kind == "tokens"
        space = text[len(text.rstrip(" \n\t")) :]  # what stands before an answer
        if self.kind == "causal":
            text = text.rstrip(" ")  # the answer brings its space along
        if mask < 0 and not chat:
            space = space or " "
        return self._rows(inputs, i, text, spans, holes, mask, seam, soft, taken, space, chat)

    def _seam(self, text: str) -> tuple[str, int]:
        if self.kind != "encoder" or not self.tokenizer.sep_token:
            return text.rstrip() + "\n", -1
        twice = "roberta" in type(self.tokenizer).__name__.lower() or self.tokenizer.sep_token == "</s>"
        text = text.rstrip() + self.tokenizer.sep_token * (2 if twice else 1)
        return text, len(text)

    def _said(self, messages: str) -> tuple[str, list[tuple[int, int]]]:
        """A conversation as the tokenizer's own chat template writes it, up to where the answer begins.

        And where in it each message stands, which may be cut; what the template adds may not.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            raise ValueError(
                f"the tokenizer of {self.what} has no chat template, so it can't read messages: take the tokenizer of "
                "an instruction-tuned model, or rows with a prompt and a response"
            )
        told, found, at = json.loads(messages), list[tuple[int, int]](), 0
        text = self.tokenizer.apply_chat_template(told, tokenize=False, add_generation_prompt=True)
        for content in (message["content"].strip() for message in told):
            if (begin := text.find(content, at)) >= 0:
                at = begin + len(content)
                found.append((begin, at))
        return text, found or [(0, len(text))]

    def _rows(self, inputs: Passages, i: int, text: str, spans: list[tuple[int, int, str]],
              holes: list[tuple[int, int]], mask: int, seam: int, soft: int, taken: int, space: str,
              chat: bool) -> Row:  # fmt: skip
        item, tokenizer = inputs.items[i], self.tokenizer
        made = tokenizer(
            text,
            add_special_tokens=not (chat or inputs.after),
            return_offsets_mapping=True,
            truncation=False,
            verbose=False,
        )
        ids, places = list(made["input_ids"]), [tuple(place) for place in made["offset_mapping"]]
        own = [number is not None for number in made.sequence_ids(0)]
        if self.kind == "causal" and not own[-1] and own.count(True):  # no end of text before the answer
            while not own[-1]:
                ids, places, own = ids[:-1], places[:-1], own[:-1]
        if not any(own):
            raise ValueError(f"the text {item.name!r} is empty; leave it out, or give it a text")
        given = inputs.response(i)
        answer = [] if given is None else self.spelled([given], space)[0]
        if given is not None and inputs.responses is None and tokenizer.eos_token_id is not None:
            answer = [*answer, tokenizer.eos_token_id]
        total = sum(n for _, n in holes)
        if holes and soft and total != soft:
            raise ValueError(
                f"the template has places for {total} soft tokens, but the method brings {soft}: set "
                "method.n_tokens, or leave the places out, for all before the text"
            )
        whole = taken + soft + len(ids)
        most = None if self.room is None or self.kind != "causal" else max(self.room // 2, self.room - whole)
        short = most is not None and len(answer) > most
        answer = answer[:most]
        before = taken + soft + (len(answer) if self.kind == "causal" else 0)
        keep, cut = self._shortened(item.name, ids, places, own, spans, before, item.cut)
        ids, places, own = [ids[k] for k in keep], [places[k] for k in keep], [own[k] for k in keep]
        front = own.index(True)

        def place(char: int) -> int:
            """How many tokens stand before a character; one that begins with the space before it stands behind."""
            ends = [(begin, end) for at, (begin, end) in enumerate(places) if own[at] and end > begin]
            return front + sum(end <= char or bool(text[begin:char].strip()) for begin, end in ends)

        wanted = [(0, soft)] if soft and not holes else [(place(char), n) for char, n in holes if soft]
        new, where, source = list[int](), list[int](), list[int]()
        for k in range(len(ids) + 1):
            for at, n in wanted:
                if at == k:
                    where += range(len(new), len(new) + n)
                    new += [ids[0]] * n
            if k < len(ids):
                source.append(len(new))
                new.append(ids[k])
        types = [0] * len(new)
        if seam >= 0 and self.segments:
            types = [int(k >= source[min(place(seam), len(source) - 1)]) for k in range(len(new))]
        found = -1
        if mask >= 0 and self.kind != "causal":
            found = source[next(k for k, (begin, end) in enumerate(places) if own[k] and begin <= mask < end)]
        words = []
        if item.tags is not None:
            words = self._words(item.fields["words"], spans, places, own, source)
        begin = len(new)
        if self.kind == "causal":
            new = [*new, *answer]
            types = [0] * len(new)
            found = begin - 1
        return Row(new, where, types, found, answer, begin, words, cut or short)

    def _words(self, text: str, spans: list[tuple[int, int, str]], places: list[Any], own: list[bool],
               source: list[int]) -> list[int]:  # fmt: skip
        start = next((begin for begin, _, name in spans if name == "words"), None)
        if start is None:
            raise ValueError("the template does not show the field {words}, whose words are to be classified")
        last = max(source[k] for k in range(len(places)) if own[k])
        found, at = list[int](), start
        for word in text.split(" "):
            found.append(next((source[k] for k, (b, e) in enumerate(places) if own[k] and b <= at < e), last))
            at += len(word) + 1
        return found

    def _shortened(self, name: str, ids: list[int], places: list[Any], own: list[bool],
                   spans: list[tuple[int, int, str]], before: int, end: str) -> tuple[list[int], bool]:  # fmt: skip
        """Which tokens stay: those of the longest field are cut where it is said, until the row fits."""
        keep = list(range(len(ids)))
        if self.room is None or len(ids) + before <= self.room:
            return keep, False
        inside = [
            [k for k, (b, e) in enumerate(places) if own[k] and e > b and begin <= b and e <= stop]
            for begin, stop, _ in spans
        ]
        over = len(ids) + before - self.room
        if over > sum(len(tokens) for tokens in inside) - 1:
            raise ValueError(
                f"the text {name!r} can't be made to fit: {self.what} has {self.room} positions, and the prompt, the "
                f"template and the response alone take {before + len(ids) - sum(map(len, inside))}"
            )
        gone = set[int]()
        for _ in range(over):
            longest = max(inside, key=len)
            gone.add(longest.pop(-1 if end == "end" else 0))
        return [k for k in keep if k not in gone], True

    def begun(self, text: str, after: bool = False) -> list[int]:
        """The tokens of a text that something follows; after: it follows something itself, so nothing begins it."""
        made = self.tokenizer(text, add_special_tokens=not after, verbose=False)
        own = [number is not None for number in made.sequence_ids(0)]
        return made["input_ids"][: len(own) - own[::-1].index(True)] if any(own) else []

    def spelled(self, words: list[str], space: str | None = None) -> list[list[int]]:
        """The tokens of answers as they follow a text; space: what stands between the two (default: a space)."""
        # where nothing stands between them a line's end does, for no token goes over it
        before = {"seq2seq": "", "encoder": "a "}.get(self.kind, "a " if space is None else f"a{space or LINE}")
        encode = lambda text: self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]  # noqa: E731
        known = encode(before.rstrip(" ")) if before else []
        whole = [encode(before + word) for word in words]
        found = [ids[len(known) :] if ids[: len(known)] == known else encode(word)
                 for word, ids in zip(words, whole, strict=True)]  # fmt: skip
        if empty := [word for word, ids in zip(words, found, strict=True) if not ids]:
            raise ValueError(f"the answer {empty[0]!r} has no tokens for {self.what}")
        return found
