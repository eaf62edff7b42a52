"""The learned prompts that a server answers by, all on one frozen backbone that is loaded once."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

from vlprompt.backbones import load_backbone
from vlprompt.core.class_names import Names
from vlprompt.core.images import Preprocessing
from vlprompt.core.introspection import feature_caches
from vlprompt.core.towers import Backbone, find_input_tower, find_preprocessing
from vlprompt.experiments.export.decision_file import describe_decision
from vlprompt.experiments.learned.prompt import MAX_PREPARED_CLASS_LISTS, LearnedPrompt, restore_prompt
from vlprompt.experiments.learned.state import LearnedState, read_learned_state
from vlprompt.experiments.server.batching import ClassNamesError, require_answerable
from vlprompt.results.run_folder import RunFolder

MAX_MODELS = 64
FEATURE_CACHE_BYTES = 2**25  # of each tower of each prompt; 12,000 images of a ViT-B/16
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
NEW_CLASS = "something new"  # a name that no prompt was trained on: does a method read it?


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A learned prompt by the name that clients give.

    Args:
        name: of the model.
        prompt: answers.
        reads_names: whether it can answer about classes that it was not trained on, by their names.
        summary: the scores of its run, in percent.
        class_lists: the last lists of classes that clients have stored, by id.
    """

    name: str
    prompt: LearnedPrompt
    reads_names: bool
    summary: Mapping[str, float]
    class_lists: dict[str, Names] = field(default_factory=dict)

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of its input tower."""
        return find_preprocessing(cast(Backbone, self.prompt.method.backbone))

    def describe(self) -> dict[str, Any]:
        """Return what clients may know of it."""
        config, decision = self.prompt.state.config, self.prompt.decision
        return {
            "name": self.name,
            "method": config["method"]["name"],
            "backbone": self.prompt.state.backbone_key,
            "classes": [str(name) for name in self.prompt.names],
            "reads_names": self.reads_names,
            "summary": dict(self.summary),
            "decision": describe_decision(decision),
        }

    def store_classes(self, names: Names) -> str:
        """Store a list of classes and return its id; the oldest of too many goes."""
        list_id = blake2b("\n".join(names).encode(), digest_size=6).hexdigest()
        if list_id not in self.class_lists and len(self.class_lists) >= MAX_PREPARED_CLASS_LISTS:
            self.class_lists.pop(next(iter(self.class_lists)))
        self.class_lists[list_id] = names
        return list_id


class ServedModels:
    """The models of a server by name.

    Args:
        backbone: where the backbone is now; None for where it was when the first prompt was learned.
        device: as `load` takes it.
    """

    def __init__(self, backbone: str | None = None, device: str | None = None):
        self._spec, self._device, self._backbone = backbone, device, cast(Backbone | None, None)
        self._key = ""
        self.by_name = dict[str, ServedModel]()

    @property
    def spec(self) -> str:
        """The backbone's name; "" before the first prompt is loaded."""
        return "" if self._backbone is None else find_input_tower(self._backbone).spec

    def load(self, name: str, source: str | Path) -> ServedModel:
        """Load a learned prompt on the backbone of the others, without adding it.

        Args:
            name: for clients: letters, digits, ".", "_" and "-".
            source: as `load_prompt` takes it.

        Raises:
            ValueError: for another name, a source that is none, a prompt for texts, or one of another backbone.
        """
        if not NAME_PATTERN.fullmatch(name):
            raise ValueError(
                f"model: expected a name of letters, digits, '.', '_' and '-', got {name[:100]!r}. Name it otherwise: "
                "NAME=FOLDER."
            )
        state = read_learned_state(source)
        if state.text_protocol:
            raise ValueError(
                f"{state.source!r}: expected a prompt for images, got one for texts. Use it by `vlprompt predict`."
            )
        self._require_backbone(state)
        if self._backbone is None:
            self._backbone = load_backbone(self._spec or state.config["backbone"], self._device)
        prompt = restore_prompt(state, self._backbone)
        self._key = state.backbone_key
        for cache in feature_caches(prompt.method):
            cast(Any, cache).set_max_bytes(FEATURE_CACHE_BYTES)
        prompt.prepare()
        return ServedModel(name, prompt, _reads_names(prompt), read_summary(state))

    def add(self, model: ServedModel) -> None:
        """Add a model, or put it in the place of the one of this name; requests that run keep the old one."""
        if model.name not in self.by_name and len(self.by_name) >= MAX_MODELS:
            raise ValueError(f"models: expected at most {MAX_MODELS}, got one more. Remove one first.")
        self.by_name[model.name] = model

    def _require_backbone(self, state: LearnedState) -> None:
        """Raise ValueError unless a prompt was learned on the backbone of the others."""
        identity, own = (key.partition("#")[2] for key in (state.backbone_key, self._key))
        if self._key and identity != own:
            raise ValueError(
                f"{state.source!r}: expected a prompt of the backbone that the server has loaded ({self._key}), got "
                f"one of {state.backbone_key}. Start a second server for it, on another --port."
            )


def _reads_names(prompt: LearnedPrompt) -> bool:
    """Return whether a prompt can answer about a class that it was not trained on."""
    try:
        require_answerable(prompt, prompt.resolve_classes([NEW_CLASS]))
    except ClassNamesError:
        return False
    return True


def read_summary(state: LearnedState) -> dict[str, float]:
    """Return the scores of the run that learned a prompt; {} where its model folder has none."""
    if state.provenance:
        return dict((state.provenance["result"] or {}).get("summary", {}))
    result = RunFolder(Path(state.source).expanduser()).read_result()
    return {} if result is None else dict(result.summary)
