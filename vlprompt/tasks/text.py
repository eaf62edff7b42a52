"""Text tasks: classification, token classification and generation, few-shot or on the full training set.

The template turns a text into the model's input, the verbalizer maps its output to classes: Schick and Schuetze, EACL
2021, arXiv:2001.07676; Lester et al., EMNLP 2021, arXiv:2104.08691.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName, as_class_name
from vlprompt.core.stage import Lesson, Stage
from vlprompt.core.texts import TextItem, find_answer_kind, parse_template
from vlprompt.data.dataset import Data
from vlprompt.data.loading import identify_dataset, resolve_dataset
from vlprompt.data.splits.sampling import sample_few_shot
from vlprompt.runtime.errors import suggest_nearest
from vlprompt.tasks.few_shot import get_split_origin


class Text:
    """A dataset of texts, with or without classes.

    Args:
        dataset: a card's name, a file or folder of texts, or opened Data.
        shots: texts per class, or in total for texts without classes; None for all.
        seed: draws the shots.
        prompt_template: replaces the dataset's template; {mask} is the position of the answer.
        plain_template: the template for a head on the features, without {mask}.
        truncation_side: the end of its longest field at which a text too long for the model is truncated.
        max_test_texts: test on at most this many texts, evenly spaced; None for all.
        max_new_tokens: tokens to generate for each test text with a response, to compare them with the reference;
            0 reports the perplexity only.
        skip_broken: leave out rows that can't be read.

    Raises:
        ValueError: for a number that is out of its range.
    """

    def __init__(
        self,
        dataset: str | Data,
        shots: int | None = None,
        seed: int = 1,
        prompt_template: str | None = None,
        plain_template: str | None = None,
        truncation_side: Literal["end", "start"] = "end",
        max_test_texts: int | None = None,
        max_new_tokens: int = 0,
        skip_broken: bool = False,
    ):
        for name, value, minimum in (("max_test_texts", max_test_texts, 1), ("max_new_tokens", max_new_tokens, 0)):
            if value is not None and value < minimum:
                raise ValueError(f"task.{name}: expected at least {minimum}, got {value}. Set task.{name}={minimum}.")
        self.dataset_source, self.dataset = dataset, identify_dataset(dataset)
        self.shots, self.seed, self.truncation_side = shots, seed, truncation_side
        self.max_test_texts, self.max_new_tokens = max_test_texts, max_new_tokens
        self.prompt_template, self.plain_template, self.skip_broken = prompt_template, plain_template, skip_broken

    @property
    def opened_data(self) -> list[Data]:
        """The datasets that the task opens."""
        return [self.data]

    @cached_property
    def data(self) -> Data:
        data = resolve_dataset(self.dataset_source, None, self.skip_broken, allow_texts=True)
        first = next(iter((*data.train.items, *data.test.items)), None)
        if not isinstance(first, TextItem):
            raise ValueError(
                f"task: expected a dataset of texts for the task text, got {data.name}, which has images. Set --task "
                "few_shot, or choose a dataset of texts (`vlprompt list datasets`)."
            )
        self._validate_templates(first)
        return data

    def _validate_templates(self, item: TextItem) -> None:
        for template in (self.prompt_template, self.plain_template):
            for piece in () if template is None else parse_template(template):
                if piece.kind == "field" and piece.text not in item.fields:
                    raise ValueError(
                        f"template: expected fields of the texts, got {{{piece.text}}} in {template!r}; "
                        f"{suggest_nearest(piece.text, item.fields)}"
                    )
                if piece.kind == "mask" and template == self.plain_template:
                    raise ValueError(
                        f"task.plain_template: expected a template without {{mask}}, got {template!r}. Remove {{mask}}."
                    )

    @property
    def _first_item(self) -> TextItem:
        return next(iter((*self.data.test.items, *self.data.train.items)))

    @property
    def template(self) -> str:
        """The prompt template, with {mask} at the position of the answer."""
        return self.prompt_template or self.data.template

    def _with_templates(self, split: Split) -> Split:
        templates = {"template": self.prompt_template, "plain_template": self.plain_template}
        changes: dict[str, Any] = {key: template for key, template in templates.items() if template is not None}
        changes |= {"truncation_side": self.truncation_side} if self.truncation_side != "end" else {}
        info = {**split.info, "max_new_tokens": self.max_new_tokens}
        items = tuple(replace(item, **changes) for item in split.items) if changes else split.items
        names = split.names
        if self.prompt_template is not None:
            names = tuple(
                ClassName(str(name), name.id, self.prompt_template, name.words) for name in map(as_class_name, names)
            )
        return replace(split, items=items, names=names, info=info)

    @cached_property
    def lesson(self) -> Lesson:
        train, val, names = self.data.train, self.data.val, self.data.train.names
        if self.shots is not None:
            if any(item.tags is not None for item in train.items[:1]):  # classes of words, not of texts
                train, val = replace(train, names=names[:1]), None if val is None else replace(val, names=names[:1])
            train, val = sample_few_shot(train, val, self.shots, self.seed)
            train, val = replace(train, names=names), None if val is None else replace(val, names=names)
        return Lesson(self._with_templates(train), None if val is None else self._with_templates(val))

    @cached_property
    def test(self) -> Split:
        test = self.data.test
        if self.max_test_texts is not None and len(test) > self.max_test_texts:
            step = len(test) / self.max_test_texts
            test = test.select([int(k * step) for k in range(self.max_test_texts)])
        return self._with_templates(test)

    @property
    def protocol(self) -> dict[str, Any]:
        train = self.lesson.train
        return {
            "dataset": self.data.name,
            "train": train.hash(),
            "test": self.test.hash(),
            "train_texts": len(train),
            "test_texts": len(self.test),
            "undersized_classes": train.info.get("undersized_classes", []),
            "classes": [str(name) for name in train.names],
            "template": self.template,
            "plain_template": self._first_item.plain_template if self.plain_template is None else self.plain_template,
            "answer": find_answer_kind((self._first_item,)),
            "truncation_side": self.truncation_side,
            "split": get_split_origin(self.data),
            "note": self.data.note,
        }

    def stages(self) -> Iterator[Stage]:
        yield Stage(self.lesson, {"test": self.test})

    def summary(self, scores: list[dict[str, dict[str, float]]]) -> dict[str, float]:
        return dict(scores[-1]["test"])
