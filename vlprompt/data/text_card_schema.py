"""Schema of the cards of texts."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from vlprompt.core.class_names import Names
from vlprompt.data.builtin.text_loaders import TEXT_LOADERS
from vlprompt.data.card_schema import CardSchema, Classes, InnerPath, require_choice
from vlprompt.data.text_schema import TextSchema
from vlprompt.data.validation import Schema
from vlprompt.metrics import BENCHMARK_METRICS
from vlprompt.runtime.errors import suggest_nearest

HUB_SPLIT_SETS = ({"train", "test"}, {"train", "val", "test"}, {"all"})


class _FieldAnswer(Schema):
    fields: dict[str, str] = Field(min_length=1)


class ClassAnswer(_FieldAnswer):
    """A label for each text."""

    answer: Literal["class"]
    column: str = Field(alias="label")


class ResponseAnswer(_FieldAnswer):
    """A text that is to be written."""

    answer: Literal["response"]
    column: str = Field(alias="response")


class TagsAnswer(_FieldAnswer):
    """A label for each word of a text."""

    answer: Literal["tags"]
    column: str = Field(alias="tags")

    @field_validator("fields")
    @classmethod
    def _check_fields(cls, fields: dict[str, str]) -> dict[str, str]:
        if set(fields) != {"words"}:
            raise ValueError(f"expected {{words: column}} for the answer tags, got {fields!r}. Write words: COLUMN.")
        return fields


class MessagesAnswer(Schema):
    """A conversation whose last message is the response."""

    answer: Literal["messages"]
    column: str = Field(alias="messages")

    @property
    def fields(self) -> dict[str, str]:
        """{field: column}."""
        return {"messages": self.column}


TextColumns = Annotated[ClassAnswer | ResponseAnswer | TagsAnswer | MessagesAnswer, Field(discriminator="answer")]


class TextHub(Schema):
    """A dataset of the Hugging Face Hub: its path, its configuration, and which of its splits are ours."""

    path: str
    splits: dict[str, str]
    name: str | None = None
    revision: str | None = None


class TextCard(CardSchema):
    """Texts: from a loader, a folder below the data root, or a file beside the card."""

    kind: ClassVar[Literal["text"]] = "text"
    text: TextColumns = Field(
        description="{fields: {our name: column}, answer: class, response, tags or messages, and the answer's column "
        "as label, response, tags or messages}"
    )
    templates: tuple[str, ...] = Field(
        alias="template", min_length=1, description="a template, or a list of which a row takes the first that it fills"
    )
    classes: Classes = Field(["response"], description="a number of classes, {id: name} or a list of names")
    words: dict[object, list[object]] = Field({}, description="{class: a list of words}, the best first")
    plain: str | None = Field(None, description="a template without the answer's place")
    metric: str | None = Field(None, description=f"the metric of the literature ({', '.join(BENCHMARK_METRICS)})")
    loader: str | None = Field(None, description=f"one of {', '.join(TEXT_LOADERS)}")
    folder: InnerPath | None = Field(None, description="the folder of the tables below the data root")
    file: str | None = Field(None, description="a table beside the card")
    hub: TextHub | None = Field(
        None, description="{path: OWNER/NAME, name: CONFIGURATION, splits: {train: theirs, test: theirs}} with a folder"
    )

    @property
    def template(self) -> str:
        """The first template."""
        return self.templates[0]

    def class_words(self) -> dict[str, tuple[str, ...]]:
        """Return {class id: the words that a language model answers with, the best first}."""
        return {str(key): tuple(map(str, words)) for key, words in self.words.items()}

    def build_schema(self, names: Names = ()) -> TextSchema:
        """Return what the columns mean."""
        text = self.text
        return TextSchema(text.answer, text.fields, text.column, self.templates, self.plain, names)

    @model_validator(mode="before")
    @classmethod
    def _complete_template(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        text = values.get("text")
        answer = text.get("answer") if isinstance(text, dict) else None
        default = {"messages": "{messages}", "tags": "{words}"}.get(str(answer))
        template = values.get("template", default)
        if isinstance(template, str):
            template = [template]
        if isinstance(template, list):
            return values | {"template": tuple(template)}
        return values

    @field_validator("loader")
    @classmethod
    def _check_loader(cls, loader: str | None) -> str | None:
        return None if loader is None else require_choice(loader, list(TEXT_LOADERS))

    @field_validator("metric")
    @classmethod
    def _check_metric(cls, metric: str | None) -> str | None:
        return None if metric is None else require_choice(metric, BENCHMARK_METRICS)

    @field_validator("words")
    @classmethod
    def _check_words(cls, words: dict[object, list[object]]) -> dict[object, list[object]]:
        if empty := [key for key, some in words.items() if not some]:
            raise ValueError(
                f"expected {{class: a list of words}}, the best first, got no words for {empty[0]!r}. Name some."
            )
        for word in (word for some in words.values() for word in some):
            if not isinstance(word, str) or not word.strip():
                raise ValueError(
                    f"expected words in quotes, got {word!r}. YAML reads yes and no without quotes as true and false."
                )
        return words

    @field_validator("hub")
    @classmethod
    def _check_splits(cls, hub: TextHub | None) -> TextHub | None:
        if hub is not None and set(hub.splits) not in HUB_SPLIT_SETS:
            raise ValueError(
                f"expected splits for train, test and perhaps val, or for all, got {', '.join(hub.splits) or 'none'}. "
                "Correct the splits."
            )
        return hub

    @model_validator(mode="after")
    def _check_card(self) -> "TextCard":
        sources = [key for key in ("loader", "folder", "file") if getattr(self, key) is not None]
        if len(sources) != 1:
            raise ValueError(
                f"expected one of the keys loader, folder and file, got {' and '.join(sources) or 'none'}. Name one "
                "of them."
            )
        if self.hub is not None and self.folder is None:
            raise ValueError("hub: expected the key folder for the downloaded tables, got none. Add the key folder.")
        if ("classes" in self.model_fields_set) != (self.text.answer in ("class", "tags")):
            got = f"classes for the answer {self.text.answer}" if "classes" in self.model_fields_set else "no classes"
            raise ValueError(
                f"classes: expected classes for the answers class and tags only, got {got}. Correct the card."
            )
        keys = list(self.listed_classes())
        if unknown := [key for key in map(str, self.words) if key not in keys]:
            raise ValueError(f"words: expected class ids, got {unknown[0]!r}; {suggest_nearest(unknown[0], keys)}")
        self.build_schema()  # raises for templates that do not fit the fields
        return self

    @property
    def file_path(self) -> Path | None:
        """The table beside the card."""
        return None if self.file is None else self.path.parent / self.file
