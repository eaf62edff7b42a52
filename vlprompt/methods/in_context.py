"""Learning in context: Brown et al., NeurIPS 2020, arXiv:2005.14165.

The paper is "Language Models are Few-Shot Learners". Training texts with their answers stand in front of a text, and
the choice that a frozen language model finds likeliest after it is the answer. Nothing is trained. Contextual
calibration: Zhao et al., ICML 2021, arXiv:2102.09690; demonstrations near the text: Liu et al., DeeLIO 2022,
arXiv:2101.06804. Sites: none; a causal model encodes what all texts share once, as keys and values of every layer.

Differs from the papers in: a text and what stands before it are tokenised apart; a class with several words scores
their mean; calibrated probabilities are normalised by their sum, theirs by a softmax (the same ranking); neighbours are
found by the model's own feature, where Liu et al. take another encoder, and the nearest stands last.

Expected (GPT-3 175B, 32-shot SuperGLUE test, Table 3.8): BoolQ 76.4, CB 75.6, COPA 92.0, RTE 69.0, WiC 49.4, WSC 80.1.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from vlprompt.core.class_names import Names
from vlprompt.core.method import Output
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.texts import TextBatch, TextItem, parse_template
from vlprompt.core.towers import LanguageTower
from vlprompt.layers.verbalizers import find_label_words, score_answers
from vlprompt.methods._demonstration_items import decode_items, sample_demonstrations
from vlprompt.methods._demonstration_method import DemonstrationMethod
from vlprompt.methods._demonstrations import Demonstrations, Preamble

CONTENT_FREE_TEXTS = ("N/A", "", "[MASK]")  # texts without content, whose answers a model should find equally likely


class InContext(DemonstrationMethod):
    """A frozen language model with demonstrations in front of each text.

    Args:
        lm: frozen language model.
        shots: number of demonstrations from the training texts (0: none).
        template: how a text is rendered, with {mask} at the answer; default the dataset's.
        instruction: text in front of everything.
        separator: text between all parts.
        score: of a choice: "sum" or "mean" of its tokens' log-probabilities, or "calibrated" by content-free texts.
        demonstration_selection: "random", "balanced" over the classes, or "retrieved": nearest to each text, for which
            all training texts are stored.
        label_words: class -> words; default the dataset's, else the class name.
    """

    def __init__(
        self,
        lm: LanguageTower,
        shots: int = 4,
        template: str | None = None,
        instruction: str = "",
        separator: str = "\n\n",
        score: Literal["sum", "mean", "calibrated"] = "sum",
        demonstration_selection: Literal["random", "balanced", "retrieved"] = "random",
        label_words: dict[str, list[str]] | None = None,
    ):
        super().__init__()
        self.lm, self.shots, self.template, self.label_words = lm, shots, template, label_words
        self.instruction, self.separator = instruction, separator
        self.score: Literal["sum", "mean", "calibrated"] = score
        self.demonstration_selection: Literal["random", "balanced", "retrieved"] = demonstration_selection

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.require_at_least(shots=0)
        train = lesson.train
        if any(item.tags is not None for item in train.items):
            raise ValueError(
                "in_context: expected texts with one answer each, got one label per word. Use a method with "
                "method.head=tags."
            )
        first_words = [words[0] for words in find_label_words(train.names, self.label_words)]
        chosen: Iterable[int] = range(len(train) if self.shots else 0)
        if len(train) and self.demonstration_selection != "retrieved":
            chosen = sample_demonstrations(train.labels, self.shots, self.demonstration_selection, generator)
        earlier = decode_items(self.encoded_demonstrations) if lesson.index else ()
        items = [(train.items[k], first_words[train.labels[k]]) for k in chosen]
        self.store_items([*earlier, *(replace(item, response=item.response or word) for item, word in items)])

    def precompute(self, names: Names) -> list[list[str]]:
        """Return the words of each class; ValueError if two classes share a word."""
        owners, label_words = dict[str, str](), find_label_words(names, self.label_words)
        for name, words in zip(names, label_words, strict=True):
            for word in words:
                if owners.setdefault(word, str(name)) != str(name):
                    raise ValueError(
                        f"method.label_words: expected different words for the classes {owners[word]!r} and "
                        f"{str(name)!r}, got {word!r} for both. Give them other words by method.label_words."
                    )
        return label_words

    def prepare(self, names: Names, fixed: list[list[str]]) -> tuple[Demonstrations, list[list[str]]]:
        n_nearest = self.shots if self.demonstration_selection == "retrieved" else 0
        return self.build_demonstrations(self.template, n_nearest), fixed

    @torch.no_grad()
    def forward(self, inputs: TextBatch, prepared: tuple[Demonstrations, list[list[str]]]) -> Output:
        """Score the classes (B, C); of free-form answers return the logits of the response tokens."""
        demonstrations, label_words = prepared
        if len(inputs) and inputs.items[0].response is not None:
            return self._response_logits(inputs, demonstrations)
        scores = torch.empty(len(inputs), len(label_words))
        for preamble, indices in demonstrations.iter_groups(inputs):
            scores[indices] = self._score_classes(inputs.select(indices), preamble, label_words).cpu()
        return Output(scores)

    def _response_logits(self, inputs: TextBatch, demonstrations: Demonstrations) -> Output:
        logits, targets = [torch.empty(0)] * len(inputs), [list[int]()] * len(inputs)
        for preamble, indices in demonstrations.iter_groups(inputs):
            texts = preamble.prepend_to(inputs.select(indices), self.template)
            token_ids = self.lm.response_tokens(texts, preamble.prompt)
            rows = self.lm.vocabulary_logits(self.lm(texts, preamble.prompt, output="response")).float()
            parts = rows.split([len(ids) for ids in token_ids])
            for i, part, ids in zip(indices, parts, token_ids, strict=True):
                logits[i], targets[i] = part, ids
        return Output(torch.cat(logits), targets=torch.tensor([k for ids in targets for k in ids]))

    def _score_classes(self, inputs: TextBatch, preamble: Preamble, label_words: list[list[str]]) -> Tensor:
        """Score the classes (B, C) of texts that share one template."""
        texts = preamble.prepend_to(inputs, self.template)
        scores = self._class_log_probabilities(texts, preamble.prompt, label_words)
        if self.score != "calibrated":
            return scores
        template = self.template or inputs.items[0].template
        fields = [piece.text for piece in parse_template(template) if piece.kind == "field"]
        items = tuple(
            TextItem(f"without content/{t}", dict.fromkeys(fields, t), template, template) for t in CONTENT_FREE_TEXTS
        )
        prior = self._class_log_probabilities(preamble.prepend_to(TextBatch(items)), preamble.prompt, label_words)
        return scores.log_softmax(1) - prior.softmax(1).mean(0).log()

    def _class_log_probabilities(self, inputs: TextBatch, prompt: Prompt, label_words: list[list[str]]) -> Tensor:
        flat = [word for words in label_words for word in words]
        scores = score_answers(self.lm, inputs, prompt, flat, self.score == "mean").split(
            list(map(len, label_words)), 1
        )
        return torch.stack([part.mean(1) for part in scores], 1)

    def generate(self, inputs: TextBatch, **settings: object) -> list[str]:
        """Generate a continuation of each text, up to where another demonstration would begin."""
        texts = [""] * len(inputs)
        for preamble, indices in self.prepare((), [])[0].iter_groups(inputs):
            batch = preamble.prepend_to(inputs.select(indices), self.template)
            for i, text in zip(indices, self.lm.generate(batch, preamble.prompt, **settings), strict=True):
                texts[i] = self.cut_at_separator(text).strip()
        return texts
