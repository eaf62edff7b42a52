"""Texts: classify them, whole or word by word, or learn to write the response; few-shot or on all of them.

How texts are shown to a language model is the template's business, what it says the verbalizer's: Schick and Schuetze,
EACL 2021, arXiv:2001.07676; Lester et al., EMNLP 2021, arXiv:2104.08691.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

from vlprompt.core.batch import Split
from vlprompt.core.class_names import Name
from vlprompt.core.class_names import named as name_of
from vlprompt.core.stage import Lesson, Stage
from vlprompt.core.texts import Passage, answered, pieces
from vlprompt.data.dataset import Data
from vlprompt.data.loading import given, named
from vlprompt.data.splits.sampling import few_shot
from vlprompt.runtime.errors import nearest
from vlprompt.tasks.few_shot import split_of


class Text:
    """A dataset of texts, with or without classes.

    dataset: a card's name, a file or folder of texts, or Data that was opened already; shots: texts per class (of texts
    without classes: in all), None for all; seed: draws them; prompt: how a text is shown, with {mask} where the answer
    stands, instead of the dataset's; plain: how a head on the feature is shown it; cut: the end of its longest field at
    which a text too long for the model is shortened; tests: at most so many test texts, evenly spaced (None:
    all); write: tokens that may be written for each test text whose answer is a text, to compare it with what is wanted
    (0: only its perplexity is told).
    """

    def __init__(
        self,
        dataset: str | Data,
        shots: int | None = None,
        seed: int = 1,
        prompt: str | None = None,
        plain: str | None = None,
        cut: Literal["end", "start"] = "end",
        tests: int | None = None,
        write: int = 0,
        skip_broken: bool = False,
    ):
        self.given, self.dataset = dataset, named(dataset)
        self.shots, self.seed, self.cut, self.tests, self.write = shots, seed, cut, tests, write
        self.prompt, self.plain, self.skip_broken = prompt, plain, skip_broken

    @cached_property
    def data(self) -> Data:
        data = given(self.given, None, self.skip_broken, texts=True)
        first = next((item for item in (*data.train.items, *data.test.items)), None)
        if not isinstance(first, Passage):
            raise ValueError(
                f"{data.name} has images, and the task text is for texts: take --task few_shot, or a dataset of texts "
                "(`vlprompt list datasets` names them)"
            )
        for template in (self.prompt, self.plain):
            for piece in () if template is None else pieces(template):
                if piece.kind == "field" and piece.text not in first.fields:
                    raise ValueError(
                        f"the template {template!r} has {{{piece.text}}}; {nearest(piece.text, first.fields)}"
                    )
                if piece.kind == "mask" and template == self.plain:
                    raise ValueError(f"task.plain is a text without the answer's place, but {template!r} has {{mask}}")
        return data

    @property
    def _first(self) -> Passage:
        return next(item for item in (*self.data.test.items, *self.data.train.items))

    @property
    def template(self) -> str:
        """The hand-written one, with the answer's place."""
        return self.prompt or self.data.template

    def _shown(self, split: Split) -> Split:
        change: dict[str, Any] = {k: v for k, v in (("template", self.prompt), ("plain", self.plain)) if v is not None}
        change |= {"cut": self.cut} if self.cut != "end" else {}
        info = {**split.info, "write": self.write}
        items = tuple(replace(item, **change) for item in split.items) if change else split.items
        names = split.names
        if self.prompt is not None:
            names = tuple(Name(str(n), n.id, self.prompt, n.words) for n in map(name_of, names))
        return replace(split, items=items, names=names, info=info)

    @cached_property
    def lesson(self) -> Lesson:
        train, val, names = self.data.train, self.data.val, self.data.train.names
        if self.shots is not None:
            if any(item.tags is not None for item in train.items[:1]):  # their words have classes, the texts have none
                train, val = replace(train, names=names[:1]), None if val is None else replace(val, names=names[:1])
            train, val = few_shot(train, val, self.shots, self.seed)
            train, val = replace(train, names=names), None if val is None else replace(val, names=names)
        return Lesson(self._shown(train), None if val is None else self._shown(val))

    @cached_property
    def test(self) -> Split:
        test = self.data.test
        if self.tests is not None and len(test) > self.tests:
            step = len(test) / self.tests
            test = test.of([int(k * step) for k in range(self.tests)])
        return self._shown(test)

    @property
    def protocol(self) -> dict[str, Any]:
        train = self.lesson.train
        return {
            "dataset": self.data.name,
            "train": train.hash(),
            "test": self.test.hash(),
            "texts": len(train),
            "test_texts": len(self.test),
            "short": train.info.get("short", []),
            "classes": [str(name) for name in train.names],
            "template": self.template,
            "plain": self._first.plain if self.plain is None else self.plain,
            "answer": answered((self._first,)),
            "cut_at": self.cut,
            "split": split_of(self.data),
            "note": self.data.note,
        }

    def stages(self) -> Iterator[Stage]:
        yield Stage(self.lesson, {"test": self.test})

    def summary(self, scores: list[dict[str, dict[str, float]]]) -> dict[str, float]:
        return dict(scores[-1]["test"])
