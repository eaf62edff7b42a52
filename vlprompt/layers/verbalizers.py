"""Readers of language models: words that stand for classes (verbalizers), a class for each word, a whole response."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.core.class_names import Names, ids, named
from vlprompt.core.head import Reader
from vlprompt.core.prompt import Prompt
from vlprompt.core.stage import Lesson
from vlprompt.core.texts import Passage, Passages
from vlprompt.core.towers import LanguageTower
from vlprompt.layers.heads import Linear, columns

ROWS = 256  # states that meet the whole vocabulary at once


def verbalized(names: Names, words: Mapping[str, Sequence[str]] | None) -> list[list[str]]:
    """What is said for each class: by `words`, else by its dataset, else its name; ValueError for a class without."""
    said = [list(n.words or (n.replace("_", " "),)) for n in map(named, names)]
    if words is None:
        return said
    known = {str(key): [value] if isinstance(value, str) else list(value) for key, value in words.items()}
    found = [known.get(i, known.get(str(name), [])) for name, i in zip(names, ids(names), strict=True)]
    if lacking := [str(name) for name, of in zip(names, found, strict=True) if not of]:
        raise ValueError(
            f"words says nothing for the class {lacking[0]!r}; it has {', '.join(known)}. Give every class a word, "
            f"such as words={{{lacking[0]}: [good, great]}}"
        )
    return found


def likely(lm: LanguageTower, inputs: Passages, prompt: Prompt, words: Sequence[str], mean: bool = False) -> Tensor:
    """Log-probabilities (B, n) of words as answers to passages that are shown by one template.

    The sum over a word's tokens, or their mean. Where all have one token, that is one pass for all words. ValueError
    for words of several tokens and a model that fills one place.
    """
    if not words or not len(inputs):
        return torch.empty(len(inputs), len(words))
    spelled = lm.spelled(words, inputs.template or inputs.items[0].template)
    if all(len(tokens) == 1 for tokens in spelled):
        states = lm(inputs, prompt, read="mask")
        ids = torch.tensor([tokens[0] for tokens in spelled], device=states.device)
        return torch.cat([lm.vocabulary(some).float().log_softmax(1)[:, ids] for some in states.split(ROWS)])
    if lm.kind == "encoder":
        long = next(word for word, tokens in zip(words, spelled, strict=True) if len(tokens) > 1)
        raise ValueError(
            f"{lm.spec} is an encoder and fills one place, but {long!r} has several tokens for it: give words of one "
            "token each by method.words, or take a causal model or an encoder-decoder"
        )
    asked = inputs.some([i for i in range(len(inputs)) for _ in words]).answered([*words] * len(inputs))
    states, targets = lm(asked, prompt, read="response"), lm.targets(asked, prompt)
    right = torch.tensor([token for tokens in targets for token in tokens], device=states.device)
    found = [lm.vocabulary(some).float().log_softmax(1).gather(1, ids[:, None])[:, 0]
             for some, ids in zip(states.split(ROWS), right.split(ROWS), strict=True)]  # fmt: skip
    each = torch.cat(found).split([len(tokens) for tokens in targets])
    return torch.stack([one.mean() if mean else one.sum() for one in each]).view(len(inputs), len(words))


class Words(Reader):
    """A verbalizer: a class is as likely as the words that stand for it are at the place of {mask}.

    Schick and Schuetze, "Exploiting Cloze Questions for Few-Shot Text Classification", EACL 2021, arXiv:2001.07676. The
    logit of a class is the mean over its words, as in OpenPrompt (arXiv:2111.01998). template: how a text is shown
    (default: as its dataset says); words: class -> words (default: those of the dataset, else the class's name);
    tokens: of a word of several, its "first" or their "mean" at the one place. ValueError for classes without words, or
    two that begin alike.
    """

    read = "mask"

    def __init__(self, lm: LanguageTower, template: str | None = None, words: dict[str, list[str]] | None = None,
                 tokens: Literal["first", "mean"] = "first"):  # fmt: skip
        super().__init__()
        self.lm, self.template, self.words, self.tokens = lm, template, words, tokens

    def asked(self, inputs: Passages) -> Passages:
        return inputs.form(self.template)

    def fixed(self, names: Names) -> tuple[list[int], Tensor]:
        """The tokens (n,) of all words, and the share (C, n) that each has in the logit of a class."""
        found, rows, owner = list[int](), list[tuple[int, int, float]](), dict[int, str]()
        template = self.template or next((name.hand for name in map(named, names)), None)  # what stands before a word
        for c, (name, words) in enumerate(zip(names, verbalized(names, self.words), strict=True)):
            for spelled in self.lm.spelled(words, template):
                some = spelled[:1] if self.tokens == "first" else spelled
                if self.tokens == "first" and owner.setdefault(some[0], str(name)) != str(name):
                    raise ValueError(
                        f"the classes {owner[some[0]]!r} and {str(name)!r} have words that begin with the same "
                        "token: give other words by method.reader.words, or take method.reader.tokens=mean"
                    )
                rows += [(c, len(found) + k, 1 / len(words) / len(some)) for k in range(len(some))]
                found += some
        share = torch.zeros(len(names), len(found), device=self.lm.device)
        for c, k, part in rows:
            share[c, k] = part
        return found, share

    def forward(self, features: Tensor, prepared: tuple[list[int], Tensor]) -> Tensor:
        tokens, share = prepared
        return self.lm.vocabulary(features, tokens).float() @ share.T


class SoftWords(Words):
    """A verbalizer whose word vectors are learned, one for each class, from where its words stand.

    Hambardzumyan et al., "WARP", ACL 2021, arXiv:2101.00121; as OpenPrompt's soft verbalizer. Arguments as in Words.
    """

    def begin(self, lesson: Lesson, generator: torch.Generator, width: int, device: torch.device) -> None:
        names = lesson.train.names
        if lesson.index and ids(names) != self.ids:
            raise ValueError(
                "soft words are those of the classes of the first lesson; take words or linear in a stream"
            )
        if not lesson.index:
            tokens, share = super().fixed(names)
            weight, _ = self.lm.unembed(tokens)
            self.ids, self.weight = ids(names), nn.Parameter((share @ weight.float()).to(device))  # (C, E)

    def fixed(self, names: Names) -> Any:
        return columns(self.ids, names, "a soft verbalizer").to(self.weight.device)

    def forward(self, features: Tensor, prepared: Any) -> Tensor:
        return F.linear(features, self.weight[prepared])


class Response(Reader):
    """The response, token by token: what is learned is to write it. The rows are tokens, the columns the vocabulary.

    template: how a text is shown; the response stands at its {mask}, or behind it; packing: several texts of a batch in
    one row of a causal model, each seeing itself alone, so that none is filled up (the same states).
    """

    read = "response"

    def __init__(self, lm: LanguageTower, template: str | None = None, packing: bool = False):
        super().__init__()
        self.lm, self.template, self.packing = lm, template, packing

    def asked(self, inputs: Passages) -> Passages:
        return replace(inputs.form(self.template), packed=self.packing)

    def target(self, inputs: Passages, prompt: Callable[[], Prompt]) -> Tensor:
        return torch.tensor([token for answer in self.lm.targets(inputs, prompt()) for token in answer])

    def forward(self, features: Tensor, prepared: Any) -> Tensor:
        return self.lm.vocabulary(features).float()


class Tags(Linear):
    """A linear head on the first token of each word, for texts classified word by word; arguments as Linear."""

    read = "words"

    def target(self, inputs: Passages, prompt: Callable[[], Prompt]) -> Tensor:
        return torch.tensor([tag for tags in inputs.tags for tag in tags])


class Sentences(Reader):
    """What says a class, read by the same frozen model: scaled cosines to its feature, as sentence encoders are used.

    Reimers and Gurevych, "Sentence-BERT", EMNLP 2019, arXiv:1908.10084. With nothing trained it answers zero-shot.
    template: the sentence, with {name}; a class with several words is the mean of their sentences; words: as in Words;
    scale: of the cosines, 20 in sentence-transformers.
    """

    def __init__(self, lm: LanguageTower, template: str = "This is about {name}.",
                 words: dict[str, list[str]] | None = None, scale: float = 20.0):  # fmt: skip
        super().__init__()
        self.lm, self.template, self.words, self.scale = lm, template, words, scale

    def fixed(self, names: Names) -> Tensor:
        if "{name}" not in self.template:
            raise ValueError(f"method.reader.template={self.template!r} has no {{name}}, where the class stands")
        found = []
        for words in verbalized(names, self.words):
            texts = [self.template.replace("{name}", word) for word in words]
            items = tuple(Passage(f"class {text}", {"text": text}, "{text}", "{text}") for text in texts)
            found.append(F.normalize(self.lm(Passages(items)), dim=-1).mean(0))
        return F.normalize(torch.stack(found), dim=-1)  # (C, E)

    def forward(self, features: Tensor, prepared: Tensor) -> Tensor:
        return self.scale * F.normalize(features, dim=-1) @ prepared.T
