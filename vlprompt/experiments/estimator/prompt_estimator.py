"""What the estimators of images and texts share: settings, training lesson by lesson, answers, pickling."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted

from vlprompt.config.run_config import RunConfig
from vlprompt.core.batch import Item, Split
from vlprompt.core.class_names import DEFAULT_TEMPLATE, ClassName
from vlprompt.data.splits.sampling import hold_out
from vlprompt.engine.evaluate import iter_outputs
from vlprompt.engine.unknown_scores import make_score_fn
from vlprompt.experiments.estimator.estimator_folder import (
    describe_estimator,
    read_estimator,
    restore_attributes,
    write_estimator,
)
from vlprompt.experiments.estimator.labels import (
    ClassNames,
    LabelledData,
    encode_labels,
    find_class_indices,
    merge_classes,
    name_classes,
    read_label_matrix,
    read_labels,
    require_same_kind,
)
from vlprompt.experiments.estimator.settings import (
    is_setting,
    learns_streams,
    require_same_stream,
    require_setting,
    resolve_settings,
)
from vlprompt.experiments.estimator.tasks import build_task
from vlprompt.experiments.estimator.training import learn_lesson, restore_shared, use_plain_torch
from vlprompt.experiments.learned.decision import UNKNOWN, LabelDecision
from vlprompt.experiments.learned.prompt import LearnedPrompt
from vlprompt.experiments.learned.state import LearnedState
from vlprompt.layers.label_losses.several_labels import read_odds

BATCH_SIZE = 100


class PromptEstimator(ClassifierMixin, BaseEstimator, ABC):
    """A learned prompt as a classifier of scikit-learn; subclasses read images or texts.

    Attributes:
        classes_: (C,), the labels, sorted.
        class_names_: the name of each class, as prompts show it.
        learned_state_: what was learned, with the resolved configuration; pickling keeps this and not the backbone.
    """

    __metadata_request__fit: ClassVar = {"labels": UNUSED, "class_names": UNUSED, "validation": UNUSED}
    __metadata_request__partial_fit: ClassVar = {"labels": UNUSED, "classes": UNUSED, "class_names": UNUSED}
    _task: ClassVar[str]  # whose recipes and settings apply
    _items_name: ClassVar[str]

    method: str
    backbone: str
    seed: int
    validation_fraction: float | None
    device: str | None
    classes_: np.ndarray
    class_names_: tuple[ClassName, ...]
    learned_state_: LearnedState
    _prompt: LearnedPrompt

    def _set_settings(self, settings: Mapping[str, Any]) -> None:
        """Store keywords SECTION__NAME, as attributes: they are checked when `fit` resolves them.

        Raises:
            ValueError: for a name that can't be stored, as it is one of the class or of what `fit` learns.
        """
        for key, value in settings.items():
            if key.startswith("_") or key.endswith("_") or hasattr(type(self), key):
                require_setting(key)
            setattr(self, key, value)

    @property
    def _settings(self) -> dict[str, Any]:
        named = self._get_param_names()
        return {
            key: value
            for key, value in vars(self).items()
            if key not in named and not key.startswith("_") and not key.endswith("_")
        }

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments, with the keywords SECTION__NAME that were set."""
        return super().get_params(deep) | self._settings

    def set_params(self, **params: Any) -> Self:
        """Set arguments of the constructor, and keywords SECTION__NAME such as train__epochs."""
        settings = {key: value for key, value in params.items() if is_setting(key) or key in self._settings}
        super().set_params(**{key: value for key, value in params.items() if key not in settings})
        self._set_settings(settings)
        return self

    def _get_template(self) -> str:
        return DEFAULT_TEMPLATE

    @abstractmethod
    def _read_items(self, inputs: Any, is_training: bool) -> tuple[Item, ...]:
        """Return the items of images or texts; those in training decide how later ones are read."""

    def _complete_dataset(self, inputs: Any, labels: Any, class_names: ClassNames) -> tuple[Any, ClassNames]:
        """Return labels and class names, from the inputs where these are a dataset that has them."""
        return labels, class_names

    def fit(
        self,
        images: Any,
        labels: Any = None,
        class_names: ClassNames = None,
        validation: tuple[Any, Any] | None = None,
    ) -> Self:
        """Train on items with labels, as `vlprompt run` does with the same data, settings and seed.

        Args:
            images: images or texts (N).
            labels: of any one kind (N,); may be left out for a dataset that has them.
            class_names: a name for each class: a mapping of labels, or in the order of the sorted labels. Default: the
                labels themselves.
            validation: other items with their labels, for methods that search on them.

        Raises:
            ValueError: for data or settings that can't be trained on.
        """
        vars(self).pop("learned_state_", None)
        data = self._read_training_data(images, labels, class_names, min_classes=2)
        train, val = data.train, None if validation is None else self._read_validation(validation, data)
        if val is None and self.validation_fraction is not None:
            train, val = self._hold_out(train)
        config = self._resolve(self._task, train)
        task = build_task(self._task, train, val, config)
        prompt = learn_lesson(config, task, task.lesson, self.device)
        return self._store(prompt, data.classes, data.names)

    @property
    def partial_fit(self) -> Callable[..., Self]:
        """Learn the next lesson of a stream: `partial_fit(images, labels, classes=None, class_names=None)`.

        Each call is one lesson, of the classes that are in its labels; later ones may add classes. task__stages is the
        number of lessons, for methods that must know it. `classes` is ignored, as any lesson may bring new ones.

        Raises:
            AttributeError: for a method that does not learn lesson by lesson.
        """
        if self._task != "few_shot" or not (isinstance(self.method, str) and learns_streams(self.method)):
            raise AttributeError(
                f"partial_fit: expected a method for streams of images, such as nearest_mean, ranpac or l2p, got "
                f"{self.method!r}. Use fit, with all data at once."
            )
        return self._learn_next_lesson

    def _learn_next_lesson(
        self, images: Any, labels: Any = None, classes: Any = None, class_names: ClassNames = None
    ) -> Self:
        earlier = self.get_prompt() if "learned_state_" in vars(self) else None
        data = self._read_training_data(images, labels, class_names, min_classes=1, is_first=earlier is None)
        config = self._resolve("continual", data.train)
        if earlier is not None:
            require_same_stream(config, earlier.state.config)
        task = build_task("continual", data.train, None, config)
        lessons = [] if earlier is None else earlier.state.lessons
        total = lessons[0].total if lessons else config.task["stages"]
        known = merge_classes(data, self.classes_, self.class_names_) if lessons else (data.classes, data.names)
        vars(self).pop("_prompt", None)  # after an error the lessons before are restored
        lesson = replace(task.lesson, index=len(lessons), total=total)
        return self._store(learn_lesson(config, task, lesson, self.device, earlier), *known)

    def _read_training_data(
        self, inputs: Any, labels: Any, class_names: ClassNames, min_classes: int, is_first: bool = True
    ) -> LabelledData:
        labels, class_names = self._complete_dataset(inputs, labels, class_names)
        items = self._read_items(inputs, is_training=is_first)
        array = read_labels(type(self).__name__, labels, len(items), self._items_name)
        classes, indices = encode_labels(array, min_classes)
        names = name_classes(classes, class_names, self._get_template())
        return LabelledData(Split(items, tuple(indices), names), classes, names)

    def _read_validation(self, validation: tuple[Any, Any], data: LabelledData) -> Split:
        try:
            inputs, labels = validation
        except (TypeError, ValueError):
            raise ValueError(
                f"validation: expected a pair of {self._items_name} and labels, got a {type(validation).__name__}. "
                f"Pass ({self._items_name}, labels)."
            ) from None
        items = self._read_items(inputs, is_training=False)
        array = read_labels(type(self).__name__, labels, len(items), self._items_name)
        return replace(data.train, items=items, labels=tuple(find_class_indices(array, data.classes)))

    def _hold_out(self, train: Split) -> tuple[Split, Split]:
        fraction = self.validation_fraction
        if not isinstance(fraction, float) or not 0 < fraction < 1:
            raise ValueError(
                f"validation_fraction: expected a number between 0 and 1, or None, got {fraction!r}. Set it to 0.2."
            )
        return hold_out(train, fraction)

    def _resolve(self, task: str, train: Split) -> RunConfig:
        owner, shots = type(self).__name__, max(train.count_per_class())
        return resolve_settings(owner, task, self.method, self.backbone, self.seed, self._settings, shots)

    def _store(self, prompt: LearnedPrompt, classes: np.ndarray, names: tuple[ClassName, ...]) -> Self:
        self._prompt, self.learned_state_ = prompt, prompt.state
        self.classes_, self.class_names_ = classes, names
        return self

    def get_prompt(self) -> LearnedPrompt:
        """Return the learned prompt; after unpickling its frozen backbone is loaded first."""
        check_is_fitted(self, "learned_state_")
        if "_prompt" not in vars(self):
            self._prompt = restore_shared(self.learned_state_, self.device)
        return self._prompt

    def _compute_logits(self, inputs: Any) -> np.ndarray:
        """Compute logits (N, C), divided by the temperature, in the order of `classes_`."""
        return self._compute_answers(inputs)[0]

    def _compute_answers(self, inputs: Any, with_scores: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
        """Compute logits (N, C), and how well each item is known (N,) by the score of the decision."""
        check_is_fitted(self, "learned_state_")
        items = self._read_items(inputs, is_training=False)
        with use_plain_torch(self.learned_state_.config["backbone"]):
            prompt = self.get_prompt()
            split, decision = Split(items, (0,) * len(items), self.class_names_), prompt.decision
            score_fn = make_score_fn(prompt.method, [decision.score], decision.temperature) if with_scores else None
            prepared = prompt.prepare(self.class_names_)
            outputs = list(iter_outputs(prompt.method, split, BATCH_SIZE, prepared=prepared, score_fn=score_fn))
            logits = torch.cat([output.logits.double().cpu() for output in outputs])
        scores = [output.scores[:, 0].cpu() for output in outputs if output.scores is not None]
        return logits.numpy() / decision.temperature, torch.cat(scores).numpy() if scores else None

    @property
    def _several_labels(self) -> LabelDecision | None:
        """How logits become several labels, for a loaded prompt that gives several."""
        return self.learned_state_.decision.labels

    def _compute_raw_logits(self, inputs: Any) -> torch.Tensor:
        """Compute logits (N, C) in float32, as tests have them, of a prompt without a temperature."""
        return torch.from_numpy(self._compute_logits(inputs)).float()

    def predict(self, images: Any) -> np.ndarray:
        """Return the most probable label (N,) of each image or text; `unknown` below the threshold of a loaded prompt.

        A threshold applies where labels are strings; others have no such answer, which is warned about. Of a loaded
        prompt for several labels it is an array (N, C) of 1 for those that are given and 0, in the order of `classes_`.
        """
        check_is_fitted(self, "learned_state_")
        if (several := self._several_labels) is not None:
            return several.apply(self._compute_raw_logits(images))[1].numpy().astype(np.int64)
        threshold, has_strings = self.learned_state_.decision.threshold, self.classes_.dtype.kind in "OU"
        if threshold is not None and not has_strings:
            warnings.warn(
                f"{type(self).__name__}: expected labels that are strings for the answer {UNKNOWN!r}, got "
                f"{self.classes_.tolist()[0]!r}, so the threshold of this prompt is not applied. Ask "
                "get_prompt().predict(...), which answers by class names.",
                stacklevel=2,
            )
        logits, scores = self._compute_answers(images, with_scores=threshold is not None and has_strings)
        labels = self.classes_[logits.argmax(1)]
        return labels if scores is None else np.where(scores >= threshold, labels, UNKNOWN)

    def predict_proba(self, images: Any) -> np.ndarray:
        """Return probabilities (N, C), in the order of `classes_`; of several labels each is for itself."""
        check_is_fitted(self, "learned_state_")
        if (several := self._several_labels) is not None:
            return several.apply(self._compute_raw_logits(images))[0].numpy()
        return softmax(self._compute_logits(images), axis=1)

    def decision_function(self, images: Any) -> np.ndarray:
        """Return logits (N, C); of two classes their difference (N,), above 0 for the second.

        Of several labels it is the logarithm of their odds (N, C) less the threshold, above 0 for those that are given.
        """
        check_is_fitted(self, "learned_state_")
        if (several := self._several_labels) is not None:
            odds = read_odds(self._compute_raw_logits(images), several.reading)
            return odds.double().numpy() - several.threshold
        logits = self._compute_logits(images)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def score(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, images: Any, y: Any = None, sample_weight: Any = None
    ) -> float:
        """Return the accuracy, from 0 to 1; the labels `y` may be left out for a dataset that has them.

        Of several labels, `y` (N, C) of 0 and 1, it is the share of items whose labels are all right.
        """
        labels, _ = self._complete_dataset(images, y, None)
        predicted = self.predict(images)
        if self._several_labels is not None:
            return float(accuracy_score(read_label_matrix(labels, predicted), predicted, sample_weight=sample_weight))
        expected = read_labels(type(self).__name__, labels, len(predicted), self._items_name)
        require_same_kind(expected, self.classes_, "training")
        return float(accuracy_score(expected, predicted, sample_weight=sample_weight))

    def save(self, folder: str | Path, license: str | None = None, force: bool = False) -> None:
        """Save as a model folder, which `load`, `vlprompt.load_prompt` and the commands read.

        Args:
            folder: new or empty.
            license: the identifier of the prompt's licence, for the model card.
            force: replace a model folder.

        Raises:
            ValueError: for a method that reads files of this machine.
            OSError: for a folder that holds something else, or can't be written.
        """
        check_is_fitted(self, "learned_state_")
        content = describe_estimator(type(self).__name__, self.get_params(deep=False), vars(self))
        write_estimator(Path(folder).expanduser(), self.learned_state_, content, license, force)

    @classmethod
    def load(cls, folder: str | Path, backbone: str | None = None, device: str | None = None) -> Self:
        """Load what was saved, or the prompt of any run or of the hub: its labels are then the names of its classes.

        Args:
            folder: a model folder, a run's folder, or OWNER/NAME on the hub.
            backbone: where the frozen backbone is now; default where it was.
            device: as `vlprompt.load` takes it.

        Raises:
            ValueError: for a folder that is no such one, or of another estimator.
        """
        state, content = read_estimator(folder, backbone)
        if content.estimator != cls.__name__:
            raise ValueError(
                f"{str(folder)!r}: expected a prompt of {cls.__name__}, got one of {content.estimator}. Load it by "
                f"vlprompt.{content.estimator}."
            )
        arguments = content.parameters | {"backbone": state.config["backbone"], "device": device}
        estimator = cls(**arguments)
        vars(estimator).update(restore_attributes(state, content))
        return estimator

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle and copy store: settings and the learned state, never the backbone."""
        return {key: value for key, value in vars(self).items() if key != "_prompt"}
