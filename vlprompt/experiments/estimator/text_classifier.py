"""PromptTextClassifier: a learned prompt for texts as a classifier of scikit-learn."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.utils import Tags

from vlprompt.core.class_names import ClassName
from vlprompt.core.texts import TextItem
from vlprompt.data.text.text_inputs import (
    TextInput,
    build_text_items,
    make_class_template,
    make_plain_template,
    require_field_names,
)
from vlprompt.experiments.estimator.labels import LabelledData
from vlprompt.experiments.estimator.prompt_estimator import PromptEstimator


class PromptTextClassifier(PromptEstimator):
    """A prompt for texts, learned by any method on a frozen language model.

    Texts are strings, or mappings of named fields. Settings are checked when `fit` resolves them, over the recipes that
    `vlprompt run --task text` takes.

    Args:
        method: one of `vlprompt list methods` for language models, or module:Class.
        backbone: the language model, hf:FOLDER or hf:OWNER/NAME.
        seed: of initial values and order.
        validation_fraction: of each class, for methods that search on validation texts.
        device: as `vlprompt.load` takes it.
        **settings: others of `vlprompt run`, as method__n_tokens=4, train__epochs=20 or
            task__prompt_template="{text} It was {mask}".
    """

    _task, _items_name = "text", "texts"

    def __init__(
        self,
        method: str = "prompt_tuning",
        backbone: str = "",
        *,
        seed: int = 1,
        validation_fraction: float | None = None,
        device: str | None = None,
        **settings: Any,
    ):
        self.method, self.backbone, self.seed = method, backbone, seed
        self.validation_fraction, self.device = validation_fraction, device
        self._set_settings(settings)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.string, tags.input_tags.dict = False, True, True
        tags.input_tags.one_d_array = True
        return tags

    def _read_training_data(self, *arguments: Any, **options: Any) -> LabelledData:
        data = super()._read_training_data(*arguments, **options)
        template = data.train.items[0].template
        names = tuple(ClassName(str(name), name.id, template, name.words) for name in data.names)
        return LabelledData(replace(data.train, names=names, info={"answer": "class"}), data.classes, names)

    def _read_items(self, inputs: Any, is_training: bool) -> tuple[TextItem, ...]:
        texts = _list_texts(inputs)
        if not texts:
            raise ValueError("texts: expected at least one text, got none. Pass one.")
        if not is_training and "learned_state_" in vars(self):
            return self.learned_state_.build_text_items(texts)
        fields = list(texts[0]) if isinstance(texts[0], Mapping) else ["text"]
        require_field_names(fields)
        items = build_text_items(texts, make_class_template(fields), make_plain_template(fields))
        return tuple(replace(item, name=item.key) for item in items)  # the name goes into the hash of the data


def _list_texts(inputs: Any) -> list[TextInput]:
    """Return texts as a list; ValueError for one text alone, and for what has no order of texts."""
    if isinstance(inputs, str | Mapping):
        raise ValueError("texts: expected a sequence of texts, got one text. Put it into a list: [text].")
    if isinstance(inputs, bytes | Set) or not isinstance(inputs, Iterable):
        raise ValueError(
            f"texts: expected a list or an array of texts, got a {type(inputs).__name__}. Convert it to one."
        )
    if hasattr(inputs, "iloc"):
        return _list_rows(inputs)
    return inputs.tolist() if isinstance(inputs, np.ndarray) else list(inputs)


def _list_rows(frame: Any) -> list[TextInput]:
    """Return the texts of a column of pandas, or the fields of several."""
    return frame.to_dict("records") if frame.ndim == 2 else frame.tolist()
