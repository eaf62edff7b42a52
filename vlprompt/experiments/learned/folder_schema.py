"""The schema of a model folder's config.json: what a learned prompt is, beside its tensors."""

from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, JsonValue, field_validator

from vlprompt.core.batch import Reading
from vlprompt.data.validation import Schema
from vlprompt.experiments.learned.decision import Decision, LabelDecision

LIBRARY = "vlprompt"
FORMAT_VERSION = 1  # of the folder; a folder of another version is refused
TEXT_PROTOCOL_KEYS = ("template", "plain_template", "answer")
MAX_CONFIG_BYTES = 32 * 2**20
MAX_CLASSES, MAX_LESSONS, MAX_TEXT = 200_000, 10_000, 20_000

Text = Annotated[str, Field(max_length=MAX_TEXT)]
Name = Annotated[str, Field(max_length=1000)]
Label = Annotated[str, Field(min_length=1, max_length=1000)]
Settings = dict[str, JsonValue]


class ClassEntry(Schema):
    """A class: its name, id, template and label words."""

    name: Label
    id: Label
    template: Text | None
    words: Annotated[list[Name], Field(max_length=1000)]


class LessonEntry(Schema):
    """A lesson: its classes in the order of the labels, and its domains."""

    classes: Annotated[list[ClassEntry], Field(max_length=MAX_CLASSES)]
    domains: Annotated[list[Name], Field(max_length=1000)]

    @field_validator("classes")
    @classmethod
    def _require_different(cls, classes: list[ClassEntry]) -> list[ClassEntry]:
        """Refuse two classes of one id, of which one would be lost."""
        repeated = [name for name, n in Counter(entry.id for entry in classes).items() if n > 1]
        if repeated:
            raise ValueError(f"expected each id of a class once, got {repeated[0]!r} twice")
        return classes


class BackboneEntry(Schema):
    """The frozen backbone: its spec, its key, and whether its weights are a file that is not on the hub."""

    spec: Name
    key: Name
    is_local: bool


class TensorsEntry(Schema):
    """The file of the tensors: its SHA-256 and size."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]


class LabelDecisionEntry(Schema):
    """How logits become several labels, as `LabelDecision` has it."""

    reading: Reading
    threshold: FiniteFloat
    n_validation: Annotated[int, Field(ge=0)]


class DecisionEntry(Schema):
    """How logits become an answer, as `Decision` has it."""

    temperature: Annotated[FiniteFloat, Field(ge=1e-6, le=1e6)]  # the softmax is in single precision
    score: Name
    threshold: FiniteFloat | None
    facts: Settings
    labels: LabelDecisionEntry | None = None

    def build(self) -> Decision:
        """Return the decision."""
        labels = None if self.labels is None else LabelDecision(**self.labels.model_dump())
        return Decision(self.temperature, self.score, self.threshold, self.facts, labels)


class SeedsEntry(Schema):
    """All runs that differ by their seed only: mean and standard deviation (divided by n) of each metric."""

    seeds: Annotated[list[int], Field(max_length=10_000)]
    mean: dict[str, FiniteFloat]
    std: dict[str, FiniteFloat]


class ResultEntry(Schema):
    """The result of the run: its scores in percent, the data and protocol behind them, its cost and versions."""

    summary: dict[str, FiniteFloat]
    seeds: SeedsEntry | None
    protocol: Settings
    cost: dict[str, FiniteFloat]
    environment: Settings


class MethodEntry(Schema, extra="allow"):
    """The name of the method and its constructor's arguments."""

    name: Name


class ModelConfig(Schema):
    """The config.json of a model folder."""

    library_name: Literal["vlprompt"]
    format_version: int = Field(description=f"the version of the folder's format, here {FORMAT_VERSION}")
    vlprompt_version: Name | None = Field(description="the version that wrote the folder")
    backbone: BackboneEntry = Field(description="spec, key and is_local of the frozen backbone")
    preprocess: Name | Settings | None = Field(None, description="a preset's name or settings")
    method: MethodEntry = Field(description="the name of the method and its settings")
    task: Settings = Field(description="the settings of the task that it was trained on")
    train: Settings = Field(description="the settings of its training")
    seed: int = Field(description="the seed of its training, a whole number")
    config_hash: Name = Field(description="the hash of the run's configuration")
    lessons: Annotated[list[LessonEntry], Field(min_length=1, max_length=MAX_LESSONS)] = Field(
        description="a list of lessons, each with its classes (name, id, template, words) and domains"
    )
    total: int | None = Field(description="the number of lessons, or null where it is unknown")
    has_task_boundaries: bool = Field(description="true or false")
    text_protocol: Settings = Field(description="the templates of a prompt for texts")
    decision: DecisionEntry = Field(description="temperature, score, threshold and facts")
    tensors: TensorsEntry = Field(description="sha256 and bytes of model.safetensors")
    result: ResultEntry | None = Field(None, description="the scores of the run, and what they stand on")

    @field_validator("lessons")
    @classmethod
    def _require_classes(cls, lessons: list[LessonEntry]) -> list[LessonEntry]:
        if not any(lesson.classes for lesson in lessons):
            raise ValueError("expected at least one class, got none")
        return lessons

    @field_validator("task")
    @classmethod
    def _require_task(cls, task: Settings) -> Settings:
        if not isinstance(task.get("name"), str):
            raise ValueError(f"expected the task's name, got {str(task.get('name'))[:40]!r}")
        datasets = task.get("dataset")
        if not all(isinstance(one, str | None) for one in (datasets if isinstance(datasets, list) else [datasets])):
            raise ValueError(f"expected a dataset's name or several, got {str(datasets)[:40]!r}")
        return task

    @field_validator("text_protocol")
    @classmethod
    def _require_templates(cls, protocol: Settings) -> Settings:
        if protocol and not all(isinstance(protocol.get(key), str) for key in TEXT_PROTOCOL_KEYS):
            raise ValueError(f"expected {', '.join(TEXT_PROTOCOL_KEYS)} as texts, got {', '.join(protocol)[:40]!r}")
        return protocol

    @property
    def run_config(self) -> dict[str, Any]:
        """The configuration of the run, as config.yaml has it."""
        preprocess = {} if self.preprocess is None else {"preprocess": self.preprocess}
        method, seed = self.method.model_dump(), self.seed
        return {"backbone": self.backbone.spec, **preprocess, "method": method, "task": self.task,
                "train": self.train, "seed": seed}  # fmt: skip

    @property
    def class_names(self) -> list[str]:
        """The classes of all lessons by name, each id once."""
        by_id = {entry.id: entry.name for lesson in self.lessons for entry in lesson.classes}
        return list(by_id.values())
