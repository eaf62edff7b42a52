"""Heads of language models: label words (verbalizers), a class for each word, free-form responses."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vlprompt.core.class_names import Names, as_class_name, class_ids
from vlprompt.core.head import Head
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.templates import PromptTemplate
from vlprompt.core.texts import TextBatch, TextItem
from vlprompt.core.towers import LanguageTower
from vlprompt.layers.heads import LinearHead, find_class_indices

MAX_STATES_PER_PASS = 256  # states that are projected to the whole vocabulary at once
LabelTokens: TypeAlias = tuple[list[int], Tensor]  # token ids (n,), and the weight (C, n) of each in a class's logit


def find_label_words(names: Names, words: Mapping[str, Sequence[str]] | None) -> list[list[str]]:
    """Return the label words of each class: from `words`, else of its dataset, else its name.

    Raises:
        ValueError: if `words` lacks a class.
    """
    if words is None:
        return [list(name.words or (name.replace("_", " "),)) for name in map(as_class_name, names)]
    known = {str(key): [value] if isinstance(value, str) else list(value) for key, value in words.items()}
    label_words = [known.get(i, known.get(str(name), [])) for name, i in zip(names, class_ids(names), strict=True)]
    if missing := [str(name) for name, of_class in zip(names, label_words, strict=True) if not of_class]:
        raise ValueError(
            f"words: expected label words for every class, got none for the class {missing[0]!r} "
            f"(has {', '.join(known)}). Set for example words={{{missing[0]}: [good, great]}}."
        )
    return label_words


def score_answers(
    lm: LanguageTower, inputs: TextBatch, prompt: Prompt, words: Sequence[str], mean: bool = False
) -> Tensor:
    """Compute log-probabilities (B, n) of n words as answers; one pass for all words if each has one token.

    Args:
        lm: the language model.
        inputs: texts that one template shows.
        prompt: of the model.
        words: the answers.
        mean: take the mean over a word's tokens instead of the sum.

    Raises:
        ValueError: for a word of several tokens and an encoder, which fills one place.
    """
    if not words or not len(inputs):
        return torch.empty(len(inputs), len(words))
    spelled = lm.tokenize_answers(words, inputs.template or inputs.items[0].template)
    if all(len(tokens) == 1 for tokens in spelled):
        return _score_single_tokens(lm, inputs, prompt, [tokens[0] for tokens in spelled])
    if lm.kind == "encoder":
        word, tokens = next((word, t) for word, t in zip(words, spelled, strict=True) if len(t) > 1)
        raise ValueError(
            f"method.label_words: expected words of one token for {lm.spec}, an encoder, which fills one place, got "
            f"{word!r} with {len(tokens)}. Set method.label_words, or take a causal model or an encoder-decoder."
        )
    choices = inputs.select([i for i in range(len(inputs)) for _ in words]).with_responses([*words] * len(inputs))
    states, targets = lm(choices, prompt, output="response"), lm.response_tokens(choices, prompt)
    token_scores = _score_tokens(lm, states, [token for tokens in targets for token in tokens])
    scores = token_scores.split([len(tokens) for tokens in targets])
    word_scores = torch.stack([s.mean() if mean else s.sum() for s in scores])
    return rearrange(word_scores, "(b c) -> b c", c=len(words))


def _score_single_tokens(lm: LanguageTower, inputs: TextBatch, prompt: Prompt, token_ids: Sequence[int]) -> Tensor:
    """Log-probabilities (B, n) of n tokens at the place of the answer."""
    states = lm(inputs, prompt, output="mask")
    ids = torch.tensor(token_ids, device=states.device)
    return torch.cat([_log_probabilities(lm, part)[:, ids] for part in states.split(MAX_STATES_PER_PASS)])


def _score_tokens(lm: LanguageTower, states: Tensor, token_ids: Sequence[int]) -> Tensor:
    """Log-probabilities (R,) of one token per state."""
    ids = torch.tensor(token_ids, device=states.device)
    parts = zip(states.split(MAX_STATES_PER_PASS), ids.split(MAX_STATES_PER_PASS), strict=True)
    return torch.cat([_log_probabilities(lm, part).gather(1, part_ids[:, None])[:, 0] for part, part_ids in parts])


def _log_probabilities(lm: LanguageTower, states: Tensor) -> Tensor:
    return lm.vocabulary_logits(states).float().log_softmax(1)


class Verbalizer(Head):
    """Score a class by its label words at {mask}: its logit is the mean over them, as in OpenPrompt (arXiv:2111.01998).

    Schick and Schuetze, "Exploiting Cloze Questions for Few-Shot Text Classification", EACL 2021, arXiv:2001.07676.

    Args:
        lm: the language model.
        template: shows a text; None for that of the dataset.
        words: class -> label words; None for those of the dataset, else the class's name.
        multi_token: of a word of several tokens, its "first" or their "mean" at the one place.

    Raises:
        ValueError: for classes without words, or two whose words begin with the same token.
    """

    output = "mask"

    def __init__(
        self,
        lm: LanguageTower,
        template: str | None = None,
        words: dict[str, list[str]] | None = None,
        multi_token: Literal["first", "mean"] = "first",
    ):
        super().__init__()
        self.lm, self.template, self.words, self.multi_token = lm, template, words, multi_token

    def prepare_inputs(self, inputs: TextBatch) -> TextBatch:
        return inputs.with_template(self.template)

    def find_label_tokens(self, names: Names) -> LabelTokens:
        """Return the tokens of all label words, and their weights in the logits of the classes."""
        token_ids, entries, class_of_token = list[int](), list[tuple[int, int, float]](), dict[int, str]()
        # a word's tokens depend on what precedes it in the template
        template = self.template or next((name.template for name in map(as_class_name, names)), None)
        for c, (name, words) in enumerate(zip(names, find_label_words(names, self.words), strict=True)):
            for tokens in self.lm.tokenize_answers(words, template):
                used = tokens[:1] if self.multi_token == "first" else tokens
                if self.multi_token == "first" and class_of_token.setdefault(used[0], str(name)) != str(name):
                    raise ValueError(
                        f"method.head.words: expected words with different first tokens, got the classes "
                        f"{class_of_token[used[0]]!r} and {str(name)!r}, whose words begin with the same token. "
                        "Set other method.head.words, or method.head.multi_token=mean."
                    )
                entries += [(c, len(token_ids) + k, 1 / len(words) / len(used)) for k in range(len(used))]
                token_ids += used
        weights = torch.zeros(len(names), len(token_ids), device=self.lm.device)
        for c, k, weight in entries:
            weights[c, k] = weight
        return token_ids, weights

    def precompute(self, names: Names) -> LabelTokens:
        return self.find_label_tokens(names)

    def forward(self, features: Tensor, prepared: LabelTokens) -> Tensor:
        token_ids, weights = prepared
        return self.lm.vocabulary_logits(features, token_ids).float() @ weights.T


class SoftVerbalizer(Verbalizer):
    """A verbalizer with one learned word vector per class, initialised from its label words.

    Hambardzumyan et al., "WARP", ACL 2021, arXiv:2101.00121; as OpenPrompt's soft verbalizer. Arguments as in
    Verbalizer.
    """

    def begin_lesson(self, lesson: Lesson, generator: torch.Generator, feature_dim: int, device: torch.device) -> None:
        names = lesson.train.names
        if lesson.index and class_ids(names) != self.class_ids:
            raise ValueError(
                "method.head: expected a head that takes new classes in a stream, got soft_verbalizer, which has those "
                "of the first lesson. Set method.head=verbalizer or linear."
            )
        if not lesson.index:
            token_ids, weights = self.find_label_tokens(names)
            embeddings, _ = self.lm.get_output_embeddings(token_ids)
            self.class_ids = class_ids(names)
            self.weight = nn.Parameter((weights @ embeddings.float()).to(device))  # (C, E)

    def precompute(self, names: Names) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return find_class_indices(self.class_ids, names, "soft verbalizer").to(self.weight.device)

    def forward(self, features: Tensor, prepared: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return F.linear(features, self.weight[prepared])


class ResponseHead(Head):
    """Predict the response, token by token: rows of logits are tokens, columns the vocabulary.

    Args:
        lm: the language model.
        template: shows a text; the response stands at its {mask}, or behind it.
        packing: put several texts of a batch into one row of a causal model, each seeing only itself, to save padding
            (the same states). A model of the Llama kind on a CPU never pads, with or without it.
    """

    output = "response"

    def __init__(self, lm: LanguageTower, template: str | None = None, packing: bool = False):
        super().__init__()
        self.lm, self.template, self.packing = lm, template, packing

    def prepare_inputs(self, inputs: TextBatch) -> TextBatch:
        return replace(inputs.with_template(self.template), allows_packing=self.packing)

    def compute_targets(self, inputs: TextBatch, make_prompt: Callable[[], Prompt]) -> Tensor:
        return torch.tensor([token for answer in self.lm.response_tokens(inputs, make_prompt()) for token in answer])

    def forward(self, features: Tensor, prepared: None) -> Tensor:
        return self.lm.vocabulary_logits(features).float()


class TagHead(LinearHead):
    """A linear head on the first token of each word, for texts classified word by word; arguments as in LinearHead."""

    output = "words"

    def compute_targets(self, inputs: TextBatch, make_prompt: Callable[[], Prompt]) -> Tensor:
        return torch.tensor([tag for tags in inputs.tags for tag in tags])


class SentenceHead(Head):
    """Scaled cosines to the features of a sentence per class, as sentence encoders are used; zero-shot if untrained.

    Reimers and Gurevych, "Sentence-BERT", EMNLP 2019, arXiv:1908.10084.

    Args:
        lm: the language model that encodes texts and sentences.
        template: the sentence, with {name}; a class with several words has the mean of their sentences.
        words: as in Verbalizer.
        scale: of the cosines, 20 in sentence-transformers.
    """

    def __init__(
        self,
        lm: LanguageTower,
        template: str = "This is about {name}.",
        words: dict[str, list[str]] | None = None,
        scale: float = 20.0,
    ):
        super().__init__()
        self.lm, self.template, self.words, self.scale = lm, template, words, scale

    def precompute(self, names: Names) -> Tensor:
        if "{name}" not in self.template:
            raise ValueError(
                f"method.head.template: expected {{name}}, where the class stands, got {self.template!r}. "
                "Write for example 'This is about {name}.'"
            )
        template, features = PromptTemplate.parse(self.template), list[Tensor]()
        template.require_fields("method.head.template", ("name",))
        for words in find_label_words(names, self.words):
            texts = [template.fill({"name": word}).words for word in words]
            items = tuple(TextItem(f"class {text}", {"text": text}, "{text}", "{text}") for text in texts)
            features.append(F.normalize(self.lm(TextBatch(items)), dim=-1).mean(0))
        return F.normalize(torch.stack(features), dim=-1)  # (C, E)

    def forward(self, features: Tensor, prepared: Tensor) -> Tensor:
        return self.scale * F.normalize(features, dim=-1) @ prepared.T
