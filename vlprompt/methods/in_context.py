"""Learning in context: Brown et al., NeurIPS 2020, arXiv:2005.14165.

The paper is "Language Models are Few-Shot Learners". Training texts with their answers stand before a text, and the
choice that a frozen language model finds likeliest behind it is the answer. Nothing is trained. Contextual calibration:
Zhao et al., ICML 2021, arXiv:2102.09690; demonstrations near the text: Liu et al., DeeLIO 2022, arXiv:2101.06804.
Sites: none; a causal model reads what all texts share once, and has it as keys and values of every layer.

Differs from the papers in: a text and what stands before it are tokenised apart; a class with several words scores
their mean; calibrated probabilities are normalised by their sum, theirs by a softmax (the same ranking); neighbours are
found by the model's own feature, where Liu et al. take another encoder, and the nearest stands last.

Expected (GPT-3 175B, SuperGLUE test, 32 demonstrations, Table 3.8 of Brown et al.): BoolQ 76.4, CB 75.6, COPA 92.0, RTE
69.0, WiC 49.4, WSC 80.1.
"""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from vlprompt.core.class_names import Names
from vlprompt.core.method import Method, Output
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.texts import Passage, Passages, pieces
from vlprompt.core.towers import LanguageTower
from vlprompt.layers.verbalizers import likely, verbalized
from vlprompt.methods._demonstrations import Before, Demonstrations, as_bytes, drawn, from_bytes

EMPTY = ("N/A", "", "[MASK]")  # texts without content, whose answers a model should find equally likely


class InContext(Method):
    """A frozen language model that is shown demonstrations.

    shots: how many in all (0: none), drawn from the training texts; template: how a text is shown, with {mask} where
    the answer stands (default: the dataset's); instruction: before everything, and separator between all parts; score:
    of a choice, the "sum" or the "mean" of its tokens' log-probabilities, or "calibrated" by what is said of texts
    without content; demonstrations: "random", "balanced" over the classes, or "retrieved": those nearest to each text,
    for which all training texts are kept; words: class -> words (default: the dataset's, else the class's name).
    """

    kept: Tensor

    def __init__(
        self,
        lm: LanguageTower,
        shots: int = 4,
        template: str | None = None,
        instruction: str = "",
        separator: str = "\n\n",
        score: Literal["sum", "mean", "calibrated"] = "sum",
        demonstrations: Literal["random", "balanced", "retrieved"] = "random",
        words: dict[str, list[str]] | None = None,
    ):
        super().__init__()
        self.lm, self.shots, self.template, self.words = lm, shots, template, words
        self.instruction, self.separator = instruction, separator
        self.score: Literal["sum", "mean", "calibrated"] = score
        self.demonstrations: Literal["random", "balanced", "retrieved"] = demonstrations
        self.made: Demonstrations | None = None  # what was read is not read again to write

    def begin(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.at_least(shots=0)
        train, said = lesson.train, [words[0] for words in verbalized(lesson.train.names, self.words)]
        if any(item.tags is not None for item in train.items):
            raise ValueError("words of a text are not classified in context: take a method with method.reader=tags")
        chosen = range(len(train) if self.shots else 0)
        if len(train) and self.demonstrations != "retrieved":
            chosen = drawn(train.labels, self.shots, self.demonstrations, generator)
        known = from_bytes(self.kept) if lesson.index else ()
        new = [replace(train.items[k], response=train.items[k].response or said[train.labels[k]]) for k in chosen]
        self.made = None
        self.register_buffer("kept", as_bytes([*known, *new]))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *how: Any, **more: Any) -> None:
        """The number of bytes is what the state says."""
        if (saved := state_dict.get(f"{prefix}kept")) is not None:
            self.kept, self.made = self.kept.new_empty(saved.shape), None
        super()._load_from_state_dict(state_dict, prefix, *how, **more)

    def fixed(self, names: Names) -> list[list[str]]:
        """The words of each class; ValueError where two say the same."""
        owner = dict[str, str]()
        for name, words in zip(names, said := verbalized(names, self.words), strict=True):
            for word in words:
                if owner.setdefault(word, str(name)) != str(name):
                    raise ValueError(f"the classes {owner[word]!r} and {str(name)!r} are both said as {word!r}: give "
                                     "them other words by method.words")  # fmt: skip
        return said

    @torch.no_grad()
    def prepare(self, names: Names, fixed: list[list[str]]) -> tuple[Demonstrations, list[list[str]]]:
        if self.made is None:
            shown = from_bytes(self.kept)
            if len(shown) < self.shots:
                raise ValueError(
                    f"method.shots={self.shots}, and there are {len(shown)} training texts to show: take fewer shots, "
                    "or a dataset with more"
                )
            near = self.shots if self.demonstrations == "retrieved" else 0
            self.made = Demonstrations(self.lm, shown, self.template, self.instruction, self.separator, near)
        return self.made, fixed

    @torch.no_grad()
    def forward(self, inputs: Passages, prepared: tuple[Demonstrations, list[list[str]]]) -> Output:
        """Scores of the classes (B, C); of texts that are answered by text the logits of their responses' tokens."""
        before, words = prepared
        groups = before.groups(inputs)
        if len(inputs) and inputs.items[0].response is not None:
            found, right = [torch.empty(0)] * len(inputs), [list[int]()] * len(inputs)
            for what, places in groups:
                asked = what.shown(inputs.some(places), self.template)
                targets = self.lm.targets(asked, what.prompt)
                logits = self.lm.vocabulary(self.lm(asked, what.prompt, read="response")).float()
                for i, some, ids in zip(places, logits.split([len(ids) for ids in targets]), targets, strict=True):
                    found[i], right[i] = some, ids
            return Output(torch.cat(found), target=torch.tensor([k for ids in right for k in ids]))
        scores = torch.empty(len(inputs), len(words))
        for what, places in groups:
            scores[places] = self._scores(inputs.some(places), what, words).cpu()
        return Output(scores)

    def _scores(self, inputs: Passages, what: Before, words: list[list[str]]) -> Tensor:
        """(B, C); the passages are shown by one template."""
        found = self._likely(what.shown(inputs, self.template), what.prompt, words)
        if self.score != "calibrated":
            return found
        template = self.template or inputs.items[0].template
        names = [piece.text for piece in pieces(template) if piece.kind == "field"]
        free = [Passage(f"without content/{text}", dict.fromkeys(names, text), template, template) for text in EMPTY]
        empty = self._likely(what.shown(Passages(tuple(free))), what.prompt, words)
        return found.log_softmax(1) - empty.softmax(1).mean(0).log()

    def _likely(self, inputs: Passages, prompt: Prompt, words: list[list[str]]) -> Tensor:
        every = likely(self.lm, inputs, prompt, [word for some in words for word in some], self.score == "mean")
        return torch.stack([some.mean(1) for some in every.split([len(some) for some in words], 1)], 1)

    def write(self, inputs: Passages, **settings: Any) -> list[str]:
        """What the model writes behind each text, up to where it would begin another demonstration."""
        texts = [""] * len(inputs)
        for what, places in self.prepare((), [])[0].groups(inputs):
            made = self.lm.generate(what.shown(inputs.some(places), self.template), what.prompt, **settings)
            for i, text in zip(places, made, strict=True):
                texts[i] = (text.split(self.separator)[0] if self.separator else text).strip()
        return texts
