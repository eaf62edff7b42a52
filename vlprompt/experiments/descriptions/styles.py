"""Styles of class descriptions: what a language model is asked, and how its answers become texts.

cupl: sentences, each a text of its own (Pratt et al., arXiv:2209.03320). dclip: short descriptors, which a template
puts into sentences (Menon and Vondrick, arXiv:2210.07183). The questions are not the papers', but ask for the same.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from vlprompt.core.templates import PromptTemplate
from vlprompt.layers.class_descriptions import DESCRIPTOR_TEMPLATE

StyleName = Literal["cupl", "dclip", "waffle"]
BULLET = re.compile(r"^\s*(?:[-*•]+|\d+[.)])\s*")
SENTENCE_END = re.compile(r"(?<=[.!?])\s")


@dataclass(frozen=True)
class Style:
    """What a language model is asked about a class.

    Args:
        questions: texts with {name}, one question each.
        template: of the sentences that the texts are put into; None for texts that are sentences.
        n_samples: answers to each question.
        temperature: of sampling.
    """

    questions: tuple[str, ...]
    template: str | None
    n_samples: int
    temperature: float


STYLES = {
    "cupl": Style(
        (
            "Question: What does a {name} look like in a photo? Answer in one sentence.\nAnswer:",
            "Question: By what can one recognise a {name} in a picture? Answer in one sentence.\nAnswer:",
            "Question: Which shape, colours and parts does a {name} have? Answer in one sentence.\nAnswer:",
            "Question: What would one see in a photo of a {name}? Answer in one sentence.\nAnswer:",
            "Question: What is a good caption for a picture that shows a {name}?\nAnswer:",
        ),
        None,
        10,
        0.99,
    ),
    "dclip": Style(
        (
            "Question: Which visible features tell a zebra from other things in a photo?\nAnswer:\n"
            "- black and white stripes\n- a short, upright mane\n- four legs with hooves\n\n"
            "Question: Which visible features tell a {name} from other things in a photo?\nAnswer:\n-",
        ),
        DESCRIPTOR_TEMPLATE,
        1,
        0.7,
    ),
}


def fill_questions(questions: Sequence[str], name: str) -> list[str]:
    """Return the questions about a class; ValueError for one without {name}, or with another placeholder."""
    filled = list[str]()
    for question in questions:
        parsed = PromptTemplate.parse(question)
        parsed.require_fields(f"--question {question!r}", ("name",))
        if "name" not in parsed.fields:
            raise ValueError(
                f"--question: expected a text with {{name}}, where the class stands, got {question!r}. Write for "
                'example "What does a {name} look like?".'
            )
        filled.append(parsed.fill({"name": name.replace("_", " ")}).words)
    return filled


def parse_answers(style: StyleName, answers: Iterable[str]) -> list[str]:
    """Return the texts of answers, each once: the first sentence of each, or the lines of a list."""
    parse = _parse_list if style == "dclip" else _parse_sentence
    return list(dict.fromkeys(text for answer in answers for text in parse(answer)))


def _parse_sentence(answer: str) -> list[str]:
    """Return the first sentence of the first line that is not empty; a model may go on with a question of its own."""
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    sentence = SENTENCE_END.split(BULLET.sub("", lines[0]), maxsplit=1)[0].strip() if lines else ""
    return [sentence] if any(map(str.isalnum, sentence)) else []


def _parse_list(answer: str) -> list[str]:
    """Return the lines of a list up to the first empty one, without bullets and full stops."""
    descriptors = list[str]()
    for line in answer.strip().splitlines():
        text = BULLET.sub("", line).strip().rstrip(".,;").strip()
        if not line.strip() or text.startswith("Question:"):
            break
        if any(map(str.isalnum, text)):
            descriptors.append(text)
    return descriptors
