"""A learned prompt on its frozen backbone, ready to answer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vlprompt.backbones import load_backbone
from vlprompt.backbones.feature_cache import attach_disk_cache
from vlprompt.config.build import build_method
from vlprompt.core.batch import Item, Split
from vlprompt.core.class_names import ClassName, Names, as_class_name, class_ids
from vlprompt.core.head import Prepared
from vlprompt.core.method import Method, Output
from vlprompt.core.teacher import Teacher, TeacherSettings
from vlprompt.core.towers import Backbone, Clip, find_input_tower, find_preprocessing, with_preprocessing
from vlprompt.data.dataset import shorten_list
from vlprompt.data.images.image_inputs import build_image_items
from vlprompt.data.images.preprocess_presets import resolve_preprocessing
from vlprompt.engine.evaluate import iter_outputs
from vlprompt.engine.unknown_scores import make_score_fn
from vlprompt.experiments.learned.decision import UNKNOWN, Decision, LabelDecision
from vlprompt.experiments.learned.state import LearnedState, read_learned_state
from vlprompt.experiments.learned.teacher import OpenedTeacher, RunTeacher, hash_learned_state
from vlprompt.methods.zero_shot import ZeroShot
from vlprompt.runtime.errors import UnknownClassError
from vlprompt.runtime.settings import SETTINGS

MAX_NAMES_SHOWN = 20
MAX_PREPARED_CLASS_LISTS = 8


class Answers(NamedTuple):
    """Answers to B items among C classes.

    Args:
        probabilities: (B, C), after the temperature.
        scores: (B,), how well each item is known, in float64.
        is_unknown: (B,), whether the score is below the threshold.
        is_given: (B, C), which classes are the answer: the most probable one, or none of an unknown item; where an item
            may have several labels all those above their threshold, and the score is the greatest probability.
    """

    probabilities: Tensor
    scores: Tensor
    is_unknown: Tensor
    is_given: Tensor


class LearnedPrompt:
    """A learned prompt: a method with its learned state, the classes it was trained on, and its decision.

    Args:
        method: with the learned state, on its backbone.
        state: what it was restored from.

    Attributes:
        names: the classes that it was trained on.
    """

    def __init__(self, method: Method, state: LearnedState):
        self.method, self.state, self.names = method.eval(), state, state.names
        self.decision = state.decision
        self._prepared = dict[tuple[Names, Names], Prepared]()

    def with_decision(self, decision: Decision) -> "LearnedPrompt":
        """Return the same prompt with another decision."""
        return LearnedPrompt(self.method, replace(self.state, decision=decision))

    def decide_among(self, names: Names) -> Decision:
        """Return the decision among these classes: a threshold holds only for the classes that it was chosen among.

        That of labels stays where their odds do not depend on the other classes, as in the sigmoid reading, and where
        a user has named it.

        Raises:
            ValueError: for a single class that the contrastive reading has nothing to compare with.
        """
        labels = self.decision.labels
        if labels is not None and labels.reading == "contrastive" and len(names) < 2:
            raise ValueError(
                f"classes: expected at least 2, which the contrastive reading compares, got {len(names)}. Add another."
            )
        if set(class_ids(names)) == set(class_ids(self.names)):
            return self.decision
        if labels is not None and labels.reading != "sigmoid" and not labels.is_given:
            labels = LabelDecision(labels.reading)
        return replace(self.decision, threshold=None, labels=labels)

    def resolve_classes(self, texts: Sequence[str]) -> Names:
        """Return class names: those it was trained on by name or id, new ones with the template of the learned."""
        known = {key: name for name in map(as_class_name, self.names) for key in (name.id, str(name))}
        templates = {as_class_name(name).template for name in self.names}
        template = templates.pop() if len(templates) == 1 else None
        return tuple(known.get(text) or ClassName(text, template=template) for text in texts)

    @torch.no_grad()
    def prepare(self, names: Names | None = None) -> Prepared:
        """Return what the method computes from class names alone; that of the last few lists is cached.

        Raises:
            UnknownClassError: for a class that the method was not trained on and can't answer by its name.
        """
        names = self.names if names is None else names
        key = tuple(map(str, names)), class_ids(names)
        if key not in self._prepared:
            if len(self._prepared) >= MAX_PREPARED_CLASS_LISTS:
                self._prepared.pop(next(iter(self._prepared)))
            try:
                self._prepared[key] = self.method.prepare(names, self.method.precompute(names))
            except UnknownClassError as error:  # of a method, which compares ids
                if (learned := list(map(str, self.names))) == list(class_ids(self.names)):
                    raise
                shown = shorten_list(learned, MAX_NAMES_SHOWN)
                raise UnknownClassError(f"{error} By name the classes are {shown}.") from error
        return self._prepared[key]

    def iter_answers(
        self, items: Sequence[Item], names: Names | None = None, batch_size: int = 100
    ) -> Iterator[Answers]:
        """Yield the answers to items in order, batch by batch.

        Args:
            items: images or texts.
            names: the classes to choose from; default: those it was trained on. Among others no item is unknown.
            batch_size: items per batch; the answers are the same.
        """
        names = self.names if names is None else names
        decision = self.decide_among(names)
        split = Split(tuple(items), (0,) * len(items), names)
        score_fn = None
        if decision.labels is None:
            score_fn = make_score_fn(self.method, [decision.score], decision.temperature)
        for output in iter_outputs(self.method, split, batch_size, prepared=self.prepare(names), score_fn=score_fn):
            yield decide(output, decision)

    def answer(self, items: Sequence[Item], names: Names | None = None) -> Answers:
        """Return the answers to at least one item; arguments as in `iter_answers`."""
        parts = list(self.iter_answers(items, names))
        return Answers(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))

    def predict(self, inputs: Any, names: Names | None = None) -> list[str] | list[list[str]]:
        """Return the class of each input, or `unknown` where its score is below the threshold.

        Of a prompt that was learned from items with several labels it is the list of labels of each input, by falling
        probability.

        Args:
            inputs: images as `build_image_items` takes them, or texts: strings, or mappings of fields.
            names: the classes to choose from; default: those it was trained on.
        """
        names = self.names if names is None else names
        answers = self.answer(self.build_items(inputs), names)
        if self.decision.labels is not None:
            return list_labels(answers.probabilities, answers.is_given, list(map(str, names)))
        best, is_unknown = answers.probabilities.argmax(1).tolist(), answers.is_unknown.tolist()
        return [UNKNOWN if unknown else str(names[k]) for k, unknown in zip(best, is_unknown, strict=True)]

    def predict_proba(self, inputs: Any, names: Names | None = None) -> np.ndarray:
        """Return probabilities (N, C) of the classes `names`; arguments as in `predict`."""
        return self.answer(self.build_items(inputs), names).probabilities.cpu().numpy()

    def build_items(self, inputs: Any) -> tuple[Item, ...]:
        """Return the items of images or texts; ValueError for other inputs, or a prompt that answers no classes."""
        protocol = self.state.text_protocol
        if not protocol:
            return build_image_items(inputs)
        if protocol["answer"] != "class":
            raise ValueError(
                f"{self.state.source!r}: expected a prompt that classifies texts, got one whose answer is a "
                f"{protocol['answer']}. Use `vlprompt predict`."
            )
        return self.state.build_text_items(inputs)


def decide(output: Output, decision: Decision) -> Answers:
    """Return the answers that a decision makes of outputs, of one label with scores; one that is NaN is unknown."""
    if decision.labels is not None:
        probabilities, is_given = decision.labels.apply(output.logits.float())
        is_unknown = torch.zeros(len(probabilities), dtype=torch.bool)
        return Answers(probabilities, probabilities.amax(1), is_unknown, is_given)
    probabilities = (output.logits / decision.temperature).softmax(1)
    assert output.scores is not None
    scores, threshold = output.scores[:, 0], decision.threshold
    is_unknown = torch.zeros(len(scores), dtype=torch.bool) if threshold is None else ~(scores >= threshold)
    is_best = torch.zeros_like(probabilities, dtype=torch.bool).scatter_(1, probabilities.argmax(1, True), True)
    return Answers(probabilities, scores, is_unknown, is_best & ~is_unknown[:, None].to(is_best.device))


def list_labels(probabilities: Tensor, is_given: Tensor, names: Sequence[str]) -> list[list[str]]:
    """Return the labels that are given to B items, by falling probability, the first of the list at a tie.

    Args:
        probabilities: (B, C).
        is_given: (B, C), whether a label is given.
        names: (C) of the classes.
    """
    orders: list[list[int]] = probabilities.argsort(dim=1, descending=True, stable=True).tolist()
    return [[names[k] for k in order if row[k]] for order, row in zip(orders, is_given.tolist(), strict=True)]


def load_prompt(source: str | Path, backbone: str | Backbone | None = None, device: str | None = None) -> LearnedPrompt:
    """Load a learned prompt on its frozen backbone.

    Args:
        source: the folder of a finished run, a model folder, or OWNER/NAME[@REVISION] on the hub.
        backbone: where its backbone is now, or the backbone itself, loaded before; default: that of the run.
        device: as `load` takes it.

    Raises:
        ValueError: when the run is not finished, the backbone has other weights, or the state does not fit the method.
    """
    return restore_prompt(read_learned_state(source), backbone, device)


def require_one_label(state: LearnedState, use: str) -> None:
    """Raise ValueError for what was learned from items with several labels, which answers with no single class.

    Args:
        state: what was learned.
        use: what needs one class, as a command or an option is written.
    """
    if state.decision.labels is not None:
        raise ValueError(
            f"{use}: expected a prompt that answers with one class, got one of several labels in {state.source!r}. "
            "Leave it out, or name a run on one label an item."
        )


def restore_prompt(
    state: LearnedState,
    backbone: str | Backbone | None = None,
    device: str | None = None,
    allows_online: bool = False,
) -> LearnedPrompt:
    """Restore a learned state on its backbone; arguments and errors as in `load_prompt`.

    Args:
        allows_online: whether answers may depend on the order of the inputs; else such a method is refused.
    """
    config = state.config
    if backbone is None and state.is_backbone_local:
        raise ValueError(
            f"--backbone: expected where the weights of {config['backbone']} are on this machine, got none, and "
            f"{state.source!r} names only their file. Name the same model with your path by --backbone."
        )
    spec = config["backbone"] if backbone is None else backbone
    # its notes were shown with the run's result
    frozen = spec if not isinstance(spec, str) else load_backbone(spec, device)
    if isinstance(spec, str):
        frozen = attach_disk_cache(frozen, SETTINGS.get_cache_folder())
    if "preprocess" in config:
        frozen = with_preprocessing(frozen, resolve_preprocessing(config["preprocess"], find_preprocessing(frozen)))
    tower = find_input_tower(frozen)
    _require_same_backbone(tower.key, state, tower.spec if not isinstance(spec, str) else spec)
    try:
        method = build_run_method(config["method"], frozen)
        method.restore(state.lessons, {name: tensor.to(tower.device) for name, tensor in state.tensors.items()})
        _require_same_kinds(method, state)
        _require_order(method, state, allows_online)
    except (RuntimeError, TypeError) as error:
        cause = " ".join(str(error).split())
        raise ValueError(
            f"{state.source!r}: expected a learned state of the method {config['method']['name']}, got an error on "
            f"loading it: {cause}. Train it again with this version."
        ) from error
    return LearnedPrompt(method, state)


def _require_order(method: Method, state: LearnedState, allows_online: bool) -> None:
    """Raise ValueError for a method whose answers depend on the order of the inputs, unless that is allowed."""
    if method.is_online and not allows_online:
        raise ValueError(
            f"{state.source!r}: expected a method that answers each input by itself, got "
            f"{state.config['method']['name']}, whose answers depend on the inputs before. Test it by vlprompt eval "
            "alone, or vlprompt run --task online."
        )


def _require_same_kinds(method: Method, state: LearnedState) -> None:
    """TypeError for whole numbers in place of real ones, or the reverse: loading converts them in silence."""
    restored = method.state_dict()
    for name, tensor in state.tensors.items():
        if name in restored and restored[name].is_floating_point() != tensor.is_floating_point():
            raise TypeError(f"{name}: expected {restored[name].dtype}, got {tensor.dtype}")


def _require_same_backbone(key: str, state: LearnedState, spec: str) -> None:
    """Raise ValueError unless a backbone has the weights and the computation that a prompt was learned on.

    Args:
        key: of the backbone.
        state: of the prompt.
        spec: the backbone's, for the message.
    """
    weights, _, computation = key.partition("#")[2].partition(".")
    trained_spec, _, identity = state.backbone_key.partition("#")
    trained_weights, _, trained_computation = identity.partition(".")
    if weights != trained_weights:
        raise ValueError(
            f"--backbone: expected the weights that {state.source!r} was trained on ({state.backbone_key}), got "
            f"{spec} with other weights ({key}). Name the right ones by --backbone."
        )
    if computation != trained_computation:
        raise ValueError(
            f"--backbone: expected the architecture, activation, image size and preprocessing that {state.source!r} "
            f"was trained on ({trained_spec}), got {spec}, which has the same weights but differs in these. Name the "
            "same model before the weights' file by --backbone."
        )


def build_run_method(config: Mapping[str, Any], backbone: Backbone) -> Method:
    """Build a method on its backbone, with its teacher where it has one; arguments and errors as in `build_method`."""
    return build_method(dict(config), backbone, open_teacher=open_teacher)


def open_teacher(settings: TeacherSettings, device: torch.device) -> Teacher:
    """Return the teacher that settings name; it is opened when it is first asked."""
    return RunTeacher(settings, device, _open_teacher_method)


def _open_teacher_method(settings: TeacherSettings, device: str) -> OpenedTeacher:
    if settings.run is None:
        return _open_zero_shot(str(settings.backbone), device)
    state = read_learned_state(settings.run)
    require_one_label(state, "run")
    return _open_learned(settings, device, hash_learned_state(state))


@lru_cache(maxsize=2)  # runs of one process share it; it is frozen
def _open_zero_shot(backbone: str, device: str) -> OpenedTeacher:
    frozen = attach_disk_cache(load_backbone(backbone, device), SETTINGS.get_cache_folder())
    if not isinstance(frozen, Clip):
        raise ValueError(
            f"--backbone: expected a CLIP, got {backbone}, which has no texts. Name one such as glyph or "
            "open_clip:ViT-L-14/openai."
        )
    return OpenedTeacher(ZeroShot(frozen), "")


@lru_cache(maxsize=2)  # likewise
def _open_learned(settings: TeacherSettings, device: str, learned_hash: str) -> OpenedTeacher:
    prompt = load_prompt(str(settings.run), settings.backbone, device)
    if hash_learned_state(prompt.state) != learned_hash:
        raise ValueError(f"{settings.run!r}: expected a run that stays as it is, got one that changes. Run it again.")
    return OpenedTeacher(prompt.method, learned_hash)
