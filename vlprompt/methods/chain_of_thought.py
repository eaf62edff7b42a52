"""Chain of thought: Wei et al., NeurIPS 2022, arXiv:2201.11903; without demonstrations Kojima et al., arXiv:2205.11916.

The model writes how it comes to its answer before it gives one, as the demonstrations do; without any a trigger makes
it, and a second pass asks for the answer. Self-consistency: Wang et al., ICLR 2023, arXiv:2203.11171, the answer that
most of several sampled ways end in. Nothing is trained. Sites: none; a causal model reads the demonstrations once.

Differs from the papers in: the last class that is named counts, where Kojima et al. take the first of the second pass;
a vote among answers that came equally often is for the first of them; a text samples from a seed of its own.

Expected (GSM8K): PaLM 540B with 8 demonstrations 56.9, without a chain 17.9 (Wei et al., Table 2), with 40 samples 74.4
(Wang et al., Table 2); text-davinci-002 without demonstrations 40.7 (Kojima et al., Table 1).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.core.class_names import Names
from vlprompt.core.method import Method, Output
from vlprompt.core.stage import Lesson
from vlprompt.core.texts import Passage, Passages
from vlprompt.core.towers import LanguageTower
from vlprompt.layers.verbalizers import verbalized
from vlprompt.methods._answer_extraction import class_in, found_in
from vlprompt.methods._demonstrations import Demonstrations, as_bytes, drawn, escaped, examples, from_bytes
from vlprompt.runtime.seeding import number

ANSWER = " {rationale} The answer is {mask}."


class ChainOfThought(Method):
    """A frozen language model that thinks before it answers, and the answer found in what it wrote.

    shots: demonstrations drawn from training texts that have a field `rationale`; examples: demonstrations that are
    given, each {question, rationale, answer}. With neither, `trigger` makes it think and `therefore` asks for the
    answer. template: how a question is shown (default: "Q: ...", then "A:", around the dataset's text without its
    answer); instruction, separator: as InContext; length, answer: tokens that it may write, and of the second pass;
    samples: ways that are drawn at `temperature` to vote, 1 for the likeliest words alone; pattern: what an answer in
    text looks like, its last match counts (default: what follows "answer is", else the last number); words: class ->
    words (default: the dataset's, else the class's name), of which the last that is written counts.
    """

    kept: Tensor
    seed: Tensor

    def __init__(self, lm: LanguageTower, shots: int = 0, examples: list[dict[str, str]] | None = None,
                 template: str | None = None, instruction: str = "", separator: str = "\n\n",
                 trigger: str = "Let's think step by step.", therefore: str = "Therefore, the answer is",
                 length: int = 256, answer: int = 32, samples: int = 1, temperature: float = 0.7,
                 pattern: str | None = None, words: dict[str, list[str]] | None = None):  # fmt: skip
        super().__init__()
        self.lm, self.shots, self.examples, self.template, self.words = lm, shots, examples, template, words
        self.instruction, self.separator, self.trigger, self.therefore = instruction, separator, trigger, therefore
        self.length, self.answer, self.samples, self.pattern = length, answer, samples, pattern
        self.temperature = temperature
        self.made: Demonstrations | None = None

    def begin(self, lesson: Lesson, generator: torch.Generator) -> None:
        self.at_least(shots=0, length=1, answer=1, samples=1)
        if self.lm.kind == "encoder":
            raise ValueError(f"{self.lm.spec} is an encoder, which writes nothing: take a causal model")
        found_in("", self.pattern)  # says what is wrong with it
        train, items = lesson.train, examples(self.examples or [], ANSWER)
        if len(train) and self.shots:
            good = [k for k, item in enumerate(train.items) if "rationale" in item.fields]
            if len(good) < self.shots:
                raise ValueError(f"method.shots={self.shots}, but {len(good)} of {len(train)} training texts have a "
                                 "field rationale: give method.examples, or shots=0 to think without")  # fmt: skip
            said = [words[0] for words in verbalized(train.names, self.words)]
            for k in drawn([train.labels[i] for i in good], self.shots, "random", generator):
                item, answer = train.items[good[k]], said[train.labels[good[k]]]
                shown = self._asked(item).template + ANSWER
                items.append(replace(item, template=shown, response=item.response or answer))
        self.made = None
        self.register_buffer("kept", as_bytes(items))
        self.register_buffer("seed", torch.randint(2**31, (1,), generator=generator))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *how: Any, **more: Any) -> None:
        """The number of bytes is what the state says."""
        if (saved := state_dict.get(f"{prefix}kept")) is not None:
            self.kept, self.made = self.kept.new_empty(saved.shape), None
        super()._load_from_state_dict(state_dict, prefix, *how, **more)

    def _asked(self, item: Passage) -> Passage:
        return replace(item, template=self.template or f"Q: {item.plain}\nA:", response=None, tags=None)

    def fixed(self, names: Names) -> list[list[str]]:
        return verbalized(names, self.words)

    def forward(self, inputs: Passages, prepared: list[list[str]]) -> Output:
        """The class that was found (B, C), one-hot, or zeros; of texts that are answered by text nothing: `write`."""
        if len(inputs) and inputs.items[0].response is not None:
            return Output(torch.empty(0, 1), target=torch.empty(0, dtype=torch.long))
        none, ways = len(prepared), self.thoughts(inputs)  # one more column, which is cut off
        which = torch.tensor([_voted([class_in(text, prepared) for text in some], none) for some in ways])
        return Output(F.one_hot(which, none + 1)[:, :none].float(), silent=which == none)

    def write(self, inputs: Passages, max_new_tokens: int | None = None) -> list[str]:
        """The answers that were found, "" where none was."""
        ways = self.thoughts(inputs, max_new_tokens)
        asks = "" if self._shown().items else f"{self.therefore} "
        return [_voted([found_in(asks + text, self.pattern) for text in some], "") for some in ways]

    @torch.no_grad()
    def thoughts(self, inputs: Passages, length: int | None = None) -> list[list[str]]:
        """What is written for each text, of every sample: its chain, or without demonstrations the answer after it."""
        items = tuple(map(self._asked, inputs.items))
        if not self._shown().items:
            items = tuple(replace(item, template=f"{item.template} {escaped(self.trigger)}") for item in items)
        asked, most = Passages(items), length or self.length
        if self.samples == 1:
            ways = [[text] for text in self._written(asked, max_new_tokens=most)]
        else:
            ways = [self._sampled(asked.part(i, i + 1), most) for i in range(len(items))]
        if self._shown().items:
            return ways
        again = [replace(item, fields={**item.fields, "rationale": text}, key=f"{item.key}/{text}",
                         template=f"{item.template} {{rationale}}\n{escaped(self.therefore)}")
                 for item, some in zip(items, ways, strict=True) for text in some]  # fmt: skip
        said = self._written(Passages(tuple(again)), max_new_tokens=self.answer)
        return [said[k : k + self.samples] for k in range(0, len(said), self.samples)]

    def _sampled(self, one: Passages, most: int) -> list[str]:
        with torch.random.fork_rng():
            torch.manual_seed(number(int(self.seed), one.items[0].name))
            return self._written(one, max_new_tokens=most, do_sample=True, temperature=self.temperature,
                                 num_return_sequences=self.samples)  # fmt: skip

    def _written(self, asked: Passages, **how: Any) -> list[str]:
        made = self.lm.generate((before := self._shown().base).shown(asked), before.prompt, **how)
        return [text.split(self.separator)[0] if self.separator else text for text in made]

    def _shown(self) -> Demonstrations:
        if self.made is None:
            items = from_bytes(self.kept)
            if len(items) < self.shots:
                raise ValueError(f"method.shots={self.shots}, and there are no training texts to show: take shots=0")
            self.made = Demonstrations(self.lm, items, None, self.instruction, self.separator)
        return self.made


def _voted(found: Sequence[Any], none: Any) -> Any:
    """What most say, of those that say something; the first of equally many."""
    said = Counter(one for one in found if one is not None)
    return max(said, key=lambda one: said[one], default=none)
