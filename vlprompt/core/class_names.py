"""Class names: strings with an id, a template and label words."""

from collections.abc import Sequence
from typing import TypeAlias

DEFAULT_TEMPLATE = "a photo of a {name}."


class ClassName(str):
    """A class name as texts show it.

    Args:
        text: the name.
        id: identifies the class, as two classes may share a name; by default the name.
        template: the hand-written template of its dataset.
        words: label words for a language model, the best first; by default the name.
    """

    __slots__ = ("id", "template", "words")
    id: str
    template: str | None
    words: tuple[str, ...]

    def __new__(
        cls, text: str, id: str | None = None, template: str | None = None, words: Sequence[str] = ()
    ) -> "ClassName":
        name = super().__new__(cls, text)
        name.id, name.template, name.words = text if id is None else id, template, tuple(words)
        return name

    # pickle gives these to __new__, which takes more arguments than str's does
    def __getnewargs__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
    ) -> tuple[str, str, str | None, tuple[str, ...]]:
        return str(self), self.id, self.template, self.words


Names: TypeAlias = tuple[str, ...]


def as_class_name(name: str) -> ClassName:
    """Return a plain string as a ClassName."""
    return name if isinstance(name, ClassName) else ClassName(name)


def normalize_name(name: str) -> str:
    """Return a class name without case and underscores, by which the names of two datasets are compared."""
    return " ".join(str(name).replace("_", " ").casefold().split())


def class_ids(names: Sequence[str]) -> Names:
    """Return the ids of class names; a plain string is its own id."""
    return tuple(getattr(name, "id", str(name)) for name in names)


def extend_ids(known_ids: Sequence[str], names: Sequence[str]) -> Names:
    """Return the known ids, and behind them those of these names that are not known yet."""
    return (*known_ids, *(i for i in class_ids(names) if i not in known_ids))
