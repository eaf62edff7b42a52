"""Load one or several learned prompts that answer together."""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlprompt.backbones import load_backbone
from vlprompt.backbones.feature_cache import attach_disk_cache
from vlprompt.core.batch import Item
from vlprompt.core.class_names import Names, class_ids
from vlprompt.core.images import Augmentation, ImageItem, Preprocessing
from vlprompt.core.introspection import feature_caches, find_preprocessings
from vlprompt.core.texts import TextBatch
from vlprompt.core.towers import Backbone
from vlprompt.data.images.decoding import preprocess_image
from vlprompt.engine.evaluate_text import generate_texts
from vlprompt.experiments.learned.prompt import Answers, LearnedPrompt, restore_prompt
from vlprompt.experiments.learned.state import LearnedState, read_learned_state
from vlprompt.experiments.predict.prediction_input import PredictionInput
from vlprompt.runtime.bounded_cache import BoundedCache
from vlprompt.runtime.settings import SETTINGS

IMAGE_COUNTER = itertools.count()  # an image's key in this process: two inputs never share features
MAX_TEXT = 200  # characters of a list of classes, in an error
RUN_FILES, MODEL_CONFIG, MODEL_WEIGHTS = ("config.yaml", "result.json"), "config.json", "*.safetensors"


def is_prompt_source(path: str | Path) -> bool:
    """Whether a path is a run folder or a model folder, rather than a folder or file of inputs."""
    folder = Path(path)
    try:
        is_model = (folder / MODEL_CONFIG).is_file() and any(folder.glob(MODEL_WEIGHTS))
        return is_model or any((folder / name).is_file() for name in RUN_FILES)
    except OSError:  # a name that is too long, a folder that can't be read
        return False


def split_sources(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the words of a command into prompts and inputs.

    The first word is a prompt; so are those after it that are run folders or model folders, up to the first that is
    none.

    Raises:
        ValueError: for a prompt behind an input.
    """
    n_prompts = 1 + sum(1 for _ in itertools.takewhile(is_prompt_source, words[1:]))
    prompts, inputs = list(words[:n_prompts]), list(words[n_prompts:])
    is_input = not is_prompt_source(words[0]) and Path(words[0]).exists()  # else it may be a name on the hub
    behind = list(words) if is_input else inputs
    if late := [word for word in behind if is_prompt_source(word)]:
        raise ValueError(
            f"predict: expected prompts before inputs, got {late[0]!r} behind {behind[0]!r}. Name it first."
        )
    return prompts, inputs


@dataclass(frozen=True)
class ImagePixels:
    """The pixels of an image for the preprocessings of all prompts; others are computed from the image again."""

    pixels: Mapping[Preprocessing, Tensor]
    image: PredictionInput

    def __call__(self, preprocessing: Preprocessing, augmentation: Augmentation | None) -> Tensor:
        if augmentation is None and preprocessing in self.pixels:
            return self.pixels[preprocessing]
        return preprocess_image(self.image.open(), preprocessing, augmentation)


@dataclass(frozen=True)
class Ensemble:
    """One or several learned prompts that answer the same inputs about the same classes.

    Args:
        prompts: by name; their backbones may differ.
        names_by_prompt: the classes, in the same order, as each prompt knows them.
        preprocessings: those of all backbones.
    """

    prompts: Mapping[str, LearnedPrompt]
    names_by_prompt: Sequence[Names]
    preprocessings: Sequence[Preprocessing]

    @property
    def names(self) -> Names:
        """The classes to choose from."""
        return self.names_by_prompt[0]

    @property
    def has_several_labels(self) -> bool:
        """Whether an input may have several labels."""
        return any(p.decision.labels is not None for p in self.prompts.values())

    @property
    def notes(self) -> list[str]:
        """What a user should know: thresholds of labels, and thresholds that do not hold for these classes."""
        notes = dict[str, None]()
        for (name, prompt), names in zip(self.prompts.items(), self.names_by_prompt, strict=True):
            before, now = prompt.decision, prompt.decide_among(names)
            if before.threshold is not None and now.threshold is None:
                notes["nothing is answered unknown: the threshold was chosen among the classes of the training"] = None
            if now.labels is not None and (now.labels.is_given or now.labels.n_validation):
                notes[f"{name}: labels are those of a probability above {now.labels}"] = None
            elif now.labels is not None:
                lost = before.labels != now.labels
                why = "was chosen among the classes of the training" if lost else "was chosen on no validation images"
                notes[f"{name}: labels are those of a probability above 0.5: the threshold {why}"] = None
        return list(notes)

    @property
    def has_threshold(self) -> dict[str, bool]:
        """Whether each prompt, by name, has a threshold that holds for these classes."""
        pairs = zip(self.prompts.items(), self.names_by_prompt, strict=True)
        return {name: p.decide_among(names).threshold is not None for (name, p), names in pairs}

    @property
    def text_protocol(self) -> Mapping[str, str]:
        """How the first prompt shows texts; {} for prompts on images."""
        return next(iter(self.prompts.values())).state.text_protocol

    @property
    def writes_responses(self) -> bool:
        """Whether the answers are texts instead of classes."""
        return self.text_protocol.get("answer") == "response"

    def prepare(self) -> None:
        """Compute what depends on class names alone; UnknownClassError for a class that a prompt can't answer."""
        for prompt, names in zip(self.prompts.values(), self.names_by_prompt, strict=True):
            if not self.writes_responses:
                prompt.prepare(names)

    def build_items(self, one: PredictionInput) -> tuple[Item, ...]:
        """Open an input once and return its item for each prompt; ValueError or OSError for a broken one."""
        opened = one.open()
        if not isinstance(opened, Image.Image):
            return tuple(p.state.build_text_items([opened], [one.path])[0] for p in self.prompts.values())
        pixels = ImagePixels({p: preprocess_image(opened, p) for p in self.preprocessings}, one)
        return (ImageItem(f"predict|{next(IMAGE_COUNTER)}", pixels, one.path),) * len(self.prompts)

    def answer(self, items: Sequence[tuple[Item, ...]]) -> list[Answers]:
        """Return the answers of each prompt; features are shared by prompts on one backbone, and then dropped."""
        answers = []
        for prompt, names, own in zip(
            self.prompts.values(), self.names_by_prompt, zip(*items, strict=True), strict=True
        ):
            (batch,) = prompt.iter_answers(own, names, batch_size=len(own))
            answers.append(batch)
        for prompt in self.prompts.values():
            for cache in feature_caches(prompt.method):
                _empty_cache(cache)
        return answers

    def generate(self, items: Sequence[tuple[Item, ...]]) -> list[str]:
        """Return the responses of the only prompt to texts."""
        ((name, prompt),) = self.prompts.items()
        n_tokens = prompt.state.config["task"].get("max_new_tokens")
        options = {"max_new_tokens": n_tokens} if n_tokens else {}
        return generate_texts(prompt.method, TextBatch(tuple(item for (item,) in items)), repr(name), **options)


def _empty_cache(cache: object) -> None:
    if isinstance(cache, BoundedCache):
        max_bytes = cache.max_bytes
        cache.set_max_bytes(0)
        cache.set_max_bytes(max_bytes)


def load_prompts(
    sources: Sequence[str],
    classes: Sequence[str] | None = None,
    backbone: str | None = None,
    device: str | None = None,
    states: Sequence[LearnedState] | None = None,
) -> Ensemble:
    """Load learned prompts, each backbone once.

    Args:
        sources: run folders, model folders or names on the hub.
        classes: the classes to choose from; default: the learned ones, which must agree.
        backbone: where the backbone is now; default: where each prompt's was.
        device: as `load` takes it.
        states: what the sources hold, where it was read before.

    Raises:
        ValueError: when a source is no learned prompt, the prompts' classes or kinds of answers differ, or a prompt
            does not know a class.
    """
    states = [read_learned_state(source) for source in sources] if states is None else states
    require_same_kind(states)
    if classes is None:
        _require_same_classes(states)
    backbones = dict[str, Backbone]()
    prompts = dict[str, LearnedPrompt]()
    for name, state in zip(_name_sources(sources), states, strict=True):
        spec = state.config["backbone"] if backbone is None else backbone
        if spec not in backbones:
            backbones[spec] = attach_disk_cache(load_backbone(spec, device), SETTINGS.get_cache_folder())
        prompts[name] = restore_prompt(state, backbones[spec])
    first = next(iter(prompts.values()))
    if classes is None:
        keys = _make_class_keys(first.names)
        names = [_order_names(prompt.names, keys) for prompt in prompts.values()]
    else:
        names = [prompt.resolve_classes(classes) for prompt in prompts.values()]
    preprocessings = dict.fromkeys(p for prompt in prompts.values() for p in find_preprocessings(prompt.method))
    return Ensemble(prompts, names, tuple(preprocessings))


def require_same_kind(states: Sequence[LearnedState]) -> None:
    """ValueError unless learned states can answer together: all on images, or all on texts with classes."""
    kinds = [
        state.text_protocol.get("answer", "images" if state.decision.labels is None else "several labels of images")
        for state in states
    ]
    for state, kind in zip(states, kinds, strict=True):
        if kind == "tags":
            raise ValueError(
                f"{state.source!r}: expected a run that classifies or answers whole texts, got one that classifies "
                "words. Test it by `vlprompt eval` on a dataset."
            )
        if len(states) > 1 and (kind != kinds[0] or kind == "response"):
            raise ValueError(
                f"predict: expected prompts that choose among classes of the same inputs, got {states[0].source!r} "
                f"({kinds[0]}) and {state.source!r} ({kind}). Give one command for each."
            )


def _require_same_classes(states: Sequence[LearnedState]) -> None:
    first = states[0]
    for state in states[1:]:
        expected, names = _make_class_keys(first.names), _make_class_keys(state.names)
        if set(expected) != set(names):
            lacking = [f"no {_get_text(key)!r}" for key in expected if key not in names]
            further = [f"also {_get_text(key)!r}" for key in names if key not in expected]
            difference = ", ".join((lacking + further)[:5]) + " ..." * (len(lacking + further) > 5)
            raise ValueError(
                f"{state.source!r}: expected the {len(expected)} classes of {first.source!r}, got {len(names)} with "
                f"{difference}. Name prompts of the same classes, or set --classes."
            )


def _make_class_keys(names: Names) -> list[tuple[str, ...]]:
    """Return what identifies each class in every prompt: its name, with its id where two share the name."""
    texts = [str(name) for name in names]
    is_unique = len(set(texts)) == len(texts)
    return [(text,) if is_unique else (text, id_) for text, id_ in zip(texts, class_ids(names), strict=True)]


def _get_text(key: tuple[str, ...]) -> str:
    return key[0]


def _order_names(names: Names, keys: Sequence[tuple[str, ...]]) -> Names:
    by_key = dict(zip(_make_class_keys(names), names, strict=True))
    return tuple(by_key[key] for key in keys)


def _name_sources(sources: Sequence[str]) -> list[str]:
    """Return short names: the last part of a path where these differ."""
    names = [Path(source).name for source in sources]
    names = names if len(set(names)) == len(names) else [str(source) for source in sources]
    if repeated := [name for k, name in enumerate(names) if name in names[:k]]:
        raise ValueError(f"predict: expected each prompt once, got {repeated[0]!r} twice. Name it once.")
    return names


def identify_prompt(state: LearnedState) -> str:
    """Return a hash of a learned state with its metadata and its decision."""
    digest = hashlib.blake2b(digest_size=16)
    facts: Any = (dict(state.metadata), dict(state.text_protocol), repr(state.decision))
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, tensor in sorted(state.tensors.items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_classes(text: str) -> list[str]:
    """Read class names: from a file, one in each line, or separated by commas.

    Raises:
        ValueError: for fewer than two, or one twice.
    """
    parts = _read_class_lines(text)
    parts = text.split(",") if parts is None else parts
    names = [part.strip() for part in parts if part.strip()]
    if repeated := [name for name, n in Counter(names).items() if n > 1]:
        raise ValueError(f"--classes: expected each class once, got {repeated[0]!r} twice. Name it once.")
    if len(names) < 2:
        raise ValueError(
            f"--classes: expected a file, or at least 2 names separated by commas, got {text[:MAX_TEXT]!r}. Name a "
            "file with one class in each line, or write --classes cat,dog."
        )
    return names


def _read_class_lines(text: str) -> list[str] | None:
    """Return the lines of a file; None for a text that names no file."""
    try:
        path = Path(text).expanduser()
        return path.read_text("utf-8-sig").splitlines() if path.is_file() else None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"--classes: expected a file in UTF-8, got {text!r} with an {error.reason}. Convert it to UTF-8."
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, PermissionError):
            raise ValueError(
                f"--classes: expected a file that can be read, got {text!r}. Permit reading it."
            ) from error
        return None  # too long for a name, a home of nobody
