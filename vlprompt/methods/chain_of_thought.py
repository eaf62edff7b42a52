"""Chain of thought: Wei et al., NeurIPS 2022, arXiv:2201.11903; without demonstrations Kojima et al., arXiv:2205.11916.

The model generates its reasoning before its answer, as the demonstrations do; without any a trigger sentence elicits
it, and a second pass asks for the answer. Self-consistency: Wang et al., ICLR 2023, arXiv:2203.11171, the majority
answer of several sampled chains. Nothing is trained. Sites: none; a causal model encodes the demonstrations once.

Differs from the papers in: the last class that is named counts, where Kojima et al. take the first of the second pass;
a tied vote goes to the answer that came first; a text samples from a seed of its own.

Expected (GSM8K): PaLM 540B with 8 demonstrations 56.9, without a chain 17.9 (Wei et al., Table 2), with 40 samples 74.4
(Wang et al., Table 2); text-davinci-002 without demonstrations 40.7 (Kojima et al., Table 1).
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from vlprompt.core.batch import Split
from vlprompt.core.class_names import Names
from vlprompt.core.method import Output
from vlprompt.core.stage import Lesson
from vlprompt.core.templates import escape_braces
from vlprompt.core.texts import TextBatch, TextItem
from vlprompt.core.towers import LanguageTower
from vlprompt.layers.verbalizers import find_label_words
from vlprompt.methods._answer_extraction import compile_answer_pattern, find_answer, find_class, majority_vote
from vlprompt.methods._demonstration_items import build_examples, sample_demonstrations
from vlprompt.methods._demonstration_method import DemonstrationMethod
from vlprompt.runtime.seeding import derive_seed

ANSWER_TEMPLATE = " {rationale} The answer is {mask}."


class ChainOfThought(DemonstrationMethod):
    """A frozen language model that generates reasoning, from which the answer is extracted.

    Args:
        lm: frozen language model that generates text.
        shots: demonstrations sampled from the training texts with a field `rationale`.
        examples: hand-written demonstrations, each {question, rationale, answer}.
        template: how a question is rendered; default "Q: ... A:" around the dataset's text without its answer.
        instruction, separator: text in front of everything, and between all parts.
        reasoning_trigger, answer_trigger: what elicits reasoning and asks for the answer without demonstrations.
        max_new_tokens, max_answer_tokens: tokens of a chain, and of the second pass.
        n_samples, temperature: chains sampled for the majority vote; 1 for greedy decoding.
        answer_pattern: regular expression of an answer in free text (see `find_answer`).
        label_words: class -> words, of which the last in the chain counts; default the dataset's, else the class name.
    """

    seed: Tensor

    def __init__(self, lm: LanguageTower, shots: int = 0, examples: list[dict[str, str]] | None = None,
                 template: str | None = None, instruction: str = "", separator: str = "\n\n",
                 reasoning_trigger: str = "Let's think step by step.", answer_trigger: str = "Therefore, the answer is",
                 max_new_tokens: int = 256, max_answer_tokens: int = 32, n_samples: int = 1, temperature: float = 0.7,
                 answer_pattern: str | None = None, label_words: dict[str, list[str]] | None = None):  # fmt: skip
        super().__init__()
        self.lm, self.shots, self.examples, self.template, self.label_words = lm, shots, examples, template, label_words
        self.instruction, self.separator, self.answer_pattern = instruction, separator, answer_pattern
        self.reasoning_trigger, self.answer_trigger = reasoning_trigger, answer_trigger
        self.max_new_tokens, self.max_answer_tokens = max_new_tokens, max_answer_tokens
        self.n_samples, self.temperature = n_samples, temperature

    def begin_lesson(self, lesson: Lesson, generator: Generator) -> None:
        self.require_at_least(shots=0, max_new_tokens=1, max_answer_tokens=1, n_samples=1)
        if self.lm.kind == "encoder":
            raise ValueError(
                f"{self.lm.spec}: expected a model that generates text, got an encoder. Choose a causal model with "
                "--backbone."
            )
        if self.answer_pattern is not None:
            compile_answer_pattern(self.answer_pattern)
        items = build_examples(self.examples or [], ANSWER_TEMPLATE)
        if len(lesson.train) and self.shots:
            items += self._sample_items(lesson.train, generator)
        self.store_items(items)
        self.register_buffer("seed", torch.randint(2**31, (1,), generator=generator))

    def _sample_items(self, train: Split, generator: Generator) -> list[TextItem]:
        usable = [k for k, item in enumerate(train.items) if "rationale" in item.fields]
        if len(usable) < self.shots:
            raise ValueError(
                f"method.shots: expected {self.shots} training texts with a field rationale, got {len(usable)} of "
                f"{len(train)}. Give method.examples, or set method.shots=0 to answer without demonstrations."
            )
        first_words = [words[0] for words in find_label_words(train.names, self.label_words)]
        items = list[TextItem]()
        for k in sample_demonstrations([train.labels[i] for i in usable], self.shots, "random", generator):
            item, answer = train.items[usable[k]], first_words[train.labels[usable[k]]]
            template = self._as_question(item).template + ANSWER_TEMPLATE
            items.append(replace(item, template=template, response=item.response or answer))
        return items

    def _as_question(self, item: TextItem) -> TextItem:
        return replace(item, template=self.template or f"Q: {item.plain_template}\nA:", response=None, tags=None)

    def precompute(self, names: Names) -> list[list[str]]:
        return find_label_words(names, self.label_words)

    def forward(self, inputs: TextBatch, prepared: list[list[str]]) -> Output:
        """Return the voted class one-hot (B, C), zeros if unanswered; nothing for free-form answers (`generate`)."""
        if len(inputs) and inputs.items[0].response is not None:
            return Output(torch.empty(0, 1), targets=torch.empty(0, dtype=torch.long))
        none, chains = len(prepared), self.generate_chains(inputs)  # none: one more column, which is cut off
        classes = torch.tensor([majority_vote([find_class(t, prepared) for t in texts], none) for texts in chains])
        return Output(F.one_hot(classes, none + 1)[:, :none].float(), unanswered=classes == none)

    def generate(self, inputs: TextBatch, max_new_tokens: int | None = None) -> list[str]:
        """Generate an answer to each text, "" where none can be extracted."""
        chains = self.generate_chains(inputs, max_new_tokens)
        lead = "" if self.build_demonstrations().items else f"{self.answer_trigger} "
        return [majority_vote([find_answer(lead + t, self.answer_pattern) for t in texts], "") for texts in chains]

    @torch.no_grad()
    def generate_chains(self, inputs: TextBatch, max_new_tokens: int | None = None) -> list[list[str]]:
        """Generate the samples of each text: chains, or without demonstrations the answers that follow them."""
        items, limit = tuple(map(self._as_question, inputs.items)), max_new_tokens or self.max_new_tokens
        has_demonstrations = bool(self.build_demonstrations().items)
        if not has_demonstrations:
            trigger = f" {escape_braces(self.reasoning_trigger)}"
            items = tuple(replace(item, template=item.template + trigger) for item in items)
        if self.n_samples == 1:
            chains = [[text] for text in self._generate(TextBatch(items), max_new_tokens=limit)]
        else:
            chains = [self._sample(TextBatch((item,)), limit) for item in items]
        return chains if has_demonstrations else self._ask_for_answers(items, chains)

    def _ask_for_answers(self, items: Sequence[TextItem], chains: Sequence[Sequence[str]]) -> list[list[str]]:
        end = f" {{rationale}}\n{escape_braces(self.answer_trigger)}"
        second_pass = [
            replace(i, fields={**i.fields, "rationale": text}, key=f"{i.key}/{text}", template=i.template + end)
            for i, texts in zip(items, chains, strict=True)
            for text in texts
        ]
        answers = self._generate(TextBatch(tuple(second_pass)), max_new_tokens=self.max_answer_tokens)
        return [answers[k : k + self.n_samples] for k in range(0, len(answers), self.n_samples)]

    def _sample(self, inputs: TextBatch, max_new_tokens: int) -> list[str]:
        options = {"temperature": self.temperature, "num_return_sequences": self.n_samples}
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(int(self.seed), inputs.items[0].name))
            return self._generate(inputs, max_new_tokens=max_new_tokens, do_sample=True, **options)

    def _generate(self, inputs: TextBatch, **settings: object) -> list[str]:
        preamble = self.build_demonstrations().base_preamble
        texts = self.lm.generate(preamble.prepend_to(inputs), preamble.prompt, **settings)
        return [self.cut_at_separator(text) for text in texts]
