"""What a finished run, or a model folder, holds of a learned prompt, before its backbone is loaded."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from vlprompt.core.batch import Split
from vlprompt.core.class_names import ClassName, Names, as_class_name
from vlprompt.core.stage import Lesson
from vlprompt.core.texts import TextItem
from vlprompt.data.text.text_inputs import TextInput, build_text_items
from vlprompt.engine.label_scores import DEFAULT_THRESHOLD
from vlprompt.experiments.learned.decision import Decision, LabelDecision
from vlprompt.experiments.learned.folder_schema import TEXT_PROTOCOL_KEYS, ModelConfig
from vlprompt.experiments.learned.hub import download_model, is_hub_name
from vlprompt.experiments.learned.model_files import (
    CARD_FILE,
    CONFIG_FILE,
    TENSORS_FILE,
    is_model_folder,
    read_model_config,
    read_model_tensors,
)
from vlprompt.experiments.model_cards.licenses import read_license
from vlprompt.results.run_folder import Result, RunFolder


@dataclass(frozen=True)
class LearnedState:
    """A learned state with all that its method needs to answer again.

    Args:
        tensors: the method's state.
        metadata: what `describe_learned_state` returned: config, backbone_key, lessons ...
        source: the folder or name that it was read from.
        text_protocol: template, plain_template and answer of a prompt for texts; {} for images.
        decision: how its logits become an answer.
        is_backbone_local: whether the backbone's spec names a file of the machine that saved it.
        provenance: of a model folder its result, license and config_hash, to save it again with them.
    """

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Any]
    source: str
    text_protocol: Mapping[str, str] = field(default_factory=dict)
    decision: Decision = field(default_factory=Decision)
    is_backbone_local: bool = False
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved configuration: backbone, method, task, train, seed, perhaps preprocess."""
        return self.metadata["config"]

    @property
    def backbone_key(self) -> str:
        """The key of the backbone that it was learned on."""
        return self.metadata["backbone_key"]

    @property
    def lessons(self) -> list[Lesson]:
        """The lessons that it was learned from, without their items."""
        stream = {key: self.metadata[key] for key in ("total", "has_task_boundaries") if key in self.metadata}
        names_by_lesson = [tuple(ClassName(*name) for name in names) for names in self.metadata["lessons"]]
        domains_by_lesson = self.metadata.get("domains", [()] * len(names_by_lesson))
        return [
            Lesson(Split((), (), names), index=index, domains=tuple(domains), **stream)
            for index, (names, domains) in enumerate(zip(names_by_lesson, domains_by_lesson, strict=True))
        ]

    @property
    def names(self) -> Names:
        """The classes of all lessons, in the order in which they came."""
        by_id = {name.id: name for lesson in self.lessons for name in map(as_class_name, lesson.train.names)}
        return tuple(by_id.values())

    def build_text_items(
        self, text_inputs: Sequence[TextInput], names: Sequence[str] | None = None
    ) -> tuple[TextItem, ...]:
        """Return the items of texts as the prompt was trained on them; ValueError for texts without its fields.

        Args:
            text_inputs: a text or its fields each.
            names: what errors call each text.
        """
        template, plain_template = self.text_protocol["template"], self.text_protocol["plain_template"]
        truncation_side = self.config["task"].get("truncation_side", "end")
        return build_text_items(text_inputs, template, plain_template, truncation_side, names)


def read_learned_state(source: str | Path) -> LearnedState:
    """Read the learned state of a finished run, or of a model folder.

    Args:
        source: the folder of a run, a model folder, or OWNER/NAME or OWNER/NAME@REVISION on the hub; a path that
            exists, or whose parent does, is no name on the hub.

    Raises:
        ValueError: when the run is not finished, or a file of it is broken.
        OSError: when the hub can't be reached, or has no such model.
    """
    path = Path(source).expanduser()
    if is_hub_name(str(source)):
        return _read_model_folder(download_model(str(source)), str(source))
    folder = RunFolder(path)
    if is_model_folder(path) and not (folder.config_path.exists() or folder.result_path.exists()):
        return _read_model_folder(path, str(source))
    tensors, metadata = folder.read_learned_state()
    result = folder.read_result()
    protocol = {} if result is None or "answer" not in result.protocol else result.protocol
    text_protocol = {key: protocol[key] for key in TEXT_PROTOCOL_KEYS} if protocol else {}
    return LearnedState(tensors, metadata, str(source), text_protocol, _read_decision(metadata["config"], result))


def _read_decision(config: Mapping[str, Any], result: Result | None) -> Decision:
    """Return the decision of a run: the threshold of its labels, where its items may have several, else none."""
    task = config["task"]
    if task["name"] != "multi_label":
        return Decision()
    if result is None:
        return Decision(labels=LabelDecision(task["reading"]))
    threshold, validation = (
        result.summary.get("threshold", DEFAULT_THRESHOLD),
        result.protocol.get("contents", {}).get("val"),
    )
    n_validation = validation["items"] if validation and threshold != DEFAULT_THRESHOLD else 0
    return Decision(labels=LabelDecision(task["reading"], threshold, n_validation))


def _read_model_folder(path: Path, source: str) -> LearnedState:
    config = read_model_config(path / CONFIG_FILE, source)
    tensors = read_model_tensors(path / TENSORS_FILE, config, source)
    text_protocol: Any = config.text_protocol
    license = None
    with suppress(ValueError, OSError):  # a card that was edited, or is gone, is no reason not to answer
        license = read_license((path / CARD_FILE).read_text("utf-8"), source)
    provenance = {
        "result": None if config.result is None else config.result.model_dump(),
        "license": license,
        "config_hash": config.config_hash,
    }
    return LearnedState(
        tensors,
        _build_metadata(config),
        source,
        text_protocol,
        config.decision.build(),
        config.backbone.is_local,
        provenance,
    )


def _build_metadata(config: ModelConfig) -> dict[str, Any]:
    """Return what `describe_learned_state` returned when the prompt was learned."""
    return {
        "config": config.run_config,
        "backbone_key": config.backbone.key,
        "lessons": [[[c.name, c.id, c.template, c.words] for c in lesson.classes] for lesson in config.lessons],
        "total": config.total,
        "has_task_boundaries": config.has_task_boundaries,
        "domains": [lesson.domains for lesson in config.lessons],
    }
