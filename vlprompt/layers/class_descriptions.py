"""Files of class descriptions: what a language model, a person or chance wrote about each class.

A file is JSON or YAML, {class name or id: [texts]}, or {"template": ..., "descriptions": {class: [texts]}, "generator":
{...}} as `vlprompt describe` writes it, whose template puts each text into a sentence.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from vlprompt.core.templates import PromptTemplate

Value = TypeVar("Value")
FILE_SUFFIXES = (".json", ".yaml", ".yml")
FILE_KEYS = ("template", "descriptions", "generator")
DESCRIPTION_FIELDS = ("description", "descriptor")
DESCRIPTOR_TEMPLATE = "A photo of a {name}, which {descriptor}."  # Menon and Vondrick's sentence
RANDOM_STYLE = "waffle"


@dataclass(frozen=True)
class ClassDescriptions:
    """The texts of classes.

    Args:
        path: the file.
        texts: class name or id, in lower case and with spaces -> texts.
        template: of a sentence, with {name} and {description} or {descriptor}; None for texts that are sentences.
        generator: how the texts were made.
    """

    path: Path
    texts: Mapping[str, Sequence[str]]
    template: str | None = None
    generator: Mapping[str, Any] = field(default_factory=dict)

    @property
    def use(self) -> str:
        """What a method that reads the file uses, for the protocol of its result."""
        return "random_texts" if self.generator.get("style") == RANDOM_STYLE else "llm_texts"

    def select(self, names: Sequence[str]) -> list[Sequence[str]]:
        """Return the texts of each class; ValueError for a class without texts."""
        selected = list[Sequence[str]]()
        for name in names:
            keys = map(normalize_name, (getattr(name, "id", name), name))
            texts = next((self.texts[key] for key in keys if self.texts.get(key)), None)
            if texts is None:
                raise ValueError(self._missing_message(name, names))
            selected.append(texts)
        return selected

    def _missing_message(self, name: str, names: Sequence[str]) -> str:
        keys = {normalize_name(key) for one in names for key in (getattr(one, "id", one), one)}
        if self.texts and not keys & self.texts.keys():
            return (
                f"{str(self.path)!r}: expected a description of {str(name)!r}, got none, nor of any other class here: "
                f"it has {next(iter(self.texts))!r} and the like. Give the file of this dataset."
            )
        return (
            f"{str(self.path)!r}: expected a description of {str(name)!r}, got none. Add one, or leave "
            "method.descriptions out."
        )


def is_description_file(template: object) -> TypeGuard[str]:
    """Whether a template names a file of descriptions, as "texts.json" does."""
    return isinstance(template, str) and "{" not in template and template.lower().endswith(FILE_SUFFIXES)


def read_descriptions(path: str | Path, names: Sequence[str], template: str | None = None) -> list[list[str]]:
    """Read the sentences about each class from a file of descriptions.

    Args:
        path: of the file; ~ is the home folder.
        names: the classes, in the order of the result.
        template: has {description} or {descriptor}, and {name}; without one of these the file's own, else its texts are
            used verbatim.

    Raises:
        ValueError: if there is no such file, it is broken, or a class has no description.
    """
    descriptions = load_descriptions(Path(path).expanduser())
    own, setting = descriptions.template, f"{str(descriptions.path)!r}: template"
    if template and any(f"{{{name}}}" in template for name in DESCRIPTION_FIELDS):
        own, setting = template, "method.template"
    parsed = PromptTemplate.parse(own or "{description}")
    parsed.require_fields(f"{setting} {own!r}", ("name", *DESCRIPTION_FIELDS))
    sentences = list[list[str]]()
    for name, texts in zip(names, descriptions.select(names), strict=True):
        of_class = ({"description": text, "descriptor": write_clause(text)} for text in texts)
        sentences.append([str(parsed.fill({"name": name.replace("_", " "), **fields})) for fields in of_class])
    return sentences


def write_clause(descriptor: str) -> str:
    """Return a descriptor as what follows "which", by Menon and Vondrick's rule: "wings" -> "has wings"."""
    if descriptor.startswith("a") or descriptor.startswith("used"):
        return f"is {descriptor}"
    return descriptor if descriptor.startswith(("has", "often", "typically", "may", "can")) else f"has {descriptor}"


def load_descriptions(path: Path) -> ClassDescriptions:
    """Read a file of descriptions; ValueError if there is none, or it is broken."""
    content = load_mapping(path)
    template, generator = None, dict[str, Any]()
    if isinstance(content.get("descriptions"), dict):
        if unknown := [key for key in content if key not in FILE_KEYS]:
            raise ValueError(
                f"method.descriptions: expected the keys {', '.join(FILE_KEYS)} in {str(path)!r}, got {unknown[0]!r}. "
                "Put classes below descriptions."
            )
        template, generator, content = content.get("template"), content.get("generator", {}), content["descriptions"]
    if not (template is None or isinstance(template, str)) or not isinstance(generator, dict):
        raise ValueError(
            f"method.descriptions: expected a text as template and a mapping as generator in {str(path)!r}, got other "
            "values. Correct the file."
        )
    return ClassDescriptions(path, _require_texts(path, content), template, generator)


def find_description_use(path: Path) -> str:
    """Return the key of `Method.uses` for a file of descriptions, or of what classes have and others have not."""
    content = load_mapping(path)
    is_of_pairs = "descriptions" not in content and any(isinstance(v, dict) for v in content.values())
    return "llm_texts" if is_of_pairs else load_descriptions(path).use


def load_mapping(path: Path, form: str = "{class name: [texts]}") -> dict[str, Any]:
    """Read a JSON or YAML file that is a mapping of class names, of a form that an error names."""
    from yaml import YAMLError

    if not path.is_file():
        raise ValueError(
            f"method.descriptions: expected a file of descriptions, got {str(path)!r}, which does not exist. Give a "
            f"JSON file of {form}."
        )
    try:
        content = _parse(path.read_text("utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        cause = " ".join(str(error).split())
        raise ValueError(
            f"method.descriptions: expected JSON or YAML in {str(path)!r}, got an error: {cause}. Correct the file."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"method.descriptions: expected {form} in {str(path)!r}, got a {type(content).__name__}. "
            "Give a mapping of class names."
        )
    return content


def _parse(text: str) -> Any:
    """Parse JSON, whose escapes YAML reads otherwise, else YAML; YAMLError for what is neither."""
    from yaml import YAMLError

    from vlprompt.runtime.yaml_text import load_yaml

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(pairs)
        if len(mapping) < len(pairs):
            keys = [key for key, _ in pairs]
            raise YAMLError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
        return mapping

    try:
        return json.loads(text, object_pairs_hook=collect)
    except json.JSONDecodeError:
        return load_yaml(text, typed_keys=())


def _require_texts(path: Path, content: Mapping[str, Any]) -> Mapping[str, Sequence[str]]:
    descriptions = {str(key): [value] if isinstance(value, str) else value for key, value in content.items()}
    for key, texts in descriptions.items():
        if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(
                f"method.descriptions: expected a list of texts for {key!r} in {str(path)!r}, got {texts!r}. Write its "
                "texts in quotes."
            )
    return normalize_names(descriptions, path)


def normalize_names(values: Mapping[str, Value], path: Path) -> dict[str, Value]:
    """Return the values by their names in lower case and with spaces; ValueError for two that become one."""
    by_name = {normalize_name(key): value for key, value in values.items()}
    if len(by_name) < len(values):
        raise ValueError(
            f"method.descriptions: expected each class once in {str(path)!r}, got names that differ in case or "
            "underscores only. Remove one, or use the ids of the classes."
        )
    return by_name


def normalize_name(name: str) -> str:
    """Return a class name in lower case and with spaces for underscores, as files of descriptions are searched."""
    return name.replace("_", " ").lower()
