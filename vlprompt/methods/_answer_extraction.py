"""Answers in what a language model wrote."""

import re
from collections.abc import Sequence

NUMBER = r"-?\d+(?:,\d{3})*(?:\.\d+)?"


def class_in(text: str, words: Sequence[Sequence[str]]) -> int | None:
    """The class one of whose words is the last whole one in a text, in any case; of two that end alike the longer.

    words: of each class. None where there is none.
    """
    found = list[tuple[int, int, int]]()
    for c, some in enumerate(words):
        for word in some:
            places = [match.end() for match in re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE)]
            found += [(max(places), len(word), c)] if places else []
    return max(found)[2] if found else None


def found_in(text: str, pattern: str | None = None) -> str | None:
    """An answer in text: the last match of a pattern (its first group, if it has one); None where there is none.

    Default: what follows the last "answer is", a number or else up to the end of the sentence; without these words the
    last number. Numbers lose their commas. ValueError for a pattern that is none.
    """
    if pattern is not None:
        try:
            matches = list(re.finditer(pattern, text))
        except re.error as error:
            raise ValueError(f"method.pattern={pattern!r} is no regular expression: {error}") from error
        return (matches[-1][1] if matches[-1].re.groups else matches[-1][0]) if matches else None
    parts = re.split(r"\banswer is\b:?", text, flags=re.IGNORECASE)
    if len(parts) > 1:
        if number := re.match(rf"[\s$€£(]*({NUMBER})", parts[-1]):
            return number[1].replace(",", "")
        said = re.split(r"\n|\.(?:\s|$)", parts[-1].strip())[0].strip()
        return said or None
    numbers = re.findall(NUMBER, text)
    return numbers[-1].replace(",", "") if numbers else None
