"""A method under check: its class, its settings, a small backbone and a small lesson."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlprompt.backbones import load_backbone
from vlprompt.backbones.glyph import build_tiny_clip
from vlprompt.config.build import (
    get_backbone_kind,
    get_constructor_types,
    get_nested_kind,
    resolve_class,
)
from vlprompt.config.describe import title
from vlprompt.config.resolve import complete_arguments
from vlprompt.config.sources import LayeredConfig
from vlprompt.core.batch import Inputs
from vlprompt.core.class_names import Names
from vlprompt.core.head import Prepared
from vlprompt.core.method import Method
from vlprompt.core.stage import Lesson
from vlprompt.core.texts import TextBatch
from vlprompt.core.towers import Backbone, Clip, LanguageTower, find_preprocessing
from vlprompt.engine.loop import fit
from vlprompt.engine.train_config import TrainConfig
from vlprompt.experiments.learned.prompt import build_run_method
from vlprompt.runtime.seeding import derive_seed, make_generator
from vlprompt.testing.failures import require
from vlprompt.testing.images import build_digits_lesson, draw_pixels, wrap_pixels
from vlprompt.testing.language_models import build_tiny_language_model
from vlprompt.testing.texts import AnswerKind, draw_text_data, draw_texts

WRAPPED_METHODS: dict[str, Any] = {  # for a wrapper whose settings name no method, by the type that it takes
    "Method": {"name": "coop", "n_ctx": 4},
    "TowerMethod": {"name": "adaptformer", "bottleneck_dim": 8, "dropout": 0.0},
}
ANSWER_KINDS: dict[str, AnswerKind] = {"tags": "tags", "response": "response"}  # by the name of a head
CHECK_TRAINING: dict[str, Any] = {"batch_size": 7, "lr": 0.01, "warmup": 0}  # 7 leaves a short last batch of 20 items


class FirstTraining(NamedTuple):
    """A method that was trained, the loss of each step, and its state right after, which answers may change."""

    method: Method
    losses: list[float]
    state: dict[str, Tensor]


class MethodCase:
    """A method under check.

    Args:
        cls: a class of methods, at the top of a module that can be imported.
        settings: its constructor's arguments as configuration; default: those of the constructor.
        backbone: a loaded backbone or its name; default: a tiny random CLIP or language model.
        lesson: what it learns from; default: 20 real digits, or 48 made-up texts.
        unused_parameters: parameters that these settings leave without a gradient.

    Raises:
        ValueError: for a class that is no method or can't be imported, and for settings that it does not have.
    """

    def __init__(
        self,
        cls: type,
        settings: Mapping[str, Any] | None = None,
        backbone: "str | Backbone | None" = None,
        lesson: Lesson | None = None,
        unused_parameters: Sequence[str] = (),
    ):
        self.name, self.settings, self.unused_parameters = _require_method(cls), dict(settings or {}), unused_parameters
        self.cls: type[Method] = cls
        self._backbone, self._lesson = backbone, lesson

    @cached_property
    def backbone(self) -> Backbone:
        if isinstance(self._backbone, str):
            return load_backbone(self._backbone)
        if self._backbone is not None:
            return self._backbone
        kinds = [get_backbone_kind(name, kind) for name, kind in get_constructor_types(self.cls).items()]
        return build_tiny_language_model() if "LanguageTower" in kinds else build_tiny_clip()

    @property
    def has_texts(self) -> bool:
        """Whether it learns from texts, on a language model."""
        return isinstance(self.backbone, LanguageTower)

    @cached_property
    def answer_kind(self) -> AnswerKind:
        """How its inputs are answered."""
        head = self.arguments.get("head")
        return ANSWER_KINDS.get(head["name"], "class") if isinstance(head, dict) and self.has_texts else "class"

    @cached_property
    def assumptions(self) -> dict[str, Any]:
        """Settings that were chosen because none were given."""
        kinds = {name: kind for name, kind in get_constructor_types(self.cls).items() if name not in self.settings}
        values = {
            name: WRAPPED_METHODS[kind.__name__] for name, kind in kinds.items() if get_nested_kind(kind) == "method"
        }
        teacher = {"backbone": self.backbone.spec}  # which teaches itself
        values |= {name: teacher for name, kind in kinds.items() if get_nested_kind(kind) == "teacher"}
        return values if isinstance(self.backbone, Clip) else {}

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """All its settings, checked and completed."""
        return complete_arguments("method", self.cls, {**self.assumptions, **self.settings}, LayeredConfig([]))

    @cached_property
    def lesson(self) -> Lesson:
        if self._lesson is not None:
            return self._lesson
        if not self.has_texts:
            return build_digits_lesson()
        data = draw_text_data(self.answer_kind)
        return Lesson(data.train, data.val)

    @property
    def names(self) -> Names:
        """The class names of its lesson."""
        return self.lesson.train.names

    def build(self) -> Method:
        """Construct the method."""
        return build_run_method({"name": self.name, **self.arguments}, self.backbone)

    def begin(self, seed: int = 0) -> Method:
        """Construct the method and begin the lesson."""
        method = self.build()
        method.begin_lesson(self.lesson, make_generator(seed))
        return method

    def train(self, seed: int = 0, **options: Any) -> tuple[Method, list[float]]:
        """Train a new method on the lesson.

        Args:
            seed: of its initial values and of the training.
            options: of the training, over those of all checks: one epoch, batches of 7, a learning rate of 0.01.

        Returns:
            The method, and the loss of each step; none where nothing is trained.
        """
        method = self.begin(seed)
        config = TrainConfig(**{"epochs": 1, **CHECK_TRAINING, **options})
        losses = [step.loss for step in fit(method, self.lesson, config, seed=seed)]
        is_trained = any(p.requires_grad for p in method.parameters())
        require(bool(losses) or not is_trained, "training: expected at least one step, got none. Leave epochs above 0.")
        return method, losses

    @cached_property
    def training(self) -> FirstTraining:
        """The training of `train()`, done once for all checks that compare with it or ask the method."""
        method, losses = self.train()
        return FirstTraining(method, losses, copy.deepcopy(method.state_dict()))

    @property
    def trained(self) -> Method:
        """The method as it was trained once, for checks that only ask it."""
        return self.training.method

    def draw_inputs(self, n: int, seed: str, tag: str = "") -> Inputs:
        """Draw n inputs: the same for the same seed; features are cached under the tag."""
        if self.has_texts:
            split = draw_texts(n, derive_seed(seed), self.answer_kind)
            return TextBatch(tuple(replace(item, key=f"{self.name} {seed} {tag} {item.key}") for item in split.items))
        pixels = draw_pixels(n, find_preprocessing(self.backbone).size, seed)
        return wrap_pixels(pixels, f"{self.name} {seed} {tag}")

    def draw_single_inputs(self, n: int, seed: str) -> list[Inputs]:
        """Draw the inputs of `draw_inputs` each in a batch of its own, whose features are cached apart."""
        return [self.draw_inputs(n, seed, f"alone {i}").slice(i, i + 1) for i in range(n)]

    def answer(self, method: Method, inputs: Inputs, names: Names | None = None) -> Tensor:
        """Return the logits (B, C) of a method in evaluation.

        Args:
            method: one of this case.
            inputs: images or texts.
            names: the class names to choose from; default: those of the lesson.
        """
        return self.answer_batches(method, [inputs], names)

    def answer_batches(self, method: Method, batches: Sequence[Inputs], names: Names | None = None) -> Tensor:
        """Return the logits of a method batch after batch, in one evaluation; arguments as in `answer`."""
        with torch.no_grad():
            prepared = self.prepare(method, names)
            return torch.cat([method(inputs, prepared).logits for inputs in batches])

    def prepare(self, method: Method, names: Names | None = None) -> Prepared:
        """Begin an evaluation of a method; arguments as in `answer`."""
        names = self.names if names is None else names
        with torch.no_grad():
            return method.eval().prepare(names, method.precompute(names))


def _require_method(cls: type) -> str:
    """Return the name of a class of methods in a configuration; ValueError for another class."""
    if not isinstance(cls, type) or not issubclass(cls, Method):
        name = f"{cls.__module__}:{cls.__qualname__}" if isinstance(cls, type) else repr(cls)
        raise ValueError(
            f"method: expected a subclass of vlprompt.Method, got {name}. Pass the class, not an object of it."
        )
    name = title(cls)
    if "<locals>" in name or resolve_class("method", name) is not cls:
        raise ValueError(
            f"method: expected a class at the top of a module that can be imported, got {name!r}, which a "
            "configuration cannot name. Move it to the top of its module."
        )
    return name
