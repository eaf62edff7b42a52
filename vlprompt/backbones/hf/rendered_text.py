"""A filled-in template with character offsets, and its tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


@dataclass
class RenderedText:
    """A template filled in, as a string with character offsets."""

    text: str = ""
    field_spans: list[tuple[int, int, str]] = field(default_factory=list)  # start, stop, field: may be truncated
    soft_token_offsets: list[tuple[int, int]] = field(default_factory=list)  # offset, number of soft tokens
    mask_offset: int = -1
    separator_offset: int = -1
    is_chat: bool = False
    answer_space: str = ""

    def append_words(self, words: str, follows_soft_tokens: bool) -> None:
        # soft tokens between two spaces leave one of them
        is_doubled = follows_soft_tokens and words.startswith(" ") and (not self.text or self.text[-1].isspace())
        self.text += words[1:] if is_doubled else words

    def append_field(self, name: str, value: str, spans: Sequence[tuple[int, int]]) -> None:
        start = len(self.text)
        self.field_spans += [(start + begin, start + end, name) for begin, end in spans]
        self.text += value


@dataclass(frozen=True)
class EncodedText:
    """The tokens of a rendered text, with their character offsets; special tokens are not text."""

    text: str
    ids: list[int]
    offsets: list[tuple[int, int]]
    is_text: list[bool]

    def select(self, indices: Sequence[int]) -> "EncodedText":
        return EncodedText(
            self.text,
            [self.ids[k] for k in indices],
            [self.offsets[k] for k in indices],
            [self.is_text[k] for k in indices],
        )

    def count_before(self, offset: int) -> int:
        """Count the tokens before a character; a token that starts with the space before it is behind it."""
        spans = [(start, end) for k, (start, end) in enumerate(self.offsets) if self.is_text[k] and end > start]
        n_special = self.is_text.index(True)
        return n_special + sum(end <= offset or bool(self.text[start:offset].strip()) for start, end in spans)

    def tokens_at(self, offset: int) -> Iterator[int]:
        """Iterate over the tokens that contain a character."""
        return (k for k, (start, end) in enumerate(self.offsets) if self.is_text[k] and start <= offset < end)

    def tokens_within(self, start: int, stop: int) -> list[int]:
        return [
            k
            for k, (begin, end) in enumerate(self.offsets)
            if self.is_text[k] and end > begin and start <= begin and end <= stop
        ]
