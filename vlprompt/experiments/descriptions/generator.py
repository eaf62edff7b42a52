"""Ask a language model to describe classes, class by class, into a file that a stopped command goes on with."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlprompt.core.class_names import class_ids
from vlprompt.core.texts import TextBatch, TextItem
from vlprompt.core.towers import LanguageTower
from vlprompt.experiments.descriptions.random_texts import draw_random_descriptors
from vlprompt.experiments.descriptions.styles import StyleName, fill_questions, parse_answers
from vlprompt.layers.class_descriptions import RANDOM_STYLE, load_descriptions, normalize_name
from vlprompt.results.atomic_files import write_json
from vlprompt.runtime.seeding import derive_seed

OnClass = Callable[[str, int, bool], None]  # name, number of texts, whether they were there before


@dataclass(frozen=True)
class Sampling:
    """How a language model is asked.

    Args:
        questions: texts with {name}.
        n_samples: answers to each question.
        temperature: of sampling; 0 for the likeliest answer, which is one.
        max_new_tokens: of an answer.
        seed: of the draw; each class and question has numbers of its own.
    """

    questions: tuple[str, ...]
    n_samples: int
    temperature: float
    max_new_tokens: int
    seed: int

    def validate(self) -> None:
        """Raise ValueError for values out of their range."""
        for option, value, least in (
            ("samples", self.n_samples, 1),
            ("temperature", self.temperature, 0),
            ("max-new-tokens", self.max_new_tokens, 1),
        ):
            if not value >= least:
                raise ValueError(f"--{option}: expected {least} or more, got {value}. Set --{option} {least} or more.")
        if self.temperature == 0 and self.n_samples > 1:
            raise ValueError(
                f"--temperature: expected more than 0 for different answers, got 0 with {self.n_samples} answers to "
                "each question. Set --samples 1, or --temperature 1."
            )


class DescriptionFile:
    """A file of descriptions that grows class by class.

    Args:
        path: of the file.
        names: all classes.
        template: of the sentences, None for texts that are sentences.
        generator: how texts are made; a file made otherwise is refused.

    Raises:
        ValueError: for a file that is there and was made otherwise, or for other classes.
    """

    def __init__(self, path: Path, names: Sequence[str], template: str | None, generator: Mapping[str, Any]):
        self.path, self.template, self.generator = path, template, generator
        self.keys = _choose_keys(names)
        self.texts = dict[str, list[str]]()
        if path.exists():
            self._read()

    def _read(self) -> None:
        load_descriptions(self.path)  # its errors
        try:
            content: Any = json.loads(self.path.read_text("utf-8"))
        except json.JSONDecodeError:
            content = None  # YAML, which this command does not write
        own = content.get("generator") if isinstance(content, dict) else None
        if not isinstance(own, dict):
            raise ValueError(
                f"--out: expected a new file, or one that vlprompt describe wrote, got {str(self.path)!r}, which has "
                "no settings. Name another."
            )
        plain, own = json.loads(json.dumps([{**self.generator, "template": self.template}, own]))
        own["template"] = content.get("template")
        if changed := [key for key in dict.fromkeys((*plain, *own)) if plain.get(key) != own.get(key)]:
            key = changed[0]
            raise ValueError(
                f"--out: expected a file made with {key} {json.dumps(plain.get(key))}, got {str(self.path)!r}, made "
                f"with {json.dumps(own.get(key))}. Name another file, or remove it."
            )
        if others := [key for key in content["descriptions"] if key not in self.keys]:
            raise ValueError(
                f"--out: expected a file of classes such as {self.keys[0]!r}, got {str(self.path)!r}, which has "
                f"{others[0]!r}. Name another file."
            )
        self.texts = dict(content["descriptions"])

    def write(self, key: str, texts: list[str]) -> None:
        """Add the texts of a class, in the order of all classes, and write the file completely or not at all."""
        self.texts[key] = texts
        ordered = {name: self.texts[name] for name in self.keys if name in self.texts}
        content = {"template": self.template, "descriptions": ordered, "generator": dict(self.generator)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, content)


def _choose_keys(names: Sequence[str]) -> list[str]:
    """Return the key of each class: its name, or its id where two classes share a name."""
    shown = [normalize_name(name) for name in names]
    return [
        i if shown.count(text) > 1 else str(name) for i, name, text in zip(class_ids(names), names, shown, strict=True)
    ]


def describe_model(lm: LanguageTower, name: str, style: StyleName, sampling: Sampling) -> dict[str, Any]:
    """Return how a language model is asked, as the file says it."""
    return {
        "style": style,
        "model": name,
        "model_key": lm.key.rpartition("#")[2],
        "chat_template": has_chat_template(lm),
        "questions": list(sampling.questions),
        "samples": sampling.n_samples,
        "temperature": sampling.temperature,
        "max_new_tokens": sampling.max_new_tokens,
        "seed": sampling.seed,
    }


def has_chat_template(lm: LanguageTower) -> bool:
    """Whether a language model is asked by messages, as instruction-tuned ones are."""
    return bool(getattr(getattr(lm, "tokenizer", None), "chat_template", None))


def write_model_descriptions(
    file: DescriptionFile,
    names: Sequence[str],
    lm: LanguageTower,
    style: StyleName,
    sampling: Sampling,
    on_class: OnClass,
) -> None:
    """Ask about each class that the file does not have.

    Raises:
        ValueError: for a class about which all answers are empty; the file has the classes before it.
    """
    for key, name in zip(file.keys, names, strict=True):
        is_there = key in file.texts
        if not is_there:
            texts = parse_answers(style, ask(lm, name, key, sampling))
            if not texts:
                n = len(sampling.questions) * sampling.n_samples
                raise ValueError(
                    f"describe: expected a text about {key!r}, got {n} empty answers of {lm.spec}. Take another --seed "
                    "or model, or write this class into the file by hand and give the same command again."
                )
            file.write(key, texts)
        on_class(key, len(file.texts[key]), is_there)


def ask(lm: LanguageTower, name: str, key: str, sampling: Sampling) -> list[str]:
    """Return the answers to all questions about a class; the same for a class whatever was asked before.

    Raises:
        ValueError: for a question that the model has no room for.
    """
    answers, notes = list[str](), dict(lm.notes)
    devices = [lm.device] if lm.device.type == "cuda" else []
    for question in fill_questions(sampling.questions, name):
        batch = TextBatch((_make_item(lm, question),))
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(derive_seed(sampling.seed, key, question))
            answers += lm.generate(batch, **_make_settings(sampling))
        if lm.notes != notes:  # it was cut
            raise ValueError(
                f"--question: expected a question that fits into the {lm.max_positions} positions of {lm.spec} with "
                f"its answer, got {question!r}. Ask a shorter one by --question, or set fewer --max-new-tokens."
            )
    return answers


def _make_settings(sampling: Sampling) -> dict[str, Any]:
    settings: dict[str, Any] = {"max_new_tokens": sampling.max_new_tokens}
    if sampling.temperature == 0:
        return settings
    sampled = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
    return {**settings, **sampled, "num_return_sequences": sampling.n_samples}


def _make_item(lm: LanguageTower, question: str) -> TextItem:
    if has_chat_template(lm):
        messages = json.dumps([{"role": "user", "content": question}])
        return TextItem(question, {"messages": messages}, "{messages}", "{messages}")
    return TextItem(question, {"question": question}, "{question}", "{question}")


def write_random_descriptions(file: DescriptionFile, names: Sequence[str], n_pairs: int, seed: int) -> list[str]:
    """Write one set of random descriptors for all classes, and return it."""
    descriptors = draw_random_descriptors(names, n_pairs, seed)
    file.texts = dict.fromkeys(file.keys[1:], descriptors)
    file.write(file.keys[0], descriptors)
    return descriptors


def describe_chance(n_pairs: int, seed: int) -> dict[str, Any]:
    """Return how random descriptors are drawn, as the file says it."""
    return {"style": RANDOM_STYLE, "samples": n_pairs, "seed": seed}
