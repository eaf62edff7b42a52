"""Extract answers from the text that a language model wrote."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

NUMBER_PATTERN = r"-?\d+(?:,\d{3})*(?:\.\d+)?"


def find_class(text: str, label_words: Sequence[Sequence[str]]) -> int | None:
    """Find the class whose label word is the last whole word of a text, ignoring case; longer words win ties.

    Args:
        text: what was generated.
        label_words: the words of each class.

    Returns:
        The index of the class, None if no label word occurs.
    """
    candidates = list[tuple[int, int, int]]()
    for c, words in enumerate(label_words):
        for word in words:
            ends = [match.end() for match in re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE)]
            candidates += [(max(ends), len(word), c)] if ends else []
    return max(candidates)[2] if candidates else None


def compile_answer_pattern(pattern: str) -> re.Pattern[str]:
    """Compile `method.answer_pattern`; ValueError if it is no regular expression."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"method.answer_pattern: expected a regular expression, got {pattern!r} ({error}). Correct the pattern."
        ) from error


def find_answer(text: str, pattern: str | None = None) -> str | None:
    """Find the answer in a generated text.

    Args:
        text: what was generated.
        pattern: a regular expression whose last match is the answer (its first group, if it has one). By default the
            answer follows the last "answer is": a number, else the rest of the sentence. Without these words it is the
            last number. Numbers lose their commas.

    Returns:
        The answer, None if there is none.

    Raises:
        ValueError: if the pattern is no regular expression.
    """
    if pattern is not None:
        matches = list(compile_answer_pattern(pattern).finditer(text))
        return (matches[-1][1] if matches[-1].re.groups else matches[-1][0]) if matches else None
    parts = re.split(r"\banswer is\b:?", text, flags=re.IGNORECASE)
    if len(parts) > 1:
        if number := re.match(rf"[\s$€£(]*({NUMBER_PATTERN})", parts[-1]):
            return number[1].replace(",", "")
        sentence = re.split(r"\n|\.(?:\s|$)", parts[-1].strip())[0].strip()
        return sentence or None
    numbers = re.findall(NUMBER_PATTERN, text)
    return numbers[-1].replace(",", "") if numbers else None


def majority_vote(answers: Sequence[Any], default: Any) -> Any:
    """Return the most frequent answer that is not None, the first of a tie; `default` without any."""
    counts = Counter(answer for answer in answers if answer is not None)
    return max(counts, key=lambda answer: counts[answer], default=default)
