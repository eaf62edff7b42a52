"""Train a method on one lesson, as the runner does it, and return the learned prompt in memory."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch

from vlprompt.backbones import load_backbone
from vlprompt.backbones.feature_cache import attach_disk_cache
from vlprompt.config.describe import describe_run
from vlprompt.config.run_config import RunConfig
from vlprompt.core.batch import Split
from vlprompt.core.method import Method
from vlprompt.core.stage import Lesson, Stage
from vlprompt.core.texts import TextItem
from vlprompt.core.towers import (
    Backbone,
    find_input_tower,
    find_preprocessing,
    validate_stage_inputs,
    with_preprocessing,
)
from vlprompt.data.images.preprocess_presets import resolve_preprocessing
from vlprompt.engine.loop import fit
from vlprompt.experiments.learned.prompt import LearnedPrompt, build_run_method, restore_prompt
from vlprompt.experiments.learned.state import LearnedState
from vlprompt.experiments.provenance import describe_learned_state
from vlprompt.experiments.runner import use_threads
from vlprompt.runtime import collectives
from vlprompt.runtime.file_index import read_stamp
from vlprompt.runtime.seeding import make_generator
from vlprompt.runtime.settings import SETTINGS
from vlprompt.tasks import FewShot, Text

MAX_BACKBONES = 2  # frozen backbones that the fits of a process share, with their cached features
_TRAINING_LOCK = threading.Lock()  # trainings draw from torch's global random state


def learn_lesson(
    config: RunConfig, task: FewShot | Text, lesson: Lesson, device: str | None, earlier: LearnedPrompt | None = None
) -> LearnedPrompt:
    """Train on one lesson; torch's threads and random state are afterwards what they were.

    Args:
        config: the resolved configuration.
        task: on the data that the lesson is of.
        lesson: what to learn from.
        device: as `load` takes it.
        earlier: learned from the lessons before; its method goes on and must not be used any more.

    Raises:
        ValueError: for a method that does not suit the backbone or the lesson.
        NonFiniteError: for a loss that is not a number.
    """
    with _TRAINING_LOCK, use_plain_torch(config.backbone), torch.random.fork_rng():
        if earlier is None:
            backbone = _load_preprocessed(config, device)
            validate_stage_inputs(backbone, Stage(lesson, {}))
            method = build_run_method(config.method, backbone)
        else:
            method = earlier.method
        _train(method, lesson, config)
    lessons = [*(earlier.state.lessons if earlier else []), lesson.without_items()]
    config = replace(config, task={**config.task, "dataset": task.dataset})
    described = describe_run(method, task, config, config.seed).to_dict()
    backbone = method.backbone
    key = "" if backbone is None else find_input_tower(backbone).key
    return LearnedPrompt(
        method,
        LearnedState(
            {name: tensor.detach().cpu().clone() for name, tensor in method.state_dict().items()},
            describe_learned_state(key, lessons, described),
            source=task.dataset,
            text_protocol=_describe_texts(lesson.train),
        ),
    )


def _train(method: Method, lesson: Lesson, config: RunConfig) -> None:
    with collectives.synchronize_state(method):
        method.begin_lesson(lesson, make_generator(config.seed, "begin", lesson.index))
    for _ in fit(method, lesson, config.train_config, config.seed):
        pass
    with collectives.synchronize_state(method):
        method.end_lesson(lesson)


def _describe_texts(train: Split) -> dict[str, str]:
    """Return the text protocol of a lesson, as `LearnedState` has it; {} for images."""
    first = train.items[0]
    if not isinstance(first, TextItem):
        return {}
    return {"template": first.template, "plain_template": first.plain_template, "answer": "class"}


@contextmanager
def use_plain_torch(backbone: str) -> Iterator[None]:
    """Compute as a command does, whatever modes the caller has set; those are afterwards what they were.

    That is with the backbone's threads, gradients where they are needed, float32, and without autocast.
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(use_threads(backbone))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if dtype != torch.float32:  # of all threads, so it is only touched where it must be
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        yield


def restore_shared(state: LearnedState, device: str | None) -> LearnedPrompt:
    """Restore a learned state on the backbone that the fits of this process share."""
    if state.is_backbone_local:
        return restore_prompt(state, None, device)  # raises: its path is not known
    with use_plain_torch(state.config["backbone"]):
        return restore_prompt(state, load_shared_backbone(state.config["backbone"], device), device)


def load_shared_backbone(spec: str, device: str | None) -> Backbone:
    """Load a backbone, or return the one of the same name, device and files that was loaded last."""
    return _load_cached(spec, device, SETTINGS.get_cache_folder(), _read_file_stamps(spec))


@lru_cache(maxsize=MAX_BACKBONES)
def _load_cached(spec: str, device: str | None, cache_folder: Path | None, stamps: tuple[object, ...]) -> Backbone:
    return attach_disk_cache(load_backbone(spec, device), cache_folder)


def _load_preprocessed(config: RunConfig, device: str | None) -> Backbone:
    backbone = load_shared_backbone(config.backbone, device)
    if config.preprocess is None:
        return backbone
    return with_preprocessing(backbone, resolve_preprocessing(config.preprocess, find_preprocessing(backbone)))


def _read_file_stamps(spec: str) -> tuple[object, ...]:
    """Return size and times of the files that a backbone's name points to."""
    argument = spec.partition(":")[2].rpartition("@")[2].removeprefix("local-dir:")
    path = Path(argument).expanduser()
    files = [path] if path.is_file() else sorted(path.iterdir()) if argument and path.is_dir() else []
    return tuple((str(file), *read_stamp(file)) for file in files if file.is_file())
