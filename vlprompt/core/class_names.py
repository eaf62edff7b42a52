"""Class names as values: what texts show, what tells two classes apart, and how their dataset words them."""

from collections.abc import Sequence


class Name(str):
    """A class name as texts show it.

    id: tells the class from every other (two may share a name); hand: the hand-written template of its dataset; words:
    what a language model says for it, the best first (none: the name itself).
    """

    __slots__ = ("hand", "id", "words")
    id: str
    hand: str | None
    words: tuple[str, ...]

    def __new__(cls, text: str, id: str | None = None, hand: str | None = None, words: Sequence[str] = ()) -> "Name":
        name = super().__new__(cls, text)
        name.id, name.hand, name.words = text if id is None else id, hand, tuple(words)
        return name

    # pickle gives these to __new__, which takes more arguments than str's does
    def __getnewargs__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
    ) -> tuple[str, str, str | None, tuple[str, ...]]:
        return str(self), self.id, self.hand, self.words


Names = tuple[str, ...]


def named(name: str) -> Name:
    """A plain string as a Name."""
    return name if isinstance(name, Name) else Name(name)


def ids(names: Sequence[str]) -> Names:
    """What tells the classes apart; a plain string is its own id."""
    return tuple(getattr(name, "id", str(name)) for name in names)


PLAIN = "a photo of a {name}."
